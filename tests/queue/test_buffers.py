"""The pair of buffers: taking in, writing, and the memory."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from buffer_use import PIPE_BUF, SIZE, Pipe, rest_of, seen, take_in

from mplog.queue import buffer_memory, fifo
from mplog.queue.buffer_memory import FIFO_SIZE, NOTE_SIZE, State
from mplog.queue.buffers import END, NO_ROOM, NOTHING, BufferPair
from mplog.queue.descriptor import what_is

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


def refuse_memory(name: str) -> int:
    """What memfd_create(2) does where a seccomp filter refuses it."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


def make_unnamed(directory: str) -> Callable[[str], int]:
    """Return what makes files without a name in one directory alone."""
    make = buffer_memory._unnamed_file

    def unnamed_file(asked: str) -> int:
        if asked != directory:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", asked)
        return make(asked)

    return unnamed_file


@pytest.mark.parametrize("how", ["missing", "refused"])
def test_without_anonymous_memory_an_unlinked_file_does(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe, tmp_path: Path, how: str
) -> None:
    """Where there is no memfd, or it is refused, the memory is a file without a name, all of its blocks allocated."""
    if how == "missing":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr(os, "memfd_create", refuse_memory, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(buffer_memory, "_unnamed_file", make_unnamed(str(tmp_path)))
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


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_memory_that_is_a_file_needs_no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where memfd_create(2) is refused, the file is one in /dev/shm if it has room."""
    monkeypatch.setattr(os, "memfd_create", refuse_memory, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    fd = buffer_memory.create(SIZE)
    assert os.fstat(fd).st_dev == os.stat("/dev/shm").st_dev
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_a_full_disk_is_an_error_when_the_memory_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No room for the buffers is told at once, with how much they need, and nothing stays open."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened: list[int] = []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        opened.append(fd)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match=r"they take 14,696,448 bytes, and .*No space left"):
        buffer_memory.create(SIZE)
    monkeypatch.undo()
    assert opened
    assert not any(map(what_is, opened))


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
        os.pwrite(memory, struct.pack("=Q", 4), 8)
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
        ("version", "buffers of version 4 were made by another release of mplog; this is 3"),
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
