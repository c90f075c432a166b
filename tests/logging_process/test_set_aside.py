"""A record that kills the logging process is set aside, and all others are written (fault 37)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from memory_groups import memory_group
from oracle import Producer, acknowledged, verdict, wait_until
from scripts import FORMAT, lines, process_has_ended

import mplog
from mplog.logging_process.messages import Patience
from mplog.logging_process.suspects import DEATHS, MOST_IN_A_ROW, Place, Suspect
from mplog.monitoring.process import memory_kills
from mplog.queue import kill_points
from mplog.queue.emergency import EmergencyFile
from mplog.queue.losses import Reason
from mplog.record import frame
from mplog.record.encoding import encode

pytestmark = pytest.mark.processes

#: At most so many logging processes die of one record: those that tell the place, one that was there before, and those
#: that handle the record alone.
MOST_DEATHS = 2 * DEATHS + 1

DEADLY: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(0),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "SIGABRT": lambda: os.kill(os.getpid(), signal.SIGABRT),
}


class Fatal(logging.Formatter):
    """Ends its process when it formats a text with "lethal" in it."""

    def __init__(self, how: str = "exit", format: str = "%(message)s") -> None:
        super().__init__(format)
        self.how = how

    def format(self, record: logging.LogRecord) -> str:
        """Do it."""
        if "lethal" in record.getMessage():
            DEADLY[self.how]()
        return super().format(record)


class FatalHandler(logging.Handler):
    """Ends its process when it gets a text with "lethal" in it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        Fatal("SIGSEGV").format(record)


def emergency_of(log: Path) -> Path:
    """Return the path of the emergency file of a log."""
    return log.with_name(f".{log.name}.emergency")


def set_aside(stats: mplog.Stats) -> int:
    """Return how many records were set aside; nothing else may be missing."""
    assert (stats.failed, stats.broken, stats.skipped, stats.unexplained) == ({}, 0, 0, {})
    assert stats.dropped == stats.dropped_by_reason.get(Reason.SET_ASIDE, 0)
    return stats.dropped


def written(log: Path) -> list[str]:
    """Return the lines that are not mplog's own."""
    return [line for line in lines(log) if "mplog:" not in line]


def sinks(log: Path, where: str) -> list[mplog.Sink]:
    """Return sinks of which one is deadly: the file itself, or another that comes after it."""
    if where == "handler":
        return [mplog.FileSink(log, format="%(message)s"), mplog.HandlerSink(FatalHandler)]
    return [mplog.FileSink(log, format=Fatal(where))]


@pytest.mark.parametrize("where", ["exit", "SIGSEGV", "SIGABRT", "handler"])
def test_deadly_records_are_set_aside_and_the_others_written(tmp_path: Path, where: str) -> None:
    """Records that kill the logging process are set aside, counted, said and kept; each other one is written once."""
    log, expected, deadly = tmp_path / "app.log", [], []
    with mplog.LogServer(*sinks(log, where), level="INFO") as server:
        for number in range(300):
            text = f"line {number}"
            if number == 100:
                text = f"lethal {number}"
            elif number == 101:
                text = f"lethal {number} {'x' * 20_000}"
            (deadly if "lethal" in text else expected).append(text)
            logging.warning(text)
        server.flush(120)
        stats = server.stats()
    assert written(log) == expected
    assert set_aside(stats) == len(deadly)
    assert stats.restarts <= len(deadly) * MOST_DEATHS
    # Of the long one, which is not decoded, neither the process's name nor the level is known.
    counts = Counter((losses.name, level) for losses in stats.lost for level, _ in losses.counts for _ in [0])
    assert counts == {("MainProcess", logging.WARNING): 1, ("", 0): 1}
    kept = emergency_of(log).with_suffix(".emergency.set-aside")
    said = [line for line in lines(log) if f"set aside in {kept}: the logging process died 3 times" in line]
    assert all(re.match(rf"mplog: 1 record of [\d,]+ bytes by .*pid {os.getpid()}\)? set aside", each) for each in said)
    assert len(said) == len(deadly)
    kept.rename(emergency_of(log))
    with mplog.LogServer(log, level="INFO", format="%(message)s") as following:
        following.flush()
    assert written(log) == [*expected, *deadly]


