"""Locks between processes, which the kernel frees when the process that holds one dies, and between threads.

Of those between processes (POSIX only) there are three kinds, because each has what the others lack:

- `try_lock_process` (fcntl(2), F_SETLK) belongs to a process: a fork that has inherited the descriptor does not hold
  it. The processes that read a queue keep their descriptor open, so they need this one.
- `try_lock_file` (flock(2)) belongs to an open file: it keeps threads of one process apart, too, and closing another
  descriptor of the same file does not free it. The emergency file is reopened each time, so it needs this one.
- ``filelock`` (`mplog.files.lock`) works on every platform, with a file of its own that tells who holds it. Log files
  have it.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import weakref
from typing import Any

if sys.platform != "win32":
    import fcntl

#: Seconds between two attempts to take a lock.
PAUSE = 0.001


def try_lock_process(fd: int) -> bool:
    """Take a lock that belongs to this process; return whether it was free."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def unlock_process(fd: int) -> None:
    """Give back what `try_lock_process` has taken; do nothing if it has not."""
    fcntl.lockf(fd, fcntl.LOCK_UN)


def try_lock_file(fd: int, *, shared: bool = False) -> bool:
    """Take a lock that belongs to this open file, alone or with others that share it; return whether it was free."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_file(fd: int) -> None:
    """Give back what `try_lock_file` has taken."""
    # A process that another thread has forked meanwhile has the file open, too: closing alone would not free it.
    fcntl.flock(fd, fcntl.LOCK_UN)


#: What has locks of its threads, and the names of its attributes.
_owners: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def give_locks(owner: Any, *names: str) -> None:
    """Set attributes to reentrant locks for the threads of this process, and to new ones in each fork of it.

    In a fork, nobody would release a lock that another thread held at that moment.
    """
    for name in names:
        setattr(owner, name, threading.RLock())
    _owners[owner] = names


def _renew() -> None:
    """Runs in a process that has just been forked."""
    for owner, names in list(_owners.items()):
        give_locks(owner, *names)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
