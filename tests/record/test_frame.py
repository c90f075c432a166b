"""Frames come out whole, once and in order, whatever else is in the stream (fault 22)."""

from __future__ import annotations

import functools
import itertools
import os
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mplog.record import frame, frame_reader
from mplog.record.frame import FRAME_SIZE, OBJECT, RECORD
from mplog.record.frame_reader import UNFINISHED_LIMIT, FrameReader

HEADER = 8
ROOM = FRAME_SIZE - HEADER
PART_HEADER = 36
MAGIC = b"\xffmp"
#: What stands between the kind and the length.
ARRAY = 0x92CD


def payload(data: bytes) -> bytes:
    """Return a payload that `decode` takes."""
    # With a seed: the checksum of nothing would be zero otherwise, and small numbers are common in garbage.
    return zlib.crc32(data, 0x5EED5EED).to_bytes(4, "little") + data


def decode(kind: int, data: bytes) -> tuple[int, bytes]:
    """Take what `payload` made, and nothing else."""
    if len(data) < 4 or payload(data[4:]) != data:
        raise ValueError("no payload of this test")
    return kind, data[4:]


def new_reader() -> FrameReader[tuple[int, bytes]]:
    """Return a reader of what `payload` made, of both kinds."""
    return FrameReader({kind: functools.partial(decode, kind) for kind in (RECORD, OBJECT)})


def message_id() -> bytes:
    """Return an id that no other message has."""
    return os.urandom(16)


def written(kind: int, data: bytes) -> list[bytes]:
    """Return the frames that a writer writes for a message."""
    whole = frame.frame(kind, payload(data))
    return [whole] if whole is not None else list(frame.frames(kind, payload(data), message_id()))


SIZES = [0, 1, ROOM - 5, ROOM - 4, ROOM - 3, 2 * ROOM, 16384, 65535, 65536, 65537, 300_000]


@pytest.mark.parametrize("kind", [RECORD, OBJECT])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back(kind: int, size: int) -> None:
    """A message of any size goes in frames of at most PIPE_BUF bytes, and comes back with its kind."""
    data = random.Random(size).randbytes(size)
    parts = written(kind, data)
    assert all(len(part) <= FRAME_SIZE for part in parts)
    assert (len(parts) == 1) == (size + 4 <= ROOM)
    reader = new_reader()
    assert reader.feed(b"".join(parts), drained=True) == [(kind, data)]
    assert (reader.skipped, reader.broken, reader.incomplete()) == (0, 0, [])


def test_empty_payload_is_a_frame() -> None:
    """A frame may be a header alone."""
    alone = frame.frame(RECORD, b"")
    assert alone is not None and len(alone) == HEADER
    assert FrameReader(dict.fromkeys((RECORD, OBJECT), bytes)).feed(alone * 3, drained=True) == [b""] * 3


# --- any stream ---


@dataclass
class Unit:
    """Something that is written in one piece.

    Attributes:
        data: its bytes.
        is_frame: whether it is a valid frame, and no garbage.
        completes: the message that it completes.
        breaks: whether it completes a message that does not decode.
    """

    data: bytes
    is_frame: bool = True
    completes: tuple[int, bytes] | None = None
    breaks: bool = False


kinds = st.sampled_from([RECORD, OBJECT])
contents = st.one_of(
    st.binary(max_size=50),
    # What looks like a frame inside a message is a part of the message.
    st.binary(max_size=20).map(lambda data: written(RECORD, data)[0] * 2),
    st.integers(0, 3 * FRAME_SIZE).map(lambda size: random.Random(size).randbytes(size)),
)


