"""``mplog top``: the servers that run, as a screen, a table, or JSON.

The rule of this file: **it only looks** (`mplog.monitoring.running`). No server notices, whatever state it is in.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mplog.cli.arguments import to_seconds
from mplog.errors import MplogError
from mplog.monitoring.running import Found, RunningServer, Snapshot, find_servers
from mplog.monitoring.statistics import Stats
from mplog.record.plain import printable

__all__ = ["Look", "Worker", "add_arguments", "run"]

DESCRIPTION = """\
Show the log servers of this user that run: how much they write, how full their
buffers are, what was dropped and why, who logs to them, and into which files.

A server is found by the directory of its queue, mplog-*, in the temporary
directory (TMPDIR). For a program with another TMPDIR, name that directory:
mplog top DIRECTORY (server.queue.directory), or TMPDIR=... mplog top. Looking
does not disturb a server: top reads memory and files, and asks nobody.
"""
EXAMPLES = """\
keys:
  q quit, s sort the workers by another column, up and down (k, j) choose
  another server

examples:
  mplog top                       a live screen, until q
  mplog top --once                one table, for an e-mail or a bug report
  mplog top --interval 10 | tee top.txt
  mplog top --json | jq '.servers[].dropped'

exit status:
  0  there is a server
  1  no server of this user runs, or none in the directories that are named
  2  the arguments make no sense
"""

#: Seconds between two looks of the screen: often enough to see a change, and a negligible load.
_INTERVAL = 1.0
#: Seconds between the two looks of which a single table takes its rates.
_GAP = 0.5
#: Looks that a rate is kept of, for the line of bars.
_HISTORY = 60

#: By what workers are sorted, with what it is called.
SORTS = {"rate": "records/s", "records": "records", "dropped": "dropped", "pid": "pid", "name": "name"}


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process that logs.

    Attributes:
        pid, name: of the process.
        records: that arrived.
        rate: records each second.
        dropped: records that are not in the log and never will be.
        is_alive: whether it runs.
    """

    pid: int
    name: str
    records: int
    rate: float
    dropped: int
    is_alive: bool


@dataclasses.dataclass(frozen=True)
class Look:
    """A server at one instant, compared with the instant before.

    Attributes:
        server: the server.
        snapshot: how it is.
        records_per_second, bytes_per_second: what came, since the look before. Bytes as they come through the queue.
        workers: who logs, those with the highest rate first.
    """

    server: RunningServer
    snapshot: Snapshot
    records_per_second: float
    bytes_per_second: float
    workers: list[Worker]

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return max(0.0, time.time() - self.server.notice.started)

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        """Records that are lost, by the reason in words."""
        return {
            reason.name.lower().replace("_", " "): count
            for reason, count in self.snapshot.stats.dropped_by_reason.items()
        }

    @property
    def troubles(self) -> dict[str, int]:
        """What else has gone wrong, and how often."""
        stats = self.snapshot.stats
        found = {f"failed in {handler}": count for handler, count in stats.failed.items()}
        found |= {"cut": stats.truncated, "broken": stats.broken, "incomplete": stats.incomplete}
        return {name: count for name, count in found.items() if count}


class Watcher:
    """Looks again and again, and works out rates.

    Args:
        directories: of queues; none takes all of this user's.
    """

    def __init__(self, directories: Sequence[str] = ()) -> None:
        self._directories = tuple(directories)
        self._before: dict[str, Snapshot] = {}
        self.history: dict[str, deque[float]] = {}
        self.found = Found([], [], "")

    def look(self, sort: str = "rate") -> list[Look]:
        """Return the servers as they are now."""
        self.found = find_servers(self._directories)
        looks = []
        for server in self.found.servers:
            snapshot = server.look()
            if snapshot.state == "ended":
                continue
            looks.append(_compare(server, self._before.get(server.directory), snapshot, sort))
        self._before = {look.server.directory: look.snapshot for look in looks}
        self.history = {
            look.server.directory: self.history.get(look.server.directory, deque(maxlen=_HISTORY)) for look in looks
        }
        for look in looks:
            self.history[look.server.directory].append(look.records_per_second)
        return looks


