"""`Stats`: what has been counted since the server started, as a program sees it, and in words.

Any process may read it at any time: the counts are in files of the queue's directory (see tallies.py).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mplog.monitoring.count_file import Key, read_rows
from mplog.queue.losses import Reason
from mplog.queue.process_losses import ProcessLosses, read_files, totals


@dataclass(frozen=True)
class Stats:
    """What has been counted since the server was started, over all its logging processes.

    In `lost`, `missing` and `unexplained`, 1,000 processes that have ended keep entries of their own. The others are
    counted together, under the pid 0, and in `lost` with the name "others".

    Attributes:
        by_origin: records that arrived, by process name, pid and level. From the 10,001st process on, they count under
            ("others", 0), and from the 1,001st level on, under level 0.
        failed: records that a handler could not write, by handler.
        broken: pieces of garbage in the queue, and records that did not decode.
        skipped: bytes of garbage in the queue.
        incomplete: long records whose writer died, or gave up, before their last part.
        objects: objects in the queue that are not records; the logging process does not unpickle.
        peak_fill: how full the buffers have been at most, from 0 to 1.
        lost: what each process has lost, by level and reason. With ``drop_oldest``, records dropped from the buffers
            have entries of their own.
        missing: by pid, how many record numbers have not come through the queue. Each process numbers its records, so
            this equals what the process has `lost`, unless something is unexplained.
        unexplained: by pid, how many numbers are missing without a known reason. A call in progress leaves such a gap
            for a moment, and a call that a kill has interrupted leaves one for good.
        restarts: logging processes that have died and were replaced.
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
        """Records that arrived, by process name and pid."""
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
        """Records that no handler failed to write. A record that two handlers failed to write is subtracted twice."""
        return max(0, self.received - sum(self.failed.values()))

    @property
    def dropped(self) -> int:
        """Records that are not in the log, because there was no room for them or because they were set aside."""
        return sum(losses.lost for losses in self.lost)

    @property
    def dropped_by_reason(self) -> dict[Reason, int]:
        """The `dropped` records, by reason."""
        return {reason: count for reason, count in totals(self.lost).items() if reason.is_loss}

    @property
    def truncated(self) -> int:
        """Records whose long texts were cut."""
        return totals(self.lost).get(Reason.TRUNCATED, 0)

    @property
    def rejected(self) -> int:
        """Records that were logged when no process read the queue any more; they are among the `dropped`."""
        return totals(self.lost).get(Reason.REJECTED, 0)


#: The fill of the buffers is counted in millionths.
PEAK_UNIT = 1_000_000


def to_stats(counts: Mapping[Key, int], files: Mapping[str, ProcessLosses]) -> Stats:
    """Return what the logging process has counted, and what is in the files of losses, as a program sees it."""
    kinds: dict[str, dict[Any, int]] = defaultdict(dict)
    for (kind, *rest), count in counts.items():
        if count:
            kinds[kind][tuple(rest)] = count
    # The file of a process counts while it is there. Once it is removed, what the log has said of it counts.
    said = Counter[Any]()
    for (file, *process), count in kinds["said"].items():
        if file not in files:
            said[tuple(process)] += count
    living = [*files.values(), *_by_process(said), *_by_process(kinds["lost"])]
    gaps, missing, unexplained = Counter[int](), Counter[int](), Counter[int]()
    for losses in living:
        gaps[losses.pid] += losses.gap
    for (pid,), last in kinds["last"].items():
        # If two processes had the same pid, more numbers have come than the highest one.
        missing[pid] = max(0, last - kinds["through"].get((pid,), 0))
        unexplained[pid] = max(0, missing[pid] - gaps[pid])
    for kind, sums in (("missing of ended", missing), ("unexplained of ended", unexplained)):
        for (pid,), count in kinds[kind].items():
            sums[pid] += count
    return Stats(
        by_origin=kinds["received"],
        failed={name: count for (name,), count in kinds["failed"].items()},
        lost=[*_by_process(kinds["lost by ended"]), *living],
        peak_fill=kinds["peak"].get((), 0) / PEAK_UNIT,
        missing=dict(+missing),
        unexplained=dict(+unexplained),
        **{name: kinds[name].get((), 0) for name in ("broken", "skipped", "incomplete", "objects", "restarts")},
    )


def _by_process(counts: Mapping[Any, int]) -> list[ProcessLosses]:
    processes: dict[tuple[int, str], dict[tuple[int, Reason], int]] = defaultdict(dict)
    for (pid, name, level, reason), count in counts.items():
        processes[pid, name][level, Reason(reason)] = count
    return [ProcessLosses(pid, name, losses) for (pid, name), losses in processes.items()]


def read_counts(directory: str) -> tuple[dict[Key, int], dict[str, ProcessLosses]]:
    """Return what `to_stats` needs, read from the directory of a queue; empty before a server starts and after its end.

    The logging process shows in the files what is committed. While a disk is full, they may be behind.
    """
    while True:
        files = read_files(directory)
        counts = read_rows(directory)
        # In between, the logging process may have moved the counts of a file to the totals, and removed it.
        said = {key[1] for key in counts if key[0] == "said"}
        if all(os.path.lexists(os.path.join(directory, name)) for name in files.keys() - said):
            return counts, files


def written(stats: Stats) -> str:
    """Return how much was written: "3 records of 2 processes written"."""
    return f"{number_of(stats.written, 'record')} of {number_of(len(stats.by_process), 'process', 'es')} written"


def missing(stats: Stats) -> str:
    """Return what is missing in the log, and why; "" if nothing is."""
    found = [f"{number_of(count, 'record')} not written by {handler}" for handler, count in stats.failed.items()]
    for reason, count in sorted(stats.dropped_by_reason.items()):
        found.append(f"{number_of(count, 'record')} dropped: {reason.text}")
    if stats.incomplete:
        found.append(f"{number_of(stats.incomplete, 'long record')} whose end never came")
    if stats.objects:
        found.append(f"{number_of(stats.objects, 'object')} in the queue that cannot be logged")
    if stats.broken:
        found.append(f"{number_of(stats.broken, 'piece')} of garbage in the queue")
    return f"records are missing in the log: {'; '.join(found)}" if found else ""


def number_of(number: int, noun: str, plural: str = "s") -> str:
    """Return a number and what it is a number of, in words for people."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"