@st.composite
def messages(draw: st.DrawFn, identity: bytes) -> list[Unit]:
    """A message, in one frame or several; perhaps without an end, or one that does not decode."""
    kind, data = draw(kinds), draw(contents)
    fate = draw(st.sampled_from(["whole", "whole", "whole", "abandoned", "cut off", "undecodable"]))
    if fate == "undecodable":
        bad = b"none" + data + bytes(ROOM)
        parts = [Unit(part) for part in frame.frames(kind, bad, identity)]
        parts[-1].breaks = True
        return parts
    whole = frame.frame(kind, payload(data))
    if whole is not None:
        return [Unit(whole, completes=(kind, data))]
    parts = [Unit(part) for part in frame.frames(kind, payload(data), identity)]
    if fate == "whole":
        parts[-1].completes = kind, data
    else:
        del parts[draw(st.integers(int(fate == "cut off"), len(parts) - 1)) :]
        if fate == "abandoned":
            parts += [Unit(frame.abandon(identity))] * draw(st.integers(1, 2))
    return parts


@st.composite
def garbage(draw: st.DrawFn) -> list[Unit]:
    """Bytes that are no frame."""
    part = next(frame.frames(RECORD, bytes(2 * FRAME_SIZE), b"of no message..."))
    length = st.one_of(st.integers(0, 100), st.integers(ROOM - 100, ROOM + 10), st.integers(0, 2**16 - 1))
    tag = st.sampled_from([MAGIC + bytes([kind]) for kind in (0, RECORD, OBJECT, 3, 99, 255)])
    data = draw(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from([b"", MAGIC, MAGIC[:1], MAGIC[:2], MAGIC * 3, MAGIC + b"\x01", b"\xff" * 9, b"\0" * 9000]),
            # A header with a true or false length, or another word where the array's header has to be, and junk.
            st.builds(
                lambda tag, array, length, junk: tag + struct.pack(">HH", array, length) + junk,
                tag,
                st.sampled_from([ARRAY, ARRAY, ARRAY - 1, 0]),
                length,
                st.binary(),
            ),
            # A frame that was cut short, or is not the one whose checksum it has.
            st.integers(1, len(part) - 1).map(lambda size: part[:size]),
            st.integers(HEADER + PART_HEADER, len(part) - 1).map(
                lambda at: part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
            ),
            # Not the first byte of a frame, or the one after it would complete it.
            st.binary(max_size=99).map(lambda data: written(RECORD, data + b"\0")[0][:-1]),
            st.binary(max_size=99).map(lambda data: frame.frame(RECORD, b"none" + data) or b""),
        )
    )
    return [Unit(data, is_frame=False)] if data else []


@st.composite
def several_messages(draw: st.DrawFn, least: int, most: int) -> list[list[Unit]]:
    """Messages of several writers, each with an id of its own."""
    count = draw(st.integers(least, most))
    return [draw(messages(bytes(15) + bytes([number + 1]))) for number in range(count)]


@st.composite
def streams(draw: st.DrawFn) -> list[Unit]:
    """Messages of several writers, interleaved, with garbage before, between and after them."""
    writers = draw(several_messages(0, 8)) + draw(st.lists(garbage(), max_size=5))
    order = draw(st.permutations([number for number, units in enumerate(writers) for _ in units]))
    sources: list[Iterator[Unit]] = [iter(units) for units in writers]
    return [next(sources[number]) for number in order]


