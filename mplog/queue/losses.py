"""What a process has lost, counted where its death cannot take it along.

::

    worker: Losses.count() --> a file in the queue's directory, mapped --> LossReader, read_all: logging process, parent

The rule of this file: **a count is in shared memory when the logging call returns.** No lock guards it, since a signal
handler may count while the thread that it has interrupted is counting.

Records are numbered in each process, and one that is lost has used its number up. So the numbers that are missing in
what has arrived add up to what is counted here, but for the reasons that leave none out (`Reason.leaves_gap`).
"""

from __future__ import annotations

import bisect
import contextlib
import enum
import errno
import mmap
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from mplog.record import frame

__all__ = ["LossReader", "Losses", "ProcessLosses", "Reason", "decode", "frames", "read_all", "totals"]


class Reason(enum.IntEnum):
    """Why a record is not, or not as it should be, in the queue."""

    #: The queue was full, and the policy drops at once.
    QUEUE_FULL = 1
    #: The queue was full for as long as the policy lets a call wait.
    TIMEOUT = 2
    #: Its level was below that of `Overflow.drop_below`, and the buffers were filling up.
    SHED = 3
    #: It was among the oldest in full buffers.
    OLDEST = 4
    #: Nobody reads the queue any more.
    REJECTED = 5
    #: An exception came in between, such as Ctrl-C while it waited, a closed queue, or no descriptor left to open it.
    INTERRUPTED = 6
    #: It was to be kept, and the emergency file could not take it either.
    NO_EMERGENCY = 7
    #: It is in the emergency file, and comes from there later.
    EMERGENCY = 8
    #: Its number was not used, as the call was encoded once more, or ``put()`` has told its caller that it is full.
    UNUSED = 9
    #: Long texts of it were cut.
    TRUNCATED = 10
    #: It was to be written through, and has not been on disk in time; it arrives like any other.
    UNSYNCED = 11

    @property
    def is_loss(self) -> bool:
        """Whether the record is not in the log and never will be."""
        return self <= Reason.NO_EMERGENCY

    @property
    def leaves_gap(self) -> bool:
        """Whether its number is missing among those that come through the queue."""
        return self <= Reason.UNUSED


