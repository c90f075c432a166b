"""Which message kills the logging process: it is found by handling messages alone, and set aside.

::

    3 deaths at one place             -> messages are handled alone there, each noted before, and committed after
    3 deaths with the same one alone  -> it is set aside: not decoded, not handed to any handler; counted, and said

The rule of this file: **only a message that kills the logging process again and again, and alone, is set aside.** A
kill from outside does not count, if the kernel tells it from a kill for lack of memory. If one message after the other
is deadly, the cause is not in them: no more are set aside, and the supervisor gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

#: Deaths at one place before messages are handled alone there; deaths of one message handled alone before it is set
#: aside.
DEATHS = 3

#: How many messages are set aside one directly after the other.
MOST_IN_A_ROW = 10

#: More deaths at one place are not told apart: the note has a limit.
_MOST_COUNTED = 100


class Place(msgspec.Struct, array_like=True):
    """A place of a source, as it is in the note of the buffers.

    Attributes:
        position: where it is.
        starts: logging processes that have begun there.
        tries: how many of them have died while they handled the message there alone, or are just handling it.
        set_aside: messages directly before it that were set aside.
    """

    position: int | bytes = 0
    starts: int = 0
    tries: int = 0
    set_aside: int = 0


class Suspect:
    """Watches the next message of a source.

    Args:
        place: that of the note.
        position: where the source is now.
        window: bytes that are handled alone after deaths: as many as a batch may have.
        has_crashed: whether the last logging process may have died of what it did.
    """

    def __init__(self, place: Place, position: int | bytes, window: int, *, has_crashed: bool) -> None:
        if place.position != position:
            place = Place(position)
        elif not has_crashed:
            place.tries = max(0, place.tries - 1)
        place.starts = min(place.starts + 1, _MOST_COUNTED)
        self.place = place
        self._left = window
        #: Commits the note.
        self.note: Callable[[], object] = lambda: None

    @property
    def is_careful(self) -> bool:
        """Whether the next message is to be handled alone."""
        return self.place.starts > DEATHS

    @property
    def is_deadly(self) -> bool:
        """Whether the next message is to be set aside."""
        return self.place.tries >= DEATHS and self.place.set_aside < MOST_IN_A_ROW

    def move(self, position: int | bytes) -> None:
        """Note where the next message is, if that is not known: it may be in another emergency file."""
        if position != self.place.position:
            self.place = Place(position, self.place.starts, 0, self.place.set_aside)

    def begin(self) -> None:
        """Note that the next message is now handled alone."""
        self.place.tries += 1
        self.note()

    def end(self, position: int | bytes, size: int, *, is_set_aside: bool) -> None:
        """Go on after a message of so many bytes; the next commit, which is that of the message, has the note."""
        if self.is_careful and size:
            self._left -= size
            starts = self.place.starts if self._left > 0 else 1
            self.place = Place(position, starts, 0, self.place.set_aside + 1 if is_set_aside else 0)


class Suspects(NamedTuple):
    """Those of the two sources, the queue and the emergency file, and what a recovery reads of the queue once more."""

    queue: Suspect
    emergency: Suspect
    replay: Suspect

    @property
    def places(self) -> Sequence[Place]:
        return [suspect.place for suspect in self]
