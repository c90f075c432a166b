"""Frames: what travels through the queue. Pure code, no I/O.

The rule of this file: **a frame is one atomic write.** It is at most ``select.PIPE_BUF`` bytes long, and POSIX promises
for such a write into a FIFO that it arrives whole and in one piece, however many processes write and whenever one of
them dies. So a frame that is cut short or out of step was never written by us, and is skipped.

::

    frame    = tag (3 bytes of magic, 1 of kind) | length, uint32 | payload
    payload  = the message itself                                    kinds RECORD and OBJECT
             | part header | a piece of the message                  kind PART, for a message longer than a frame

The reader knows nothing of what a payload means; it asks ``decode``. A frame counts once its payload decodes. One that
does not is garbage, and the search for the next frame begins behind its first byte, so that a false length cannot
swallow the frames that follow it.
"""

from __future__ import annotations

import os
import select
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

__all__ = [
    "FRAME_SIZE",
    "HEADER",
    "OBJECT",
    "PAYLOAD_SIZE",
    "RECORD",
    "RECORD_TAG",
    "FrameReader",
    "Incomplete",
    "abandon",
    "frame",
    "frames",
]

T = TypeVar("T")

#: The largest frame in bytes: 4096 on Linux, 512 on macOS.
FRAME_SIZE: int = getattr(select, "PIPE_BUF", 512)

#: A log record, as `mplog.record` encodes it.
RECORD = 1
#: Any other object, pickled. The logging process never looks inside.
OBJECT = 2
#: A piece of a message that is longer than one frame.
PART = 3

# Text never contains it: 0xff does not occur in UTF-8.
_MAGIC = b"\xffmp"
_MAGIC_NUMBER = int.from_bytes(_MAGIC, "little")
_MAGIC_MASK = 0xFFFFFF
HEADER = struct.Struct("<II")
HEADER_SIZE = HEADER.size
PAYLOAD_SIZE = FRAME_SIZE - HEADER_SIZE
RECORD_TAG = _MAGIC_NUMBER | RECORD << 24
PART_TAG = _MAGIC_NUMBER | PART << 24

# Message id, pid of the writer, index and number of parts (0 parts: the writer gave the message up), kind of the
# whole, CRC-32 of the piece. The id is random, since pids repeat across PID namespaces and threads share one.
_PART = struct.Struct("<16sIIIII")
_PIECE_SIZE = PAYLOAD_SIZE - _PART.size

# Zeros are common in garbage, and without it the checksum of no bytes is zero.
_SEED = 0x6D706C67

# What a piece costs in memory beside its bytes, so that many short ones count as what they are.
_PIECE_OVERHEAD = 128
# The same for a message of which any piece is there.
_MESSAGE_OVERHEAD = 512

#: Bytes of unfinished messages that a reader holds before it gives the oldest one up.
UNFINISHED_LIMIT = 512 * 2**20


def frame(kind: int, payload: bytes) -> bytes | None:
    """Return the message as one frame, or None where it needs `frames`."""
    length = len(payload)
    if length > PAYLOAD_SIZE:
        return None
    return HEADER.pack(_MAGIC_NUMBER | kind << 24, length) + payload


