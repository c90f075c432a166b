"""From the bytes of a queue to batches: records, bytes for sinks, losses. Runs in the logging process. POSIX only."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterable

from mplog.logging_process.set_aside import NO_MEMORY, SetAside
from mplog.logging_process.source import Batch, note_broken
from mplog.logging_process.troubles import Troubles
from mplog.monitoring.process import has_ended
from mplog.monitoring.tallies import Tallies
from mplog.queue.payloads import check_object, decode_bytes
from mplog.queue.process_losses import decode_losses
from mplog.queue.sync import Acknowledger
from mplog.record import frame
from mplog.record.decoding import Decoder
from mplog.record.frame_reader import FrameReader
from mplog.record.layout import Entry

#: Seconds between two checks that the writers of unfinished records live, and how many it checks each time.
CHECK_SECONDS = 1.0
_CHECKED_WRITERS = 1000


class Inbox:
    """Turns bytes into batches, and counts all that is not a record."""

    def __init__(self, directory: str, tallies: Tallies, troubles: Troubles, set_aside: SetAside) -> None:
        self._tallies = tallies
        self._troubles = troubles
        self._set_aside = set_aside
        self._has_set_aside = False
        self._pieces: list[tuple[str, bytes]] = []
        self._is_replaying = False
        self._counted = 0, 0
        self._check_due = 0.0
        decoder = Decoder()
        self.acknowledger = Acknowledger(directory, decoder.decode)
        self.frames: FrameReader[Entry | None] = FrameReader(
            {
                frame.RECORD: decoder.decode,
                frame.OBJECT: self._refuse_object,
                frame.SYNC: self.acknowledger.decode,
                frame.LOSSES: self._count_losses,
                frame.BYTES: self._keep_bytes,
                **{kind | frame.ASIDE: functools.partial(self._skip, kind) for kind in frame.KINDS},
            },
            decoder.decode_framed,
        )

    def replay(self, pieces: Iterable[bytes]) -> None:
        """Take bytes whose whole messages another logging process has already written and counted."""
        self._is_replaying = self.frames.is_replaying = True
        for data in pieces:
            self.frames.feed(data, drained=False)
        self.frames.feed(b"", drained=True)
        self._is_replaying = self.frames.is_replaying = False
        self._new_garbage()

    def open(self, data: bytes, *, drained: bool) -> Batch:
        """Return the messages completed by the next bytes. `drained`: nothing was left in the queue after them."""
        entries = self.frames.feed(data, drained=drained)
        broken, skipped = self._new_garbage()
        note_broken(broken, self._tallies, self._troubles)
        self._tallies.add(("skipped",), skipped)
        for message in self.frames.too_large:
            self._set_aside.add(NO_MEMORY, message.kind, message.length, pid=message.pid)
        self.frames.too_large.clear()
        pieces, self._pieces = self._pieces, []
        is_set_aside, self._has_set_aside = self._has_set_aside, False
        taken = len(data) - self.frames.take_back()
        records = [entry for entry in entries if entry is not None]
        is_awaited = self.acknowledger.is_due
        return Batch(records, pieces, taken, are_numbered=True, is_awaited=is_awaited, is_set_aside=is_set_aside)

    def _new_garbage(self) -> tuple[int, int]:
        """Return how many pieces of garbage there were since the last call, and how many bytes."""
        broken, skipped = self._counted
        self._counted = self.frames.broken + self.frames.given_up, self.frames.skipped
        return self._counted[0] - broken, self._counted[1] - skipped

    # --- all that is not a record; called by the frame reader ---

    def _keep_bytes(self, payload: bytes) -> None:
        if not self._is_replaying:
            self._pieces.append(decode_bytes(payload))

    def _count_losses(self, payload: bytes) -> None:
        for lost in decode_losses(payload):
            if not self._is_replaying:
                self._tallies.count_lost(lost)

    def _refuse_object(self, payload: bytes) -> None:
        """Count an object that was put() and is not a record: unpickling it could run any code."""
        check_object(payload)
        if not self._is_replaying:
            self._tallies.add(("objects",))
            self._troubles.warn("object", "put into the queue skipped: not a log record")

    def _skip(self, kind: int, payload: bytes) -> None:
        """Set a frame aside, and the message of which it is a part."""
        part = frame.decode_part(payload) if kind == frame.PART else None
        message = self.frames.give_up(part) if part is not None else None
        if not self._is_replaying:
            self._has_set_aside = True
            if part is not None and message is not None:
                self._set_aside.add_parts(part, [*message.pieces, part.piece])
            else:
                self._set_aside.add_frame(kind, payload)

    def check_incomplete(self, is_drained: Callable[[], bool]) -> None:
        """Give up the long records whose writers have died, once all that is now in the queue is handled."""
        if self.frames.has_incomplete and time.monotonic() >= self._check_due:
            # Pids come off the wire: of many, some are looked at each time.
            writers = list({message.pid for message in self.frames.incomplete()})
            if len(writers) > _CHECKED_WRITERS:
                writers = random.sample(writers, _CHECKED_WRITERS)
            dead = {pid for pid in writers if has_ended(pid)}
            self._check_due = time.monotonic() + CHECK_SECONDS
            # In this order: what a writer wrote before it died is in the queue now, and must be handled first.
            if dead and is_drained():
                self.give_up(dead)

    def give_up(self, writers: set[int] | None = None) -> None:
        for message in self.frames.drop_incomplete(lambda message: writers is None or message.pid in writers):
            self._tallies.add(("incomplete",))
            self._troubles.warn(
                "long record",
                f"lost: pid {message.pid} ended before it had sent the whole of one "
                f"({len(message.pieces)} of {message.count} parts)",
            )
