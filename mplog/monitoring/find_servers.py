"""The servers that run, found from outside by the notices in the directories of their queues.

The rule of this file: **looking changes nothing.** It reads files and memory. It never opens the FIFO, which would make
a dead queue look alive, and never asks the logging process.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import tempfile
import time
from collections.abc import Sequence

import msgspec

from mplog.errors import QueueNotFoundError
from mplog.monitoring.process import has_ended, is_held, start_mark
from mplog.monitoring.server_notice import Notice, read_notice, this_world
from mplog.monitoring.statistics import Stats, read_counts, to_stats
from mplog.queue import buffer_memory
from mplog.queue.directory import current_fifo_path, given_up_path

_PREFIX = "mplog-"
#: How many files of one sink are listed: a sink that names files by the records may have thousands.
MOST_FILES = 100


class Snapshot(msgspec.Struct, frozen=True):
    """A server as it is at one instant, `at` by ``time.monotonic()``.

    Attributes:
        state: ``"running"``, ``"suspended"`` (the logging process is stopped by SIGSTOP), ``"restarting"``,
            ``"draining"`` (the program has ended, but workers still log, or records are left to write), ``"given up"``
            or ``"ended"``.
        buffers: their state; None where there is no /proc. Until they are full, the queue is empty most of the time.
        files: their paths and sizes in bytes; -1 for a file that is not there.
        living: the pids of its workers that run.
    """

    at: float
    state: str
    pid: int
    stats: Stats
    buffers: buffer_memory.State | None = None
    files: list[tuple[str, int]] = msgspec.field(default_factory=list)
    more_files: int = 0
    living: frozenset[int] = frozenset()


class RunningServer(msgspec.Struct, frozen=True):
    """A server of this user, as the notice in the directory of its queue tells."""

    directory: str
    notice: Notice

    @property
    def is_alive(self) -> bool:
        """Whether the logging process runs, or the supervisor, which will start the next one."""
        notice = self.notice
        if not has_ended(notice.supervisor) and start_mark(notice.supervisor) == notice.supervisor_mark:
            return True
        # The supervisor alone may have been killed. Only the logging process has the buffers open.
        return self._memory_path(notice.pid) != ""

    def _memory_path(self, pid: int) -> str:
        """Return the path of the buffers, if a process has them open; empty if not, or if that is not known."""
        path = f"/proc/{pid}/fd/{self.notice.memory}"
        with contextlib.suppress(OSError):
            if buffer_memory.NAME in os.readlink(path):
                return path
        return ""

    def look(self) -> Snapshot:
        notice = read_notice(self.directory) or self.notice
        now = time.monotonic()
        stats = to_stats(*read_counts(self.directory))
        files, more_files = _files(notice.files)
        return Snapshot(
            now,
            self._state(notice),
            notice.pid,
            stats,
            self._buffers(notice),
            files,
            more_files,
            frozenset(pid for _, pid in stats.by_process if pid and not has_ended(pid)),
        )

    def _buffers(self, notice: Notice) -> buffer_memory.State | None:
        for pid in (notice.supervisor, notice.pid):
            path = self._memory_path(pid)
            if path:
                with contextlib.suppress(OSError, ValueError):
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    try:
                        return buffer_memory.read_state(fd)
                    finally:
                        os.close(fd)
        return None

    def _state(self, notice: Notice) -> str:
        if not self.is_alive:
            return "given up" if os.path.exists(given_up_path(self.directory)) else "ended"
        if has_ended(notice.pid):
            return "restarting"
        if is_held(notice.pid):
            return "suspended"
        if has_ended(notice.program) or start_mark(notice.program) != notice.program_mark:
            return "draining"
        return "running"


def _files(patterns: Sequence[str]) -> tuple[list[tuple[str, int]], int]:
    found: list[tuple[str, int]] = []
    more = 0
    for pattern in patterns:
        paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []
        more += max(0, len(paths) - MOST_FILES)
        for path in paths[:MOST_FILES] or [pattern]:
            try:
                found.append((path, os.stat(path).st_size))
            except OSError:
                found.append((path, -1))
    return found, more


class Found(msgspec.Struct, frozen=True):
    """Servers that run, the oldest first; directories that killed servers have `left`; and the `place` searched."""

    servers: list[RunningServer]
    left: list[str]
    place: str


def find_servers(directories: Sequence[str] = ()) -> Found:
    """Return the servers of this user whose queues have these directories, or links to them (``mplog serve --queue``).

    By default, those in the temporary directory: programs with another ``TMPDIR`` are not found.
    """
    place = tempfile.gettempdir()
    servers, left = [], []
    # Links are followed only where the caller names them: in the temporary directory, another user may have made them.
    named = [os.path.realpath(directory) for directory in directories]
    for directory in named or sorted(glob.glob(os.path.join(glob.escape(place), f"{_PREFIX}*"))):
        if not _is_own(directory):
            continue
        notice = read_notice(directory)
        if notice is None or not os.path.lexists(current_fifo_path(directory)):
            continue  # just starting or ending, or a queue without a server
        if notice.world != this_world():
            continue  # of a container with the same temporary directory: whether it runs is not known here
        server = RunningServer(os.path.abspath(directory), notice)
        if server.is_alive:
            servers.append(server)
        elif os.path.isdir(directory):  # unless it has just ended, and removed its directory
            left.append(server.directory)
    return Found(sorted(servers, key=lambda server: server.notice.started), left, place)


def find_writer(log: str) -> str:
    """Return the directory of the queue of the server that writes this log; raise `QueueNotFoundError` if none does."""
    for server in find_servers().servers:
        for path, _ in _files(server.notice.files)[0]:
            with contextlib.suppress(OSError):
                if os.path.samefile(path, log):
                    return server.directory
    raise QueueNotFoundError(
        f"there is no log queue in {log!r}, which is a file, and no server of this user writes it. Start one: "
        "LogServer(...), or mplog serve start --log FILE. mplog top shows those that run; one with another TMPDIR is "
        "found only by the directory of its queue."
    )


def _is_own(directory: str) -> bool:
    """Whether a directory is this user's, and no other user can write in it: what others have planted is not read."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
