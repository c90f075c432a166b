"""How much memory a record will take once it is decoded. Pure code, no I/O.

The rule of this file: **what is decoded is bounded by what was sent.** An empty list is 1 byte in msgpack, and 70 in
memory. Honest records are nearly all text and hardly grow, but one of nothing but empty lists, as long as a record may
be, would take gigabytes.

A record of a megabyte cannot take much, and is not looked at. A longer one is estimated value by value. If it has many
values, an upper bound comes first, and mostly is enough: C code counts the bytes that can begin a value.
"""

from __future__ import annotations

import sys

#: Bytes of memory that any record may take. A longer one may take `_GROWTH` times its own bytes.
MEMORY = 256 * 2**20
_GROWTH = 4

# Bytes of memory, on a 64-bit CPython: a reference to a value; a value of the largest kinds, which are a dictionary of
# one entry, and an empty set; a number; a text or bytes, beside what is in it.
_REFERENCE, _LARGEST, _NUMBER, _TEXT = 8, 240, 40, 60
_EMPTY, _ENTRY = 72, 100

#: A record of so few values, however long they are, is gone through at once.
_FEW = 5000

_ASCII = bytes(range(0x80))


def check(payload: bytes) -> None:
    """Raise ValueError if a long record would take far more memory than it has bytes."""
    allowed = max(MEMORY, _GROWTH * len(payload))
    size, is_all = estimate(payload, allowed, _FEW)
    if not is_all:
        size = at_most(payload)
        if size > allowed:
            size, _ = estimate(payload, allowed)
    if size > allowed:
        raise ValueError(f"a record of {len(payload)} bytes that would take more than {allowed} in memory")


def at_most(data: bytes | memoryview) -> int:
    """Return an upper bound for the memory: small numbers and texts of ASCII are bytes below 0x80."""
    values = len(bytes(data).translate(None, _ASCII))
    return _REFERENCE * len(data) + _LARGEST * values


_ALONE, _BLOB, _EXT, _MAP = range(4)


def _table() -> dict[int, tuple[int, int, int, int, int]]:
    """Return, by the first byte of a value (the msgpack specification):

    the bytes of its head, the memory it takes, the bytes of its length in the head, its length where these are 0, and
    what has that length: nothing, the bytes of a text, those of an extension, or entries.
    """
    table = {first: (1, 0 if first < 0x80 else _NUMBER, 0, 0, _ALONE) for first in range(0x100)}
    table |= {0x80 + entries: (1, _LARGEST if entries else _EMPTY, 0, entries, _MAP) for entries in range(16)}
    table |= {0x90 + items: (1, _EMPTY, 0, 0, _ALONE) for items in range(16)}
    table |= {0xA0 + length: (1, _TEXT, 0, length, _BLOB) for length in range(32)}
    table |= {first: (size, _NUMBER, 0, 0, _ALONE) for first, size in zip(range(0xCA, 0xD4), (5, 9, *(2, 3, 5, 9) * 2))}
    table |= {0xD4 + power: (2, _LARGEST, 0, 2**power, _EXT) for power in range(5)}
    for place, width in enumerate((1, 2, 4)):
        table[0xC4 + place] = table[0xD9 + place] = (1 + width, _TEXT, width, 0, _BLOB)
        table[0xC7 + place] = (2 + width, _LARGEST, width, 0, _EXT)
    for place, width in enumerate((2, 4)):
        table[0xDC + place] = (1 + width, _EMPTY, 0, 0, _ALONE)
        table[0xDE + place] = (1 + width, _LARGEST, width, 0, _MAP)
    return table


_VALUES = _table()


def estimate(data: bytes, enough: int, most: int = sys.maxsize) -> tuple[int, bool]:
    """Estimate the memory of the first `most` values, or stop at `enough`; also return whether these are all.

    Malformed data are left to the decoder: it stops there, and has made no more than what came before.
    """
    view, position, end, total = memoryview(data), 0, len(data), 0
    while position < end and total <= enough:
        if not most:
            return total, False
        most -= 1
        head, memory, width, length, kind = _VALUES[data[position]]
        if width:
            length = int.from_bytes(data[position + 1 : position + 1 + width], "big")
        total += _REFERENCE + memory
        position += head
        if kind == _MAP:
            total += _ENTRY * min(length, max(0, end - position))
        elif kind != _ALONE:
            # In an extension, which is one of our own, there may be values.
            total += length if kind == _BLOB else at_most(view[position : position + length])
            position += length
    return total, True
