"""Frames: what travels through the queue. Pure code, no I/O.

The rule of this file: **a frame is one atomic write.** It is at most ``select.PIPE_BUF`` bytes long, and POSIX promises
for such a write into a FIFO that it arrives whole and in one piece, however many processes write and whenever one of
them dies. So a frame that is cut short or out of step was never written by us, and is skipped.

::

    frame    = magic (3 bytes) | kind (1 byte) | 0x92 0xcd | length, big-endian uint16 | payload
    payload  = the message itself                                    kinds RECORD, OBJECT and LOSSES
             | token (16 bytes) | a record                           kind SYNC
             | CRC-32 of the rest | length of a name, name | bytes   kind BYTES
             | part header | a piece of the message                  kind PART, for a message longer than a frame

The reader knows nothing of what a payload means; it asks ``decode``. A frame counts once its payload decodes. One that
does not is garbage, and the search for the next frame begins behind its first byte, so that a false length cannot
swallow the frames that follow it.

A payload of kind RECORD is one msgpack value, and 0x92 0xcd is msgpack's header of an array of two, the first an
uint16. So what follows the kind is an array of the length and the record, and a batch that holds records alone is
taken apart and decoded without a loop in Python: split at the magic, which in a batch that is in step occurs nowhere
else, since msgpack values end where they end, and not earlier.
"""

from __future__ import annotations

import os
import re
import select
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

__all__ = [
    "BYTES",
    "FRAME_SIZE",
    "LENGTH_SIZE",
    "LOSSES",
    "OBJECT",
    "PART",
    "PAYLOAD_SIZE",
    "RECORD",
    "SYNC",
    "Found",
    "FrameReader",
    "Incomplete",
    "Part",
    "abandon",
    "frame",
    "frames",
    "header",
    "part",
    "walk",
]

T = TypeVar("T")

#: The largest frame in bytes: 4096 on Linux, 512 on macOS.
FRAME_SIZE: int = getattr(select, "PIPE_BUF", 512)

#: A log record, as `mplog.record.encoding` makes it.
RECORD = 1
#: Any other object, pickled. The logging process never looks inside.
OBJECT = 2
#: A piece of a message that is longer than one frame.
PART = 3
#: A record whose sender waits until it is on disk (`mplog.queue.sync`).
SYNC = 4
#: What was dropped out of the buffers (`mplog.queue.losses`). It stands among the records, so it is lost or doubled no
#: more than they are.
LOSSES = 5
#: Bytes for a sink of their own (`mplog.worker.write`).
BYTES = 6

# Text never contains it: 0xff does not occur in UTF-8.
_MAGIC = b"\xffmp"
_HEADER = struct.Struct(">4sHH")
HEADER_SIZE = _HEADER.size
PAYLOAD_SIZE = FRAME_SIZE - HEADER_SIZE
_ARRAY = 0x92CD
_TAGS = {_MAGIC + bytes([kind]): kind for kind in range(256)}
_RECORD_TAG = _MAGIC + bytes([RECORD])
#: At the tags alone that begin a record's frame: a hostile writer's may be followed by an array in another form. For
#: long records, this is several times faster than bytes.split().
_split = re.compile(re.escape(_RECORD_TAG) + b"(?=" + re.escape(_ARRAY.to_bytes(2, "big")) + b")").split
#: Bytes of a header behind its tag.
LENGTH_SIZE = HEADER_SIZE - len(_RECORD_TAG)

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


def header(kind: int, length: int) -> bytes:
    """Return what precedes a payload of so many bytes."""
    return _HEADER.pack(_MAGIC + bytes([kind]), _ARRAY, length)


def frame(kind: int, payload: bytes) -> bytes | None:
    """Return the message as one frame, or None where it needs `frames`."""
    length = len(payload)
    return header(kind, length) + payload if length <= PAYLOAD_SIZE else None


