"""Levels that a server changes while its workers run, without a thread, a signal or a lock.

The directory of the queue holds a file of one word that counts the changes, and a file that lists them. A worker has
the word mapped (`mplog.queue.presence`), and looks at it whenever it sends a record; `mplog.Logger` does so at each
call, also below the level.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import msgspec

from mplog.queue.directory import read_file
from mplog.queue.log_queue import LogQueue
from mplog.queue.presence import WORD, counter_path
from mplog.queue.shared_file import FOR_WORKERS, make_file, replace_file, write_file
from mplog.record.packing import pack_json

_CHANGES_NAME = "levels"
_NOTHING = memoryview(bytes(WORD)).cast("Q")


class _Watched:
    """What this process looks at: the word that counts the changes, and what it was at the last look."""

    __slots__ = ("directory", "seen", "word")

    def __init__(self) -> None:
        self.word = _NOTHING
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
        make_file(counter_path(directory), WORD)

    def set(self, name: str, level: int) -> None:
        """Tell the workers of a new level, or raise OSError and tell them nothing."""
        before = self._changes
        count = before[-1][0] + 1 if before else 1
        self._changes = [*(change for change in before if change[1] != name), (count, name, level)]
        # In this order: a worker that sees the new number finds the new file. Until then, the change before it holds.
        try:
            changes = pack_json([*before, self._changes[-1]])
            replace_file(os.path.join(self._directory, _CHANGES_NAME), changes, FOR_WORKERS)
            write_file(counter_path(self._directory), count.to_bytes(WORD, sys.byteorder))
        except OSError:
            self._changes = before
            raise


def watch(queue: LogQueue) -> None:
    """Look out for changes of the levels of the server with this queue, until the queue is closed."""
    presence = queue.sender.presence
    word = presence.begin()
    if word is not None:
        if word is not watched.word:
            watched.word, watched.seen, watched.directory = word, 0, queue.directory
            presence.on_end = _unwatch
        look()


def _unwatch(word: memoryview) -> None:
    if watched.word is word:
        watched.word, watched.seen = _NOTHING, 0


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
