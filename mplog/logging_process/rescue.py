"""What is left when no logging process will come any more: saved in the emergency file. POSIX only.

::

    buffers, FIFO ---- Rescue.save() ----> emergency file ----> next server
                            `- no room: counted, by process

The rule of this file: **what is not saved is counted, and said.** It runs in the supervisor, which may have next to no
descriptors left, and no memory to spare.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import msgspec

from mplog.logging_process.announcements import Announcements
from mplog.logging_process.commit import read_note
from mplog.logging_process.set_aside import RECORDS
from mplog.logging_process.unfinished import Unfinished
from mplog.monitoring.statistics import number_of
from mplog.monitoring.tallies import Tallies
from mplog.queue import fifo
from mplog.queue.buffers import BufferPair
from mplog.queue.directory import current_fifo_path
from mplog.queue.emergency import EmergencyFile
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.losses import Reason
from mplog.queue.overflow import Overflow
from mplog.queue.process_losses import ProcessLosses, decode_losses
from mplog.queue.sync import TOKEN_SIZE
from mplog.record import frame
from mplog.record.decoding import origin_of
from mplog.record.encoding import describe
from mplog.record.frame_reader import UNFINISHED_LIMIT, FrameReader
from mplog.record.packing import pack

#: About how many bytes are handled at a time: the supervisor may have no memory for more.
_PORTION = 2**18


class Rescue:
    """Saves what the buffers, whose `memory` outlives the logging process, and the FIFO hold.

    `overflow` says where the emergency file is, and how large it may be.
    """

    def __init__(self, directory: str, memory: int, overflow: Overflow) -> None:
        assert overflow.emergency is not None
        self._directory = directory
        self._path = overflow.emergency
        self._overflow = overflow
        self._pair = BufferPair(memory)
        self._note = read_note(self._pair)
        self._tallies = Tallies(memory, directory, self._note.serial)
        announced = Announcements(directory, self._note.announced).before(lambda error: None)
        #: What is written into files and not committed, at the begin of what is to be saved: the next server is to take
        #: it back.
        self._announced = list(map(msgspec.structs.astuple, announced))
        #: Of long records, the parts that are committed.
        self._begun = b"".join(self._replay())
        self._lost = self._lost_others = 0
        #: The long records of which a part is lost, and the last one has not come yet.
        self._incomplete: set[bytes] = set()
        #: Why nothing can be saved any more; "" while only room is missing.
        self._obstacle = ""

    def save(self, fd: int, of: int) -> str:
        """Save everything, close the FIFO, and return what stderr is to say.

        Args:
            fd: the reading end; -1 if the last logging process was about to end, and had it closed.
            of: another descriptor of the FIFO, to open it by; -1 for none.
        """
        self._settle()
        self._drain()
        if fd < 0:
            with contextlib.suppress(OSError):  # it has gone, and so have its writers
                fd = fifo.open_reader(current_fifo_path(self._directory), of=of)
        if fd >= 0:
            self._empty(fd)
        self._tallies.publish()
        where = f"what is left is in {self._path}"
        if self._lost or self._lost_others:
            lost = number_of(self._lost, "record")
            lost += f" and {number_of(self._lost_others, 'other message')}" if self._lost_others else ""
            where += f", except {lost} lost: {self._obstacle or 'it is full'}"
        return where

    def _replay(self) -> Iterator[bytes]:
        """Read once more what is committed, as a restart does, and yield the parts of records that are not complete."""
        reader: FrameReader[object] = FrameReader({kind: bytes for kind in frame.KINDS if kind != frame.PART})
        reader.is_replaying = True
        for data in Unfinished(self._directory).load(self._pair.state.base):
            reader.feed(data, drained=False)
        with self._pair.written() as written:
            for start in range(0, len(written), _PORTION):
                reader.feed(bytes(written[start : start + _PORTION]), drained=False)
        reader.feed(b"", drained=True)
        yield from reader.unfinished_frames(UNFINISHED_LIMIT)

    def _settle(self) -> None:
        """Note how far the emergency file is read, unless its reader has announced more in it, which comes again."""
        if not self._announced:
            with contextlib.suppress(OSError):
                reader = EmergencyReader(self._path, self._note.emergency)
                reader.settle()
                reader.close()

    def _empty(self, fd: int) -> None:
        """Read the FIFO and close it, so that a record is either read here, or kept by the process that logs it.

        What is written in the instant before the end is closed is seen by a writing end: see `FifoSource.end`.
        """
        path = current_fifo_path(self._directory)
        writer = -1
        try:
            writer = fifo.open_writer(path, of=fd)
            os.close(os.dup(writer))  # the emergency file needs one, too
        except OSError:  # none is left
            if writer >= 0:
                os.close(writer)
            self._drain(fd)
            os.close(fd)
            return
        try:
            while True:
                self._drain(fd)
                os.close(fd)
                if not fifo.pending(writer):
                    return
                fd = fifo.open_reader(path, of=writer)
        finally:
            os.close(writer)

    def _drain(self, fd: int = -1) -> None:
        """Save what the buffers hold, and what is in the FIFO now: writers may go on for ever."""
        due = self._pair.due(fd) if fd >= 0 else 0
        while True:
            while data := self._next():
                self._save(data)
            if not self._pair.swap() and (self._pair.committed >= due or self._pair.intake(fd) <= 0):
                return

    def _next(self) -> bytes:
        """Return the next whole frames of the writing buffer."""
        with self._pair.unwritten() as content:
            data = bytes(content[:_PORTION])
            is_all = len(data) == len(content)
        ends = [found.end for found in frame.walk(data) if found.kind is not None]
        return data if is_all or not ends else data[: ends[-1]]

    def _save(self, data: bytes) -> None:
        messages, is_whole = frame.messages(self._begun + data)
        self._begun = b""
        is_saved = not self._incomplete and self._append(logging.NOTSET, *messages, goes_on=not is_whole)
        self._announced.clear()
        if not is_saved:
            # One by one: the next may be shorter, and some room is kept for errors.
            for message in messages:
                goes_on = not is_whole and message is messages[-1]
                ids = {part.message_id for part in _parts(message)}
                if ids & self._incomplete or not self._append(_level(message), message, goes_on=goes_on):
                    self._count(message)
        self._tallies.write()
        note = msgspec.structs.replace(self._note, serial=self._tallies.serial)
        self._pair.commit(len(data), pack(note))

    def _append(self, level: int, *messages: bytes, goes_on: bool) -> bool:
        file = EmergencyFile(self._path, self._overflow.room(level))
        try:
            return not self._obstacle and file.append(*messages, goes_on=goes_on, announced=self._announced)
        except OSError as error:
            self._obstacle = describe(error)
            return False

    def _count(self, message: bytes) -> None:
        """Count a message that is lost; a long one with its last part."""
        for part in _parts(message):
            (self._incomplete.add if part.number < part.total - 1 else self._incomplete.discard)(part.message_id)
        for found in frame.walk(message):
            payload = message[found.payload]
            kind = None if found.kind is None else found.kind & ~frame.ASIDE
            if kind == frame.PART and not frame.is_last(payload):
                continue
            losses = _losses(kind, payload)
            for each in losses:
                self._tallies.count_lost(each)
                self._lost += kind != frame.LOSSES
            if not losses:
                self._tallies.add(("broken",))
                self._lost_others += 1


def _parts(message: bytes) -> list[frame.Part]:
    parts = []
    for found in frame.walk(message):
        if found.kind == frame.PART:
            with contextlib.suppress(ValueError):
                parts.append(frame.decode_part(message[found.payload]))
    return parts


def _level(message: bytes) -> int:
    """Return the level of a short record; NOTSET for all else."""
    found = frame.first(message, is_all=True)
    levels = [level for each in _losses(found.kind, message[found.payload]) for level, _ in each.counts]
    return max(levels, default=logging.NOTSET)


def _losses(kind: int | None, payload: bytes) -> list[ProcessLosses]:
    """Return the records that are lost with a frame, or were lost before and are counted in it; else []."""
    with contextlib.suppress(ValueError, RecursionError):
        if kind == frame.LOSSES:
            return decode_losses(payload)
        if kind in RECORDS:
            origin = origin_of(payload[TOKEN_SIZE:] if kind == frame.SYNC else payload)
            counts = {(origin.levelno, Reason.NO_EMERGENCY): 1}
            return [ProcessLosses(origin.process or 0, origin.processName or "", counts)]
        if kind == frame.PART and (part := frame.decode_part(payload)).kind in RECORDS:
            return [ProcessLosses(part.pid, "", {(logging.NOTSET, Reason.NO_EMERGENCY): 1})]
    return []
