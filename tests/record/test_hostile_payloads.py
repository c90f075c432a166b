"""What arrives is data: hostile and damaged payloads (promise 8)."""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import logging
import multiprocessing
import pickle
import resource
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from travel import PLAIN, Code, Colour, Point, Scalar, make, travel, travelled

from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.layout import EXTRA, MSG, RAW_ORIGIN, REST, SEQUENCE, Record

STANDARD = sorted(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)


executed: list[str] = []


def execute(what: str) -> None:
    """Leave a trace."""
    executed.append(what)


class Exploit:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return execute, ("ran",)


def test_hostile_bytes_run_no_code() -> None:
    """A pickle that would run code stays data: as a record, as a value, and as what an extra value claims to be."""
    attack = pickle.dumps(Exploit())
    pickle.loads(attack)
    assert executed == ["ran"], "the attack works where there is a pickle"
    executed.clear()
    with pytest.raises(ValueError):
        decode(attack)
    assert travelled(attack) == attack
    values = list(msgspec.msgpack.decode(encode(make())))
    for code in range(-128, 128):
        for data in (attack, msgspec.msgpack.encode(attack), msgspec.msgpack.encode([attack, attack])):
            values[EXTRA] = {"value": msgspec.msgpack.Ext(code, data)}
            with contextlib.suppress(ValueError):
                decode(msgspec.msgpack.encode(values))
    travelled(Exploit())
    assert executed == []


def hostile_payloads() -> dict[str, bytes]:
    """Return payloads that claim more than there is, nest without end, or put the wrong thing in a place."""
    wire = list(msgspec.msgpack.decode(encode(make())))
    ext = msgspec.msgpack.Ext

    def changed(index: int, value: object) -> bytes:
        return msgspec.msgpack.encode([*wire[:index], value, *wire[index + 1 :]])

    def with_extra(extra: object) -> bytes:
        return changed(EXTRA, extra)

    def raw(index: int, data: bytes) -> bytes:
        parts = [msgspec.msgpack.encode(part) for part in wire]
        parts[index] = data
        return encode(make())[:1] + b"".join(parts)  # after the header of the array

    # What is changed below is a record before it is changed.
    for payload in (with_extra({"k": 1}), raw(EXTRA, b"\x81\xa1k\x01"), changed(REST, wire[REST])):
        decode(payload)

    def nested(code: int, depth: int) -> bytes:
        data = msgspec.msgpack.encode([])
        for _ in range(depth):
            data = msgspec.msgpack.encode([ext(code, data)])
        return with_extra({"value": ext(code, data)})

    rest = wire[REST]
    origin = msgspec.msgpack.decode(wire[RAW_ORIGIN])

    def with_origin(value: object) -> bytes:
        return changed(RAW_ORIGIN, msgspec.msgpack.encode(value))

    claims = {
        f"{name} claim at {place}": whole(claim)
        for place, whole in {
            "start": bytes,
            "message": functools.partial(raw, MSG),
            "extra": lambda claim: raw(EXTRA, b"\x81\xa1k" + claim),
            "items": lambda claim: raw(EXTRA, b"\x81\xa1k\x92\xc0" + claim),
            "rest": functools.partial(raw, REST),
        }.items()
        for name, claim in {
            "array": b"\xdd\xff\xff\xff\xff", "map": b"\xdf\xff\xff\xff\xff", "str": b"\xdb\xff\xff\xff\xff",
            "bin": b"\xc6\xff\xff\xff\xff", "ext": b"\xc9\xff\xff\xff\xff\x01", "array16": b"\xdc\xff\xff\xc0",
        }.items()
    }  # fmt: skip
    reserved = {f"extra sets {name}": with_extra({name: 5}) for name in [*STANDARD, "taskName", "args", "exc_info"]}
    return {
        **claims,
        **reserved,
        "extra replaces a text": with_extra({"name": "b"}),
        "exc_info": with_extra({"exc_info": ["a", "b", "c"]}),
        "nested rest": raw(REST, b"\x91" * 100_000 + b"\xc0"),
        "nested part of the rest": raw(REST, b"\x92" + b"\x91" * 100_000 + b"\xc0"),
        "rest is a number": changed(REST, 1),
        "rest is short": changed(REST, rest[:-1]),
        "rest is long": changed(REST, [*rest, None]),
        "rest is longer": changed(REST, [*rest, ["%s", [1]], None]),
        "arguments without a template": changed(REST, [*rest, [[1]]]),
        "template is a number": changed(REST, [*rest, [5, {"a": 1}]]),
        "arguments are a list": changed(REST, [*rest, ["%s", [1]]]),
        "arguments are a text": changed(REST, [*rest, ["%s", "a"]]),
        "nested arguments": changed(REST, [*rest, ["%s", {"a": msgspec.Raw(b"\x91" * 100_000 + b"\xc0")}]]),
        "empty": b"",
        "nil": b"\xc0",
        "nested arrays": raw(EXTRA, b"\x81\xa1k" + b"\x91" * 1_000_000 + b"\xc0"),
        "nested maps": raw(EXTRA, b"\x81\xa1k" + b"\x81\xa1a" * 1_000_000 + b"\xc0"),
        "nested tuples": nested(1, 2000),
        "nested pairs": nested(4, 500),
        "unhashable set": with_extra({"value": ext(2, msgspec.msgpack.encode([[1]]))}),
        "unhashable key": with_extra({"value": ext(4, msgspec.msgpack.encode([[[1], 2]]))}),
        "pairs of three": with_extra({"value": ext(4, msgspec.msgpack.encode([[1, 2, 3]]))}),
        "timedelta": with_extra({"value": ext(5, msgspec.msgpack.encode([1e300, 0, 0]))}),
        "timedelta of texts": with_extra({"value": ext(5, msgspec.msgpack.encode(["a"]))}),
        "foreign without text": with_extra({"value": ext(6, msgspec.msgpack.encode([1, 2]))}),
        "foreign number": with_extra({"value": ext(6, msgspec.msgpack.encode(["a", "b", "c"]))}),
        "decimal": with_extra({"value": ext(20, b"1e99999999999999999999")}),
        "unknown ext": with_extra({"value": ext(99, b"")}),
        "bad utf-8": with_extra({"value": ext(17, b"\xff")}),
        "too few": msgspec.msgpack.encode(wire[:-1]),
        "too many": msgspec.msgpack.encode([*wire, 1]),
        "trailing bytes": encode(make()) + b"\0",
        "exception of texts": changed(REST, [*rest[:-1], ["a", "b", "c"]]),
        "exception of numbers": changed(REST, [*rest[:-1], [1, 2, []]]),
        "exception with wrong frames": changed(REST, [*rest[:-1], ["a", "b", [["file", "line", 5]]]]),
        "origin is short": with_origin(origin[:-1]),
        "origin is long": with_origin([*origin, None]),
        "origin is a map": with_origin({}),
        "origin is nil": with_origin(None),
        "origin is no bytes": changed(RAW_ORIGIN, origin),
        "details are short": with_origin([*origin[:-1], [1]]),
        "nested origin": changed(RAW_ORIGIN, b"\x91" * 100_000 + b"\xc0"),
        "sequence is a text": changed(SEQUENCE, "1"),
        "extra with numbers as names": with_extra({1: 2}),
        "extra is a list": with_extra([1]),
    }


