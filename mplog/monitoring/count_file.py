"""Counts in shared memory: a file of rows, each with the count that is committed and the one that is not yet.

::

    row:  length | number of a write, its count | number of a write, its count | key

The rule of this file: **a kill never leaves half a change.** Each row has two places. A write fills the one that does
not count, and gives it the number of the write, which is higher. The commit of the buffers names that number, so that
all new counts become valid at one instant. After a kill, the next process discards counts with a higher number: it will
read their records again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mplog.queue.directory import open_file
from mplog.queue.shared_file import map_fd

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
# In the header, after the magic: the number of the last change of the rows, stored when it begins and again when it
# ends, so that a reader can tell that it has read in the middle of a change.
BEGUN, ENDED = 1, 2
_HEADER_SIZE = 3 * _WORD
_CHUNK = 2**16
_LARGEST = 2**25  # some 300,000 rows; further counts do not survive a kill
_MOST = 2**63 - 1

#: A change of the rows takes less than a millisecond. The file of a process that was killed during one stays in it
#: until the next logging process opens it.
_READ_ATTEMPTS = 20
_READ_PAUSE = 0.001


class CountFile:
    """The file, for the one process that writes it; counts of writes after the committed `serial` are discarded.

    Raises OSError where there is no room for the file.
    """

    def __init__(self, directory: str, serial: int) -> None:
        self._places: dict[Key, int] = {}
        self._free: dict[int, list[int]] = defaultdict(list)
        self._emptied: list[Key] = []
        self._end = _ALIGN
        self._fd = open_file(os.path.join(directory, _NAME), os.O_RDWR | os.O_CREAT)
        try:
            length = os.fstat(self._fd).st_size
            if length < _CHUNK:
                self.words = self._grow()
                self.words[0] = _MAGIC
            else:
                self.words = self._map(length & -_CHUNK)
                self._take_back(serial)
        except BaseException:
            os.close(self._fd)
            raise

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
        with self._change():
            for key in gone:
                base = self._places.pop(key) & -_ALIGN
                self._free[self.words[base] & ((1 << _HALF) - 1)].append(base)
            for key, count in changed.items():
                current = self._places.get(key) or (self._make_row(key) if count else None)
                if current is None:
                    continue
                base = current & -_ALIGN
                place = base + _FIRST + _SECOND - (current - base)
                # The number last: until then, the other place has the higher one.
                self.words[place + 1] = min(count, _MOST)
                self.words[place] = serial
                self._places[key] = place
                if not count:
                    self._emptied.append(key)
        return gone

    def reserve(self, key: Key) -> bool:
        """Make room for a count; return False if there is none."""
        if key not in self._places:
            with self._change():  # the row may have been that of another key
                place = self._make_row(key)
            if place is not None:
                self._places[key] = place
        return key in self._places

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the object."""
        os.close(self._fd)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Tell readers that rows are being changed. After an error in between, readers still take it so."""
        self.words[BEGUN] = (self.words[ENDED] + 1) & _MOST
        yield
        self.words[ENDED] = self.words[BEGUN]

    def _take_back(self, serial: int) -> None:
        with self._change():
            for key, base in _rows(self.words):
                for place in (base + _FIRST, base + _SECOND):
                    if self.words[place] > serial:
                        self.words[place] = self.words[place + 1] = 0
                place = _valid_place(self.words, base)
                length = self.words[base] & ((1 << _HALF) - 1)
                self._end = base + length
                if key is None or not self.words[place + 1]:
                    self._free[length].append(base)
                else:
                    self._places[key] = place

    def _make_row(self, key: Key) -> int | None:
        """Return the valid place of a new row, with a count of 0; None if there is no room."""
        encoded = msgspec.msgpack.encode(key)
        length = -(-(_KEY * _WORD + len(encoded)) // (_ALIGN * _WORD)) * _ALIGN
        free = self._free.get(length)
        if free:
            base = free.pop()
        else:
            base = self._end
            try:
                while base + length >= len(self.words):
                    self.words = self._grow()
            except OSError:
                return None
            self._end += length
        words = self.words
        words[base] = length  # without a key: free
        words[base + 1] = words[base + 2] = words[base + 3] = words[base + 4] = 0
        for index, start in enumerate(range(0, len(encoded), _WORD)):
            word = encoded[start : start + _WORD].ljust(_WORD, b"\0")
            words[base + _KEY + index] = int.from_bytes(word, "little", signed=True)
        words[base] = length | len(encoded) << _HALF
        return base + _FIRST

    def _grow(self) -> memoryview:
        length = os.fstat(self._fd).st_size
        more = max(_CHUNK - length % _CHUNK, length)
        if length + more > _LARGEST:
            raise OSError("the file of counts has its largest size")
        return self._map(length + more)

    def _map(self, length: int) -> memoryview:
        return memoryview(map_fd(self._fd, length)).cast("q")


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
