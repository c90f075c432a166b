"""What is where in the directory of a queue."""

from __future__ import annotations

import contextlib
import os
import shutil

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
    return os.path.exists(given_up_path(directory))


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
    # Twice: a process that logs once more may make a file while the directory is emptied. Once the FIFO is gone, that
    # process takes its file away again (`remove_if_unused`).
    for _ in range(2):
        shutil.rmtree(directory, ignore_errors=True)


def remove_if_unused(directory: str) -> None:
    """Remove the directory if its FIFO is gone: a new file of this process has kept it from being removed."""
    if not os.path.exists(current_fifo_path(directory)):
        for place in {workers_path(directory): None, directory: None}:
            with contextlib.suppress(OSError):
                os.rmdir(place)
