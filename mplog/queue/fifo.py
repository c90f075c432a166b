"""The two ends of a FIFO. POSIX only.

The rule of this file: **the kernel is the only thing that processes share.** A write of at most ``PIPE_BUF`` bytes is
atomic (POSIX, write(2)), so writers need no lock; what they wrote stays in the kernel when they die; and a FIFO is a
path, so any process of the machine can open it at any time.

Every function raises what the operating system says: FileNotFoundError where the path is gone, BlockingIOError where
the FIFO is full or empty, BrokenPipeError where no process reads it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import math
import os
import select
import stat
import sys
import time
import weakref
from typing import Any

from mplog.queue.descriptor import out_of_the_way
from mplog.queue.directory import is_own, open_file
from mplog.queue.native import poll, read

if sys.platform != "win32":
    import fcntl
    import termios

# Linux; the fcntl module has the names on Linux alone.
_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032

# What a file system answers that cannot change an inode. A FIFO itself has none of these errors.
_AFTER_WRITE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))

# poll() counts milliseconds in a C int; a longer wait is several of them.
_LONGEST_POLL = 86400.0

#: The clock of all deadlines. Tests may stop ``time.monotonic()`` (freezegun), and a wait would never end.
if sys.platform != "win32":
    monotonic = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
else:
    monotonic = functools.partial(time.monotonic)


def create(path: str) -> None:
    """Make a FIFO that only its owner can open."""
    os.mkfifo(path, 0o600)


def open_reader(path: str, *, of: int = -1) -> int:
    """Open the reading end without waiting for a writer.

    `of` is a descriptor of the same FIFO, if the caller has one: where there is a /proc, the path is then not needed.
    """
    return out_of_the_way(_open_own(path, os.O_RDONLY, of))


def open_writer(path: str, *, of: int = -1) -> int:
    """Open the writing end; `of` is as for `open_reader`."""
    try:
        return out_of_the_way(_open_own(path, os.O_WRONLY, of))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE), path) from None
        raise


def _open_own(path: str, flags: int, of: int) -> int:
    """Open a FIFO of this user or of root; raise PermissionError if it is not one.

    After a queue has ended, another user may make a directory of its name, to read what is logged, or to have it
    written into another file.
    """
    again = f"/proc/self/fd/{of}"
    if of >= 0 and os.path.exists(again):
        fd = os.open(again, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    else:
        fd = open_file(path, flags | os.O_NONBLOCK)
    found = os.fstat(fd)
    if stat.S_ISFIFO(found.st_mode) and is_own(found):
        return fd
    os.close(fd)
    raise PermissionError(errno.EPERM, "not a queue of this user", path)


def was_written(error: OSError) -> bool:
    """Return whether a write that has failed was made all the same, all of it.

    Linux writes, and then notes the time in the inode of the FIFO (file_update_time() in pipe_write(), fs/pipe.c). If
    that fails, as it does on a full btrfs, so does the write.
    """
    return error.errno in _AFTER_WRITE


#: What keeps ends of FIFOs open in this process. Each has a method ``forget_closed``.
holders: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_closed() -> None:
    """Note which ends the program has closed: some programs close all descriptors, as daemons do.

    All holders at once, before one of the numbers is used again for another end.
    """
    for holder in list(holders):
        holder.forget_closed()


def set_size(fd: int, size: int) -> int:
    """Ask for room for `size` bytes and return what was granted.

    Linux grants up to /proc/sys/fs/pipe-max-size (1 MiB) and, to one user, 64 MiB in all before it falls back to what a
    pipe has by itself (pipe(7)). Other systems have a fixed size.
    """
    for command, argument in ((_F_SETPIPE_SZ, size), (_F_GETPIPE_SZ, 0)):
        with contextlib.suppress(OSError):
            return fcntl.fcntl(fd, command, argument)
    return 65536


def size(fd: int) -> int:
    """Return for how many bytes there is room in all."""
    with contextlib.suppress(OSError):
        return fcntl.fcntl(fd, _F_GETPIPE_SZ)
    return 65536


def pending(fd: int) -> int:
    """Return how many bytes wait in the FIFO; either end can ask."""
    buffer = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return buffer[0]


def is_deserted(read_fd: int) -> bool:
    """Return whether the last writer has closed the FIFO."""
    waiting = poll()
    waiting.register(read_fd, select.POLLIN)
    return any(event & select.POLLHUP for _, event in waiting.poll(0))


def peek(fd: int) -> bytes:
    """Return what waits in the FIFO without taking it (tee(2)); raise NotImplementedError if this is not Linux."""
    if sys.platform != "linux":
        raise NotImplementedError("only Linux can look into a FIFO without reading it")
    import ctypes

    size = pending(fd)
    copy_reader, copy_writer = os.pipe()
    try:
        set_size(copy_writer, fcntl.fcntl(fd, _F_GETPIPE_SZ))
        splice_nonblock = 2
        copied = ctypes.CDLL(None, use_errno=True).tee(fd, copy_writer, ctypes.c_size_t(size), splice_nonblock)
        return read(copy_reader, copied) if copied > 0 else b""
    finally:
        os.close(copy_reader)
        os.close(copy_writer)


def open_lock(path: str) -> int:
    """Open a file to lock, with a high descriptor like that of a FIFO."""
    return out_of_the_way(open_file(path, os.O_RDWR | os.O_CREAT))


def wait(fd: int, event: int, deadline: float | None) -> bool:
    """Wait until the end is ready, or broken, as the next read or write then says; return False when time is over.

    Args:
        fd: one end.
        event: ``select.POLLIN`` or ``select.POLLOUT``.
        deadline: a time of `monotonic`; None waits for ever.
    """
    waiting = poll()
    waiting.register(fd, event)
    if deadline is None:
        return bool(waiting.poll())
    while True:
        left = max(0.0, deadline - monotonic())
        if waiting.poll(math.ceil(min(left, _LONGEST_POLL) * 1000)):
            return True
        if left <= _LONGEST_POLL:
            return False


def is_alive(pid: int) -> bool:
    """Return whether there is such a process; True where that cannot be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
