"""The loop of a logging process behind a `LogQueue`: whatever happens to it, the next one goes on where it was.

::

    FIFO -----> Intake -> BufferPair -> FrameReader -> entries ---> Dispatcher -> handlers -> files

The rule of this file: **what counts changes with a commit of the buffers.** What is taken out of the FIFO is in memory
that outlives the process; what is about to be written into a file is announced there before, and noted behind, together
with how far the queue and the emergency file are read, what is counted, and what is still to be said.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import time
from collections.abc import Sequence

import msgspec

from mplog.files.portion import Portion, Position
from mplog.handlers.log_file import FileWriter
from mplog.logging_process.announcements import Announcements, Noted
from mplog.logging_process.dispatch import REPORT_INTERVAL, Dispatcher
from mplog.logging_process.loop import CHECK_SECONDS, Loop, Places
from mplog.logging_process.messages import Report
from mplog.logging_process.unfinished import Unfinished
from mplog.monitoring.ended import EndedProcesses
from mplog.monitoring.loss_reader import LossReader
from mplog.monitoring.numbers import Numbers
from mplog.monitoring.process import has_ended
from mplog.monitoring.restart_lines import Restarts, not_noted
from mplog.monitoring.statistics import PEAK_UNIT, Stats, to_stats
from mplog.monitoring.tallies import Tallies
from mplog.queue import log_queue as queue
from mplog.queue.emergency import EmergencyReader
from mplog.queue.losses import decode as decode_losses
from mplog.queue.losses import read_files as read_losses
from mplog.queue.overflow import Fill, Overflow
from mplog.queue.sync import Acknowledger
from mplog.record import frame
from mplog.record.layout import Entry

if sys.platform != "win32":
    from mplog.logging_process.intake import Intake
    from mplog.queue import fifo
    from mplog.queue.buffers import BufferPair
    from mplog.queue.kill_points import reach

__all__ = ["FifoLoop"]

#: Bytes of frames that are handled at a time: some 1,200 records. With five times as many, each costs a third more,
#: since what is made of them no longer fits into the cache of a processor.
_BATCH_SIZE = 2**17

#: How full the buffers are when the log says so, once an interval.
_FILL_MARK = 0.8

#: Seconds for which a flush waits for somebody who is just writing into the emergency file, or was stopped meanwhile.
_EMERGENCY_PATIENCE = 0.5

#: How many writers of unfinished records it looks for each time.
_CHECKED_WRITERS = 1000


class _Note(msgspec.Struct, array_like=True):
    """What the next process must know.

    Attributes:
        announced: what is about to be written.
        emergency: how far the emergency file is read.
        serial: which counts are committed.
        restarts: those that the log has not told of yet.
    """

    announced: Noted
    emergency: bytes
    serial: int
    restarts: list[str]


class FifoLoop(Loop):
    """The loop, for records that come through a `LogQueue`."""

    def __init__(self, dispatcher: Dispatcher, places: Places, overflow: Overflow) -> None:
        super().__init__(dispatcher, places)
        assert places.directory is not None
        self._directory = places.directory
        self._stories = places.stories
        self._acknowledger = Acknowledger(self._directory, self._decoder.decode)
        self._frames: frame.FrameReader[Entry | None] = frame.FrameReader(
            {
                frame.RECORD: self._decoder.decode,
                frame.OBJECT: self._refuse_object,
                frame.SYNC: self._acknowledger.decode,
                frame.LOSSES: self._note_losses,
                frame.BYTES: self._take_bytes,
            },
            self._decoder.decode_framed,
        )
        self._losses_due = 0.0
        self._has_worked = False
        self._incomplete_due = 0.0
        self._fill_due = 0.0
        self._is_replaying = False
        self._counted_skipped = 0
        self._unfinished = Unfinished(self._directory)
        self._flushes: list[tuple[int, int, int]] = []
        self._pair = BufferPair(places.memory)
        self._bytes: list[tuple[str, bytes]] = []
        self._files = [handler for handler in dispatcher.handlers if isinstance(handler, FileWriter)]
        self._read_fd = places.fd
        # A writing end of our own: as long as the parent lives, the FIFO never looks deserted.
        self._write_fd: int | None = fifo.open_writer(self._fifo_path)
        policy = overflow.policy
        self._intake = Intake(
            self._pair,
            places.fd,
            self._notify,
            drops_oldest=policy == "drop_oldest",
            fill=Fill(self._directory, writable=True) if policy == "drop_below" else None,
        )
        note = msgspec.msgpack.decode(self._pair.note, type=_Note) if self._pair.note else _Note(Noted(), b"", 0, [])
        self._announced = Announcements(self._directory, note.announced)
        self._emergency_path = overflow.emergency or queue.emergency_path(self._directory)
        self._emergency = EmergencyReader(self._emergency_path, note.emergency)
        self._recover(note)

    def _let_go(self) -> None:
        super()._let_go()
        for fd in (self._read_fd, self._write_fd):
            if fd is not None:
                with contextlib.suppress(OSError):  # closed: it was forked at the end
                    os.close(fd)

    @property
    def _fifo_path(self) -> str:
        return queue.fifo_path(self._directory)

    def _notify(self) -> None:
        """Runs in the thread of the intake: wake the loop up."""
        with contextlib.suppress(BlockingIOError):
            self._signals.send(b"\0")

    def run(self) -> None:
        """Read until told to stop, or until nobody is left who could write."""
        self._intake.start()
        if not self._stories:
            # What a server before this one has left comes first; not what workers go on to append.
            left = self._emergency.files
            while self._emergency.finished < left and self._merge_emergency():
                pass
        super().run()

    # --- going on after another process ---

    def _recover(self, note: _Note) -> None:
        """Take back what the process before us has written and not noted, and take up what it was about."""
        self._dispatcher.go_on(self._directory, self._notify)
        # The last first: a file may have been written several times, in turn with others.
        for announced in reversed(list(self._announced.before())):
            handler = self._files[announced.file]
            start = Position(announced.device, announced.inode, announced.start)
            try:
                handler.resume(start, announced.end)
            except Exception as error:
                self._dispatcher.warn(f"times what was written last could not be taken back by {handler!r}", error)
        self._is_replaying = True  # what is whole in there is written already, and counted
        for data in (self._unfinished.load(self._pair.base), bytes(self._pair.written())):
            if data:
                self._frames.feed(data, drained=True)
        self._is_replaying = False
        self._counted_broken = self._reported_broken = self._broken
        self._counted_skipped = self._frames.skipped
        self._tallies = Tallies(self._directory, note.serial)
        self._dispatcher.failed.update({name: count for (_, name), count in self._tallies.of("failed").items()})
        self._numbers = Numbers(self._tallies)
        self._losses = LossReader(self._directory, self._tallies, has_ended)
        self._ended = EndedProcesses(self._tallies, self._numbers, self._losses)
        for key, heard_at in self._tallies.of(Tallies.WATCHED).items():
            _, pid, name, started = key
            self._watched[pid] = key
            self._heard_from[pid] = heard_at / 1000
            if not self._watch.resume(pid, name, started):
                self._forget(pid)
        missing = self._counted().unexplained
        stories = not_noted(self._stories, note.restarts)
        if stories:
            stories[-1] += f", restarted as {os.getpid()}"
        self._restarts = Restarts(note.restarts, stories, self._due(), missing, time.monotonic())
        if stories:
            self._tallies.add(("restarts",), len(stories))
            self._commit(0)
        for index, file in enumerate(self._files):
            file.announce = lambda portion, index=index: self._announce(index, portion)

    def _announce(self, index: int, portion: Portion) -> None:
        """Note what is about to be written into a file."""
        self._announced.add(index, portion, self._files[index].takes_back)
        self._pair.commit(0, self._note())
        reach("before write")

    def _note(self, emergency_count: int = 0) -> bytes:
        """Return what the next process must know."""
        emergency = self._emergency.note(emergency_count)
        return msgspec.msgpack.encode(
            _Note(self._announced.noted(), emergency, self._tallies.serial, self._restarts.untold)
        )

    def _commit(self, count: int, emergency_count: int = 0) -> None:
        """Say that what was announced is written, with so many bytes of the queue and of the emergency file."""
        self._announced.clear()
        self._gather()
        self._tallies.write()
        self._restarts.settle()
        self._pair.commit(count, self._note(emergency_count))
        self._announced.remove()
        for file in self._files:
            file.settle()  # nothing is going to be taken back

    # --- records ---

    def _work(self) -> bool:
        content = self._pair.unwritten()
        if not content:
            content.release()
            if not self._swap():
                if self._merge_emergency():
                    return True
                self._is_over |= self._intake.is_over and not self._pair.state.unwritten
                return False
            content = self._pair.unwritten()
        with content:
            data = bytes(content[:_BATCH_SIZE])
            is_all = len(data) == len(content)
        self._has_worked = True
        batch = self._frames.feed(data, drained=is_all)
        count = len(data) - self._frames.take_back()
        self._handle_all(batch, are_numbered=True)
        is_on_disk = not self._acknowledger.is_due or self._sync_files()
        reach("after write")
        self._commit(count)
        if self._acknowledger.is_due:
            self._acknowledger.acknowledge(is_on_disk)
        self._answer_flushes()
        return True

    def _sync_files(self) -> bool:
        """Force all files to the disk; return whether they are there."""
        are_there = [file.sync() for file in self._files]
        return all(are_there)

    def _take_bytes(self, payload: bytes) -> None:
        if not self._is_replaying:
            self._bytes.append(queue.decode_bytes(payload))

    def _handle_all(self, batch: Sequence[Entry | None], *, are_numbered: bool = False) -> None:
        """Handle the records of a batch, and the bytes that came with them."""
        if self._bytes:
            pieces, self._bytes = self._bytes, []
            self._dispatcher.handle_bytes(pieces)
            self._retry()
        self._handle([entry for entry in batch if entry is not None], are_numbered=are_numbered)

    def _merge_emergency(self, patience: float = 0.0) -> bool:
        """Handle what workers have written elsewhere while the queue was full; return whether there was something.

        Args:
            patience: for how many seconds to wait for somebody who is just writing there.
        """
        try:
            if not (self._emergency.is_open or os.path.exists(self._emergency_path)):
                return False
            data = self._emergency.read(patience=patience)
            if not data:
                return False
            batch = self._frames.feed(data, drained=True)
            self._handle_all(batch)
            self._commit(0, len(data))
            self._emergency.commit(len(data))
        except OSError as error:
            self._dispatcher.warn(f"times the emergency file {self._emergency_path} could not be read", error)
            return False
        return True

    def _note_losses(self, payload: bytes) -> None:
        for losses in decode_losses(payload):
            if not self._is_replaying:
                self._tallies.count_lost(losses)

    def _check_losses(self, *, at_once: bool = False) -> None:
        """Say what workers, and the intake, have lost."""
        now = time.monotonic()
        if now < self._losses_due and not at_once:
            return
        self._losses_due = now + CHECK_SECONDS
        self._has_worked = False
        for losses in self._losses.new(of_all=at_once):
            for message in losses.messages():
                self._dispatcher.say(f"mplog: {message}", logging.ERROR)
        if not at_once:
            # What a restart is to be compared with stays as it is.
            if not self._restarts.untold and not self._losses.is_blind:
                self._ended.fold(self._done())
            self._ended.look(self._watch, self._due)
            self._has_worked = self._losses.has_more or self._ended.is_pending
        if self._intake.peak >= _FILL_MARK and now >= self._fill_due:
            self._fill_due = now + REPORT_INTERVAL
            self._dispatcher.say(
                f"mplog: the buffers were {self._intake.peak:.0%} full: the log is written more slowly than it comes"
            )
        self._gather()
        self._intake.peak = 0.0

    def _see_ended(self, pids: list[int]) -> None:
        self._ended.see(pids)
        self._has_worked = self._has_worked or self._ended.is_pending

    def _check_restarts(self) -> None:
        """Say that there was a restart, once it is known what it has cost."""
        if self._restarts.is_due(self._done()):
            line = self._restarts.line(self._stats().unexplained, time.monotonic())
            if line is not None:
                self._dispatcher.say(line)

    def _keep_said(self) -> None:
        """Note down what was written outside of a batch, so that a restart does not take it back."""
        self._retry()
        self._gather()
        if self._announced.is_open or self._tallies.has_new or self._restarts.is_said:
            self._commit(0)
        self._losses.remove_files()

    def _swap(self) -> bool:
        """Go on with the other buffer, having kept the long records that are not complete."""
        if not self._pair.state.fill:
            return False
        self._unfinished.save(self._pair.committed, self._frames)
        if not self._pair.swap():
            return False
        self._unfinished.forget_before(self._pair.committed)
        self._intake.has_swapped()
        return True

    def _refuse_object(self, payload: bytes) -> None:
        """Count somebody's put() of something else: it would have to be unpickled, which could run any code."""
        queue.check_object(payload)
        if not self._is_replaying:
            self._tallies.add(("objects",))
            self._dispatcher.warn("objects that are not log records were put into the queue, and skipped")

    @property
    def _broken(self) -> int:
        return self._frames.broken + self._frames.given_up + self._undecoded

    def _check(self) -> None:
        super()._check()
        self._check_incomplete()
        self._check_losses()
        self._check_restarts()
        reach("after say")
        self._keep_said()
        self._answer_flushes()

    def _timeout(self) -> float | None:
        times = [super()._timeout()]
        if self._frames.has_incomplete or self._restarts.untold:
            times.append(CHECK_SECONDS)
        if self._has_worked:  # while the queue was full, records may have been lost that the log has not told of
            times.append(max(0.0, self._losses_due - time.monotonic()))
        return min((each for each in times if each is not None), default=None)

    def _check_incomplete(self) -> None:
        """Give up the long records whose writers have died."""
        if self._frames.has_incomplete and time.monotonic() >= self._incomplete_due:
            # Pids come off the wire: of many, some are looked at each time.
            writers = list({message.pid for message in self._frames.incomplete()})
            if len(writers) > _CHECKED_WRITERS:
                writers = random.sample(writers, _CHECKED_WRITERS)
            dead = {pid for pid in writers if has_ended(pid)}
            self._incomplete_due = time.monotonic() + CHECK_SECONDS
            # In this order: what a writer wrote before it died is on its way now, and must be handled first.
            if dead and self._pair.due(self._read_fd) == self._pair.committed:
                self._give_up(dead)

    def _give_up(self, writers: set[int]) -> None:
        for message in self._frames.drop_incomplete(lambda message: message.pid in writers):
            self._tallies.add(("incomplete",))
            self._dispatcher.warn(
                f"long records lost: pid {message.pid} ended before it had sent the whole of one "
                f"({len(message.pieces)} of {message.count} parts)"
            )

    def _due(self) -> int:
        return self._pair.due(self._read_fd)

    def _done(self) -> int:
        return self._pair.committed

    # --- the parent ---

    def _flush(self, request: int) -> None:
        # What the queue had no room for has been logged, too: the file that is being read, and the one behind it.
        finished = self._emergency.finished + self._emergency.files
        self._flushes.append((self._pair.due(self._read_fd), finished, request))
        self._answer_flushes()

    def _answer_flushes(self) -> None:
        while self._flushes and self._flushes[0][0] <= self._pair.committed and not self._dispatcher.stuck:
            _, finished, request = self._flushes[0]
            if self._emergency.finished >= finished or not self._merge_emergency(_EMERGENCY_PATIENCE):
                del self._flushes[0]
                self._delivering.append((self._dispatcher.send_now(), request))
        self._answer_delivered()

    def _desert(self) -> None:
        self._control = None
        if self._write_fd is not None:
            os.close(self._write_fd)
            self._write_fd = None

    def _gather(self) -> None:
        super()._gather()
        self._tallies.add(("skipped",), self._frames.skipped - self._counted_skipped)
        self._counted_skipped = self._frames.skipped
        self._tallies.set(("peak",), max(self._tallies.values["peak",], round(self._intake.peak * PEAK_UNIT)))

    def _stats(self) -> Stats:
        self._gather()
        return self._counted()

    def _counted(self) -> Stats:
        return to_stats(self._tallies.values, read_losses(self._directory))

    # --- the end ---

    def _take_out(self) -> None:
        """Close the FIFO so that a record is either read here, or refused where it is logged.

        Closing the reading ends makes every further write fail. What was written in the instant before is still in
        there, and a writing end can tell how much. Reading it takes a new reading end, which lets more come in; but
        each round is shorter than the one before.
        """
        self._intake.stop()
        self._drain()
        if self._supervisor is not None:
            with contextlib.suppress(EOFError, OSError):  # it has been killed
                self._supervisor.send(Report.RELEASE)
                self._supervisor.recv()
        try:
            if self._write_fd is None:
                self._write_fd = fifo.open_writer(self._fifo_path)
            while True:
                os.close(self._read_fd)
                if not fifo.pending(self._write_fd):
                    break
                self._read_fd = fifo.open_reader(self._fifo_path)
                self._drain()
        except FileNotFoundError:
            pass  # somebody has removed the directory, so nobody new can come
        while self._work():
            pass  # what has come beyond that, and is in the buffers
        self._give_up({message.pid for message in self._frames.incomplete()})
        self._check_losses(at_once=True)
        self._check_restarts()
        self._keep_said()
        self._emergency.close()

    def _drain(self) -> None:
        """Handle everything that is in the buffers and the FIFO now; more may be on its way without end."""
        due = self._pair.due(self._read_fd)
        while self._pair.committed < due and (self._work() or self._pair.intake(self._read_fd) > 0):
            pass

    def _clear_up(self) -> None:
        queue.remove_directory(self._directory)
