"""What goes through a queue besides records: pickled objects, and bytes for a sink of their own.

Each has a checksum, because what stands in the queue may be garbage, and nothing else tells these from it.
"""

from __future__ import annotations

import zlib
from multiprocessing.reduction import ForkingPickler
from typing import Any

from mplog.errors import MessageTooLongError

#: Bytes that a queue carries at once, so that a reader has room for them (`frame_reader.UNFINISHED_LIMIT`). A log
#: record above `mplog.record.layout.MAX_RECORD_SIZE` is cut.
MAX_OBJECT_SIZE = 2**28

_CHECKSUM_SIZE = 4
_LONGEST_NAME = 255


def encode_object(obj: Any) -> bytes:
    """Return an object as it travels; raise MessageTooLongError if it is over 256 MiB."""
    # As bytes: dumps() returns a view of a BytesIO, and where an exception keeps that in a reference cycle, the
    # garbage collector of CPython raises BufferError or crashes (seen in 3.12.1 and 3.13.0).
    data = bytes(ForkingPickler.dumps(obj))
    if len(data) > MAX_OBJECT_SIZE:
        raise MessageTooLongError(
            f"an object of {len(data)} bytes does not go through the queue, which carries up to {MAX_OBJECT_SIZE}. "
            "Put it into a file or shared memory and send its name.",
            length=len(data),
        )
    return zlib.crc32(data).to_bytes(_CHECKSUM_SIZE, "little") + data


class PickledObject:
    """An object that has arrived whole, and is not unpickled yet."""

    def __init__(self, payload: bytes) -> None:
        check_object(payload)
        self._payload = payload

    def load(self) -> Any:
        """Unpickle it, which may run any code."""
        return ForkingPickler.loads(memoryview(self._payload)[_CHECKSUM_SIZE:])


def check_object(payload: bytes) -> None:
    """Raise ValueError unless the payload is that of an object, which is not unpickled."""
    if len(payload) <= _CHECKSUM_SIZE:
        raise ValueError("an object without content")  # of which the checksum would be 0, as garbage often is
    _check(payload, "an object")


def encode_bytes(data: bytes | bytearray | memoryview, to: str) -> bytes:
    """Return bytes for a sink as they travel; raise what `LogQueue.write` says."""
    try:
        name = to.encode("utf-8")
        rest = b"".join((len(name).to_bytes(1, "little"), name, data)) if len(name) <= _LONGEST_NAME else None
    except (AttributeError, TypeError):
        raise TypeError(
            f"write() sends bytes to a name, not {type(data).__name__} to {to!r}. Encode what is a text: "
            'text.encode("utf-8")'
        ) from None
    if rest is None:
        raise ValueError(f"the name of a sink has up to {_LONGEST_NAME} bytes, not {len(name)}")
    if len(rest) > MAX_OBJECT_SIZE:
        raise MessageTooLongError(
            f"{len(rest)} bytes do not go through the queue, which carries up to {MAX_OBJECT_SIZE} at once. "
            "Send them in pieces.",
            length=len(rest),
        )
    return zlib.crc32(rest).to_bytes(_CHECKSUM_SIZE, "little") + rest


def decode_bytes(payload: bytes) -> tuple[str, bytes]:
    """Return the name of the sink, and the bytes; raise ValueError if the payload is broken."""
    begin = _CHECKSUM_SIZE + 1
    end = begin + payload[_CHECKSUM_SIZE] if len(payload) >= begin else begin
    if len(payload) < end:
        raise ValueError("bytes without the name of their sink")
    _check(payload, "bytes")
    return payload[begin:end].decode("utf-8"), payload[end:]


def _check(payload: bytes, what: str) -> None:
    if zlib.crc32(memoryview(payload)[_CHECKSUM_SIZE:]) != int.from_bytes(payload[:_CHECKSUM_SIZE], "little"):
        raise ValueError(f"{what} whose checksum does not fit")
