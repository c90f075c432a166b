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

_WORKERS = "workers"


def fifo_path(directory: str) -> str:
    """Return the path of the FIFO. It is there for as long as the queue can be used."""
    return os.path.join(directory, "queue")


def ended_path(directory: str) -> str:
    """Return the path that the FIFO gets when the server ends in order: from then on, no process opens it."""
    return os.path.join(directory, "queue-ended")


def current_fifo_path(directory: str) -> str:
    """Return where the FIFO is, also while the server ends."""
    path = fifo_path(directory)
    return path if os.path.lexists(path) else ended_path(directory)


def end(directory: str) -> str:
    """Tell writers that the server ends, so that they do not keep their records for the next one; return the path."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(fifo_path(directory), ended_path(directory))
    return ended_path(directory)


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
    """Whether no logging process will read the queue any more, though its server has not ended in order."""
    with contextlib.suppress(OSError), opened(directory) as fd:
        os.stat(os.path.basename(given_up_path(directory)), dir_fd=fd)
        return True
    return False


# --- opening ---


def is_own(found: os.stat_result) -> bool:
    """Whether what was found belongs to this user, or to root. That of another user is neither read nor written."""
    return found.st_uid in (os.geteuid(), 0)


@contextlib.contextmanager
def opened(directory: str, access: int = getattr(os, "O_PATH", os.O_RDONLY)) -> Iterator[int]:
    """Open a directory, to be the ``dir_fd`` of what is done in it.

    Args:
        directory: its path.
        access: by default, it is not to be listed, which members of the group may not do.

    Raises:
        PermissionError: it is not this user's, or others can write in it.
        OSError: there is none; a link leads to one, and is another user's.
    """
    flags = access | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    parent, name = os.path.split(directory)
    if name == _WORKERS:
        with opened(parent) as place:
            fd = os.open(name, flags, dir_fd=place)
        is_alone = True  # nobody can put another one in its place
    else:
        if os.path.islink(directory) and is_own(os.lstat(directory)):
            directory = os.path.realpath(directory)  # `mplog serve --queue` makes such links
        fd = os.open(directory, flags)
        found = os.fstat(fd)
        is_alone = is_own(found) and not found.st_mode & 0o022
    try:
        if not is_alone:
            raise PermissionError(errno.EPERM, "not a directory of this user alone", directory)
        yield fd
    finally:
        os.close(fd)


def open_file(path: str, flags: int) -> int:
    """Open a file in the directory of a queue (`opened`); a new one is for this user alone.

    A link is followed to what was removed (see `mplog.logging_process.caretaker`), except where workers of other users
    make files. Once the process that made the link has died, it may lead to whatever another one has open.

    Raises:
        PermissionError: a link leads to what has a name, or is another user's.
    """
    directory, name = os.path.split(path)
    flags |= os.O_CLOEXEC
    try:
        with opened(directory) as place:
            try:
                return os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=place)
            except OSError as error:
                if error.errno != errno.ELOOP or os.path.basename(directory) == _WORKERS:
                    raise
            # Without waiting for the other end of whatever it is, and without emptying it.
            fd = os.open(name, (flags | os.O_NONBLOCK) & ~os.O_TRUNC, dir_fd=place)
            found = os.fstat(fd)
            if is_own(found) and not found.st_nlink:
                return fd
            os.close(fd)
            raise PermissionError(errno.EPERM, "a link to what was not removed from here")
    except OSError as error:
        error.filename = path
        raise


def read_file(path: str) -> bytes:
    """Return what is in a file of the directory of a queue."""
    with open(open_file(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read()


# --- removing ---


def share(directory: str, group: int) -> None:
    """Let the members of a group join the queue, which stays closed to all others.

    They find files of the directory by their names, and write into the FIFO. Their own files go into a directory within
    (`workers_path`), so that nobody can put a file in the place of one that the server writes.

    Raises:
        OSError: this user may not give files to that group.
    """
    place = os.path.join(directory, _WORKERS)
    os.mkdir(place, 0o700)
    # The group first: it takes some of the bits away. Files of the server get the directory's group.
    for path, mode in ((fifo_path(directory), 0o620), (place, 0o1730), (directory, 0o2710)):
        os.chown(path, -1, group)
        os.chmod(path, mode)


def workers_path(directory: str) -> str:
    """Return the path of the directory in which workers make files."""
    place = os.path.join(directory, _WORKERS)
    return place if os.path.isdir(place) else directory


def is_writable(directory: str) -> bool:
    """Whether this process may make files there, and could so count what it loses."""
    # Of the effective user, on the systems that can tell.
    effective = os.access in os.supports_effective_ids
    return os.access(workers_path(directory), os.W_OK | os.X_OK, effective_ids=effective)


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
    if not os.path.lexists(current_fifo_path(directory)):
        for place in {workers_path(directory): None, directory: None}:
            with contextlib.suppress(OSError):
                os.rmdir(place)
