"""Bytes of a worker's own, in sinks of their own (promises 2, 4 and 5; faults 1, 4, 5, 6, 12, 19 and 22)."""

from __future__ import annotations

import contextlib
import gzip
import logging
import multiprocessing
import os
import queue
import random
import re
import signal
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from floods import PIECE, flood_with_pieces, piece
from oracle import Counter, wait_until
from readers import running
from scripts import lines, stop_all_threads

import mplog
from mplog.queue.payloads import decode_bytes
from mplog.record import frame
from mplog.record.encoding import encode

pytestmark = pytest.mark.processes

SIZES = [0, 1, 100, 4000, frame.PAYLOAD_SIZE - 7, frame.PAYLOAD_SIZE - 6, frame.PAYLOAD_SIZE - 5, 65_536, 3_000_000]


def pieces_in(data: bytes) -> dict[int, list[int]]:
    """Return the numbers in a file of pieces by worker; fail if anything is torn."""
    found: dict[int, list[int]] = defaultdict(list)
    position = 0
    while position < len(data):
        mark, worker, number, size, checksum = PIECE.unpack_from(data, position)
        position += PIECE.size
        assert (mark, zlib.crc32(data[position : position + size])) == (b"PIEC", checksum), f"torn at {position}"
        assert len(data) >= position + size, "torn at the end"
        position += size
        found[worker].append(number)
    return found


# --- files ---


