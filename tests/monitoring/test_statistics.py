"""What the logging process counts: each count belongs to a commit, whichever process is killed (promise 5; fault 5)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from readers import in_fork
from scripts import BlockedHandler, Gate, lines, stop_all_threads

import mplog
from mplog import Overflow
from mplog.monitoring import count_file
from mplog.monitoring.count_file import CountFile, read_rows
from mplog.monitoring.numbers import Numbers
from mplog.monitoring.statistics import to_stats
from mplog.monitoring.tallies import Tallies
from mplog.queue.kill_points import VARIABLE
from mplog.record.layout import Entry, Origin

INFO, ERROR = logging.INFO, logging.ERROR


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where the file is."""
    return str(tmp_path)


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the files that a test opens."""
    made, begin = [], Tallies.__init__

    def noted(self: Tallies, *arguments: Any) -> None:
        made.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(Tallies, "__init__", noted)
    yield
    for tallies in made:
        tallies.close()


# --- the file ---


def test_counts_are_read_without_asking(directory: str) -> None:
    """Any process can read what is written, with names of any kind and values of any size."""
    assert read_rows(directory) == {}
    tallies = Tallies(directory)
    expected = {("received", "wörker", 711, 20): 7, ("failed", "<x" * 500): 1, ("last", 2**32): 2**63 - 1, ("a",): -5}
    for key, count in expected.items():
        tallies.add(key, count)
    assert read_rows(directory) == {}, "nothing before it is written"
    tallies.write()
    assert read_rows(directory) == expected == tallies.values
    tallies.set(("last", 2**32), 2**70)
    tallies.write()
    assert read_rows(directory)["last", 2**32] == 2**63 - 1
    assert os.stat(os.path.join(directory, "statistics")).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("seed", range(5))
def test_what_was_not_committed_is_taken_back(directory: str, seed: int) -> None:
    """Opening the file with the number of a commit gives the counts of that commit, however often."""
    dice, committed, serial = random.Random(seed), Counter[Any](), 0
    for _ in range(60):
        tallies = Tallies(directory, serial)
        assert +tallies.values == +committed
        for _ in range(dice.randrange(5)):
            for _ in range(dice.randrange(4)):
                kind = dice.choice(("received", "failed", Tallies.WATCHED))
                key = (kind, "x" * dice.choice((1, 30, 100)), dice.randrange(20))
                tallies.set(key, dice.randrange(3))
            tallies.write()
            if dice.random() < 0.3:
                break  # killed between the write and the commit
            committed, serial = Counter(tallies.values), tallies.serial
        tallies.close()
    assert serial > 20
    assert len(+committed) > 5


def test_a_kill_within_a_write_changes_nothing(directory: str) -> None:
    """Wherever in a write it happens, the counts are those of the last commit."""
    keys = [("received", "w", pid, 20) for pid in range(50)]
    file = CountFile(directory, 0)
    file.write(Counter(keys), 1)
    file.close()

    class Killed(Exception):
        pass

    class Words:
        """Words of which one more write is too much."""

        def __init__(self, words: memoryview, room: int) -> None:
            self.words, self.room = words, room

        def __setitem__(self, index: int, value: int) -> None:
            if not self.room:
                raise Killed
            self.room -= 1
            self.words[index] = value

        def __getitem__(self, index: int) -> int:
            return self.words[index]

        def __len__(self) -> int:
            return len(self.words)

    for room in range(0, 105, 3):
        file = CountFile(directory, 1)
        assert file.counts() == Counter(keys)
        file.words = Words(file.words, room)  # type: ignore[assignment]
        with pytest.raises(Killed):
            file.write(dict.fromkeys([*keys, ("new", room)], 2), 2)
        file.close()


def test_what_is_over_leaves_its_room(directory: str) -> None:
    """Many processes that are watched one after the other take no more room than one."""
    tallies = Tallies(directory)
    for pid in range(5000):
        tallies.add((Tallies.WATCHED, pid, f"worker {pid:4d}"))
        tallies.write()
        tallies.set((Tallies.WATCHED, pid, f"worker {pid:4d}"), 0)
    tallies.write()
    tallies.write()
    assert os.stat(os.path.join(directory, "statistics")).st_size == 2**16
    assert len(tallies.values) <= 1
    tallies.close()
    assert +Tallies(directory, tallies.serial).values == {}


def test_room_is_made_in_a_change(directory: str) -> None:
    """A reader notices that a row is being made, which may have been that of another key."""
    file = CountFile(directory, 0)
    words, stored = file.words, []

    class Noting:
        """The words, which notes each store into a row, and whether readers are told of a change meanwhile."""

        __len__, __getitem__ = words.__len__, words.__getitem__

        def __setitem__(self, index: int, value: int) -> None:
            words[index] = value
            if index > count_file.ENDED:
                stored.append((index, words[count_file.BEGUN] != words[count_file.ENDED]))

    file.words = Noting()  # type: ignore[assignment]
    assert file.reserve(("a",))
    assert len({index for index, _ in stored}) >= 5, "the row has a length, two counts with their numbers, and a key"
    assert all(is_told for _, is_told in stored)
    assert words[count_file.BEGUN] == words[count_file.ENDED]
    file.words = words
    file.close()


def test_one_that_comes_again_is_not_forgotten(directory: str) -> None:
    """A count that was 0 for a moment is what it is set to."""
    tallies = Tallies(directory)
    key = (Tallies.WATCHED, 1, "w")
    for value in (1, 0, 1):
        tallies.set(key, value)
        tallies.write()
    assert read_rows(directory) == {key: 1} == tallies.values


def count_without_room(directory: str) -> None:
    """Runs in a child: count where a file grows no further than 64 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    tallies = Tallies(directory)
    for pid in range(3000):
        tallies.add(("received", "w", pid, 20), pid)
        tallies.write()
    assert len(tallies.values) == 2999
    assert 500 < len(read_rows(directory)) < 2999


