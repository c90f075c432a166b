"""What the logging process counts: each count belongs to a commit, whichever process is killed (promise 5; fault 5)."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
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


def test_counts_are_read_without_asking(memory: int, directory: str) -> None:
    """Any process can read what is written, with names of any kind and values of any size."""
    assert read_rows(directory) == {}
    tallies = Tallies(memory, directory)
    expected = {("received", "wörker", 711, 20): 7, ("failed", "<x" * 500): 1, ("last", 2**32): 2**63 - 1, ("a",): -5}
    for key, count in expected.items():
        tallies.add(key, count)
    tallies.write()
    assert read_rows(directory) == {}, "nothing before it is committed"
    tallies.publish()
    assert read_rows(directory) == expected == tallies.values
    tallies.set(("last", 2**32), 2**70)
    tallies.write()
    tallies.publish()
    assert read_rows(directory)["last", 2**32] == 2**63 - 1
    assert os.stat(os.path.join(directory, "statistics")).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("seed", range(5))
def test_what_was_not_committed_is_taken_back(memory: int, directory: str, seed: int) -> None:
    """Opening the file with the number of a commit gives the counts of that commit, however often."""
    dice, committed, serial = random.Random(seed), Counter[Any](), 0
    for _ in range(60):
        tallies = Tallies(memory, directory, serial)
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


def test_a_kill_within_a_write_changes_nothing(memory: int, directory: str) -> None:
    """Wherever in a write it happens, the counts are those of the last commit."""
    keys = [("received", "w", pid, 20) for pid in range(50)]
    file = CountFile(memory, directory, 0)
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
        file = CountFile(memory, directory, 1)
        assert file.counts() == Counter(keys)
        file.words = Words(file.words, room)  # type: ignore[assignment]
        with pytest.raises(Killed):
            file.write(dict.fromkeys([*keys, ("new", room)], 2), 2)
        file.close()


def test_what_is_over_leaves_its_room(memory: int, directory: str) -> None:
    """Many processes that are watched one after the other take no more room than one."""
    tallies = Tallies(memory, directory)
    for pid in range(5000):
        tallies.add((Tallies.WATCHED, pid, f"worker {pid:4d}"))
        tallies.write()
        tallies.set((Tallies.WATCHED, pid, f"worker {pid:4d}"), 0)
    tallies.write()
    tallies.write()
    tallies.publish()
    assert os.stat(os.path.join(directory, "statistics")).st_size < 2**10
    assert len(tallies.values) <= 1
    tallies.close()
    assert +Tallies(memory, directory, tallies.serial).values == {}


def test_readers_are_told_of_a_change(memory: int, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader notices that rows are being written, wherever in the file they are; rows side by side take one call."""
    file, written = CountFile(memory, directory, 0), []

    def write_at(fd: int, data: memoryview, position: int) -> None:
        os.pwrite(fd, data, position)
        words = memoryview(Path(directory, "statistics").read_bytes().ljust(24, b"\0")).cast("q")
        written.append((position, words[count_file.BEGUN] != words[count_file.ENDED]))

    monkeypatch.setattr(count_file, "write_at", write_at)
    file.write({("a", number): 1 for number in range(1000)}, 1)
    file.publish()
    assert written == [(0, True), (64, True), (16, False)]
    written.clear()
    file.write(dict.fromkeys([("a", 3), ("a", 5), ("a", 800), ("a", 801)], 2), 2)
    file.publish()
    assert written == [(0, True), (64 * 4, True), (64 * 801, True), (16, False)]
    assert Counter(read_rows(directory).values()) == {1: 996, 2: 4}
    file.close()


