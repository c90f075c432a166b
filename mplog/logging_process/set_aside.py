"""What is set aside (`mplog.logging_process.suspects`): counted, said in the log, and kept. POSIX only.

A short message is kept in a file next to the emergency file, in the same format. Under the name of the emergency file,
the next server merges it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from mplog.logging_process.suspects import DEATHS
from mplog.monitoring.tallies import Tallies
from mplog.queue.emergency import EmergencyFile
from mplog.queue.losses import Reason
from mplog.queue.overflow import Overflow
from mplog.queue.process_losses import ProcessLosses
from mplog.queue.sync import TOKEN_SIZE
from mplog.record import frame
from mplog.record.decoding import origin_of
from mplog.record.plain import printable

DEADLY = f"the logging process died {DEATHS} times while it handled it"
NO_MEMORY = "there was no memory for it"

#: Bytes of the longest message that is kept. A longer one may be deadly by its length.
LONGEST_KEPT = 2**20

_SUFFIX = ".set-aside"

#: Kinds of messages that are records.
RECORDS = (frame.RECORD, frame.SYNC)


class SetAside:
    """Says what is set aside by `say`, before the commit that counts it."""

    def __init__(self, tallies: Tallies, say: Callable[[str, int], object], overflow: Overflow) -> None:
        self._tallies = tallies
        self._say = say
        path = overflow.emergency  # None for a log without a file, next to which something could be kept
        self._file = path and EmergencyFile(path + _SUFFIX, overflow.emergency_size)

    def count(self, kind: int, pid: int, name: str = "", level: int = 0, *, is_said: bool = False) -> None:
        """Count a message; the log says so later, unless it `is_said`."""
        if kind in RECORDS:
            self._tallies.count_lost(ProcessLosses(pid, name, {(level, Reason.SET_ASIDE): 1}), is_said=is_said)
        else:
            self._tallies.add(("broken",))

    def add(
        self, why: str, kind: int, size: int, *, pid: int = 0, record: bytes | None = None, frames: bytes = b""
    ) -> None:
        """Count a message of a kind, so long, and say so.

        Args:
            why: it is not handled.
            kind: of the message.
            size: its bytes.
            pid: of its sender, if that is known.
            record: a short record, of which only the origin is decoded.
            frames: all its frames, to be kept.
        """
        name, level = "", 0
        if record is not None:
            with contextlib.suppress(ValueError, RecursionError):
                origin = origin_of(record)
                pid, name, level = origin.process or 0, origin.processName or "", origin.levelno
        self.count(kind, pid, name, level, is_said=True)
        what = "record" if kind in RECORDS else "message"
        who = f"{printable(name[:100])} (pid {pid})" if name else f"pid {pid}" if pid else "an unknown process"
        self._say(f"mplog: 1 {what} of {size:,} bytes by {who} set aside{self._keep(frames)}: {why}", logging.ERROR)

    def add_frame(self, kind: int, payload: bytes) -> None:
        """Do that with a message of one frame."""
        record = {frame.RECORD: payload, frame.SYNC: payload[TOKEN_SIZE:]}.get(kind)
        self.add(DEADLY, kind, len(payload), record=record, frames=frame.header(kind, len(payload)) + payload)

    def add_parts(self, part: frame.Part, pieces: list[bytes]) -> None:
        """Do that with a long message, of which these pieces have come."""
        size = sum(map(len, pieces))
        frames = b""
        if len(pieces) == part.total and size <= LONGEST_KEPT:
            frames = frame.whole(part.kind, b"".join(pieces))
        self.add(DEADLY, part.kind, size, pid=part.pid, frames=frames)

    def add_rescued(self, frames: bytes, size: int) -> None:
        """Do that with a message of the emergency file: all its frames, or the first one."""
        found = frame.first(frames, is_all=True)
        payload, frames = frames[found.payload], frames if len(frames) == size else b""
        if found.kind == frame.PART:
            part = frame.decode_part(payload)
            self.add(DEADLY, part.kind, size, pid=part.pid, frames=frames)
        else:
            self.add_frame(found.kind or 0, payload)

    def _keep(self, frames: bytes) -> str:
        """Keep the frames of a message, and return where."""
        if self._file and frames:
            with contextlib.suppress(OSError):
                if self._file.append(frames):
                    return f" in {self._file.path}"
        return ""