@pytest.mark.processes
def test_a_full_disk_ends_no_counting(directory: str) -> None:
    """Counts for which the file has no room are kept in the process."""
    in_fork(count_without_room, directory)
    in_fork(lambda: Tallies(os.path.join(directory, "missing")).write())


@pytest.mark.parametrize("content", [b"", b"x" * 10, bytes(2**16), os.urandom(2**16), b"mplogst1" + b"\xff" * 2**16])
def test_garbage_in_the_file_is_no_count(directory: str, content: bytes) -> None:
    """A file that is not one of counts gives no counts, and no exception."""
    Path(directory, "statistics").write_bytes(content)
    assert read_rows(directory) == {}
    Tallies(directory).write()


# --- records ---


def entries(pid: int, numbers: list[int], level: int = INFO) -> list[Entry]:
    """Return records of a process with these numbers."""
    origin = Origin(pid, "a", level, "X", f"w{pid}", None)
    return [((number, "x"), origin) for number in numbers]


def count(tallies: Tallies, numbers: Numbers, batch: list[Entry]) -> None:
    """Count a batch."""
    counts = Counter(origin for _, origin in batch)
    tallies.count_records(counts)
    numbers.count(batch, counts)


def test_numbers_that_are_missing_are_counted() -> None:
    """In whatever order threads send, what is missing is the highest number less those that came."""
    tallies = Tallies(None)
    numbers = Numbers(tallies)
    count(tallies, numbers, [*entries(1, [1, 2, 5, 4]), *entries(2, [1]), *entries(1, [3, 9], ERROR), *entries(1, [7])])
    count(tallies, numbers, entries(3, [0, 0]))
    stats = to_stats(tallies.values, {"losses-1-0": mplog.ProcessLosses(1, "w1", {(INFO, mplog.Reason.QUEUE_FULL): 1})})
    assert stats.missing == {1: 2}
    assert stats.unexplained == {1: 1}
    assert stats.by_level == {INFO: 8, ERROR: 2}
    assert stats.by_process == {("w1", 1): 7, ("w2", 2): 1, ("w3", 3): 2}
    assert (stats.received, stats.written, stats.dropped) == (10, 10, 1)
    count(tallies, numbers, entries(1, [6]))
    assert to_stats(tallies.values, {}).missing == {1: 1}


def test_processes_off_the_wire_make_no_counters_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """From some number of processes on, further processes are counted together."""
    monkeypatch.setattr("mplog.monitoring.tallies.COUNTED_PROCESSES", 100)
    tallies = Tallies(None)
    numbers = Numbers(tallies)
    for pid in range(1, 300):
        count(tallies, numbers, entries(pid, [1, 3]))
    stats = to_stats(tallies.values, {})
    assert stats.received == 598
    assert stats.by_process["others", 0] == 398
    assert len(stats.missing) == 100


