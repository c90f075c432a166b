"""What is where in the directory of a queue."""

from __future__ import annotations

import contextlib
import os
import shutil


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


def remove(directory: str) -> None:
    # Twice: a process that logs once more may make a file while the directory is emptied. Once the FIFO is gone, that
    # process takes its file away again (`remove_if_unused`).
    for _ in range(2):
        shutil.rmtree(directory, ignore_errors=True)


def remove_if_unused(directory: str) -> None:
    """Remove the directory if its FIFO is gone: a new file of this process has kept it from being removed."""
    if not os.path.exists(current_fifo_path(directory)):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
