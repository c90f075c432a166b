"""`Presence`: shows that this process may yet write into a queue, though it has closed all descriptors. POSIX only.

::

    Sender.open() -- maps --> a file of the queue <-- finds in /proc/PID/maps -- SilentWriters, in the logging process

A program that becomes a daemon closes its end of the FIFO, and opens it anew when it next logs, which may be hours
later. A mapping lives through that and through a fork, needs no descriptor, and ends with the process.

Any file would do. This one is there with every server, and is looked at anyway: it counts the changes of levels
(`mplog.worker.levels`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from mplog.queue.shared_file import forget_unused, map_file

_NAME = "level-changes"
WORD = 8


def counter_path(directory: str) -> str:
    """Return the path of the file, in the directory of a queue: a word that counts the changes of levels."""
    return os.path.join(directory, _NAME)


class Presence:
    """The mapping of one queue in this process.

    Args:
        directory: of the queue.

    Attributes:
        on_end: called with the word when its mapping is to end, so that whoever else looks at it lets go of it.
    """

    __slots__ = ("_directory", "_word", "on_end")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._word: memoryview | None = None
        self.on_end: Callable[[memoryview], object] | None = None

    def begin(self) -> memoryview | None:
        """Map the word, if it is not mapped yet, and return it; None where that fails.

        It fails where no server has started with this queue yet, or another program has removed the file.
        """
        if self._word is None:
            with contextlib.suppress(OSError):
                word = memoryview(map_file(counter_path(self._directory), WORD)).cast("Q")
                self._word = self._word or word  # another thread may have mapped it, and be watching that
        return self._word

    def end(self) -> None:
        """Let the logging process end without this process."""
        word, self._word = self._word, None
        if word is not None:
            if self.on_end is not None:
                self.on_end(word)
            del word
            forget_unused()
