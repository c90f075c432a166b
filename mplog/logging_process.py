"""The logging process: the one that opens, writes and closes the log.

::

      FIFO -----> read in bulk -> FrameReader -> Record \\
                                                        Dispatcher -> handlers -> files
      control --> "records" of a plain queue --> Record /
              --> "flush", "stats", "stop"  --> reply

The rule of this file: **it never runs what a worker sends, and it outlives everybody who may still send.** It is a
fresh interpreter, told by its parent over the control connection what to open; that connection is trusted, the FIFO is
not. When the parent has gone, it goes on until the last writer has closed the FIFO.
"""

from __future__ import annotations

import logging
import multiprocessing.process
import os
import pickle
import shutil
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from mplog import frame, queue
from mplog.dispatch import Dispatcher
from mplog.errors import MplogError, SinkError, StartError
from mplog.plain import safe_str
from mplog.record import Values, decode_values
from mplog.sinks import Sink, to_formatter

if sys.platform != "win32":
    from mplog import fifo

__all__ = ["Configuration", "Stats", "main"]

#: As much as a FIFO holds.
_READ_SIZE = 2**20

#: How long it sleeps behind a read. A record that comes meanwhile waits for that long; the FIFO, which takes 5,000
#: records, fills up in 15 ms at the fastest.
_NAP_SECONDS = 0.003
#: But not behind a read of more bytes than this: long records would fill the FIFO meanwhile.
_NAP_LIMIT = _READ_SIZE // 3

#: After SIGTERM, the log is quiet for this long before the logging process ends, since whoever ends a group of
#: processes ends the workers at the same moment, and they have something to say about it.
_QUIET_SECONDS = 0.5
#: But no later than this after SIGTERM, in seconds.
_TERMINATION_SECONDS = 5.0

#: How often it looks after unfinished business, in seconds, while there is some.
_CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class Configuration:
    """What the parent tells the logging process.

    Attributes:
        sinks: what to open, in this order.
        format: for handlers that bring no formatter.
        formatter_defaults: attributes of the class ``logging.Formatter``.
    """

    sinks: tuple[Sink, ...]
    format: str | logging.Formatter
    formatter_defaults: dict[str, Any]


