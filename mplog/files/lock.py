"""The lock of a log file: one logging process writes it.

The rule of this file: **the lock file names its holder, and a holder that dies has released the lock.** The kernel
releases the lock of a process that ends in any way; only the holder removes the lock file.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import re
import stat
import tempfile
from typing import TYPE_CHECKING

from mplog.errors import LogFileLockedError
from mplog.files.regular import UNPLANTED

if TYPE_CHECKING:
    import filelock


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


def acquire(path: str) -> filelock.BaseFileLock:
    """Become the one process that writes the file; raise a LogFileLockedError if there is one already."""
    # Imported here: it takes as long as everything else that a program loads to start a server.
    import filelock

    place = _lock_path(path)
    if os.path.dirname(place) == _own_path():
        _make_own_directory(_own_path())
    with contextlib.suppress(FileNotFoundError):
        _check_lock(os.lstat(place), place)  # before filelock opens it: some versions empty it
    # 0600: a user who can open it can hold it, and so keep this server from starting.
    lock = filelock.FileLock(place, mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except FileNotFoundError:
        if os.path.dirname(place) != _own_path():
            raise
        return acquire(path)  # another server of this user has just ended, and removed the directory
    except filelock.Timeout:
        pid, since = _read_owner(place)
        owner = "of unknown pid" if pid is None else f"pid {pid}, since {since}"
        raise LogFileLockedError(
            f"{path} is already written by another logging process ({owner}). "
            "Stop it, or give this server another file.",
            path=path,
            pid=pid,
            since=since,
        ) from None
    try:
        _write_owner(place)
    except BaseException:
        lock.release()
        raise
    return lock


def release(lock: filelock.BaseFileLock) -> None:
    """Let go of the lock, and remove its file."""
    if lock.is_locked:
        # While it is still held: a process that waits for it sees that the file has gone, and makes a new one.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
            if os.path.dirname(lock.lock_file) == _own_path():
                os.rmdir(_own_path())
        with contextlib.suppress(OSError):  # its file system has died
            lock.release()


def renew(lock: filelock.BaseFileLock, path: str) -> filelock.BaseFileLock:
    """Take the lock of a file again whose file system was mounted anew: the one that is held may be of the old one.

    Another server may have taken the new one. So the lock file is not removed here, as `release` would do.
    """
    with contextlib.suppress(OSError):
        lock.release()
    return acquire(path)


def taken_at(path: str) -> float | None:
    """Return when the lock was last taken, in seconds since the epoch; None if no process holds it."""
    with contextlib.suppress(OSError):
        return os.stat(_lock_path(path)).st_mtime
    return None


def clear_up(path: str) -> None:
    """Remove the lock file of a process that has died."""
    with contextlib.suppress(OSError):
        if os.path.exists(_lock_path(path)):
            release(acquire(path))


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