def frames(kind: int, payload: bytes, message_id: bytes) -> Iterator[bytes]:
    """Yield the frames of a message that is longer than one frame, in the order in which they must be written.

    Args:
        kind: `RECORD` or `OBJECT`.
        payload: the whole message.
        message_id: 16 random bytes.
    """
    count = -(-len(payload) // _PIECE_SIZE)
    pid = os.getpid()
    view = memoryview(payload)
    for index in range(count):
        piece = view[index * _PIECE_SIZE : (index + 1) * _PIECE_SIZE]
        yield _part(message_id, pid, index, count, kind, piece)


def abandon(message_id: bytes) -> bytes:
    """Return the frame that tells the reader that the rest of a long message will not come."""
    return _part(message_id, os.getpid(), 0, 0, 0, b"")


def _part(message_id: bytes, pid: int, index: int, count: int, kind: int, piece: bytes | memoryview) -> bytes:
    header = _PART.pack(message_id, pid, index, count, kind, zlib.crc32(piece, _SEED))
    return b"".join((HEADER.pack(PART_TAG, len(header) + len(piece)), header, piece))


# What decoding raises for what is no message: of an unknown kind, malformed, nested too deeply.
_BROKEN = (KeyError, ValueError, RecursionError)


class Incomplete:
    """A long message of which parts are still missing.

    Attributes:
        pid: the process that is writing it.
        count: how many parts it has.
        pieces: those that have arrived.
        size: the memory they take, in bytes.
    """

    __slots__ = ("count", "pid", "pieces", "size")

    def __init__(self, pid: int, count: int) -> None:
        self.pid = pid
        self.count = count
        self.pieces: list[bytes] = []
        self.size = _MESSAGE_OVERHEAD


class FrameReader(Generic[T]):
    """Turn a stream of bytes back into messages.

    Args:
        decode: by the kind of a message, what is called with its payload: returns it decoded, or raises ValueError
            (msgspec's errors are ValueErrors) or RecursionError where it is none.

    Attributes:
        skipped: bytes that belonged to no frame.
        broken: runs of such bytes, and long messages that did not decode.
        given_up: long messages that were dropped because too much was unfinished.
    """

    def __init__(self, decode: Mapping[int, Callable[[bytes], T]]) -> None:
        self._decode = decode
        self._rest = b""
        self._in_garbage = False
        self._incomplete: dict[bytes, Incomplete] = {}
        self._incomplete_size = 0
        self.skipped = 0
        self.broken = 0
        self.given_up = 0

    @property
    def wanted(self) -> int:
        """How many bytes complete the next frame; a reader that shares the queue reads no further."""
        rest = self._rest
        if len(rest) < HEADER_SIZE:
            return HEADER_SIZE - len(rest)
        length: int = HEADER.unpack_from(rest)[1]
        return HEADER_SIZE + length - len(rest)

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame has been read in part."""
        return not self._rest

    def feed(self, data: bytes, *, drained: bool) -> list[T]:
        """Return the messages that `data` completes.

        Args:
            data: the next bytes of the stream.
            drained: nothing was left in the queue behind them. Since frames arrive whole, an unfinished frame at the
                end of such data is garbage, not a frame still to come.
        """
        buffer = self._rest + data if self._rest else data
        messages: list[T] = []
        position, end = 0, len(buffer)
        unpack, decode, append = HEADER.unpack_from, self._decode, messages.append
        while end - position >= HEADER_SIZE:
            tag, length = unpack(buffer, position)
            stop = position + HEADER_SIZE + length
            if tag & _MAGIC_MASK == _MAGIC_NUMBER and length <= PAYLOAD_SIZE:
                if stop <= end:
                    try:
                        payload = buffer[position + HEADER_SIZE : stop]
                        if tag != PART_TAG:
                            append(decode[tag >> 24](payload))
                        else:
                            self._accept_part(payload, messages)
                    except _BROKEN:
                        pass
                    else:
                        self._in_garbage = False
                        position = stop
                        continue
                elif not drained:
                    break
            position = self._skip(buffer, position)
        if drained and position < end:
            self._count_garbage(end - position)
            position = end
        self._rest = buffer[position:]
        return messages

    def _accept_part(self, payload: bytes, messages: list[T]) -> None:
        whole = self._assemble(payload)
        if whole is None:
            return
        kind, message = whole
        try:
            messages.append(self._decode[kind](message))
        except _BROKEN:
            # Every piece had its checksum, so the stream is in step: there is nothing to search again.
            self.broken += 1

    def _assemble(self, payload: bytes) -> tuple[int, bytes] | None:
        if len(payload) < _PART.size:
            raise ValueError("a part without its header")
        message_id, pid, index, count, kind, checksum = _PART.unpack_from(payload)
        piece = payload[_PART.size :]
        if zlib.crc32(piece, _SEED) != checksum:
            raise ValueError("a part whose checksum does not fit")
        if count == 0:
            self._forget(message_id)
            return None
        message = self._incomplete.get(message_id)
        if message is None:
            message = self._incomplete[message_id] = Incomplete(pid, count)
            self._incomplete_size += message.size
        if index != len(message.pieces) or count != message.count or index >= count:
            # Its checksum is right, so the stream is in step, but the parts before it went elsewhere.
            self._forget(message_id)
            self.broken += 1
            return None
        message.pieces.append(piece)
        message.size += len(piece) + _PIECE_OVERHEAD
        self._incomplete_size += len(piece) + _PIECE_OVERHEAD
        if len(message.pieces) == count:
            self._forget(message_id)
            return kind, b"".join(message.pieces)
        while self._incomplete_size > UNFINISHED_LIMIT:
            self._forget(next(iter(self._incomplete)))
            self.given_up += 1
        return None

    def _forget(self, message_id: bytes) -> None:
        message = self._incomplete.pop(message_id, None)
        if message is not None:
            self._incomplete_size -= message.size

    def incomplete(self) -> list[Incomplete]:
        """Return the long messages of which parts are still missing."""
        return list(self._incomplete.values())

    def drop_incomplete(self, is_lost: Callable[[Incomplete], bool]) -> list[Incomplete]:
        """Forget the unfinished messages for which `is_lost` holds, and return them."""
        lost = {key: message for key, message in self._incomplete.items() if is_lost(message)}
        for key in lost:
            self._forget(key)
        return list(lost.values())

    def _skip(self, buffer: bytes, position: int) -> int:
        """Count the garbage at `position` and return where the next frame may begin."""
        found = buffer.find(_MAGIC, position + 1)
        if found < 0:
            # The last bytes may be the beginning of a magic whose end is still to come.
            found = max(position + 1, len(buffer) - len(_MAGIC) + 1)
        self._count_garbage(found - position)
        return found

    def _count_garbage(self, size: int) -> None:
        self.skipped += size
        if not self._in_garbage:
            self._in_garbage = True
            self.broken += 1