@dataclass(frozen=True)
class Stats:
    """What the logging process has counted since it started.

    Attributes:
        received: records that arrived.
        by_process: those, by the name and the pid of the process that logged them.
        failed: records that a handler could not write, by handler.
        broken: pieces of garbage in the queue, and records that did not decode.
        skipped: bytes of garbage in the queue.
        incomplete: long records whose writer died, or gave up, before their last part.
        objects: objects in the queue that are not records; the logging process does not unpickle.
    """

    received: int = 0
    by_process: dict[tuple[str, int], int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    skipped: int = 0
    incomplete: int = 0
    objects: int = 0


def main(control: Connection) -> None:
    """Run the logging process, from its configuration to its end."""
    _ignore_signals()
    multiprocessing.process.current_process().name = "mplog"
    blob, directory, fd = control.recv()
    try:
        handlers = _open_sinks(_load(blob))
    except BaseException as error:
        control.send(error if isinstance(error, MplogError) else StartError(_last_line(error)))
        return
    process = _LoggingProcess(Dispatcher(handlers), control, directory, fd)
    control.send(os.getpid())
    process.run()


def _ignore_signals() -> None:
    """Leave the end of the group to the parent: Ctrl-C and a closed terminal reach everybody at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _load(blob: bytes) -> Configuration:
    try:
        configuration: Configuration = pickle.loads(blob)
    except Exception as error:
        raise StartError(
            f"the sinks could not be loaded in the logging process: {_last_line(error)}. It is a fresh interpreter, "
            "which imports what they refer to: make those modules importable, or define the functions in the script."
        ) from None
    return configuration


def _open_sinks(configuration: Configuration) -> list[logging.Handler]:
    for name, value in configuration.formatter_defaults.items():
        setattr(logging.Formatter, name, value)
    default = to_formatter(configuration.format)
    root = logging.getLogger()
    for sink in configuration.sinks:
        try:
            root.addHandler(sink.open(default))
        except BaseException as error:
            logging.shutdown()  # lets go of those that are open
            if isinstance(error, MplogError):
                raise
            reason = _last_line(error)
            raise SinkError(
                f"{sink} could not be opened: {reason}", sink=repr(sink), reason=reason, details=traceback.format_exc()
            ) from None
    return list(root.handlers)


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"


class _LoggingProcess:
    """The loop.

    Args:
        dispatcher: takes the records.
        control: the connection to the parent.
        directory: of the queue, removed at the end; None for a plain queue.
        fd: the reading end of the FIFO; None for a plain queue.
    """

    def __init__(self, dispatcher: Dispatcher, control: Connection, directory: str | None, fd: int | None) -> None:
        self._dispatcher = dispatcher
        self._directory = directory
        self._control: Connection | None = control
        self._stop_request: int | None = None
        self._is_over = False
        self._terminated_at: float | None = None
        self._heard_at = 0.0
        self._frames: frame.FrameReader[Values | None] = frame.FrameReader(
            {frame.RECORD: decode_values, frame.OBJECT: self._refuse_object}
        )
        self._reported_broken = 0
        self._undecoded = 0
        self._incomplete = 0
        self._objects = 0
        self._read_fd = fd
        # A writing end of our own: as long as the parent lives, the FIFO never looks deserted.
        self._write_fd = None if fd is None else fifo.open_writer(self._fifo_path)
        self._wakeup, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.set_wakeup_fd(self._signals.fileno())

    @property
    def _fifo_path(self) -> str:
        return queue.fifo_path(self._directory or "")

    # --- the loop ---

    def run(self) -> None:
        """Read until told to stop, or until nobody is left who could write."""
        while not self._is_over:
            sources = [source for source in (self._read_fd, self._control, self._wakeup) if source is not None]
            ready = wait(sources, self._timeout())
            count = 0
            if self._read_fd in ready:
                count = self._read()
                self._is_over = not count
            if self._control in ready:
                self._answer()
            if self._wakeup in ready:
                self._wakeup.recv(4096)
            self._check_broken()
            self._check_incomplete()
            self._check_termination()
            self._dispatcher.report()
            if 0 < count < _NAP_LIMIT:
                # A writer that finds nobody waiting need not wake anybody up, and more comes with the next read.
                time.sleep(_NAP_SECONDS)
        self._finish()

    def _timeout(self) -> float | None:
        """Return after how many seconds there is something to do unasked; an idle logging process never wakes up."""
        if self._terminated_at is not None:
            return _QUIET_SECONDS / 5
        if self._dispatcher.has_unsaid or self._frames.incomplete():
            return _CHECK_SECONDS
        return None

    def _on_sigterm(self, *_: object) -> None:
        self._terminated_at = time.monotonic()

    def _check_termination(self) -> None:
        if self._terminated_at is not None:
            now = time.monotonic()
            quiet = now - max(self._heard_at, self._terminated_at)
            self._is_over |= quiet > _QUIET_SECONDS or now - self._terminated_at > _TERMINATION_SECONDS

    # --- records ---

    def _read(self, limit: int = _READ_SIZE) -> int:
        """Handle what is in the FIFO, up to `limit` bytes; return how many, -1 for none yet, 0 for its end."""
        assert self._read_fd is not None
        try:
            data = os.read(self._read_fd, limit)
        except BlockingIOError:
            return -1
        self._handle(data, drained=len(data) < limit)
        return len(data)

    def _handle(self, data: bytes, *, drained: bool) -> None:
        batch = [values for values in self._frames.feed(data, drained=drained) if values is not None]
        if batch:
            self._dispatcher.handle(batch)
        self._heard_at = time.monotonic()

    def _refuse_object(self, payload: bytes) -> None:
        """Count somebody's put() of something else: it would have to be unpickled, which could run any code."""
        queue.check_object(payload)
        self._objects += 1
        self._dispatcher.warn("objects that are not log records were put into the queue, and skipped")

    def _handle_encoded(self, payloads: list[bytes]) -> None:
        """Handle records that came through a plain queue."""
        batch = []
        for payload in payloads:
            try:
                batch.append(decode_values(payload))
            except (TypeError, ValueError, RecursionError):
                self._undecoded += 1
        self._dispatcher.handle(batch)
        self._heard_at = time.monotonic()

    @property
    def _broken(self) -> int:
        return self._frames.broken + self._frames.given_up + self._undecoded

    def _check_broken(self) -> None:
        new = self._broken - self._reported_broken
        if new:
            self._reported_broken += new
            self._dispatcher.warn("pieces of the queue were no log records, and skipped", count=new)

    def _check_incomplete(self) -> None:
        """Give up the long records whose writers have died."""
        dead = {message.pid for message in self._frames.incomplete() if not fifo.is_alive(message.pid)}
        # In this order: what a writer wrote before it died is in the FIFO now, and must be read first.
        if dead and self._read_fd is not None and not fifo.pending(self._read_fd):
            self._give_up(dead)

    def _give_up(self, writers: set[int]) -> None:
        for message in self._frames.drop_incomplete(lambda message: message.pid in writers):
            self._incomplete += 1
            self._dispatcher.warn(
                f"long records lost: pid {message.pid} ended before it had sent the whole of one "
                f"({len(message.pieces)} of {message.count} parts)"
            )

    # --- the parent ---

    def _answer(self) -> None:
        """Do what the parent asks, or notice that it has gone."""
        assert self._control is not None
        try:
            request, command, *arguments = self._control.recv()
        except (EOFError, OSError):
            self._desert()
            return
        if command == "records":
            self._handle_encoded(*arguments)
        elif command == "flush":
            self._catch_up()
            self._reply(request)
        elif command == "stats":
            self._reply(request)
        elif command == "stop":
            self._stop_request = request
            self._is_over = True

    def _desert(self) -> None:
        """Go on without the parent, until the last writer has closed the FIFO."""
        self._control = None
        if self._write_fd is None:
            self._is_over = True
        else:
            os.close(self._write_fd)
            self._write_fd = None

    def _reply(self, request: int | None) -> None:
        if self._control is not None:
            try:
                self._control.send((request, self._stats()))
            except OSError:
                self._desert()

    def _catch_up(self) -> None:
        """Handle what was in the FIFO when the parent asked."""
        if self._read_fd is not None:
            pending = fifo.pending(self._read_fd)
            while pending > 0 and (count := self._read(min(pending, _READ_SIZE))) > 0:
                pending -= count

    def _stats(self) -> Stats:
        return Stats(
            received=self._dispatcher.received.total(),
            by_process=dict(self._dispatcher.received),
            failed=dict(self._dispatcher.failed),
            broken=self._broken,
            skipped=self._frames.skipped,
            incomplete=self._incomplete,
            objects=self._objects,
        )

    # --- the end ---

    def _finish(self) -> None:
        """Take out what is left, close the log, and report."""
        if self._read_fd is not None:
            self._close_fifo()
        self._check_broken()
        self._give_up({message.pid for message in self._frames.incomplete()})
        self._dispatcher.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._reply(self._stop_request)
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._signals.close()

    def _close_fifo(self) -> None:
        """Close the FIFO so that a record is either read here, or refused where it is logged.

        Closing the reading end makes every further write fail. What was written in the instant before is still in
        there, and a writing end can tell how much. Reading it takes a new reading end, which lets more come in; but
        each round is shorter than the one before.
        """
        assert self._read_fd is not None
        self._catch_up()
        chunks = []
        try:
            if self._write_fd is None:
                self._write_fd = fifo.open_writer(self._fifo_path)
            while True:
                os.close(self._read_fd)
                pending = fifo.pending(self._write_fd)
                if not pending:
                    break
                self._read_fd = fifo.open_reader(self._fifo_path)
                chunks.append(os.read(self._read_fd, pending))
        except FileNotFoundError:
            pass  # somebody has removed the directory, so nobody new can come
        self._handle(b"".join(chunks), drained=True)
