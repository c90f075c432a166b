"""The memory of the two buffers: what is where in it, and the state that says what the buffers hold.

::

    header | slot | slot | note | note | buffer | buffer | spare | counts

The rule of this file: **the state is in two slots, written in turn.** The slot with the higher sequence number counts.
The number is one aligned word, stored last; until then the other slot counts. A checksum tells a slot from garbage, and
from one just being written when another process looks. The counts have rules of their own
(`mplog.monitoring.count_file`).

No full disk can take a page of this memory away, which would kill the process that touches it (SIGBUS): it is anonymous
(memfd_create(2)). Where the system has none, or refuses it, it is a file in /dev/shm or in the directory for temporary
files, all of whose pages are written at once. Only on a disk that copies what it writes (btrfs) is this not enough.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable

import msgspec

from mplog.queue.kill_points import reach
from mplog.queue.shared_file import lengthen

#: How links in /proc name the memory of a process (`mplog.monitoring.find_servers`).
NAME = "mplog-buffers"

#: The size of a FIFO unless told otherwise, in bytes: what Linux grants every user.
FIFO_SIZE = 2**20

#: The size of each buffer unless told otherwise, in bytes: several times the FIFO, so that the intake seldom has to
#: stop for a swap, and small beside the memory of a program; pages that are never filled take none.
DEFAULT_SIZE = 8 * 2**20

#: The longest note, in bytes.
NOTE_SIZE = 4096

# Each slot is on cache lines of its own, and the buffers begin on a page of their own (of up to 64 KiB).
_MAGIC = b"mplogbuf"
_VERSION = 3
_HEADER = struct.Struct("=8sQQ8s")  # magic, version, size of a buffer, mark
SLOTS = (128, 320)
_BODY = struct.Struct("=15Q")  # sequence number, fields of State
_CHECKSUM = struct.Struct("=Q")
NOTES = (4096, 4096 + NOTE_SIZE)
_HEAD = 512  # up to the end of the slots
START = max(16384, mmap.ALLOCATIONGRANULARITY)
_WORD = 8
PLACES = 3
#: Room for the counts: some 60,000 to 130,000, of which only used pages take memory. Others do not survive a kill.
COUNTS_SIZE = 2**23
# Size of the random mark that stands in the place of a read until it is made. No frame begins with it.
MARK_SIZE = 8


class State(msgspec.Struct):
    """What the buffers hold, at one instant. Sizes and lengths are in bytes.

    Attributes:
        size: of each buffer.
        fifo_size: of the largest FIFO that is read.
        intake: which of the three places is the intake buffer, 0 to 2.
        fill: how much the intake buffer holds.
        announced: how much is being read into it.
        length: how much the writing buffer holds.
        done: how much of that is written.
        taken: how much was ever taken in.
        note_slot: which of two places the note is in.
        note_length: its length.
        note_checksum: its CRC-32.
        writing: which place is the writing buffer.
        dropped: how much was dropped from the intake buffer (`BufferPair.replace`).
        dropped_before: the same for the writing buffer, from the time when it was the intake buffer.
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
    def position(self) -> int:
        """Bytes ever taken in before those that are unwritten in the writing buffer; it stays until some are written,
        except that a swap counts what was dropped."""
        return self.base + self.done

    @property
    def committed(self) -> int:
        """Bytes ever written, and bytes dropped before them.

        Dropped bytes count once all of their buffer is written: records that stay may stand between them.
        """
        return self.position + (self.dropped_before if self.done == self.length else 0)

    @property
    def fraction(self) -> float:
        """How full the intake buffer is, from 0 to 1. At 1, it has no room for a full FIFO.

        There the intake stops and the FIFO fills, however little is left in the writing buffer.
        """
        return self._fraction(self.fill)

    @property
    def swapped_fraction(self) -> float:
        """The same of the writing buffer, as it was when it was swapped; 0 once all of it is written."""
        return self._fraction(self.length) if self.done < self.length else 0.0

    def _fraction(self, fill: int) -> float:
        return min(1.0, fill / (self.size - self.fifo_size))