def rescue(log: Path, texts: Iterable[str]) -> EmergencyFile:
    """Put records into the emergency file of a log."""
    emergency = EmergencyFile(os.fspath(emergency_of(log)), 2**28)
    for text in texts:
        record = logging.LogRecord("name", logging.ERROR, "f", 1, text, None, None)
        assert emergency.append(frame.whole(frame.RECORD, encode(record)))
    return emergency


def test_deadly_record_in_the_emergency_file(tmp_path: Path) -> None:
    """A record that was rescued and kills the logging process is set aside like any other."""
    log = tmp_path / "app.log"
    texts = ["lethal", *(f"line {number} {'x' * 5000}" for number in range(20)), "lethal " + 2**21 * "x", "last"]
    emergency = rescue(log, texts)
    with mplog.LogServer(*sinks(log, "SIGSEGV"), level="INFO") as server:
        wait_until(lambda: process_has_ended(server.pid) or server.stats().restarts, "it dies of the first")
        logging.info("on")
        wait_until(lambda: "last" in lines(log), "the emergency file is merged", 60)
        server.flush(120)
        stats = server.stats()
        assert set_aside(stats) == 2
        assert stats.restarts <= MOST_DEATHS + DEATHS  # the second is at the place that the first has told
    assert sorted(written(log)) == sorted(["on", *(text for text in texts if "lethal" not in text)])
    assert not emergency_of(log).exists()
    said = [line for line in lines(log) if "set aside" in line]
    assert [f"in {emergency.path}.set-aside" in line for line in said] == [
        True,
        False,
    ]  # the second is too long for that


class Killed(logging.Handler):
    """Makes its process kill itself at a point, if it is the n-th process that opens the handler."""

    def __init__(self, point: str, opened: str, which: int) -> None:
        super().__init__()
        with open(opened, "ab") as file:
            file.write(b".")
        if os.path.getsize(opened) == which:
            kill_points.arm(point)

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    "point",
    ["in state", "in state:2", "in state:3", "before commit:2", "before commit:3", "after commit:2", "after write",
     "after say"],
)  # fmt: skip
@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("is_rescued", [False, True])
def test_killed_while_it_sets_a_record_aside(tmp_path: Path, point: str, is_long: bool, is_rescued: bool) -> None:
    """A process that is killed while it sets a record aside leaves that to the next one, which counts it once."""
    log, opened = tmp_path / "app.log", tmp_path / "opened"
    # The place in the emergency file is known from the first process on, that in the queue from the second.
    setting_aside = MOST_DEATHS + (not is_rescued)

    def killed() -> logging.Handler:
        return Killed(point, str(opened), setting_aside)

    with mplog.LogServer(*sinks(log, "exit"), mplog.HandlerSink(killed), level="INFO") as server:
        logging.info("before")
        server.flush()
        texts = ["line", "lethal" + " x" * 10_000 * is_long, "another"]
        if is_rescued:
            rescue(log, texts)
        else:
            for text in texts:
                logging.info(text)
        server.flush(120)
        logging.info("after")
        server.flush(120)
        stats = server.stats()
    assert written(log) == ["before", "line", "another", "after"]
    assert set_aside(stats) == 1
    assert len([line for line in lines(log) if "1 record" in line and "set aside" in line]) == 1
    assert opened.stat().st_size > setting_aside  # it was killed there


