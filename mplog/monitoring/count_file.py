"""Counts of rows, each with the count that is committed and the one that is not yet; and a file that shows them.

::

    row:  length | number of a write, its count | number of a write, its count | key

    logging process: write() --> memory that outlives it --> publish() --> file --> read_rows(): any process

The rule of this file: **a kill never leaves half a change.** Each row has two places. A write fills the one that does
not count, and gives it the number of the write, which is higher. The commit of the buffers names that number, so that
all new counts become valid at one instant. After a kill, the next process discards counts with a higher number: it will
read their records again.

All of this happens in memory, for which no disk is needed. The file is a copy, written after the commit. While its disk
is full, it falls behind, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mplog.queue.buffer_memory import map_counts
from mplog.queue.directory import open_file
from mplog.queue.shared_file import PAUSE, write_at
from mplog.record.packing import pack

#: The name of a count: its kind, and what tells it from others of the kind.
Key = tuple[Any, ...]

_NAME = "statistics"
_MAGIC = int.from_bytes(b"mplogst1", "little")
# Everything is in words of 8 bytes. The first word of a row has the length of the row, and in its upper half the size
# of the key, 0 for a free row. Rows begin at multiples of 8, so that the index of a place tells its row.
_WORD = 8
_ALIGN = 8
_HALF = 32
_FIRST, _SECOND, _KEY = 1, 3, 5
# In the header, after the magic: the number of the last publication, stored when it begins and again when it ends, so
# that a reader can tell that it has read in the middle of one.
BEGUN, ENDED = 1, 2
_HEADER_SIZE = 3 * _WORD
# Words between two changed rows that are written with them: copying a page costs less than another system call.
_GAP = 512
_MOST = 2**63 - 1

#: Seconds between two looks whether the file was removed.
_LOOK_SECONDS = 1.0

#: A publication takes less than a millisecond. If it was cut short by a kill or a full disk, that lasts until the next.
_READ_ATTEMPTS = 20
_READ_PAUSE = 0.001


class CountFile:
    """The counts, for the one process that counts; those of writes after the committed `serial` are discarded.

    They are in the `memory` of the buffers; the file is in a directory. Raises OSError where memory cannot be mapped.
    """

    def __init__(self, memory: int, directory: str, serial: int) -> None:
        self._places: dict[Key, int] = {}
        self._free: dict[int, list[int]] = defaultdict(list)
        self._emptied: list[Key] = []
        self._end = _ALIGN
        self._path = os.path.join(directory, _NAME)
        self._fd = -1
        self._paused_until = self._look_at = 0.0
        #: The rows that are not in the file as they are in memory, by the index of their first word.
        self._unpublished: set[int] = set()
        self._bytes = memoryview(map_counts(memory))
        self.words = self._bytes.cast("q")
        self.words[0] = _MAGIC
        self._take_back(serial)

    def __contains__(self, key: object) -> bool:
        """Return whether a count has a row, and so survives a kill."""
        return key in self._places

    def counts(self) -> dict[Key, int]:
        """Return the counts as they were last written."""
        return {key: self.words[place + 1] for key, place in self._places.items()}

    def write(self, changed: Mapping[Key, int], serial: int) -> list[Key]:
        """Write counts, to be valid after the commit that names `serial`; return the keys whose rows are now free.

        A count of 0 keeps its row until the next write: only then is this one known to be committed. A count without
        room for a row is left out.
        """
        gone = [key for key in self._emptied if not changed.get(key)]
        self._emptied.clear()
        for key in gone:
            base = self._places.pop(key) & -_ALIGN
            self._free[self._length(base)].append(base)
        for key, count in changed.items():
            current = self._places.get(key) or (self._make_row(key) if count else None)
            if current is None:
                continue
            base = current & -_ALIGN
            place = base + _FIRST + _SECOND - (current - base)
            # The number last: until then, the other place has the higher one.
            self.words[place + 1] = min(count, _MOST)
            self.words[place] = serial
            self._unpublished.add(base)
            self._places[key] = place
            if not count:
                self._emptied.append(key)
        return gone

    def reserve(self, key: Key) -> bool:
        """Make room for a count; return False if there is none."""
        if key not in self._places:
            place = self._make_row(key)
            if place is not None:
                self._places[key] = place
        return key in self._places

    @property
    def is_behind(self) -> bool:
        """Whether the file does not show all counts."""
        return bool(self._unpublished) or self._fd < 0

    def publish(self) -> None:
        """Show in the file what has changed; what a full disk refuses waits for a later call."""
        now = time.monotonic()
        if now < self._paused_until:
            return
        try:
            if now >= self._look_at:
                self._look_at = now + _LOOK_SECONDS
                if self._fd < 0 or not os.fstat(self._fd).st_nlink:
                    self._open()
            words = self.words
            words[BEGUN] = (words[ENDED] + 1) & _MOST
            self._copy(0, ENDED)
            for start, end in self._changed_words():
                self._copy(start, end)
            words[ENDED] = words[BEGUN]
            self._copy(ENDED, ENDED + 1)
            self._unpublished.clear()
        except OSError:
            self._paused_until = now + PAUSE
            self._look_at = 0.0

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the object."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        """Open the file, made if there is none, or none any more."""
        self.close()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._fd = open_file(self._path, flags)
        os.ftruncate(self._fd, self._end * _WORD)
        self._unpublished.update(base for _, base in _rows(self.words))

    def _copy(self, start: int, end: int) -> None:
        write_at(self._fd, self._bytes[start * _WORD : end * _WORD], start * _WORD)

    def _changed_words(self) -> Iterator[tuple[int, int]]:
        """Yield the begin and the end of each stretch to write."""
        start = end = 0
        for base in sorted(self._unpublished):
            if base - end > _GAP:
                if end:
                    yield start, end
                start = base
            start, end = start or base, base + self._length(base)
        yield start, end

    def _length(self, base: int) -> int:
        return self.words[base] & ((1 << _HALF) - 1)

    def _take_back(self, serial: int) -> None:
        for key, base in _rows(self.words):
            for place in (base + _FIRST, base + _SECOND):
                if self.words[place] > serial:
                    self.words[place] = self.words[place + 1] = 0
            place = _valid_place(self.words, base)
            self._end = base + self._length(base)
            self._unpublished.add(base)
            if key is None or not self.words[place + 1]:
                self._free[self._length(base)].append(base)
            else:
                self._places[key] = place

    def _make_row(self, key: Key) -> int | None:
        """Return the valid place of a new row, with a count of 0; None if there is no room."""
        encoded = pack(key)
        length = -(-(_KEY * _WORD + len(encoded)) // (_ALIGN * _WORD)) * _ALIGN
        free = self._free.get(length)
        if free:
            base = free.pop()
        elif self._end + length <= len(self.words):
            base = self._end
            self._end += length
        else:
            return None
        words = self.words
        words[base] = length  # without a key: free
        words[base + 1] = words[base + 2] = words[base + 3] = words[base + 4] = 0
        for index, start in enumerate(range(0, len(encoded), _WORD)):
            word = encoded[start : start + _WORD].ljust(_WORD, b"\0")
            words[base + _KEY + index] = int.from_bytes(word, "little", signed=True)
        words[base] = length | len(encoded) << _HALF
        self._unpublished.add(base)
        return base + _FIRST


def read_rows(directory: str) -> dict[Key, int]:
    """Return the counts in the file, from any process; empty where there is none."""
    words = memoryview(_read(directory)).cast("q")
    return {
        key: count for key, base in _rows(words) if key is not None and (count := words[_valid_place(words, base) + 1])
    }


def has_file(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, _NAME))


def _read(directory: str) -> bytes:
    """Return the content of the file, if possible not in the middle of a change."""
    try:
        fd = open_file(os.path.join(directory, _NAME), os.O_RDONLY)
        with open(fd, "rb", buffering=0) as file:
            for attempt in range(_READ_ATTEMPTS):
                if attempt:
                    time.sleep(_READ_PAUSE)
                file.seek(0)
                data = file.readall()
                after = os.pread(file.fileno(), _HEADER_SIZE, 0)
                if len(after) < _HEADER_SIZE or data[ENDED * _WORD :][:_WORD] == after[BEGUN * _WORD :][:_WORD]:
                    break
            return data[: len(data) & -_WORD]
    except OSError:
        return b""


def _rows(words: memoryview) -> Iterator[tuple[Key | None, int]]:
    """Yield the key of each row, None for a free one, and the index of its first word."""
    base, end = _ALIGN, len(words)
    if end <= base or words[0] != _MAGIC:
        return
    while base < end:
        length, size = words[base] & ((1 << _HALF) - 1), words[base] >> _HALF
        if not 0 < length <= end - base or size > (length - _KEY) * _WORD:
            return
        key = None
        if size > 0:
            with contextlib.suppress(msgspec.DecodeError):  # just being written
                encoded = words[base + _KEY : base + length].tobytes()[:size]
                key = tuple(msgspec.msgpack.decode(encoded))
        yield key, base
        base += length


def _valid_place(words: memoryview, base: int) -> int:
    return base + (_SECOND if words[base + _SECOND] > words[base + _FIRST] else _FIRST)
