"""The logging process of a whole server is killed at each step of a rotation, of `drop_oldest` and of its recovery
(promise 4; fault 5)."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import Counter, Producer, verdict, wait_until
from readers import flood, running
from scripts import BlockedHandler, Gate, lines

import mplog
from mplog.queue import kill_points as faults
from mplog.queue.emergency import EmergencyFile
from mplog.queue.kill_points import VARIABLE
from mplog.queue.losses import Reason
from mplog.record import frame
from mplog.record.encoding import encode

pytestmark = pytest.mark.processes

#: What changes something on the disk.
CALLS = ("open", "write", "rename", "link", "unlink", "ftruncate", "utime", "fchmod")


class Killer(logging.Handler):
    """Kills its process at the n-th call that concerns files below a directory.

    Args:
        directory: where the files are. A file of that name and ``.now`` says which call, counted from the next record
            on; one with ``.next`` does so for the next process, from its start on. They are read once, as a record that
            is not noted as written comes again.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = str(directory)
        self.left, self.is_after = 0, False
        self._read(".next")
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def emit(self, record: logging.LogRecord) -> None:
        """Begin to count, if that was said."""
        self._read(".now")

    def _read(self, name: str) -> None:
        told = Path(self.directory + name)
        if told.exists():
            when, number = told.read_text().split()
            told.unlink()
            self.left, self.is_after = int(number) + 1, when == "after"

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(what: Any, *arguments: Any, **options: Any) -> Any:
            self.left -= self.left > 0 and self._concerns(what)
            if self.left != 1:
                return call(what, *arguments, **options)
            if self.is_after:
                with contextlib.suppress(OSError):
                    call(what, *arguments, **options)
            elif name == "write":
                call(what, arguments[0][: len(arguments[0]) // 2])
            return self.die()

        return wrapped

    def die(self) -> Any:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _concerns(self, what: Any) -> bool:
        try:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(what)
        except OSError:
            return False
        return path.startswith(self.directory + "/")


def test_killed_at_any_step_of_a_rotation(tmp_path: Path) -> None:
    """SIGKILL before and after each call that changes the disk, and again in the recovery: each record is in one of
    the files, once, whole and in order."""
    directory = tmp_path / "logs"
    directory.mkdir()
    file = mplog.FileSink(directory / "app.log", rotate="1 kB", archive="app.{index}.log")
    sent: list[str] = []
    kills = again = 0
    with mplog.LogServer(
        file, mplog.HandlerSink(lambda: Killer(directory)), level="INFO", format="%(message)s"
    ) as server:
        for call, when in ((call, when) for call in range(1, 60) for when in ("before", "after")):
            before, next_one = server.pid, Path(f"{directory}.next")
            if call % 2:
                next_one.write_text(f"{when} {call // 2 % 5 + 1}")
            Path(f"{directory}.now").write_text(f"{when} {call}")
            for _ in range(12):  # so that there is a rotation each time
                sent.append(f"{len(sent)} {'x' * 100}")
                logging.info(sent[-1])
                if len(sent) % 6 == 0:
                    server.flush()
            if server.pid == before:
                break
            kills += 1
            again += call % 2
        else:
            pytest.fail("so many calls are not made")
        # Of a kill in the middle of a loop's last calls the next one may still be about to die.
        next_one.unlink(missing_ok=True)
        stats = server.stop()
    assert kills > 12
    assert stats.restarts > kills + again // 2, "recoveries were killed as well"
    rotated = sorted(directory.glob("app.*.log"), key=lambda path: int(path.name.split(".")[1]))
    written = [line for path in [*rotated, directory / "app.log"] for line in lines(path)]
    assert [line for line in written if "x" * 100 in line] == sent
    assert sum(line.count("was killed by SIGKILL") for line in written) == stats.restarts, "each of them is said"
    assert not [path for path in directory.iterdir() if path.name.startswith(".") and "lock" not in path.name]


def _log_until(initializer: Any, directory: str, name: str, ending: str) -> None:
    """Runs in a worker: log until told to end."""
    initializer()
    producer = Producer(directory, name)
    while not os.path.exists(ending):
        producer.log(300)


class _Armed(logging.NullHandler):
    """Has each logging process be killed at the point that is next on a list.

    Args:
        directory: where it is noted how many there have been.
        points: the list.
    """

    def __init__(self, directory: str, points: list[str]) -> None:
        super().__init__()
        number = Counter(directory, "processes")
        if number.value < len(points):
            faults.arm(points[number.value])
        number.set(number.value + 1)


@pytest.mark.parametrize("first", ["before read:5", "after read:5", "before read:1"])
def test_killed_in_its_recovery_loses_nothing(tmp_path: Path, first: str) -> None:
    """Two logging processes in a row are killed while they find out what the one before had read: nothing is lost."""
    log, ending = tmp_path / "app.log", tmp_path / "ending"
    points, directory = [first, "in recovery", "in recovery"], str(tmp_path)
    sinks = mplog.HandlerSink(lambda: _Armed(directory, points)), mplog.FileSink(log)
    with mplog.LogServer(*sinks, level="INFO") as server:
        context, seen = multiprocessing.get_context("fork"), Counter(tmp_path, "processes")
        arguments = [(server.initializer, directory, f"w{number}", str(ending)) for number in range(2)]
        workers = [context.Process(target=_log_until, args=each) for each in arguments]
        with running(workers):
            wait_until(lambda: seen.value == 4, "three have died")
            wait_until(lambda: server.stats().restarts == 3, "the fourth has counted them")
            ending.touch()
            for worker in workers:
                worker.join(60)
                assert worker.exitcode == 0
        stats = server.stop()
    found = verdict(log, tmp_path)
    assert found.clean, found
    assert stats.received == found.written
    assert log.read_text().count("was killed by SIGKILL") == stats.restarts == 3, "each of them is said"


@pytest.mark.parametrize("point", ["before write:1", "after say:1"])
def test_killed_while_it_says_that_it_is_another(tmp_path: Path, point: str) -> None:
    """A logging process killed before it has told of a restart leaves that to the next one, which tells of both."""
    log, points, directory = tmp_path / "app.log", ["", point], str(tmp_path)
    sinks = mplog.HandlerSink(lambda: _Armed(directory, points)), mplog.FileSink(log)
    with mplog.LogServer(*sinks, level="INFO") as server:
        seen = Counter(tmp_path, "processes")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: seen.value == 3, "two have died")
        stats = server.stop()
    assert log.read_text().count("was killed by SIGKILL") == stats.restarts == 2, "each of them is said"


@pytest.mark.parametrize("point", ["before replace:3", "after replace:2"])
def test_killed_while_it_drops_the_oldest(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """What the logging process was about to drop is dropped and counted, or written; nothing is both, or neither."""
    monkeypatch.setenv(VARIABLE, point)
    log, stop = tmp_path / "app.log", tmp_path / "stop"
    sinks = mplog.FileSink(log), mplog.HandlerSink(lambda: BlockedHandler(gate, tmp_path / "slow.log"))
    with mplog.LogServer(
        *sinks, level="INFO", format="%(message)s", overflow="drop_oldest", buffer_size=2 * 2**20
    ) as server:
        first, calls = server.pid, Counter(tmp_path, "w")
        worker = multiprocessing.get_context("fork").Process(
            target=flood, args=(server.initializer, str(tmp_path), "w", str(stop))
        )
        with running([worker]):
            wait_until(lambda: server.pid != first, f"it dies at {point!r}, and is restarted")
            stop.touch()
            gate.open()
            worker.join(60)
            assert worker.exitcode == 0
        server.flush(60)
        stats = server.stop(60)
    written = [int(line.split()[1]) for line in lines(log) if line.startswith("w ")]
    # Errors that find no room for a second, as when a restart takes longer, come by the emergency file, after others.
    by_emergency = any(Reason.EMERGENCY in losses.by_reason() for losses in stats.lost)
    in_order = [number for number in written if number % 1000] if by_emergency else written
    assert in_order == sorted(in_order)
    assert len(written) == len(set(written))
    assert len(written) + stats.dropped == calls.value
    assert stats.dropped > 0
    assert stats.restarts == 1


@pytest.mark.parametrize("point", ["before commit:3", "after commit:5"])
def test_killed_in_the_emergency_file_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """What a killed logging process has not read of the emergency file is written before the next flush() returns."""
    monkeypatch.setenv(VARIABLE, point)
    emergency = EmergencyFile(str(tmp_path / "emergency"), 2**26)
    sent = [f"{number} {'x' * 200}" for number in range(12_000)]
    for start in range(0, len(sent), 1000):
        payloads = [encode(logging.LogRecord("a", 20, "f", 1, line, None, None)) for line in sent[start : start + 1000]]
        assert emergency.append(b"".join(frame.header(frame.RECORD, len(each)) + each for each in payloads))
    overflow = mplog.Overflow.fallback().with_emergency_file(emergency.path)
    with mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message)s", overflow=overflow) as server:
        server.flush(60)
        assert server.stats().restarts == 1
        assert [line for line in lines(tmp_path / "app.log") if "mplog:" not in line] == sent


class Rebooter(Killer):
    """Kills the supervisor, too, so that nothing is left."""

    def die(self) -> Any:
        """Kill both."""
        os.kill(os.getppid(), signal.SIGKILL)
        super().die()


def _merge(directory: Path, kill: str, rotate: str | None) -> bool:
    """Run a server that merges the emergency file, until that is done or everything is killed; return whether it is."""
    archive = None if rotate is None else "app.{index}.log"
    sinks: list[mplog.Sink] = [mplog.FileSink(directory / "app.log", rotate=rotate, archive=archive)]
    if kill:
        Path(f"{directory}.next").write_text(kill)
        sinks.append(mplog.HandlerSink(lambda: Rebooter(directory)))
    server = mplog.LogServer(*sinks, level="INFO", format="%(message)s")
    try:
        server.start().stop(60)
    except mplog.MplogError:
        if not kill:
            raise
        with contextlib.suppress(mplog.MplogError):
            server.stop(0)
        return False
    return True


def _reboot_in_a_merge(directory: Path, kill: str, rotate: str | None, number: int) -> bool:
    """Merge nine records in three batches, killed at a call and early in the next server; return whether the first was
    not killed, as there are fewer calls."""
    directory.mkdir()
    emergency = EmergencyFile(str(directory / ".app.log.emergency"), 2**26)
    sent = [f"{number} {'x' * 300_000}" for number in range(9)]
    for line in sent:
        payload = encode(logging.LogRecord("a", 20, "f", 1, line, None, None))
        assert emergency.append(frame.whole(frame.RECORD, payload))
    is_whole = _merge(directory, f"{kill} {number}", rotate)
    if not is_whole:
        _merge(directory, f"{kill} {number % 6 + 1}", rotate)
        _merge(directory, "", rotate)
    rotated = sorted(directory.glob("app.*.log"), key=lambda path: int(path.name.split(".")[1]))
    written = [line for path in [*rotated, directory / "app.log"] for line in lines(path)]
    assert [line for line in written if "mplog:" not in line] == sent, (kill, number, rotate)
    assert not list(directory.glob(".app.log.emergency*"))
    return is_whole


@pytest.mark.parametrize("number", range(3, 12, 2))
@pytest.mark.parametrize(("when", "rotate"), [("before", None), ("after", "1 MB")])
def test_rebooted_in_a_merge(tmp_path: Path, when: str, rotate: str | None, number: int) -> None:
    """All processes are killed, the queue is gone, and the next server merges the rest: each record is there once."""
    assert not _reboot_in_a_merge(tmp_path / "logs", when, rotate, number)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rotate", [None, "1 MB"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_rebooted_at_any_step_of_a_merge(tmp_path: Path, when: str, rotate: str | None) -> None:
    """The same at each call that changes the disk."""
    calls = next(n for n in range(1, 100) if _reboot_in_a_merge(tmp_path / f"{n}", when, rotate, n))
    assert calls > 12
