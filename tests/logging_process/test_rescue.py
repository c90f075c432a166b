"""What is left when no logging process will come any more is saved for the next server, or counted. Fault 37."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import lines, stop_all_threads

import mplog
from mplog.logging_process import rescue
from mplog.logging_process.messages import Patience
from mplog.logging_process.rescue import Rescue
from mplog.queue import buffer_memory, fifo
from mplog.queue.buffer_memory import FIFO_SIZE
from mplog.queue.emergency import EmergencyFile
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.kill_points import VARIABLE
from mplog.record import frame

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
    emergency = EmergencyFile(str(tmp_path / "emergency"), 2**20)
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
    said = Rescue(directory, memory, emergency).save(reader, reader)
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        os.write(writer, frames("late"))
    assert fifo.pending(writer) == 0
    found = EmergencyReader(emergency.path)
    assert found.take()
    assert found.read() == frames("early", "first", "second")
    assert said == f"what is left is in {emergency.path}"  # none of these is a record
    found.close()
    close(memory)
    close(writer)


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
    assert written == [f"{number:09}" for number in range(len(written))]
    assert len(written) > 10
    assert stats.dropped_by_reason == {mplog.Reason.NO_EMERGENCY: sent - len(written)}
    assert re.search(rf"what is left is in .*emergency, except {sent - len(written):,} records lost: it is full$", said)
    assert {losses.pid for losses in stats.lost} == {os.getpid()}


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
