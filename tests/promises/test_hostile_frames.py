"""Forged frames and texts of workers: they run no code, take no memory without bound, and forge no line (fault 20)."""

from __future__ import annotations

import decimal
import logging
import os
import pickle
import random
import select
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import wait_until
from scripts import lines

import mplog
from mplog.formats.text import renderer
from mplog.handlers import text as sinks
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.troubles import Troubles
from mplog.queue import fifo
from mplog.queue.payloads import check_object
from mplog.record import frame
from mplog.record.decoding import Decoder, decode_entry
from mplog.record.encoding import encode
from mplog.record.frame import OBJECT, RECORD
from mplog.record.frame_reader import UNFINISHED_LIMIT, FrameReader
from mplog.record.layout import Entry

pytestmark = pytest.mark.processes


# --- frames: no code ---


class Exploit:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_frame_runs_no_code(tmp_path: Path, log: Path) -> None:
    """To the logging process, pickles as objects, records, extras and msgpack extensions are data, and counted."""
    import msgspec

    trace = tmp_path / "ran"
    attack = pickle.dumps(Exploit(trace))
    with mplog.LogServer(log, format="%(message)s") as server:
        server.queue.put(Exploit(trace))
        server.queue.sender.put_record(attack)
        for code in range(128):
            record = logging.LogRecord("a", 40, "/x", 1, "extension", None, None)
            values = msgspec.msgpack.decode(encode(record))
            values[2] = {"x": msgspec.msgpack.Ext(code, attack)}
            server.queue.sender.put_record(msgspec.msgpack.encode(values))
        logging.warning("the end")
    assert "the end" in lines(log) and "extension" not in lines(log)
    assert not trace.exists()
    stats = server.stats()
    assert (stats.objects, stats.received) == (1, 1)
    assert stats.broken >= 1
    assert stats.skipped > 128 * len(attack), "all of them count as garbage"


def test_worker_text_is_no_template(log: Path) -> None:
    """Text that looks like a format is written unchanged, wherever it stands."""
    text = "%(process)d %s {0.__class__} $message ${jndi:ldap://x}"
    format = "%(message)s|%(name)s|%(user)s|%(processName)s"
    with mplog.LogServer(log, format=format):
        record = logging.LogRecord(text, 40, "/x", 1, text, None, None)
        record.user = text
        record.processName = text
        logging.getLogger().handle(record)
    assert lines(log) == ["|".join([text] * 4)]


# --- frames: no memory without bound ---


@pytest.mark.parametrize("attribute", ["name", "processName", "levelname"])
def test_names_take_no_memory_without_bound(attribute: str) -> None:
    """Ever new names of loggers, processes and levels, of any length, use little memory."""

    class Nowhere(sinks.TextHandler):
        def write(self, texts: list[str]) -> None:
            pass

    handler = Nowhere()
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(processName)s %(message)s"))
    logging.getLogger().handlers = [handler]
    dispatcher = Dispatcher([handler])
    decoder = Decoder()
    handled = 0
    tracemalloc.start()
    try:
        for number in range(200):
            record = logging.LogRecord("a", 40, "/x", 1, "m", None, None)
            record.__dict__[attribute] = f"{number}-" + "x" * 100_000
            record.process = number
            handled += sum(dispatcher.handle([decoder.decode(encode(record, details=False))]).values())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3_000_000, f"{held} bytes are held of 20 MB"
    assert handled == 200


def test_troubles_take_no_memory_without_bound() -> None:
    """Messages about bad frames name their writers, real or forged, and use no memory once they are written."""
    now = [0.0]
    said: list[str] = []
    troubles = Troubles(lambda message, *_: said.append(message), lambda: now[0])
    for number in range(5000):
        troubles.warn("long record", f"lost: pid {number} ended")
    assert len(troubles) <= 1001
    troubles.report()
    assert len(said) == 1001
    assert said[-1] == "mplog: 4000 troubles of other kinds"
    now[0] = 1000.0
    for number in range(5000, 5500):
        troubles.warn("long record", f"lost: pid {number} ended")
    assert len(troubles) <= 501