@settings(max_examples=100)
@given(streams(), st.randoms(use_true_random=False), st.sampled_from([1, 7, 100, 5000, 10**6]))
def test_garbage_is_skipped_and_counted(units: list[Unit], dice: random.Random, largest: int) -> None:
    """Each valid message comes out once, in order, in whatever pieces the stream arrives; all else is counted."""
    for is_frame, run in itertools.groupby(units, key=lambda unit: unit.is_frame):
        joined = b"".join(unit.data for unit in run)
        alone = new_reader()
        alone.feed(joined, drained=True)
        # A frame that was cut short, and by chance its end after it, are no garbage.
        assume(is_frame or alone.skipped == len(joined))
    reader = new_reader()
    arrived = []
    stream = b"".join(unit.data for unit in units)
    ends = {sum(len(unit.data) for unit in units[: number + 1]) for number in range(len(units))}
    position = 0
    while position < len(stream):
        # Small pieces for a while, so that long streams are not all of single bytes.
        size = dice.randint(1, largest if position < 2000 else max(largest, 1000))
        chunk = stream[position : position + size]
        position += len(chunk)
        # Where one write has ended and the next has not come yet, the queue may be empty.
        arrived += reader.feed(chunk, drained=position == len(stream) or (position in ends and dice.random() < 0.5))
    assert arrived == [unit.completes for unit in units if unit.completes]
    assert reader.skipped == sum(len(unit.data) for unit in units if not unit.is_frame)
    runs = sum(not unit.is_frame and (number == 0 or units[number - 1].is_frame) for number, unit in enumerate(units))
    assert reader.broken == runs + sum(unit.breaks for unit in units)
    assert reader.is_between_frames
    assert reader.given_up == 0


@given(st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_arbitrary_bytes_raise_nothing(chunks: list[bytes], drained: bool) -> None:
    """Arbitrary bytes raise nothing, and every one of them is counted."""
    reader = new_reader()
    for chunk in chunks:
        reader.feed(chunk, drained=drained)
    reader.feed(b"", drained=True)
    assert reader.skipped == sum(map(len, chunks))
    assert (reader.broken > 0) == any(chunks)


@pytest.mark.parametrize("claim", [0, 1, 100, ROOM, ROOM + 1, 2**15, 2**16 - 1])
@pytest.mark.parametrize("kind", [RECORD, OBJECT, 3])
def test_false_length_swallows_nothing(claim: int, kind: int) -> None:
    """A header with a false length does not swallow the frames after it."""
    good = [written(RECORD, b"%d" % number)[0] for number in range(500)]
    reader = new_reader()
    false = MAGIC + bytes([kind]) + struct.pack(">HH", ARRAY, claim)
    expected = [(RECORD, b"%d" % number) for number in range(500)]
    assert reader.feed(false + b"".join(good), drained=True) == expected
    assert (reader.skipped, reader.broken) == (HEADER, 1)


def test_unfinished_frame_waits_unless_the_queue_is_drained() -> None:
    """Half a frame waits for its other half; where nothing is left in the queue, it is garbage at once."""
    whole = written(RECORD, b"x" * 100)[0]
    reader = new_reader()
    assert reader.feed(whole[:50], drained=False) == []
    assert not reader.is_between_frames
    assert reader.feed(whole[50:], drained=True) == [(RECORD, b"x" * 100)]
    assert reader.feed(whole[:50], drained=True) == []
    assert (reader.is_between_frames, reader.skipped, reader.broken) == (True, 50, 1)
    assert reader.feed(whole, drained=True) == [(RECORD, b"x" * 100)]


# --- long messages ---

LONG = b"long" * FRAME_SIZE


def test_parts_that_went_elsewhere_break_one_message() -> None:
    """A message of which a part is missing, doubled or out of its place is counted and dropped; others are not."""
    other = written(OBJECT, LONG)
    for change in ("first", "middle", "double", "swapped"):
        parts = written(RECORD, LONG)
        if change == "first":
            del parts[0]
        elif change == "middle":
            del parts[1]
        elif change == "double":
            parts.insert(1, parts[1])
        else:
            parts[1], parts[2] = parts[2], parts[1]
        reader = new_reader()
        stream = [*other[:2], *parts, *other[2:]]
        assert reader.feed(b"".join(stream), drained=True) == [(OBJECT, LONG)]
        assert reader.broken >= 1
        assert (reader.skipped, reader.incomplete()) == (0, [])


def test_parts_that_disagree_break_the_message() -> None:
    """Parts of one id that claim another count, no parts at all, or a kind that there is not, are counted, once for
    each message."""
    identity = message_id()
    reader = new_reader()
    reader.feed(
        frame.encode_part(identity, 1, 0, 3, RECORD, b"x") + frame.encode_part(identity, 1, 1, 4, RECORD, b"y"),
        drained=True,
    )
    assert (reader.broken, reader.incomplete()) == (1, [])
    for number in (2, 3):
        reader.feed(frame.encode_part(identity, 1, number, 4, RECORD, b"z"), drained=True)
    assert (reader.broken, reader.incomplete()) == (1, [])
    reader.feed(frame.encode_part(message_id(), 1, 5, 2**32 - 1, RECORD, b"x"), drained=True)
    assert (reader.broken, reader.incomplete()) == (2, [])
    for kind in (0, 3, 99):
        reader.feed(frame.encode_part(message_id(), 1, 0, 1, kind, payload(b"x")), drained=True)
    assert (reader.broken, reader.skipped) == (5, 0)


def test_abandoned_message_is_forgotten() -> None:
    """The notice that a message was given up frees what has arrived of it, and is no error."""
    identity = message_id()
    parts = list(frame.frames(RECORD, payload(LONG), identity))
    reader = new_reader()
    reader.feed(b"".join(parts[:2]), drained=True)
    (unfinished,) = reader.incomplete()
    assert (unfinished.pid, unfinished.count, len(unfinished.pieces)) == (os.getpid(), len(parts), 2)
    assert reader.feed(frame.abandon(identity) * 2, drained=True) == []
    assert (reader.incomplete(), reader.broken, reader.skipped, reader.incomplete_size) == ([], 0, 0, 0)


def test_lost_messages_are_dropped_by_choice() -> None:
    """Unfinished messages are dropped by what the caller says of them, and the others stay."""
    reader = new_reader()
    for pid in (1, 2, 3):
        reader.feed(frame.encode_part(message_id(), pid, 0, 2, RECORD, b"x"), drained=True)
    dropped = reader.drop_incomplete(lambda message: message.pid == 2)
    assert [message.pid for message in dropped] == [2]
    assert [message.pid for message in reader.incomplete()] == [1, 3]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, FRAME_SIZE - 100)), max_size=200))
