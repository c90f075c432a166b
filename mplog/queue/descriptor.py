"""`Descriptor`: a descriptor that this process opened for mplog, and that may be somebody else's by now. POSIX only.

::

    we open a FIFO: 5 --> the program closes all descriptors, as daemons do --> opens a file of its own: 5

The rule of this file: **nothing is written to, read from or closed without knowing what it is.** No call writes to our
FIFO and to nothing else, so each use of a number asks first. Only a logging call that comes less than `KNOWN_FOR`
seconds after the last question does not ask. It may, because our numbers are high: the kernel hands out the lowest free
one, and a program needs longer to take all that are below ours. ``dup2`` onto our very number within that time remains.
"""

from __future__ import annotations

import math
import os
import stat
import sys

if sys.platform != "win32":
    import fcntl

#: Seconds for which a writing end that was ours still is.
KNOWN_FOR = 50e-6

# The table of descriptors grows to the highest number, 8 bytes for each, in every process and copied at every fork.
_HIGHEST_LIMIT = 4096

# The signal for input and output on the descriptor (fcntl(2), F_SETSIG), which nothing asks to be sent. It is a mark
# that only descriptors of mplog carry, and is asked for in a third of the time of fstat().
_MARK = 61


class Descriptor:
    """A descriptor of ours, by its number and by what it is.

    Attributes:
        fd: its number, -1 for none.
        known_until: up to this time of ``time.monotonic()``, it is taken for ours without asking.
    """

    __slots__ = ("_identity", "_is_marked", "fd", "known_until")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._identity = what_is(fd)
        self._is_marked = False
        self.known_until = -math.inf

    def mark(self) -> None:
        """Have `is_still_ours` take less time, on Linux."""
        if sys.platform == "linux":
            try:
                fcntl.fcntl(self.fd, fcntl.F_SETSIG, _MARK)
                self._is_marked = True
            except OSError:
                pass  # a sandbox that is not quite Linux

    def is_ours(self) -> bool:
        """Return whether the number still is what it was."""
        return self._identity is not None and what_is(self.fd) == self._identity

    def is_still_ours(self) -> bool:
        """Return the same, but take any marked descriptor for this one: see `mplog.queue.fifo.forget_closed`."""
        if not self._is_marked:
            return self.is_ours()
        try:
            return fcntl.fcntl(self.fd, fcntl.F_GETSIG) == _MARK
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless it is somebody else's by now."""
        identity, self._identity = self._identity, None  # in one step, for two threads
        if identity is not None and what_is(self.fd) == identity:
            os.close(self.fd)


def what_is(fd: int) -> tuple[int, int, int] | None:
    """Return what a descriptor is; None if there is none."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_ino, status.st_dev, stat.S_IFMT(status.st_mode)


#: In place of a descriptor that is not open.
NONE = Descriptor(-1)


def out_of_the_way(fd: int) -> int:
    """Move a descriptor to a high number, where the program's own files do not come soon after it was closed."""
    limit = os.sysconf("SC_OPEN_MAX")
    limit = min(limit, _HIGHEST_LIMIT) if limit > 0 else _HIGHEST_LIMIT
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, limit - limit // 8)
    except OSError:
        return fd  # all of these are taken
    os.close(fd)
    return high
