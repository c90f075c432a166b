"""Reading a log that grows, whatever happens to its file.

The rule of this file: **nothing is missed, and nothing comes twice.** A file that is renamed is read to its end before
the next one; files that have come and gone between two looks are found by their names and times, compressed or not; a
file that is copied and emptied goes on in its copy. A logging process that was killed is followed by one that cuts the
file back and writes the rest again: those lines are known, and skipped.

Only whole lines are given out, so that what is cut back never ends in the middle of one; but of a line that is longer
than anybody wants to hold in memory, pieces.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import stat
import time
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from mplog.errors import MplogError
from mplog.files.compression import SUFFIXES, decompress

__all__ = ["CHUNK", "LONGEST_LINE", "Follower", "open_compressed", "open_log", "read_lines"]

#: Bytes that are read at a time.
CHUNK = 2**20
#: Bytes of a line above which it comes in pieces, each of them of so many at least but the last.
LONGEST_LINE = 4 * CHUNK
#: Bytes before the place where it reads that are remembered: more than a logging process writes between two commits.
_REMEMBERED = 2**20
#: So many bytes before the place where it reads tell whether the file is still the same.
_CONTEXT = 256
#: For so many seconds behind a cut, lines that were there before are expected again: a restart takes less.
_AGAIN_SECONDS = 10.0
#: So many times it looks for the next file while files are renamed, before it waits for a moment.
_ATTEMPTS = 10
#: Files that were read before and are kept open, in case a rotation is taken back.
_KEPT = 4
_COMPRESSED = tuple(SUFFIXES.values())


def open_log(path: str) -> int:
    """Open a log, and return the descriptor.

    Raises:
        MplogError: it cannot be read; the message says why.
    """
    try:
        # Before it is opened: to open the FIFO of a queue, even for an instant, would disturb its server.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MplogError(f"{path} is not a regular file. Name a log file.")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MplogError(
            f"{path} does not exist. mplog tail --server finds the files of a server that runs; mplog top lists them."
        ) from None
    except PermissionError:
        raise MplogError(f"{path} may not be read by this user. Log files are made with mode 640.") from None
    except OSError as error:
        raise MplogError(f"{path} cannot be read: {error.strerror}") from None


def open_compressed(path: str, name: str = "") -> IO[bytes]:
    """Open a compressed log.

    Args:
        path: where it is.
        name: what it is called, if `path` is a descriptor's.

    Raises:
        MplogError: it is compressed with Zstandard, which is missing.
        OSError: it cannot be opened.
    """
    try:
        return decompress(path, "gz" if (name or path).endswith(SUFFIXES["gz"]) else "zst")
    except ModuleNotFoundError as error:
        raise MplogError(f"{name or path} cannot be read: {error}") from None


def read_lines(fd: int, offset: int) -> bytes:
    """Return what stands there, with the end of a line in it if that is not too far away."""
    size = CHUNK
    while True:
        data = os.pread(fd, size, offset)
        if b"\n" in data or len(data) < size or size >= LONGEST_LINE:
            return data
        size *= 2


@dataclass
class _File:
    """A file that is read.

    Attributes:
        fd: the descriptor; -1 for a compressed file.
        source: a compressed file, or a copy; None for any other.
        name: of such a file, without what the compressor has added.
        written_at: when that was written last, in nanoseconds.
        offset: how far it is read.
        recent: the last bytes before that.
        changed_at: when something about the file has changed last (ctime), as it was when it was left.
    """

    fd: int
    source: IO[bytes] | None = None
    name: str = ""
    written_at: int = 0
    offset: int = 0
    recent: bytearray = field(default_factory=bytearray)
    changed_at: int = 0

    def status(self) -> os.stat_result:
        return os.fstat(self.fd)

    def is_at(self, status: os.stat_result) -> bool:
        if self.fd < 0:
            return False
        mine = self.status()
        return (mine.st_dev, mine.st_ino) == (status.st_dev, status.st_ino)

    def read(self) -> bytes:
        if self.source is not None:
            try:
                data = self.source.read(CHUNK)
                return data if data[-1:] in (b"", b"\n") else data + self.source.readline(LONGEST_LINE)
            except Exception as error:  # each format raises errors of its own
                raise MplogError(f"a rotated file, {self.name}, cannot be unpacked: {error}") from None
        return read_lines(self.fd, self.offset)

    def note(self, data: bytes) -> None:
        self.offset += len(data)
        self.recent += data
        if len(self.recent) > 2 * _REMEMBERED:
            del self.recent[:-_REMEMBERED]

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Follower:
    """Follows one log.

    Args:
        path: of the log.
        fd: its descriptor, from `open_log`; the follower closes it.
        offset: where to begin, at the start of a line.
    """

    def __init__(self, path: str, fd: int, offset: int) -> None:
        self._path = os.path.abspath(path)
        self._directory, self._name = os.path.split(os.path.realpath(path))  # where rotated files are
        self._file = _File(fd, offset=offset)
        self._kept: deque[_File] = deque()
        start = max(0, offset - _REMEMBERED)
        self._file.recent += os.pread(fd, offset - start, start)
        #: Lines that were given out and are expected again.
        self._again: Counter[bytes] = Counter()
        self._again_until = 0.0
        #: The copy of an emptied file that is being read; and the last one: its name, and when it was written last.
        self._copy: _File | None = None
        self._copied: tuple[str, int] | None = None
        self._seen: tuple[int, int] = (-1, -1)

    def close(self) -> None:
        """Close all files."""
        for file in (self._file, *self._kept, self._copy):
            if file is not None:
                file.close()

    def read(self) -> bytes:
        """Return whole lines that are new, b"" where there are none at this moment.

        Empty lines and all: what comes is the bytes of the file. A line without an end comes when its file does not
        grow any more, since there is another one.
        """
        try:
            while (data := self._read_on()) == b"":
                pass
        except OSError as error:
            raise MplogError(f"{self._path} cannot be read: {error}") from None
        return data or b""

    def _read_on(self) -> bytes | None:
        """Return some lines, b"" to be called again, None where there is nothing at this moment."""
        if self._copy is not None:
            return self._read_copy(self._copy)
        file = self._file
        if file.fd >= 0:
            status = file.status()
            state = status.st_size, status.st_mtime_ns
            if state == self._seen and status.st_size <= file.offset:
                return self._go_on()
            if not self._is_as_it_was(file, status):
                return b""
            self._seen = state
        data = self._whole_lines(file.read())
        return self._take(data) if data else self._go_on()

    def _whole_lines(self, data: bytes) -> bytes:
        if self._file.source is not None:
            return data  # it does not grow
        end = data.rfind(b"\n") + 1
        return data if not end and len(data) >= LONGEST_LINE else data[:end]

    def _take(self, data: bytes) -> bytes:
        """Note that so much of the file is read, and return what of it is new."""
        self._file.note(data)
        return self._new(data)

    # --- what comes again ---

    def _new(self, data: bytes) -> bytes:
        """Return the lines that were not given out before."""
        if self._again and time.monotonic() > self._again_until:
            self._again.clear()
        return b"".join(line for line in io.BytesIO(data) if self._is_unknown(line)) if self._again else data

    def _is_unknown(self, line: bytes) -> bool:
        if self._again[line] <= 0:
            del self._again[line]
            return True
        self._again[line] -= 1
        return False

    def _expect_again(self, data: bytes | bytearray) -> None:
        """Have lines skipped that come again."""
        self._again.update(io.BytesIO(data))
        self._again_until = time.monotonic() + _AGAIN_SECONDS

    # --- a file that is cut ---

    def _is_as_it_was(self, file: _File, status: os.stat_result) -> bool:
        """Whether a file that has changed has only grown. Otherwise, find out where to go on: there, or in a copy."""
        if not file.offset:
            self._open_later_copy()  # it may have been emptied before anything of it was read
            return self._copy is None
        context = bytes(file.recent[-_CONTEXT:])
        start = file.offset - len(context)
        if status.st_size >= file.offset and os.pread(file.fd, len(context), start) == context:
            return True
        kept = self._common(file, min(status.st_size, file.offset))
        if kept:
            # It was cut back, by a logging process that goes on after another one.
            cut = len(file.recent) - (file.offset - kept)
            self._expect_again(file.recent[cut:])
            del file.recent[cut:]
            file.offset = kept
        else:
            self._open_copy_of(file)
            file.offset, file.recent = 0, bytearray()
        return False

    def _common(self, file: _File, end: int) -> int:
        """Return up to where, below `end`, the file is as it was read, in whole lines; 0 where it is another."""
        start = file.offset - len(file.recent)
        if start >= end:
            return 0
        now = os.pread(file.fd, end - start, start)
        if not file.recent.startswith(now):
            now = now[: next((index for index, pair in enumerate(zip(now, file.recent)) if pair[0] != pair[1]), 0)]
        return start + now.rfind(b"\n") + 1 if b"\n" in now else 0

    def _open_copy_of(self, file: _File) -> None:
        """Go on in the copy that was made of the file before it was emptied (copytruncate), if there is one."""
        context = bytes(file.recent[-_CONTEXT:])
        stem = os.path.splitext(self._name)[0]
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            found = [entry for entry in entries if entry.name.startswith(stem) and entry.name != self._name]
            for entry in sorted(found, key=_written_at, reverse=True):
                with contextlib.suppress(OSError, EOFError, MplogError), contextlib.ExitStack() as stack:
                    copy = stack.enter_context(_open_any(entry.path))
                    copy.seek(file.offset - len(context))
                    if copy.read(len(context)) == context:
                        stack.pop_all()
                        self._copy = _File(-1, copy, entry.name)
                        self._copied = _base(entry.name), _written_at(entry)
                        return

    def _read_copy(self, copy: _File) -> bytes:
        """Return what is new in a copy; at its end, go on in one that was made behind it."""
        data = copy.read()
        if copy.fd >= 0:  # it is read where it was left, and so ends where a line does
            data = data[: data.rfind(b"\n") + 1] or data
        copy.offset += len(data)
        if not data:
            copy.close()
            self._copy = None
            self._open_later_copy()
        return self._new(data)

    def _open_later_copy(self) -> None:
        """Go on in the copy that was made behind the one that was read last, if there is one."""
        following = None if self._copied is None else self._next_after(*self._copied, is_removed=True)
        if following is not None:
            self._copy = _open_rotated(self._directory, following)
        if following is not None and self._copy is not None:
            self._copied = _base(following.name), following.key[0]

    # --- the next file ---

    def _go_on(self) -> bytes | None:
        """Go on with another file, if this one is at its end; return what this one has left, None to wait."""
        try:
            now = os.stat(self._path)
        except OSError:
            return None  # between two names, or removed: what has it open may go on to write
        file = self._file
        if file.is_at(now):
            return None
        for kept in self._kept:
            if kept.is_at(now):
                return self._go_back(kept)  # a rotation has been taken back
        if not now.st_size:
            return None  # whoever writes has not opened it yet
        if file.fd >= 0:
            rest = file.read()  # what came before the other one was there
            if rest:
                return self._take(rest)
            if file.status().st_nlink == 0 and self._name_of(file) == self._name and self._kept:
                before = self._kept[-1]
                status = before.status()
                if status.st_nlink and status.st_ctime_ns != before.changed_at:
                    return self._go_back(before)
        following = self._open_next(file)
        if following is None:
            return None
        self._leave(file)
        self._file = following
        self._seen = (-1, -1)
        return b""

    def _leave(self, file: _File) -> None:
        if file.fd < 0:
            file.close()
            return
        file.changed_at = file.status().st_ctime_ns
        self._kept.append(file)
        if len(self._kept) > _KEPT:
            self._kept.popleft().close()

    def _go_back(self, before: _File) -> bytes:
        """Go on in a file that was rotated, and is not any more: all that came behind it comes again."""
        self._expect_again(self._file.recent)
        self._file.close()
        while self._kept[-1] is not before:
            self._expect_again(self._kept[-1].recent)
            self._kept.pop().close()
        self._file = self._kept.pop()
        self._seen = (-1, -1)
        return b""

    def _name_of(self, file: _File) -> str:
        """Return what a file is called now, or was when it was removed; empty where that cannot be told."""
        if file.fd < 0:
            return file.name
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{file.fd}")
            return os.path.basename(path.removesuffix(" (deleted)"))
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if file.is_at(entry.stat(follow_symlinks=False)):
                    return entry.name
        return ""

    def _open_next(self, file: _File) -> _File | None:
        """Open the file that was begun when this one was finished, which may have been rotated itself."""
        for _ in range(_ATTEMPTS):
            name = self._name_of(file)
            written_at = file.written_at if file.fd < 0 else file.status().st_mtime_ns
            is_removed = file.fd < 0 or not file.status().st_nlink
            following = self._next_after(name, written_at, is_removed)
            if following is not None:
                opened = _open_rotated(self._directory, following)
                if opened is not None:
                    return opened
                continue  # compressed or renamed in between
            try:
                fd = open_log(self._path)
            except MplogError:
                return None
            # What has been opened may be the one behind the next.
            if self._next_after(name, written_at, is_removed) is None:
                return _File(fd)
            os.close(fd)
        return None

    def _next_after(self, name: str, written_at: int, is_removed: bool) -> _Rotated | None:
        known = {(status.st_dev, status.st_ino) for status in (kept.status() for kept in self._kept)}
        return _next_rotated(self._directory, self._name, name, written_at, is_removed, known)


_Identity = tuple[int, int]


class _Rotated(NamedTuple):
    """A rotated file, as it was when the directory was read: what sorts it, its name, and what tells it from others."""

    key: tuple[int, tuple[float, ...]]
    name: str
    identity: _Identity


def _written_at(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0


def _open_any(path: str) -> IO[bytes]:
    """Open a file, or what is in it where it is compressed."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(f"{path} is no file")
    return open_compressed(path) if path.endswith(_COMPRESSED) else open(path, "rb")