def test_error_of_a_sink_forges_no_line() -> None:
    """A line of mplog's own stays one line of limited length, whatever the error of a sink quotes."""
    said: list[str] = []
    troubles = Troubles(lambda message, *_: said.append(message), time.monotonic)
    troubles.warn("record", "failed", ValueError("bad: ok\n2026-11-20 CRITICAL root | \x1b[2J" + "x" * 10_000))
    troubles.report()
    assert said[0].startswith(r"mplog: 1 record failed: ValueError: bad: ok\n2026-11-20 CRITICAL root | \x1b[2Jx")
    assert len(said[0]) < 1100


def test_huge_decimal_is_not_written_out() -> None:
    """A float of eleven characters that %d would expand to a gigabyte is shown unchanged, at no cost."""
    record = logging.LogRecord("a", 40, "/x", 1, "m", None, None)
    failed: list[object] = []

    def fail(entry: Entry, error: Exception) -> None:
        failed.append(error)

    for number in (decimal.Decimal("1E+999999999"), decimal.Decimal("1E-999999999")):
        record.__dict__["n"] = number
        entry = decode_entry(encode(record))
        for format in ("%(n)d", "{n:f}"):
            style: Any = format[0]
            assert renderer(logging.Formatter(format, style=style), "").render([entry], fail) == [""]
        assert renderer(logging.Formatter("%(n)s"), "").render([entry], lambda *about: None) == [str(number)]
    assert len(failed) == 4
    record.__dict__["n"] = decimal.Decimal("1E+6144")
    assert decode_entry(encode(record))[0][2] == {"n": decimal.Decimal("1E+6144")}


def flood(directory: str, seconds: float, seed: int) -> None:
    """Write hostile frames into a queue for so many seconds."""
    dice = random.Random(seed)
    fd = fifo.open_writer(os.path.join(directory, "queue"))
    end = os.times().elapsed + seconds
    while os.times().elapsed < end:
        batch = [hostile_frame(dice) for _ in range(50)]
        for data in batch:
            for start in range(0, len(data), select.PIPE_BUF):
                fifo.wait(fd, select.POLLOUT, None)
                try:
                    os.write(fd, data[start : start + select.PIPE_BUF])
                except BlockingIOError:
                    continue


def hostile_frame(dice: random.Random) -> bytes:
    """Return a frame that takes memory unless there is a bound."""
    kind = dice.randrange(4)
    if kind == 0:  # the beginning of a long message that never ends
        return frame.encode_part(
            dice.randbytes(16), dice.randrange(2**31), 0, 10**6, RECORD, b"x" * dice.choice([0, 4000])
        )
    if kind == 1:
        return dice.randbytes(2000)
    record = logging.LogRecord(f"logger-{dice.random()}", 40, "/x", 1, "m", None, None)
    record.processName = f"{dice.random()}" + "x" * 3000 * (kind == 2)
    record.process = dice.randrange(2**31)
    whole = frame.frame(RECORD, encode(record, details=False))
    assert whole is not None
    return whole


@pytest.mark.long
@pytest.mark.timeout(300)
def test_flood_of_hostile_frames_takes_bounded_memory(log: Path) -> None:
    """The memory of the logging process stays within its bounds over time; honest records all arrive."""
    with mplog.LogServer(log, level="INFO", format="%(name)s %(message)s") as server:
        process = psutil.Process(server.pid)
        sizes = []
        for number in range(6):
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"import test_hostile_frames as t; t.flood({server.queue.directory!r}, 10, {number})",
                ],
                env=jobs.environment(),
                timeout=120,
                check=True,
            )
            logging.info("honest %d", number)
            server.flush(60)
            sizes.append(process.memory_info().rss)
        # Unfinished messages, names of origins and of processes, and what the allocator keeps of them.
        assert max(sizes) < UNFINISHED_LIMIT * 1.5 + 300 * 2**20, sizes
        print([size >> 20 for size in sizes])
    assert sum(line.startswith("root honest ") for line in lines(log)) == 6


def test_unfinished_messages_take_what_is_counted() -> None:
    """Unfinished messages take no more memory than the limit says, with tiny parts and with large ones."""
    for size in (0, 100, 4000):
        reader: FrameReader[Entry] = FrameReader({RECORD: decode_entry})
        parts = [frame.encode_part(os.urandom(16), 1, 0, 1000, RECORD, bytes(size)) for _ in range(2000)]
        tracemalloc.start()
        try:
            for part in parts:
                reader.feed(part, drained=True)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < reader.incomplete_size * 1.2 + 200_000, (size, held, reader.incomplete_size)


# --- frames: the fast way and the slow one ---


