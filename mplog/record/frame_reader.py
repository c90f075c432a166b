"""`FrameReader`: turns the bytes of a queue back into messages. Pure code, no I/O.

It knows nothing of what a payload means, but asks a function for each kind. A frame counts once its payload decodes.
One that does not is garbage, and the search for the next frame begins after its first byte, so that a false length
cannot swallow the frames that follow it.

A batch that holds records alone is split at the magic, and all its records are decoded in one go. In a batch that is in
step the magic occurs nowhere else, since msgpack values end where they end, and not earlier.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from mplog.record import frame
from mplog.record.frame import ARRAY, HEADER, HEADER_SIZE, LENGTH_SIZE, MAGIC, PART, PAYLOAD_SIZE, RECORD_TAG, TAGS

T = TypeVar("T")

#: At the tags alone that begin a record's frame: a hostile writer's may be followed by an array in another form. For
#: long records, this is several times faster than bytes.split().
_split = re.compile(re.escape(RECORD_TAG) + b"(?=" + re.escape(ARRAY.to_bytes(2, "big")) + b")").split

# What a piece costs in memory beside its bytes, so that many short ones count as what they are.
_PIECE_OVERHEAD = 128
# The same for a message of which any piece is there.
_MESSAGE_OVERHEAD = 512

#: Messages whose further parts are ignored at the same time. Beyond that, a message may count as broken more than once.
_MOST_IGNORED = 1000

#: Bytes of unfinished messages that a reader holds before it gives the oldest one up.
UNFINISHED_LIMIT = 512 * 2**20

# What decoding raises for what is not a message: of an unknown kind, malformed, nested too deeply.
_BROKEN = (KeyError, ValueError, RecursionError)


class Incomplete:
    """A long message of which parts are still missing: `count` parts, of which `pieces` take `size` bytes of memory."""

    __slots__ = ("count", "kind", "pid", "pieces", "size")

    def __init__(self, pid: int, count: int, kind: int) -> None:
        self.pid = pid
        self.count = count
        self.kind = kind
        self.pieces: list[bytes] = []
        self.size = _MESSAGE_OVERHEAD

    @property
    def length(self) -> int:
        """Bytes of the message, if it is complete."""
        return self.size - _MESSAGE_OVERHEAD - self.count * _PIECE_OVERHEAD


def _is_cut(part: bytes) -> bool:
    """Whether what follows the tag of a record is less than a frame."""
    length = int.from_bytes(part[LENGTH_SIZE - 2 : LENGTH_SIZE], "big")
    return len(part) < LENGTH_SIZE or len(part) - LENGTH_SIZE < length <= PAYLOAD_SIZE


class FrameReader(Generic[T]):
    """Turn a stream of bytes back into messages.

    Args:
        decode: a function for each kind of message: it returns the payload decoded, or raises ValueError (msgspec's
            errors are ValueErrors) or RecursionError if that is not valid.
        decode_framed: takes many records at once, each an array of its length and itself, and returns them decoded;
            raises the same where it is not sure of every one of them.

    Attributes:
        skipped: bytes that belonged to no frame.
        broken: runs of such bytes, and long messages that did not decode.
        given_up: long messages that were dropped because too much was unfinished.
        too_large: long messages for which there was no memory. The caller takes them out.
        is_replaying: whether long messages are only put together, and not decoded.
        incomplete_size: the memory that unfinished messages take, in bytes.
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
        self.incomplete_size = 0
        self.skipped = 0
        self.broken = 0
        self.given_up = 0
        self.too_large: list[Incomplete] = []
        self.is_replaying = False
        self._ignored: set[bytes] = set()

    @property
    def wanted(self) -> int:
        """How many bytes complete the next frame; a reader that shares the queue reads no further."""
        rest = self._rest
        if len(rest) < HEADER_SIZE:
            return HEADER_SIZE - len(rest)
        length: int = HEADER.unpack_from(rest)[2]
        return HEADER_SIZE + length - len(rest)

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame has been read in part."""
        return not self._rest

    def feed(self, data: bytes, *, drained: bool) -> Sequence[T]:
        """Return the messages that `data` completes.

        Args:
            data: the next bytes of the stream.
            drained: nothing was left in the queue after them. Since frames arrive whole, an unfinished frame at the end
                of such data is garbage.
        """
        # Where a part of a long message comes first, there are more, and a search takes longer than going by lengths.
        if self._decode_framed is not None and not self._rest and data.startswith(RECORD_TAG):
            parts = _split(data)
            if not parts[0] and len(parts) > 1:
                del parts[0]
                rest = b"" if drained or not _is_cut(parts[-1]) else RECORD_TAG + parts.pop()
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
        unpack, decode, append = HEADER.unpack_from, self._decode, messages.append
        while end - position >= HEADER_SIZE:
            tag, array, length = unpack(buffer, position)
            stop = position + HEADER_SIZE + length
            kind = TAGS.get(tag)
            if kind is not None and array == ARRAY and length <= PAYLOAD_SIZE:
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
        message = self._assemble(payload)
        if message is None or self.is_replaying:
            return
        try:
            whole = b"".join(message.pieces)
            message.pieces.clear()  # the memory is needed
            messages.append(self._decode[message.kind](whole))
        except _BROKEN:
            # Every piece had its checksum, so the stream is in step: there is nothing to search again.
            self.broken += 1
        except MemoryError:
            self.too_large.append(message)

    def _assemble(self, payload: bytes) -> Incomplete | None:
        """Return the message that this part completes."""
        message_id, pid, index, count, kind, piece = frame.decode_part(payload)
        if message_id in self._ignored:
            if index >= count - 1:
                self._ignored.discard(message_id)
            return None
        if count == 0:
            self._forget(message_id)
            return None
        message = self._incomplete.get(message_id)
        if message is None:
            message = self._incomplete[message_id] = Incomplete(pid, count, kind)
            self.incomplete_size += message.size
        if index != len(message.pieces) or count != message.count or index >= count:
            # Its checksum is right, so the stream is in step, but the parts before it went elsewhere.
            self._forget(message_id)
            self._ignore(message_id, index, count)
            self.broken += 1
            return None
        message.pieces.append(piece)
        message.size += len(piece) + _PIECE_OVERHEAD
        self.incomplete_size += len(piece) + _PIECE_OVERHEAD
        if len(message.pieces) == count:
            self._forget(message_id)
            return message
        while self.incomplete_size > UNFINISHED_LIMIT:
            oldest, message = next(iter(self._incomplete.items()))
            self._forget(oldest)
            self._ignore(oldest, len(message.pieces) - 1, message.count)
            self.given_up += 1
        return None

    def _forget(self, message_id: bytes) -> None:
        message = self._incomplete.pop(message_id, None)
        if message is not None:
            self.incomplete_size -= message.size

    def give_up(self, part: frame.Part) -> Incomplete:
        """Forget the message of a part, as far as it has come before; ignore what is still to come."""
        message = self._incomplete.get(part.message_id)
        self._forget(part.message_id)
        self._ignore(part.message_id, part.number, part.total)
        return message or Incomplete(part.pid, part.total, part.kind)

    def _ignore(self, message_id: bytes, index: int, count: int) -> None:
        """Ignore the parts of a message after this one: it is counted once."""
        if index < count - 1:
            if len(self._ignored) >= _MOST_IGNORED:
                self._ignored.clear()
            self._ignored.add(message_id)

    def take_back(self) -> int:
        """Forget the part of a frame at the end of what was fed, and return its length: it will be fed again."""
        length = len(self._rest)
        self._rest = b""
        return length

    def unfinished_frames(self, limit: int) -> Iterator[bytes]:
        """Yield frames that give another reader the parts of long messages that are not complete here.

        Yield none if that is more than `limit` bytes. Messages whose parts are ignored here are ignored there.
        """
        for message_id in self._ignored:
            yield frame.set_aside(frame.encode_part(message_id, 0, 0, 2, 0, b""))
        if self.incomplete_size <= limit:
            for message_id, message in self._incomplete.items():
                for index, piece in enumerate(message.pieces):
                    yield frame.encode_part(message_id, message.pid, index, message.count, message.kind, piece)

    @property
    def has_unfinished(self) -> bool:
        """Whether `unfinished_frames` may yield something."""
        return bool(self._incomplete or self._ignored)

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
        found = buffer.find(MAGIC, position + 1)
        if found < 0:
            # The last bytes may be the beginning of a magic whose end is still to come.
            found = max(position + 1, len(buffer) - len(MAGIC) + 1)
        self._count_garbage(found - position)
        return found

    def _count_garbage(self, size: int) -> None:
        self.skipped += size
        if not self._in_garbage:
            self._in_garbage = True
            self.broken += 1
