"""Watching the processes that send records, to tell which of them died. Runs in the logging process, on Linux only.

The rule of this file: **no line about a process that did not send, or that ended as it was meant to; and nothing polls
an idle process.** A pid alone proves nothing: a new process may have it tomorrow, and in another container it belongs
to another process today. So a process is held by a pidfd, and only if it has our FIFO open at that moment. When the
pidfd tells of a death, all that the process wrote is in the FIFO: read that first, then report.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from multiprocessing.connection import wait
from typing import TypeVar

import msgspec

from mplog.monitoring.death_lines import Death
from mplog.monitoring.process import Stat, exit_status, memory_kills, memory_kills_since

if sys.platform != "win32":
    import resource

#: Processes watched at a time, each with one descriptor; at most half of what RLIMIT_NOFILE allows. The log does not
#: tell of the deaths of others.
MAX_WATCHED = 500
#: Seconds until a process that could not be watched is tried again: by then, a new process may have its pid.
RETRY_SECONDS = 10.0
#: How many processes that cannot be watched, or have died, are remembered; pids come off the wire.
REMEMBERED = 1000
#: Generations between a worker and the owner, at most.
_MAX_DEPTH = 100

_T = TypeVar("_T")


class _Process(msgspec.Struct):
    """A process that is watched, or died in an unknown way. `started`: as in its `Stat`, empty if unknown."""

    pid: int
    name: str
    fd: int = -1
    started: bytes = b""
    memory_kills: int | None = None
    died_at: float = msgspec.field(default_factory=time.time)


class Senders:
    """Finds the processes that can send: those with the FIFO open, or, of a plain queue, its owner and descendants.

    `fd` is a descriptor of the FIFO, if there is one: its path may be gone.
    """

    def __init__(self, path: str | None, owner: int, fd: int = -1) -> None:
        self._fifo = None
        if path is not None:
            self._fifo = os.path.basename(path), os.stat(path) if fd < 0 else os.fstat(fd)
        self._owner = owner

    def stat(self, pid: int) -> Stat | None:
        """Return what /proc says of a process; None if it cannot be a sender."""
        try:
            stat = Stat.read(pid)
            if self._fifo is not None:
                if self.has_fifo_open(pid):
                    return stat
                # A process that has died since it sent, or is dying at this moment, has no descriptors any more.
                stat = Stat.read(pid)
                if not stat.is_ending:
                    return None
            return stat if self._descends(stat) else None
        except (OSError, ValueError, IndexError):
            return None  # it may not be looked at, or is gone

    def has_fifo_open(self, pid: int) -> bool:
        assert self._fifo is not None
        name, wanted = self._fifo
        # The numbers of a FIFO's descriptors are high. Only what has its name is looked at more closely: a file on a
        # network may take for ever to tell its inode.
        for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd")), reverse=True):
            link = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                if os.path.basename(os.readlink(link)).startswith(name):
                    found = os.stat(link)
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return True
        return False

    def _descends(self, stat: Stat) -> bool:
        """Return whether the process is the owner or one of its descendants."""
        for _ in range(_MAX_DEPTH):
            if self._owner in (stat.pid, stat.parent):
                return True
            if stat.parent <= 1:
                return False
            stat = Stat.read(stat.parent)
        return False


class Watch:
    """Watches the processes that send records, and tells which of them die. The arguments are those of `Senders`.

    Where that is not possible (before Linux 5.3, or elsewhere), `fileno` is None, and only `told` finds deaths. `ended`
    has the pids of processes that have ended, in whatever way, until the caller takes them.
    """

    def __init__(self, path: str | None, owner: int, fd: int = -1) -> None:
        self.senders = Senders(path, owner, fd)
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
        return len(self._processes)

    def __contains__(self, pid: object) -> bool:
        return pid in self._processes

    def fileno(self) -> int | None:
        """Return the descriptor to poll, which is readable while `deaths` has something to tell; None for none."""
        return None if self._epoll is None else self._epoll.fileno()

    def close(self) -> None:
        for process in self._processes.values():
            os.close(process.fd)
        self._processes.clear()
        self._by_fd.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def watch(self, pid: int, name: str) -> bytes | None:
        """Watch a sender; return a mark for `resume` that tells it from others with its pid, or None if not possible.

        Cheap to call again, once a batch for each sender, so that a pid that is used again is noticed.
        """
        process = self._processes.get(pid)
        if process is not None:
            process.name = name
            return process.started
        if self._epoll is None or time.monotonic() < self._refused.get(pid, 0.0):
            return None
        self._refused.pop(pid, None)
        if len(self._processes) < most_watched() and self._open(_Process(pid, name)):
            return self._processes[pid].started
        _remember(self._refused, pid, time.monotonic() + RETRY_SECONDS)
        return None

    def resume(self, pid: int, name: str, started: bytes) -> bool:
        """Watch a process for which the logging process before this one got `started` from `watch`, if possible."""
        return self._epoll is not None and pid not in self._processes and self._open(_Process(pid, name), started)

    def _open(self, process: _Process, started: bytes | None = None) -> bool:
        """Watch a process if possible: a sender, or the one that `started` at that time."""
        process.memory_kills = self._memory_kills
        try:
            process.fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            _remember(self._unexplained, process.pid, process)  # dead, and waited for: the owner may know how it ended
            return False
        except (OSError, OverflowError, ValueError):
            return False  # no descriptor left, not allowed (seccomp), not known to the kernel, or no pid at all
        try:
            # Asked once the pidfd holds the process.
            found = self.senders.stat(process.pid) if started is None else Stat.find(process.pid)
            # The last records of a dead process may be read after its death was reported, which must not be repeated.
            if (
                found is None
                or started not in (None, found.started)
                or (found.is_dead and self._reported.get(process.pid) == found.started)
            ):
                raise ProcessLookupError(process.pid)
            assert self._epoll is not None
            self._epoll.register(process.fd, select.EPOLLIN)
        except OSError:
            os.close(process.fd)
            return False
        process.started = found.started
        process.memory_kills = memory_kills()
        self._processes[process.pid] = self._by_fd[process.fd] = process
        return True

    def deaths(self, timeout: float = 0.0) -> list[Death]:
        """Return the deaths since the last call, except routine ones; wait at most `timeout` seconds for one."""
        if self._epoll is None:
            return []
        found = []
        for fd, _ in self._epoll.poll(timeout):
            process = self._forget(fd)
            status = exit_status(process.pid, process.started, process.fd)
            os.close(fd)
            if status is None:
                _remember(self._unexplained, process.pid, process)
            elif (death := self._explain(process, os.waitstatus_to_exitcode(status))) is not None:
                _remember(self._reported, process.pid, process.started)
                found.append(death)
        return found

    def rest(self, timeout: float) -> list[Death]:
        """Return the deaths until no watched process is left, or `timeout` seconds have passed.

        For the end of the log: a process closes its descriptors, which ends the FIFO, an instant before it is dead.
        """
        deadline = time.monotonic() + timeout
        found = self.deaths()
        while self._processes and (left := deadline - time.monotonic()) > 0:
            found += self.deaths(left)
        return found

    def told(self, pid: int, name: str, exitcode: int) -> Death | None:
        """Return the death of a child for which the owner has waited; None if it is reported already, or routine.

        Before Linux 6.15, the kernel forgets how a process ended as soon as the parent has waited for it. The owner
        also knows of processes that died before their first record was read.
        """
        process = self._processes.get(pid)
        if process is not None and wait([process.fd], 0):
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
        kills = memory_kills_since(process.memory_kills)
        death = Death(process.pid, process.name, exitcode, process.died_at, kills)
        return None if death.is_routine else death


def most_watched() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_WATCHED if soft == resource.RLIM_INFINITY else min(MAX_WATCHED, soft // 2)


def _remember(what: dict[int, _T], pid: int, value: _T) -> None:
    if len(what) >= REMEMBERED:
        del what[next(iter(what))]  # the oldest
    what[pid] = value
