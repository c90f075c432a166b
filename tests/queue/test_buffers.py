"""The pair of buffers: taking in, writing, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplog.queue import buffer_memory, buffers, fifo
from mplog.queue import kill_points as faults
from mplog.queue.buffer_memory import FIFO_SIZE, NOTE_SIZE, State
from mplog.queue.buffers import END, NO_ROOM, NOTHING, BufferPair

SIZE = 2 * FIFO_SIZE
PIPE_BUF = select.PIPE_BUF
PROGRAM = str(Path(__file__).parents[1] / "buffer_kills.py")


class Pipe:
    """A pipe as large as the FIFO, which does not block."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.size = fifo.set_size(self.writer, FIFO_SIZE)
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def write(self, data: bytes) -> bytes:
        """Write in atomic pieces; return the data."""
        for start in range(0, len(data), PIPE_BUF):
            assert os.write(self.writer, data[start : start + PIPE_BUF]) == len(data[start : start + PIPE_BUF])
        return data

    def fill(self) -> int:
        """Write until it is full; return how many bytes are in it."""
        try:
            while True:
                os.write(self.writer, b"f" * PIPE_BUF)
        except BlockingIOError:
            return fifo.pending(self.reader)

    def close(self) -> None:
        """Close what is open of it."""
        for fd in (self.reader, self.writer):
            if fifo.is_open(fd):
                os.close(fd)