@pytest.mark.parametrize("size", SIZES)
def test_bytes_arrive_as_they_are(tmp_path: Path, size: int) -> None:
    """Bytes of any content and length are in the file, with nothing between them, and log records are not."""
    data = [random.Random(number).randbytes(size) for number in range(3)]
    with mplog.LogServer(tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin"), level="INFO") as server:
        for each in data:
            logging.info("a record")
            mplog.write(each)
        server.flush()
        assert (tmp_path / "raw.bin").read_bytes() == b"".join(data)
    assert len([line for line in lines(tmp_path / "app.log") if "mplog:" not in line]) == 3


def test_bytes_of_every_worker_are_there_in_order(tmp_path: Path, context: Any) -> None:
    """Whatever way a worker is started, all it has written is there, in its order."""
    ending = context.Event()
    ending.set()
    with mplog.LogServer(tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin"), level="INFO") as server:
        workers = [
            context.Process(target=flood_with_pieces, args=(server.initializer, str(tmp_path), number, ending))
            for number in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    assert pieces_in((tmp_path / "raw.bin").read_bytes()) == {0: [*range(1, 11)], 1: [*range(1, 11)]}


@pytest.mark.parametrize(
    "point", ["", "before write:5", "after write:4", "before commit:9", "after read:6", "in state:9"]
)
def test_killed_logging_process_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Wherever it is killed, no piece is lost, doubled, torn or out of order."""
    if point:
        monkeypatch.setenv("MPLOG_KILL_AT", point)
    context, chance = multiprocessing.get_context("fork"), random.Random(5)
    ending = context.Event()
    with mplog.LogServer(tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin"), level="INFO") as server:
        first = server.pid
        workers = [
            context.Process(target=flood_with_pieces, args=(server.initializer, str(tmp_path), number, ending))
            for number in range(2)
        ]
        with running(workers):
            counts = [Counter(tmp_path, number) for number in range(2)]
            for _ in range(0 if point else 6):
                before = counts[0].value
                wait_until(lambda before=before: counts[0].value > before + 30, "the worker goes on")
                time.sleep(chance.uniform(0, 0.05))  # the moment of the kill, which is to be any
                with contextlib.suppress(ProcessLookupError):  # the next one is still to come
                    os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: server.pid != first, "it is restarted")
            before = counts[0].value
            wait_until(lambda: counts[0].value > before + 30, "the worker goes on")
            ending.set()
            for worker in workers:
                worker.join(60)
                assert worker.exitcode == 0
    found = pieces_in((tmp_path / "raw.bin").read_bytes())
    assert found == {number: [*range(1, counts[number].value + 1)] for number in range(2)}


def test_killed_workers_lose_nothing_that_was_written(tmp_path: Path) -> None:
    """What write() has returned from is in the file, whole, however the worker ends."""
    context, chance = multiprocessing.get_context("fork"), random.Random(6)
    with mplog.LogServer(tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin"), level="INFO") as server:
        for number in range(6):
            ending = context.Event()  # one each: a worker may be killed with its lock
            worker = context.Process(target=flood_with_pieces, args=(server.initializer, str(tmp_path), number, ending))
            with running([worker]):
                wait_until(lambda number=number: Counter(tmp_path, number).value > 20, "the worker writes")
                time.sleep(chance.uniform(0, 0.02))  # the moment of the kill, which is to be any
    found = pieces_in((tmp_path / "raw.bin").read_bytes())
    for number in range(6):
        # The last may be there though the worker could not say so any more.
        assert found[number] == [*range(1, len(found[number]) + 1)]
        assert Counter(tmp_path, number).value <= len(found[number]) <= Counter(tmp_path, number).value + 1


def test_files_are_rotated_between_pieces(tmp_path: Path) -> None:
    """Each piece is in one file, whole, and they are in order across the files."""
    with mplog.LogServer(mplog.RawSink(tmp_path / "raw.bin", rotate=1000), level="INFO"):
        for number in range(50):
            mplog.write(piece(0, number, 90))
    files = sorted(tmp_path.glob("raw.*.bin"))
    assert len(files) >= 5
    found = [pieces_in(path.read_bytes())[0] for path in [*files, tmp_path / "raw.bin"]]
    assert [number for numbers in found for number in numbers] == [*range(50)]


# --- other writers ---


class _Lines:
    """A writer in five lines."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "ab")  # noqa: SIM115
        self.flush, self.close = self.file.flush, self.file.close

    def write(self, batch: list[bytes]) -> None:
        self.file.writelines(each + b"\n" for each in batch)


class _Failing(_Lines):
    """Does not like some bytes."""

    def write(self, batch: list[bytes]) -> None:
        if b"bad" in batch:
            raise ValueError("as planned")
        super().write(batch)


def test_any_writer_gets_bytes_by_its_name(tmp_path: Path) -> None:
    """Writers are made in the logging process, and each gets what was sent to its name, in order."""
    paths = [str(tmp_path / name) for name in "ab"]
    with mplog.LogServer(
        mplog.WriterSink(lambda: _Lines(paths[0]), name="a"),
        mplog.WriterSink(lambda: _Lines(paths[1]), name="b"),
        mplog.RawSink(tmp_path / "c", name="ç"),
    ) as server:
        for number in range(5):
            server.queue.write(str(number).encode(), to="ab"[number % 2])
            server.queue.write(memoryview(b"c"), to="ç")
        server.flush()
        assert [lines(path) for path in paths] == [["0", "2", "4"], ["1", "3"]]
    assert (tmp_path / "c").read_bytes() == b"ccccc"


def test_writer_is_closed_once(tmp_path: Path) -> None:
    """At the end, the writer is closed after its last bytes, and not again when the process ends."""
    path = str(tmp_path / "a")

    class Closing(_Lines):
        def __init__(self) -> None:
            super().__init__(path)
            self.close = self._note  # type: ignore[method-assign, assignment]

        def _note(self) -> None:
            self.write([b"closed"])
            self.file.close()

    with mplog.LogServer(mplog.WriterSink(Closing)):
        mplog.write(b"1")
    assert lines(path) == ["1", "closed"]


def test_writer_that_fails_is_isolated_and_counted(tmp_path: Path) -> None:
    """What a writer raises is counted and said in the log, and the next batch is given to it again."""
    path = str(tmp_path / "a")
    with mplog.LogServer(tmp_path / "app.log", mplog.WriterSink(lambda: _Failing(path)), level="INFO") as server:
        for data in (b"good", b"bad", b"good again"):
            mplog.write(data)
            server.flush()
        stats = server.stop()
    assert lines(path) == ["good", "good again"]
    assert stats.failed == {"<WriterHandler _Failing>": 1}
    assert any(
        "1 record could not be written by <WriterHandler _Failing>" in line for line in lines(tmp_path / "app.log")
    )


def test_bytes_for_nobody_are_counted_and_said(tmp_path: Path) -> None:
    """Bytes to a name that no sink has are no silent loss."""
    with mplog.LogServer(tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin", name="x"), level="INFO") as server:
        mplog.write(b"1", to="y")
        mplog.write(b"2")
        stats = server.stop()
    assert stats.failed == {"no sink for bytes": 2}
    said = re.findall(r"mplog: (\d+) pieces? of bytes sent to an unknown sink", (tmp_path / "app.log").read_text())
    assert sum(map(int, said)) == 2


# --- the queue ---


@pytest.mark.parametrize("policy", ["block", "drop_newest", "drop_oldest", "drop_below", "fallback"])
def test_no_overflow_policy_drops_bytes(tmp_path: Path, policy: str) -> None:
    """While the queue is full, write() waits whatever the policy is, and what it has returned from arrives."""
    with mplog.LogServer(
        tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin"), level="INFO", overflow=policy, buffer_size=2 * 2**20
    ) as server:
        stop_all_threads(server.pid)
        try:
            sent = 0
            with pytest.raises(queue.Full):
                while True:
                    mplog.write(piece(1, sent, 3000), timeout=0.2)
                    sent += 1
        finally:
            os.kill(server.pid, signal.SIGCONT)
        mplog.write(piece(1, sent, 3000))
        for number in range(20_000):
            logging.info("%d %s", number, "x" * 300)
            if number % 100 == 0:
                mplog.write(piece(2, number, 3000))
    found = pieces_in((tmp_path / "raw.bin").read_bytes())
    assert sent > 100
    assert found == {1: [*range(sent + 1)], 2: [*range(0, 20_000, 100)]}


def test_bytes_are_not_taken_for_frames(tmp_path: Path) -> None:
    """Bytes that look like records, between records, stay bytes."""
    fake = encode(logging.LogRecord("x", logging.INFO, "", 0, "fake", None, None))
    nested = frame.frame(frame.RECORD, fake)
    assert nested is not None
    with mplog.LogServer(
        tmp_path / "app.log", mplog.RawSink(tmp_path / "raw.bin"), level="INFO", format="%(message)s"
    ) as server:
        for _ in range(50):
            logging.info("real")
            mplog.write(nested * 3)
        stats = server.stop()
    assert lines(tmp_path / "app.log") == ["real"] * 50
    assert (tmp_path / "raw.bin").read_bytes() == nested * 150
    assert (stats.received, stats.broken) == (50, 0)


@pytest.mark.parametrize(
    "payload", [b"", b"\0" * 4, b"\0" * 5, b"abcde", zlib.crc32(b"\x05abc").to_bytes(4, "little") + b"\x05abc"]
)
def test_garbage_is_no_bytes(payload: bytes) -> None:
    """What has no right checksum, or not the whole of its name, is garbage."""
    with pytest.raises(ValueError, match="bytes"):
        decode_bytes(payload)


def test_get_returns_bytes() -> None:
    """A program that reads a queue itself gets the bytes."""
    own = mplog.LogQueue()
    own.write(b"abc", to="x")
    assert own.get(timeout=10) == b"abc"
    own.close()


def test_what_cannot_be_sent_raises(tmp_path: Path) -> None:
    """Without a server, with too long a name or too many bytes, write() says so."""
    with pytest.raises(mplog.ServerStateError, match="logs to no server"):
        mplog.write(b"x")
    with mplog.LogServer(mplog.RawSink(tmp_path / "raw.bin")) as server:
        with pytest.raises(ValueError, match="up to 255 bytes"):
            mplog.write(b"x", to="x" * 256)
        for data, name in (("text", ""), (5, ""), (b"x", b"name")):
            with pytest.raises(TypeError, match="write\\(\\) sends bytes to a name, not"):
                mplog.write(data, to=name)  # type: ignore[arg-type]
        with pytest.raises(mplog.MessageTooLongError):
            mplog.write(bytes(2**28))
        own = server.queue
    with pytest.raises(mplog.NoReaderError):
        own.write(b"x")


def test_program_without_a_handler_finds_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose loggers do not send writes to the server that started it."""
    with mplog.LogServer(mplog.RawSink(tmp_path / "raw.bin")):
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        mplog.write(b"x")
    assert (tmp_path / "raw.bin").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mplog.LogServer(mplog.RawSink("a"), mplog.RawSink("b")), ValueError, "are called ''"),
        (lambda: mplog.RawSink("a", format="%(message)s"), TypeError, "does not take format="),
        (lambda: mplog.RawSink("a", logger="app"), TypeError, "does not take logger="),
        (lambda: mplog.RawSink("a", propagate=False), TypeError, "does not take propagate="),
        (lambda: mplog.RawSink("a", name="x" * 256), ValueError, "up to 255"),
        (lambda: mplog.WriterSink("a"), TypeError, "function that makes a writer"),  # type: ignore[arg-type]
        (
            lambda: mplog.LogServer(mplog.RawSink("a"), queue=multiprocessing.Queue()),
            ValueError,
            "needs a LogQueue",
        ),
    ],
)
def test_bad_sinks_are_refused_in_the_program(make: Any, error: type[Exception], message: str) -> None:
    """What cannot work raises before anything is started."""
    with pytest.raises(error, match=message):
        make()


def test_writer_without_its_methods_is_refused_at_start() -> None:
    """A factory that returns no writer fails start(), and the message says what is missing."""
    with pytest.raises(mplog.SinkError, match=r"has no write, flush, close\(\)"):
        mplog.LogServer(mplog.WriterSink(lambda: object())).start()  # type: ignore[arg-type, return-value]


def test_file_is_no_writer(tmp_path: Path) -> None:
    """A file has the three methods, but its write() takes no list: that fails start(), and not each write."""
    path = str(tmp_path / "raw.gz")
    with pytest.raises(mplog.SinkError, match=r"write\(\) takes bytes, .* For a file there is RawSink"):
        mplog.LogServer(mplog.WriterSink(lambda: gzip.GzipFile(path, "ab"))).start()  # type: ignore[arg-type, return-value]