def frames(kind: int, payload: bytes, message_id: bytes) -> Iterator[bytes]:
    """Yield the frames of a message that is longer than one frame, in the order in which they must be written.

    Args:
        kind: `RECORD`, `OBJECT` or `SYNC`.
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
    about = _PART.pack(message_id, pid, index, count, kind, zlib.crc32(piece, _SEED))
    return b"".join((header(PART, len(about) + len(piece)), about, piece))


class Found(NamedTuple):
    """A piece of a stream: a frame, or what lies between two, of which `kind` is None.

    Attributes:
        start: where it begins.
        end: where the next piece begins.
        kind: of the frame.
    """

    start: int
    end: int
    kind: int | None

    @property
    def payload(self) -> slice:
        """Where the payload is."""
        return slice(self.start + HEADER_SIZE, self.end)


def walk(data: bytes) -> Iterator[Found]:
    """Yield all pieces of a stream, in order and without a gap. What a frame carries is not looked at."""
    position, end = 0, len(data)
    while position < end:
        if end - position >= HEADER_SIZE:
            tag, array, length = _HEADER.unpack_from(data, position)
            stop = position + HEADER_SIZE + length
            kind = _TAGS.get(tag)
            if kind is not None and array == _ARRAY and length <= PAYLOAD_SIZE and stop <= end:
                yield Found(position, stop, kind)
                position = stop
                continue
        found = data.find(_MAGIC, position + 1)
        found = end if found < 0 else found
        yield Found(position, found, None)
        position = found


class Part(NamedTuple):
    """What a frame of kind `PART` carries.

    Attributes:
        message_id: of the long message.
        pid: of its writer.
        number: of this part, from 0.
        total: how many parts there are; 0 where the writer has given the message up.
        kind: of the whole message.
        piece: the part itself.
    """

    message_id: bytes
    pid: int
    number: int
    total: int
    kind: int
    piece: bytes


def part(payload: bytes) -> Part:
    """Return what the payload of a frame of kind `PART` means.

    Raises:
        ValueError: it is none.
    """
    if len(payload) < _PART.size:
        raise ValueError("a part without its header")
    message_id, pid, index, count, kind, checksum = _PART.unpack_from(payload)
    piece = payload[_PART.size :]
    if zlib.crc32(piece, _SEED) != checksum:
        raise ValueError("a part whose checksum does not fit")
    return Part(message_id, pid, index, count, kind, piece)


# What decoding raises for what is no message: of an unknown kind, malformed, nested too deeply.
_BROKEN = (KeyError, ValueError, RecursionError)


class Incomplete:
    """A long message of which parts are still missing.

    Attributes:
        pid: the process that is writing it.
        count: how many parts it has.
        kind: of the whole.
        pieces: those that have arrived.
        size: the memory they take, in bytes.
    """

    __slots__ = ("count", "kind", "pid", "pieces", "size")

    def __init__(self, pid: int, count: int, kind: int) -> None:
        self.pid = pid
        self.count = count
        self.kind = kind
        self.pieces: list[bytes] = []
        self.size = _MESSAGE_OVERHEAD


def _is_cut(part: bytes) -> bool:
    """Whether what follows the tag of a record is less than a frame."""
    length = int.from_bytes(part[LENGTH_SIZE - 2 : LENGTH_SIZE], "big")
    return len(part) < LENGTH_SIZE or len(part) - LENGTH_SIZE < length <= PAYLOAD_SIZE


class FrameReader(Generic[T]):
    """Turn a stream of bytes back into messages.

    Args:
        decode: by the kind of a message, what is called with its payload: returns it decoded, or raises ValueError
            (msgspec's errors are ValueErrors) or RecursionError where it is none.
        decode_framed: takes many records at once, each an array of its length and itself, and returns them decoded;
            raises the same where it is not sure of every one of them.

    Attributes:
        skipped: bytes that belonged to no frame.
        broken: runs of such bytes, and long messages that did not decode.
        given_up: long messages that were dropped because too much was unfinished.
    """

    def __init__(
        self,
        decode: Mapping[int, Callable[[bytes], T]],
        decode_framed: Callable[[Sequence[bytes]], Sequence[T]] | None = None,
    ) -> None:
        self._decode = decode
        self._decode_framed = decode_framed
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
        length: int = _HEADER.unpack_from(rest)[2]
        return HEADER_SIZE + length - len(rest)

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame has been read in part."""
        return not self._rest

    def feed(self, data: bytes, *, drained: bool) -> Sequence[T]:
        """Return the messages that `data` completes.

        Args:
            data: the next bytes of the stream.
            drained: nothing was left in the queue behind them. Since frames arrive whole, an unfinished frame at the
                end of such data is garbage, not a frame still to come.
        """
        # Where a part of a long message comes first, there are more, and a search takes longer than going by lengths.
        if self._decode_framed is not None and not self._rest and data.startswith(_RECORD_TAG):
            parts = _split(data)
            if not parts[0] and len(parts) > 1:
                del parts[0]
                rest = b"" if drained or not _is_cut(parts[-1]) else _RECORD_TAG + parts.pop()
                try:
                    records = self._decode_framed(parts)
                except _BROKEN:
                    pass
                else:
                    self._in_garbage = self._in_garbage and not parts
                    self._rest = rest
                    return records
        return self._feed_slowly(data, drained)

    def _feed_slowly(self, data: bytes, drained: bool) -> list[T]:
        buffer = self._rest + data if self._rest else data
        messages: list[T] = []
        position, end = 0, len(buffer)
        unpack, decode, append = _HEADER.unpack_from, self._decode, messages.append
        while end - position >= HEADER_SIZE:
            tag, array, length = unpack(buffer, position)
            stop = position + HEADER_SIZE + length
            kind = _TAGS.get(tag)
            if kind is not None and array == _ARRAY and length <= PAYLOAD_SIZE:
                if stop <= end:
                    try:
                        payload = buffer[position + HEADER_SIZE : stop]
                        if kind != PART:
                            append(decode[kind](payload))
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
        message_id, pid, index, count, kind, piece = part(payload)
        if count == 0:
            self._forget(message_id)
            return None
        message = self._incomplete.get(message_id)
        if message is None:
            message = self._incomplete[message_id] = Incomplete(pid, count, kind)
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

    def take_back(self) -> int:
        """Forget the part of a frame at the end of what was fed, and return its length: it will be fed again."""
        length = len(self._rest)
        self._rest = b""
        return length

    def unfinished_frames(self, limit: int) -> bytes:
        """Return frames that, when fed, bring another reader to the long messages that are not complete here.

        Args:
            limit: bytes at most, or b"".
        """
        if not self._incomplete or self._incomplete_size > limit:
            return b""
        return b"".join(
            _part(message_id, message.pid, index, message.count, message.kind, piece)
            for message_id, message in self._incomplete.items()
            for index, piece in enumerate(message.pieces)
        )

    @property
    def has_incomplete(self) -> bool:
        """Whether there are long messages of which parts are missing."""
        return bool(self._incomplete)

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
