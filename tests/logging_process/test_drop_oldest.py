"""The oldest records go out of full buffers, and a frame says how many (fault 6)."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplog import Reason
from mplog.logging_process.drop_oldest import without_oldest
from mplog.queue.process_losses import ProcessLosses, decode_losses, encode_losses
from mplog.record import frame
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.frame_reader import FrameReader


def framed(message: str, level: int = logging.INFO, pid: int = 7, number: int = 1, name: str = "w") -> bytes:
    """Return the frames of a record."""
    made = logging.makeLogRecord(
        {"msg": message, "levelno": level, "levelname": str(level), "process": pid, "processName": name}
    )
    return frame.whole(frame.RECORD, encode(made, number))


def content_of(data: bytes) -> tuple[list[str], dict[tuple[int, str, int], int], int]:
    """Return the messages that are in frames, the losses that they tell, and the pieces of garbage."""
    told: Counter[tuple[int, str, int]] = Counter()
    messages: list[str] = []
    reader: FrameReader[Any] = FrameReader({frame.RECORD: decode, frame.LOSSES: decode_losses})
    for each in reader.feed(data, drained=True):
        if isinstance(each, list):
            for process in each:
                for (level, reason), count in process.counts.items():
                    assert reason is Reason.OLDEST
                    told[process.pid, process.name, level] += count
        else:
            messages.append(each.getMessage())
    return messages, dict(told), reader.broken


def test_the_oldest_below_error_go_and_are_told() -> None:
    """As many of the first as are needed, no error, and the frame that tells it stands in their place."""
    frames = [framed(f"{n} {'x' * 200}", logging.ERROR if n % 5 == 0 else 20, pid=n % 2) for n in range(40)]
    content = b"".join(frames)
    kept, dropped = without_oldest(content, 1000)
    messages, told, broken = content_of(kept)
    left = [int(message.split()[0]) for message in messages]
    assert dropped == 40 - len(left) == sum(told.values())
    gone = [n for n in range(40) if n not in left]
    assert gone == [n for n in range(max(gone) + 1) if n % 5]
    assert told == Counter((n % 2, "w", 20) for n in gone)
    assert 3 <= dropped <= 6
    assert broken == 0
    again, more = without_oldest(kept, 1000)
    messages, told, _ = content_of(again)
    assert more == len(left) - len(messages)
    assert sum(told.values()) == dropped + more
    everything, _ = without_oldest(again, len(content))
    assert content_of(everything)[0] == [f"{n} {'x' * 200}" for n in range(0, 40, 5)]
    assert without_oldest(everything, 1)[1] == 0


def test_only_whole_records_go() -> None:
    """A long record goes with all its parts, wherever they are, or stays with those that are there."""
    long_one, other = framed("long " + "x" * 9000), framed("other " + "y" * 9000, pid=8)
    error = framed("error " + "z" * 9000, logging.ERROR)
    parts = [[data[each.start : each.end] for each in frame.walk(data)] for data in (long_one, other, error)]
    mixed = b"".join(part for group in zip(*parts) for part in group)
    kept, dropped = without_oldest(mixed, 1)
    messages, told, broken = content_of(kept)
    assert dropped == 1
    assert sorted(message[0] for message in messages) == ["e", "o"]
    assert told == {(7, "w", 20): 1}
    assert broken == 0
    for cut in (b"".join(parts[0][:-1]), b"".join(parts[0][1:]), long_one[1:], b"garbage" * 100):
        assert without_oldest(cut, 10_000) == (cut, 0)


def test_what_is_waited_for_and_what_is_no_record_stays() -> None:
    """Records to be written through, objects and garbage are not dropped."""
    synced = frame.frame(frame.SYNC, bytes(16) + framed("synced")[8:]) or b""
    thing = frame.frame(frame.OBJECT, b"object") or b""
    small = framed("s" * 500)
    content = synced + b"\xffm garbage" + small + thing + b"\xffmp" + small
    kept, dropped = without_oldest(content, 10_000)
    assert dropped == 2
    assert synced in kept
    assert thing in kept
    assert b"\xffm garbage" in kept


PIECES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([10, 20, 30, 40, 50]), st.integers(0, 9000), st.integers(1, 3)),
        st.binary(max_size=30),
    ),
    max_size=30,
)


@given(PIECES, st.integers(1, 30_000), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_whatever_is_there_records_are_kept_or_counted(pieces: Any, wanted: int, dice: random.Random) -> None:
    """Of any content, what is dropped is what is told, nothing else changes, and never is there more than before."""
    content, sent = b"", Counter[tuple[int, str, int]]()
    for number, piece in enumerate(pieces):
        if isinstance(piece, bytes):
            content += piece.replace(b"\xff", b"")
        else:
            level, size, pid = piece
            content += framed(f"{level} {pid} {number} {'x' * size}", level, pid)
            sent[pid, "w", level] += 1
    before, _, _ = content_of(content)
    kept, dropped = without_oldest(content, wanted)
    after, told, _ = content_of(kept)
    assert len(kept) <= len(content)
    assert sum(told.values()) == dropped == len(before) - len(after)
    left = Counter((int(message.split()[1]), "w", int(message.split()[0])) for message in after)
    assert left + Counter(told) == sent
    assert all(level < logging.ERROR for _, _, level in told)
    assert after == [message for message in before if message in set(after)]
    assert (kept == content) == (dropped == 0)


# --- frames of losses ---


def test_losses_travel_in_frames() -> None:
    """Many processes with many levels come back as they were, added up, in frames that are written in one piece."""
    sent = [
        ProcessLosses(pid, f"w{pid}", {(level, Reason.OLDEST): pid + level for level in range(25)})
        for pid in range(1, 60)
    ]
    data = encode_losses([*sent, *sent[:3]])
    received: dict[int, dict[Any, int]] = {}
    for found in frame.walk(data):
        assert (found.kind, found.end - found.start <= frame.FRAME_SIZE) == (frame.LOSSES, True)
        for each in decode_losses(data[found.payload]):
            received.setdefault(each.pid, {}).update(each.counts)
    expected = {each.pid: {key: n * (2 if each.pid <= 3 else 1) for key, n in each.counts.items()} for each in sent}
    assert received == expected
    assert encode_losses([]) == b""
    for payload in (b"", b"\x91\x01", b"\xff" * 20):
        with pytest.raises(ValueError, match=r"Input|Expected|truncated|malformed|trailing"):
            decode_losses(payload)


def test_losses_off_the_wire_are_bounded() -> None:
    """A frame that tells of losses is one frame, with numbers of which sums can be kept."""
    good = (711, "w", [(20, 1, 5)])
    assert decode_losses(msgspec.msgpack.encode([good]))[0].lost == 5
    for bad in ((-1, "w", []), (2**63, "w", []), (1, "w", [(20, 1, -5)]), (1, "w", [(20, 1, 2**63)])):
        with pytest.raises(ValueError, match=r"Expected|out of range"):
            decode_losses(msgspec.msgpack.encode([bad]))
    long = [(number, "w", [(20, 1, 1)]) for number in range(frame.PAYLOAD_SIZE)]
    with pytest.raises(ValueError, match="many frames"):
        decode_losses(msgspec.msgpack.encode(long))
