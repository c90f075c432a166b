"""The lock of a log file: one logging process writes it.

The rule of this file: **the lock file names its holder, and a holder that dies has released the lock.** The kernel
releases the lock of a process that ends in any way; only the holder removes the lock file.

Some programs remove files that look old or useless, and the lock file with them. So the holder makes its file young now
and then, and makes it again if it is gone (`LogLock.look`). Until then, a lock on a byte of the log (`mark`) keeps
other logging processes away.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import re
import stat
import struct
import sys
import tempfile
from typing import TYPE_CHECKING

from mplog.errors import LogFileLockedError
from mplog.files.notices import SYSTEM_CLOCK, Clock
from mplog.files.regular import UNPLANTED

if TYPE_CHECKING:
    import filelock

if sys.platform != "win32":
    import fcntl


#: Bytes that the name of a file may have, on nearly every file system.
_LONGEST_NAME = 255


def _lock_path(path: str) -> str:
    """Return the path of the lock file, which is the same for every path to the directory."""
    directory, name = os.path.realpath(os.path.dirname(path)), os.path.basename(path)
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, f"its directory {directory} does not exist. Create it first")
    place = os.path.join(directory, f".{name}.lock")
    if not os.access(directory, os.W_OK):
        # As in /var/log, where an administrator has made the file.
        flat = place.replace(os.sep, "%")
        if len(os.fsencode(flat)) > _LONGEST_NAME:
            flat = hashlib.sha256(os.fsencode(flat)).hexdigest()
        place = os.path.join(_own_path(), flat)
    return place


def _own_path() -> str:
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    return os.path.join(tempfile.gettempdir(), f"mplog.{user}.locks")


def _make_own_directory(path: str) -> None:
    """Make a directory for locks in which no other user can plant anything, unless it is there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # whatever the umask is
    found = os.lstat(path)
    if hasattr(os, "geteuid") and (
        not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077
    ):
        raise PermissionError(
            errno.EPERM,
            f"{path}, for the lock of a file whose own directory is not writable, is not of this program's making. "
            "Remove it",
        )


#: Seconds between two looks at a lock file. The logging process sets it at its start.
look_seconds = 3600.0


class LogLock:
    """The lock of a log file; raises LogFileLockedError if another process has it.

    Attributes:
        due: the monotonic time of the next `look`.
    """

    def __init__(self, path: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = path
        self._clock = clock
        self._take(_acquire(path))

    def _take(self, lock: filelock.BaseFileLock) -> None:
        self._lock = lock
        self._status = os.lstat(self._lock.lock_file)
        self.due = self._clock.monotonic() + look_seconds

    def look(self) -> str:
        """Make the lock file young, or make it again if it is gone; return what the log should say, "" for nothing."""
        self.due = self._clock.monotonic() + look_seconds
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self._lock.lock_file), self._status):
                os.utime(self._lock.lock_file)
                return ""
        with contextlib.suppress(OSError):
            if os.stat(os.path.dirname(self._lock.lock_file)).st_dev != self._status.st_dev:
                return ""  # its file system is not mounted at the moment, or was mounted anew
        self._lock.release()  # of a file that nobody can find any more
        try:
            self._take(_acquire(self._path, is_marked=True))
        except OSError as error:
            return f"another program has removed the lock file of {self._path}, and it cannot be made again: {error}"
        return f"another program has removed the lock file of {self._path}; it is there again"

    def release(self) -> None:
        """Let go of the lock, and remove its file."""
        if self._lock.is_locked:
            # While it is still held: a process that waits for it sees that the file has gone, and makes a new one.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(self._lock.lock_file), self._status):
                    os.unlink(self._lock.lock_file)
                if os.path.dirname(self._lock.lock_file) == _own_path():
                    os.rmdir(_own_path())
            with contextlib.suppress(OSError):  # its file system has died
                self._lock.release()

    def renew(self) -> None:
        """Take the lock of a file again whose file system was mounted anew: the one that is held may be of the old one.

        Another server may have taken the new one. So the lock file is not removed here, as `release` would do.
        """
        with contextlib.suppress(OSError):
            self._lock.release()
        self._take(_acquire(self._path))


