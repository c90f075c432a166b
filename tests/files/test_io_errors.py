"""SQLite's way: the first call to the system fails, then the second, and so on until a run is clean (fault 10)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import lines

import mplog

pytestmark = pytest.mark.processes

#: What fails, and how.
CALLS = {
    "write": errno.ENOSPC,
    "open": errno.ENOSPC,
    "rename": errno.ENOSPC,
    "link": errno.ENOSPC,
    "ftruncate": errno.EIO,
    "fsync": errno.EIO,
    "fdatasync": errno.EIO,
}

#: What says in the log that something has failed.
NOTICES = ("could not be written for", "could not be rotated", "may not have reached the disk", "cannot be reopened")


class Saboteur(logging.Handler):
    """Has calls that concern files below a directory fail, beginning with the n-th from when it is told to.

    It is told to by a record: "arm 3" begins with the third call, "arm 1 rename" with the first of that name.

    Args:
        directory: where the files are.
        runs: how many in a row.
        is_torn: if the first is a write, it is a short one, and those after it fail.
        error: with which they fail; None for what is usual.
    """

    def __init__(self, directory: Path, runs: int, is_torn: bool, error: int | None = None) -> None:
        super().__init__()
        from mplog.files import notices, rotation

        # So that nothing is waited for, and everything is said each time.
        rotation.RETRY_SECONDS = notices.INTERVAL = 0.0
        self.directory = str(directory)
        self.left = -runs
        self.only = ""
        self.runs = runs
        self.is_torn = is_torn
        self.error = error
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def emit(self, record: logging.LogRecord) -> None:
        """Begin to count calls."""
        found = re.fullmatch(r"arm (\d+) ?(\w*)", record.getMessage())
        if found:
            self.left, self.only = int(found[1]), found[2]

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(what: Any, *arguments: Any, **options: Any) -> Any:
            if self.left > -self.runs and self.only in ("", name) and self._concerns(what):
                self.left -= 1
                if self.left <= 0:
                    self._note(name)
                    if self.is_torn and name == "write" and self.left == 0 and len(arguments[0]) > 1:
                        return call(what, arguments[0][: len(arguments[0]) // 2])
                    error = self.error or CALLS[name]
                    raise OSError(error, os.strerror(error))
            return call(what, *arguments, **options)

        return wrapped

    def _concerns(self, what: Any) -> bool:
        try:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(what)
        except OSError:
            return False
        return path.startswith(self.directory)

    def _note(self, name: str) -> None:
        with open(self.directory + ".failed", "a") as file:
            file.write(f"{name}\n")


def failed(directory: Path) -> list[str]:
    """Return the calls that have failed so far."""
    noted = Path(f"{directory}.failed")
    return lines(noted) if noted.exists() else []


def written(directory: Path) -> list[str]:
    """Return the lines in all files of the log, the oldest first."""
    rotated = sorted(directory.glob("app.*.log"), key=lambda path: int(path.name.split(".")[1]))
    return [line for path in [*rotated, directory / "app.log"] for line in lines(path)]


def arms(directory: Path, expected: set[str]) -> Iterator[str]:
    """Yield what to arm: each call in turn, until so many are not made, and then what has not failed by then."""
    for call in range(1, 100):
        before = failed(directory)
        yield f"arm {call}"
        if failed(directory) == before:
            break
    else:
        pytest.fail("so many calls are not made")
    # How the records were divided into batches has decided what the n-th call was.
    yield from (f"arm 1 {name}" for name in sorted(expected - {*failed(directory)}))


@pytest.mark.parametrize(
    ("runs", "is_torn", "error", "rotate"),
    [
        (1, False, None, None),
        (3, True, None, None),
        (1, False, None, "1 kB"),
        (3, True, None, "1 kB"),
        (1, False, errno.EINTR, "1 kB"),
    ],
    ids=["once", "torn, three times", "once, rotated", "torn, three times, rotated", "interrupted, rotated"],
)
def test_any_call_may_fail(tmp_path: Path, runs: int, is_torn: bool, error: int | None, rotate: str | None) -> None:
    """Whichever call fails, each record is in the log once, whole and in order, and the log says so."""
    directory = tmp_path / "logs"
    directory.mkdir()
    file = mplog.FileSink(directory / "app.log", rotate=rotate, archive=rotate and "app.{index}.log", fsync="batch")
    sinks = file, mplog.HandlerSink(lambda: Saboteur(directory, runs, is_torn, error))
    sent = []
    expected = {"write", "fdatasync"} | ({"open", "rename"} if rotate else set())
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        for arm in arms(directory, expected):
            before = failed(directory), len(written(directory))
            logging.info(arm)
            server.flush()
            for _ in range(20):
                sent.append(f"{len(sent)} {'x' * 100}")
                logging.info(sent[-1])
                if len(sent) % 10 == 0:
                    server.flush()
            if failed(directory) == before[0]:
                continue  # the last of all calls has failed before
            wait_until(
                lambda since=before[1]: any(
                    notice in line for line in written(directory)[since:] for notice in NOTICES
                ),
                f"the log says that {failed(directory)[-1]} has failed",
            )
    assert len(failed(directory)) >= 4
    assert expected <= set(failed(directory))
    if is_torn:
        assert "ftruncate" in failed(directory)
    messages = [line for line in written(directory) if not line.startswith(("mplog:", "arm "))]
    assert messages == sent


def _broken_for_good(directory: Path) -> Saboteur:
    """Runs in the logging process: have calls fail for ever, and its end wait for them for half a second."""
    from mplog.logging_process import loop

    loop.LAST_RETRIES_SECONDS = 0.5
    return Saboteur(directory, 10**9, False)


@pytest.mark.parametrize("call", [1, 2, 3, 8])
def test_all_calls_may_fail_for_ever(tmp_path: Path, call: int) -> None:
    """From some call on, nothing works any more: what was written until then stays as it is; the rest is counted."""
    directory, count = tmp_path / "logs", 60
    directory.mkdir()
    file = mplog.FileSink(directory / "app.log", rotate="1 kB", archive="app.{index}.log", fsync="batch")
    sinks = file, mplog.HandlerSink(lambda: _broken_for_good(directory))
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        logging.info("arm %d", call)
        for number in range(count):
            logging.info("%d %s", number, "x" * 100)
            if number % 10 == 9 and not failed(directory):
                with contextlib.suppress(mplog.DrainTimeoutError):
                    server.flush(0.1)
        stats = server.stop()
    assert failed(directory)
    numbers = [int(line.split()[0]) for line in written(directory) if line.endswith("x" * 100)]
    assert numbers == list(range(len(numbers)))
    others = [line for line in written(directory) if not (line.endswith("x" * 100) or line.startswith("mplog:"))]
    assert others in ([], [f"arm {call}"])
    lines_of_its_own = len(numbers) + len(others) + sum(stats.failed.values()) - count - 1
    assert 0 <= lines_of_its_own <= 5, "what it could not say is counted as well"


def test_files_may_not_grow(tmp_path: Path) -> None:
    """At the limit of a logging process's file size, the file ends with a whole record, and the rest is counted; when
    there is no limit any more, it goes on."""
    resource: Any = pytest.importorskip("resource")
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        # Larger than what it counts in, and than its buffers are not written to, but mapped.
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (100_050, before[1]))
        for number in range(1500):
            logging.info("%099d", number)
        server.flush()
        assert log.stat().st_size == 100_000
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)
        logging.info("on")
        stats = server.stop()
    written = [line for line in lines(log) if "mplog:" not in line]
    assert written == [*(f"{number:099}" for number in range(1000)), "on"]
    assert sum(stats.failed.values()) == 500
    assert stats.restarts == 0