def _open_rotated(directory: str, rotated: _Rotated) -> _File | None:
    """Open a rotated file; None where it has gone, or where another one has its name by now."""
    path = os.path.join(directory, rotated.name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != rotated.identity:
        os.close(fd)
        return None
    if not path.endswith(_COMPRESSED):
        return _File(fd)
    # By the descriptor: the name may be that of another file by now.
    try:
        return _File(-1, open_compressed(f"/dev/fd/{fd}", path), _base(rotated.name), status.st_mtime_ns)
    except OSError:
        return None
    finally:
        os.close(fd)


def _next_rotated(
    directory: str, log: str, name: str, written_at: int, is_removed: bool, known: Collection[_Identity]
) -> _Rotated | None:
    """Return the file that was rotated next behind another, None where there is none.

    Args:
        directory: of the log.
        log: its name.
        name: of the other, as rotated. Names that differ from it in their numbers alone are those of rotated files.
        written_at: when the other was written last.
        is_removed: the name is the one that it had when it was removed, or when it was opened.
        known: files that have been read, and may have been written since.
    """
    if name == log or not re.search(r"\d", name):
        return None
    base = _base(name)
    pattern = re.compile(r"\d+".join(map(re.escape, re.split(r"\d+", base))) + r"(?:\.gz|\.zst)?")
    place: tuple[int, tuple[float, ...]] = written_at, _order(log, base)
    skipped = {log, base}
    if is_removed and _counts_back(log, base):
        # What is compressed keeps its time, and by now has another number; the old one may be that of another file.
        place, skipped = (written_at, (math.inf,)), {log}
    found: dict[str, _Rotated] = {}
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            other = _base(entry.name)
            if other in skipped or pattern.fullmatch(entry.name) is None:
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                identity = status.st_dev, status.st_ino
                if not stat.S_ISREG(status.st_mode) or not status.st_size or identity in known:
                    continue
                key = status.st_mtime_ns, _order(log, other)
                # While it is being compressed, there are both; the first is whole until it is removed.
                if key > place and (other not in found or not entry.name.endswith(_COMPRESSED)):
                    found[other] = _Rotated(key, entry.name, identity)
    return min(found.values(), default=None)


def _base(name: str) -> str:
    return os.path.splitext(name)[0] if name.endswith(_COMPRESSED) else name


def _counts_back(log: str, name: str) -> bool:
    """Whether the newest has the lowest number: app.log.1 is newer than app.log.2."""
    return re.fullmatch(re.escape(log) + r"\.\d{1,4}", name) is not None


def _order(log: str, name: str) -> tuple[float, ...]:
    """Return what sorts rotated files that were written last in the same instant."""
    sign = -1 if _counts_back(log, name) else 1
    return tuple(sign * int(number) for number in re.findall(r"\d+", name))
