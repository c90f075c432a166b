"""What is where in the directory of a queue, and how a process opens it. POSIX only.

The rule of this file: **nothing in the directory is trusted before the directory is.** In /tmp, another user may make
one of the same name once ours has gone, or exchange it between two calls. So whoever opens a file opens the directory
first, checks what it has opened (`opened`), and goes on from there, never by the path again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


def fifo_path(directory: str) -> str:
    """Return the path of the FIFO. It is there for as long as the queue can be used."""
    return os.path.join(directory, "queue")


def lock_path(directory: str) -> str:
    """Return the path of the file that a process locks while it reads a frame."""
    return os.path.join(directory, "readers")


def emergency_path(directory: str) -> str:
    """Return the path of the emergency file, where the policy names no other."""
    return os.path.join(directory, "emergency")


def given_up_path(directory: str) -> str:
    """Return the path of the file that is there once no logging process will read the queue any more."""
    return os.path.join(directory, "given-up")


def is_given_up(directory: str) -> bool:
    """Whether no logging process will read the queue any more."""
    with contextlib.suppress(OSError), opened(directory) as fd:
        os.stat(os.path.basename(given_up_path(directory)), dir_fd=fd)
        return True
    return False


# --- opening ---


def is_own(found: os.stat_result) -> bool:
    """Whether what was found belongs to this user. The queue of another user is neither read nor written."""
    return found.st_uid == os.geteuid()


@contextlib.contextmanager
def opened(directory: str) -> Iterator[int]:
    """Open a directory, to be the ``dir_fd`` of what is done in it.

    Raises:
        PermissionError: it is not this user's, or others can write in it.
        OSError: there is none; a link leads to one, and is another user's.
    """
    if os.path.islink(directory) and is_own(os.lstat(directory)):
        directory = os.path.realpath(directory)  # `mplog serve --queue` makes such links
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not is_own(found) or found.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "not a directory of this user alone", directory)
        yield fd
    finally:
        os.close(fd)


def open_file(path: str, flags: int) -> int:
    """Open a file in the directory of a queue (`opened`); a new one is for this user alone.

    A link is followed: only this user can have made it (see `mplog.logging_process.caretaker`).
    """
    directory, name = os.path.split(path)
    try:
        with opened(directory) as fd:
            return os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except OSError as error:
        error.filename = path
        raise


def read_file(path: str) -> bytes:
    """Return what is in a file of the directory of a queue."""
    with open(open_file(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read()


# --- removing ---


def remove(directory: str) -> None:
    """Remove the directory, unless another user has made one in its place."""
    import shutil  # few workers need it

    with contextlib.suppress(OSError):
        if not is_own(os.lstat(directory)):
            return
    # Twice: a process that logs once more may make a file while the directory is emptied. Once the FIFO is gone, that
    # process takes its file away again (`remove_if_unused`).
    for _ in range(2):
        shutil.rmtree(directory, ignore_errors=True)


def remove_if_unused(directory: str) -> None:
    """Remove the directory if its FIFO is gone: a new file of this process has kept it from being removed."""
    if not os.path.lexists(fifo_path(directory)):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
