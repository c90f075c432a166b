"""Levels that a server changes while its workers run, without a thread, a signal or a lock.

The directory of the queue holds a word of shared memory that counts the changes, and a file that lists them. A worker
looks at the word whenever it sends a record; `mplog.Logger` does so at each call, also below the level.
"""

from __future__ import annotations

import contextlib
import logging
import os

import msgspec

from mplog.queue.directory import read_file
from mplog.queue.shared_file import map_file, replace_file

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
        self._changes: dict[str, tuple[int, int]] = {}
        self._word = _map(directory, writable=True)

    def set(self, name: str, level: int) -> None:
        """Tell the workers of a new level, or raise OSError and tell them nothing."""
        count = self._word[0] + 1
        changes = {**self._changes, name: (count, level)}
        replace_file(os.path.join(self._directory, _CHANGES_NAME), msgspec.json.encode(changes))
        self._changes = changes
        self._word[0] = count  # in this order: a worker that sees the new number finds the new file


def _map(directory: str, *, writable: bool = False) -> memoryview:
    return memoryview(map_file(os.path.join(directory, _COUNTER_NAME), _WORD, writable=writable)).cast("Q")


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
        changes = msgspec.json.decode(data, type=dict[str, tuple[int, int]])
        for name, (number, level) in changes.items():
            if number > last:  # a level that the process has set itself since stays
                logging.getLogger(name).setLevel(level)
