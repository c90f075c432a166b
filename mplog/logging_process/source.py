"""Where the records come from; here: a plain queue. Runs in the logging process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mplog.logging_process.troubles import Troubles
from mplog.monitoring.tallies import Tallies
from mplog.record.decoding import Decoder
from mplog.record.layout import Entry


class Batch(msgspec.Struct):
    """What is handled and committed at once: `taken` bytes of the buffers, or `rescued` ones of the emergency file.

    `pieces` are names of sinks, and bytes for them. `are_numbered`: the records come nearly in the order of their
    numbers. `is_awaited`: a worker waits until they are on disk. `is_set_aside`: it is a message that was set aside.
    """

    entries: Sequence[Entry] = ()
    pieces: list[tuple[str, bytes]] = msgspec.field(default_factory=list)
    taken: int = 0
    rescued: int = 0
    are_numbered: bool = False
    is_awaited: bool = False
    is_set_aside: bool = False


class Source:
    """Where batches come from. The defaults fit a source of which nothing outlives the logging process."""

    def start(self) -> None:
        """Begin to take in."""

    def put(self, payloads: list[bytes]) -> None:
        """Take encoded records that the program has passed on."""

    def take(self) -> Batch | None:
        """Return the next batch, None where there is none yet."""

    def take_rescued(self, until: int) -> Batch | None:
        """Return the next batch of the emergency files below `until`; None where there is none."""

    def waits_for_queue(self) -> bool:
        """Whether what was logged before the next batch of the emergency files is still in the queue."""
        return False

    def settle(self, batch: Batch, is_on_disk: bool) -> None:
        """Note that a batch is committed, and tell the workers that wait for it."""

    def is_over(self) -> bool:
        """Whether nothing is left, and no process can send more."""
        return False

    def due(self) -> int:
        """Return the value of `done` at which everything is written that has been logged before this call."""
        return 0

    def done(self) -> int:
        """Return how many bytes of the queue have ever been written."""
        return 0

    def files_due(self) -> int:
        """Return the number of emergency files that hold records logged before this call, counted from the start."""
        return 0

    def check(self) -> None:
        """Do what is due even when no record comes."""

    def timeout(self) -> float | None:
        """Return the seconds until `check` has something to do; None for nothing."""

    def desert(self) -> bool:
        """Go on without the program; return whether that is the end."""
        return True

    def halt(self) -> None:
        """Take in no more, and leave the rest to the next logging process."""

    def end(self, work: Callable[[], bool], release: Callable[[], None]) -> None:
        """Let no process send any more, and have `work` handle what is left; `release` closes the supervisor's end."""

    def remove(self) -> None:
        """Remove what the queue has on disk."""

    def let_go(self) -> None:
        """Runs in a process that a handler has forked: close what tells others that the logging process lives."""


class PlainSource(Source):
    """Records of a plain queue, which the program passes on."""

    def __init__(self, tallies: Tallies, troubles: Troubles) -> None:
        self._tallies = tallies
        self._troubles = troubles
        self._decoder = Decoder()
        self._payloads: list[bytes] = []

    def put(self, payloads: list[bytes]) -> None:
        self._payloads += payloads

    def take(self) -> Batch | None:
        payloads, self._payloads = self._payloads, []
        entries = []
        for payload in payloads:
            try:
                entries.append(self._decoder.decode(payload))
            except (TypeError, ValueError, RecursionError):
                note_broken(1, self._tallies, self._troubles)
        return Batch(entries) if payloads else None


def note_broken(count: int, tallies: Tallies, troubles: Troubles) -> None:
    if count:
        tallies.add(("broken",), count)
        troubles.warn("piece", "of data in the queue skipped: not a log record", count=count)
