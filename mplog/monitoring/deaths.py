"""Who of those that log has died, and how. Runs in the logging process. Linux alone can tell; elsewhere nobody is seen.

::

    a record of a new pid -> pidfd -> epoll -- readable: it has died --> how? its zombie, the kernel's notes,
                                                                              or the owner, who waited for it

The rule of this file: **no line about a process that did not send, or that ended as it was meant to; and no waking up
for one that lives.** A pid alone proves nothing: in another container it is somebody else, and tomorrow again. So a
process is held by a pidfd, which stays with it, and only when it has our FIFO open at that moment.

What a dead process had written is in the FIFO when its pidfd says so: read that first, then report.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from mplog.record.plain import printable

if sys.platform != "win32":
    import fcntl
    import resource

__all__ = ["Death", "Watch", "describe", "describe_end", "has_ended", "is_held", "memory_kills", "start_mark"]

#: Processes watched at a time, each with one descriptor; half of what RLIMIT_NOFILE allows, where that is less. The
#: others log as well, but nothing is said of their death.
MAX_WATCHED = 500

#: Seconds until a process that could not be watched is tried again: its pid may be another's by then.
_RETRY_SECONDS = 10.0

#: What is remembered of those that cannot be watched, or have died, at most; pids come off the wire.
_REMEMBERED = 1000

#: Generations between a worker and the owner, at most.
_MAX_DEPTH = 100

#: Nobody needs to hear of these: the ways in which people, pools, terminals and supervisors end a process that works
#: well. Leaving ``with Pool()`` sends SIGTERM to each of its workers.
_ROUTINE_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if sys.platform != "win32" else []))
#: The last ones as the shell puts the same signals (128 + n), for programs that handle them and say so.
_ROUTINE_EXITS = {0, *(-number for number in _ROUTINE_SIGNALS), *(128 + number for number in _ROUTINE_SIGNALS)}

# Linux 6.15 tells how a process ended by its pidfd, also after its parent has waited for it (linux/pidfd.h). Where the
# request has another number (some rare architectures) or is not known, it fails.
_PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=Q52xi")  # mask, what else there is, exit_code


# Of a process that has begun to end (linux/sched.h).
_PF_EXITING = 0x4

_T = TypeVar("_T")


class Death(NamedTuple):
    """How a process ended that had been sending records.

    Attributes:
        pid: its pid.
        name: its name, as in its records.
        exitcode: as ``multiprocessing.Process.exitcode`` has it: the exit code, or minus the number of the signal.
        at: when that was seen, in seconds since the epoch.
        memory_kills: how many processes the kernel has killed for lack of memory since this one was first seen; None
            where it does not count them.
    """

    pid: int
    name: str
    exitcode: int
    at: float
    memory_kills: int | None = None

    @property
    def is_routine(self) -> bool:
        """Whether it ended as processes are meant to end: by itself with code 0, or by SIGTERM, SIGINT or SIGHUP."""
        return self.exitcode in _ROUTINE_EXITS


@dataclass
class _Process:
    """One that is watched, or has died without telling how.

    Attributes:
        started: when, in the kernel's clock ticks; with the pid, that is unique. Empty where it was over before.
        memory_kills: the kernel's count when it was first seen.
    """

    pid: int
    name: str
    fd: int = -1
    started: bytes = b""
    memory_kills: int | None = None
    died_at: float = field(default_factory=time.time)


class _Stat(NamedTuple):
    """What is needed of /proc/<pid>/stat (proc_pid_stat(5))."""

    pid: int
    state: bytes
    parent: int
    flags: int
    started: bytes
    exit_status: int

    @classmethod
    def read(cls, pid: int) -> _Stat:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # behind the name, which may be anything
        return cls(pid, fields[0], int(fields[1]), int(fields[6]), fields[19], int(fields[49]))

    @property
    def is_dead(self) -> bool:
        """Whether nothing is left of it but what its parent has not asked for yet."""
        return self.state in b"ZX"

    @property
    def is_ending(self) -> bool:
        """Whether it is dead or about to be: it closes its descriptors an instant before."""
        return self.is_dead or bool(self.flags & _PF_EXITING)


class Watch:
    """Watch the processes that send records, and tell of those that die.

    Where that is not possible (no Linux, or one before 5.3), `fileno` is None and nobody is ever seen to die, except by
    `told`.

    Args:
        path: the FIFO, which those that send have open; None for a plain queue, whose users are the owner and its
            descendants.
        owner: the pid of the process that has started the logging process.
        limit: processes to watch at a time, at most.

    Attributes:
        ended: the pids of those that were watched and have ended, however they did; for the caller to take.
    """

    def __init__(self, path: str | None, owner: int, *, limit: int = MAX_WATCHED) -> None:
        self._fifo = None if path is None else (os.path.basename(path), os.stat(path))
        self._owner = owner
        self._limit = limit
        self.ended: list[int] = []
        self._processes: dict[int, _Process] = {}
        self._by_fd: dict[int, _Process] = {}
        self._refused: dict[int, float] = {}
        self._unexplained: dict[int, _Process] = {}
        self._reported: dict[int, bytes] = {}
        self._memory_kills = memory_kills()
        self._epoll: select.epoll | None = None
        if hasattr(os, "pidfd_open") and hasattr(select, "epoll"):
            with contextlib.suppress(OSError):
                self._epoll = select.epoll()

    def __len__(self) -> int:
        """Return how many processes are watched."""
        return len(self._processes)

    def __contains__(self, pid: object) -> bool:
        """Return whether a process is watched."""
        return pid in self._processes

    def fileno(self) -> int | None:
        """Return the one descriptor to poll: it is readable while `deaths` has something to tell; None for none."""
        return None if self._epoll is None else self._epoll.fileno()

    def close(self) -> None:
        """Give the descriptors back."""
        for process in self._processes.values():
            os.close(process.fd)
        self._processes.clear()
        self._by_fd.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    # --- watching ---

    def watch(self, pid: int, name: str) -> bytes | None:
        """Watch a process that has just sent a record, if that can be done; for one that is watched, note its name.

        Cheap to call again: once a batch for each of its senders. So a pid that has come into use again is seen.

        Returns:
            What tells it from another of the same pid, for `resume`; None where it is not watched.
        """
        process = self._processes.get(pid)
        if process is not None:
            process.name = name
            return process.started
        if self._epoll is None or time.monotonic() < self._refused.get(pid, 0.0):
            return None
        self._refused.pop(pid, None)
        if self._open(pid, name):
            return self._processes[pid].started
        _remember(self._refused, pid, time.monotonic() + _RETRY_SECONDS)
        return None

    def resume(self, pid: int, name: str, started: bytes) -> bool:
        """Watch a process that another logging process has watched; return whether that can be done.

        Args:
            pid, name: its.
            started: what `watch` has returned for it.
        """
        if self._epoll is None or pid in self._processes:
            return False
        process = _Process(pid, name, started=started, memory_kills=memory_kills())
        try:
            process.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            _remember(self._unexplained, pid, process)  # dead, and waited for: the owner may know how
            return False
        except (OSError, OverflowError, ValueError):
            return False
        try:
            if _Stat.read(pid).started != started:
                raise ProcessLookupError(pid)
            self._epoll.register(process.fd, select.EPOLLIN)
        except (OSError, ValueError, IndexError):
            os.close(process.fd)
            return False
        self._processes[pid] = self._by_fd[process.fd] = process
        return True

    def _open(self, pid: int, name: str) -> bool:
        if len(self._processes) >= self._limit_now():
            return False
        process = _Process(pid, name, memory_kills=self._memory_kills)
        try:
            process.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            _remember(self._unexplained, pid, process)  # dead already, and waited for: the owner may know how
            return False
        except (OSError, OverflowError, ValueError):
            return False  # no descriptor left, not allowed (seccomp), not known to the kernel, or no pid at all
        stat = self._stat_of_sender(pid)
        try:
            # The last records of one that has died may be read behind that, and it is not to be told again.
            if stat is None or (stat.is_dead and self._reported.get(pid) == stat.started):
                raise ProcessLookupError(pid)
            assert self._epoll is not None
            self._epoll.register(process.fd, select.EPOLLIN)
        except OSError:
            os.close(process.fd)
            return False
        process.started = stat.started
        process.memory_kills = memory_kills()
        self._processes[pid] = self._by_fd[process.fd] = process
        return True

    def _limit_now(self) -> int:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self._limit if soft == resource.RLIM_INFINITY else min(self._limit, soft // 2)

    def _stat_of_sender(self, pid: int) -> _Stat | None:
        """Return what /proc says of the process, if it is one that can have sent what we read, else None."""
        try:
            stat = _Stat.read(pid)
            if self._fifo is not None:
                if self._has_fifo_open(pid):
                    return stat
                # One that has died since it sent, or is dying at this moment, has no descriptors any more.
                stat = _Stat.read(pid)
                if not stat.is_ending:
                    return None
            return stat if self._descends(stat) else None
        except (OSError, ValueError, IndexError):
            return None  # not ours to look into, or gone

    def _has_fifo_open(self, pid: int) -> bool:
        assert self._fifo is not None
        name, wanted = self._fifo
        # The numbers of a FIFO's descriptors are high. Only what has its name is looked at more closely: a file on a
        # network may take for ever to tell its inode.
        for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd")), reverse=True):
            link = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                if os.path.basename(os.readlink(link)).removesuffix(" (deleted)") == name:
                    found = os.stat(link)
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return True
        return False

    def _descends(self, stat: _Stat) -> bool:
        """Return whether the process is the owner or one of its descendants."""
        for _ in range(_MAX_DEPTH):
            if self._owner in (stat.pid, stat.parent):
                return True
            if stat.parent <= 1:
                return False
            stat = _Stat.read(stat.parent)
        return False

    # --- deaths ---

    def deaths(self, timeout: float = 0.0) -> list[Death]:
        """Return who has died, and how, since the last call. Those that ended as they were meant to are not in it.

        Args:
            timeout: for how many seconds to wait for somebody; 0 (the default) does not.
        """
        if self._epoll is None:
            return []
        found = []
        for fd, _ in self._epoll.poll(timeout):
            process = self._forget(fd)
            status = _exit_status(process)
            os.close(fd)
            death = None if status is None else self._explain(process, os.waitstatus_to_exitcode(status))
            if status is None:
                _remember(self._unexplained, process.pid, process)
            elif death is not None:
                _remember(self._reported, process.pid, process.started)
                found.append(death)
        return found

    def rest(self, timeout: float) -> list[Death]:
        """Return who dies within `timeout` seconds, or until nobody is left: for the end, when all that log are ending.

        A process closes its descriptors, which ends the FIFO, an instant before it is dead.
        """
        deadline = time.monotonic() + timeout
        found = self.deaths()
        while self._processes and (left := deadline - time.monotonic()) > 0:
            found += self.deaths(left)
        return found

    def told(self, pid: int, name: str, exitcode: int) -> Death | None:
        """Take it from the owner, who has waited for its child; return what is to be said of it, if it is still unsaid.

        So is known what the kernel forgets before Linux 6.15 as soon as a parent has waited, and of a process that has
        died before its first record was read.

        Args:
            pid: the child's.
            name: the child's.
            exitcode: as in ``multiprocessing.Process.exitcode``.
        """
        process = self._processes.get(pid)
        if process is not None and _is_over(process.fd):
            self._forget(process.fd)
            os.close(process.fd)
        elif pid in self._reported:
            del self._reported[pid]
            return None
        else:
            process = self._unexplained.pop(pid, None)
        return self._explain(process or _Process(pid, name, memory_kills=self._memory_kills), exitcode)

    def _forget(self, fd: int) -> _Process:
        assert self._epoll is not None
        self._epoll.unregister(fd)
        process = self._by_fd.pop(fd)
        process.died_at = time.time()
        self.ended.append(process.pid)
        return self._processes.pop(process.pid)

    def _explain(self, process: _Process, exitcode: int) -> Death | None:
        before, now = process.memory_kills, memory_kills()
        kills = None if before is None or now is None else max(0, now - before)
        death = Death(process.pid, process.name, exitcode, process.died_at, kills)
        return None if death.is_routine else death


def describe(death: Death, received: int, last_record_at: float | None) -> str:
    """Return the line to write.

    Args:
        death: who, and how.
        received: the records that have been received from it.
        last_record_at: when it logged the last of them, in seconds since the epoch; None for never.
    """
    who = f"mplog: {printable(death.name[:100])} (pid {death.pid})"
    records = f"after {received:,} record{'' if received == 1 else 's'}"
    last = "" if last_record_at is None else f"; the last one at {_time_of_day(last_record_at)}"
    end = describe_end(death.exitcode, death.memory_kills)
    return f"{who} {end}{',' if death.exitcode < 0 else ''} {records}{last}"


def describe_end(exitcode: int, killed_for_memory: int | None) -> str:
    """Return how a process ended, and for SIGKILL the likely cause.

    Args:
        exitcode: as ``multiprocessing.Process.exitcode`` has it.
        killed_for_memory: how many processes the kernel has killed for lack of memory meanwhile; None for not known.
    """
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}{_cause(killed_for_memory) if name == 'SIGKILL' else ''}"


def _cause(killed_for_memory: int | None) -> str:
    if killed_for_memory is None:
        return " (likely cause: out of memory)"
    if not killed_for_memory:
        return " (likely by another process; the kernel has killed none for being out of memory)"
    count = f"{killed_for_memory} process{'' if killed_for_memory == 1 else 'es'}"
    return f" (likely cause: out of memory; the kernel has killed {count} for that since this one began to log)"


def has_ended(pid: int) -> bool:
    """Return whether there is no such process, or only what its parent has not asked for yet."""
    try:
        return _Stat.read(pid).is_dead
    except (FileNotFoundError, ProcessLookupError):
        pass
    except (OSError, ValueError, IndexError):
        return False  # it is there, and is not ours to look into
    try:
        os.kill(pid, 0)  # not Linux
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def start_mark(pid: int) -> str:
    """Return what tells a process from a later one of its pid; empty where that cannot be told, or it has ended."""
    try:
        found = _Stat.read(pid)
    except (OSError, ValueError, IndexError):
        return ""
    return "" if found.is_dead else found.started.decode()


def is_held(pid: int) -> bool:
    """Return whether a process stands still, by SIGSTOP or a debugger, as far as that can be told."""
    try:
        return _Stat.read(pid).state in b"Tt"
    except (OSError, ValueError, IndexError):
        return False


def _time_of_day(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, OSError, ValueError):
        return f"{at:g}"  # off the wire


def _remember(what: dict[int, _T], pid: int, value: _T) -> None:
    if len(what) >= _REMEMBERED:
        del what[next(iter(what))]  # the oldest
    what[pid] = value


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _exit_status(process: _Process) -> int | None:
    """Return how a dead process has ended, as wait(2) puts it; None where the kernel does not know any more."""
    status = _noted_status(process.fd)
    if status is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = _Stat.read(process.pid)
            if stat.is_dead and stat.started == process.started:
                return stat.exit_status
        status = _noted_status(process.fd)  # its parent has waited for it in between
    return status


def _noted_status(pidfd: int) -> int | None:
    """Return the exit status that the kernel keeps with the pidfd once the parent has waited."""
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = _PIDFD_INFO.unpack(info)
    return int(status) if mask & _PIDFD_INFO_EXIT else None


def memory_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory, on the whole machine (Linux 4.13)."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/vmstat", "rb", buffering=0) as file:
        return int(file.read().split(b"\noom_kill ")[1].split(b"\n")[0])
    return None
