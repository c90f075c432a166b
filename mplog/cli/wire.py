"""A record of a text, encoded as in `mplog.record.encoding`, without msgspec: only for the types of a command line."""

from __future__ import annotations

import struct
from typing import Any

#: From these lengths on, msgpack has another form for a text, a list and so on.
_SHORT, _LONG, _LONGEST = 2**8, 2**16, 2**32


def encode(sequence: int, message: str, extra: dict[str, Any], created: float, origin: tuple[Any, ...]) -> bytes:
    """Return a record as plain data, without the details of a call; `origin` is as in an `Origin`."""
    msecs = float(int((created - int(created)) * 1000))
    encoded = _pack([*origin, None])
    return _pack([sequence, message, extra or None, None, created, msecs, None, None, encoded])


def _pack(value: Any) -> bytes:
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    kind = type(value)
    if kind is int:
        return _pack_int(value)
    if kind is float:
        return struct.pack(">Bd", 0xCB, value)
    if kind is str:
        text: bytes = value.encode()
        return _head(len(text), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + text
    if kind is bytes:
        return _head(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + bytes(value)
    if kind is list:
        return _head(len(value), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(_pack, value))
    if kind is dict:
        items = [_pack(each) for pair in value.items() for each in pair]
        return _head(len(value), 0x80, 16, (None, 0xDE, 0xDF)) + b"".join(items)
    raise ValueError(f"{kind.__name__} is not a type of a command line")


def _pack_int(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if -(2**63) <= value < 2**63:
        return struct.pack(">Bq", 0xD3, value)
    if 0 <= value < 2**64:
        return struct.pack(">BQ", 0xCF, value)
    raise ValueError(f"{value} has more than 64 bits")


def _head(length: int, fixed: int, below: int, codes: tuple[int | None, int, int]) -> bytes:
    if length < below:
        return bytes([fixed | length])
    short, long, longest = codes
    if short is not None and length < _SHORT:
        return bytes([short, length])
    if length < _LONG:
        return struct.pack(">BH", long, length)
    if length < _LONGEST:
        return struct.pack(">BI", longest, length)
    raise ValueError(f"{length} bytes or items are too many")
