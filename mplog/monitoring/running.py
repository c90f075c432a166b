"""The servers that run, found from outside: by the directories of their queues.

::

    logging process: publish() --> a file in the queue's directory
    anybody of this user: find_servers() --> RunningServer.look(): that file, the counts, the state of the buffers

The rule of this file: **looking changes nothing.** It reads files and memory. It never opens the FIFO, which would make
a dead queue look alive, and never asks the logging process.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from mplog.errors import QueueNotFoundError
from mplog.monitoring.process import has_ended, is_held, start_mark
from mplog.monitoring.statistics import Stats, read_counts, to_stats
from mplog.queue.log_queue import fifo_path, given_up_path

if sys.platform != "win32":
    from mplog.queue import buffers

__all__ = ["Found", "RunningServer", "Snapshot", "find_servers", "find_writer", "publish"]

_NAME = "server"
_PREFIX = "mplog-"
#: Characters of a command line that are kept.
_LONGEST_COMMAND = 300
#: Files of one sink that are listed: one that names files by the records may have thousands.
MOST_FILES = 100


class Output(msgspec.Struct, frozen=True):
    """Where a handler of the logging process writes.

    Attributes:
        handler: what it calls itself.
        glob: what finds its files, for the module of that name; empty where it writes none.
    """

    handler: str
    glob: str = ""


class Notice(msgspec.Struct, frozen=True):
    """What a logging process says of itself when it starts.

    Attributes:
        program: the pid of the program that has started the server.
        program_mark: what tells it from a later process of that pid.
        command: its command line.
        supervisor, supervisor_mark: the same of the process that would start another logging process.
        pid: of the logging process.
        world: in what their pids mean something: this run of this system, and the namespace of its pids.
        started: when the server was started, in seconds since the epoch.
        memory: the number of the descriptor of the buffers, which the supervisor and the logging process have.
        overflow: the policy.
        outputs: where it writes.
    """

    program: int
    program_mark: str
    command: str
    supervisor: int
    supervisor_mark: str
    pid: int
    world: str
    started: float
    memory: int
    overflow: str
    outputs: list[Output]


def publish(directory: str, program: int, memory: int, overflow: str, handlers: Iterable[logging.Handler]) -> None:
    """Say who this is, for those who look from outside. Runs in the logging process, when its sinks are open.

    Args:
        directory: of the queue.
        program: the pid of the program that has started the server.
        memory: the descriptor of the buffers.
        overflow: the policy.
        handlers: what it writes with.
    """
    before = _read(directory)
    notice = Notice(
        program,
        start_mark(program) if before is None else before.program_mark,
        _command(program) if before is None else before.command,
        os.getppid(),
        start_mark(os.getppid()),
        os.getpid(),
        _world(),
        time.time() if before is None else before.started,
        memory,
        overflow,
        [_output(handler) for handler in handlers],
    )
    path = os.path.join(directory, _NAME)
    with contextlib.suppress(OSError):  # nobody can look from outside; the log does not depend on it
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(notice))
        os.rename(f"{path}.new", path)


def _output(handler: logging.Handler) -> Output:
    try:
        described = repr(handler)
    except Exception:
        described = type(handler).__name__
    path = getattr(handler, "path", None) or getattr(handler, "baseFilename", None)
    pattern = getattr(handler, "glob", None) or (glob.escape(path) if isinstance(path, str) else "")
    # As it can be said in JSON: a path may hold bytes that are no UTF-8.
    return Output(*(text.encode("utf-8", "replace").decode() for text in (described, str(pattern))))


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_LONGEST_COMMAND).split(b"\0")
    except OSError:
        return ""
    # The interpreter's directory says nothing of the program.
    return b" ".join((os.path.basename(words[0]), *words[1:])).decode("utf-8", "replace").strip()


def _world() -> str:
    """Return what differs where a pid means another process: in a container, or on another machine."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _read(directory: str) -> Notice | None:
    try:
        with open(os.path.join(directory, _NAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=Notice)
    except (OSError, ValueError):
        return None


# --- from outside ---


@dataclass(frozen=True)
class Snapshot:
    """A server as it is at one instant.

    Attributes:
        at: when that was, by ``time.monotonic()``.
        state: ``"running"``, ``"suspended"`` (the logging process stands still, by SIGSTOP), ``"restarting"``,
            ``"draining"`` (the program has ended, and others still log, or something is left to write), ``"given up"``
            or ``"ended"``.
        pid: of the logging process.
        stats: what is counted.
        has_buffers: whether the state of the buffers can be seen; it cannot where there is no /proc.
        fill: how full the buffers are, from 0 to 1. Until they are full, the queue is empty but for some milliseconds.
        waiting: bytes of records in the buffers that are not written.
        taken: bytes of records that ever came.
        files: their paths and sizes in bytes; -1 for one that is not there.
        more_files: how many more there are.
        living: the pids of those of its writers that run.
    """

    at: float
    state: str
    pid: int
    stats: Stats
    has_buffers: bool = False
    fill: float = 0.0
    waiting: int = 0
    taken: int = 0
    files: list[tuple[str, int]] = field(default_factory=list)
    more_files: int = 0
    living: frozenset[int] = frozenset()


@dataclass(frozen=True)
class RunningServer:
    """A server of this user, as its logging process has published it.

    Attributes:
        directory: of its queue.
        notice: what it has published.
    """

    directory: str
    notice: Notice

    @property
    def is_alive(self) -> bool:
        """Whether the logging process runs, or somebody who will start another."""
        notice = self.notice
        if not has_ended(notice.supervisor) and start_mark(notice.supervisor) == notice.supervisor_mark:
            return True
        # Whoever has killed the supervisor has not killed what it had started.
        return self._is_reading(notice.pid)

    def _is_reading(self, pid: int) -> bool:
        """Whether a process has the buffers open, and so is the logging process; False where that cannot be told."""
        return self._memory_path(pid) != ""

    def _memory_path(self, pid: int) -> str:
        path = f"/proc/{pid}/fd/{self.notice.memory}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith("/memfd:mplog-buffers"):  # and neither the FIFO nor anything else
                return path
        return ""

    def look(self) -> Snapshot:
        """Return how it is."""
        notice = _read(self.directory) or self.notice
        now = time.monotonic()
        stats = to_stats(*read_counts(self.directory))
        state = self._buffers(notice)
        files, more_files = _files(notice.outputs)
        return Snapshot(
            now,
            self._state(notice),
            notice.pid,
            stats,
            has_buffers=state is not None,
            fill=0.0 if state is None else state.fraction,
            waiting=0 if state is None else state.unwritten,
            taken=0 if state is None else state.taken,
            files=files,
            more_files=more_files,
            living=frozenset(pid for _, pid in stats.by_process if pid and not has_ended(pid)),
        )

    def _buffers(self, notice: Notice) -> buffers.State | None:
        for pid in (notice.supervisor, notice.pid):
            path = self._memory_path(pid)
            if path:
                with contextlib.suppress(OSError, ValueError):
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    try:
                        return buffers.read_state(fd)
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


def _files(outputs: Sequence[Output]) -> tuple[list[tuple[str, int]], int]:
    found: list[tuple[str, int]] = []
    more = 0
    for output in outputs:
        if not output.glob:
            continue
        paths = sorted(glob.glob(output.glob)) if glob.has_magic(output.glob) else []
        more += max(0, len(paths) - MOST_FILES)
        for path in paths[:MOST_FILES] or [output.glob]:
            try:
                found.append((path, os.stat(path).st_size))
            except OSError:
                found.append((path, -1))
    return found, more


@dataclass(frozen=True)
class Found:
    """What a look around has found.

    Attributes:
        servers: those that run, the oldest first.
        left: directories of servers that were killed with all their processes; nobody removes them.
        place: where it has looked.
    """

    servers: list[RunningServer]
    left: list[str]
    place: str


def find_servers(directories: Sequence[str] = ()) -> Found:
    """Return the servers of this user.

    Args:
        directories: those of queues, or links to them, as ``mplog serve --queue`` makes; none looks at all that are in
            the temporary directory (``TMPDIR``), where programs with the same one make theirs.
    """
    place = tempfile.gettempdir()
    servers, left = [], []
    # Links are followed for whoever names them; of those in the temporary directory, somebody else may have made them.
    named = [os.path.realpath(directory) for directory in directories]
    for directory in named or sorted(glob.glob(os.path.join(glob.escape(place), f"{_PREFIX}*"))):
        if not _is_own(directory):
            continue
        notice = _read(directory)
        if notice is None or not os.path.lexists(fifo_path(directory)):
            continue  # just starting or ending, or a queue without a server
        if notice.world != _world():
            continue  # of a container with the same temporary directory: nobody here can tell whether it runs
        server = RunningServer(os.path.abspath(directory), notice)
        if server.is_alive:
            servers.append(server)
        elif os.path.isdir(directory):  # it may have ended meanwhile, and taken it away
            left.append(server.directory)
    return Found(sorted(servers, key=lambda server: server.notice.started), left, place)


def find_writer(log: str) -> str:
    """Return the directory of the queue of the server that writes a log.

    Args:
        log: the path of a file that is there.

    Raises:
        QueueNotFoundError: no server of this user that is found (`find_servers`) writes it.
    """
    for server in find_servers().servers:
        for path, _ in _files(server.notice.outputs)[0]:
            with contextlib.suppress(OSError):
                if os.path.samefile(path, log):
                    return server.directory
    raise QueueNotFoundError(
        f"there is no log queue in {log!r}, which is a file, and no server of this user writes it. mplog top shows the "
        "servers that run; one with another TMPDIR is found by the directory of its queue alone."
    )


def _is_own(directory: str) -> bool:
    """Whether nobody else could have put there what is read; what somebody else has planted is not looked at."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
