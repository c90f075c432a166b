"""Levels that a server changes while its workers run, without a thread, a signal or a lock.

The directory of the queue holds a file of one word that counts the changes, and a file that lists them. A worker has
the word mapped, and looks at it whenever it sends a record; `mplog.Logger` does so at each call, also below the level.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import msgspec

from mplog.queue.directory import read_file
from mplog.queue.shared_file import FOR_WORKERS, make_file, map_file, replace_file, write_file
from mplog.record.packing import pack_json

_COUNTER_NAME = "level-changes"
_CHANGES_NAME = "levels"
_WORD = 8


class _Watched:
    """What this process looks at: the word that counts the changes, and what it was at the last look."""

    __slots__ = ("directory", "seen", "word")

    def __init__(self) -> None:
        self.word: memoryview = memoryview(bytes(8)).cast("Q")
        self.seen = 0
        self.directory = ""


#: Where ``word[0]`` differs from ``seen``, it is time to `look`.
watched = _Watched()


class LevelChanges:
    """What a server has changed, for others to see; raises OSError where the disk has no room for the counter."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        #: The last change of each logger: its number, the name of the logger, and the level.
        self._changes: list[tuple[int, str, int]] = []
        make_file(os.path.join(directory, _COUNTER_NAME), _WORD)

    def set(self, name: str, level: int) -> None:
        """Tell the workers of a new level, or raise OSError and tell them nothing."""
        before = self._changes
        count = before[-1][0] + 1 if before else 1
        self._changes = [*(change for change in before if change[1] != name), (count, name, level)]
        # In this order: a worker that sees the new number finds the new file. Until then, the change before it holds.
        try:
            changes = pack_json([*before, self._changes[-1]])
            replace_file(os.path.join(self._directory, _CHANGES_NAME), changes, FOR_WORKERS)
            write_file(os.path.join(self._directory, _COUNTER_NAME), count.to_bytes(_WORD, sys.byteorder))
        except OSError:
            self._changes = before
            raise


def counter_path(directory: str) -> str:
    """Return the path of the word that counts the changes, which each process that logs has mapped."""
    return os.path.join(directory, _COUNTER_NAME)


def _map(directory: str) -> memoryview:
    return memoryview(map_file(counter_path(directory), _WORD)).cast("Q")


def watch(directory: str) -> None:
    """Look out for changes of the levels of the server whose queue has this directory."""
    with contextlib.suppress(OSError):
        if directory != watched.directory:
            watched.word, watched.seen, watched.directory = _map(directory), 0, directory
        look()


def look() -> None:
    """Take over what has changed since the last look."""
    count, last = watched.word[0], watched.seen
    if count == last:
        return
    watched.seen = count  # first: what follows may log
    with contextlib.suppress(OSError, msgspec.DecodeError):  # the server has gone
        data = read_file(os.path.join(watched.directory, _CHANGES_NAME))
        changes = msgspec.json.decode(data, type=list[tuple[int, str, int]])
        for number, name, level in changes:
            # A level that the process has set itself since stays. A number above the count may never come to count.
            if last < number <= count:
                logger = logging.getLogger(name)
                logger.setLevel(level)
                logger.disabled = False
