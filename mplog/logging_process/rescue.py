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
from collections.abc import Iterable, Iterator

import msgspec

from mplog.logging_process.announcements import Announcements
from mplog.logging_process.commit import read_note
from mplog.logging_process.set_aside import RECORDS
from mplog.monitoring.tallies import Tallies
from mplog.queue import fifo
from mplog.queue.buffers import BufferPair
from mplog.queue.directory import current_fifo_path
from mplog.queue.emergency import EmergencyFile
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.losses import Reason
from mplog.queue.process_losses import ProcessLosses, decode_losses
from mplog.queue.sync import TOKEN_SIZE
from mplog.record import frame
from mplog.record.decoding import origin_of
from mplog.record.encoding import describe
from mplog.record.packing import pack

#: Bytes that are appended at a time.
_PORTION = 2**16


class Rescue:
    """Saves what the buffers, whose `memory` outlives the logging process, and the FIFO hold."""

    def __init__(self, directory: str, memory: int, emergency: EmergencyFile) -> None:
        self._directory = directory
        self._emergency = emergency
        self._pair = BufferPair(memory)
        self._note = read_note(self._pair)
        self._tallies = Tallies(memory, directory, self._note.serial)
        self._lost = 0
        #: Why no more can be saved.
        self._obstacle = ""

    def save(self, fd: int, of: int) -> str:
        """Save everything, close the FIFO, and return what stderr is to say.

        Args:
            fd: the reading end; -1 if the last logging process was about to end, and had it closed.
            of: another descriptor of the FIFO, to open it by; -1 for none.
        """
        self._announce()
        self._drain()
        if fd < 0:
            with contextlib.suppress(OSError):  # it has gone, and so have its writers
                fd = fifo.open_reader(current_fifo_path(self._directory), of=of)
        if fd >= 0:
            self._empty(fd)
        self._tallies.publish()
        where = f"what is left is in {self._emergency.path}"
        if self._lost:
            where += f", except {self._lost:,} record{'' if self._lost == 1 else 's'} lost: {self._obstacle}"
        return where

    def _announce(self) -> None:
        """Have the next server take back what the last logging process has written into files and not committed."""
        with contextlib.suppress(OSError):
            reader = EmergencyReader(self._emergency.path, self._note.emergency)
            announcements = Announcements(self._directory, self._note.announced).before(lambda error: None)
            self._emergency.announce(map(msgspec.structs.astuple, announcements))
            reader.settle()  # what these portions hold of a file that was taken is in the log until it is taken back
            reader.close()

    def _empty(self, fd: int) -> None:
        """Read the FIFO and close it, so that a record is either read here, or kept by the process that logs it.

        What is written in the instant before the end is closed is seen by a writing end: see `FifoSource.end`.
        """
        path = current_fifo_path(self._directory)
        try:
            writer = fifo.open_writer(path, of=fd)
        except OSError:  # no descriptor is left
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
            self._save(bytes(self._pair.unwritten()))
            if not self._pair.swap() and (self._pair.committed >= due or self._pair.intake(fd) <= 0):
                return

    def _save(self, data: bytes) -> None:
        messages, is_whole = frame.messages(data)
        for portion in _portions(messages):
            goes_on = not is_whole and portion[-1] is messages[-1]
            if not self._append(portion, goes_on=goes_on):
                for message in portion:
                    self._count(message)
        self._tallies.write()
        note = msgspec.structs.replace(self._note, serial=self._tallies.serial)
        self._pair.commit(len(data), pack(note))

    def _append(self, messages: list[bytes], *, goes_on: bool) -> bool:
        if not self._obstacle:
            try:
                if not self._emergency.append(*messages, goes_on=goes_on):
                    self._obstacle = "it is full"
            except OSError as error:
                self._obstacle = describe(error)
        return not self._obstacle

    def _count(self, message: bytes) -> None:
        """Count a message that is lost."""
        for found in frame.walk(message):
            payload = message[found.payload]
            try:
                losses = _losses(found.kind, payload)
            except (ValueError, RecursionError):
                self._tallies.add(("broken",))
                continue
            for each in losses:
                self._tallies.count_lost(each)
                if found.kind != frame.LOSSES:
                    self._lost += 1


def _losses(kind: int | None, payload: bytes) -> list[ProcessLosses]:
    """Return what is lost with a frame; raise ValueError if it is garbage."""
    if kind == frame.LOSSES:
        return decode_losses(payload)
    if kind in RECORDS:
        origin = origin_of(payload[TOKEN_SIZE:] if kind == frame.SYNC else payload)
        counts = {(origin.levelno, Reason.NO_EMERGENCY): 1}
        return [ProcessLosses(origin.process or 0, origin.processName or "", counts)]
    if kind == frame.PART and frame.is_last(payload):
        part = frame.decode_part(payload)
        if part.kind in RECORDS:
            return [ProcessLosses(part.pid, "", {(logging.NOTSET, Reason.NO_EMERGENCY): 1})]
    return []


def _portions(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the messages in lists of about `_PORTION` bytes."""
    portion: list[bytes] = []
    size = 0
    for message in messages:
        portion.append(message)
        size += len(message)
        if size >= _PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