def test_kills_at_random_beside_deadly_records(tmp_path: Path) -> None:
    """While the logging process is killed again and again, only what is deadly is set aside, and nothing is lost."""
    chance, log, deadly = random.Random(1), tmp_path / "app.log", 2
    context = multiprocessing.get_context("fork")
    ending = context.Event()

    def produce(initializer: Any) -> None:
        initializer()
        producer = Producer(tmp_path, "worker")
        while not ending.is_set():
            producer.log(chance.choice((20, 1000, 20_000)))

    with mplog.LogServer(mplog.FileSink(log, format=Fatal("exit", FORMAT)), level="INFO") as server:
        worker = context.Process(target=produce, args=(server.initializer,))
        worker.start()
        for number in range(20):
            before = acknowledged(tmp_path, "worker")
            wait_until(lambda before=before: acknowledged(tmp_path, "worker") > before, "the worker logs on", 60)
            if number % 10 == 0:
                logging.info("lethal")
            pid = server.pid
            wait_until(lambda: chance.random() < 0.2, "any moment")
            if not process_has_ended(pid):
                os.kill(pid, signal.SIGKILL)
        ending.set()
        worker.join(60)
        assert worker.exitcode == 0
        server.flush(120)
        stats = server.stats()
    found = verdict(log, tmp_path)
    assert found.clean, found
    assert set_aside(stats) == deadly


class Held(logging.Handler):
    """Holds up its process for as long as a file is there."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        if record.getMessage() == "held":
            with open(f"{self.path}-{os.getpid()}", "wb"):
                pass
            wait_until(lambda: not os.path.exists(self.path), "the test lets it go on")


@pytest.mark.skipif(memory_kills() is None, reason="the kernel does not tell kills for lack of memory from others")
def test_kills_from_outside_set_nothing_aside(tmp_path: Path) -> None:
    """However often the logging process is killed while it handles one record alone, that record is written."""
    log, hold, held = tmp_path / "app.log", tmp_path / "hold", []
    hold.touch()
    file = mplog.FileSink(log, format="%(message)s")
    with mplog.LogServer(file, mplog.HandlerSink(lambda: Held(str(hold))), level="INFO") as server:
        for text in ("before", "held", "after"):
            logging.info(text)
        for _ in range(MOST_DEATHS + 1):
            wait_until(
                lambda: server.pid not in held and Path(f"{hold}-{server.pid}").exists(), "the next process is held", 60
            )
            held.append(server.pid)
            os.kill(server.pid, signal.SIGKILL)
        hold.unlink()
        server.flush(120)
        assert set_aside(server.stats()) == 0
    assert written(log) == ["before", "held", "after"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_sink_that_every_record_kills_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one record after the other is deadly, a few are set aside; all others wait for the next server."""
    patience = Patience(at_once=5, first_pause=0.01, longest_pause=0.02, restarts=7, seconds=0.2)
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", patience)
    log, texts = tmp_path / "app.log", [f"lethal {number}" for number in range(20)]
    texts[15:17] = [f"{text} {'x' * 20_000}" for text in texts[15:17]]
    server = mplog.LogServer(*sinks(log, "exit"), level="INFO").start()
    supervisor = psutil.Process(server.pid).ppid()
    for text in texts:
        logging.info(text)
    wait_until(lambda: process_has_ended(supervisor), "the supervisor has given up", 200)
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    with mplog.LogServer(log, level="INFO", format="%(message)s") as following:
        following.flush()
    assert written(log) == texts[MOST_IN_A_ROW:]


def test_only_deaths_of_one_message_alone_count() -> None:
    """A message is deadly after deaths with it alone that were no kills from outside, and not before."""

    def restarted(before: Suspect, position: int, *, has_crashed: bool = True) -> Suspect:
        return Suspect(before.place, position, 100, has_crashed=has_crashed)

    suspect = Suspect(Place(), 7, 100, has_crashed=False)
    for _ in range(DEATHS):
        assert not suspect.is_careful
        suspect = restarted(suspect, 7)
    assert suspect.is_careful
    suspect.begin()
    suspect.end(17, 10, is_set_aside=False)
    for _ in range(3 * DEATHS):
        suspect.begin()
        suspect = restarted(suspect, 17, has_crashed=False)
        assert suspect.is_careful
        assert not suspect.is_deadly
    for _ in range(DEATHS):
        assert not suspect.is_deadly
        suspect.begin()
        suspect = restarted(suspect, 17)
    assert suspect.is_deadly
    suspect.begin()
    suspect.end(27, 10, is_set_aside=True)
    assert not suspect.is_deadly
    suspect.end(127, 100, is_set_aside=False)
    assert not suspect.is_careful
    assert not restarted(suspect, 200).is_careful