def honest_frames(dice: random.Random) -> bytes:
    """Return the frames of one record or object."""
    kind = dice.randrange(10)
    record = logging.LogRecord(f"l{dice.randrange(3)}", 40, "/x", 1, f"m{dice.randrange(10**6)}", None, None)
    if kind == 0:
        record.__dict__["blob"] = dice.choice([b"\xffmp", b"\xffmp\x01", b"\xffmp\x01\x92\xcd\x00\x05", b"\xff" * 9])
    if kind == 1:
        record.msg = "x" * dice.choice([3500, 3900, 4000, 4050, 9000])
    if kind == 2:
        record.lineno = "a text"  # type: ignore[assignment]
    payload = encode(record, dice.randrange(2**31), dice.random() < 0.3)
    if kind == 3:
        data = pickle.dumps(dice.random())
        return b"".join(frame.frames(OBJECT, len(data).to_bytes(4, "little") + data, dice.randbytes(16)))
    whole = frame.frame(RECORD, payload)
    return whole if whole is not None else b"".join(frame.frames(RECORD, payload, dice.randbytes(16)))


def hostile_headers(dice: random.Random) -> bytes:
    """Return frames with false headers: lengths whose sum is right, or numbers of other sizes."""
    payload = encode(logging.LogRecord("a", 40, "/x", 1, "lie", None, None), 1, False)
    lie = dice.randrange(1, 30)
    size = len(payload)
    tag = b"\xffmp\x01"
    return dice.choice(
        [
            frame.header(RECORD, size + lie) + payload + frame.header(RECORD, size - lie) + payload,
            tag + b"\x92" + bytes([max(0, size - 2) & 0x7F]) + payload,
            tag + b"\x92\xcc" + bytes([max(0, size - 1) & 0xFF]) + payload,
            tag + b"\x92\xd1" + size.to_bytes(2, "big") + payload,
            tag + b"\x92\xce" + (size + 2).to_bytes(4, "big") + payload,
            tag + b"\x93\xcd" + size.to_bytes(2, "big") + payload,
            frame.header(RECORD, 5000) + b"\xc0" * 5000,
            tag,
            b"",
        ]
    )


def mutated(stream: bytes, dice: random.Random) -> bytes:
    """Return the stream with a few bytes changed, removed, doubled or moved."""
    changed = bytearray(stream)
    for _ in range(dice.randrange(4)):
        if not changed:
            break
        place, size = dice.randrange(len(changed)), dice.randrange(1, 40)
        what = dice.randrange(5)
        if what == 0:
            changed[place] = dice.randrange(256)
        elif what == 1:
            changed[place] ^= 1 << dice.randrange(8)
        elif what == 2:
            del changed[place : place + size]
        elif what == 3:
            changed[place:place] = changed[max(0, place - size) : place]
        else:
            changed[place:place] = dice.choice([b"\xffmp", b"\xffmp\x01\x92\xcd", b"\x92\xcd", dice.randbytes(size)])
    return bytes(changed)


def read_by(stream: bytes, cuts: list[int], *, fast: bool) -> tuple[list[str], tuple[int, ...]]:
    """Read a stream in these pieces; return what came out, and what was counted."""
    decoder = Decoder()

    def check(payload: bytes) -> Any:
        check_object(payload)
        return (None, "object"), None

    reader: FrameReader[Any] = FrameReader(
        {RECORD: decoder.decode, OBJECT: check}, decoder.decode_framed if fast else None
    )
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)]):
        for values, origin in reader.feed(stream[start:stop], drained=stop == len(stream)):
            found.append(repr((values[:7], origin)))
    return found, (reader.skipped, reader.broken, reader.given_up, len(reader.incomplete()))


def check_both_ways(dice: random.Random) -> None:
    """Compare both ways for a stream, as a whole and in pieces."""
    units = [honest_frames(dice) if dice.random() < 0.9 else hostile_headers(dice) for _ in range(dice.randrange(1, 6))]
    stream = b"".join(units)
    if dice.random() < 0.8:
        stream = mutated(stream, dice)
    cuts = sorted(dice.randrange(len(stream) + 1) for _ in range(dice.randrange(4)))
    expected = read_by(stream, [], fast=False)
    assert read_by(stream, [], fast=True) == expected, stream
    in_pieces = read_by(stream, cuts, fast=True)
    assert in_pieces == read_by(stream, cuts, fast=False), (stream, cuts)
    assert in_pieces[0] == expected[0], (stream, cuts)


