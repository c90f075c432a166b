"""The pair of buffers between the FIFO and the sinks, in memory that outlives the logging process. POSIX only.

The rule of this file: **at every instant the memory tells what is left to do.** The logging process may be killed
between any two instructions; the next one maps the same memory, loses nothing and doubles nothing.
mplog/logging_process/README.rst tells what it does at each instant.

::

    FIFO --intake()--> | intake buffer  |             one thread
                            | swap() |
                       | writing buffer | --commit()--> files      another thread

Two buffers of a fixed size change roles: one takes in what comes while the other is written out. Each is filled from
its start, so that under a light load the same few pages are used over and over, and most of the memory never is.

A third place of the same size is only used where a policy drops records out of the intake buffer: what stays is written
there, and that becomes the intake buffer (`BufferPair.replace`).

What makes it hold:

- **The state is in two slots, written in turn**: what the buffers hold, what of it is written, and the note of the
  caller. The slot with the higher sequence number counts. The number is one aligned word, stored last; until then the
  other slot counts. A checksum tells a slot from garbage, and from one just being written when another process looks.
- **A read is announced before it is made**: so many bytes as are pending, and never more are asked for. Its place is
  marked before that. After a kill, a mark that is gone shows that the read was made: then it counts, else the bytes are
  still in the FIFO. A read that does not block is all or nothing: a SIGKILL cannot end it (Linux looks for signals only
  while it waits), except at a page fault, so all pages of the place are touched before.
- **Frames are never cut**: writes into the FIFO are atomic, so what is pending is whole frames, and it all goes into
  one buffer or, until the next swap, stays where it is.

The order matters for one process alone: it is dead, with all its threads, before another is started, and what a
thread has stored before it dies is in memory in the order of the program.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import select
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable

from mplog.queue import fifo
from mplog.queue.kill_points import reach
from mplog.queue.shared_file import lengthen

__all__ = [
    "DEFAULT_SIZE",
    "END",
    "FIFO_SIZE",
    "NOTE_SIZE",
    "NOTHING",
    "NO_ROOM",
    "BufferPair",
    "State",
    "create",
    "read_state",
]

#: The size of a FIFO unless told otherwise, in bytes: what Linux grants to anybody.
FIFO_SIZE = 2**20

#: The size of each buffer unless told otherwise, in bytes: several times the FIFO, so that the intake seldom has to
#: stop for a swap, and small beside what a program takes; what is never filled takes no memory at all.
DEFAULT_SIZE = 8 * 2**20

#: The longest note, in bytes.
NOTE_SIZE = 4096

#: `BufferPair.intake`: nothing is in the FIFO yet.
NOTHING = 0
#: `BufferPair.intake`: nothing is in the FIFO, and the last writer has closed it.
END = -1
#: `BufferPair.intake`: what is in the FIFO does not fit behind what the intake buffer holds; it does after a swap.
NO_ROOM = -2

# The memory: header | slot | slot | note | note | buffer | buffer | spare. Each slot is on cache lines of its own, and
# the buffers begin on a page of their own (of 16 KiB on some machines).
_MAGIC = b"mplogbuf"
_VERSION = 2
_HEADER = struct.Struct("=8sQQ8s")  # magic, version, size of a buffer, mark
_SLOTS = (128, 320)
_BODY = struct.Struct("=15Q")  # sequence number, fields of State
_CHECKSUM = struct.Struct("=Q")
_NOTES = (4096, 4096 + NOTE_SIZE)
_HEAD = 512  # up to the end of the slots
_START = 16384
_WORD = 8
_PLACES = 3
# What stands in the place of a read until it is made. No frame begins with it, and nobody else knows it.
_MARK_SIZE = 8


@dataclasses.dataclass
class State:
    """What the buffers hold, at one instant.

    Attributes:
        size: of each buffer, in bytes.
        fifo_size: of the largest FIFO that is read, in bytes.
        intake: which of the three places is the intake buffer, 0 to 2.
        fill: bytes in the intake buffer.
        announced: bytes that are just being read into it.
        length: bytes in the writing buffer.
        done: bytes of them that are written.
        taken: bytes ever taken in.
        note_slot: which of two places the note is in.
        note_length: its length in bytes.
        note_checksum: its CRC-32.
        writing: which place is the writing buffer.
        dropped: bytes that were dropped out of the intake buffer (`BufferPair.replace`).
        dropped_before: the same of the writing buffer, from the time when it took in.
    """

    size: int
    fifo_size: int
    intake: int = 0
    fill: int = 0
    announced: int = 0
    length: int = 0
    done: int = 0
    taken: int = 0
    note_slot: int = 0
    note_length: int = 0
    note_checksum: int = 0
    writing: int = 1
    dropped: int = 0
    dropped_before: int = 0

    @property
    def unwritten(self) -> int:
        """Bytes that were taken in and are not yet written."""
        return self.fill + self.length - self.done

    @property
    def base(self) -> int:
        """Bytes ever taken in before those that the writing buffer holds, or has held before some were dropped."""
        return self.taken - self.fill - self.dropped - self.length - self.dropped_before

    @property
    def committed(self) -> int:
        """Bytes ever written, or dropped with everything before them written.

        What was dropped counts when all of its buffer is written: there may be others among it that stay.
        """
        return self.base + self.done + (self.dropped_before if self.done == self.length else 0)

    @property
    def fraction(self) -> float:
        """How full the intake buffer is, from 0 to 1, where what a full FIFO holds would not fit any more.

        The intake stops there, and the FIFO fills, however little is left in the writing buffer.
        """
        return min(1.0, self.fill / (self.size - self.fifo_size))


def create(size: int = DEFAULT_SIZE, fifo_size: int = FIFO_SIZE) -> int:
    """Make the memory of a pair, and return a descriptor of it.

    It lasts as long as somebody has the descriptor open. A child process inherits it by fork, not by exec.

    Args:
        size: of each buffer, in bytes; 8 MiB by default.
        fifo_size: of the FIFO that will be read, in bytes; 1 MiB by default.

    Raises:
        ValueError: the buffers are less than twice as large as the FIFO.
        OSError: there is no room for them.
    """
    if size < 2 * max(fifo_size, FIFO_SIZE) or size % mmap.PAGESIZE:
        raise ValueError(
            f"buffers of {size} bytes: they must be of whole pages, and at least twice as large as a FIFO of "
            f"{max(fifo_size, FIFO_SIZE)} bytes, so that all that is in it always fits into one."
        )
    total = _START + _PLACES * size
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("mplog-buffers")
    else:
        with tempfile.TemporaryFile(prefix="mplog-buffers-") as file:
            fd = os.dup(file.fileno())
    try:
        if hasattr(os, "memfd_create"):
            os.ftruncate(fd, total)  # memory that no disk can run out of
        else:
            lengthen(fd, total)
        mark = b"\0" + os.urandom(_MARK_SIZE - 1)
        os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, size, mark), 0)
        os.pwrite(fd, _encode(0, State(size, fifo_size)), _SLOTS[0])
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_state(fd: int) -> State:
    """Return the state of a pair of buffers that another process uses.

    Raises:
        ValueError: this is not the memory of one.
    """
    header = os.pread(fd, _HEAD, 0)
    _check(fd, header)
    # A state that is being written does not count, and the other does. Both have changed meanwhile only if this process
    # was held up in the middle of its read.
    for _ in range(10):
        newest = _newest(header)
        if newest is not None:
            return newest[1]
        header = os.pread(fd, _HEAD, 0)
    raise ValueError("the memory of the buffers is damaged: neither of its two states is valid.")


def _check(fd: int, header: bytes) -> tuple[int, bytes]:
    """Return the size of a buffer, and the mark."""
    if len(header) < _HEAD or not header.startswith(_MAGIC):
        raise ValueError(f"descriptor {fd} is not the memory of a pair of buffers.")
    _, version, size, mark = _HEADER.unpack_from(header)
    if version != _VERSION:
        raise ValueError(f"buffers of version {version} were made by another release of mplog; this is {_VERSION}.")
    if os.fstat(fd).st_size != _START + _PLACES * size:
        raise ValueError(f"the memory of the buffers is damaged: {os.fstat(fd).st_size} bytes for three of {size}.")
    return size, mark


def _encode(sequence: int, s: State) -> bytes:
    """Return the state as it stands in a slot."""
    body = _BODY.pack(
        sequence, s.size, s.fifo_size, s.intake, s.fill, s.announced, s.length, s.done, s.taken,
        s.note_slot, s.note_length, s.note_checksum, s.writing, s.dropped, s.dropped_before,
    )  # fmt: skip
    return body + _CHECKSUM.pack(zlib.crc32(body))


def _newest(header: bytes | memoryview) -> tuple[int, State] | None:
    """Return the sequence number and the state that counts, None where neither slot is valid."""
    newest = None
    for parity, start in enumerate(_SLOTS):
        body = header[start : start + _BODY.size]
        (checksum,) = _CHECKSUM.unpack_from(header, start + _BODY.size)
        sequence, *fields = _BODY.unpack(body)
        if checksum == zlib.crc32(body) and sequence % 2 == parity and (newest is None or sequence > newest[0]):
            newest = sequence, State(*fields)
    return newest


class BufferPair:
    """The two buffers, as the logging process uses them: one thread takes in, another writes.

    Opening them after a kill finds out whether a read that had been announced was made. What is left to do is then
    where it always is: the rest of the writing buffer in `unwritten`, the note in `note`, the other buffer behind a
    `swap`.

    Only one process at a time may have a pair, and only it may read the FIFO.

    Args:
        fd: the descriptor that `create` returned; it may be closed afterwards.

    Raises:
        ValueError: this is not the memory of a pair, or it is damaged.
    """

    def __init__(self, fd: int) -> None:
        header = os.pread(fd, _HEAD, 0)
        self.size, self._mark = _check(fd, header)
        newest = _newest(header)
        if newest is None or newest[1].size != self.size:
            raise ValueError("the memory of the buffers is damaged: neither of its two states is valid.")
        self._sequence, self._state = newest
        self._map = mmap.mmap(fd, _START + _PLACES * self.size)
        self._memory = memoryview(self._map)
        self._words = self._memory[:_HEAD].cast("Q")
        self._lock = threading.Lock()
        if zlib.crc32(self.note) != self._state.note_checksum:
            self.close()
            raise ValueError("the memory of the buffers is damaged: the note does not fit its checksum.")
        self._recover()

    def close(self) -> None:
        """Let go of the memory, which stays as it is.

        Raises:
            BufferError: a view that `unwritten` returned is still in use.
        """
        self._words.release()
        self._memory.release()
        self._map.close()

    # --- the thread that takes in ---

    def intake(self, read_fd: int) -> int:
        """Read all that is pending in the FIFO into the intake buffer; never wait for more.

        Args:
            read_fd: the reading end, which does not block.

        Returns:
            How many bytes; `NOTHING`, `END` or `NO_ROOM` where none, which are not above 0. A FIFO that no writer has
            opened since its reading end was opened has not come to its end.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            state = self._state
            pending = fifo.pending(read_fd)
            if not pending:
                is_deserted = _is_deserted(read_fd)
                pending = fifo.pending(read_fd)  # the last writer may have come and gone in between
                if not pending:
                    return END if is_deserted else NOTHING
            room = self.size - state.fill
            if pending > room:
                if state.fill:
                    return NO_ROOM
                pending = room  # somebody has made the FIFO larger than any buffer; better a frame cut than none read
            start = _START + state.intake * self.size + state.fill
            self._mark_place(start, pending)
            state.announced = pending
            self._save()
            count = 0
            try:
                reach("before read")
                with self._memory[start : start + pending] as place:
                    count = os.readv(read_fd, [place])
                reach("after read")
            except BlockingIOError:
                pass  # somebody else has read it
            finally:
                self._settle(count)
            return count

    def replace(self, choose: Callable[[memoryview], bytes | None]) -> int:
        """Put something shorter in the place of what the intake buffer holds, at one instant.

        Nobody swaps or commits meanwhile.

        Args:
            choose: is called with the content, and returns what of it stays; None for all of it.

        Returns:
            How many bytes have become free.

        Raises:
            ValueError: what stays is longer than what was there.
        """
        with self._lock:
            state = self._state
            start = _START + state.intake * self.size
            with self._memory[start : start + state.fill] as content:
                kept = choose(content)
            if kept is None:
                return 0
            freed = state.fill - len(kept)
            if freed < 0:
                raise ValueError(f"{len(kept)} bytes in the place of {state.fill}: what stays must not be longer.")
            spare = _PLACES - state.intake - state.writing
            start = _START + spare * self.size
            self._memory[start : start + len(kept)] = kept
            reach("before replace")
            state.intake, state.fill = spare, len(kept)
            state.dropped += freed
            if not kept:  # it will not be swapped
                state.dropped_before, state.dropped = state.dropped_before + state.dropped, 0
            self._save()
            reach("after replace")
            return freed

    def due(self, read_fd: int) -> int:
        """Return how many bytes will ever have been taken in with the last that is in the FIFO now.

        Once `committed` is as high, all that was logged before this call is written, or dropped.
        """
        with self._lock:
            return self._state.taken + fifo.pending(read_fd)

    def _mark_place(self, start: int, length: int) -> None:
        end = start + length
        page = start + -start % mmap.PAGESIZE
        self._memory[page : end : mmap.PAGESIZE] = bytes(len(range(page, end, mmap.PAGESIZE)))
        self._memory[start : min(start + _MARK_SIZE, end)] = self._mark[:length]

    def _settle(self, count: int) -> None:
        self._state.fill += count
        self._state.taken += count
        self._state.announced = 0
        self._save()

    # --- the thread that writes ---

    def unwritten(self) -> memoryview:
        """Return what of the writing buffer is not yet written, to be read in place; valid until the next `swap`."""
        state = self._state
        start = _START + state.writing * self.size
        return self._memory[start + state.done : start + state.length].toreadonly()

    def written(self) -> memoryview:
        """Return what of the writing buffer is written; valid until the next `swap`."""
        state = self._state
        start = _START + state.writing * self.size
        return self._memory[start : start + state.done].toreadonly()

    def swap(self) -> bool:
        """Change the roles of the buffers, if one is all written and the other holds something; return whether."""
        with self._lock:
            state = self._state
            if state.done < state.length or not state.fill:
                return False
            reach("before swap")
            state.intake, state.writing = state.writing, state.intake
            state.length, state.done, state.fill = state.fill, 0, 0
            state.dropped_before, state.dropped = state.dropped, 0
            self._save()
            reach("after swap")
            return True

    def commit(self, count: int, note: bytes | None = None) -> None:
        """Say that more of the writing buffer is written, and replace the note, in one step.

        Args:
            count: how many bytes of `unwritten`; with 0 only the note changes.
            note: at most `NOTE_SIZE` bytes that the next process must know; by default it stays.

        Raises:
            ValueError: there are not so many bytes, or the note is too long.
        """
        with self._lock:
            state = self._state
            if not 0 <= count <= state.length - state.done:
                raise ValueError(f"{count} bytes cannot be committed of {state.length - state.done} in the buffer.")
            reach("before commit")
            if note is not None:
                self._write_note(note)
            state.done += count
            self._save()
            reach("after commit")

    @property
    def note(self) -> bytes:
        """The note of the last commit that had one; empty before."""
        start = _NOTES[self._state.note_slot]
        return bytes(self._memory[start : start + self._state.note_length])

    def _write_note(self, note: bytes) -> None:
        if len(note) > NOTE_SIZE:
            raise ValueError(f"a note of {len(note)} bytes is longer than {NOTE_SIZE}.")
        state = self._state
        slot = 1 - state.note_slot  # the state in memory means the other until it is replaced
        start = _NOTES[slot]
        self._memory[start : start + len(note)] = note
        state.note_slot, state.note_length, state.note_checksum = slot, len(note), zlib.crc32(note)

    # --- the state ---

    @property
    def state(self) -> State:
        """A copy of the state."""
        with self._lock:
            return dataclasses.replace(self._state)

    @property
    def fraction(self) -> float:
        """How full the intake buffer is; see `State.fraction`."""
        return self._state.fraction

    @property
    def committed(self) -> int:
        """Bytes ever written, or dropped; see `State.committed`."""
        with self._lock:
            return self._state.committed

    @property
    def base(self) -> int:
        """Bytes ever taken in before those of the writing buffer."""
        with self._lock:
            return self._state.base

    def _save(self) -> None:
        """Make the state in memory that of this object, at one instant."""
        self._sequence += 1
        slot = _encode(self._sequence, self._state)
        start = _SLOTS[self._sequence % 2]
        # It keeps its old number, the lower of the two, while it changes.
        self._memory[start + _WORD : start + len(slot)] = slot[_WORD:]
        reach("in state")
        self._words[start // _WORD] = self._sequence

    def _recover(self) -> None:
        state = self._state
        if state.announced:
            start = _START + state.intake * self.size + state.fill
            marked = min(state.announced, _MARK_SIZE)
            was_made = self._memory[start : start + marked] != self._mark[:marked]
            reach("in recovery")
            self._settle(state.announced if was_made else 0)


def _is_deserted(read_fd: int) -> bool:
    poll = select.poll()
    poll.register(read_fd, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
