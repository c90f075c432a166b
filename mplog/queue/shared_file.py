"""Files by which processes of one server tell each other something: mapped into memory, or replaced as a whole.

The rule of this file: **a full disk raises OSError.** A page of a mapped file for which the disk has no room kills the
process that touches it, by SIGBUS. So a file is made long enough by writing to it, never by ``ftruncate`` alone.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import sys

from mplog.queue.descriptor import NONE, Descriptor, what_is

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


if sys.version_info >= (3, 13):

    def _map(fd: int, length: int, access: int) -> mmap.mmap:
        return mmap.mmap(fd, length, access=access, trackfd=False)

else:
    #: Each mapping has a duplicate of its file's descriptor. When it is collected, it closes that number, whatever the
    #: number is by then. So all are kept, except those that nobody uses and whose numbers are ours.
    _kept: list[tuple[mmap.mmap, Descriptor]] = []
    # Collected only after all of the program's own objects, at the end of the interpreter.
    os.register_at_fork(after_in_child=functools.partial(len, _kept))

    #: What getrefcount() says of a mapping that nobody uses: the list has one reference, its argument is another.
    _UNUSED = 2

    def _map(fd: int, length: int, access: int) -> mmap.mmap:
        _kept[:] = [kept for kept in _kept if sys.getrefcount(kept[0]) > _UNUSED or not kept[1].is_ours()]
        number = os.dup(fd)
        os.close(number)  # the lowest free one, which the mapping gets, unless another thread is quicker
        mapping = mmap.mmap(fd, length, access=access)
        _kept.append((mapping, Descriptor(number) if what_is(number) == what_is(fd) else NONE))
        return mapping


def map_fd(fd: int, length: int) -> mmap.mmap:
    """Map the beginning of an open file for reading and writing; make it long enough first (`lengthen`)."""
    lengthen(fd, length)
    return _map(fd, length, mmap.ACCESS_WRITE)


def map_file(path: str, length: int, *, writable: bool = False) -> mmap.mmap:
    """Map the beginning of a file: to write, and it is made and lengthened, or to read what another process writes.

    Raises:
        OSError: there is no such file, it is too short, or the disk has no room for it.
    """
    flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        return map_fd(fd, length) if writable else _map(fd, length, mmap.ACCESS_READ)
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
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(new, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = path
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
