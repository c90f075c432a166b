"""Lines of other programs as records: `Capture`.

::

    command --- stdout, stderr (pipes) ---> Capture, a thread ---> a record for each line ---> LogQueue
                                               '------ after the server has ended ------> stdout, stderr of mplog run

The rule of this file: **whatever a program writes, memory is bounded and nothing is lost silently.** While the log is
full, the pipe fills, and the program waits as it would for a slow terminal.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from mplog.errors import NoReaderError
from mplog.files.outlet import Outlet
from mplog.queue import fifo
from mplog.worker.queue_handler import QueueHandler
from mplog.worker.state import all_loggers

#: Bytes of a line above which it becomes several records. As much as a pipe holds on Linux.
LONGEST_LINE = 65536
#: The end of each piece of such a line, except the last.
GOES_ON = " [the line goes on]"


class Lines:
    """Turns bytes into lines of text, and a line with more than `longest` bytes into pieces.

    Progress bars overwrite a line with carriage returns. Only the text after the last one is kept, which is what a
    terminal would show. Bytes that are not UTF-8 become escapes.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._rest = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the lines that `data` ends, without their line feeds, and pieces of one that is too long."""
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            # A carriage return before the line feed is part of the line's end.
            yield from self._pieces(_shown(line.removesuffix(b"\r")), is_end=True)
        # After a carriage return at the very end, a line feed may follow.
        self._rest = _shown(rest[:-1]) + rest[-1:]
        if len(self._rest) > self._longest:
            keep = b"\r" if self._rest.endswith(b"\r") else b""
            yield from self._pieces(self._rest.removesuffix(b"\r"), is_end=False)
            self._rest = keep

    def end(self) -> Iterator[str]:
        """Yield the last line, if it has no end."""
        line, self._rest = self._rest.removesuffix(b"\r"), b""
        if line or self._decoder.getstate()[0]:
            yield from self._pieces(_shown(line), is_end=True)

    def _pieces(self, line: bytes, *, is_end: bool) -> Iterator[str]:
        pieces = [line[start : start + self._longest] for start in range(0, len(line), self._longest)] or [b""]
        for piece in pieces[:-1]:
            yield self._decoder.decode(piece) + GOES_ON
        last = self._decoder.decode(pieces[-1], is_end)
        if is_end:
            self._decoder.reset()
        yield last if is_end else last + GOES_ON


def _shown(line: bytes) -> bytes:
    """Return what a terminal would still show: the text after the last carriage return."""
    return line[line.rfind(b"\r") + 1 :]


class Capture:
    """Reads pipes and logs their lines, in a thread. Calls `tell` before the first line that passes through.

    Args:
        streams: for each pipe, its reading end, the logger, the level, and the descriptor that gets its lines after the
            server has ended.
    """

    def __init__(self, streams: Iterable[tuple[int, logging.Logger, int, int]], tell: Callable[[], object]) -> None:
        streams = list(streams)
        self._streams = {fd: (logger, level, Lines()) for fd, logger, level, _ in streams}
        self._outputs = {logger.name: Outlet(output) for _, logger, _, output in streams}
        self._tell = tell
        self.passed_through = 0
        for handler in {handler for logger in all_loggers().values() for handler in logger.handlers}:
            if isinstance(handler, QueueHandler):
                handler.fall_back = self._fall_back(handler.fall_back)  # type: ignore[assignment, method-assign]
        self._is_over, self._end_it = os.pipe()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> list[str]:
        """Wait until all processes have closed the pipes; return the names of the loggers whose pipes are still open.

        What is in the pipes after `timeout` seconds is still read.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            os.write(self._end_it, b"x")
            self._thread.join()
        os.close(self._end_it)
        os.close(self._is_over)
        return [logger.name for logger, _, _ in self._streams.values()]

    def _fall_back(self, fall_back: Callable[..., None]) -> Callable[[logging.LogRecord, NoReaderError], None]:
        """Return a handler's `fall_back`: a captured line passes through, another record takes the usual way."""

        def pass_through(record: logging.LogRecord, error: NoReaderError) -> None:
            output = self._outputs.get(record.name)
            if output is None:
                fall_back(record, error)
                return
            if not self.passed_through:
                self._tell()
            self.passed_through += 1
            with contextlib.suppress(OSError):  # nobody reads the output either
                output.write(f"{record.getMessage()}\n".encode())

        return pass_through

    def _run(self) -> None:
        for fd in self._streams:
            os.set_blocking(fd, False)
        ready: Any = ()
        while self._streams and self._is_over not in ready:
            ready = wait([*self._streams, self._is_over])
            for end in ready:
                if end != self._is_over and not self._read(end):
                    self._end(end)
        for fd in list(self._streams):
            is_open = self._read_rest(fd)
            self._end(fd, is_open=is_open)

    def _read(self, fd: int) -> bool:
        """Read what is in a pipe; return whether more may come."""
        try:
            data = os.read(fd, LONGEST_LINE)
        except BlockingIOError:
            return True
        logger, level, lines = self._streams[fd]
        for line in lines.feed(data):
            logger.log(level, line)
        return bool(data)

    def _read_rest(self, fd: int) -> bool:
        """Read what is in a pipe now, and no more: its writer may never stop. Return what `_read` does."""
        for _ in range(0, fifo.pending(fd), LONGEST_LINE):
            if not self._read(fd):
                return False
        return self._read(fd)

    def _end(self, fd: int, *, is_open: bool = False) -> None:
        logger, level, lines = self._streams[fd]
        for line in lines.end():
            logger.log(level, line)
        with contextlib.suppress(OSError):
            os.close(fd)
        if not is_open:
            del self._streams[fd]
