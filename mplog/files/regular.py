"""Opening, making and renaming regular files in a directory where other users may plant files.

The rule of this file: **nothing is followed, overwritten or waited for that was not asked for.**
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

#: Opening a planted FIFO must not wait for its reader. For a file it means nothing.
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
#: Nor is a planted link followed.
UNPLANTED = getattr(os, "O_NOFOLLOW", 0) | _NONBLOCK
_APPENDING = os.O_WRONLY | os.O_APPEND | _NONBLOCK

#: A user and a group, as chown takes them: -1 leaves one as it is.
Owner = tuple[int, int]


def open_for_appending(
    path: str, permissions: int, *, owner: Owner | None = None, follow_symlinks: bool = False, make: bool = True
) -> tuple[int, bool]:
    """Open a regular file for appending; return the descriptor, and whether the file was made, as by `create`."""
    flags = _APPENDING if follow_symlinks else _APPENDING | UNPLANTED
    if make:
        with contextlib.suppress(FileExistsError):
            return create(path, permissions, owner=owner), True
    try:
        # O_CREAT: for a link to a file that is not there.
        fd = os.open(path, flags | (os.O_CREAT if follow_symlinks and make else 0), permissions)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP,
                "it is a symbolic link, which is refused because it may lead anywhere. Give the file that it points "
                "to, or FileSink(..., follow_symlinks=True)",
            ) from None
        if error.errno == errno.ENXIO:
            raise _not_a_file() from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _not_a_file()
        if not follow_symlinks:
            _check_not_planted(found, os.stat(os.path.dirname(path)))
    except BaseException:
        os.close(fd)
        raise
    return fd, False


def _check_not_planted(file: os.stat_result, directory: os.stat_result) -> None:
    """Refuse a file that another user may have put there, in a directory where others can write."""
    owners = (directory.st_uid, os.geteuid() if hasattr(os, "geteuid") else directory.st_uid)
    others_can_write = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if file.st_nlink > 1 and others_can_write:
        raise OSError(
            errno.EMLINK,
            "it is a hard link in a directory where others can write, and may lead to any file. Remove the link, or, "
            "if you have made it, give FileSink(..., follow_symlinks=True)",
        )
    # As Linux does if fs.protected_regular is set.
    if directory.st_mode & stat.S_ISVTX and directory.st_mode & stat.S_IWOTH and file.st_uid not in owners:
        raise OSError(
            errno.EPERM,
            f"it belongs to another user (uid {file.st_uid}), who may have put it there to read the log. Remove it, or "
            "log to a directory where others cannot write",
        )


def _not_a_file() -> OSError:
    return OSError(
        errno.EINVAL,
        "it is not a regular file but a device, a FIFO or a socket. For the console there is ConsoleSink(), for "
        "anything else HandlerSink(lambda: logging.FileHandler(path))",
    )


def create(path: str, permissions: int, *, owner: Owner | None = None) -> int:
    """Make a new file with exactly this mode, and with this owner; return a descriptor to append to it."""
    fd = os.open(path, _APPENDING | UNPLANTED | os.O_CREAT | os.O_EXCL, permissions)
    try:
        if owner is not None:
            _give_to(fd, owner)
        if hasattr(os, "fchmod"):
            os.fchmod(fd, permissions)  # whatever the umask is
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return fd


def _give_to(fd: int, owner: Owner) -> None:
    try:
        os.fchown(fd, *owner)
    except PermissionError:
        raise PermissionError(
            errno.EPERM,
            f"it cannot be given to {_show(owner)} by {_show((os.geteuid(), os.getegid()))}: only root may give a file "
            "to another user, or to a group that the giver is not in. Run as that user, or leave owner= out",
        ) from None


def _show(owner: Owner) -> str:
    return ", ".join(f"{what} {number}" for what, number in zip(("user", "group"), owner) if number >= 0)


def read_owner(owner: str | None) -> Owner | None:
    """Return the ids of ``user``, ``user:group`` or ``:group``: names or numbers of this machine, as for chown(1)."""
    if owner is None:
        return None
    if not isinstance(owner, str) or not owner.strip(":"):
        raise ValueError(f"owner is 'user', 'user:group' or ':group', not {owner!r}")
    import grp
    import pwd

    user, _, group = owner.partition(":")
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid if user else -1
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise ValueError(f"owner={owner!r}: {error.args[0]}") from None
    return uid, gid


@contextlib.contextmanager
def existing(path: str) -> Iterator[int]:
    """Open a regular file that is there for appending, and close it afterwards."""
    fd, _ = open_for_appending(path, 0, make=False)
    try:
        yield fd
    finally:
        os.close(fd)


def find(directory: str, inode: int, is_name: Callable[[str], bool]) -> str | None:
    """Return the path of the regular file with this inode, or None. Only names for which `is_name` is true count.

    It may be in the directory, or in a directory in there, where logrotate's ``olddir`` has moved it. Since an inode is
    that of a file system, only directories in the same one count. Its device need not be the one it had when the file
    was written: it may have been mounted anew.
    """
    device = os.stat(directory).st_dev
    for place in (directory, *_directories_in(directory)):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            if os.stat(place).st_dev != device:
                continue
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.inode() == inode and is_name(entry.name) and entry.is_file(follow_symlinks=False):
                        return entry.path
    return None


def _directories_in(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def cut_back(fd: int, start: int, end: int) -> int | None:
    """Cut off what a killed process wrote from `start` to at most `end`; return how many; None if others wrote, too."""
    status = os.fstat(fd)
    if status.st_size == start:
        return 0
    if not start < status.st_size <= end:
        return None
    os.ftruncate(fd, start)
    # The time of the file says when to rotate it.
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    return status.st_size - start


def cut_torn(fd: int, path: str, start: int, data: bytes) -> None:
    """Cut off what follows `start` if a failed write of `data` may have left it; the file is open, and has this path.

    Its contents tell that it is the same file: mounted anew, it may have another device, and even another inode.
    """
    size = os.fstat(fd).st_size - start
    if 0 < size <= len(data):
        try:
            reading = os.open(path, os.O_RDONLY | UNPLANTED)
        except PermissionError:
            return
        try:
            is_left = data.startswith(os.pread(reading, size, start))
        finally:
            os.close(reading)
        if is_left:
            os.ftruncate(fd, start)


def rename_to_new(source: str, target: str) -> None:
    """Rename a file; raise FileExistsError if the new name is taken. On any error, everything is as before."""
    # An empty file reserves the name.
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | UNPLANTED, 0o600))
    try:
        os.rename(source, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise


def sync_directory(path: str) -> None:
    """Force the names in a directory to the disk, so that a new or renamed file survives a power loss."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