def _acquire(path: str, *, is_marked: bool = False) -> filelock.BaseFileLock:
    """Take the lock. `is_marked`: this process has the log open."""
    # Imported here: it takes as long as everything else that a program loads to start a server.
    import filelock

    place = _lock_path(path)
    if os.path.dirname(place) == _own_path():
        _make_own_directory(_own_path())
    is_new = True
    with contextlib.suppress(FileNotFoundError):
        _check_lock(os.lstat(place), place)  # before filelock opens it: some versions empty it
        is_new = False
    # 0600: a user who can open it can hold it, and so keep this server from starting.
    lock = filelock.FileLock(place, mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except FileNotFoundError:
        if os.path.dirname(place) != _own_path():
            raise
        # Another server of this user has just ended, and removed the directory.
        return _acquire(path, is_marked=is_marked)
    except filelock.Timeout:
        raise _locked(path, *_read_owner(place)) from None
    try:
        if is_new and not is_marked and _is_marked(path):
            os.unlink(place)
            raise _locked(path, None, None)
        _write_owner(place)
    except BaseException:
        lock.release()
        raise
    return lock


def _locked(path: str, pid: int | None, since: str | None) -> LogFileLockedError:
    owner = "of unknown pid" if pid is None else f"pid {pid}, since {since}"
    return LogFileLockedError(
        f"{path} is already written by another logging process ({owner}). Stop it, or give this server another file.",
        path=path,
        pid=pid,
        since=since,
    )


# The mark is a lock on a byte that no log has (F_OFD_SETLK in fcntl(2), Linux): other programs may lock the log itself,
# by flock(1), say. It belongs to the open file, so that it lasts until the file is closed, in forks, too.
_FLOCK = struct.Struct("hhqqi")  # type, whence, start, length, pid
_MARKED_BYTE = 2**62


def _set_lock(fd: int, command: int, kind: int) -> int:
    """Set or ask for a lock on the marked byte; return the kind that there is."""
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, _MARKED_BYTE, 1, 0))
    return int(_FLOCK.unpack(answer)[0])


def mark(fd: int) -> None:
    """Mark an open log as written by this process, for those that find no lock file."""
    with contextlib.suppress(NameError, AttributeError, OSError):  # not Linux; no locks on this file system
        _set_lock(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)


def unmark(fd: int) -> None:
    """Take the mark off, before the file is closed: a forked process may still have it open."""
    with contextlib.suppress(NameError, AttributeError, OSError):
        _set_lock(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)


def _is_marked(path: str) -> bool:
    """Whether another logging process has the log open."""
    with contextlib.suppress(NameError, AttributeError, OSError):
        fd = os.open(path, os.O_RDONLY | UNPLANTED)
        try:
            return _set_lock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK
        finally:
            os.close(fd)
    return False


def taken_at(path: str) -> float | None:
    """Return when the lock was last taken or looked at, in seconds since the epoch; None if no process holds it."""
    with contextlib.suppress(OSError):
        return os.stat(_lock_path(path)).st_mtime
    return None


def clear_up(path: str) -> None:
    """Remove the lock file of a process that has died."""
    with contextlib.suppress(OSError):
        if os.path.exists(_lock_path(path)):
            LogLock(path).release()


def _check_lock(found: os.stat_result, place: str) -> None:
    # 0 links: another server has just ended, and removed it.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise PermissionError(errno.EPERM, f"{place} is not a lock file of this program's making. Remove it")


def _write_owner(place: str) -> None:
    # Never the target of a link, even of one that was made in the meantime, nor a file that has other names.
    fd = os.open(place, os.O_WRONLY | UNPLANTED)
    try:
        _check_lock(os.fstat(fd), place)
        # Never empty in between: closing a file that was empty and is not any more costs ext4 a write to the disk.
        length = os.write(fd, f"{os.getpid()} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}\n".encode("ascii"))
        os.ftruncate(fd, length)
    finally:
        os.close(fd)


def _read_owner(place: str) -> tuple[int | None, str | None]:
    try:
        fd = os.open(place, os.O_RDONLY | UNPLANTED)
        with open(fd, encoding="ascii") as file:
            # Others may have written it, and it is shown in a message.
            found = re.fullmatch(r"(\d{1,10}) ([\d-]{10} [\d:]{8})\n?", file.readline(100))
    except (OSError, ValueError):
        found = None
    return (int(found[1]), found[2]) if found else (None, None)