def test_unfinished_messages_are_bounded(parts: list[tuple[int, int]]) -> None:
    """Unfinished messages never take more than the limit; the oldest one goes first, and is counted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(frame_reader, "UNFINISHED_LIMIT", 50_000)
        reader = new_reader()
        for identity, size in parts:
            known = {message.pid: len(message.pieces) for message in reader.incomplete()}
            piece = frame.encode_part(b"%016d" % identity, identity, known.get(identity, 0), 10**6, RECORD, bytes(size))
            reader.feed(piece, drained=True)
            left = reader.incomplete()
            held = sum(message.size for message in left)
            assert held == reader.incomplete_size <= 50_000
            assert held >= sum(len(data) for message in left for data in message.pieces)
            gone = [number for number in known if number not in {message.pid for message in left}]
            assert gone == list(known)[: len(gone)]
            assert (reader.given_up > 0) >= (len(gone) > 0)
        assert reader.broken == 0


def test_many_tiny_unfinished_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts without content count, too, so that a flood of them takes no memory without end."""
    monkeypatch.setattr(frame_reader, "UNFINISHED_LIMIT", 100_000)
    reader = new_reader()
    for number in range(10_000):
        reader.feed(frame.encode_part(b"%016d" % number, 1, 0, 2, RECORD, b""), drained=True)
    assert len(reader.incomplete()) < 200
    assert reader.given_up == 10_000 - len(reader.incomplete())


