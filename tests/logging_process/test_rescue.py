"""What is left when no logging process will come any more is saved for the next server, or counted. Fault 37."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import resource
import signal
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from readers import in_fork
from scripts import BlockedHandler, Gate, lines, stop_all_threads

import mplog
from mplog.logging_process import rescue
from mplog.logging_process.messages import Patience
from mplog.logging_process.rescue import Rescue
from mplog.monitoring.statistics import missing, read_counts, to_stats
from mplog.queue import buffer_memory, fifo, kill_points
from mplog.queue.buffer_memory import COUNTS_SIZE, FIFO_SIZE
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.kill_points import VARIABLE
from mplog.queue.process_losses import ProcessLosses, encode_losses
from mplog.record import frame
from mplog.record.encoding import encode

pytestmark = pytest.mark.processes

#: One that gives up at the first death.
NONE = Patience(at_once=0, first_pause=0.01, longest_pause=0.02, restarts=0, seconds=0.0)


def frames(*texts: str) -> bytes:
    """Return messages of one frame each."""
    return b"".join(frame.whole(frame.BYTES, text.encode()) for text in texts)


def test_what_is_written_just_before_the_fifo_is_closed_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write between the last read and the close is seen, and read; a later one is refused."""
    directory = str(tmp_path)
    path = os.path.join(directory, "queue")
    fifo.create(path)
    reader = fifo.open_reader(path)
    writer = fifo.open_writer(path)
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / "emergency", 2**20)
    os.write(writer, frames("early"))
    rounds = iter(("first", "second"))
    close = os.close

    def close_late(fd: int) -> None:
        is_reader = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY and stat.S_ISFIFO(os.fstat(fd).st_mode)
        if is_reader and (text := next(rounds, None)):
            os.write(writer, frames(text))
        close(fd)

    monkeypatch.setattr(rescue.os, "close", close_late)
    memory = buffer_memory.create(2 * FIFO_SIZE)
    said = Rescue(directory, memory, overflow).save(reader, reader)
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        os.write(writer, frames("late"))
    assert fifo.pending(writer) == 0
    found = EmergencyReader(str(tmp_path / "emergency"))
    assert found.take()
    assert found.read() == frames("early", "first", "second")
    assert said == f"what is left is in {tmp_path / 'emergency'}"  # none of these is a record
    found.close()
    close(memory)
    close(writer)


def test_whatever_has_no_room_is_counted(tmp_path: Path) -> None:
    """Bytes for a sink, a record that was being set aside, and counts of losses are counted when they are lost."""
    directory = str(tmp_path)
    path = os.path.join(directory, "queue")
    fifo.create(path)
    reader = fifo.open_reader(path)
    writer = fifo.open_writer(path)
    record = encode(logging.makeLogRecord({"process": 7, "processName": "w", "levelno": logging.ERROR}))
    os.write(writer, frames("bytes", "more"))
    os.write(writer, frame.set_aside(frame.whole(frame.RECORD, record)))
    os.write(writer, encode_losses([ProcessLosses(7, "w", {(logging.INFO, mplog.Reason.QUEUE_FULL): 5})]))
    memory = buffer_memory.create(2 * FIFO_SIZE)
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / "emergency", 10)
    said = Rescue(directory, memory, overflow).save(reader, reader)
    assert said.endswith("emergency, except 1 record and 2 other messages lost: it is full")
    stats = to_stats(*read_counts(directory))
    assert stats.broken == 2
    assert [(each.pid, each.name, each.counts) for each in stats.lost] == [
        (
            7,
            "w",
            {(logging.ERROR, mplog.Reason.NO_EMERGENCY): 1, (logging.INFO, mplog.Reason.QUEUE_FULL): 5},
        )
    ]
    os.close(memory)
    os.close(writer)


@pytest.mark.parametrize("free", [2, 3, 4])
def test_a_few_descriptors_do(tmp_path: Path, free: int) -> None:
    """A supervisor that has next to none left, as it cannot start another logging process, saves everything."""
    directory = str(tmp_path)
    path = os.path.join(directory, "queue")
    fifo.create(path)
    reader = fifo.open_reader(path)
    writer = fifo.open_writer(path)
    os.write(writer, frames("bytes"))
    memory = buffer_memory.create(2 * FIFO_SIZE)
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / "emergency")

    def save() -> None:
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for fd in taken[-free:]:
            os.close(fd)
        found = Rescue(directory, memory, overflow)
        os.close(memory)
        (tmp_path / "said").write_text(found.save(reader, reader))

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        pid = in_fork(save)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert pid
    found = EmergencyReader(str(tmp_path / "emergency"))
    assert found.take()
    assert found.read() == frames("bytes")
    found.close()
    assert (tmp_path / "said").read_text() == f"what is left is in {tmp_path / 'emergency'}"
    for fd in memory, reader, writer:
        os.close(fd)


