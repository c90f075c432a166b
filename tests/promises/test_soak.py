"""A random, seeded mix of the faults, of any duration (fault 32)."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import Producer, Verdict, acknowledged, verdict, wait_until
from scripts import elapsed, fill_disk

import mplog

pytestmark = pytest.mark.processes

_SIZES = (20, 100, 1000, 3000, 20_000)
_WORKERS = 3
#: Of so many records one is logged for the file on the small disk.
_RARELY = 20
_POLICIES = ("block", "drop_newest", "drop_oldest", "drop_below", "fallback")


def _flood(initializer: Any, directory: str, name: str, ending: str) -> None:
    """Runs in a worker: log lines of many lengths until told to end, or killed.

    Told by a file: an Event has a lock, and a worker killed with it would hold up all others.
    """
    initializer()
    producer, rare = Producer(directory, name), Producer(directory, f"{name}-rare")
    sizes = random.Random(name)
    for number in itertools.count():
        if os.path.exists(ending):
            return
        producer.log(sizes.choices(_SIZES, (30, 40, 20, 5, 5))[0])
        if number % _RARELY == 0:
            rare.log(logger=logging.getLogger("rare"))
        time.sleep(0.0002)


class Soak:
    """A server, workers that come and go, and faults, all determined by one seed.

    Args:
        directory: where everything is.
        disk: a small disk, which is full now and then; None to do without that fault.
        policy: what becomes of records while the queue is full.
        seed: of the chance that decides.
    """

    def __init__(self, directory: Path, disk: Path | None, policy: str, seed: int) -> None:
        directory.mkdir()
        self.directory = directory
        self.disk = disk
        self.policy = policy
        self.seed = seed
        self.chance = random.Random(seed)
        sink = mplog.FileSink(directory / "app.log", rotate="2 MB")
        rare = (disk or directory) / "rare.log"
        self.server = mplog.LogServer(
            sink,
            mplog.FileSink(rare, rotate="20 kB", logger="rare", propagate=False),
            level="INFO",
            buffer_size=2 * 2**20,  # the least there is, so that it is full soon
            overflow=mplog.Overflow.of(policy).with_emergency_file(directory / "emergency"),
        )
        self._context = multiprocessing.get_context("fork")
        self._ending = directory / "ending"
        self._names = itertools.count(1)
        self._workers: list[Any] = []
        self._faults: dict[Callable[[], None], int] = {
            self.kill_worker: 4,
            self.terminate_worker: 2,
            self.kill_server: 4,
            self.stop_server: 2,
            self.stop_worker: 1,
            self.hang_up: 1,
            self.junk: 2,
            self.fail_rotation: 2,
        }
        if disk is not None:
            self._faults[self.fill_disk] = 3
        self.done: Counter[str] = Counter()
        #: Of the logging process, of its supervisor and of this one: threads, descriptors, bytes of memory.
        self.samples: dict[str, list[tuple[int, int, int]]] = {"logging": [], "supervisor": [], "program": []}

    def run(self, seconds: float) -> mplog.Stats:
        """Make faults for so many seconds; return what was counted."""
        with self.server:
            supervisor = psutil.Process(self.server.pid).parent()
            try:
                self._employ()
                wait_until(lambda: acknowledged(self.directory, "w1"), "a worker logs")
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    self._employ()
                    self._pause(0.02, 0.3)  # the moment of the fault, which is to be any
                    (fault,) = self.chance.choices(list(self._faults), self._faults.values())
                    fault()
                    self.done[fault.__name__] += 1
                    self._sample("supervisor", supervisor)
                    self._sample("program", psutil.Process())
                    with contextlib.suppress(psutil.Error):
                        self._sample("logging", psutil.Process(self.server.pid))
                self._ending.touch()
                for worker in self._workers:
                    worker.join(60)
                    assert worker.exitcode == 0, self
                    worker.close()
                self._workers.clear()
                self.server.flush(60)
                return self.server.stop(60)
            finally:
                for worker in self._workers:
                    worker.kill()
                    worker.join(60)

    def __repr__(self) -> str:
        return f"<Soak overflow={self.policy!r} seed={self.seed} {dict(self.done)}>"

    def _employ(self) -> None:
        while len(self._workers) < _WORKERS:
            arguments = (self.server.initializer, str(self.directory), f"w{next(self._names)}", str(self._ending))
            worker = self._context.Process(target=_flood, args=arguments)
            worker.start()
            self._workers.append(worker)

    def _sample(self, name: str, process: Any) -> None:
        with contextlib.suppress(psutil.Error):
            self.samples[name].append((process.num_threads(), process.num_fds(), process.memory_info().rss))

    def _pause(self, least: float, most: float) -> None:
        """Read the statistics for some time: whatever the server's state, that does not block."""
        end = time.monotonic() + self.chance.uniform(least, most)
        while time.monotonic() < end:
            started = time.monotonic()
            stats = self.server.stats()
            assert elapsed(started) < 10, self
            assert 0 <= stats.peak_fill <= 1, self
            time.sleep(0.02)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server.pid, number)

    # --- the faults ---

    def kill_worker(self) -> None:
        """SIGKILL."""
        self._end_worker(signal.SIGKILL)

    def terminate_worker(self) -> None:
        """SIGTERM."""
        self._end_worker(signal.SIGTERM)

    def _end_worker(self, number: int) -> None:
        # Out of the list, in which a dead worker is a fault.
        worker = self._workers.pop(self.chance.randrange(len(self._workers)))
        os.kill(worker.pid, number)
        worker.join(60)
        assert worker.exitcode == -number, self
        worker.close()

    def stop_worker(self) -> None:
        """SIGSTOP a worker for a moment, wherever it is in its call."""
        worker = self.chance.choice(self._workers)
        os.kill(worker.pid, signal.SIGSTOP)
        self._pause(0.05, 0.3)
        os.kill(worker.pid, signal.SIGCONT)

    def kill_server(self) -> None:
        """SIGKILL the logging process."""
        pid = self.server.pid
        self._signal(signal.SIGKILL)
        wait_until(lambda: self.server.pid != pid or not psutil.pid_exists(pid), "the logging process is dead")

    def stop_server(self) -> None:
        """SIGSTOP the logging process for a moment."""
        pid = self.server.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._pause(0.05, 0.5)  # how long it stands still
            os.kill(pid, signal.SIGCONT)

    def hang_up(self) -> None:
        """SIGHUP: reopen the files."""
        self._signal(signal.SIGHUP)

    def junk(self) -> None:
        """Write garbage into the queue."""
        fd = os.open(self.server.queue.path, os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            os.write(fd, self.chance.choice([b"\xffmp\x01junk", b"x" * 300, b"\xffmp", bytes(4096)]))
        os.close(fd)

    def fill_disk(self) -> None:
        """Leave no room on the small disk for a moment."""
        assert self.disk is not None
        ballast = fill_disk(self.disk)
        self._pause(0.05, 0.5)
        ballast.unlink()

    def fail_rotation(self) -> None:
        """Let the logging process open no file for a moment, so that no rotation works."""
        pid = self.server.pid
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            # Nothing is closed by it: those that are open stay so, and all of these are. With fewer, poll(2) would
            # refuse to wait for four at a time, and the logging process would be replaced.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, before[1]))
            self._pause(0.05, 0.3)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    # --- what has become of it ---

    def files(self, name: str) -> list[Path]:
        """Return the files of a log, the oldest first."""
        place = self.disk if name == "rare" and self.disk else self.directory
        return [*sorted(place.glob(f"{name}.*.log")), place / f"{name}.log"]

    def verdict(self) -> Verdict:
        """Compare all files together with the acknowledgements."""
        whole = self.directory / "whole"
        with open(whole, "wb") as file:
            for path in (*self.files("app"), *self.files("rare")):
                file.write(path.read_bytes())
        return verdict(whole, self.directory)

    def said(self, pattern: str) -> list[str]:
        """Return what a pattern finds in the lines of the log's own."""
        found = []
        with open(self.directory / "whole", encoding="utf-8") as file:
            for line in file:
                match = re.search(rf"mplog: {pattern}", line)
                if match:
                    found.append(match[1])
        return found


def _soak(directory: Path, disk: Path | None, policy: str, seed: int, seconds: float) -> tuple[Soak, Verdict]:
    soak = Soak(directory, disk, policy, seed)
    stats = soak.run(seconds)
    found = soak.verdict()
    assert found.written, soak
    assert not (found.torn or found.doubled), (found, soak)
    # Records from the emergency file come after those that had room meanwhile.
    assert policy == "fallback" or not found.disordered, (found, soak)
    assert stats.received == found.written, soak
    assert sum(int(count.replace(",", "")) for count in soak.said("([0-9,]+) records? dropped by")) == stats.dropped
    # A killed worker may have learned that its last record is dropped, and have had no time to report it.
    ended = soak.done["kill_worker"] + soak.done["terminate_worker"]
    assert len(found.lost) <= stats.dropped <= len(found.lost) + ended, (found.lost[:10], stats.dropped, soak)
    if policy in ("block", "fallback"):
        assert stats.dropped == 0, (stats.lost, soak)
    assert not (directory / "emergency").exists(), soak
    return soak, found


@pytest.mark.parametrize(("policy", "seed"), list(zip(_POLICIES, itertools.count(1))))
def test_faults_at_random_lose_nothing(tmp_path: Path, small_disk: Path, policy: str, seed: int) -> None:
    """Whatever faults happen, each line is there once, whole and in order, or is counted as dropped."""
    soak, _ = _soak(tmp_path / "soak", small_disk, policy, seed, 1.5)
    assert max(threads for threads, _, _ in soak.samples["logging"]) <= 3


def test_faults_at_random_without_a_small_disk(tmp_path: Path) -> None:
    """The same on an ordinary disk, which any user has."""
    _, found = _soak(tmp_path / "soak", None, "block", 7, 1.5)
    assert found.clean, found


def _flat(values: list[int]) -> tuple[int, int]:
    """Return the median of the second tenth, when everything runs, and that of the last tenth."""
    tenth = len(values) // 10
    return round(statistics.median(values[tenth : 2 * tenth])), round(statistics.median(values[-tenth:]))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("small_disk", ["16m"], indirect=True)
def test_ten_minutes_of_faults(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for two minutes with each policy; memory, descriptors and threads stay what they are."""
    seed = int(os.environ.get("SOAK_SEED", "1"))
    for number, policy in enumerate(random.Random(seed).sample(_POLICIES, len(_POLICIES))):
        soak, found = _soak(tmp_path / policy, small_disk, policy, seed + number, 120)
        with capsys.disabled():
            print(
                f"\n{soak}: {found.written} written, {found.acknowledged} acknowledged, {len(found.lost)} dropped and "
                f"counted, {len(found.doubled)} doubled, {len(found.torn)} torn; "
                f"{len(soak.said('(.*could not be rotated)'))} rotations failed; "
                f"{len(soak.said('(.*restarted as)'))} restarts said"
            )
            for name, samples in soak.samples.items():
                threads, descriptors, memory = zip(*samples)
                print(
                    f"  {name}: threads {_flat(threads)}, at most {max(threads)}; descriptors {_flat(descriptors)}, at "
                    f"most {max(descriptors)}; MiB {[value // 2**20 for value in _flat(memory)]}, at most "
                    f"{max(memory) // 2**20}"
                )
        assert soak.said("(.*could not be rotated)")
        assert set(soak.done) == {fault.__name__ for fault in soak._faults}
        for name, samples in soak.samples.items():
            threads, descriptors, memory = zip(*samples)
            before, after = _flat(memory)
            assert after < before + 30 * 2**20, (name, before, after)
            before, after = _flat(descriptors)
            assert after <= before + 20, (name, before, after)
            assert max(memory) < 300 * 2**20, name
            assert name == "program" or (max(threads) <= 3 and max(descriptors) < 60), name
        for path in soak.files("rare"):
            path.unlink()
        del soak
        gc.collect()  # what goes with it is none of the next one's descriptors
