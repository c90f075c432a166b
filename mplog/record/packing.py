"""Plain data as msgpack and as JSON, by a process that may have no memory for it. Pure code, no I/O.

The rule of this file: **what does not fit into memory raises MemoryError.** The methods ``encode`` of msgspec make a
buffer, and crash when there is no memory for a longer one (``encoder_encode_common`` of msgspec 0.22 and 0.23). Its
``encode_into`` raises.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

# One for each thread and signal handler that packs at once. A list that is never quite empty keeps its own memory.
_buffers = [bytearray() for _ in range(8)]
_take_buffer, _give_buffer = _buffers.pop, _buffers.append
# A buffer of more bytes is not kept.
_KEPT_BUFFER = 2**16


def packer(encode_into: Callable[[object, bytearray], None]) -> Callable[[object], bytes]:
    """Return a function that does what the method ``encode`` of an encoder does, by its method ``encode_into``."""

    def pack(value: object) -> bytes:
        try:
            buffer = _take_buffer()
        except IndexError:
            buffer = bytearray()
        encode_into(value, buffer)
        packed = b"" + buffer
        _give_buffer(buffer if len(packed) < _KEPT_BUFFER else bytearray())
        return packed

    return pack


#: Returns a value as msgpack; raises MemoryError if there is no memory for it.
pack = packer(msgspec.msgpack.Encoder().encode_into)
#: Returns a value as JSON; raises MemoryError if there is no memory for it.
pack_json = packer(msgspec.json.Encoder().encode_into)