@pytest.mark.parametrize("payload", hostile_payloads().values(), ids=hostile_payloads())
def test_hostile_payload_is_a_value_error(payload: bytes) -> None:
    """A payload that is no record raises ValueError, and nothing else."""
    with pytest.raises(ValueError):
        decode(payload)


def decode_in_little_memory(payloads: dict[str, bytes], sender: Any) -> None:
    """Runs in a child: decode with 256 MB left to allocate."""
    for payload in payloads.values():  # what they need anyway, imports and all, is there before the limit
        with pytest.raises(ValueError):
            decode(payload)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    for name, payload in payloads.items():
        try:
            decode(payload)
        except ValueError:
            continue
        except BaseException as error:
            sender.send(f"{name}: {error!r}")
            return
    sender.send("fine")


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to limit the memory")
def test_claimed_lengths_allocate_nothing() -> None:
    """A claimed length of 4 GiB is an error with little memory, too: nothing is allocated on a claim."""
    receiver, sender = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(
        target=decode_in_little_memory, args=(hostile_payloads(), sender)
    )
    process.start()
    sender.close()
    assert receiver.poll(60), "waited for the child to decode"
    assert receiver.recv() == "fine"
    process.join(30)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_record_or_a_value_error(data: bytes) -> None:
    """Any bytes are a record or raise ValueError."""
    with contextlib.suppress(ValueError):
        decode(data)


RICH = encode(
    make(
        "hello %s",
        "you",
        extra={"values": PLAIN, "foreign": [Colour.RED, Code.TEAPOT, Scalar(1.5)], "text": "\udc80"},
        exc_info=(ValueError, ValueError("x"), None),
        stack_info="stack",
        threadName="\udc80",
    )
)


@settings(max_examples=500)
@given(st.data())
def test_mutated_payload_is_a_record_or_a_value_error(data: st.DataObject) -> None:
    """A record with some bytes changed, cut out or put in is a record that a formatter takes, or a ValueError."""
    payload = bytearray(RICH)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload)))
        payload[position : position + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        arrived = decode(bytes(payload))
    except ValueError:
        return
    assert type(arrived.levelno) is int
    logging.Formatter("%(name)s %(levelname)s %(message)s %(threadName)s").format(arrived)
    for value in arrived.__dict__.values():
        str(value), repr(value)


def test_arrived_record_copies_and_travels_on() -> None:
    """A record that has arrived can be copied, pickled and sent on, and arrives the same."""
    record = make("hello %s", "you", extra={"point": Point((1, 2)), "when": datetime.date.max, "code": Code.TEAPOT})
    record.exc_info = (ValueError, ValueError("oh"), None)
    first = travel(record)
    for other in (travel(first), copy.copy(first), pickle.loads(pickle.dumps(first))):
        assert type(other) is Record
        assert other.__dict__ == first.__dict__
        assert (other.exc_type, other.exc_message) == ("ValueError", "oh")
