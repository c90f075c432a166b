"""How much memory a record will take once it is decoded. Pure code, no I/O.

The rule of this file: **what is decoded is bounded by what was sent.** An empty list is 1 byte in msgpack, and 70 in
memory. Honest records are nearly all text and hardly grow, but one of nothing but empty lists, as long as a record may
be, would take gigabytes.

A record of a megabyte cannot take much, and is not looked at. A longer one is estimated value by value; if it has many,
first by the bytes that can begin a value that takes memory, which are counted in C, and mostly that is enough.
"""

from __future__ import annotations

import struct
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


_LENGTHS = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
# By the first byte, of a value that is a fixed number of bytes, that number (the msgpack specification).
_FIXED = {0xC0: 1, 0xC1: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, **dict(zip(range(0xCC, 0xD4), (2, 3, 5, 9) * 2))}
_FIXEXT = {0xD4 + index: 2**index for index in range(5)}
# By the first byte, the bytes of its length.
_BLOBS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def estimate(data: bytes, enough: int, most: int = sys.maxsize) -> tuple[int, bool]:
    """Estimate the memory that values take.

    Args:
        data: the values, one after the other.
        enough: an estimate above this may stop.
        most: how many values to look at.

    Returns:
        The estimate, and whether it includes all values.

    Malformed data are left to the decoder: it stops there, and has made no more than what came before.
    """
    view, position, end, total = memoryview(data), 0, len(data), 0
    try:
        while position < end and total <= enough:
            if not most:
                return total, False
            most -= 1
            first = data[position]
            total += _REFERENCE
            if first < 0x80:
                position += 1
            elif 0xA0 <= first < 0xC0:
                total += _TEXT + (first & 0x1F)
                position += 1 + (first & 0x1F)
            elif first < 0xA0:
                entries = first & 0x0F if first < 0x90 else 0
                total += _LARGEST + _ENTRY * entries if entries else _EMPTY
                position += 1
            elif first >= 0xE0:
                total += _NUMBER
                position += 1
            elif first in _FIXED:
                total += _NUMBER
                position += _FIXED[first]
            elif first in _BLOBS:
                size = _BLOBS[first]
                (length,) = _LENGTHS[size].unpack_from(data, position + 1)
                total += _TEXT + length
                position += 1 + size + length
            elif first in _FIXEXT or first in _EXTS:
                size = _EXTS.get(first, 0)
                (length,) = _LENGTHS[size].unpack_from(data, position + 1) if size else (_FIXEXT[first],)
                position += 2 + size
                # One of our own, with values in it, or text.
                total += _LARGEST + at_most(view[position : position + length])
                position += length
            elif first in _ARRAYS:
                total += _EMPTY
                position += 1 + _ARRAYS[first]
            else:
                (length,) = _LENGTHS[_MAPS[first]].unpack_from(data, position + 1)
                total += _LARGEST + _ENTRY * min(length, end - position)
                position += 1 + _MAPS[first]
    except struct.error:
        pass
    return total, True
