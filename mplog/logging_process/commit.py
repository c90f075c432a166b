"""Commits: each makes what was written count, at one instant. README.rst in this folder tells the protocol."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import msgspec

from mplog.files.portion import Portion
from mplog.handlers.output import Output
from mplog.logging_process.accounts import Accounts
from mplog.logging_process.announcements import Announcements, Noted
from mplog.queue.buffers import BufferPair
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.kill_points import reach


class Note(msgspec.Struct, array_like=True):
    """What the next process must know. Counts up to `serial` are committed; `restarts` are not yet said in the log."""

    announced: Noted
    emergency: bytes
    serial: int
    restarts: list[str]


def read_note(pair: BufferPair) -> Note:
    return msgspec.msgpack.decode(pair.note, type=Note) if pair.note else Note(Noted(), b"", 0, [])


@dataclass(eq=False)
class Commit:
    """Announces what is about to be written into the files of `outputs`, and commits what is written."""

    pair: BufferPair
    announcements: Announcements
    accounts: Accounts
    emergency: EmergencyReader
    outputs: list[Output]

    def __post_init__(self) -> None:
        for index, output in enumerate(self.outputs):
            output.announce = functools.partial(self._announce, index)

    def _announce(self, index: int, portion: Portion) -> None:
        self.announcements.add(index, portion, self.outputs[index].takes_back)
        self.emergency.announce(index, *portion.start, portion.end.length)
        self.pair.commit(0, self._note())
        reach("before write")

    def _note(self, *, rescued: bool = False) -> bytes:
        accounts = self.accounts
        emergency = self.emergency.note(is_read=rescued)
        return msgspec.msgpack.encode(
            Note(self.announcements.noted, emergency, accounts.tallies.serial, accounts.restarts.untold)
        )

    @property
    def is_due(self) -> bool:
        """Whether something was written or counted since the last commit."""
        accounts = self.accounts
        return self.announcements.is_open or accounts.tallies.has_new or accounts.restarts.is_said

    def commit(self, taken: int = 0, *, rescued: bool = False) -> None:
        """Note that all announced portions are written: `taken` bytes of the buffers, or what was `rescued`."""
        self.announcements.clear()
        self.accounts.tallies.write()
        self.accounts.restarts.settle()
        self.pair.commit(taken, self._note(rescued=rescued))
        self.announcements.remove()
        for output in self.outputs:
            output.settle()  # nothing is going to be taken back
