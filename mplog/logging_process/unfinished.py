"""The parts of long records that have arrived, kept for the next logging process. POSIX only.

A swap has a buffer filled anew that may hold parts of a record whose end is in the other one; so they go into a file
before the swap, named by the byte at which the other buffer begins.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from mplog.queue.shared_file import replace_file
from mplog.record.frame_reader import FrameReader

#: Bytes of unfinished long records that are kept for the next process. One that is longer may be lost in a kill.
_LIMIT = 2**26


class Unfinished:
    """The files, in the directory of the queue."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._saved: str | None = None

    def _path(self, base: int) -> str:
        return os.path.join(self._directory, f"unfinished-{base}")

    def save(self, base: int, frames: FrameReader[Any]) -> None:
        """Keep what belongs before the byte of that number."""
        data = frames.unfinished_frames(_LIMIT)
        if data:
            with contextlib.suppress(OSError):  # then only a kill would lose them
                replace_file(self._path(base), data)

    def load(self, base: int) -> bytes:
        """Return what belongs before the byte of that number."""
        with contextlib.suppress(OSError), open(self._path(base), "rb") as file:
            self._saved = self._path(base)
            return file.read()
        return b""

    def forget_before(self, base: int) -> None:
        """Remove what a swap has made obsolete."""
        if self._saved is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._saved)
        self._saved = self._path(base)
