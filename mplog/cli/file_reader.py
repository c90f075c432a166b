"""Reading one file of a log, from a place on, in whole lines as far as possible."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import IO

from mplog.errors import MplogError
from mplog.files.compression import SUFFIXES, decompress

#: Bytes that are read at a time.
CHUNK = 2**20
#: A line that is longer, in bytes, comes in pieces, so that memory is bounded. Each piece but the last is this long or
#: longer.
LONGEST_LINE = 4 * CHUNK
#: The endings of compressed logs.
COMPRESSED = tuple(SUFFIXES.values())
#: Bytes before the current place that are remembered: more than a logging process writes between two commits.
_REMEMBERED = 2**20
#: This many of them show whether a file is still the same.
_CONTEXT = 256


def open_log(path: str) -> int:
    """Open a log, and return the descriptor; raises MplogError, which says why it cannot be read."""
    try:
        # Before it is opened: opening the FIFO of a queue, even for an instant, would disturb its server.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MplogError(f"{path} is not a regular file. Name a log file.")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MplogError(
            f"{path} does not exist. mplog tail --server finds the files of a running server; mplog top lists them."
        ) from None
    except PermissionError:
        raise MplogError(f"{path} may not be read by this user. mplog creates log files with mode 640.") from None
    except OSError as error:
        raise MplogError(f"{path} cannot be read: {error.strerror}") from None


def open_compressed(path: str, name: str = "") -> IO[bytes]:
    """Open a compressed log; `name` is its name if `path` is a descriptor's. Raises MplogError without Zstandard."""
    try:
        return decompress(path, "gz" if (name or path).endswith(SUFFIXES["gz"]) else "zst")
    except ModuleNotFoundError as error:
        raise MplogError(f"{name or path} cannot be read: {error}") from None


def read_lines(fd: int, offset: int) -> bytes:
    """Return the bytes at a place, with the end of a line in them if that is not too far away."""
    size = CHUNK
    while True:
        data = os.pread(fd, size, offset)
        if b"\n" in data or len(data) < size or size >= LONGEST_LINE:
            return data
        size *= 2


@dataclass
class FileReader:
    """A file that is being read.

    Attributes:
        source: the unpacked bytes of a compressed file; None for any other.
        name: of a compressed file, when it was opened.
        recent: the last bytes before `offset`.
        changed_at: the time of the file's last change (ctime) when the reader left it.
    """

    fd: int
    source: IO[bytes] | None = None
    name: str = ""
    offset: int = 0
    recent: bytearray = field(default_factory=bytearray)
    changed_at: int = 0

    @classmethod
    def at(cls, fd: int, offset: int) -> FileReader:
        """Return a reader that begins in the middle of a file, and remembers what stands before."""
        start = max(0, offset - _REMEMBERED)
        return cls(fd, offset=offset, recent=bytearray(os.pread(fd, offset - start, start)))

    def status(self) -> os.stat_result:
        return os.fstat(self.fd)

    def is_at(self, status: os.stat_result) -> bool:
        """Return whether this is the file with a status."""
        return os.path.samestat(self.status(), status)

    @property
    def place(self) -> tuple[int, bytes]:
        """How far it has been read, and some bytes that stand before."""
        return self.offset, bytes(self.recent[-_CONTEXT:])

    def go_to(self, offset: int, before: bytes) -> bool:
        """Go to a place, and return whether these bytes stand before it."""
        self.offset = offset
        if self.source is None:
            return os.pread(self.fd, len(before), offset - len(before)) == before
        try:
            self.source.seek(offset - len(before))
            return self.source.read(len(before)) == before
        except Exception:  # each format raises errors of its own
            return False

    def read(self) -> bytes:
        """Return what follows, b"" at the end; raises MplogError if it cannot be unpacked."""
        if self.source is None:
            return read_lines(self.fd, self.offset)
        try:
            data = self.source.read(CHUNK)
            return data if data[-1:] in (b"", b"\n") else data + self.source.readline(LONGEST_LINE)
        except Exception as error:  # each format raises errors of its own
            raise MplogError(f"the rotated file {self.name} cannot be unpacked: {error}") from None

    def read_whole_lines(self) -> bytes:
        """Return what follows up to the end of a line, b"" if there is none. Compressed files do not grow."""
        data = self.read()
        end = data.rfind(b"\n") + 1
        return data if self.source is not None or (not end and len(data) >= LONGEST_LINE) else data[:end]

    def unchanged(self) -> int:
        """Return how much of what was read is unchanged, in whole lines; 0 if it is another file."""
        start = self.offset - len(self.recent)
        now = os.pread(self.fd, len(self.recent), start)
        length = len(now)
        if not self.recent.startswith(now):
            length = next(index for index, (new, old) in enumerate(zip(now, self.recent)) if new != old)
        end = now.rfind(b"\n", 0, length) + 1
        return start + end if end else 0

    def cut_back(self, offset: int) -> bytes:
        """Go back to a place, and return what was read after it, as far as it is remembered."""
        cut = max(0, len(self.recent) - (self.offset - offset))
        again = bytes(self.recent[cut:])
        del self.recent[cut:]
        self.offset = offset
        return again

    def note(self, data: bytes) -> None:
        """Go on after what was read."""
        self.offset += len(data)
        self.recent += data
        if len(self.recent) > 2 * _REMEMBERED:
            del self.recent[:-_REMEMBERED]

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
        os.close(self.fd)
