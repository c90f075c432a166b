"""What the logging process counts: exact whatever kills it, and read by the program without asking.

::

    logging process: Tallies.add(), write() --> a file in the queue's directory, mapped --> read_counts(): program
                     the number of the write goes into the note of the commit

The rule of this file: **a count changes with the commit of what it counts.** Each has two places. A write fills the one
that does not count yet, and numbers it; the commit of the buffers, which names that number, makes all of them count at
one instant. Who goes on after a kill takes back what has a higher number, for it counts records that come again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mplog.queue.losses import ProcessLosses, Reason, read_files, totals
from mplog.record.layout import SEQUENCE, Entry, Origin

__all__ = [
    "COUNTED_ENDED",
    "COUNTED_PROCESSES",
    "PEAK_UNIT",
    "Key",
    "Stats",
    "Tallies",
    "read_counts",
    "read_statistics",
    "to_stats",
    "unfolded",
]

#: What is counted: a word for the kind, and what tells it from others of that kind.
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Stats:
    """What has been counted since the server was started, whatever has become of logging processes meanwhile.

    Of processes that have ended, 1,000 are told apart in `lost`, `missing` and `unexplained`. The others are counted
    together, under the pid 0, and in `lost` with the name "others".

    Attributes:
        by_origin: records that arrived, by the name and the pid of the process that logged them, and the level. From
            the 10,001st process on, those of ("others", 0), and from the 1,001st level on, those of level 0.
        failed: records that a handler could not write, by handler.
        broken: pieces of garbage in the queue, and records that did not decode.
        skipped: bytes of garbage in the queue.
        incomplete: long records whose writer died, or gave up, before their last part.
        objects: objects in the queue that are not records; the logging process does not unpickle.
        peak_fill: how full the buffers have been at most, from 0 to 1.
        lost: what processes have lost, by level and reason; of ``drop_oldest``, beside their own counts.
        missing: by pid, how many numbers are missing among those of the records that came through the queue. A process
            numbers its records, so with what it has `lost` this adds up.
        unexplained: by pid, how many numbers are missing that nothing accounts for. A call that has taken its number
            and not returned leaves one for that long, and one that a kill has interrupted for good.
        restarts: logging processes that have died, and been replaced.
    """

    by_origin: dict[tuple[str, int, int], int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    skipped: int = 0
    incomplete: int = 0
    objects: int = 0
    peak_fill: float = 0.0
    lost: list[ProcessLosses] = field(default_factory=list)
    missing: dict[int, int] = field(default_factory=dict)
    unexplained: dict[int, int] = field(default_factory=dict)
    restarts: int = 0

    @property
    def received(self) -> int:
        """Records that arrived."""
        return sum(self.by_origin.values())

    @property
    def by_process(self) -> dict[tuple[str, int], int]:
        """Records that arrived, by the name and the pid of the process that logged them."""
        counts: Counter[tuple[str, int]] = Counter()
        for (name, pid, _), count in self.by_origin.items():
            counts[name, pid] += count
        return dict(counts)

    @property
    def by_level(self) -> dict[int, int]:
        """Records that arrived, by level."""
        counts: Counter[int] = Counter()
        for (_, _, level), count in self.by_origin.items():
            counts[level] += count
        return dict(counts)

    @property
    def written(self) -> int:
        """Records that no handler has failed to write; one that two have failed to write counts twice against it."""
        return max(0, self.received - sum(self.failed.values()))

    @property
    def dropped(self) -> int:
        """Records that are not in the log and never will be, since there was no room for them."""
        return sum(losses.lost for losses in self.lost)

    @property
    def dropped_by_reason(self) -> dict[Reason, int]:
        """Those, by the reason."""
        return {reason: count for reason, count in totals(self.lost).items() if reason.is_loss}

    @property
    def truncated(self) -> int:
        """Records of which long texts were cut."""
        return totals(self.lost).get(Reason.TRUNCATED, 0)

    @property
    def rejected(self) -> int:
        """Records that were logged when nobody read the queue any more; they are among the `dropped`."""
        return totals(self.lost).get(Reason.REJECTED, 0)


def to_stats(tallies: Mapping[Key, int], lost: list[ProcessLosses]) -> Stats:
    """Return counts in the form that people see.

    Args:
        tallies: the counts of the logging process.
        lost: what processes say they have lost.
    """
    kinds: dict[str, dict[Any, int]] = defaultdict(dict)
    for (kind, *rest), count in tallies.items():
        if count:
            kinds[kind][tuple(rest)] = count
    dropped, ended = _by_process(kinds["lost"]), _by_process(kinds["lost by ended"])
    gaps, missing, unexplained = Counter[int](), Counter[int](), Counter[int]()
    for losses in (*lost, *dropped):
        gaps[losses.pid] += losses.gap
    for (pid,), last in kinds["last"].items():
        # More than its highest number comes from two processes of the same pid.
        missing[pid] = max(0, last - kinds["through"].get((pid,), 0))
        unexplained[pid] = max(0, missing[pid] - gaps[pid])
    for kind, counts in (("missing of ended", missing), ("unexplained of ended", unexplained)):
        for (pid,), count in kinds[kind].items():
            counts[pid] += count
    return Stats(
        by_origin=kinds["received"],
        failed={name: count for (name,), count in kinds["failed"].items()},
        lost=[*ended, *lost, *dropped],
        peak_fill=kinds["peak"].get((), 0) / PEAK_UNIT,
        missing=dict(+missing),
        unexplained=dict(+unexplained),
        **{name: kinds[name].get((), 0) for name in ("broken", "skipped", "incomplete", "objects", "restarts")},
    )


def _by_process(rows: Mapping[Any, int]) -> list[ProcessLosses]:
    processes: dict[tuple[int, str], dict[tuple[int, Reason], int]] = defaultdict(dict)
    for (pid, name, level, reason), count in rows.items():
        processes[pid, name][level, Reason(reason)] = count
    return [ProcessLosses(pid, name, counts) for (pid, name), counts in processes.items()]


#: Pids, names and levels come off the wire, so there is a bound to how many are told apart, and how long they are.
COUNTED_PROCESSES = 10_000
COUNTED_LEVELS = 1000
#: The same for those that have ended, which are many in a server that runs for months.
COUNTED_ENDED = 1000
_LONGEST_NAME = 200

#: In what the fill is counted.
PEAK_UNIT = 1_000_000

# --- the file ---

_NAME = "statistics"
_MAGIC = int.from_bytes(b"mplogst1", "little")
# In words: a row is its length and that of its key (in the upper half), then twice the number of a write and the value
# that it gave, then the key. Rows begin at multiples of 8, so that either place tells its row.
_WORD = 8
_ALIGN = 8
_FIRST, _SECOND, _KEY = 1, 3, 5
# Of the header, behind the magic: the number of a change of the rows, when it begins and again when it has ended, so
# that a reader sees whether he has read in the middle of one; and how often the files that are counted here changed.
_BEGUN, _ENDED, _FOLDS = 1, 2, 3
_HEADER_SIZE = 4 * _WORD
_HALF = 32
_CHUNK = 2**16
_LARGEST = 2**25  # some 300,000 rows; beyond that, counts are not kept over a kill
_MOST = 2**63 - 1


class Tallies:
    """Counts, of which a commit makes those of the last `write` count. One that is 0 gives its row to others.

    Where there is no room for the file, or none for more of it, they count in this process alone.

    Args:
        directory: of the queue; None to have no file.
        serial: the number of the last write that was committed, 0 for none; what was written behind it is taken back.

    Attributes:
        serial: the number of the last write, for the note of the commit.
        values: all that is counted.
    """

    #: The kind of those that say who is watched (`mplog.logging_process.loop`).
    WATCHED = "watched"
    #: The kind of those that say which files of losses are counted here (`mplog.monitoring.ended`).
    FOLDED = "folded"

    def __init__(self, directory: str | None, serial: int = 0) -> None:
        self.serial = serial
        self.values: Counter[Key] = Counter()
        self._changed: set[Key] = set()
        self._places: dict[Key, int] = {}
        self._free: dict[int, list[int]] = defaultdict(list)
        self._emptied: list[Key] = []
        self._senders: set[tuple[str, int]] = set()
        self._levels: set[int] = set()
        self._losers: set[tuple[int, str]] = set()
        self._last: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._fd = -1
        self._end = _ALIGN
        self._words: memoryview | None = None
        if directory is not None:
            with contextlib.suppress(OSError):
                self._open(os.path.join(directory, _NAME))
        for kind, *rest in self.values:
            if kind == "received":
                self._senders.add((rest[0], rest[1]))
                self._levels.add(rest[-1])
            elif kind == "lost by ended":
                self._levels.add(rest[2])
            elif kind == "lost":
                self._losers.add((rest[0], rest[1]))
                self._levels.add(rest[2])
            elif kind == "last":
                self._last[rest[0]] = self.values["last", rest[0]]
            elif kind == "ended":
                self._ended[rest[0]] = self.values["ended", rest[0]]

    def add(self, key: Key, count: int = 1) -> None:
        """Count some more."""
        if count:
            self.values[key] += count
            self._changed.add(key)

    def set(self, key: Key, value: int) -> None:
        """Replace a count."""
        if self.values[key] != value:
            self.values[key] = value
            self._changed.add(key)
        if not value and key not in self._places:
            self.values.pop(key, None)
            self._changed.discard(key)

    def of(self, kind: str) -> dict[Key, int]:
        """Return the counts of a kind that are not 0."""
        return {key: count for key, count in self.values.items() if key[0] == kind and count}

    @property
    def has_new(self) -> bool:
        """Whether something is to be written."""
        return bool(self._changed)

    def write(self) -> None:
        """Write what has changed since the last time, which the caller has committed; it counts with the next commit.

        The note of that commit must name `serial`.
        """
        if not self._changed:
            return
        self.serial += 1
        self._begin_change()
        for key in self._emptied:
            if self.values[key]:
                continue
            place = self._places.pop(key) & -_ALIGN
            del self.values[key]
            assert self._words is not None
            self._free[self._words[place] & ((1 << _HALF) - 1)].append(place)
        self._emptied.clear()
        for key in self._changed:
            current = self._places.get(key) or self._make_row(key)
            words = self._words
            if current is None or words is None:
                continue
            base = current & -_ALIGN
            place = base + _FIRST + _SECOND - (current - base)
            # The number last: until then, the other place has the higher one.
            words[place + 1] = min(self.values[key], _MOST)
            words[place] = self.serial
            self._places[key] = place
            if not self.values[key]:
                self._emptied.append(key)
            if key[0] == self.FOLDED:
                words[_FOLDS] += 1
        self._changed.clear()
        self._end_change()

    def _begin_change(self) -> None:
        if self._words is not None:
            self._words[_BEGUN] = (self._words[_ENDED] + 1) & _MOST

    def _end_change(self) -> None:
        if self._words is not None:
            self._words[_ENDED] = self._words[_BEGUN]

    def reserve(self, key: Key) -> bool:
        """Make room for a count, and return whether there is: whether it will outlive this process."""
        if key not in self._places:
            self._begin_change()  # a row that was another's must not be read half made
            place = self._make_row(key)
            self._end_change()
            if place is None:
                return False
            self._places[key] = place
        return True

    def _make_row(self, key: Key) -> int | None:
        """Return the place of a new row that counts; None where there is no room for it."""
        if self._words is None:
            return None
        encoded = msgspec.msgpack.encode(key)
        length = -(-(_KEY * _WORD + len(encoded)) // (_ALIGN * _WORD)) * _ALIGN
        free = self._free.get(length)
        if free:
            base = free.pop()
        else:
            base = self._end
            try:
                while base + length >= len(self._words):
                    self._grow()
            except OSError:
                return None
            self._end += length
        words = self._words
        words[base] = length  # without a key: free
        words[base + 1] = words[base + 2] = words[base + 3] = words[base + 4] = 0
        for index, start in enumerate(range(0, len(encoded), _WORD)):
            words[base + _KEY + index] = int.from_bytes(
                encoded[start : start + _WORD].ljust(_WORD, b"\0"), "little", signed=True
            )
        words[base] = length | len(encoded) << _HALF
        return base + _FIRST

    # --- records ---

    def count_records(self, counts: Mapping[Origin, int]) -> None:
        """Count records that have been handled, by where they come from."""
        for origin, count in counts.items():
            name, pid = (origin.processName or "")[:_LONGEST_NAME], origin.process or 0
            if (name, pid) not in self._senders:
                if len(self._senders) >= COUNTED_PROCESSES:
                    name, pid = "others", 0
                else:
                    self._senders.add((name, pid))
            self.add(("received", name, pid, self.level(origin.levelno)), count)

    def level(self, level: int) -> int:
        """Return the level that one is counted as."""
        if level not in self._levels:
            if len(self._levels) >= COUNTED_LEVELS:
                return 0
            self._levels.add(level)
        return level

    def count_numbers(self, batch: Sequence[Entry], counts: Mapping[Origin, int]) -> None:
        """Count the numbers of records that came through the queue.

        Args:
            batch: the records.
            counts: how many of them come from where.
        """
        # The only loop over all records here: threads of a process may overtake each other, so it looks at each.
        last: dict[Origin, int] = {}
        get = last.get
        for values, origin in batch:
            number = values[SEQUENCE]
            if number > get(origin, 0):
                last[origin] = number
        for origin, number in last.items():
            pid = origin.process or 0
            known = self._last.get(pid)
            if known is None:
                if len(self._last) >= COUNTED_PROCESSES:
                    self.set(("unfollowed",), 1)
                    continue
                known = 0
                if pid in self._ended or self.values["unfollowed",]:
                    self._take_up(pid, batch)
            self.add(("through", pid), counts[origin])
            if number > known:
                self._last[pid] = number
                self.set(("last", pid), number)

    def _take_up(self, pid: int, batch: Sequence[Entry]) -> None:
        """Begin to follow the numbers of a process that may have been followed before, or passed over."""
        first = min(values[SEQUENCE] for values, origin in batch if (origin.process or 0) == pid)
        before = self._ended.pop(pid, None)
        if before is None:
            # Nobody knows what came while there were too many others.
            self.add(("through", pid), max(0, first - 1))
            return
        self.set(("ended", pid), 0)
        if first > before:
            # In another container, a pid is somebody else's: it was taken for dead, and goes on.
            self.add(("through", pid), before)

    # --- those that have ended ---

    @property
    def followed(self) -> Collection[int]:
        """The pids of which something is counted for as long as the process lives."""
        return {*self._last, *(pid for pid, _ in self._losers)}

    def forget_numbers(self, pid: int) -> None:
        """Follow the numbers of a process no longer, but know where it ended."""
        last = self._last.pop(pid, 0)
        self.set(("last", pid), 0)
        self.set(("through", pid), 0)
        if last:
            while len(self._ended) >= COUNTED_ENDED:
                oldest = next(iter(self._ended))
                del self._ended[oldest]
                self.set(("ended", oldest), 0)
            self._ended[pid] = last
            self.set(("ended", pid), last)

    def count_lost(self, losses: ProcessLosses) -> None:
        """Count what was dropped out of the buffers."""
        pid, name = losses.pid, losses.name[:_LONGEST_NAME]
        if (pid, name) not in self._losers:
            if len(self._losers) >= COUNTED_PROCESSES:
                pid, name = 0, "others"
            else:
                self._losers.add((pid, name))
        for (level, reason), count in losses.counts.items():
            self.add(("lost", pid, name, self.level(level), int(reason)), count)

    def forget_lost(self, key: Key) -> None:
        """Count no longer what was dropped out of the buffers of a process."""
        self.set(key, 0)
        self._losers.discard((key[1], key[2]))

    # --- opening ---

    def _open(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(self._fd).st_size < _CHUNK:
            self._grow()
            assert self._words is not None
            self._words[0] = _MAGIC
            return
        self._map()
        words = self._words
        assert words is not None
        self._begin_change()
        for key, base in _rows(words):
            for place in (base + _FIRST, base + _SECOND):
                if words[place] > self.serial:
                    words[place] = words[place + 1] = 0
            place = base + (_SECOND if words[base + _SECOND] > words[base + _FIRST] else _FIRST)
            length = words[base] & ((1 << _HALF) - 1)
            self._end = base + length
            if key is None or not words[place + 1]:
                self._free[length].append(base)
            else:
                self._places[key] = place
                self.values[key] = words[place + 1]
        self._end_change()

    def _grow(self) -> None:
        length = os.fstat(self._fd).st_size
        more = max(_CHUNK - length % _CHUNK, length)
        if length + more > _LARGEST:
            raise OSError("enough")
        # Written, not only made long: a page for which the disk has no room would kill who touches it (SIGBUS).
        if os.pwrite(self._fd, bytes(more), length) < more:
            raise OSError("no room")
        self._map()

    def _map(self) -> None:
        self._words = memoryview(mmap.mmap(self._fd, os.fstat(self._fd).st_size & -_CHUNK)).cast("q")

    def close(self) -> None:
        """Let go of the file; the counts stay."""
        if self._fd >= 0:
            self._words = None
            os.close(self._fd)
            self._fd = -1


def _rows(words: memoryview) -> Iterator[tuple[Key | None, int]]:
    """Yield each row: its key, None where it is free, and where it begins."""
    base, end = _ALIGN, len(words)
    if end <= base or words[0] != _MAGIC:
        return
    while base < end:
        length, size = words[base] & ((1 << _HALF) - 1), words[base] >> _HALF
        if not 0 < length <= end - base or size > (length - _KEY) * _WORD:
            return
        key = None
        if size > 0:
            with contextlib.suppress(msgspec.DecodeError):  # just being written
                encoded = words[base + _KEY : base + length].tobytes()[:size]
                key = tuple(msgspec.msgpack.decode(encoded))
        yield key, base
        base += length


def read_statistics(directory: str) -> dict[Key, int]:
    """Return what the logging process of a queue counts, without asking it; nothing before it does, or after its end.

    Where the logging process has been killed between a write and its commit, that includes what it wrote until the
    next one takes it back.
    """
    words = memoryview(_read(directory)).cast("q")
    found = {}
    for key, base in _rows(words):
        if key is not None:
            place = base + (_SECOND if words[base + _SECOND] > words[base + _FIRST] else _FIRST)
            if words[place + 1]:
                found[key] = words[place + 1]
    return found


#: A change of the rows takes less than a millisecond; the file of a process that was killed in one stays in it until
#: the next one opens it.
_READ_ATTEMPTS = 20
_READ_PAUSE = 0.001


def _read(directory: str) -> bytes:
    """Return the file, not in the middle of a change where that can be avoided."""
    try:
        with open(os.path.join(directory, _NAME), "rb", buffering=0) as file:
            for attempt in range(_READ_ATTEMPTS):
                if attempt:
                    time.sleep(_READ_PAUSE)
                file.seek(0)
                data = file.readall()
                before, after = data[:_HEADER_SIZE], os.pread(file.fileno(), _HEADER_SIZE, 0)
                if len(after) < _HEADER_SIZE or _word(before, _ENDED) == _word(after, _BEGUN):
                    break
            return data[: len(data) & -_WORD]
    except OSError:
        return b""


def _word(data: bytes, index: int) -> bytes:
    return data[index * _WORD : (index + 1) * _WORD]


def read_counts(directory: str) -> tuple[dict[Key, int], list[ProcessLosses]]:
    """Return what `read_statistics` does, and what processes have lost that is not in there; each loss once."""
    counts: dict[Key, int] = {}
    lost: dict[str, ProcessLosses] = {}
    for _ in range(_READ_ATTEMPTS):
        # What a file of losses says moves into the statistics in one instant, and is to be counted once.
        before = _folds(directory)
        lost = read_files(directory)
        counts = read_statistics(directory)
        if _folds(directory) == before:
            break
    return counts, unfolded(lost, counts)


def unfolded(lost: Mapping[str, ProcessLosses], counts: Mapping[Key, int]) -> list[ProcessLosses]:
    """Return what processes have lost that is not among the counts.

    Args:
        lost: by the names of their files.
        counts: of the logging process.
    """
    return [losses for name, losses in lost.items() if not counts.get((Tallies.FOLDED, name))]


def _folds(directory: str) -> bytes:
    with contextlib.suppress(OSError), open(os.path.join(directory, _NAME), "rb", buffering=0) as file:
        return _word(file.read(_HEADER_SIZE), _FOLDS)
    return b""
