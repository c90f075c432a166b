"""What a server holds from its start to its end: the queue, the logging process, the logging of the program."""

from __future__ import annotations

import contextlib
import errno
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from mplog.errors import DrainTimeoutError, MplogError
from mplog.logging_process.messages import Command, Launch, Patience, Records
from mplog.monitoring.count_file import has_file
from mplog.monitoring.statistics import Stats, read_counts, to_stats
from mplog.queue.descriptor import Descriptor
from mplog.queue.directory import emergency_path, share
from mplog.queue.fifo import monotonic
from mplog.queue.fill import Fill
from mplog.queue.log_queue import LogQueue
from mplog.server.arguments import Arguments
from mplog.server.control import Control
from mplog.server.plain_queue import Pump
from mplog.server.progress import Progress, Remainder
from mplog.server.takeover import Takeover


@contextlib.contextmanager
def advice_on_a_full_disk() -> Iterator[None]:
    """Raise an OSError for which there is no room with what to do in its message."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MplogError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = "The server needs room in the directory for temporary files: free some, or set TMPDIR to another one"
        raise OSError(error.errno, f"{error.strerror}. {advice}", tempfile.gettempdir()) from error


class Started:
    """A server that has been started, except that its takeover is still to be applied.

    If it cannot start, it raises MplogError or OSError, and nothing is left of it.
    """

    def __init__(self, arguments: Arguments, timeout: float, patience: Patience) -> None:
        arguments.check_at_start()
        self._arguments = arguments
        self.layout, self._for_attached = arguments.layouts()
        configuration = arguments.pickled_configuration()
        self.queue: Any = arguments.queue
        if self.queue is None:
            self.queue = LogQueue() if hasattr(os, "mkfifo") else multiprocessing.get_context("spawn").Queue(10_000)
        self._remainder = Remainder(self.queue)
        self.pump: Pump | None = None
        self.owner = os.getpid()
        if isinstance(self.queue, LogQueue):
            self._launch(configuration, timeout, patience)
        else:
            self.takeover = self._make_takeover()
            self.control = control = Control(Launch(configuration), timeout)
            self.pump = Pump(self.queue, lambda batch: control.send(Records(batch)))
            self.pump.start()

    def _launch(self, configuration: bytes, timeout: float, patience: Patience) -> None:
        _close_starting_in_forks()
        queue, overflow, size = self.queue, self._arguments.overflow, self._arguments.buffer_size
        end = Descriptor(queue.release_reader())
        _starting.add(end)
        try:
            if self._arguments.group is not None:
                share(queue.directory, self._arguments.group)
            queue.preparation, queue.overflow, queue.sync = self.layout.preparation, overflow, self._arguments.sync
            if overflow.policy == "drop_below":
                Fill(queue.directory, writable=True)  # here, so that a full disk raises in the program
            kept = overflow.with_emergency_file(overflow.emergency or emergency_path(queue.directory))
            self.takeover = self._make_takeover()
            self.control = Control(Launch(configuration, queue.directory, end.fd, size, kept, patience), timeout)
            queue.details = self.control.needs_details
        except BaseException:
            self.clear_up()
            raise
        finally:
            _starting.discard(end)
            end.close()

    def _make_takeover(self) -> Takeover:
        return Takeover(self.queue, self._arguments.config, self.layout, self._for_attached)

    def clear_up(self) -> None:
        """Remove what a logging process that has died could not remove itself."""
        if isinstance(self.queue, LogQueue):
            self.queue.remove()
        for sink in self._arguments.sinks:
            sink.clear_up()

    def ask(self, command: Command, timeout: float, tick: Callable[[], None] | None = None) -> Stats:
        """Ask the logging process, as `Control.ask` does, and say how much is left when the time is over."""
        try:
            return self.control.ask(command, timeout, tick)
        except DrainTimeoutError as error:
            error.pending = self.backlog()
            raise

    def backlog(self) -> int:
        """Return how many bytes of records are not written; 0 if that is not known."""
        with contextlib.suppress(OSError, ValueError):
            return self._remainder.look()[1]
        return 0

    def counted(self) -> Stats | None:
        """Return what is counted in shared memory; None with a plain queue, or if the memory has gone."""
        if not isinstance(self.queue, LogQueue):
            return None
        counts, lost = read_counts(self.queue.directory)
        if not counts and not has_file(self.queue.directory):
            return None  # another program has removed it, and it is not there again
        return to_stats(counts, lost) if counts or lost or self.control.is_alive else None

    def end(self, deadline: float) -> Stats:
        """Have everything written, and end the logging process, as `LogServer.stop` does; return what was counted."""
        if self.pump is not None and not self.pump.stop(max(0.0, deadline - monotonic())):
            raise DrainTimeoutError(
                "the plain queue is still not empty: its writers go on, a sink is slow, or a worker was killed and has "
                "left the queue locked"
            )
        with contextlib.closing(Progress(self._remainder)) as progress:
            stats = self.ask("stop", max(0.0, deadline - monotonic()), progress.ticker)
        self.control.wait(max(1.0, deadline - monotonic()))
        return stats

    def drain_at_exit(self, timeout: float, *, is_stopping: bool) -> None:
        """Wait until all that was logged so far is written: by a flush, or by a stop that was asked for before."""
        with contextlib.closing(Progress(self._remainder)) as progress:
            if is_stopping:
                self.control.wait(timeout, progress.ticker)
            else:
                self.ask("flush", timeout, progress.ticker)


#: Reading ends on their way to a logging process.
_starting: set[Descriptor] = set()


@functools.lru_cache(maxsize=1)
def _close_starting_in_forks() -> None:
    """Close such an end in every process that is forked meanwhile: it would make a dead queue look alive."""

    def close() -> None:
        while _starting:
            _starting.pop().close()

    os.register_at_fork(after_in_child=close)
