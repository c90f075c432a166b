"""Commits: the instants at which what is written counts as written. Runs in the logging process.

The rule of this file: **what counts changes with a commit of the buffers**, all of it in one instant: how far the queue
and the emergency file are read, what is counted, what is about to be written into files, what is still to be said.
README.rst in this folder tells the whole protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from mplog.files.portion import Portion
from mplog.handlers.output import Output
from mplog.logging_process.accounts import Accounts
from mplog.logging_process.announcements import Announcements, Noted
from mplog.queue.buffers import BufferPair
from mplog.queue.emergency import EmergencyReader
from mplog.queue.kill_points import reach


class Note(msgspec.Struct, array_like=True):
    """What the next process must know.

    Attributes:
        announced: what is about to be written.
        emergency: how far the emergency file is read.
        serial: which counts are committed.
        restarts: those that the log has not told of yet.
    """

    announced: Noted
    emergency: bytes
    serial: int
    restarts: list[str]


def read_note(pair: BufferPair) -> Note:
    """Return the note of the last commit."""
    return msgspec.msgpack.decode(pair.note, type=Note) if pair.note else Note(Noted(), b"", 0, [])


class Commit:
    """Announces what is about to be written, and commits what is.

    Args:
        pair: the buffers.
        announcements: what has been announced since the last commit.
        accounts: what is counted, and what is to be said of restarts.
        emergency: reads the emergency file.
        outputs: those of the handlers.
    """

    def __init__(
        self,
        pair: BufferPair,
        announcements: Announcements,
        accounts: Accounts,
        emergency: EmergencyReader,
        outputs: Sequence[Output],
    ) -> None:
        self._pair = pair
        self._announcements = announcements
        self._accounts = accounts
        self._emergency = emergency
        self._outputs = list(outputs)
        for index, output in enumerate(outputs):
            output.announce = functools.partial(self._announce, index)

    def _announce(self, index: int, portion: Portion) -> None:
        self._announcements.add(index, portion, self._outputs[index].takes_back)
        self._pair.commit(0, self._note())
        reach("before write")

    def _note(self, rescued: int = 0) -> bytes:
        """Return what the next process must know."""
        accounts = self._accounts
        emergency = self._emergency.note(rescued)
        return msgspec.msgpack.encode(
            Note(self._announcements.noted(), emergency, accounts.tallies.serial, accounts.restarts.untold)
        )

    @property
    def is_due(self) -> bool:
        """Whether something was written or counted since the last commit."""
        accounts = self._accounts
        return self._announcements.is_open or accounts.tallies.has_new or accounts.restarts.is_said

    def commit(self, taken: int = 0, rescued: int = 0) -> None:
        """Say that everything is written that was announced.

        Args:
            taken: with how many bytes of the buffers.
            rescued: with how many bytes of the emergency file.
        """
        self._announcements.clear()
        self._accounts.tallies.write()
        self._accounts.restarts.settle()
        self._pair.commit(taken, self._note(rescued))
        self._announcements.remove()
        for output in self._outputs:
            output.settle()  # nothing is going to be taken back
