"""What ``mplog top`` shows, as text: the cells of its tables, plain tables, and a JSON object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from mplog.cli.watcher import Look, Worker
from mplog.monitoring.find_servers import Found
from mplog.record.plain import printable

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
    """Return a number of bytes, in units of 1024; "-" for a negative one, the size of a file that is not there."""
    if count < 0:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def server_cells(look: Look) -> dict[str, str]:
    """Return the cells of a server's row, under the names of their columns."""
    snapshot, stats, notice = look.snapshot, look.snapshot.stats, look.server.notice
    buffers = snapshot.buffers
    return {
        "SERVER": str(snapshot.pid),
        "STATE": snapshot.state,
        "UPTIME": duration(look.uptime),
        "RECORDS/S": f"{look.records_per_second:,.0f}",
        "BYTES/S": size(look.bytes_per_second) if buffers else "?",
        "RECORDS": f"{stats.received:,}",
        "FILL": f"{buffers.fraction:.0%}" if buffers else "?",
        "PEAK": f"{stats.peak_fill:.0%}",
        "DROPPED": f"{stats.dropped:,}",
        "WORKERS": str(sum(worker.is_alive for worker in look.workers)),
        "RESTARTS": str(stats.restarts),
        "PROGRAM": f"{notice.program} {printable(notice.command)}",
    }


def worker_cells(worker: Worker) -> dict[str, str]:
    """Return the cells of a worker's row, under the names of their columns."""
    return {
        "PID": str(worker.pid),
        "WORKER": printable(worker.name),
        "RECORDS/S": f"{worker.rate:,.0f}",
        "RECORDS": f"{worker.records:,}",
        "DROPPED": f"{worker.dropped:,}",
    }


def dropped_text(look: Look) -> str:
    """Return how many records are lost, with the reasons."""
    stats = look.snapshot.stats
    reasons = ", ".join(f"{count:,} {reason.text}" for reason, count in sorted(stats.dropped_by_reason.items()))
    return f"{stats.dropped:,}" + (f" ({reasons})" if reasons else "")


def troubles_text(look: Look) -> str:
    """Return what else has gone wrong, and how often; "" if nothing has."""
    stats = look.snapshot.stats
    found = {f"failed in {printable(handler)}": count for handler, count in stats.failed.items()}
    found |= {"cut": stats.truncated, "broken": stats.broken, "incomplete": stats.incomplete}
    return ", ".join(f"{count:,} {what}" for what, count in found.items() if count)


def left_text(left: Sequence[str]) -> str:
    """Return what to do about the directories that killed programs have left."""
    what = "directory is" if len(left) == 1 else "directories are"
    more = " ..." if len(left) > 5 else ""
    return f"{len(left)} {what} left by programs that were killed; remove with: rm -r {' '.join(left[:5])}{more}"


def as_text(found: Found, looks: Sequence[Look]) -> str:
    """Return plain tables of servers, files and workers. Each row begins with the server's pid."""
    servers = [{**cells, "PROGRAM": cells["PROGRAM"][:60]} for cells in map(server_cells, looks)]
    files = [
        {"SERVER": str(look.snapshot.pid), "SIZE": size(length), "FILE": printable(path)}
        for look in looks
        for path, length in look.snapshot.files
    ]
    workers = [
        {"SERVER": str(look.snapshot.pid), **worker_cells(worker), "STATE": "" if worker.is_alive else "ended"}
        for look in looks
        for worker in look.workers
    ]
    parts = [_table(_SERVERS, servers), *([_table(_FILES, files)] if files else []), _table(_WORKERS, workers)]
    for look in looks:
        if look.snapshot.stats.dropped:
            parts.append(f"{look.snapshot.pid}: dropped: {dropped_text(look)}")
        if troubles := troubles_text(look):
            parts.append(f"{look.snapshot.pid}: also: {troubles}")
    if found.left:
        parts.append(left_text(found.left))
    return "\n\n".join(parts) + "\n"


_SERVERS = (
    "SERVER", "STATE", "UPTIME", "RECORDS/S", "BYTES/S", "RECORDS", "FILL", "PEAK", "DROPPED", "WORKERS", "RESTARTS",
    "PROGRAM",
)  # fmt: skip
_FILES = ("SERVER", "SIZE", "FILE")
_WORKERS = ("SERVER", "PID", "WORKER", "RECORDS/S", "RECORDS", "DROPPED", "STATE")
_ON_THE_LEFT = {"STATE", "PROGRAM", "FILE", "WORKER"}


def _table(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> str:
    lines = [columns, *([row[name] for name in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in _ON_THE_LEFT else cell.rjust(width)
            for name, cell, width in zip(columns, line, widths)
        ).rstrip()
        for line in lines
    )


def as_json(found: Found, looks: Sequence[Look]) -> str:
    """Return everything as a JSON object on one line."""
    left = [_as_json_text(path) for path in found.left]
    return msgspec.json.encode({"servers": [_as_data(look) for look in looks], "left": left}).decode()


def _as_json_text(path: str) -> str:
    """Return a path as a text for JSON, which has no room for bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def _as_data(look: Look) -> dict[str, Any]:
    notice, snapshot, stats = look.server.notice, look.snapshot, look.snapshot.stats
    buffers = snapshot.buffers
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
        "bytes": buffers.taken if buffers else 0,
        "bytes_per_second": round(look.bytes_per_second, 1),
        "overflow": notice.overflow,
        "fill": round(buffers.fraction, 6) if buffers else None,
        "peak_fill": round(stats.peak_fill, 6),
        "waiting_bytes": buffers.unwritten if buffers else None,
        "dropped": stats.dropped,
        "dropped_by_reason": {reason.name.lower(): count for reason, count in stats.dropped_by_reason.items()},
        "failed": stats.failed,
        "truncated": stats.truncated,
        "broken": stats.broken,
        "incomplete": stats.incomplete,
        "files": [{"path": _as_json_text(path), "size": size if size >= 0 else None} for path, size in snapshot.files],
        "more_files": snapshot.more_files,
        "workers": look.workers,
    }
