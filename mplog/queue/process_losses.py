"""`ProcessLosses`: what one process has lost, from the file that its `Losses` writes. Workers load none of this."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from mplog.queue.directory import open_file, opened, workers_path
from mplog.queue.losses import COUNT, FIRST_ROW, HEADER, MAGIC, PREFIX, ROW, SIZE, Reason
from mplog.record import frame
from mplog.record.packing import pack

_OTHERS = {
    Reason.EMERGENCY: "written into the emergency file by",
    Reason.TRUNCATED: "cut for length, logged by",
    Reason.UNSYNCED: "not known to be on disk in time, logged by",
}


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


_known_reasons = {int(reason): reason for reason in Reason}


def read_file(path: str) -> tuple[ProcessLosses, int]:
    """Return what is in a file, and the PID namespace of its pid; raise ValueError if it is not valid, or not yet."""
    fd = open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        data = os.read(fd, SIZE)
    finally:
        os.close(fd)
    if len(data) < SIZE or not data.startswith(MAGIC):
        raise ValueError(f"no file of losses: {path}")
    _, pid, began, name, namespace = HEADER.unpack_from(data)
    words = memoryview(data)[FIRST_ROW:].cast("q")
    counts: Counter[tuple[int, Reason]] = Counter()
    for level, reason, count in zip(words[::ROW], words[1::ROW], words[COUNT::ROW]):
        if count > 0 and reason in _known_reasons:
            counts[level, _known_reasons[reason]] += count
    return ProcessLosses(pid, name.rstrip(b"\0").decode("utf-8", "replace"), dict(counts), began), namespace


def read_files(directory: str) -> dict[str, ProcessLosses]:
    """Return what is in the files of a queue, by their names.

    The logging process removes the files of processes that have ended (`mplog.monitoring.loss_reader`).
    """
    found: dict[str, ProcessLosses] = {}
    directory = workers_path(directory)
    with contextlib.suppress(OSError):  # no descriptor is left to look
        for name in names_of_files(directory):
            with contextlib.suppress(OSError, ValueError):
                found[name], _ = read_file(os.path.join(directory, name))
    return found


def names_of_files(directory: str) -> list[str]:
    """Return the names of the files of a queue, sorted; raise OSError if no descriptor is left to look."""
    try:
        with opened(directory, os.O_RDONLY) as fd:
            return sorted(name for name in os.listdir(fd) if name.startswith(PREFIX))
    except FileNotFoundError:
        return []


def pid_of(name: str) -> int:
    """Return the pid in the name of a file; 0 for none."""
    digits = name[len(PREFIX) :].partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 20 else 0


# --- in the queue ---

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Level = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
_decode = msgspec.msgpack.Decoder(list[tuple[_Count, str, list[tuple[_Level, Reason, _Count]]]]).decode
_NAME_ROOM = 50
_COUNTS_IN_FRAME = 10


def encode_losses(processes: Iterable[ProcessLosses]) -> bytes:
    """Return frames of kind `frame.LOSSES` that say what processes have lost, each process once."""
    together: defaultdict[tuple[int, str], Counter[tuple[int, Reason]]] = defaultdict(Counter)
    for process in processes:
        together[process.pid, process.name].update(process.counts)
    payloads: list[bytes] = []
    for (pid, name), counts in together.items():
        rows = [(level, int(reason), count) for (level, reason), count in counts.items()]
        for start in range(0, len(rows), _COUNTS_IN_FRAME):
            piece = pid, name[:_NAME_ROOM], rows[start : start + _COUNTS_IN_FRAME]
            payloads.append(pack([piece]))
    return b"".join(frame.header(frame.LOSSES, len(payload)) + payload for payload in payloads)


def decode_losses(payload: bytes) -> list[ProcessLosses]:
    """Return the losses in the payload of such a frame; raise ValueError (so does msgspec) if it is malformed."""
    if len(payload) > frame.PAYLOAD_SIZE:
        raise ValueError("losses in a message of many frames")
    return [
        ProcessLosses(pid, name, {(level, reason): count for level, reason, count in rows})
        for pid, name, rows in _decode(payload)
    ]