_TEXTS = {
    Reason.QUEUE_FULL: "queue full",
    Reason.TIMEOUT: "queue full until the time was over",
    Reason.SHED: "buffers filling up",
    Reason.OLDEST: "oldest in full buffers",
    Reason.REJECTED: "nobody read the queue",
    Reason.INTERRUPTED: "interrupted by an exception",
    Reason.NO_EMERGENCY: "queue full, and the emergency file not to be written",
}
_OTHERS = {
    Reason.EMERGENCY: "written into the emergency file by",
    Reason.TRUNCATED: "cut, because they were too long, by",
    Reason.UNSYNCED: "not known to be on disk within the time that they were to be, logged by",
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
        began: when it lost the first, in seconds since the epoch; 0 where that is not known.
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
        who = f"{self.name} (pid {self.pid})" if self.name else f"pid {self.pid}"
        lines = []
        for reason, count in sorted(self.by_reason().items()):
            records = f"{count} record{'' if count == 1 else 's'}"
            if reason.is_loss:
                lines.append(f"{records} dropped by {who}: {_TEXTS[reason]}")
            elif reason in _OTHERS:
                lines.append(f"{records} {_OTHERS[reason]} {who}")
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
_SIGN = "queue"  # what is there as long as the directory is
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
# The first rows, by reason, are those of level 0. They take the rest, too, where there are more levels than rows.
_FIRST_OWN_ROW = len(Reason) + 1
_rows = struct.Struct(f"={_ROWS * _ROW}q").unpack_from

#: Files that are read in one look, so that it takes some hundredths of a second at most; the others follow in the next.
_LOOKED_AT = 1000


class Losses:
    """What this process has lost. It is made with the queue, and its file with the first loss.

    Without a descriptor to open the file with, or without room for it, the counts wait in the process, and go into the
    file with the next loss for which there is one. Where the process ends before that, nothing but the gap in its
    numbers tells.

    Args:
        directory: of the queue.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._counts: Counter[tuple[int, int]] = Counter()
        self._rows: dict[tuple[int, int], int] = {(0, int(reason)): int(reason) for reason in Reason}
        self._free_rows = iter(range(_FIRST_OWN_ROW, _ROWS))

    def count(self, level: int, reason: Reason, name: str | None) -> None:
        """Count one record.

        Args:
            level: of the record.
            reason: why.
            name: of the process, as its records have it.
        """
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
        """What is counted."""
        return {(level, Reason(reason)): count for (level, reason), count in self._counts.items()}

    def _store(self, words: memoryview, key: tuple[int, int]) -> None:
        start = self._rows[key] * _ROW
        words[start], words[start + 1] = key
        # Another thread may count, and store, between any two steps; who is last sees whether he was.
        while words[start + _COUNT] != self._counts[key]:
            words[start + _COUNT] = self._counts[key]

    def _make(self, name: str) -> memoryview:
        """Return the rows in the file, which is made; of two threads that do at once, one has the file."""
        encoded = name.encode("utf-8", "replace")[:_NAME_SIZE]
        began = time.time()
        while True:
            path = os.path.join(self._directory, f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}")
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                continue
        try:
            header = _HEADER.pack(_MAGIC, os.getpid(), began, encoded, _pid_namespace())
            # Written, not only made long: a page for which the disk has no room would kill who touches it (SIGBUS).
            if os.write(fd, header.ljust(_SIZE, b"\0")) < _SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os.stat(os.path.join(self._directory, _SIGN))  # where it has gone, the directory is just being removed
            made = memoryview(mmap.mmap(fd, _SIZE))[_FIRST_ROW:].cast("q")
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        words: memoryview = self.__dict__.setdefault("words", made)
        if words is not made:
            os.unlink(path)
        return words


def _pid_namespace() -> int:
    """Return what tells in which container a pid means this process; 0 where there are none."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


_known_reasons = {int(reason): reason for reason in Reason}


class _File:
    """What a file says.

    Attributes:
        rows: by the number of the row, what is counted there, of which reason, and how often.
        namespace: in which the pid is one.
    """

    __slots__ = ("_losses", "namespace", "rows")

    def __init__(self, path: str) -> None:
        """Read it.

        Raises:
            OSError: it cannot be read.
            ValueError: it is none, or not yet.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            data = os.read(fd, _SIZE)
        finally:
            os.close(fd)
        if len(data) < _SIZE or not data.startswith(_MAGIC):
            raise ValueError(f"no file of losses: {path}")
        _, pid, began, name, self.namespace = _HEADER.unpack_from(data)
        words = _rows(data, _FIRST_ROW)
        self.rows = {
            number: (words[number * _ROW], _known_reasons[words[number * _ROW + 1]], count)
            for number, count in enumerate(words[_COUNT::_ROW])
            if count > 0 and words[number * _ROW + 1] in _known_reasons
        }
        self._losses = pid, name.rstrip(b"\0").decode("utf-8", "replace"), began

    def losses(self, told: Mapping[int, int] | None = None) -> ProcessLosses:
        """Return it, less what is told already of each row."""
        told = told or {}
        pid, name, began = self._losses
        counts: Counter[tuple[int, Reason]] = Counter()
        for number, (level, reason, count) in self.rows.items():
            if count > told.get(number, 0):
                counts[level, reason] += count - told.get(number, 0)
        return ProcessLosses(pid, name, dict(counts), began)


def read_all(directory: str) -> list[ProcessLosses]:
    """Return what processes of a queue have lost so far; the oldest first.

    The logging process takes away what those have left that have ended (`mplog.monitoring.ended`).
    """
    return sorted(read_files(directory).values(), key=lambda losses: losses.began)


def read_files(directory: str) -> dict[str, ProcessLosses]:
    """Return the same by the names of the files."""
    found: dict[str, ProcessLosses] = {}
    with contextlib.suppress(OSError):  # no descriptor is left to look
        for name in _names(directory):
            with contextlib.suppress(OSError, ValueError):
                found[name] = _File(os.path.join(directory, name)).losses()
    return found


def _names(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(_PREFIX))
    except FileNotFoundError:
        return []


def _pid_of(name: str) -> int:
    """Return the pid in the name of a file; 0 for none."""
    digits = name[len(_PREFIX) :].partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 20 else 0


class LossReader:
    """What is new since the last look. Runs in the logging process.

    Args:
        directory: of the queue.
        told: how much of each count the log has told, by the name of its file and its row there, as `told` has
            returned it.
        has_ended: tells whether there is no process of a pid any more.

    Attributes:
        ended: by the name of the file, what processes had lost in all when they ended. Their files are not read again.
        folded: the names of files that are counted elsewhere, and not read any more.
        in_use: the pids in the names of all other files.
        has_more: whether there are files that the last look has not come to.
        is_blind: whether no descriptor was left for the last look, so that `in_use` is not known.
    """

    def __init__(
        self,
        directory: str,
        told: Mapping[tuple[str, int], int] | None = None,
        has_ended: Callable[[int], bool] = lambda pid: False,
    ) -> None:
        self._directory = directory
        self._told: dict[str, dict[int, int]] = {}
        for (name, row), count in (told or {}).items():
            self._told.setdefault(name, {})[row] = count
        self._untold: dict[str, dict[int, int]] = {}
        self._has_ended = has_ended
        self._namespace = _pid_namespace()
        self._last = ""
        self.ended: dict[str, ProcessLosses] = {}
        self.folded: set[str] = set()
        self.in_use: set[int] = set()
        self.has_more = False
        self.is_blind = False

    def new(self, *, of_all: bool = False) -> list[ProcessLosses]:
        """Return what has been lost since `told` was last called.

        Args:
            of_all: look at all files, however many there are.
        """
        self._untold = {}
        found: list[ProcessLosses] = []
        try:
            names = [name for name in _names(self._directory) if name not in self.ended and name not in self.folded]
        except OSError:  # the next look finds them
            self.is_blind = self.has_more = True
            return found
        self.is_blind = False
        all_names = names
        self.has_more = len(names) > _LOOKED_AT and not of_all
        if self.has_more:
            start = bisect.bisect_right(names, self._last)
            names = (names[start:] + names[:start])[:_LOOKED_AT]
            self._last = names[-1]
        for name in names:
            pid = _pid_of(name)
            # Asked before the file is read: what is there is then all that will ever be.
            is_over = pid > 0 and self._has_ended(pid)
            try:
                file = _File(os.path.join(self._directory, name))
            except (OSError, ValueError):
                continue
            new = file.losses(self._told.get(name))
            if new.counts:
                self._untold[name] = {row: count for row, (_, _, count) in file.rows.items()}
                found.append(new)
            if is_over and new.pid == pid and file.namespace == self._namespace:
                self.ended[name] = file.losses()
        self.in_use = {_pid_of(name) for name in all_names if name not in self.ended}
        return found

    def told(self) -> dict[tuple[str, int], int]:
        """Say that what the last `new` has returned is in the log; return what is to be kept for another reader."""
        told = {}
        for name, rows in self._untold.items():
            known = self._told.setdefault(name, {})
            told.update({(name, row): count for row, count in rows.items() if count > known.get(row, 0)})
            known.update(rows)
        self._untold = {}
        return told

    def told_of(self, name: str) -> list[tuple[str, int]]:
        """Return what is kept for another reader of the file of this name."""
        return [(name, row) for row in self._told.get(name, ())]

    def forget(self, name: str) -> None:
        """Take it that what a file says is counted elsewhere."""
        self.ended.pop(name, None)
        self._told.pop(name, None)
        self.folded.add(name)

    def remove_folded(self) -> list[str]:
        """Remove the files that are counted elsewhere; return the names of those that are gone."""
        gone = []
        for name in self.folded:
            try:
                os.unlink(os.path.join(self._directory, name))
            except FileNotFoundError:
                pass
            except OSError:
                continue
            gone.append(name)
        self.folded.difference_update(gone)
        return gone


# --- as a frame, among the records ---

_WireCount = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_WireLevel = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
_WireLosses = list[tuple[_WireCount, str, list[tuple[_WireLevel, Reason, _WireCount]]]]
_decode = msgspec.msgpack.Decoder(_WireLosses).decode
_NAME_ROOM = 50
_COUNTS_IN_FRAME = 10


def frames(processes: Iterable[ProcessLosses]) -> bytes:
    """Return frames of kind `frame.LOSSES` that tell this, each process once."""
    together: dict[tuple[int, str], Counter[tuple[int, Reason]]] = {}
    for process in processes:
        together.setdefault((process.pid, process.name), Counter()).update(process.counts)
    pieces: list[Any] = []
    for (pid, name), counts in together.items():
        rows = [(level, int(reason), count) for (level, reason), count in counts.items()]
        pieces += [
            (pid, name[:_NAME_ROOM], rows[start : start + _COUNTS_IN_FRAME])
            for start in range(0, len(rows), _COUNTS_IN_FRAME)
        ]
    made: list[bytes] = []
    payload, waiting = b"", list[Any]()
    for piece in pieces:
        longer = msgspec.msgpack.encode([*waiting, piece])
        if len(longer) > frame.PAYLOAD_SIZE:
            made.append(frame.header(frame.LOSSES, len(payload)) + payload)
            waiting, longer = [], msgspec.msgpack.encode([piece])
        waiting.append(piece)
        payload = longer
    if waiting:
        made.append(frame.header(frame.LOSSES, len(payload)) + payload)
    return b"".join(made)


def decode(payload: bytes) -> list[ProcessLosses]:
    """Return what the payload of such a frame tells.

    Raises:
        ValueError: it is none (msgspec's errors are ValueErrors).
    """
    if len(payload) > frame.PAYLOAD_SIZE:
        raise ValueError("losses in a message of many frames")
    return [
        ProcessLosses(pid, name, {(level, reason): count for level, reason, count in rows})
        for pid, name, rows in _decode(payload)
    ]
