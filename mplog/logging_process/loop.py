"""The loop of the logging process: what it does whatever queue the records come through.

::

    control --> Records of a plain queue -----> entries ---> Dispatcher -> handlers -> files
            --> Question ("flush", ...) ------> Answer
    deaths of those that log, signals, what is due ---> lines of our own

The rule of this file: **it waits for everything at once, and for nothing alone**, but for a file that cannot be
written, while it still listens to its parent and to signals. Records that come through a `LogQueue` are the business of
`mplog.logging_process.fifo_loop`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.messages import Answer, ChildEnded, Records, Report
from mplog.monitoring.count_file import Key
from mplog.monitoring.death_lines import Death, describe
from mplog.monitoring.deaths import Watch
from mplog.monitoring.numbers import Numbers
from mplog.monitoring.statistics import Stats, to_stats
from mplog.monitoring.tallies import Tallies
from mplog.queue import log_queue as queue
from mplog.record.decoding import Decoder
from mplog.record.layout import Entry, Origin

__all__ = ["CHECK_SECONDS", "Loop", "Places"]

#: How often it looks after unfinished business, in seconds, while there is some.
CHECK_SECONDS = 1.0

#: After how many seconds it listens to its parent and to signals while there is one batch behind the other.
_LISTEN_SECONDS = 0.005

#: How often it looks whether what a `flush` waits for is delivered, in seconds, where nobody tells.
_DELIVERY_SECONDS = 0.05

#: After SIGTERM, the log is quiet for this long before the logging process ends, since whoever ends a group of
#: processes ends the workers at the same moment, and they have something to say about it.
_QUIET_SECONDS = 0.5
#: But no later than this after SIGTERM, in seconds.
_TERMINATION_SECONDS = 5.0

#: A process closes the FIFO an instant before it is dead. So long is waited for the death of the last ones.
_LAST_DEATHS_SECONDS = 0.5

#: Processes of which the time of the last record is kept. Pids come off the wire.
_KNOWN_SENDERS = 10_000

#: Characters of a handler's name that are kept with what it could not write.
_LONGEST_HANDLER = 300

#: The same for the name of a process, with the fact that it is watched.
_LONGEST_WATCHED = 100

#: Seconds between two attempts to write into a file that cannot be written: the first, and the longest.
_FIRST_RETRY = 0.05
_LONGEST_RETRY = 1.0
#: Records of a plain queue that are taken meanwhile.
_MOST_UNWRITTEN = 10_000
#: Seconds for which it goes on trying when it is to end, as `DrainTimeoutError` says.
_LAST_RETRIES_SECONDS = 60.0


@dataclass(frozen=True)
class Places:
    """What a logging process is given.

    Attributes:
        control: the connection to the parent.
        configuration: a `Configuration`, pickled with cloudpickle.
        owner: the pid of the program.
        directory: of the queue, removed at the end; None for a plain queue.
        fd: the reading end of the FIFO; -1 for a plain queue.
        memory: the memory of the buffers; -1 for a plain queue.
        supervisor: the connection to the supervisor; None without one.
        stories: what became of the processes before, of which none has come to say it; empty for the first one.
    """

    control: Connection
    configuration: bytes
    owner: int
    directory: str | None = None
    fd: int = -1
    memory: int = -1
    supervisor: Connection | None = None
    stories: tuple[str, ...] = ()


class Loop:
    """The loop, for records that come over the control connection.

    Args:
        dispatcher: takes the records.
        places: what the process was given.
    """

    def __init__(self, dispatcher: Dispatcher, places: Places) -> None:
        self._dispatcher = dispatcher
        self._dispatcher.keep_trying()
        self._watch = Watch(None if places.directory is None else queue.fifo_path(places.directory), places.owner)
        self._heard_from: dict[int, float] = {}
        self._unsaid: list[tuple[int, Death]] = []
        self._delivering: list[tuple[list[int], int]] = []
        #: By pid, what the next logging process finds those by who are watched, and when they were heard from last.
        self._watched: dict[int, Key] = {}
        self._supervisor = places.supervisor
        self._control: Connection | None = places.control
        self._stop_request: int | None = None
        self._is_over = False
        self._is_retrying = False
        self._unwritten = 0
        self._terminated_at: float | None = None
        self._heard_at = 0.0
        self._decoder = Decoder()
        self._tallies = Tallies(None)
        self._numbers = Numbers(self._tallies)
        self._undecoded = 0
        self._counted_broken = 0
        self._reported_broken = 0
        self._wakeup, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._shall_reopen = False
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._on_sighup)
        signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        """Runs in a process that a handler has forked: hold nothing by whose end others know that this one has ended.

        Its signals are those of a process of its own, too.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for end in (self._control, self._supervisor, self._wakeup, self._signals):
            if end is not None:
                end.close()
        self._watch.close()

    @property
    def needs_details(self) -> bool:
        """Whether a sink looks at what only some do."""
        return self._dispatcher.needs_details

    # --- the loop ---

    def run(self) -> None:
        """Handle what comes until told to stop, or until nobody is left who could write."""
        listened_at = 0.0
        while not self._is_over:
            has_worked = self._work()
            if has_worked and time.monotonic() - listened_at < _LISTEN_SECONDS:
                continue
            if not self._is_over:
                self._attend(0 if has_worked else self._timeout())
                self._check()
                listened_at = time.monotonic()
        self._finish()

    def _work(self) -> bool:
        """Handle a batch, if there is one; return whether there was."""
        return False

    def _attend(self, timeout: float | None, *, hears_parent: bool = True) -> None:
        """Do what the parent asks, waiting so long for it or for a signal."""
        control = self._control if hears_parent else None
        sources = [source for source in (control, self._wakeup, self._watch.fileno()) if source is not None]
        ready = wait(sources, timeout)
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
        if self._watch.fileno() in ready:
            self._note_deaths(self._watch.deaths())
        if control in ready:
            self._answer()

    # --- those that die ---

    def _note_deaths(self, found: list[Death]) -> None:
        """Have deaths said once everything is written that was logged before."""
        self._unsaid += [(self._due(), death) for death in found]
        ended, self._watch.ended = self._watch.ended, []
        self._see_ended(ended)
        for pid in set(ended) - {death.pid for _, death in self._unsaid}:
            self._forget(pid)

    def _see_ended(self, pids: list[int]) -> None:
        """Take it that processes that were watched have ended."""

    def _forget(self, pid: int) -> None:
        """Have nobody go on watching a process."""
        key = self._watched.pop(pid, None)
        if key is not None:
            self._tallies.set(key, 0)

    def _due(self) -> int:
        """Return how far the log will have come with everything that has been logged by now."""
        return 0

    def _done(self) -> int:
        """Return how far the log has come."""
        return 0

    def _say_deaths(self) -> None:
        while self._unsaid and self._unsaid[0][0] <= self._done():
            _, death = self._unsaid.pop(0)
            counts = self._tallies.of("received")
            received = sum(count for (_, _, pid, _), count in counts.items() if pid == death.pid)
            # Of very many processes, some are counted together with others; but numbers are followed by pid.
            received = received or self._tallies.values["through", death.pid]
            level = logging.ERROR if death.exitcode < 0 else logging.WARNING
            self._dispatcher.say(describe(death, received, self._heard_from.pop(death.pid, None)), level)
            self._forget(death.pid)

    def _watch_senders(self, origins: Iterable[Origin]) -> None:
        now = time.time()
        if len(self._heard_from) > _KNOWN_SENDERS:
            self._heard_from.clear()
        for origin in origins:
            pid = origin.process
            if pid is not None:
                self._heard_from[pid] = now
                started = self._watch.watch(pid, origin.processName or "")
                if started is not None:
                    key = self._watched.get(pid)
                    if key is None or key[-1] != started:
                        self._forget(pid)
                        name = (origin.processName or "")[:_LONGEST_WATCHED]
                        key = self._watched[pid] = Tallies.WATCHED, pid, name, started
                    self._tallies.set(key, round(now * 1000))

    def _check(self) -> None:
        """Look after everything that is not a record."""
        self._say_deaths()
        self._check_broken()
        self._check_termination()
        if self._shall_reopen:
            self._shall_reopen = False
            self._dispatcher.reopen()
        self._dispatcher.work()
        self._dispatcher.report()
        self._dispatcher.flush()  # what functions have logged in their own threads
        self._retry()
        self._answer_delivered()

    def _timeout(self) -> float | None:
        """Return after how many seconds there is something to do unasked; an idle logging process never wakes up."""
        if self._terminated_at is not None:
            return _QUIET_SECONDS / 5
        if self._delivering:
            return _DELIVERY_SECONDS
        return CHECK_SECONDS if self._dispatcher.has_unsaid else self._dispatcher.seconds_until_due()

    def _on_sigterm(self, *_: object) -> None:
        self._terminated_at = time.monotonic()

    def _on_sighup(self, *_: object) -> None:
        self._shall_reopen = True

    def _check_termination(self) -> None:
        if self._terminated_at is not None:
            now = time.monotonic()
            quiet = now - max(self._heard_at, self._terminated_at)
            self._is_over |= quiet > _QUIET_SECONDS or now - self._terminated_at > _TERMINATION_SECONDS

    # --- records ---

    def _handle_encoded(self, payloads: list[bytes]) -> None:
        """Handle records that came through a plain queue."""
        batch = []
        for payload in payloads:
            try:
                batch.append(self._decoder.decode(payload))
            except (TypeError, ValueError, RecursionError):
                self._undecoded += 1
        self._handle(batch)

    def _handle(self, batch: list[Entry], *, are_numbered: bool = False) -> None:
        """Write records, and count them.

        Args:
            batch: the records.
            are_numbered: they come in the order of their numbers, or nearly so.
        """
        if batch:
            counts = self._dispatcher.handle(batch)
            self._tallies.count_records(counts)
            if are_numbered:
                self._numbers.count(batch, counts)
            self._watch_senders(counts)
            self._unwritten += len(batch)
            self._retry()
        self._heard_at = time.monotonic()

    def _retry(self) -> None:
        """Wait until everything is in its file, however long that is not possible, and say so."""
        if self._is_retrying or not self._dispatcher.stuck:
            return
        self._is_retrying, self._unwritten = True, 0
        since, pause = time.monotonic(), _FIRST_RETRY
        while self._dispatcher.stuck and (not self._is_over or time.monotonic() - since < _LAST_RETRIES_SECONDS):
            # From a plain queue, records come meanwhile. When many wait, they are left there.
            self._attend(pause, hears_parent=self._unwritten < _MOST_UNWRITTEN)
            self._check_termination()
            pause = min(2 * pause, _LONGEST_RETRY)
            self._dispatcher.say_stuck()
            self._dispatcher.flush()
        self._is_retrying = False
        self._dispatcher.say_unstuck(time.monotonic() - since)

    @property
    def _broken(self) -> int:
        return self._undecoded

    def _check_broken(self) -> None:
        new = self._broken - self._reported_broken
        if new:
            self._reported_broken += new
            self._dispatcher.warn("pieces of the queue were no log records, and skipped", count=new)

    # --- the parent ---

    def _answer(self) -> None:
        """Do what the parent asks, or notice that it has gone."""
        assert self._control is not None
        try:
            message = self._control.recv()
        except (EOFError, OSError):
            self._desert()
            return
        if isinstance(message, Records):
            self._handle_encoded(message.payloads)
        elif isinstance(message, ChildEnded):
            death = self._watch.told(message.pid, message.name, message.exitcode)
            self._note_deaths([] if death is None else [death])
        elif message.command == "flush":
            self._flush(message.number)
        elif message.command == "stats":
            self._reply(message.number)
        elif message.command == "stop":
            self._stop_request = message.number
            self._is_over = True

    def _flush(self, request: int) -> None:
        """Answer when everything that has been logged is written."""
        self._delivering.append((self._dispatcher.send_now(), request))
        self._answer_delivered()

    def _answer_delivered(self) -> None:
        """Answer those that wait for a function to take what is written otherwise."""
        # Not in the middle of a batch that waits for its file: what is noted would not be what is written.
        while self._delivering and not self._dispatcher.stuck and self._dispatcher.is_delivered(self._delivering[0][0]):
            _, request = self._delivering.pop(0)
            self._dispatcher.work()  # counts what has failed
            self._keep_said()
            self._reply(request)

    def _keep_said(self) -> None:
        """Note down what was written and counted outside of a batch."""

    def _desert(self) -> None:
        """Go on without the parent, until there is nobody left who could write."""
        self._control = None
        self._is_over = True

    def _reply(self, request: int | None, stats: Stats | None = None) -> None:
        if self._control is not None:
            try:
                self._control.send(Answer(request, stats or self._stats()))
            except OSError:
                self._desert()

    def _gather(self) -> None:
        """Take over what is counted elsewhere."""
        for name, count in self._dispatcher.failed.items():
            self._tallies.set(("failed", name[:_LONGEST_HANDLER]), count)
        self._tallies.add(("broken",), self._broken - self._counted_broken)
        self._counted_broken = self._broken

    def _stats(self) -> Stats:
        self._gather()
        return to_stats(self._tallies.values, {})

    # --- the end ---

    def _finish(self) -> None:
        """Take out what is left, close the log, and report."""
        self._take_out()
        last = self._watch.deaths() if self._control is not None else self._watch.rest(_LAST_DEATHS_SECONDS)
        self._unsaid += [(0, death) for death in last]  # everything is written
        self._say_deaths()
        self._check_broken()
        self._dispatcher.close()
        self._answer_delivered()
        stats = self._stats()
        self._clear_up()
        if self._supervisor is not None:
            with contextlib.suppress(OSError):  # it has been killed
                self._supervisor.send(Report.DONE)
        self._reply(self._stop_request, stats)
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._signals.close()
        self._watch.close()

    def _take_out(self) -> None:
        """Handle what is left in the queue."""

    def _clear_up(self) -> None:
        """Remove what nobody needs any more."""