def _compare(server: RunningServer, before: Snapshot | None, now: Snapshot, sort: str) -> Look:
    seconds = max(1e-3, now.at - before.at) if before is not None else 0.0

    def rate(count: int, count_before: int) -> float:
        # What a killed logging process had counted and not committed, the next one takes back.
        return max(0, count - count_before) / seconds if seconds else 0.0

    counts = now.stats.by_process
    counts_before = {} if before is None else before.stats.by_process
    lost: Counter[int] = Counter()
    names = {pid: name for name, pid in counts}
    for losses in now.stats.lost:
        lost[losses.pid] += losses.lost
        names.setdefault(losses.pid, losses.name)
    workers = [
        Worker(pid, name, count, rate(count, counts_before.get((name, pid), 0)), lost.pop(pid, 0), pid in now.living)
        for (name, pid), count in counts.items()
    ]
    workers += [Worker(pid, names[pid], 0, 0.0, count, False) for pid, count in lost.items() if count]
    before_stats = Stats() if before is None else before.stats
    return Look(
        server,
        now,
        rate(now.stats.received, before_stats.received),
        rate(now.taken, 0 if before is None else before.taken),
        sort_workers(workers, sort),
    )


def sort_workers(workers: Iterable[Worker], sort: str) -> list[Worker]:
    """Return them in the order of a column: of numbers, the highest first; those that run before those that do not."""
    if sort in ("pid", "name"):
        return sorted(workers, key=lambda worker: (not worker.is_alive, getattr(worker, sort), worker.pid))
    return sorted(
        workers, key=lambda worker: (not worker.is_alive, -getattr(worker, sort), -worker.records, worker.pid)
    )