def test_deaths_of_one_message_do_not_count_for_another() -> None:
    """Where the next message is another one, as in another emergency file, it is handled alone, and not set aside."""
    suspect = Suspect(Place(b"one", DEATHS, DEATHS), b"one", 100, has_crashed=True)
    suspect.move(b"one")
    assert suspect.is_deadly
    suspect.move(b"two")
    assert suspect.is_careful
    assert not suspect.is_deadly


def test_no_more_messages_are_set_aside_if_all_are_deadly() -> None:
    """After some messages were set aside one directly after the other, none is, until another one was handled."""
    suspect = Suspect(Place(7, DEATHS), 7, 10_000, has_crashed=True)
    for position in range(MOST_IN_A_ROW):
        suspect.place.tries = DEATHS
        assert suspect.is_deadly
        suspect.end(position, 10, is_set_aside=True)
    suspect.place.tries = DEATHS
    assert suspect.is_careful
    assert not suspect.is_deadly
    suspect.end(20, 10, is_set_aside=False)
    suspect.place.tries = DEATHS
    assert suspect.is_deadly


# --- memory ---

LONG = 60_000_000


def _texts_with_a_long_one() -> Iterator[str]:
    yield from (f"line {number}" for number in range(100))
    yield "x" * LONG
    yield from (f"line {number}" for number in range(100, 200))


def _log_with_a_long_one(server: mplog.LogServer) -> mplog.Stats:
    """Log a long record among others, and return what was counted when all is written."""
    for text in _texts_with_a_long_one():
        logging.info(text)
    server.flush(120)
    return server.stats()


@pytest.mark.parametrize("is_rescued", [False, True])
def test_record_that_is_too_large_for_the_memory_of_a_container(tmp_path: Path, is_rescued: bool) -> None:
    """In a container without memory for a record, it is set aside after a few kills, and the others are written."""
    log = tmp_path / "app.log"
    with memory_group(160 * 2**20) as group:
        with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
            pid = server.pid
            for process in (psutil.Process(pid).ppid(), pid):
                (group / "cgroup.procs").write_text(str(process))
            if is_rescued:
                rescue(log, _texts_with_a_long_one())
                server.flush(120)
                stats = server.stats()
            else:
                stats = _log_with_a_long_one(server)
        assert written(log) == [f"line {number}" for number in range(200)]
        assert set_aside(stats) == 1
        assert 0 < stats.restarts <= MOST_DEATHS
        (said,) = [line for line in lines(log) if "set aside" in line]
        assert re.fullmatch(
            rf"mplog: 1 record of 60,\d\d\d,\d\d\d bytes by pid {os.getpid()} set aside: .* 3 times .*", said
        )


@pytest.mark.parametrize("megabytes", [60, 120, 165, 400])
def test_record_for_which_there_is_no_memory(tmp_path: Path, megabytes: int) -> None:
    """With a limit on memory (ulimit -v), a long record is written or counted once, and all others are written."""
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        pid = server.pid
        for process in (psutil.Process(pid).ppid(), pid):
            limit = psutil.Process(process).memory_info().vms + megabytes * 10**6
            resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))  # type: ignore[attr-defined, unused-ignore]
        stats = _log_with_a_long_one(server)
    found = written(log)
    assert [line for line in found if len(line) < LONG] == [f"line {number}" for number in range(200)]
    assert len(found) - 200 + sum(stats.failed.values()) + stats.dropped == 1
    assert (stats.broken, stats.skipped, stats.unexplained) == (0, 0, {})
