"""Where the records come from, for a `LogQueue`: the FIFO, and the emergency file. POSIX only."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable

from mplog.files.notices import say_on_stderr
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.inbox import CHECK_SECONDS, Inbox
from mplog.logging_process.intake import Intake
from mplog.logging_process.program import Places
from mplog.logging_process.set_aside import LONGEST_KEPT, SetAside
from mplog.logging_process.silent_writers import SilentWriters
from mplog.logging_process.source import Batch, Source
from mplog.logging_process.suspects import Suspects
from mplog.logging_process.troubles import REPORT_INTERVAL
from mplog.logging_process.unfinished import Unfinished
from mplog.monitoring.statistics import PEAK_UNIT
from mplog.monitoring.tallies import Tallies
from mplog.queue import directory, fifo
from mplog.queue.buffers import BufferPair
from mplog.queue.directory import current_fifo_path
from mplog.queue.emergency_reader import READ_SIZE, EmergencyReader
from mplog.queue.fill import Fill
from mplog.queue.overflow import Overflow
from mplog.record import frame
from mplog.record.encoding import describe

#: Bytes of frames that are handled at a time: some 1,200 records. With five times as many, each record costs a third
#: more, since the decoded records no longer fit into the processor's cache.
BATCH_SIZE = 2**17

#: From this fill on, the log says how full the buffers are, once an interval.
_FILL_MARK = 0.8


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
        suspects: Suspects,
    ) -> None:
        assert places.launch.directory is not None
        self._directory = places.launch.directory
        self._pair = pair
        self._emergency = emergency
        self._tallies = tallies
        self._dispatcher = dispatcher
        self._suspects = suspects
        self._read_fd = places.fd
        # A writing end of our own: as long as the program lives, the FIFO never looks deserted.
        self._write_fd: int | None = fifo.open_writer(current_fifo_path(self._directory), of=places.fd)
        self._set_aside = SetAside(tallies, dispatcher.say, overflow)
        self._inbox = Inbox(self._directory, tallies, dispatcher.troubles, self._set_aside)
        self._unfinished = Unfinished(self._directory)
        self._warned_of = ""
        for error in emergency.refused:
            self._warn_of_emergency(error)
            if not places.stories:
                say_on_stderr(f"mplog: records for which there is no room may be lost: {describe(error)}")
        self._replay()
        # Files that an earlier server has left come first; what workers append now does not.
        self._files_first = 0 if places.stories else emergency.files
        #: The value of `done` from which on what was taken of the emergency file may follow.
        self._rescue_due = self.due() if places.stories else 0
        self._fill_due = 0.0
        fill = None
        if overflow.policy == "drop_below":
            with contextlib.suppress(OSError):  # the directory has become another user's
                fill = Fill(self._directory, writable=True)
        drops_oldest = overflow.policy == "drop_oldest"
        silent = SilentWriters(self._directory)
        self._intake = Intake(pair, places.fd, wake, silent.are_left, drops_oldest=drops_oldest, fill=fill)

    def _replay(self) -> None:
        """Read once more what is written, to have the first parts of long records."""
        pair, suspect = self._pair, self._suspects.replay
        if suspect.is_deadly:
            # Only a lack of memory can do this. What is set aside is not in the file any more, so it is counted once.
            part = self._unfinished.set_largest_aside(pair.state.base)
            if part is not None:
                self._set_aside.count(part.kind, part.pid)
        suspect.begin()
        self._inbox.replay(itertools.chain(self._unfinished.load(pair.state.base), [bytes(pair.written())]))
        suspect.place.tries = 0

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
        self._count_peak()  # before any of it is written
        with content:
            if self._suspects.queue.is_careful:
                return self._take_alone(content)
            data = bytes(content[:BATCH_SIZE])
            is_all = len(data) == len(content)
        return self._inbox.open(data, drained=is_all)

    def _take_alone(self, content: memoryview) -> Batch:
        """Return the next message, or part of a long one, alone, after noting that it is being handled."""
        suspect, most = self._suspects.queue, frame.FRAME_SIZE
        kind = frame.first(bytes(content[:most]), is_all=len(content) <= most).kind
        if suspect.is_deadly and kind is not None:
            # What is set aside is marked in the buffer, so that no later process handles it either.
            self._pair.mark(len(frame.MAGIC), kind | frame.ASIDE)
        suspect.begin()
        found = frame.first(bytes(content[:most]), is_all=len(content) <= most)
        data = bytes(content[: found.end])
        # A frame may be garbage, in which another one begins; any other garbage ends before the next frame.
        return self._inbox.open(data, drained=found.kind is None or found.end == len(content))

    def _count_peak(self) -> None:
        # The intake may not have looked since it has read, or may have looked in a process that was killed then.
        peak = round(max(self._intake.peak, self._pair.swapped_fraction) * PEAK_UNIT)
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
            while self._emergency.finished < until and not self.waits_for_queue():
                batch = self._rescue_alone() if self._suspects.emergency.is_careful else self._rescue()
                if batch is not None:
                    self._warned_of = ""
                if batch is not None or not self._emergency.take():
                    return batch
                if not self._files_first:
                    # What a worker has sent before it wrote into the file comes first.
                    self._rescue_due = self.due()
        except OSError as error:
            self._warn_of_emergency(error)
        return None

    def _rescue(self, limit: int = READ_SIZE) -> Batch | None:
        data = self._emergency.read(limit)
        if not data:
            return None
        batch = self._inbox.open(data, drained=True)
        batch.taken, batch.rescued, batch.are_numbered = 0, len(data), False
        return batch

    def _rescue_alone(self) -> Batch | None:
        """Return the next message of the emergency file alone, after noting that it is being handled."""
        suspect = self._suspects.emergency
        frames, size = self._emergency.peek(LONGEST_KEPT)
        if not size:
            return None
        suspect.move(self._emergency.note())
        is_deadly = suspect.is_deadly
        suspect.begin()
        if not is_deadly:
            return self._rescue(limit=1)
        self._set_aside.add_rescued(frames, size)
        return Batch(rescued=size, is_set_aside=True)

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
        self._emergency.reopen()
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

    def halt(self) -> None:
        self._intake.stop()

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

        self._intake.stop()
        drain()
        release()
        path = directory.end(self._directory)  # after the supervisor has let go, which would make the FIFO again
        with contextlib.suppress(FileNotFoundError):  # the directory has been removed, so no new writer can come
            if self._write_fd is None:
                self._write_fd = fifo.open_writer(path, of=self._read_fd)
            while True:
                os.close(self._read_fd)
                if not fifo.pending(self._write_fd):
                    break
                self._read_fd = fifo.open_reader(path, of=self._write_fd)
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