@given(st.randoms(use_true_random=False))
@settings(max_examples=1000)
@example(random.Random(1))
def test_fast_way_is_the_slow_way(dice: random.Random) -> None:
    """However a stream of honest, hostile and broken frames is cut, both ways give the same messages and counts."""
    check_both_ways(dice)


@given(st.lists(st.one_of(st.sampled_from([b"\xffmp\x01", b"\x92\xcd", b"\0\5", b"\xff"]), st.binary(max_size=9))))
@settings(max_examples=300)
def test_any_bytes_by_both_ways(pieces: list[bytes]) -> None:
    """Arbitrary bytes with many pieces of frames give the same by both ways."""
    stream = b"".join(pieces)
    assert read_by(stream, [], fast=True) == read_by(stream, [], fast=False)


@pytest.mark.parametrize("kind", range(9))
def test_header_that_lies_is_no_frame(kind: int) -> None:
    """Frames that decode but have a wrong header are garbage by both ways; honest frames around them arrive."""

    class Dice(random.Random):
        def choice(self, seq: Any) -> Any:
            return seq[kind]

    honest = frame.frame(RECORD, encode(logging.LogRecord("a", 40, "/x", 1, "honest", None, None), 1, False))
    assert honest is not None
    lie = hostile_headers(Dice(kind))
    for stream, count in ((lie, 0), (honest + lie + honest, 2)):
        found, _ = read_by(stream, [], fast=True)
        assert (found, _) == read_by(stream, [], fast=False)
        assert len(found) == count
        assert all("honest" in one for one in found)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_million_mutations() -> None:
    """A million mutated streams give the same by both ways."""
    dice = random.Random(20261120)
    for _ in range(1_000_000):
        check_both_ways(dice)


# --- what a worker's text can do ---


def test_without_the_option_a_line_can_be_forged(log: Path, tmp_path: Path) -> None:
    """A line break in a message is one in the file, as in any text log; with escape=True it is not."""
    text = "ok\nCRITICAL root | all is lost"
    safe = tmp_path / "safe.log"
    with mplog.LogServer(log, mplog.FileSink(safe, escape=True), format="%(levelname)s %(name)s | %(message)s"):
        logging.warning(text)
    assert lines(log) == ["WARNING root | ok", "CRITICAL root | all is lost"]
    assert lines(safe) == [r"WARNING root | ok\nCRITICAL root | all is lost"]


class _Counted:
    """Runs in the logging process: notes each check whether a process has ended."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self) -> logging.Handler:
        """Begin to count, as a sink's factory."""
        from mplog.logging_process import inbox

        has_ended, path = inbox.has_ended, self.path

        def look(pid: int) -> bool:
            with open(path, "ab") as file:
                file.write(b".")
            return has_ended(pid)

        inbox.has_ended = look
        return logging.NullHandler()


def test_a_flood_of_first_parts_is_looked_at_once_in_a_while(log: Path, tmp_path: Path) -> None:
    """However many long records are unfinished, each writer is checked once in a while."""
    looks = tmp_path / "looks"
    sinks = mplog.FileSink(log, format="%(message)s"), mplog.HandlerSink(_Counted(looks))
    with mplog.LogServer(*sinks, level="INFO") as server:
        began = time.monotonic()
        fd = os.open(server.queue.path, os.O_WRONLY)
        for number in range(4000):
            begun = frame.encode_part(
                os.urandom(16), os.getpid() if number % 2 else os.getppid(), 0, 3, frame.RECORD, b"x"
            )
            os.write(fd, begun)
        os.close(fd)
        for number in range(100):
            logging.info("%d", number)
            server.flush()
        rounds = 2 + (time.monotonic() - began) / 1
        assert looks.stat().st_size <= 2 * rounds
        assert server.stats().incomplete == 0
    assert lines(log)[:100] == [str(number) for number in range(100)]


def test_unfinished_records_of_many_writers_are_given_up(log: Path) -> None:
    """All dead writers are found and counted in the end, even if there are more than one check covers."""
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        fd = os.open(server.queue.path, os.O_WRONLY)
        for number in range(1500):
            os.write(fd, frame.encode_part(os.urandom(16), 2**22 + 1 + number, 0, 3, frame.RECORD, b"x"))
        os.close(fd)
        wait_until(lambda: server.stats().incomplete == 1500, "all are given up")