def take_in(pair: BufferPair, pipe: Pipe, data: bytes) -> None:
    """Write data into the pipe, and read it into the intake buffer."""
    pipe.write(data)
    pair.intake(pipe.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe."""
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def memory() -> Iterator[int]:
    """The memory of a pair."""
    fd = buffer_memory.create(SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def pair(memory: int) -> Iterator[BufferPair]:
    """A pair of the smallest size."""
    pair = BufferPair(memory)
    yield pair
    pair.close()


def copy_of(memory: int) -> int:
    """Return a copy of the memory, as a process that opens it now finds it."""
    copy = os.memfd_create("copy")
    size = os.fstat(memory).st_size
    os.ftruncate(copy, size)
    # Holes stay holes.
    position = 0
    while True:
        try:
            start = os.lseek(memory, position, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            return copy
        position = os.lseek(memory, start, os.SEEK_HOLE)
        assert os.pwrite(copy, os.pread(memory, position - start, start), start) == position - start


def rest_of(pair: BufferPair) -> bytes:
    """Write out all that a pair holds, and return it."""
    rest = b""
    while len(content := pair.unwritten()) or pair.swap():
        rest += content
        pair.commit(len(content))
    return rest


def seen(fd: int) -> tuple[bytes, bytes, int, int]:
    """Open the memory, twice, and return what is left to do: the note, what is unwritten, taken and committed bytes."""
    pair = BufferPair(fd)
    state = pair.state
    pair.close()
    again = BufferPair(fd)
    assert again.state == state == buffer_memory.read_state(fd)
    assert state.announced == 0
    result = again.note, rest_of(again), state.taken, state.committed
    again.close()
    return result


class Camera:
    """Takes pictures of the memory at the points where a process may be killed, and opens them."""

    def __init__(self, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures: list[tuple[str, int]] = []
        for module in (buffers, buffer_memory):
            monkeypatch.setattr(module, "reach", lambda point: self.pictures.append((point, copy_of(memory))))

    def develop(self) -> list[tuple[str, tuple[bytes, bytes, int, int]]]:
        """Return the points that were reached since the last time, and what a process that starts then sees."""
        taken, self.pictures = self.pictures[:], []
        result = []
        for point, copy in taken:
            result.append((point, seen(copy)))
            os.close(copy)
        self.forget()  # those of the recoveries
        return result

    def forget(self) -> None:
        """Throw the pictures away."""
        for _, copy in self.pictures:
            os.close(copy)
        self.pictures.clear()


@pytest.fixture
def camera(memory: int, pair: BufferPair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    """A camera on the memory of `pair`."""
    camera = Camera(memory, monkeypatch)
    yield camera
    camera.forget()


# --- taking in and writing ---


def test_what_is_taken_in_is_written_after_a_swap(pair: BufferPair, pipe: Pipe) -> None:
    """Bytes go through the intake buffer and, once the roles have changed, out of the writing buffer, in order."""
    first = pipe.write(b"one")
    assert pair.intake(pipe.reader) == 3
    assert pair.intake(pipe.reader) == NOTHING
    second = pipe.write(b"second")
    assert pair.intake(pipe.reader) == 6
    assert bytes(pair.unwritten()) == b""
    assert pair.swap()
    assert bytes(pair.unwritten()) == first + second
    third = pipe.write(b"3")
    assert pair.intake(pipe.reader) == 1
    pair.commit(4)
    assert bytes(pair.unwritten()) == b"econd"
    assert not pair.swap()
    pair.commit(5)
    assert bytes(pair.unwritten()) == b""
    assert pair.swap()
    assert bytes(pair.unwritten()) == third
    pair.commit(1)
    assert not pair.swap()


def test_counters_count_for_ever(pair: BufferPair, pipe: Pipe) -> None:
    """Taken and committed bytes are counted over all swaps, and unwritten is their difference."""
    for round_ in range(1, 6):
        take_in(pair, pipe, b"x" * 1000)
        pair.swap()
        state = pair.state
        assert (state.taken, state.committed, state.unwritten) == (round_ * 1000, round_ * 1000 - 1000, 1000)
        pair.commit(400)
        assert pair.committed == round_ * 1000 - 600
        pair.commit(600)
        assert pair.committed == round_ * 1000
        assert pair.state.unwritten == 0


def test_due_says_when_all_that_was_in_the_fifo_is_written(pair: BufferPair, pipe: Pipe) -> None:
    """What is in the FIFO when one asks is due, and what comes later is not."""
    take_in(pair, pipe, b"a" * 10)
    pipe.write(b"b" * 20)
    due = pair.due(pipe.reader)
    assert due == 30
    pair.intake(pipe.reader)
    take_in(pair, pipe, b"c" * 40)
    assert pair.due(pipe.reader) == 70
    pair.swap()
    pair.commit(29)
    assert pair.committed < due
    pair.commit(1)
    assert pair.committed == due


def test_the_end_of_the_fifo_is_told_from_nothing_yet(pair: BufferPair, tmp_path: Path) -> None:
    """Without writers there is nothing yet before the first has come, what the last has left, and then the end."""
    path = str(tmp_path / "fifo")
    fifo.create(path)
    reader = fifo.open_reader(path)
    assert pair.intake(reader) == NOTHING
    writer = fifo.open_writer(path)
    assert pair.intake(reader) == NOTHING
    os.write(writer, b"last")
    os.close(writer)
    assert pair.intake(reader) == 4
    assert pair.intake(reader) == END
    assert pair.intake(reader) == END
    writer = fifo.open_writer(path)
    assert pair.intake(reader) == NOTHING
    os.close(writer)
    os.close(reader)


def test_a_writer_that_comes_and_goes_while_one_looks_is_read(
    pair: BufferPair, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last writer wrote in the instant before it left is not taken for the end."""
    look = fifo.is_deserted

    def write_and_leave(read_fd: int) -> bool:
        pipe.write(b"last")
        os.close(pipe.writer)
        return look(read_fd)

    monkeypatch.setattr(fifo, "is_deserted", write_and_leave)
    assert pair.intake(pipe.reader) == 4
    monkeypatch.undo()
    assert pair.intake(pipe.reader) == END
    assert rest_of(pair) == b"last"


def test_no_more_is_read_than_was_announced(
    memory: int, pair: BufferPair, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in between the announcement and the read waits for the next one."""
    readv = os.readv

    def read_late(fd: int, views: list[memoryview]) -> int:
        assert buffer_memory.read_state(memory).announced == 5
        pipe.write(b"later")
        return readv(fd, views)

    pipe.write(b"early")
    monkeypatch.setattr(os, "readv", read_late)
    assert pair.intake(pipe.reader) == 5
    monkeypatch.undo()
    assert pair.intake(pipe.reader) == 5
    assert rest_of(pair) == b"earlylater"


@pytest.mark.parametrize("error", [BlockingIOError, OSError(errno.EIO, "broken")])
def test_a_read_that_fails_changes_nothing(
    pair: BufferPair, pipe: Pipe, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """If another process was faster there is nothing; any other error is raised; the next read goes on."""

    def fail(fd: int, views: list[memoryview]) -> int:
        raise error

    pipe.write(b"data")
    before = pair.state
    monkeypatch.setattr(os, "readv", fail)
    if error is BlockingIOError:
        assert pair.intake(pipe.reader) == NOTHING
    else:
        with pytest.raises(OSError, match="broken"):
            pair.intake(pipe.reader)
    monkeypatch.undo()
    assert pair.state == before
    assert pair.intake(pipe.reader) == 4
    assert rest_of(pair) == b"data"


@pytest.mark.skipif(sys.platform != "linux", reason="the mapped pages of a file are counted on Linux")
def test_a_read_touches_no_page_for_the_first_time(
    memory: int, pair: BufferPair, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages of the place are there before the read, since a kill can cut it short at a page fault alone."""
    path = os.readlink(f"/proc/self/fd/{memory}").removesuffix(" (deleted)")
    added_by_reads: list[int] = []
    readv = os.readv

    def mapped() -> int:
        """Return how many bytes of the memory are mapped with pages."""
        return sum(part.rss for part in psutil.Process().memory_maps(grouped=False) if part.path == path)

    def count_pages(fd: int, views: list[memoryview]) -> int:
        before = mapped()
        count = readv(fd, views)
        added_by_reads.append(mapped() - before)
        return count

    before = mapped()
    monkeypatch.setattr(os, "readv", count_pages)
    counts = []
    for size in (mmap.PAGESIZE - 2, 10, 3 * mmap.PAGESIZE, pipe.size // 2, pipe.size // 2):
        pipe.write(b"x" * size)
        counts.append(pair.intake(pipe.reader))
    assert mapped() - before >= sum(counts) > pipe.size
    assert added_by_reads == [0] * 5


def test_no_room_leaves_everything_in_the_fifo(pair: BufferPair, pipe: Pipe) -> None:
    """What does not fit as a whole stays in the FIFO until the buffers have changed roles."""
    full = pipe.fill()
    taken = 0
    while (count := pair.intake(pipe.reader)) > 0:
        taken += count
        pipe.fill()
    assert count == NO_ROOM
    assert taken == full * (SIZE // full)
    assert fifo.pending(pipe.reader) == full
    assert pair.intake(pipe.reader) == NO_ROOM
    assert pair.swap()
    assert pair.intake(pipe.reader) == full
    assert len(rest_of(pair)) == taken + full


def test_a_fifo_larger_than_a_buffer_is_still_read(
    pair: BufferPair, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the FIFO was made larger than any buffer, an empty one takes as much as it can."""
    pending = fifo.pending
    pipe.write(b"x" * 100)
    monkeypatch.setattr(fifo, "pending", lambda fd: pending(fd) + SIZE)
    assert pair.intake(pipe.reader) == 100
    assert pair.intake(pipe.reader) == NO_ROOM


def test_a_commit_of_more_than_there_is_is_refused(pair: BufferPair, pipe: Pipe) -> None:
    """Neither more than the writing buffer holds nor less than nothing is committed, and the note stays."""
    take_in(pair, pipe, b"12345")
    with pytest.raises(ValueError, match="1 bytes cannot be committed of 0 in the buffer"):
        pair.commit(1, b"note")
    pair.swap()
    before = pair.state
    for count in (6, -1):
        with pytest.raises(ValueError, match=f"{count} bytes cannot be committed of 5"):
            pair.commit(count, b"note")
    with pytest.raises(ValueError, match="a note of 4097 bytes is longer than 4096"):
        pair.commit(5, b"n" * (NOTE_SIZE + 1))
    assert (pair.state, pair.note) == (before, b"")


def test_what_is_unwritten_is_read_in_place(pair: BufferPair, pipe: Pipe) -> None:
    """The content is a view that cannot be written to, and the memory is not let go while one is in use."""
    take_in(pair, pipe, b"data")
    pair.swap()
    content = pair.unwritten()
    with pytest.raises(TypeError):
        content[0] = 0
    content.release()
    pair.commit(4)


def test_the_memory_is_not_let_go_while_it_is_read(memory: int) -> None:
    """close() refuses while a view is in use."""
    pair = BufferPair(memory)
    content = pair.unwritten()
    with pytest.raises(BufferError):
        pair.close()
    content.release()


# --- the memory ---


def test_the_state_outlives_the_object(memory: int, pipe: Pipe) -> None:
    """A process that opens the memory again finds the rest of both buffers and the last note."""
    pair = BufferPair(memory)
    take_in(pair, pipe, b"first")
    pair.swap()
    pair.commit(2, b"note")
    pair.commit(1)
    take_in(pair, pipe, b"second")
    state = pair.state
    pair.close()
    again = BufferPair(memory)
    assert (again.state, again.note) == (state, b"note")
    assert bytes(again.unwritten()) == b"st"
    assert rest_of(again) == b"stsecond"
    again.close()


@pytest.mark.parametrize("length", [0, 1, 60, NOTE_SIZE])
def test_a_note_is_any_bytes(memory: int, length: int) -> None:
    """A note comes back as it was, in place of longer and shorter ones."""
    pair = BufferPair(memory)
    for note in (b"a" * 100, os.urandom(length), b"", os.urandom(length)):
        pair.commit(0, note)
        assert pair.note == note
    pair.close()
    again = BufferPair(memory)
    assert again.note == note
    again.close()


def test_another_process_reads_the_state(memory: int, pair: BufferPair, pipe: Pipe) -> None:
    """A descriptor that cannot write is enough to read what the buffers hold."""
    read_only = os.open(f"/dev/fd/{memory}", os.O_RDONLY)
    assert buffer_memory.read_state(read_only) == State(SIZE, FIFO_SIZE)
    take_in(pair, pipe, b"12345")
    pair.swap()
    pair.commit(2)
    state = buffer_memory.read_state(read_only)
    assert state == pair.state
    assert (state.taken, state.committed, state.unwritten, state.announced) == (5, 2, 3, 0)
    os.close(read_only)


def test_the_fraction_is_one_where_the_intake_may_stop(memory: int, pair: BufferPair, pipe: Pipe) -> None:
    """The fraction rises with the intake buffer alone, and is one once a full FIFO does not fit any more."""
    fractions = [pair.state.fraction]
    pipe.write(b"x" * (PIPE_BUF // 2))
    while pair.intake(pipe.reader) > 0:
        fractions.append(pair.state.fraction)
        pipe.write(b"x" * min(PIPE_BUF * 32, pipe.size))
    assert fractions[0] == 0
    assert fractions == sorted(fractions)
    assert fractions[1] == PIPE_BUF / 2 / (SIZE - FIFO_SIZE)
    assert fractions[-1] == 1
    assert pair.swap()
    assert buffer_memory.read_state(memory).fraction == 0


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="elsewhere the blocks are allocated at once")
def test_a_light_load_uses_little_memory(memory: int, pair: BufferPair, pipe: Pipe) -> None:
    """However much goes through in small pieces, the same few pages carry it."""
    for _ in range(2000):
        pipe.write(b"x" * 3000)
        assert pair.intake(pipe.reader) == 3000
        assert pair.swap()
        pair.commit(3000)
    assert os.fstat(memory).st_blocks * 512 <= 10 * mmap.PAGESIZE


def test_buffers_that_could_cut_a_frame_are_refused() -> None:
    """A buffer is at least twice as large as the FIFO, and of whole pages."""
    for size, fifo_size in ((SIZE - mmap.PAGESIZE, 65536), (SIZE, SIZE), (0, 0), (-1, 0), (SIZE + 1, 65536)):
        with pytest.raises(ValueError, match=f"buffers of {size} bytes: they must be .* at least twice as large"):
            buffer_memory.create(size, fifo_size)
    fd = buffer_memory.create()
    assert buffer_memory.read_state(fd).size == buffer_memory.DEFAULT_SIZE == 8 * 2**20
    os.close(fd)


def test_without_anonymous_memory_an_unlinked_file_does(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe, tmp_path: Path
) -> None:
    """Where there is no memfd, the memory is a file without a name, all of its blocks allocated."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fd = buffer_memory.create(SIZE)
    status = os.fstat(fd)
    assert list(tmp_path.iterdir()) == []
    assert not os.get_inheritable(fd)
    assert status.st_nlink == 0
    assert status.st_blocks * 512 >= status.st_size > 2 * SIZE
    pair = BufferPair(fd)
    pipe.write(b"data")
    assert pair.intake(pipe.reader) == 4
    pair.close()
    assert seen(fd) == (b"", b"data", 4, 0)
    os.close(fd)


def test_a_full_disk_is_an_error_when_the_memory_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No room for the buffers is told at once, and nothing stays open."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened: list[int] = []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        opened.append(fd)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"):
        buffer_memory.create(SIZE)
    monkeypatch.undo()
    assert [fifo.is_open(fd) for fd in opened] == [False]


def damage(memory: int, where: str) -> None:
    """Break something in the memory."""
    if where == "empty":
        os.ftruncate(memory, 0)
    elif where == "cut":
        os.ftruncate(memory, os.fstat(memory).st_size - 1)
    elif where == "zeros":
        os.pwrite(memory, bytes(buffer_memory.START), 0)
    elif where == "noise":
        os.pwrite(memory, os.urandom(buffer_memory.START), 0)
    elif where == "version":
        os.pwrite(memory, struct.pack("=Q", 3), 8)
    elif where == "size":
        os.pwrite(memory, struct.pack("=Q", SIZE // 2), 16)
    elif where == "states":
        for start in buffer_memory.SLOTS:
            os.pwrite(memory, b"\xff", start + 20)
    else:
        assert where == "note"
        os.pwrite(memory, b"X", buffer_memory.NOTES[1])


@pytest.mark.parametrize(
    "where, message",
    [
        ("empty", "is not the memory of a pair of buffers"),
        ("cut", "is damaged: .* bytes for three of"),
        ("zeros", "is not the memory of a pair of buffers"),
        ("noise", "is not the memory of a pair of buffers"),
        ("version", "buffers of version 3 were made by another release of mplog; this is 2"),
        ("size", "is damaged: .* bytes for three of 1048576"),
        ("states", "is damaged: neither of its two states is valid"),
        ("note", "is damaged: the note does not fit its checksum"),
    ],
)
def test_damaged_memory_is_a_clear_error(memory: int, where: str, message: str) -> None:
    """What is not the memory of a pair, or is broken, is refused, and not taken for records."""
    pair = BufferPair(memory)
    pair.commit(0, b"note")
    pair.close()
    damage(memory, where)
    with pytest.raises(ValueError, match=message):
        BufferPair(memory)
    if where != "note":
        with pytest.raises(ValueError, match=message):
            buffer_memory.read_state(memory)


# --- killed ---


def test_a_read_that_was_made_counts_and_one_that_was_not_does_not(
    pair: BufferPair, camera: Camera, pipe: Pipe
) -> None:
    """Killed before the read, the bytes are still in the FIFO; killed after it, they are in the buffer."""
    take_in(pair, pipe, b"old")
    camera.forget()
    take_in(pair, pipe, b"new")
    before, after = (b"", b"old", 3, 0), (b"", b"oldnew", 6, 0)
    assert camera.develop() == [
        ("in state", before),  # the announcement
        ("before read", before),
        ("after read", after),
        ("in state", after),
    ]


@pytest.mark.parametrize("position", [0, 1, 3, mmap.PAGESIZE - 3, mmap.PAGESIZE, 3 * mmap.PAGESIZE - 8])
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
@pytest.mark.parametrize("length", [8, 9, 4095, 4096, 4097, 100_000])
def test_a_read_is_noticed_wherever_it_is_and_whatever_it_brings(
    pair: BufferPair, camera: Camera, pipe: Pipe, position: int, byte: bytes, length: int
) -> None:
    """Of any length, at any place of a page, also nothing but zeros, also where the same bytes were before."""
    for _ in range(2):
        # Both buffers hold these bytes at this place from before.
        take_in(pair, pipe, byte * 200_000)
        rest_of(pair)
    old = pipe.write(b"o" * position)
    pair.intake(pipe.reader)
    camera.forget()
    new = pipe.write(byte * length)
    pair.intake(pipe.reader)
    pictures = {point: (rest, taken) for point, (_, rest, taken, _) in camera.develop() if point != "in state"}
    taken = 400_000 + position
    assert pictures == {"before read": (old, taken), "after read": (old + new, taken + length)}


def test_a_kill_in_the_recovery_changes_nothing(pair: BufferPair, camera: Camera, pipe: Pipe) -> None:
    """A process that is killed while it finds out whether a read was made leaves the same answer to the next."""
    take_in(pair, pipe, b"data")
    answers = {"before read": (b"", b"", 0, 0), "after read": (b"", b"data", 4, 0)}
    for point, copy in camera.pictures[1:3]:
        memory = os.dup(copy)
        with pytest.MonkeyPatch.context() as monkeypatch:
            recovery = Camera(memory, monkeypatch)
            BufferPair(memory).close()
            reached = recovery.develop()
        assert [name for name, _ in reached] == ["in recovery", "in state"]
        assert {answer for _, answer in reached} == {answers[point]}
        os.close(memory)


def test_a_swap_and_a_commit_happen_at_one_instant(pair: BufferPair, camera: Camera, pipe: Pipe) -> None:
    """Before its point a kill leaves the old state, after it the new one, with the note that belongs to it."""
    take_in(pair, pipe, b"data")
    pair.commit(0, b"old")
    camera.forget()
    pair.swap()
    pair.commit(3, b"new")
    pair.commit(1)
    first, second, third = (b"old", b"data", 4, 0), (b"new", b"a", 4, 3), (b"new", b"", 4, 4)
    assert camera.develop() == [
        ("before swap", first),
        ("in state", first),
        ("after swap", first),
        ("before commit", first),
        ("in state", first),
        ("after commit", second),
        ("before commit", second),
        ("in state", second),
        ("after commit", third),
    ]


def test_what_stays_of_the_intake_buffer_takes_its_place_at_one_instant(
    pair: BufferPair, camera: Camera, pipe: Pipe
) -> None:
    """A kill leaves all that was there or what stays of it, in its place after what is just being written."""
    take_in(pair, pipe, b"first")
    pair.swap()
    take_in(pair, pipe, b"second")
    pair.commit(1)
    camera.forget()
    before, after = (b"", b"irstsecond", 11, 1), (b"", b"irstond", 11, 1)
    assert pair.replace(lambda content: bytes(content[3:])) == 3
    assert camera.develop() == [("before replace", before), ("in state", before), ("after replace", after)]
    assert bytes(pair.unwritten()) == b"irst"
    take_in(pair, pipe, b"third")
    assert pair.replace(lambda content: None) == 0
    with pytest.raises(ValueError, match="9 bytes in the place of 8: what stays must not be longer"):
        pair.replace(lambda content: bytes(content) + b"!")
    assert pair.replace(lambda content: b"") == 8
    take_in(pair, pipe, b"fourth")
    assert rest_of(pair) == b"irstfourth"
    assert (pair.state.taken, pair.committed) == (22, 22)


def test_a_replacement_moves_nothing_of_the_writing_buffer(pair: BufferPair, memory: int, pipe: Pipe) -> None:
    """Whichever places the buffers are in, the next process finds what of one is written, and where that begins."""
    for number in range(7):
        data = b"%d123456789" % number
        take_in(pair, pipe, data)
        assert pair.replace(lambda content: bytes(content[4:])) == 4
        assert pair.swap()
        pair.commit(2)
        take_in(pair, pipe, b"and later")
        assert pair.replace(lambda content: bytes(content[3:])) == 3
        after = BufferPair(memory)
        assert (bytes(after.written()), bytes(after.unwritten())) == (data[4:6], data[6:])
        assert after.base == pair.base == 19 * number
        assert pair.committed == 19 * number + 2
        after.close()
        pair.commit(4)
        assert pair.committed == 19 * number + 10
        assert rest_of(pair) == b" later"
        assert pair.committed == pair.state.taken == 19 * number + 19


def test_what_is_dropped_is_not_over_before_the_rest_of_its_buffer(pair: BufferPair, pipe: Pipe) -> None:
    """Waiting until everything is written includes what stays of a buffer, however much after it was dropped."""
    take_in(pair, pipe, b"writing")
    pair.swap()
    take_in(pair, pipe, b"kept")
    due = pair.due(pipe.reader)
    take_in(pair, pipe, b"dropped")
    pair.replace(lambda content: bytes(content[:4]))
    pair.commit(7)
    assert pair.committed < due
    pair.swap()
    pair.commit(4)
    assert pair.committed == pair.state.taken > due


def test_room_made_by_a_replacement_is_used(pair: BufferPair, pipe: Pipe) -> None:
    """Where a full FIFO does not fit any more, it does when something has been taken out, and no swap was needed."""
    pipe.fill()
    while pair.intake(pipe.reader) > 0:
        pipe.fill()
    assert pair.intake(pipe.reader) == NO_ROOM
    assert pair.replace(lambda content: bytes(content[pipe.size :])) == pipe.size
    assert pair.intake(pipe.reader) > 0


class Recorder:
    """Stands for the memory of a pair, and keeps the addresses and the bytes of every store into it."""

    def __init__(self, memory: memoryview, stores: list[tuple[list[int], bytes]]) -> None:
        self.memory, self.stores = memory, stores
        self.looked_at: list[int] = []

    def __getitem__(self, key: slice) -> memoryview:
        self.looked_at = list(range(len(self.memory))[key])
        return self.memory[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.memory[key] = value
        if isinstance(key, int):
            width = self.memory.itemsize
            key, value = slice(key * width, (key + 1) * width), self.memory[key : key + 1].tobytes()
        self.stores.append((list(range(self.memory.nbytes)[key]), bytes(value)))


def torn(image: bytearray, stores: list[tuple[list[int], bytes]], whole: int) -> Iterator[None]:
    """Replay stores into an image, and stop after every byte, first to last and last to first.

    Store number `whole` is one of the kernel, which is made in one step.
    """
    for number, (addresses, data) in enumerate(stores):
        pairs = list(zip(addresses, data, strict=True))
        for order in (pairs, pairs[::-1]):
            before = bytes(image[address] for address in addresses)
            for address, byte in order:
                image[address] = byte
                if number != whole:
                    yield
            if order is pairs and number != whole:
                for address, byte in zip(addresses, before):
                    image[address] = byte
        yield


def test_killed_after_any_byte_the_state_is_the_old_or_the_new_one(
    memory: int, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after every single byte, in either order, each change has happened as a whole or not at all."""
    pair = BufferPair(memory)
    stores: list[tuple[list[int], bytes]] = []
    reads: list[int] = []
    scratch = copy_of(memory)
    readv = os.readv

    def record_readv(fd: int, views: list[memoryview]) -> int:
        count = readv(fd, views)
        reads.append(len(stores))
        stores.append((recorder.looked_at, bytes(views[0])))
        return count

    def look(image: bytearray) -> tuple[Any, ...]:
        view = memoryview(image)
        for start in (0, *(buffer_memory.START + place * SIZE for place in range(3))):
            os.pwrite(scratch, view[start : start + buffer_memory.START], start)
        return seen(scratch)

    def check(operation: Any) -> None:
        image = bytearray(os.pread(memory, buffer_memory.START + 3 * SIZE, 0))
        old = look(image)
        stores.clear()
        reads.clear()
        operation()
        new = look(bytearray(os.pread(memory, buffer_memory.START + 3 * SIZE, 0)))
        last, _ = stores[-1]
        assert last in [list(range(slot, slot + 8)) for slot in buffer_memory.SLOTS], "the number is not the last store"
        looks = [look(image) for _ in torn(image, stores, reads[0] if reads else -1)]
        assert looks[-1] == new
        assert set(looks) == {old, new}
        assert looks[0] == old
        assert len(looks) > 200

    recorder = Recorder(pair.memory.view, stores)
    monkeypatch.setattr(pair.memory, "view", recorder)
    monkeypatch.setattr(pair.memory, "words", Recorder(pair.memory.words, stores))
    monkeypatch.setattr(os, "readv", record_readv)
    while pair.memory.sequence < 250:  # the numbers pass 256, so that more than one of their bytes changes
        pair.commit(0)
    pair.commit(0, b"first note")
    pipe.write(b"a" * 100)
    check(lambda: pair.intake(pipe.reader))
    pipe.write(b"b" * 5000)
    check(lambda: pair.intake(pipe.reader))
    check(pair.swap)
    check(lambda: pair.commit(700))
    check(lambda: pair.commit(400, b"a second note"))
    check(lambda: pair.commit(0, b"a third one"))
    pipe.write(b"c" * 600)
    check(lambda: pair.intake(pipe.reader))
    check(lambda: pair.replace(lambda content: b"C" * (len(content) - 100)))
    check(lambda: pair.commit(4000, b""))
    check(lambda: pair.replace(lambda content: b"d" + bytes(content[1:300])))
    check(pair.swap)
    pipe.write(b"e" * 600)
    check(lambda: pair.intake(pipe.reader))
    check(lambda: pair.replace(lambda content: b"f" * 10))
    check(lambda: pair.commit(300))
    check(pair.swap)
    assert pair.memory.sequence > 260
    monkeypatch.undo()
    assert rest_of(pair) == b"f" * 10
    pair.close()
    os.close(scratch)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 3 * PIPE_BUF)),
        st.tuples(st.just("fill"), st.just(0)),
        st.tuples(st.just("intake"), st.just(0)),
        st.tuples(st.just("swap"), st.just(0)),
        st.tuples(st.just("commit"), st.integers(0, 100)),
        st.tuples(st.just("replace"), st.integers(0, 100)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=60,
)


@given(OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_whatever_is_done_the_bytes_come_out_as_they_went_in(operations: list[tuple[str, int]]) -> None:
    """Any order of writes, intakes, swaps, commits of a part, and reopenings keeps every byte, once, in order."""
    memory, pipe = buffer_memory.create(SIZE), Pipe()
    pair = BufferPair(memory)
    sent, received, note, dropped = bytearray(), bytearray(), b"", 0
    # Of what was dropped: in the intake buffer, in the writing buffer, and with everything before it written.
    in_intake = in_writing = passed = 0
    try:
        for number, (what, amount) in enumerate([*operations, ("rest", 0)]):
            if what in ("write", "fill"):
                piece = bytes([number % 251]) * (amount or pipe.size)
                try:
                    for start in range(0, len(piece), PIPE_BUF):
                        sent += piece[start : start + os.write(pipe.writer, piece[start : start + PIPE_BUF])]
                except BlockingIOError:
                    pass
            elif what == "intake":
                pair.intake(pipe.reader)
            elif what == "swap":
                if pair.swap():
                    in_writing, in_intake = in_intake, 0
            elif what == "commit":
                content = bytes(pair.unwritten())
                count, note = len(content) * amount // 100, b"%d" % number
                received += content[:count]
                pair.commit(count, note)
            elif what == "replace":
                # The intake buffer holds the last bytes that were taken in.
                state = pair.state
                kept = state.fill * amount // 100
                assert pair.replace(lambda content, kept=kept: bytes(content[:kept])) == state.fill - kept  # type: ignore[misc]
                del sent[state.taken - dropped - (state.fill - kept) : state.taken - dropped]
                dropped += state.fill - kept
                in_intake += state.fill - kept
                if not kept:
                    in_writing, in_intake = in_writing + in_intake, 0
            elif what == "reopen":
                pair.close()
                pair = BufferPair(memory)
            else:
                received += rest_of(pair)
                while pair.intake(pipe.reader) > 0:
                    received += rest_of(pair)
                passed = dropped
            if not len(pair.unwritten()):
                passed, in_writing = passed + in_writing * (what != "rest"), 0
            assert pair.note == note
            assert (pair.state.committed, pair.state) == (len(received) + passed, buffer_memory.read_state(memory))
        assert received == sent
    finally:
        pair.close()
        pipe.close()
        os.close(memory)


# --- killed for real ---


def kill(
    directory: Path, kills: list[str | None], seed: int, timeout: float = 60, replaces: bool = False
) -> dict[str, Any]:
    """Run writers, and logging processes that are killed; hold what must hold, and return what happened."""
    order = {"directory": str(directory), "writers": 3, "seed": seed, "kills": kills, "replaces": replaces}
    done = jobs.run_python([PROGRAM, json.dumps(order)], timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["ends"] == [-9] * len(kills) + [0] * 4
    assert {name: result[name] for name in ("lost", "doubled", "disordered", "torn")} == {
        "lost": 0, "doubled": 0, "disordered": 0, "torn": 0,
    }  # fmt: skip
    assert result["written"] == result["acknowledged"] > len(kills)
    return result


@pytest.mark.processes
def test_a_process_killed_at_random_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Sixty processes in a row are killed at random moments, and every frame is in the file, once, in order."""
    kill(tmp_path, [None] * 60, seed=1)


@pytest.mark.processes
def test_a_process_killed_while_it_replaces_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Frames that are shortened in the intake buffer are there once, as they were or shortened."""
    result = kill(tmp_path, [None] * 40, seed=4, replaces=True)
    assert result["shortened"] > 40


@pytest.mark.processes
@pytest.mark.parametrize(
    "point", [point for point in faults.POINTS if not point.endswith(("write", "say", "remove", "recovery"))]
)
def test_a_process_killed_at_a_point_loses_doubles_and_tears_nothing(tmp_path: Path, point: str) -> None:
    """Killed at the first, second, ... time that it gets there, each time by another process."""
    result = kill(tmp_path, [f"{point}:{number}" for number in range(1, 9)], seed=2, replaces=point.endswith("replace"))
    if point == "after read":
        assert (result["found_made"], result["found_not_made"]) == (8, 0)
    elif point == "before read":
        assert (result["found_made"], result["found_not_made"]) == (0, 8)


@pytest.mark.processes
@pytest.mark.parametrize("point", ["before read", "after read"])
def test_a_process_killed_in_its_recovery_loses_doubles_and_tears_nothing(tmp_path: Path, point: str) -> None:
    """Two more processes die while they find out whether the read was made, and the third goes on."""
    result = kill(tmp_path, [f"{point}:3", "in recovery", "in state", "in recovery"] * 5, seed=3)
    found = result["found_made"], result["found_not_made"]
    assert found == ((5, 0) if point == "after read" else (0, 5))


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_kills(tmp_path: Path, seed: int) -> None:
    """A hundred kills with each of ten seeds."""
    result = kill(tmp_path, [None] * 100, seed=100 + seed, timeout=300)
    result.pop("ends")
    print(json.dumps(result))
    (tmp_path / "log").unlink()
