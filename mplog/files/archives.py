"""The rotated files of a log: naming them, compressing them, removing old ones.

The rule of this file: **a rotated file is complete under one of its names at every instant.** Anything else than a
regular file is left alone. What a killed process has compressed in part is finished after the next start::

    app.2026-11-20.001.log  ->  .app.2026-11-20.001.log.gz.part  ->  app.2026-11-20.001.log.gz, and the first is removed
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import queue
import stat
import threading
from collections.abc import Iterator
from typing import IO

import msgspec

from mplog.files import regular
from mplog.files.compression import SUFFIXES, compress_into, decompress
from mplog.files.notices import Clock, Notices
from mplog.files.rotation_rules import Keep, Rotation

#: Bytes that are compressed at a time, in some milliseconds. Between two such pieces, the thread can be stopped.
CHUNK = 2**18

#: Seconds that the closing of a log waits for the compressor before it tells it to stop.
CLOSE_SECONDS = 2.0

_PART = ".part"


class Archive(msgspec.Struct, frozen=True):
    """A rotated file, as it was when the directory was read."""

    name: str
    index: int
    size: int
    written_at_ns: int


class Archives:
    """The rotated files of the log that has this path."""

    def __init__(self, path: str, rotation: Rotation, notices: Notices, clock: Clock) -> None:
        self._directory, self._log = os.path.split(path)
        self._rotation = rotation
        self._notices = notices
        self._clock = clock
        self._last: tuple[tuple[str, str], int] | None = None
        #: Files that were rotated since the last `tidy`: the next one may compress or remove them.
        self._held: frozenset[str] = frozenset()
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._abandoned = threading.Event()
        self._asked = self._done = 0
        #: The time of the last write of each file, by its own clock and by the steady one.
        self._written_at: dict[int, float] = {}
        self._has_told_of_clock = False

    def take(self, path: str, written_at: float) -> str:
        """Rename a file to the next free name of its date, and return its path. On an OSError, it has the old name."""
        around = self._rotation.name.around_index(written_at, self._rotation.zone)
        if self._last is None or self._last[0] != around:
            self._last = around, max((index for _, found, index in self._names() if found == around), default=0)
        index = self._last[1]
        while True:
            index += 1
            target = self._path(self._rotation.name.name(written_at, self._rotation.zone, index))
            if any(os.path.lexists(target + suffix) for suffix in SUFFIXES.values()):
                continue
            self._held |= {os.path.basename(target)}
            # The name is taken: by a file put there meanwhile, a symbolic link, a FIFO, a directory.
            with contextlib.suppress(FileExistsError):
                regular.rename_to_new(path, target)
                self._last = around, index
                return target

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _names(self) -> Iterator[tuple[str, tuple[str, str], int]]:
        """Yield the name of each rotated file, the texts around its index, and the index."""
        for name in os.listdir(self._directory):
            found = self._rotation.name.index_of(name)
            if found is not None:
                yield name, *found

    def _files(self) -> list[Archive]:
        files = []
        for name, _, index in self._names():
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(self._path(name))
                # No log is rotated while it is empty: an empty file only reserves a name.
                if stat.S_ISREG(status.st_mode) and status.st_size and name not in self._held:
                    files.append(Archive(name, index, status.st_size, status.st_mtime_ns))
        return files

    # --- the thread ---

    def tidy(self) -> None:
        """Compress rotated files and remove old ones, in the background."""
        self._held = frozenset()
        if self._rotation.compress is None and self._rotation.keep == Keep():
            return
        if self._thread is None:
            # A daemon: it must not hold up the end of the process.
            self._thread = threading.Thread(target=self._run, name="mplog archives", daemon=True)
            self._thread.start()
        self._asked += 1
        self._requests.put(True)

    @property
    def is_tidying(self) -> bool:
        return self._done < self._asked

    def close(self) -> None:
        """Wait a moment for the work that is going on; then leave it for the next start."""
        if self._thread is None:
            return
        self._requests.put(False)
        self._thread.join(CLOSE_SECONDS)
        self._abandoned.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while self._requests.get():
            try:
                self._remove_parts()
                if self._rotation.compress is not None:
                    for archive in sorted(self._files(), key=lambda archive: archive.written_at_ns):
                        if not archive.name.endswith(tuple(SUFFIXES.values())) and not self._abandoned.is_set():
                            self._compress(archive)
                self._remove_old()
            except Exception as error:
                self._notices.say("tidy", f"rotated files of {self._log} could not be tidied up: {error}")
            finally:
                self._done += 1

    def _remove_parts(self) -> None:
        """Remove what a killed process was compressing."""
        for name in os.listdir(self._directory):
            whole = name.removesuffix(_PART)[1:]
            if name.startswith(".") and name.endswith(_PART) and self._rotation.name.index_of(whole) is not None:
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(self._path(name))

    def _compress(self, archive: Archive) -> None:
        try:
            self._compress_file(archive.name, str(self._rotation.compress))
        except OSError as error:
            self._notices.say("compress", f"{archive.name} could not be compressed, and is kept as it is: {error}")

    def _compress_file(self, name: str, how: str) -> None:
        path = self._path(name)
        target = path + SUFFIXES[how]
        part = self._path(f".{name}{SUFFIXES[how]}{_PART}")
        with open(path, "rb", opener=_open_regular) as source:
            status = os.fstat(source.fileno())
            if os.path.lexists(target) and not self._is_left_over(target, source, how):
                raise FileExistsError(f"{target} is there already")
            if not os.path.lexists(target):
                try:
                    if not self._write_part(source, status, part, how):
                        return
                    regular.rename_to_new(part, target)
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(part)
        # The compressed file is on the disk before the original goes.
        regular.sync_directory(self._directory)
        if os.path.samestat(os.lstat(path), status):
            os.unlink(path)

    def _write_part(self, source: IO[bytes], status: os.stat_result, part: str, how: str) -> bool:
        """Compress into a temporary file, and force it to the disk; return False if told to stop."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        with os.fdopen(regular.create(part, stat.S_IMODE(status.st_mode)), "wb") as file:
            with contextlib.suppress(OSError):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            with compress_into(file, how, status.st_mtime) as compressor:
                while chunk := source.read(CHUNK):
                    if self._abandoned.is_set():
                        return False
                    compressor.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        # It is as old as the records in it.
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        return True

    def _is_left_over(self, target: str, source: IO[bytes], how: str) -> bool:
        """Whether `target` is the compressed `source`, left by a process that was killed before it removed the source.

        An empty file only reserves the name, and is removed. Any other is compared with the source: it could have
        nothing to do with the log.
        """
        with open(target, "rb", opener=_open_regular) as file:
            if not os.fstat(file.fileno()).st_size:
                os.unlink(target)
                return True
            try:
                with decompress(file, how) as decompressed:
                    while not self._abandoned.is_set():
                        chunk = source.read(CHUNK)
                        if chunk != decompressed.read(len(chunk) or 1):
                            return False
                        if not chunk:
                            return True
            except Exception:  # each library has its own errors
                return False
        return False

    def _remove_old(self) -> None:
        files = self._files()
        for archive in expired(files, self._rotation.keep, self._ages(files)):
            try:
                os.unlink(self._path(archive.name))
            except FileNotFoundError:
                pass
            except OSError as error:
                self._notices.say("remove", f"{archive.name} is old, and could not be removed: {error}")

    def _ages(self, files: list[Archive]) -> dict[int, float]:
        """Return the seconds since the last write of each file, by that time.

        A clock that is set forward must not make all files old. So the time of day is asked once for each file, and is
        not believed where it is later than the steady clock. From then on, the file grows old by the steady clock.
        """
        steady = self._clock.steady()
        ahead = self._clock.time() - steady
        now = steady + min(ahead, 0)
        before = self._written_at
        times = {file.written_at_ns for file in files}
        self._written_at = {at: before.get(at, steady - max(now - at / 1e9, 0)) for at in times}
        if ahead > (self._rotation.keep.seconds or math.inf) and not self._has_told_of_clock:
            self._has_told_of_clock = True
            self._notices.add(
                f"the clock is {datetime.timedelta(seconds=ahead // 1)} ahead of the time that has passed since the "
                f"logging process started; rotated files of {self._log} are kept until they are as old as keep= says "
                "without that"
            )
        return {at: steady - written_at for at, written_at in self._written_at.items()}


def expired(files: list[Archive], keep: Keep, ages: dict[int, float]) -> list[Archive]:
    """Return the files that are not to be kept; `ages` are seconds, by the times of the last writes."""
    newest_first = sorted(files, key=lambda file: (file.written_at_ns, file.index), reverse=True)
    expired = []
    size = 0
    for place, file in enumerate(newest_first):
        size += file.size
        if (
            (keep.files is not None and place >= keep.files)
            or (keep.size is not None and size > keep.size and place > 0)
            or (keep.seconds is not None and ages[file.written_at_ns] > keep.seconds)
        ):
            expired.append(file)
    return expired


def _open_regular(path: str, _: int) -> int:
    fd = os.open(path, os.O_RDONLY | regular.UNPLANTED)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(f"{path} is not a regular file")
    return fd