def test_a_file_that_cannot_be_written_falls_behind(
    memory: int, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails, nothing is raised, no count is lost, and readers see the counts with a later call."""
    monkeypatch.setattr(count_file, "PAUSE", 0.0)
    key, last = ("a",), 0
    tallies = Tallies(memory, directory)
    for failing in range(4):
        calls = iter(range(9))

        def write_at(fd: int, data: memoryview, position: int, failing: int = failing, calls: Any = calls) -> None:
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            os.pwrite(fd, data, position)

        with monkeypatch.context() as full:
            full.setattr(count_file, "write_at", write_at)
            tallies.add(key, failing + 1)
            tallies.write()
            tallies.publish()
            assert tallies.is_behind == (failing < 3)
            assert read_rows(directory).get(key, 0) in (last, tallies.values[key])
        again = Tallies(memory, directory, tallies.serial)
        assert again.values == {key: tallies.values[key]}, "the next logging process has it"
        again.close()
        tallies.publish()
        assert not tallies.is_behind
        last = read_rows(directory)[key]
        assert last == tallies.values[key]


def test_a_file_that_is_removed_is_made_again(memory: int, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a later commit, others see all counts again."""
    monkeypatch.setattr(count_file, "_LOOK_SECONDS", 0.0)
    tallies = Tallies(memory, directory)
    for number in range(2):
        tallies.add(("a", number))
        tallies.write()
        tallies.publish()
        os.unlink(os.path.join(directory, "statistics"))
    tallies.add(("a", 2))
    tallies.write()
    tallies.publish()
    assert read_rows(directory) == {("a", 0): 1, ("a", 1): 1, ("a", 2): 1}


def test_one_that_comes_again_is_not_forgotten(memory: int, directory: str) -> None:
    """A count that was 0 for a moment is what it is set to."""
    tallies = Tallies(memory, directory)
    key = (Tallies.WATCHED, 1, "w")
    for value in (1, 0, 1):
        tallies.set(key, value)
        tallies.write()
        tallies.publish()
    assert read_rows(directory) == {key: 1} == tallies.values


def test_without_room_counts_are_kept_in_the_process(
    memory: int, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts for which there is no row, or no memory at all, are counted all the same, and do not survive a kill."""
    tallies = Tallies(memory, directory)
    for number in range(3000):
        tallies.add((f"{number}" * 1000,), 1)
    tallies.write()
    tallies.publish()
    assert len(tallies.values) == 3000
    again = Tallies(memory, directory, tallies.serial)
    assert 1000 < len(read_rows(directory)) == len(again.values) < 3000
    monkeypatch.setattr("mplog.queue.buffer_memory.mmap.mmap", no_memory)
    without = Tallies(memory, directory, tallies.serial)
    without.add(("a",))
    without.write()
    without.publish()
    assert without.values == {("a",): 1}
    assert not without.is_behind


def no_memory(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_without_a_directory_counts_survive_a_kill(memory: int, directory: str) -> None:
    """Where the file cannot be made, nobody sees the counts, and the next logging process has them."""
    tallies = Tallies(memory, os.path.join(directory, "missing"))
    tallies.add(("a",))
    tallies.write()
    tallies.publish()
    assert tallies.is_behind
    again = Tallies(memory, directory, tallies.serial)
    again.publish()
    assert read_rows(directory) == again.values == {("a",): 1}


@pytest.mark.parametrize("content", [b"", b"x" * 10, bytes(2**16), os.urandom(2**16), b"mplogst1" + b"\xff" * 2**16])
def test_garbage_in_the_file_is_no_count(memory: int, directory: str, content: bytes) -> None:
    """A file that is not one of counts gives no counts, and no exception."""
    Path(directory, "statistics").write_bytes(content)
    assert read_rows(directory) == {}
    tallies = Tallies(memory, directory)
    tallies.add(("a",))
    tallies.write()
    tallies.publish()
    assert read_rows(directory) == {("a",): 1}


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


def test_levels_off_the_wire_make_no_counters_without_bound(
    memory: int, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some number of levels on, further levels are counted as level 0, also after a restart."""
    monkeypatch.setattr("mplog.monitoring.tallies.COUNTED_LEVELS", 100)
    tallies = Tallies(memory, directory)
    for level in range(1, 201):
        if level == 150:
            tallies.write()
            tallies.close()
            tallies = Tallies(memory, directory, tallies.serial)
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
@pytest.mark.parametrize("point", ["", "after swap:1", "before commit:2", "after commit:2"])
def test_the_peak_counts_whoever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """How full the buffers were is counted, also when the process that had seen it is killed before it says so."""
    if point:
        monkeypatch.setenv(VARIABLE, point)
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", buffer_size=2 * 2**20, overflow=Overflow.drop_newest()) as server:
        first = server.pid
        stop_all_threads(first)
        number = 0
        while not server.queue.full():
            logging.info("%d %s", number, "x" * 900)
            number += 1
        os.kill(first, signal.SIGCONT)
        if point:
            wait_until(lambda: server.pid != first, "it is restarted")
        server.flush()
        stats = server.stop()
    assert stats.restarts == bool(point)
    assert stats.peak_fill > 0.9


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
