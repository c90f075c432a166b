"""Files by which processes of one server tell each other something: mapped into memory, or replaced as a whole.

The rule of this file: **a full disk raises OSError.** A page of a mapped file for which the disk has no room kills the
process that touches it, by SIGBUS. So a file is made long enough by writing to it, never by ``ftruncate`` alone.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from mplog.queue.directory import open_file, opened

_BLOCK = bytes(2**20)


def lengthen(fd: int, length: int) -> None:
    """Write zeros at the end of a file until it is so long.

    Raises:
        OSError: the disk has no room for it; the file is as long as before.
    """
    start = end = os.fstat(fd).st_size
    try:
        while end < length:
            end += os.pwrite(fd, _BLOCK[: length - end], end)
    except OSError:
        os.ftruncate(fd, start)
        raise


def map_fd(fd: int, length: int) -> mmap.mmap:
    """Map the beginning of an open file for reading and writing; make it long enough first (`lengthen`)."""
    lengthen(fd, length)
    return mmap.mmap(fd, length)


def map_file(path: str, length: int, *, writable: bool = False) -> mmap.mmap:
    """Map the beginning of a file: to write, and it is made and lengthened, or to read what another process writes.

    Raises:
        OSError: there is no such file, it is too short, or the disk has no room for it.
    """
    flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    fd = open_file(path, flags)
    try:
        return map_fd(fd, length) if writable else mmap.mmap(fd, length, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise OSError(f"{path} is shorter than {length} bytes") from error
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def replace_file(path: str, data: bytes) -> None:
    """Write a file, so that others find the old one or the new one, whole: beside it first, then renamed.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    directory, name = os.path.split(path)
    new = f"{name}.new"
    try:
        with opened(directory) as place:
            try:
                fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=place)
                with open(fd, "wb") as file:
                    file.write(data)
                os.replace(new, name, src_dir_fd=place, dst_dir_fd=place)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=place)
                raise
    except OSError as error:
        error.filename = path
        raise
