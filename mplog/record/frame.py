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

A payload of kind RECORD is one msgpack value, and 0x92 0xcd is msgpack's header of an array of two, the first an
uint16. So what follows the kind is an array of the length and the record, which a reader decodes without a loop in
Python (`mplog.record.frame_reader`).
"""

from __future__ import annotations

import os
import select
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

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
#: What was dropped out of the buffers (`mplog.logging_process.drop_oldest`). It stands among the records, so it is lost
#: or doubled no more than they are.
LOSSES = 5
#: Bytes for a sink of their own (`mplog.worker.write`).
BYTES = 6
KINDS = (RECORD, OBJECT, PART, SYNC, LOSSES, BYTES)
#: Added to the kind of a frame that is set aside (`mplog.logging_process.suspects`): what it carries is not handled.
ASIDE = 0x80

# Text never contains it: 0xff does not occur in UTF-8.
MAGIC = b"\xffmp"
HEADER = struct.Struct(">4sHH")
HEADER_SIZE = HEADER.size
PAYLOAD_SIZE = FRAME_SIZE - HEADER_SIZE
ARRAY = 0x92CD
TAGS = {MAGIC + bytes([kind]): kind for kind in range(256)}
RECORD_TAG = MAGIC + bytes([RECORD])
#: Bytes of a header after its tag.
LENGTH_SIZE = HEADER_SIZE - len(RECORD_TAG)

# Message id, pid of the writer, index and number of parts (0 parts: the writer gave the message up), kind of the
# whole, CRC-32 of the piece. The id is random, since pids repeat across PID namespaces and threads share one.
_PART = struct.Struct("<16sIIIII")
_PIECE_SIZE = PAYLOAD_SIZE - _PART.size

# Zeros are common in garbage, and without it the checksum of no bytes is zero.
_SEED = 0x6D706C67


def header(kind: int, length: int) -> bytes:
    """Return what precedes a payload of so many bytes."""
    return HEADER.pack(MAGIC + bytes([kind]), ARRAY, length)


def frame(kind: int, payload: bytes) -> bytes | None:
    """Return the message as one frame, or None where it needs `frames`."""
    length = len(payload)
    return header(kind, length) + payload if length <= PAYLOAD_SIZE else None


def frames(kind: int, payload: bytes, message_id: bytes) -> Iterator[bytes]:
    """Yield the frames of a message that is longer than one frame, in the order in which they must be written."""
    count = -(-len(payload) // _PIECE_SIZE)
    pid = os.getpid()
    view = memoryview(payload)
    for index in range(count):
        piece = view[index * _PIECE_SIZE : (index + 1) * _PIECE_SIZE]
        yield encode_part(message_id, pid, index, count, kind, piece)


def whole(kind: int, payload: bytes) -> bytes:
    """Return all frames of a message."""
    return frame(kind, payload) or b"".join(frames(kind, payload, os.urandom(16)))


def abandon(message_id: bytes) -> bytes:
    """Return the frame that tells the reader that the rest of a long message will not come."""
    return encode_part(message_id, os.getpid(), 0, 0, 0, b"")


def set_aside(message: bytes) -> bytes:
    """Return a frame with the mark that what it carries is not handled."""
    place = len(MAGIC)
    return message[:place] + bytes([message[place] | ASIDE]) + message[place + 1 :]


def encode_part(message_id: bytes, pid: int, index: int, count: int, kind: int, piece: bytes | memoryview) -> bytes:
    """Return a frame of kind `PART`; see `Part`."""
    about = _PART.pack(message_id, pid, index, count, kind, zlib.crc32(piece, _SEED))
    return b"".join((header(PART, len(about) + len(piece)), about, piece))


class Part(NamedTuple):
    """What a frame of kind `PART` carries."""

    message_id: bytes
    pid: int  # of the writer
    number: int  # of this part, from 0
    total: int  # of parts; 0 where the writer has given the message up
    kind: int  # of the whole message
    piece: bytes


def decode_part(payload: bytes) -> Part:
    """Return what the payload of a frame of kind `PART` means; raise ValueError if it is broken."""
    if len(payload) < _PART.size:
        raise ValueError("a part without its header")
    message_id, pid, index, count, kind, checksum = _PART.unpack_from(payload)
    piece = payload[_PART.size :]
    if zlib.crc32(piece, _SEED) != checksum:
        raise ValueError("a part whose checksum does not fit")
    return Part(message_id, pid, index, count, kind, piece)


class Found(NamedTuple):
    """A piece of a stream: a frame, or what lies between two, of which `kind` is None."""

    start: int
    end: int
    kind: int | None

    @property
    def payload(self) -> slice:
        """Where in the stream the payload is."""
        return slice(self.start + HEADER_SIZE, self.end)


def first(data: bytes, *, is_all: bool) -> Found:
    """Return the first piece of a stream that begins with `data`: at least `FRAME_SIZE` bytes, unless it `is_all`."""
    found = next(walk(data))
    if found.kind is None and found.end == len(data) and not is_all:
        # The last bytes may be the beginning of a magic.
        return found._replace(end=found.end - len(MAGIC) + 1)
    return found


def messages(data: bytes) -> tuple[list[bytes], bool]:
    """Return the frames of each message in a stream, and whether the last message is whole.

    What lies between two messages belongs to the second. Of long messages whose parts are mixed, each end is the end of
    all that comes before it.
    """
    found, start, end = [], 0, 0
    for each in walk(data):
        end = each.end
        if each.kind is not None and (each.kind != PART or is_last(data[each.payload])):
            found.append(data[start:end])
            start = end
    if start < end:
        found.append(data[start:])
    return found, start == end


def is_last(payload: bytes) -> bool:
    """Whether the payload of a frame of kind `PART` is the last part of its message."""
    try:
        part = decode_part(payload)
    except ValueError:
        return False
    return part.number >= part.total - 1


def walk(data: bytes) -> Iterator[Found]:
    """Yield all pieces of a stream, in order and without a gap. What a frame carries is not looked at."""
    position, end = 0, len(data)
    while position < end:
        if end - position >= HEADER_SIZE:
            tag, array, length = HEADER.unpack_from(data, position)
            stop = position + HEADER_SIZE + length
            kind = TAGS.get(tag)
            if kind is not None and array == ARRAY and length <= PAYLOAD_SIZE and stop <= end:
                yield Found(position, stop, kind)
                position = stop
                continue
        found = data.find(MAGIC, position + 1)
        found = end if found < 0 else found
        yield Found(position, found, None)
        position = found