# --- the command ---


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb; also the description and the examples of its help."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.add_argument(
        "directory", nargs="*", metavar="DIRECTORY", help="of a server's queue, as in MPLOG_QUEUE; all by default"
    )
    parser.add_argument("--once", action="store_true", help="print one table, and end; so without a terminal")
    parser.add_argument(
        "--interval",
        type=lambda text: to_seconds(text, 0.1),
        metavar="SECONDS",
        help="between two looks (1 by default); without a terminal, print a table each time, until Ctrl-C",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and end")
    parser.add_argument(
        "--sort", choices=list(SORTS), default="rate", help="the order of the workers (rate by default)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit status.

    Raises:
        MplogError: there is no server.
    """
    if not hasattr(os, "geteuid"):
        raise MplogError("mplog top needs POSIX: on this platform, servers leave nothing to look at.")
    watcher = Watcher(arguments.directory)
    looks = watcher.look(arguments.sort)
    if not looks:
        if arguments.json:
            print(as_json(watcher.found, looks))
        raise MplogError(_nothing_found(watcher.found, arguments.directory))
    is_screen = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if is_screen and not arguments.once and not arguments.json:
        try:
            from mplog.cli.top_screen import show
        except ImportError:
            print("mplog top: for a live screen, install mplog[cli] (rich).", file=sys.stderr)
        else:
            return show(watcher, arguments.sort, arguments.interval or _INTERVAL)
    while True:
        time.sleep(_GAP)
        looks = watcher.look(arguments.sort)
        print(as_json(watcher.found, looks) if arguments.json else as_text(watcher.found, looks), flush=True)
        if arguments.interval is None or arguments.once or arguments.json:
            return 0
        time.sleep(max(0.0, arguments.interval - _GAP))


def _nothing_found(found: Found, directories: Sequence[str]) -> str:
    where = ", ".join(directories) or f"{found.place}/mplog-*"
    text = f"no server of this user runs in {where}."
    if not directories:
        text += " A program with another TMPDIR has its servers there: TMPDIR=... mplog top."
    if found.left:  # at the end, as a command to be copied
        text += f" {_left(found.left)}"
    return text


def _left(left: Sequence[str]) -> str:
    what = "directory is" if len(left) == 1 else "directories are"
    return f"{len(left)} {what} left by programs that were killed; remove with: rm -r {' '.join(left[:5])}" + (
        " ..." if len(left) > 5 else ""
    )


# --- JSON ---


def as_json(found: Found, looks: Sequence[Look]) -> str:
    """Return everything as a JSON object on one line."""
    left = [_as_json_text(path) for path in found.left]
    return msgspec.json.encode({"servers": [_as_data(look) for look in looks], "left": left}).decode()


def _as_json_text(path: str) -> str:
    """Return a path, whose bytes may be no UTF-8, as a text that can be said in JSON."""
    return os.fsencode(path).decode("utf-8", "replace")


def _as_data(look: Look) -> dict[str, Any]:
    notice, snapshot, stats = look.server.notice, look.snapshot, look.snapshot.stats
    return {
        "directory": _as_json_text(look.server.directory),
        "pid": snapshot.pid,
        "program": notice.program,
        "command": notice.command,
        "state": snapshot.state,
        "started": notice.started,
        "uptime": round(look.uptime, 1),
        "restarts": stats.restarts,
        "records": stats.received,
        "records_per_second": round(look.records_per_second, 1),
        "bytes": snapshot.taken,
        "bytes_per_second": round(look.bytes_per_second, 1),
        "overflow": notice.overflow,
        "fill": round(snapshot.fill, 6) if snapshot.has_buffers else None,
        "peak_fill": round(stats.peak_fill, 6),
        "waiting_bytes": snapshot.waiting if snapshot.has_buffers else None,
        "dropped": stats.dropped,
        "dropped_by_reason": {reason.name.lower(): count for reason, count in stats.dropped_by_reason.items()},
        "failed": stats.failed,
        "truncated": stats.truncated,
        "broken": stats.broken,
        "incomplete": stats.incomplete,
        "files": [{"path": _as_json_text(path), "size": size if size >= 0 else None} for path, size in snapshot.files],
        "more_files": snapshot.more_files,
        "workers": [dataclasses.asdict(worker) for worker in look.workers],
    }


# --- the table ---

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    whole = int(seconds)
    if whole >= _DAY:
        return f"{whole // _DAY}d {whole % _DAY // _HOUR}h"
    if whole >= _HOUR:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _MINUTE}m {whole % _MINUTE:02}s" if whole >= _MINUTE else f"{whole}s"


def size(count: float) -> str:
    """Return a number of bytes, in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def fill_text(snapshot: Snapshot) -> str:
    """Return how full the buffers are."""
    return f"{snapshot.fill:.0%}" if snapshot.has_buffers else "?"


def dropped_text(look: Look) -> str:
    """Return what is lost, with the reasons."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(look.dropped_by_reason.items()))
    return f"{look.snapshot.stats.dropped:,}" + (f" ({reasons})" if reasons else "")


def as_text(found: Found, looks: Sequence[Look]) -> str:
    """Return everything as plain tables: of servers, files and workers. Each row begins with the server's pid."""
    parts = [_table(_SERVER_COLUMNS, [_server_row(look) for look in looks], left=(1, 11))]
    files = [
        (str(look.snapshot.pid), size(length) if length >= 0 else "-", printable(path))
        for look in looks
        for path, length in look.snapshot.files
    ]
    if files:
        parts.append(_table(("SERVER", "SIZE", "FILE"), files, left=(2,)))
    workers = [
        (
            str(look.snapshot.pid),
            str(worker.pid),
            printable(worker.name),
            f"{worker.rate:,.0f}",
            f"{worker.records:,}",
            f"{worker.dropped:,}",
            "" if worker.is_alive else "ended",
        )
        for look in looks
        for worker in look.workers
    ]
    parts.append(_table(("SERVER", "PID", "WORKER", "RECORDS/S", "RECORDS", "DROPPED", "STATE"), workers, left=(2, 6)))
    parts += [
        f"{look.snapshot.pid}: {name}: {printable(text)}"
        for look in looks
        for name, text in (
            ("dropped", dropped_text(look) if look.snapshot.stats.dropped else ""),
            ("also", ", ".join(f"{count:,} {what}" for what, count in look.troubles.items())),
        )
        if text
    ]
    if found.left:
        parts.append(_left(found.left))
    return "\n\n".join(parts) + "\n"


_SERVER_COLUMNS = (
    "SERVER", "STATE", "UPTIME", "RECORDS/S", "BYTES/S", "RECORDS", "FILL", "PEAK", "DROPPED", "WORKERS", "RESTARTS",
    "PROGRAM",
)  # fmt: skip


def _server_row(look: Look) -> tuple[str, ...]:
    snapshot, stats = look.snapshot, look.snapshot.stats
    return (
        str(snapshot.pid),
        snapshot.state,
        duration(look.uptime),
        f"{look.records_per_second:,.0f}",
        size(look.bytes_per_second) if snapshot.has_buffers else "?",
        f"{stats.received:,}",
        fill_text(snapshot),
        f"{stats.peak_fill:.0%}",
        f"{stats.dropped:,}",
        str(sum(worker.is_alive for worker in look.workers)),
        str(stats.restarts),
        f"{look.server.notice.program} {printable(look.server.notice.command)}"[:60],
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (header, *rows)
    )