def test_longest_message_fits_the_limit() -> None:
    """What a queue takes and what a record may have, a reader has room for."""
    from mplog.queue.payloads import MAX_OBJECT_SIZE
    from mplog.record.layout import MAX_RECORD_SIZE

    for size in (MAX_OBJECT_SIZE, MAX_RECORD_SIZE):
        pieces = -(-size // (ROOM - PART_HEADER))
        assert size + pieces * 128 + 512 < UNFINISHED_LIMIT


# --- a reader that shares the queue ---


@given(several_messages(1, 6), st.binary(max_size=HEADER - 1), st.booleans())
def test_wanted_never_reads_past_a_frame(writers: list[list[Unit]], junk: bytes, is_slow: bool) -> None:
    """Reading what is wanted stops at the end of each frame, also after a few bytes of junk, so others can go on."""
    units = [unit for units in writers for unit in units]
    junk = junk.replace(MAGIC[:1], b"")
    stream = junk + b"".join(unit.data for unit in units)
    ends = [len(junk) + sum(len(unit.data) for unit in units[: number + 1]) for number in range(len(units))]
    reader = new_reader()
    position, arrived = 0, []
    while position < len(stream):
        end = next(end for end in ends if end > position)
        wanted = reader.wanted
        assert 0 < wanted <= end - position, "reads past a frame"
        chunk = stream[position : position + (1 if is_slow else wanted)]
        position += len(chunk)
        arrived += reader.feed(chunk, drained=position == len(stream))
        assert reader.is_between_frames == (position == end or (position <= len(junk) and reader.wanted == HEADER))
    assert arrived == [unit.completes for unit in units if unit.completes]
    assert reader.skipped == len(junk)


def test_no_memory_for_a_message_costs_that_message_alone() -> None:
    """A long message for which decoding finds no memory is handed back, and those around it are read."""

    def decode_short(data: bytes) -> bytes:
        if len(data) > 2 * FRAME_SIZE:
            raise MemoryError
        return data

    reader = FrameReader({RECORD: decode_short})
    stream = b"".join(frame.whole(RECORD, bytes(size)) for size in (1, 3 * FRAME_SIZE, FRAME_SIZE, 2))
    assert list(map(len, reader.feed(stream, drained=True))) == [1, FRAME_SIZE, 2]
    (message,) = reader.too_large
    assert (message.kind, message.pid, message.length) == (RECORD, os.getpid(), 3 * FRAME_SIZE)
    assert (reader.broken, reader.skipped, reader.incomplete()) == (0, 0, [])


def test_what_is_read_once_more_is_not_decoded() -> None:
    """A reader that only looks for the first parts of long messages needs no memory for those that are complete."""
    reader = new_reader()
    identity = message_id()
    parts = list(frame.frames(RECORD, payload(LONG), identity))
    reader.is_replaying = True
    assert reader.feed(b"".join([*written(OBJECT, LONG), *parts[:-1]]), drained=True) == []
    reader.is_replaying = False
    assert reader.feed(parts[-1], drained=True) == [(RECORD, LONG)]
    assert (reader.broken, reader.skipped, reader.incomplete()) == (0, 0, [])


def test_the_rest_of_a_message_that_was_given_up_is_ignored() -> None:
    """Once a message is given up, neither this reader nor the next one counts its further parts."""
    identity = message_id()
    parts = list(frame.frames(RECORD, payload(LONG), identity))
    reader = new_reader()
    reader.feed(b"".join(parts[:3]), drained=True)
    given_up = reader.give_up(frame.decode_part(parts[3][frame.HEADER_SIZE :]))
    assert given_up.pieces == [frame.decode_part(part[frame.HEADER_SIZE :]).piece for part in parts[:3]]
    following: FrameReader[None] = FrameReader(
        {
            RECORD: lambda _: None,
            frame.PART | frame.ASIDE: lambda data: following.give_up(frame.decode_part(data)) and None,
        }
    )
    following.feed(b"".join(reader.unfinished_frames(2**20)), drained=True)
    for each in (reader, following):
        assert not [message for message in each.feed(b"".join(parts[4:]), drained=True) if message is not None]
        assert (each.broken, each.skipped, each.incomplete(), each.has_unfinished) == (0, 0, [], False)