def create(size: int = DEFAULT_SIZE, fifo_size: int = FIFO_SIZE) -> int:
    """Make the memory of a pair, and return a descriptor of it.

    It lasts as long as a process has the descriptor open. A child process inherits it by fork, not by exec.

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
    fd = _allocate(_total(size))
    try:
        mark = b"\0" + os.urandom(MARK_SIZE - 1)
        os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, size, mark), 0)
        os.pwrite(fd, _encode(0, State(size, fifo_size)), SLOTS[0])
    except BaseException:
        os.close(fd)
        raise
    return fd


def _total(size: int) -> int:
    return START + PLACES * size + COUNTS_SIZE


def _allocate(length: int) -> int:
    """Return the descriptor of memory of zeros that has no name."""
    # A seccomp filter may refuse it, or a system that wants all such memory sealed (vm.memfd_noexec).
    with contextlib.suppress(AttributeError, OSError):
        return _made_long(os.memfd_create(NAME), os.ftruncate, length)
    for directory in ("/dev/shm", tempfile.gettempdir()):
        try:
            return _made_long(_unnamed_file(directory), lengthen, length)
        except OSError as error:
            reason = str(error)
            if error.errno == errno.EFBIG:
                reason = (
                    "no file of this process may be so long (RLIMIT_FSIZE, ulimit -f), which holds for memory, too. "
                    "Raise that limit, or give LogServer a smaller buffer_size"
                )
    raise OSError(f"they take {length:,} bytes, and {reason}")


def _made_long(fd: int, lengthen: Callable[[int, int], None], length: int) -> int:
    try:
        lengthen(fd, length)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unnamed_file(directory: str) -> int:
    fd, path = tempfile.mkstemp(prefix=f"{NAME}-", dir=directory)
    os.unlink(path)
    return fd


def map_counts(fd: int) -> mmap.mmap:
    """Map the counts, for the one process that counts."""
    size = _check(fd)[1]
    return mmap.mmap(fd, COUNTS_SIZE, offset=_total(size) - COUNTS_SIZE)


class Memory:
    """The memory, mapped, for the one process that uses the buffers.

    Args:
        fd: the descriptor that `create` returned; it may be closed afterwards.

    Attributes:
        size: of each buffer, in bytes.
        mark: what stands in the place of a read until it is made.
        state: what the buffers hold. Changes are in the memory after a `save`.
        view: all of the memory.

    Raises:
        ValueError: this is not the memory of a pair, or it is damaged.
    """

    def __init__(self, fd: int) -> None:
        head, self.size, self.mark = _check(fd)
        found = _newest(head)
        if found is None or found[1].size != self.size:
            raise _damaged("neither of its two states is valid")
        self.sequence, self.state = found
        self._map = mmap.mmap(fd, START + PLACES * self.size)
        self.view = memoryview(self._map)
        self.words = self.view[:_HEAD].cast("Q")
        if zlib.crc32(self.note) != self.state.note_checksum:
            self.close()
            raise _damaged("the note does not fit its checksum")

    def close(self) -> None:
        """Let go of the memory, which stays as it is; raise BufferError if a view of it is still in use."""
        self.words.release()
        self.view.release()
        self._map.close()

    def start(self, place: int) -> int:
        """Return where one of the three places begins."""
        return START + place * self.size

    def save(self) -> None:
        """Make the state in the memory that of this object, at one instant."""
        self.sequence += 1
        slot = _encode(self.sequence, self.state)
        start = SLOTS[self.sequence % 2]
        # While the slot changes, it keeps its old number, the lower of the two.
        self.view[start + _WORD : start + len(slot)] = slot[_WORD:]
        reach("in state")
        self.words[start // _WORD] = self.sequence

    @property
    def note(self) -> bytes:
        """The note; empty before the first."""
        start = NOTES[self.state.note_slot]
        return bytes(self.view[start : start + self.state.note_length])

    @note.setter
    def note(self, note: bytes) -> None:
        if len(note) > NOTE_SIZE:
            raise ValueError(f"a note of {len(note)} bytes is longer than {NOTE_SIZE}.")
        slot = 1 - self.state.note_slot  # the state in memory names the other one until it is replaced
        start = NOTES[slot]
        self.view[start : start + len(note)] = note
        self.state.note_slot, self.state.note_length, self.state.note_checksum = slot, len(note), zlib.crc32(note)


def read_state(fd: int) -> State:
    """Return the state of a pair of buffers that another process uses; raise ValueError if this is not its memory."""
    # The other slot counts while one is being written. Both are invalid only if this process was held up in the middle
    # of its read.
    for _ in range(10):
        found = _newest(_check(fd)[0])
        if found is not None:
            return found[1]
    raise _damaged("neither of its two states is valid")


def _damaged(why: str) -> ValueError:
    return ValueError(f"the memory of the buffers is damaged: {why}.")


def _check(fd: int) -> tuple[bytes, int, bytes]:
    """Return the head of the memory, the size of a buffer, and the mark."""
    head = os.pread(fd, _HEAD, 0)
    if len(head) < _HEAD or not head.startswith(_MAGIC):
        raise ValueError(f"descriptor {fd} is not the memory of a pair of buffers.")
    _, version, size, mark = _HEADER.unpack_from(head)
    if version != _VERSION:
        raise ValueError(f"buffers of version {version} were made by another release of mplog; this is {_VERSION}.")
    if os.fstat(fd).st_size != _total(size):
        raise _damaged(f"{os.fstat(fd).st_size} bytes for three of {size}")
    return head, size, mark


def _encode(sequence: int, state: State) -> bytes:
    """Return the state as it stands in a slot."""
    body = _BODY.pack(sequence, *msgspec.structs.astuple(state))
    return body + _CHECKSUM.pack(zlib.crc32(body))


def _newest(head: bytes | memoryview) -> tuple[int, State] | None:
    """Return the sequence number and the state that counts, None where neither slot is valid."""
    found = None
    for parity, start in enumerate(SLOTS):
        body = head[start : start + _BODY.size]
        (checksum,) = _CHECKSUM.unpack_from(head, start + _BODY.size)
        sequence, *fields = _BODY.unpack(body)
        if checksum == zlib.crc32(body) and sequence % 2 == parity and (found is None or sequence > found[0]):
            found = sequence, State(*fields)
    return found
