"""Where the records come from, for a `LogQueue`: the FIFO, and the emergency file. POSIX only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from mplog.files.notices import say_on_stderr
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.inbox import CHECK_SECONDS, Inbox
from mplog.logging_process.intake import Intake
from mplog.logging_process.program import Places
from mplog.logging_process.source import Batch, Source
from mplog.logging_process.troubles import REPORT_INTERVAL
from mplog.monitoring.statistics import PEAK_UNIT
from mplog.monitoring.tallies import Tallies
from mplog.queue import directory, fifo
from mplog.queue.buffers import BufferPair
from mplog.queue.directory import fifo_path
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.fill import Fill
from mplog.queue.overflow import Overflow
from mplog.queue.shared_file import replace_file
from mplog.record.encoding import describe
from mplog.record.frame_reader import FrameReader

#: Bytes of frames that are handled at a time: some 1,200 records. With five times as many, each record costs a third
#: more, since the decoded records no longer fit into the processor's cache.
_BATCH_SIZE = 2**17

#: From this fill on, the log says how full the buffers are, once an interval.
_FILL_MARK = 0.8

#: Bytes of unfinished long records that are kept for the next process. One that is longer may be lost in a kill.
_UNFINISHED_LIMIT = 2**26


class FifoSource(Source):
    """Records that come through a `LogQueue`. `wake` is called in the thread of the intake when some have come."""

    def __init__(
        self,
        places: Places,
        overflow: Overflow,
        pair: BufferPair,
        emergency: EmergencyReader,
        tallies: Tallies,
        dispatcher: Dispatcher,
        wake: Callable[[], None],
    ) -> None:
        assert places.launch.directory is not None
        self._directory = places.launch.directory
        self._pair = pair
        self._emergency = emergency
        self._tallies = tallies
        self._dispatcher = dispatcher
        self._read_fd = places.fd
        # A writing end of our own: as long as the program lives, the FIFO never looks deserted.
        self._write_fd: int | None = fifo.open_writer(fifo_path(self._directory))
        self._inbox = Inbox(self._directory, tallies, dispatcher.troubles)
        self._unfinished = _Unfinished(self._directory)
        for data in (self._unfinished.load(pair.state.base), bytes(pair.written())):
            self._inbox.replay(data)
        self._warned_of = ""
        for error in emergency.refused:
            self._warn_of_emergency(error)
            if not places.stories:
                say_on_stderr(f"mplog: records for which there is no room may be lost: {describe(error)}")
        # Files that an earlier server has left come first; what workers append now does not.
        self._files_first = 0 if places.stories else emergency.files
        #: The value of `done` from which on what was taken of the emergency file may follow.
        self._rescue_due = self.due() if places.stories else 0
        self._fill_due = 0.0
        fill = Fill(self._directory, writable=True) if overflow.policy == "drop_below" else None
        self._intake = Intake(pair, places.fd, wake, drops_oldest=overflow.policy == "drop_oldest", fill=fill)

    def start(self) -> None:
        self._intake.start()

    # --- batches ---

    def take(self) -> Batch | None:
        if self._files_first:
            rescued = self.take_rescued(self._files_first)
            if rescued is not None:
                return rescued
            self._files_first = 0
        content = self._pair.unwritten()
        if not content:
            content.release()
            if not self._swap():
                return self.take_rescued(self.files_due())
            content = self._pair.unwritten()
        with content:
            data = bytes(content[:_BATCH_SIZE])
            is_all = len(data) == len(content)
        self._count_peak()
        return self._inbox.open(data, drained=is_all)

    def _count_peak(self) -> None:
        peak = round(self._intake.peak * PEAK_UNIT)
        if peak > self._tallies.values["peak",]:
            self._tallies.set(("peak",), peak)

    def _swap(self) -> bool:
        """Go on with the other buffer, after saving the parts of long records that are not complete."""
        if not self._pair.state.fill:
            return False
        self._unfinished.save(self._pair.committed, self._inbox.frames)
        if not self._pair.swap():
            return False
        self._unfinished.forget_before(self._pair.committed)
        self._intake.has_swapped()
        return True

    def take_rescued(self, until: int) -> Batch | None:
        try:
            data = self._read_emergency(until)
        except OSError as error:
            self._warn_of_emergency(error)
            return None
        if not data:
            return None
        self._warned_of = ""
        batch = self._inbox.open(data, drained=True)
        batch.taken, batch.rescued, batch.are_numbered = 0, True, False
        return batch

    def _read_emergency(self, until: int) -> bytes:
        while self._emergency.finished < until and not self.waits_for_queue():
            data = self._emergency.read()
            if data or not self._emergency.take():
                return data
            if not self._files_first:
                # What a worker has sent before it wrote into the file comes first.
                self._rescue_due = self.due()
        return b""

    def waits_for_queue(self) -> bool:
        return self.done() < self._rescue_due

    def settle(self, batch: Batch, is_on_disk: bool) -> None:
        if batch.rescued:
            try:
                self._emergency.commit()
            except OSError as error:
                self._warn_of_emergency(error)
        if batch.is_awaited:
            self._inbox.acknowledger.acknowledge(is_on_disk)

    def _warn_of_emergency(self, error: OSError) -> None:
        """Say it once: what was planted may stay."""
        if describe(error) != self._warned_of:
            self._warned_of = describe(error)
            what = f"to use the emergency file {self._emergency.path} failed"
            self._dispatcher.troubles.warn("attempt", what, error)

    # --- how far it is ---

    def is_over(self) -> bool:
        return self._intake.is_over and not self._pair.state.unwritten

    def due(self) -> int:
        return self._pair.state.taken if self._read_fd < 0 else self._pair.due(self._read_fd)

    def done(self) -> int:
        return self._pair.committed

    def files_due(self) -> int:
        # The file that is being read, and the one after it.
        return self._emergency.finished + self._emergency.files

    # --- beside the records ---

    def check(self) -> None:
        self._inbox.check_incomplete(lambda: self.due() == self.done())
        self._count_peak()
        peak, self._intake.peak = self._intake.peak, 0.0
        if peak >= _FILL_MARK and time.monotonic() >= self._fill_due:
            self._fill_due = time.monotonic() + REPORT_INTERVAL
            self._dispatcher.say(
                f"mplog: the buffers were {peak:.0%} full: the log is written more slowly than it comes"
            )

    def timeout(self) -> float | None:
        return CHECK_SECONDS if self._inbox.frames.has_incomplete else None

    # --- the end ---

    def desert(self) -> bool:
        if self._write_fd is not None:
            os.close(self._write_fd)
            self._write_fd = None
        return False

    def end(self, work: Callable[[], bool], release: Callable[[], None]) -> None:
        """Close the FIFO so that a record is either read here, or refused where it is logged.

        Closing the reading ends makes every further write fail. What was written in the instant before is still in
        there, and a writing end can tell how much. Reading it takes a new reading end, which lets more come in; but
        each round is shorter than the one before.
        """

        def drain() -> None:
            # Only up to here: workers may send more for ever.
            due = self.due()
            while self.done() < due and (work() or self._pair.intake(self._read_fd) > 0):
                pass

        path = fifo_path(self._directory)
        self._intake.stop()
        drain()
        release()
        with contextlib.suppress(FileNotFoundError):  # the directory has been removed, so no new writer can come
            if self._write_fd is None:
                self._write_fd = fifo.open_writer(path)
            while True:
                os.close(self._read_fd)
                if not fifo.pending(self._write_fd):
                    break
                self._read_fd = fifo.open_reader(path)
                drain()
        self._read_fd = -1
        while work():
            pass  # the rest, which is in the buffers
        self._inbox.give_up()

    def remove(self) -> None:
        self._emergency.close()
        directory.remove(self._directory)

    def let_go(self) -> None:
        for fd in (self._read_fd, self._write_fd):
            if fd is not None:
                with contextlib.suppress(OSError):  # closed: it was forked at the end
                    os.close(fd)


class _Unfinished:
    """The parts of long records that have arrived, kept in files for the next logging process.

    A swap reuses a buffer that may hold parts of a record whose end is in the other buffer. So, before the swap, the
    parts go into a file, named by the byte at which the other buffer begins.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._saved: str | None = None

    def _path(self, base: int) -> str:
        return os.path.join(self._directory, f"unfinished-{base}")

    def save(self, base: int, frames: FrameReader[Any]) -> None:
        data = frames.unfinished_frames(_UNFINISHED_LIMIT)
        if data:
            with contextlib.suppress(OSError):  # then only a kill would lose them
                replace_file(self._path(base), data)

    def load(self, base: int) -> bytes:
        with contextlib.suppress(OSError), open(self._path(base), "rb") as file:
            self._saved = self._path(base)
            return file.read()
        return b""

    def forget_before(self, base: int) -> None:
        """Remove the files that a swap has made obsolete."""
        if self._saved is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._saved)
        self._saved = self._path(base)