class _DiesAfterTheLongOne(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Have this process die once the batch with a long record is written."""
        if "long" in record.getMessage():
            kill_points.arm("after write")


def test_long_record_that_is_written_and_not_committed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first parts, which are committed long before it is written, are saved with the rest."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    log = tmp_path / "app.log"
    options: dict[str, Any] = {"level": "INFO", "format": "%(message).9s"}
    server = mplog.LogServer(log, mplog.HandlerSink(_DiesAfterTheLongOne), **options).start()
    logging.info("before")
    server.flush()
    logging.info("long %s", "x" * 1_000_000)
    wait_until(lambda: not server.is_running, "it is given up")
    assert lines(log) == ["before", "long xxxx"]
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    with mplog.LogServer(log, **options) as following:
        following.flush()
        assert missing(following.stats()) == ""
    assert [line for line in lines(log) if "mplog:" not in line] == ["before", "long xxxx"]


def test_long_record_that_is_half_committed_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long record arrives before and after a commit, and its logging process is given up."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    log = tmp_path / "app.log"
    options: dict[str, Any] = {"level": "INFO", "format": "%(message).9s"}
    server = mplog.LogServer(log, **options).start()
    writer = fifo.open_writer(server.queue.path)
    record = logging.makeLogRecord({"msg": "long " + "x" * 300_000, "levelno": logging.INFO, "process": os.getpid()})
    parts = list(frame.frames(frame.RECORD, encode(record), os.urandom(16)))
    for part in parts[:10]:
        os.write(writer, part)
    server.flush()  # nothing is written, and yet the parts are committed
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.pid != killed, "another one is there")
    server.flush()
    stop_all_threads(server.pid)
    for part in parts[10:]:
        os.write(writer, part)
    os.close(writer)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_running, "it is given up")
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    with mplog.LogServer(log, **options) as following:
        following.flush()
        assert missing(following.stats()) == ""
    assert [line for line in lines(log) if "mplog:" not in line] == ["long xxxx"]


def test_records_without_room_in_the_emergency_file_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each record is in the log of the next server, or counted as lost by its process, level and reason; and said."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    log = tmp_path / "app.log"
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / ".app.log.emergency", 2**18)
    server = mplog.LogServer(log, level="INFO", format="%(message).9s", overflow=overflow).start()
    stop_all_threads(server.pid)
    sent = 150
    for number in range(sent):
        level = logging.ERROR if number % 2 else logging.INFO
        logging.log(level, "%09d%s", number, "x" * (3000 if number % 9 else 9000))
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_running, "it is given up")
    stats = server.stats()
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "given up" in line]
    with mplog.LogServer(log, level="INFO", format="%(message).9s"):
        pass
    written = [line for line in lines(log) if "mplog:" not in line]
    assert written == sorted(set(written))
    first_lost = next(number for number, text in enumerate(written) if int(text) != number)
    later = [int(text) for text in written[first_lost:]]
    # The file is three quarters full by then. The rest is for errors, and for a short record that still fits.
    assert first_lost > 10
    assert len([number for number in later if number % 2]) > 10 > len([number for number in later if not number % 2])
    assert stats.dropped_by_reason == {mplog.Reason.NO_EMERGENCY: sent - len(written)}
    assert re.search(rf"what is left is in .*emergency, except {sent - len(written):,} records lost: it is full$", said)
    assert {losses.pid for losses in stats.lost} == {os.getpid()}


def test_what_has_no_room_leaves_the_others_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One record that is longer than the whole emergency file is lost, and no other."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    log = tmp_path / "app.log"
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / ".app.log.emergency", 300_000)
    server = mplog.LogServer(log, level="INFO", format="%(message).9s", overflow=overflow).start()
    stop_all_threads(server.pid)
    sent = [f"{number:09}" for number in range(100)]
    for text in sent[:50]:
        logging.info(text)
    logging.info("too long %s", "x" * 400_000)
    for text in sent[50:]:
        logging.info(text)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_running, "it is given up")
    stats = server.stats()
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert stats.dropped_by_reason == {mplog.Reason.NO_EMERGENCY: 1}
    assert "emergency, except 1 record lost: it is full" in capfd.readouterr().err
    with mplog.LogServer(log, level="INFO", format="%(message).9s"):
        pass
    assert [line for line in lines(log) if "mplog:" not in line] == sent


def test_what_is_lost_is_counted_though_nothing_was_ever_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts of processes are in `stats` also if no logging process has counted anything."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / "emergency", 20_000)
    server = mplog.LogServer(tmp_path / "app.log", level="INFO", overflow=overflow).start()
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_running, "it is given up")
    logging.raiseExceptions, before = False, logging.raiseExceptions
    try:
        for number in range(100):
            logging.error("%d %s", number, "x" * 500)
    finally:
        logging.raiseExceptions = before
    lost = server.stats().dropped
    assert 0 < lost < 100
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert server.stats().dropped == lost


def test_supervisor_without_memory_for_all_of_it_saves_it_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is left is many times what the supervisor has memory for."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    size = 2**25
    sink = mplog.HandlerSink(lambda: BlockedHandler(gate, tmp_path / "slow.log"))
    server = mplog.LogServer(tmp_path / "app.log", sink, level="INFO", format="%(message).9s", buffer_size=size).start()
    supervisor = psutil.Process(server.pid).ppid()
    sent = [f"{number:09}" for number in range(10_000)]
    for text in sent:
        logging.info("%s%s", text, "x" * 1500)
    gate.wait_until_reached()
    fill = 3 * size + COUNTS_SIZE  # of which pages are mapped that it must have
    limit = psutil.Process(supervisor).memory_info().vms + fill + 8 * 2**20
    resource.prlimit(supervisor, resource.RLIMIT_AS, (limit, limit))
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_running, "it is given up")
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    err = capfd.readouterr().err
    assert re.search("what is left is in .*emergency$", err, re.MULTILINE), err
    with mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message).9s"):
        pass
    assert [line for line in lines(tmp_path / "app.log") if "mplog:" not in line] == sent


@pytest.mark.parametrize("size", [100, 150, 200, 2**20])
def test_what_may_be_in_the_log_already_always_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However full the emergency file is, what was written and not committed is in each file once in the end."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    overflow = mplog.Overflow.block().with_emergency_file(tmp_path / "emergency", size)
    logs = [tmp_path / f"{name}.log" for name in "abcd"]
    options: dict[str, Any] = {"level": "INFO", "format": "%(message)s"}
    monkeypatch.setenv(VARIABLE, "after write")
    server = mplog.LogServer(*logs, overflow=overflow, **options).start()
    monkeypatch.delenv(VARIABLE)
    logging.info("one")
    wait_until(lambda: not server.is_running, "it is given up")
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert [lines(log) for log in logs] == [["one"]] * 4
    with mplog.LogServer(*logs, overflow=overflow.with_emergency_file(tmp_path / "emergency", 2**20), **options):
        pass
    assert [lines(log) for log in logs] == [["one"]] * 4


@pytest.mark.parametrize("source", ["queue", "emergency file"])
def test_what_was_written_and_not_committed_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The last logging process dies after it has written a batch and before it notes that: the next server takes the
    batch back, and writes it again."""
    log = tmp_path / "app.log"
    sent = [str(number) for number in range(100)]
    options: dict[str, Any] = {"level": "INFO", "format": "%(message)s"}
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", NONE)
    if source == "emergency file":
        server = mplog.LogServer(log, **options).start()
        stop_all_threads(server.pid)
        for text in sent[:50]:
            logging.info(text)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_running, "it is given up")
        for text in sent[50:]:
            logging.info(text)
        with pytest.raises(mplog.LoggingProcessDiedError):
            server.stop()
    monkeypatch.setenv(VARIABLE, "after write")
    server = mplog.LogServer(log, **options).start()
    monkeypatch.delenv(VARIABLE)
    if source == "queue":
        for text in sent:
            logging.info(text)
    wait_until(lambda: not server.is_running, "it is given up")
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert set(lines(log)) & set(sent), "a batch was written"
    with mplog.LogServer(log, **options):
        logging.info("next")
    assert [line for line in lines(log) if "mplog:" not in line] == [*sent, "next"]
    assert os.listdir(tmp_path) == ["app.log"]
