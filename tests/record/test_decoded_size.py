"""What is decoded takes no more memory than what was sent warrants (promise 8; fault 22)."""

from __future__ import annotations

import logging
import resource
import signal
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from readers import in_fork

from mplog.record import decoded_size
from mplog.record.decoding import UNCHECKED_SIZE, Decoder, decode
from mplog.record.encoding import encode
from mplog.record.layout import EXTRA, RAW_ORIGIN, REST
from mplog.record.plain import unpack

MEGABYTE = 2**20


def payload(extra: bytes) -> bytes:
    """Return a record with these values, encoded, in a list."""
    made = encode(logging.LogRecord("a", logging.INFO, "x.py", 1, "text", None, None))
    values = list(msgspec.msgpack.decode(made))
    values[EXTRA] = {"values": msgspec.Raw(extra)}
    return msgspec.msgpack.encode(values)


def array(count: int, value: bytes) -> bytes:
    """Return a list of so many of the same value."""
    return b"\xdd" + count.to_bytes(4, "big") + value * count


_HOSTILE = {
    "empty lists": b"\x90",
    "empty maps": b"\x80",
    "small maps": b"\x81\x01\x01",
    "small lists": b"\x91\x90",
    "numbers": b"\xe0",
    "texts": b"\xa2ab",
    "empty sets": b"\xc7\x01" + bytes([2]) + b"\x90",
}


@pytest.mark.processes
@pytest.mark.parametrize("kind", _HOSTILE)
def test_a_record_of_nothing_but_small_values_is_refused(kind: str) -> None:
    """One that would take far more memory than it has bytes is no record, before anything of it is decoded."""
    value = _HOSTILE[kind]
    hostile = payload(array(12 * MEGABYTE // len(value), value))

    def refuse() -> None:
        soft = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 400 * MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (soft + 2**30, soft + 2**30))
        signal.alarm(60)
        with pytest.raises(ValueError, match="in memory"):
            Decoder().decode(hostile)

    in_fork(refuse)


def test_a_place_of_nothing_but_small_values_is_refused() -> None:
    """The part that is decoded last is looked at, too."""
    values = list(msgspec.msgpack.decode(payload(b"\x90")))
    values[RAW_ORIGIN] = array(8 * MEGABYTE, b"\x90")
    with pytest.raises(ValueError, match="in memory"):
        Decoder().decode(msgspec.msgpack.encode(values))
    values[RAW_ORIGIN], values[REST] = b"\x90", msgspec.Raw(array(8 * MEGABYTE, b"\x90"))
    with pytest.raises(ValueError, match="in memory"):
        Decoder().decode(msgspec.msgpack.encode(values))


_HONEST: dict[str, Callable[[], Any]] = {
    "text": lambda: "x" * 100 * MEGABYTE,
    "other text": lambda: "журнал 日志 " * 2 * MEGABYTE,
    "bytes": lambda: bytes(range(256)) * (40 * MEGABYTE // 256),
    "numbers": lambda: [number / 7 for number in range(300_000)],
    "rows": lambda: [{"name": f"row {number}", "value": number, "tags": []} for number in range(30_000)],
}


@pytest.mark.parametrize("kind", _HONEST)
def test_long_honest_records_pass(kind: str) -> None:
    """Texts of any script, bytes, and very many values are as they were."""
    sent = logging.LogRecord("a", logging.INFO, "x.py", 1, "text", None, None)
    sent.values = _HONEST[kind]()  # type: ignore[attr-defined]
    assert decode(encode(sent)).values == sent.values  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", _HOSTILE)
def test_the_estimate_is_above_what_it_takes(kind: str) -> None:
    """What is told before decoding is not less than what that takes, and the bound of what is not looked at holds."""
    data = array(20_000, _HOSTILE[kind])
    tracemalloc.start()
    kept = unpack(data)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 20_000
    assert taken <= decoded_size.estimate(data, sys.maxsize)[0] <= 8 * taken + 10_000
    assert taken <= decoded_size.at_most(data)
    assert UNCHECKED_SIZE * taken / len(data) < decoded_size.MEMORY


@pytest.mark.parametrize(
    "data", [b"\xdd", b"\xc6\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\x00", b"\xdb\xff\xff\xff\xff\x90"]
)
def test_what_is_cut_is_left_to_the_decoder(data: bytes) -> None:
    """An end in the middle of a value ends the estimate."""
    assert decoded_size.estimate(data, sys.maxsize)[0] < 2**34
