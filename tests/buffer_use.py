"""What tests of the pair of buffers do: write into a pipe, take in, and look at the memory as a kill would leave it."""

from __future__ import annotations

import errno
import os
import select

import pytest

from mplog.queue import buffer_memory, buffers, fifo
from mplog.queue.buffer_memory import FIFO_SIZE
from mplog.queue.buffers import BufferPair
from mplog.queue.descriptor import what_is

SIZE = 2 * FIFO_SIZE
PIPE_BUF = select.PIPE_BUF


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
            if what_is(fd):
                os.close(fd)


def take_in(pair: BufferPair, pipe: Pipe, data: bytes) -> None:
    """Write data into the pipe, and read it into the intake buffer."""
    pipe.write(data)
    pair.intake(pipe.reader)


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
