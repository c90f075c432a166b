"""Commits: each makes what was written count, at one instant. README.rst in this folder tells the protocol."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from mplog.files.portion import Portion
from mplog.handlers.output import Output
from mplog.logging_process.accounts import Accounts
from mplog.logging_process.announcements import Announcements, Noted
from mplog.logging_process.suspects import Place, Suspects
from mplog.queue.buffers import BufferPair
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.kill_points import reach
from mplog.record.packing import pack


class Note(msgspec.Struct, array_like=True):
    """What the next process must know. Counts up to `serial` are committed; `restarts` are not yet said in the log.

    `places` are those of the `Suspects`.
    """

    announced: Noted
    emergency: bytes
    serial: int
    restarts: list[str]
    places: Sequence[Place]


def read_note(pair: BufferPair) -> Note:
    if pair.note:
        return msgspec.msgpack.decode(pair.note, type=Note)
    return Note(Noted(), b"", 0, [], [Place(pair.position), Place(b""), Place(pair.position)])


@dataclass(eq=False)
class Commit:
    """Announces what is about to be written into the files of `outputs`, and commits what is written."""

    pair: BufferPair
    announcements: Announcements
    accounts: Accounts
    emergency: EmergencyReader
    outputs: list[Output]
    suspects: Suspects

    def __post_init__(self) -> None:
        for index, output in enumerate(self.outputs):
            output.announce = functools.partial(self._announce, index)
        for suspect in self.suspects:
            suspect.note = self._commit_note

    def _announce(self, index: int, portion: Portion) -> None:
        self.announcements.add(index, portion, self.outputs[index].takes_back)
        self.emergency.announce(index, *portion.start, portion.end.length)
        self._commit_note()
        reach("before write")

    def _commit_note(self) -> None:
        self.pair.commit(0, self._note(self.emergency.note()))

    def _note(self, emergency: bytes) -> bytes:
        accounts = self.accounts
        noted, untold = self.announcements.noted, accounts.restarts.untold
        return pack(Note(noted, emergency, accounts.tallies.serial, untold, self.suspects.places))

    @property
    def is_due(self) -> bool:
        """Whether something was written or counted since the last commit."""
        accounts = self.accounts
        return self.announcements.is_open or accounts.tallies.has_new or accounts.restarts.is_said

    def commit(self, taken: int = 0, rescued: int = 0, *, is_set_aside: bool = False) -> None:
        """Note that all announced portions are written: `taken` bytes of the buffers, `rescued` emergency ones.

        `is_set_aside`: these are a message that was set aside.
        """
        self.announcements.clear()
        self.accounts.tallies.write()
        self.accounts.restarts.settle()
        emergency = self.emergency.note(is_read=rescued > 0)
        for suspect in (self.suspects.queue, self.suspects.replay):
            suspect.end(self.pair.position + taken, taken, is_set_aside=is_set_aside)
        self.suspects.emergency.end(emergency, rescued, is_set_aside=is_set_aside)
        self.pair.commit(taken, self._note(emergency))
        self.accounts.tallies.publish()
        self.announcements.remove()
        for output in self.outputs:
            output.settle()  # nothing is going to be taken back
