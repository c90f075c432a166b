"""What a process has lost, counted so that the counts survive the process.

::

    worker: Losses.count() --> a file in the queue's directory, mapped --> read_file(): logging process, program

The rule of this file: **a count is in shared memory when the logging call returns.** No lock guards it, since a signal
handler may count while the thread that it has interrupted is counting.

Each process numbers its records, and a lost one has used its number up. So the numbers that are missing in the log add
up to what is counted here, except for the reasons that leave no gap (`Reason.leaves_gap`).
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mplog.queue.directory import fifo_path
from mplog.queue.shared_file import map_fd


class Reason(enum.IntEnum):
    """Why a record is not in the queue, or not as it should be."""

    #: The queue was full, and the policy drops at once.
    QUEUE_FULL = 1
    #: The queue was full for as long as the policy lets a call wait.
    TIMEOUT = 2
    #: Its level was below that of `Overflow.drop_below`, and the buffers were filling up.
    SHED = 3
    #: It was among the oldest in full buffers.
    OLDEST = 4
    #: No process reads the queue any more.
    REJECTED = 5
    #: The call raised, because of Ctrl-C while it waited, a closed queue, or no descriptor left to open the queue.
    INTERRUPTED = 6
    #: It was to be kept, and the emergency file had no room either.
    NO_EMERGENCY = 7
    #: It is in the emergency file, and the logging process takes it from there later.
    EMERGENCY = 8
    #: No record has this number: the call was encoded again, or ``put()`` has raised ``queue.Full``.
    UNUSED = 9
    #: Its long texts were cut.
    TRUNCATED = 10
    #: It was to be written through, and was not on disk in time; it arrives like any other.
    UNSYNCED = 11

    @property
    def is_loss(self) -> bool:
        """Whether the record is not in the log and never will be."""
        return self <= Reason.NO_EMERGENCY

    @property
    def leaves_gap(self) -> bool:
        """Whether its number is missing among those that come through the queue."""
        return self <= Reason.UNUSED

    @property
    def text(self) -> str:
        """Why the record was dropped, in words; for a loss."""
        return _TEXTS[self]


_TEXTS = {
    Reason.QUEUE_FULL: "queue full",
    Reason.TIMEOUT: "queue full until the timeout",
    Reason.SHED: "buffers filling up",
    Reason.OLDEST: "oldest in full buffers",
    Reason.REJECTED: "nobody read the queue",
    Reason.INTERRUPTED: "interrupted by an exception",
    Reason.NO_EMERGENCY: "queue full, and the emergency file could not be written",
}
_OTHERS = {
    Reason.EMERGENCY: "written into the emergency file by",
    Reason.TRUNCATED: "cut for length, logged by",
    Reason.UNSYNCED: "not known to be on disk in time, logged by",
}

#: Counts by level and reason.
Counts = Mapping[tuple[int, Reason], int]


@dataclass(frozen=True)
class ProcessLosses:
    """What one process has lost.

    Attributes:
        pid: its process id.
        name: its name, as its records have it.
        counts: numbers of records, by level and reason.
        began: when it lost the first, in seconds since the epoch; 0 if unknown.
    """

    pid: int
    name: str
    counts: dict[tuple[int, Reason], int] = field(default_factory=dict)
    began: float = 0.0

    @property
    def lost(self) -> int:
        """How many records are not in the log and never will be."""
        return sum(count for (_, reason), count in self.counts.items() if reason.is_loss)

    @property
    def gap(self) -> int:
        """How many numbers are missing among those of the records that come through the queue."""
        return sum(count for (_, reason), count in self.counts.items() if reason.leaves_gap)

    def by_reason(self) -> dict[Reason, int]:
        """Return the numbers of all levels together."""
        return totals([self])

    def messages(self) -> list[str]:
        """Return what the log says of it, a line for each reason."""
        process = f"{self.name} (pid {self.pid})" if self.name else f"pid {self.pid}"
        lines = []
        for reason, count in sorted(self.by_reason().items()):
            records = f"{count} record{'' if count == 1 else 's'}"
            if reason.is_loss:
                lines.append(f"{records} dropped by {process}: {reason.text}")
            elif reason in _OTHERS:
                lines.append(f"{records} {_OTHERS[reason]} {process}")
        return lines


def totals(processes: Iterable[ProcessLosses]) -> dict[Reason, int]:
    """Return the numbers of records by reason."""
    counts: Counter[Reason] = Counter()
    for process in processes:
        for (_, reason), count in process.counts.items():
            counts[reason] += count
    return dict(counts)


# --- the file ---

_PREFIX = "losses-"
_MAGIC = b"mplogls1"
_NAME_SIZE = 256
_HEADER = struct.Struct(f"=8sqd{_NAME_SIZE}sQ")  # magic, pid, began, name, PID namespace
_FIRST_ROW = 512
_SIZE = 4096
# A row is four words: level, reason, count, and one that is not used.
_WORD = 8
_ROW = 4
_COUNT = 2
_ROWS = (_SIZE - _FIRST_ROW) // (_ROW * _WORD)
# The first rows, by reason, are those of level 0, and of all levels for which no row is left.
_FIRST_OWN_ROW = len(Reason) + 1
_rows = struct.Struct(f"={_ROWS * _ROW}q").unpack_from


class Losses:
    """What this process has lost. The file in the directory of the queue is made with the first loss.

    Without a descriptor to open the file with, or without room for it, the counts wait in the process, and go into the
    file with a later loss. If the process ends before that, only the gap in its numbers is left.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._counts: Counter[tuple[int, int]] = Counter()
        self._rows: dict[tuple[int, int], int] = {(0, int(reason)): int(reason) for reason in Reason}
        self._free_rows = iter(range(_FIRST_OWN_ROW, _ROWS))

    def count(self, level: int, reason: Reason, name: str | None) -> None:
        """Count a record of a level; `name` is that of the process, as its records have it."""
        key = (max(-(2**62), min(level, 2**62)), int(reason))
        if key not in self._rows:
            row = next(self._free_rows, None)
            if row is None:
                key = (0, int(reason))
            else:
                self._rows.setdefault(key, row)
        self._counts.update((key,))  # in one step, whatever other threads and signal handlers do (one C function)
        words = self.__dict__.get("words")
        if words is not None:
            self._store(words, key)
            return
        with contextlib.suppress(OSError):
            words = self._make(name or "")
            for key in list(self._counts):
                self._store(words, key)

    @property
    def counts(self) -> dict[tuple[int, Reason], int]:
        return {(level, Reason(reason)): count for (level, reason), count in self._counts.items()}

    def _store(self, words: memoryview, key: tuple[int, int]) -> None:
        start = self._rows[key] * _ROW
        words[start], words[start + 1] = key
        # Another thread may count, and store, between any two steps. The last one stores the last count.
        while words[start + _COUNT] != self._counts[key]:
            words[start + _COUNT] = self._counts[key]

    def _make(self, name: str) -> memoryview:
        """Make the file, and return its rows. If two threads do at once, one file is kept."""
        encoded = name.encode("utf-8", "replace")[:_NAME_SIZE]
        began = time.time()
        path = os.path.join(self._directory, f"{_PREFIX}{os.getpid()}-{os.urandom(8).hex()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, _HEADER.pack(_MAGIC, os.getpid(), began, encoded, pid_namespace()))
            made = memoryview(map_fd(fd, _SIZE))[_FIRST_ROW:].cast("q")
            os.stat(fifo_path(self._directory))  # if it is gone, the directory is just being removed
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        words: memoryview = self.__dict__.setdefault("words", made)
        if words is not made:
            os.unlink(path)
        return words


def pid_namespace() -> int:
    """Return the number of the PID namespace, in which the pids of this process are valid; 0 where there are none."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


_known_reasons = {int(reason): reason for reason in Reason}


def read_file(path: str) -> tuple[ProcessLosses, int]:
    """Return what is in a file, and the PID namespace of its pid; raise ValueError if it is none, or not yet."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        data = os.read(fd, _SIZE)
    finally:
        os.close(fd)
    if len(data) < _SIZE or not data.startswith(_MAGIC):
        raise ValueError(f"no file of losses: {path}")
    _, pid, began, name, namespace = _HEADER.unpack_from(data)
    words = _rows(data, _FIRST_ROW)
    counts: Counter[tuple[int, Reason]] = Counter()
    for level, reason, count in zip(words[::_ROW], words[1::_ROW], words[_COUNT::_ROW]):
        if count > 0 and reason in _known_reasons:
            counts[level, _known_reasons[reason]] += count
    return ProcessLosses(pid, name.rstrip(b"\0").decode("utf-8", "replace"), dict(counts), began), namespace


def read_files(directory: str) -> dict[str, ProcessLosses]:
    """Return what is in the files of a queue, by their names.

    The logging process removes the files of processes that have ended (`mplog.monitoring.loss_reader`).
    """
    found: dict[str, ProcessLosses] = {}
    with contextlib.suppress(OSError):  # no descriptor is left to look
        for name in names_of_files(directory):
            with contextlib.suppress(OSError, ValueError):
                found[name], _ = read_file(os.path.join(directory, name))
    return found


def names_of_files(directory: str) -> list[str]:
    """Return the names of the files of a queue, sorted; raise OSError if no descriptor is left to look."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(_PREFIX))
    except FileNotFoundError:
        return []


def pid_of(name: str) -> int:
    """Return the pid in the name of a file; 0 for none."""
    digits = name[len(_PREFIX) :].partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 20 else 0
