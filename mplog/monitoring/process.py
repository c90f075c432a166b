"""What the kernel tells of a process: whether it runs, since when, and how it ended.

Most of this is in /proc, which only Linux has. Where it is missing, each function says what it returns instead.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from typing import NamedTuple

if sys.platform != "win32":
    import fcntl

# Linux 6.15 tells how a process ended by its pidfd, even after the parent has waited for it (linux/pidfd.h). The call
# fails on older kernels, and on some rare architectures, where the request has another number.
PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=Q52xi")  # mask, other fields, exit_code

# The flag of a process that has begun to end (linux/sched.h).
_PF_EXITING = 0x4


class Stat(NamedTuple):
    """Fields of /proc/<pid>/stat (proc_pid_stat(5)); `started`, in clock ticks, is unique together with the pid."""

    pid: int
    state: bytes
    parent: int
    flags: int
    started: bytes
    exit_status: int

    @classmethod
    def read(cls, pid: int) -> Stat:
        """Read them; raise OSError, ValueError or IndexError for a process that is gone or hidden, or without /proc."""
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # what follows the name, which may be anything
        return cls(pid, fields[0], int(fields[1]), int(fields[6]), fields[19], int(fields[49]))

    @classmethod
    def find(cls, pid: int) -> Stat | None:
        """Return them, or None where they cannot be read."""
        try:
            return cls.read(pid)
        except (OSError, ValueError, IndexError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether the process is a zombie: only the status is left, for which the parent has not asked yet."""
        return self.state in b"ZX"

    @property
    def is_ending(self) -> bool:
        """Whether the process is dead or about to be: it closes its descriptors an instant before."""
        return self.is_dead or bool(self.flags & _PF_EXITING)


def has_ended(pid: int) -> bool:
    """Return whether there is no such process, or only a zombie; False for one that may not be looked at."""
    stat = Stat.find(pid)
    if stat is not None:
        return stat.is_dead
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def start_mark(pid: int) -> str:
    """Return what tells a process from a later one with its pid; empty if it has ended, or that is not known."""
    found = Stat.find(pid)
    return "" if found is None or found.is_dead else found.started.decode()


def is_held(pid: int) -> bool:
    """Return whether a process is stopped by SIGSTOP or a debugger; False if that is not known."""
    found = Stat.find(pid)
    return found is not None and found.state in b"Tt"


def maps(pid: int, path: str, *, otherwise: bool = False) -> bool:
    """Return whether a process has a file mapped into its memory; `otherwise` if it may not be looked at."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return os.fsencode(path) in file.read()
    except PermissionError:
        return otherwise
    except OSError:
        return False


def pids_that_map(path: str) -> list[int]:
    """Return which other processes have a file mapped into their memory, as far as they may be looked at."""
    with contextlib.suppress(OSError):
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        return [pid for pid in pids if pid != os.getpid() and maps(pid, path)]
    return []


def exit_status(pid: int, started: bytes, pidfd: int) -> int | None:
    """Return how a dead process ended, as wait(2) gives it; None where the kernel has forgotten."""
    stat = Stat.find(pid)
    if stat is not None and stat.is_dead and stat.started == started:
        return stat.exit_status
    return noted_status(pidfd)  # the parent has waited for it


def noted_status(pidfd: int) -> int | None:
    """Return the exit status that the kernel keeps with the pidfd once the parent has waited (Linux 6.15)."""
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = _PIDFD_INFO.unpack(info)
    return int(status) if mask & _PIDFD_INFO_EXIT else None


def memory_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory, on the whole machine (Linux 4.13)."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/vmstat", "rb", buffering=0) as file:
        return int(file.read().split(b"\noom_kill ")[1].split(b"\n")[0])
    return None


def memory_kills_since(before: int | None) -> int | None:
    """Return how many more processes the kernel has killed for lack of memory; None where it does not count them."""
    now = memory_kills()
    return None if before is None or now is None else max(0, now - before)
