"""A record of a text as `mplog.record.encoding` makes it, without what that has to load.

The rule of this file: **it knows the types that a command line has, and gives up on anything else.** Pure code, no I/O.
"""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["encode"]

#: The longest text, list and so on of each form in msgpack.
_SHORT, _LONG, _LONGEST = 2**8, 2**16, 2**32


def encode(sequence: int, message: str, extra: dict[str, Any], created: float, origin: tuple[Any, ...]) -> bytes:
    """Return a record as plain data, as for a server whose sinks look at no details of the call.

    Args:
        sequence: its number, from 1.
        message: the message.
        extra: its fields, of the types that JSON has.
        created: when, in seconds since the epoch.
        origin: pid, logger, level, name of the level, name of the process.

    Raises:
        ValueError: something in it has another form in a record.
    """
    msecs = float(int((created - int(created)) * 1000))
    encoded = _pack([*origin, None])
    return _pack([sequence, message, extra or None, None, created, msecs, None, None, encoded])


def _pack(value: Any) -> bytes:
    """Return the value in msgpack."""
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
    raise ValueError(f"{kind.__name__} is no type of a command line")


def _pack_int(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if -(2**63) <= value < 2**63:
        return struct.pack(">Bq", 0xD3, value)
    if 0 <= value < 2**64:
        return struct.pack(">BQ", 0xCF, value)
    raise ValueError(f"{value} has more than 64 bits")


def _head(length: int, fixed: int, below: int, codes: tuple[int | None, int, int]) -> bytes:
    """Return what says the type and the length."""
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
