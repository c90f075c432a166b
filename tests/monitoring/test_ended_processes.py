"""Processes that have ended are counted together, exactly (promise 5; faults 5 and 18)."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from readers import in_fork
from scripts import lines

import mplog
from mplog.monitoring import ended_processes, statistics
from mplog.monitoring.count_file import read_rows
from mplog.monitoring.ended_processes import EndedProcesses
from mplog.monitoring.loss_reader import LossReader
from mplog.monitoring.numbers import Numbers
from mplog.monitoring.statistics import Stats, read_counts, to_stats
from mplog.monitoring.tallies import Tallies
from mplog.queue import losses
from mplog.queue.kill_points import VARIABLE
from mplog.queue.losses import Losses, Reason
from mplog.record.layout import Entry, Origin

INFO, ERROR = logging.INFO, logging.ERROR


def directory_of_a_queue(path: Path) -> str:
    """Make what looks like one."""
    (path / "queue").touch()
    return str(path)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """What looks like the directory of a queue."""
    return directory_of_a_queue(tmp_path)


@pytest.fixture(autouse=True)
def living(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The pids that are taken for living ones."""
    living: set[int] = set()
    monkeypatch.setattr(ended_processes, "has_ended", lambda pid: pid not in living)
    return living


@pytest.fixture
def is_pid(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes this process look like one of another pid to what counts losses."""
    return lambda pid: monkeypatch.setattr(losses.os, "getpid", lambda: pid)


def files(directory: str) -> list[str]:
    """Return the names of the files of losses."""
    return sorted(name for name in os.listdir(directory) if name.startswith("losses-"))


class Logging:
    """The part of a logging process that counts losses. It can be killed between any two steps.

    Attributes:
        lines: what is in the log, as (pid, count); lines that are not committed are gone after a kill.
    """

    def __init__(self, memory: int, directory: str, living: set[int], before: Logging | None = None) -> None:
        self.directory = directory
        self.serial = before.serial if before else 0
        self.lines = list(before.lines) if before else []
        self.tallies = Tallies(memory, directory, self.serial)
        self.numbers = Numbers(self.tallies)
        self.losses = LossReader(directory, self.tallies, lambda pid: pid not in living)
        self.ended = EndedProcesses(self.tallies, self.numbers, self.losses)
        self._said: list[tuple[int, int]] = []

    def receive(self, pid: int, numbers: list[int]) -> None:
        """Have records of a process arrive with these numbers."""
        origin = Origin(pid, "a", INFO, "X", "w", None)
        batch: list[Entry] = [((number, "x"), origin) for number in numbers]
        counts = Counter(origin for _, origin in batch)
        self.tallies.count_records(counts)
        self.numbers.count(batch, counts)

    def check(self) -> None:
        """Do what is done once a second."""
        self._said = [(each.pid, each.lost) for each in self.losses.new()]
        self.ended.fold(0)
        self.ended.look(set(), lambda: 0)

    def commit(self) -> None:
        """Make all counts valid; the files of processes that have ended are still there."""
        self.tallies.write()
        self.serial = self.tallies.serial
        self.tallies.publish()
        self.lines += self._said
        self._said = []

    def round(self) -> None:
        """Check, commit and remove files."""
        self.check()
        self.commit()
        self.losses.remove_files()

    def stats(self) -> Stats:
        """Return what the program sees."""
        return to_stats(*read_counts(self.directory))


def test_files_of_the_dead_go_and_their_counts_stay(memory: int, directory: str, living: set[int], is_pid: Any) -> None:
    """What ended processes have lost is still counted by process when their files are gone; others keep their files."""
    logging_process = Logging(memory, directory, living)
    living.update((11, 12))
    for pid in (11, 12):
        is_pid(pid)
        mine = Losses(directory)
        for _ in range(pid):
            mine.count(INFO, Reason.QUEUE_FULL, f"w{pid}")
        mine.count(ERROR, Reason.EMERGENCY, f"w{pid}")
        logging_process.receive(pid, [1, pid + 5])
    logging_process.round()
    before = logging_process.stats()
    living.remove(11)
    for _ in range(3):
        logging_process.round()
    assert files(directory) == [name for name in files(directory) if name.startswith("losses-12-")] != []
    after = logging_process.stats()
    key = {(each.pid, each.name): each.counts for each in after.lost}
    assert key == {(each.pid, each.name): each.counts for each in before.lost}
    assert key[11, "w11"] == {(INFO, Reason.QUEUE_FULL): 11, (ERROR, Reason.EMERGENCY): 1}
    assert after.missing == before.missing == {11: 14, 12: 15}
    assert after.unexplained == before.unexplained == {11: 2, 12: 2}
    assert logging_process.lines == [(11, 11), (12, 12)]
    assert not logging_process.ended.is_pending
    kinds = {key[0] for key, count in read_rows(directory).items() if 11 in key and count}
    assert kinds == {"received", "lost by ended", "missing of ended", "unexplained of ended", "ended"}


@pytest.mark.parametrize("seed", range(6))
def test_folding_is_exact_through_kills(memory: int, directory: str, living: set[int], is_pid: Any, seed: int) -> None:
    """Wherever the logging process is killed, each loss is counted once and said once, also for a pid that is used
    again, and in the end no file is left."""
    dice = random.Random(seed)
    lost, missing = Counter[int](), Counter[int]()
    logging_process = Logging(memory, directory, living)
    running: dict[int, tuple[Losses, int]] = {}
    for step in range(200):
        pid = dice.randrange(1, 30)
        # A pid comes again when it has come round, which takes longer than to see that its process has ended.
        is_free = pid not in logging_process.ended.followed and f"losses-{pid}-" not in "".join(files(directory))
        if pid not in running and is_free:
            is_pid(pid)
            living.add(pid)
            running[pid] = Losses(directory), 1
            logging_process.receive(pid, [1])
        if pid in running:
            mine, last = running[pid]
            count = dice.randrange(4)
            is_pid(pid)
            for _ in range(count):
                mine.count(INFO, Reason.TIMEOUT, f"w{pid}")
            lost[pid] += count
            extra = dice.randrange(2)
            missing[pid] += count + extra
            running[pid] = mine, last + count + extra + 1
            # A kill takes back what was received and not committed, and it comes again: here it is committed at once.
            logging_process.receive(pid, [last + count + extra + 1])
            logging_process.tallies.write()
            logging_process.tallies.publish()
            logging_process.serial = logging_process.tallies.serial
            if dice.random() < 0.4:
                del running[pid]
                living.discard(pid)
        logging_process.check()
        ending = dice.choice(("killed", "committed", "round", "round", "round"))
        if ending != "killed":
            logging_process.commit()
        seen = logging_process.stats()
        assert (seen.dropped, sum(seen.missing.values())) == (lost.total(), missing.total()), (step, ending)
        if ending == "round":
            logging_process.losses.remove_files()
        else:
            logging_process.tallies.close()
            logging_process = Logging(memory, directory, living, logging_process)
        stats = logging_process.stats()
        assert (stats.dropped, sum(stats.missing.values())) == (lost.total(), missing.total()), (step, ending)
        assert {each.pid for each in stats.lost} == {pid for pid in lost if lost[pid]}
        assert sum(stats.unexplained.values()) == missing.total() - lost.total()
    living.clear()
    for _ in range(4):
        logging_process.round()
    assert files(directory) == []
    told = Counter[int]()
    for pid, count in logging_process.lines:
        told[pid] += count
    assert told == +lost
    assert logging_process.stats().dropped_by_reason == {Reason.TIMEOUT: lost.total()}
    assert not logging_process.tallies.of("said")
    assert lost.total() > 50
    logging_process.tallies.close()


def test_a_file_that_is_removed_while_it_is_read_counts_once(
    memory: int, directory: str, living: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the counts of a process go to the totals after its file was read, and before the totals are."""
    logging_process = Logging(memory, directory, living)
    Losses(directory).count(INFO, Reason.SHED, "w")
    rounds = iter(range(3))

    def read_late(directory: str) -> Any:
        for _ in rounds:
            logging_process.round()
        return read_rows(directory)

    monkeypatch.setattr(statistics, "read_rows", read_late)
    assert logging_process.stats().dropped == 1
    assert files(directory) == []
    assert not logging_process.ended.followed
    logging_process.tallies.close()


def test_very_many_processes_take_bounded_room(
    memory: int, directory: str, living: set[int], is_pid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After more processes than are told apart, the sums are exact, and the file does not grow."""
    monkeypatch.setattr("mplog.monitoring.tallies.COUNTED_PROCESSES", 200)
    monkeypatch.setattr("mplog.monitoring.tallies.COUNTED_ENDED", 50)
    logging_process, sizes = Logging(memory, directory, living), []
    for start in range(1, 3000, 100):
        for pid in range(start, start + 100):
            is_pid(pid)
            Losses(directory).count(INFO, Reason.SHED, f"w{pid}")
            logging_process.receive(pid, [1, 3, 5])
        for _ in range(2):
            logging_process.round()
        sizes.append(os.stat(os.path.join(directory, "statistics")).st_size)
    stats = logging_process.stats()
    assert (stats.received, stats.dropped) == (9000, 3000)
    assert (sum(stats.missing.values()), sum(stats.unexplained.values())) == (6000, 3000)
    assert len(stats.lost) == len(stats.missing) == 51
    (others,) = [each for each in stats.lost if each.pid == 0]
    assert (others.name, others.lost, stats.missing[0], stats.unexplained[0]) == ("others", 2950, 5900, 2950)
    assert not logging_process.ended.followed
    assert sizes[10:] == [sizes[10]] * len(sizes[10:])
    logging_process.tallies.close()


def test_what_was_dropped_out_of_the_buffers_is_folded(memory: int, directory: str, living: set[int]) -> None:
    """Also for a process of which not one record has come through, and not before it is said."""
    logging_process = Logging(memory, directory, living)
    tallies, counts = logging_process.tallies, {(INFO, Reason.OLDEST): 3}
    living.add(8)
    for pid in (7, 8):
        tallies.count_lost(mplog.ProcessLosses(pid, f"w{pid}", counts))
        tallies.set(("said of buffers", pid, f"w{pid}", INFO, int(Reason.OLDEST)), 3)
    for _ in range(3):
        logging_process.round()
    assert logging_process.ended.followed == {8}
    kinds = {(kind, pid) for kind, pid, *_ in read_rows(directory)}
    assert kinds == {("lost", 8), ("said of buffers", 8), ("lost by ended", 7)}
    lost = logging_process.stats().lost
    assert sorted((each.pid, each.name, each.counts) for each in lost) == [(7, "w7", counts), (8, "w8", counts)]
    logging_process.tallies.close()


def test_a_pid_that_comes_again_hides_no_gap(memory: int, directory: str, living: set[int]) -> None:
    """The numbers of a process are its own, even if an earlier process with its pid has sent more."""
    logging_process = Logging(memory, directory, living)
    logging_process.receive(7, list(range(1, 101)))
    for _ in range(2):
        logging_process.round()
    living.add(7)
    logging_process.receive(7, [1, 2, 9])
    assert to_stats(logging_process.tallies.values, {}).missing == {7: 6}
    logging_process.tallies.close()


def test_a_pid_that_comes_again_at_once_is_not_taken_for_dead(memory: int, directory: str, living: set[int]) -> None:
    """If a new process has the pid before the dead one is folded, both are folded later, and nothing is missing."""
    logging_process = Logging(memory, directory, living)
    logging_process.receive(7, list(range(1, 101)))
    logging_process.round()  # finds that it has ended
    living.add(7)
    logging_process.receive(7, list(range(1, 6)))
    logging_process.round()
    logging_process.receive(7, [6, 7])
    assert to_stats(logging_process.tallies.values, {}).missing == {}
    assert not logging_process.ended.is_pending
    living.remove(7)
    for _ in range(2):
        logging_process.round()
    assert to_stats(logging_process.tallies.values, {}).missing == {}
    assert not logging_process.ended.followed
    logging_process.tallies.close()


def test_one_that_was_taken_for_dead_goes_on(memory: int, directory: str, living: set[int]) -> None:
    """A process of another container seems to have ended, since its pid means nothing here; nothing is missing."""
    logging_process = Logging(memory, directory, living)
    logging_process.receive(7, [1, 2, 4])
    for _ in range(2):
        logging_process.round()
    logging_process.tallies.close()
    logging_process = Logging(memory, directory, living, logging_process)
    logging_process.receive(7, [6, 7, 5])
    assert to_stats(logging_process.tallies.values, {}).missing == {7: 1}
    logging_process.receive(7, [10])
    assert to_stats(logging_process.tallies.values, {}).missing == {7: 3}
    logging_process.tallies.close()


def test_one_that_was_passed_over_is_followed_from_there(
    memory: int, directory: str, living: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If too many processes log at a time, numbers that came before there was room for a process are not missing."""
    monkeypatch.setattr("mplog.monitoring.tallies.COUNTED_PROCESSES", 1)
    logging_process = Logging(memory, directory, living)
    living.update((7, 8))
    logging_process.receive(7, [1])
    logging_process.receive(8, [1, 2, 3])
    living.remove(7)
    for _ in range(2):
        logging_process.round()
    logging_process.receive(8, [4, 6])
    assert to_stats(logging_process.tallies.values, {}).missing == {8: 1}
    logging_process.tallies.close()


def assert_file_stays(logging_process: Logging, directory: str) -> None:
    """Assert that what an ended process has lost is counted, and neither folded nor waiting for that."""
    Losses(directory).count(INFO, Reason.SHED, "w")
    for _ in range(3):
        logging_process.round()
    assert len(files(directory)) == 1
    assert not logging_process.ended.is_pending
    assert logging_process.stats().dropped == 1
    logging_process.tallies.close()


def test_the_file_of_one_in_another_container_stays(
    memory: int, directory: str, living: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose pid is one of another PID namespace is not removed, whether that pid is in use here or not."""
    logging_process = Logging(memory, directory, living)
    monkeypatch.setattr(losses, "pid_namespace", lambda: 1)
    assert_file_stays(logging_process, directory)


def test_without_room_nothing_is_folded(memory: int, directory: str, living: set[int]) -> None:
    """Where there is no room for more counts, the files stay, and so do their counts."""
    logging_process, numbers = Logging(memory, directory, living), itertools.count()
    for filler in ("filler" * 100, "filler"):
        while logging_process.tallies.reserve((filler, next(numbers))):
            pass
    assert_file_stays(logging_process, directory)


# --- whole servers ---


def lose(queue: mplog.LogQueue, initializer: Any, count: int, name: str) -> None:
    """Runs in a fork: log twice, and lose some in between."""
    initializer()
    logging.info("one of %s", name)
    for _ in range(count):
        next(queue.sequence)
        queue.losses.count(INFO, Reason.QUEUE_FULL, name)
    logging.info("two of %s", name)


@pytest.mark.processes
@pytest.mark.parametrize("point", [None, "before remove:1", "before commit:6", "after commit:6", "in state:9"])
def test_a_server_folds_what_short_workers_have_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str | None
) -> None:
    """Files of ended workers are removed while the server runs, killed or not; the log and the counts stay exact."""
    monkeypatch.undo()
    if point:
        monkeypatch.setenv(VARIABLE, point)
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        first, directory = server.pid, server.queue.directory
        for number in range(12):
            in_fork(lose, server.queue, server.initializer, number + 1, f"w{number}")
        wait_until(lambda: logging.info("on") or not files(directory), "the files are gone")
        if point:
            wait_until(lambda: logging.info("on") or server.pid != first, "it has been killed")
        server.flush()
        seen = server.stats()
        stats = server.stop()
    for each in (seen, stats):
        assert each.dropped == sum(range(13))
        assert each.unexplained == {}
        assert sum(each.missing.values()) == sum(range(13))
        assert sorted(losses.lost for losses in each.lost) == list(range(1, 13))
    told = [line for line in lines(log) if "dropped by" in line]
    assert len(told) == 12
    assert stats.restarts == bool(point)
    assert all("0 records lost" in line for line in lines(log) if "restarted as" in line)