def test_levels_off_the_wire_make_no_counters_without_bound(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From some number of levels on, further levels are counted as level 0, also after a restart."""
    monkeypatch.setattr("mplog.monitoring.tallies.COUNTED_LEVELS", 100)
    tallies = Tallies(directory)
    for level in range(1, 201):
        if level == 150:
            tallies.write()
            tallies.close()
            tallies = Tallies(directory, tallies.serial)
        count(tallies, Numbers(tallies), entries(1, [level], level))
    stats = to_stats(tallies.values, {})
    assert stats.received == 200
    assert stats.by_level == {0: 100, **dict.fromkeys(range(1, 101), 1)}


# --- whole servers ---


def log_numbers(initializer: Any, count: int, filling: int, done: Any, go: Any) -> None:
    """Runs in a worker: log numbered lines, now and then an error, and one when there is room again."""
    initializer()
    for number in range(count):
        level = ERROR if number % 500 == 499 else INFO
        logging.getLogger("job").log(level, "pid=%d number=%d %s", os.getpid(), number, "x" * filling)
    done.release()
    assert go.wait(60)
    logging.getLogger("job").error("pid=%d number=%d end", os.getpid(), count)


def numbers_in(log: Path) -> dict[int, list[int]]:
    """Return the numbers in the log, by pid."""
    found: dict[int, list[int]] = {}
    for line in lines(log):
        match = re.match(r"pid=(\d+) number=(\d+) ", line)
        if match:
            found.setdefault(int(match[1]), []).append(int(match[2]))
    return found


def said_to_be_lost(log: Path) -> dict[int, int]:
    """Return how many records the log says are lost, by pid."""
    found: Counter[int] = Counter()
    for line in lines(log):
        match = re.match(r"mplog: (\d+) records? dropped by \S+ \(pid (\d+)\)", line)
        if match:
            found[int(match[2])] += int(match[1])
    return dict(found)


_POLICIES = {
    "drop_newest": Overflow.drop_newest(),
    "drop_oldest": Overflow.drop_oldest(),
    "drop_below": Overflow.drop_below("WARNING", at=0.5, timeout=0.01),
    "fallback": Overflow.fallback(),
    "block": Overflow.block(timeout=0.001),
}


@pytest.mark.processes
@pytest.mark.parametrize("kills", [0, 2], ids=["alive", "killed"])
@pytest.mark.parametrize("policy", _POLICIES)
def test_loss_lines_add_up_to_the_gaps(tmp_path: Path, gate: Gate, policy: str, kills: int) -> None:
    """Under every policy, and over restarts, what the log says is lost is what is missing: in the log, by process, in
    the numbers of the records and in the statistics, to the last one."""
    count, log = 3000, tmp_path / "slow.log"
    overflow = _POLICIES[policy].with_emergency_file(tmp_path / "emergency")
    sink = mplog.HandlerSink(lambda: BlockedHandler(gate, log), format="%(message)s")
    file = mplog.FileSink(tmp_path / "file.log", format="%(message)s")
    context = multiprocessing.get_context("fork")
    sinks = (file,) if kills else (file, sink)  # only files get a record once when it is killed
    with mplog.LogServer(*sinks, level="INFO", buffer_size=2 * 2**20, overflow=overflow) as server:
        done, go = context.Semaphore(0), context.Event()
        args = (server.initializer, count, 900, done, go)
        workers = [context.Process(target=log_numbers, args=args) for _ in range(3)]
        if kills:
            stop_all_threads(server.pid)
        for worker in workers:
            worker.start()
        for _ in range(kills):
            # The next process may be stopped with full buffers: drop_below then drops, and never fills the queue.
            wait_until(
                lambda: server.queue.full() or done.get_value() == len(workers), "the queue is full, or all is logged"
            )
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: server.pid != pid, "it is restarted")
            stop_all_threads(server.pid)
        for _ in workers:
            assert done.acquire(timeout=60)
        os.kill(server.pid, signal.SIGCONT)
        gate.open()
        server.flush(60)
        go.set()
        for worker in workers:
            worker.join(100)
            assert worker.exitcode == 0
        server.flush(60)
        seen = server.stats()
        stats = server.stop(60)
    written, pids = numbers_in(tmp_path / "file.log"), {worker.pid for worker in workers}
    missing = {pid: count + 1 - len(written[pid]) for pid in pids}
    assert {pid: len(set(numbers)) for pid, numbers in written.items()} == {
        pid: len(numbers) for pid, numbers in written.items()
    }
    assert said_to_be_lost(tmp_path / "file.log") == {pid: lost for pid, lost in missing.items() if lost}
    assert stats.unexplained == {}
    assert {losses.pid for losses in stats.lost if losses.lost} == {pid for pid, lost in missing.items() if lost}
    assert stats.dropped == sum(missing.values()) == sum(stats.dropped_by_reason.values())
    for each in (seen, stats):
        assert {pid: n for (_, pid), n in each.by_process.items()} == {pid: len(written[pid]) for pid in pids}
        assert each.by_level.keys() == {INFO, ERROR}
        assert (each.received, each.restarts) == (sum(map(len, written.values())), kills)
    assert bool(stats.dropped) == (policy != "fallback")
    gaps = {pid: sum(losses.gap for losses in stats.lost if losses.pid == pid) for pid in pids}
    assert stats.missing == {pid: gap for pid, gap in gaps.items() if gap}
    assert stats.peak_fill >= 0.5


@pytest.mark.processes
@pytest.mark.parametrize("point", ["after say", "before commit", "after commit", "before write", "in state"])
@pytest.mark.parametrize("moment", [1, 2, 3, 5])
def test_what_is_said_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, moment: int) -> None:
    """A line about losses is in the log once, whenever in saying it the logging process is killed."""
    log = tmp_path / "app.log"
    monkeypatch.setenv(VARIABLE, f"{point}:{moment}")
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        first = server.pid
        for number in range(4):
            logging.info("record %d", number)
            server.flush()
            server.queue.losses.count(INFO, mplog.Reason.QUEUE_FULL, "MainProcess")
        wait_until(lambda: logging.info("on") or server.pid != first, "it dies, and is restarted")
        server.flush()
        stats = server.stop()
    assert sum(said_to_be_lost(log).values()) == stats.dropped == 4
    assert [line for line in lines(log) if line.startswith("record")] == [f"record {number}" for number in range(4)]
    restarts = [line for line in lines(log) if "restarted as" in line]
    assert len(restarts) == stats.restarts == 1
    assert f"logging process {first} was killed by SIGKILL" in restarts[0]
    assert stats.received == len(lines(log)) - len([line for line in lines(log) if line.startswith("mplog:")])


@pytest.mark.processes
def test_losses_are_said_while_only_bytes_come(tmp_path: Path) -> None:
    """What is lost between pieces of bytes is said while the process lives, as it is between records."""
    log = tmp_path / "app.log"
    sinks = mplog.FileSink(log), mplog.RawSink(tmp_path / "raw", name="raw")
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        logging.info("a record")
        for count in range(1, 5):
            server.queue.losses.count(INFO, mplog.Reason.QUEUE_FULL, "MainProcess")
            mplog.write(b"bytes", to="raw")
            wait_until(lambda: sum(said_to_be_lost(log).values()) == count, "a loss is said")  # noqa: B023


@pytest.mark.processes
def test_counts_are_exact_over_kills(tmp_path: Path) -> None:
    """However often the logging process is killed at random, after flush() every record has been counted once."""
    dice = random.Random(5)
    with mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message)s") as server:
        sent = 0
        for round_ in range(12):
            for number in range(dice.randrange(1, 300)):
                logging.log(ERROR if number % 10 == 0 else INFO, "%d", number)
                sent += 1
            pid = server.pid
            time.sleep(dice.uniform(0, 0.01))  # the moment of the kill, which is to be any
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: server.pid != pid, "it is restarted")
            server.flush()
            stats = server.stats()
            assert (stats.received, stats.restarts) == (sent, round_ + 1)
            assert stats.by_process == {("MainProcess", os.getpid()): sent}
    assert len([line for line in lines(tmp_path / "app.log") if not line.startswith("mplog:")]) == sent
    assert server.stats().received == sent


@pytest.mark.processes
def test_a_handler_that_fails_is_counted_over_a_kill(tmp_path: Path) -> None:
    """What a handler could not write before a restart is among what it could not in the end."""

    def make() -> logging.Handler:
        handler = logging.StreamHandler()
        handler.stream = None  # type: ignore[assignment]
        return handler

    sinks = (mplog.FileSink(tmp_path / "app.log"), mplog.HandlerSink(make))
    with mplog.LogServer(*sinks, level="INFO") as server:
        for number in range(3):
            logging.info("%d", number)
        server.flush()
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid != pid, "it is restarted")
        logging.info("on")
        stats = server.stop()
    assert list(stats.failed.values()) == [4]
    assert (stats.received, stats.written) == (4, 0)
