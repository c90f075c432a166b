"""The rate of the pipe itself: bytes of the size of a record, written and read, and nothing else."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from benchmarks.contender import Contender

__all__ = ["PipeLimit"]

_PIPE_SIZE = 2**20
_F_SETPIPE_SZ = 1031
#: Bytes of a record of mplog without its message, about.
_OVERHEAD = 160
#: The longest write, as in the queue.
_PIPE_BUF = 4096


class PipeLimit(Contender):
    """Workers that write into a pipe, and a reader that discards the bytes."""

    title = "the pipe alone"
    note = "os.write of as many bytes, os.read by the MiB, no logging"

    def start(self) -> None:
        reader, self.writer_fd = os.pipe()
        fcntl.fcntl(self.writer_fd, _F_SETPIPE_SZ, _PIPE_SIZE)
        self._size, self._total = multiprocessing.RawValue("q", 0), multiprocessing.RawValue("q", 0)
        self._drained, self._end = multiprocessing.Event(), multiprocessing.Event()
        self._reader = multiprocessing.Process(target=self._read, args=(reader,), daemon=True)
        self._reader.start()
        os.close(reader)

    def _read(self, reader: int) -> None:
        """Runs in the reading process."""
        os.close(self.writer_fd)
        while data := os.read(reader, _PIPE_SIZE):
            self._total.value += len(data)
        self._drained.set()
        self._end.wait()

    def worker(self) -> Callable[..., object]:
        write, pipe = os.write, self.writer_fd
        pieces: list[bytes] = []

        def info(template: Any, number: int, payload: str) -> None:
            if not pieces:
                size = len(payload) + _OVERHEAD
                self._size.value = size
                pieces.extend(bytes(min(_PIPE_BUF, size - at)) for at in range(0, size, _PIPE_BUF))
            for piece in pieces:
                write(pipe, piece)

        return info

    def services(self) -> list[int]:
        return [self._reader.pid or 0]

    def drain(self) -> None:
        os.close(self.writer_fd)
        self._drained.wait(60)

    def close(self) -> None:
        self._end.set()
        self._reader.join(10)

    def delivered(self, payload: str) -> int:
        return int(self._total.value // (self._size.value or 1))
