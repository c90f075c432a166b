"""`Unfinished`: the parts of long records that have arrived, kept in files for the next logging process. POSIX only."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mplog.queue.directory import open_file
from mplog.queue.shared_file import replace_file
from mplog.record import frame
from mplog.record.frame_reader import FrameReader

#: Bytes of unfinished long records that are kept for the next process. One that is longer may be lost in a kill.
_UNFINISHED_LIMIT = 2**26

_PART_TAG = frame.MAGIC + bytes([frame.PART])
#: Bytes that are read at a time.
_PIECE = 2**17


class Unfinished:
    """The parts of long records that have arrived, kept in files for the next logging process.

    A swap reuses a buffer that may hold parts of a record whose end is in the other buffer. So, before the swap, the
    parts go into a file, named by the byte at which the other buffer begins.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._saved: str | None = None

    def _path(self, base: int) -> str:
        return os.path.join(self._directory, f"unfinished-{base}")

    def save(self, base: int, frames: FrameReader[Any]) -> None:
        if frames.has_unfinished:
            with contextlib.suppress(OSError):  # then only a kill would lose them
                replace_file(self._path(base), frames.unfinished_frames(_UNFINISHED_LIMIT))

    def load(self, base: int) -> Iterator[bytes]:
        """Yield what is in the file, not all at once: it takes as much memory as the records."""
        with contextlib.suppress(OSError), open(open_file(self._path(base), os.O_RDONLY), "rb") as file:
            self._saved = self._path(base)
            while data := file.read(_PIECE):
                yield data

    def set_largest_aside(self, base: int) -> frame.Part | None:
        """Take the largest record out of the file, and return its first part; None if that fails."""
        sizes: Counter[bytes] = Counter()
        first: dict[bytes, frame.Part] = {}
        for each, part in self._parts(base):
            if each.startswith(_PART_TAG):
                sizes[part.message_id] += len(part.piece)
                first.setdefault(part.message_id, part._replace(piece=b""))
        if not sizes:
            return None
        ((largest, _),) = sizes.most_common(1)

        def without() -> Iterator[bytes]:
            for each, part in self._parts(base):
                if part.message_id != largest:
                    yield each
                elif part.number == first[largest].number:
                    yield frame.set_aside(each)

        try:
            replace_file(self._path(base), without())
        except OSError:
            return None
        return first[largest]

    def _parts(self, base: int) -> Iterator[tuple[bytes, frame.Part]]:
        with contextlib.suppress(OSError), open(open_file(self._path(base), os.O_RDONLY), "rb") as file:
            while head := file.read(frame.HEADER_SIZE):
                payload = file.read(frame.HEADER.unpack(head)[2])
                yield head + payload, frame.decode_part(payload)

    def forget_before(self, base: int) -> None:
        """Remove the files that a swap has made obsolete."""
        if self._saved is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._saved)
        self._saved = self._path(base)
