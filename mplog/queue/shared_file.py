"""Files by which processes of one server tell each other something: written in place, or replaced as a whole.

The rule of this file: **nothing is written through a mapping.** Where the disk has no room for a page of a mapped file,
a store into it kills the process by SIGBUS. On a disk that copies what it writes (btrfs), this can hit any page, also
one that was written before. So all writes are system calls, which raise OSError. Where a reader looks too often for a
system call, it maps the file, read-only: pages that were written stay readable however full the disk is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import sys
from collections.abc import Iterable, Iterator

from mplog.queue.descriptor import NONE, Descriptor, what_is
from mplog.queue.directory import open_file, opened

#: Seconds without a further attempt after a full disk: btrfs looks for room for up to 60 ms each time.
PAUSE = 1.0

#: The mode of files that workers read, whatever the umask: the group of the directory may be theirs.
FOR_WORKERS = 0o640

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


def write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write all of the data into a file, from a position on."""
    count = os.pwrite(fd, data, position)
    while count < len(data):  # a disk that has just become full: the next call says so
        count += os.pwrite(fd, memoryview(data)[count:], position + count)


if sys.version_info >= (3, 13):

    def forget_unused() -> None:
        """Unmap what nobody uses any more: nothing, since that is unmapped when it is collected."""

    def _map(fd: int, length: int) -> mmap.mmap:
        return mmap.mmap(fd, length, access=mmap.ACCESS_READ, trackfd=False)

else:
    #: Each mapping has a duplicate of its file's descriptor. When it is collected, it closes that number, whatever the
    #: number is by then. So all are kept, except those that nobody uses and whose numbers are ours.
    _kept: list[tuple[mmap.mmap, Descriptor]] = []
    # Collected only after all of the program's own objects, at the end of the interpreter.
    os.register_at_fork(after_in_child=functools.partial(len, _kept))

    #: What getrefcount() says of a mapping that nobody uses: the list has one reference, its argument is another.
    _UNUSED = 2

    def forget_unused() -> None:
        """Unmap what nobody uses any more."""
        _kept[:] = [kept for kept in _kept if sys.getrefcount(kept[0]) > _UNUSED or not kept[1].is_ours()]

    def _map(fd: int, length: int) -> mmap.mmap:
        forget_unused()
        number = os.dup(fd)
        os.close(number)  # the lowest free one, which the mapping gets, unless another thread is quicker
        mapping = mmap.mmap(fd, length, access=mmap.ACCESS_READ)
        _kept.append((mapping, Descriptor(number) if what_is(number) == what_is(fd) else NONE))
        return mapping


def make_file(path: str, length: int) -> None:
    """Make a file of zeros for workers to read, unless there is one that is so long.

    Raises:
        OSError: the disk has no room for it.
    """
    with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.fchmod(fd, FOR_WORKERS)
        lengthen(fd, length)


def write_file(path: str, data: bytes) -> None:
    """Overwrite the beginning of a file that others may have mapped.

    Raises:
        OSError: there is no such file, or the disk has no room for it.
    """
    with _opened(path, os.O_WRONLY) as fd:
        write_at(fd, data, 0)


def map_file(path: str, length: int) -> mmap.mmap:
    """Map the beginning of a file, to read what another process writes.

    Raises:
        OSError: there is no such file, or it is too short.
    """
    with _opened(path, os.O_RDONLY) as fd:
        try:
            return _map(fd, length)
        except ValueError as error:
            raise OSError(errno.EINVAL, f"shorter than {length} bytes") from error


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = open_file(path, flags)
    try:
        yield fd
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def replace_file(path: str, data: bytes | Iterable[bytes], mode: int = 0o600) -> None:
    """Write a file, so that others find the old one or the new one, whole: beside it first, then renamed.

    Args:
        path: where it is.
        data: what is to be in it, or the pieces of that.
        mode: `FOR_WORKERS` for what they read; other files of a server are for its user alone.

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
                    os.fchmod(fd, mode)
                    file.writelines((data,) if isinstance(data, bytes) else data)
                os.replace(new, name, src_dir_fd=place, dst_dir_fd=place)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=place)
                raise
    except OSError as error:
        error.filename = path
        raise
