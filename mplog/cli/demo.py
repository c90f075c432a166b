"""``mplog demo``: what mplog is for, to be watched for ten seconds.

The rule of this file: **nothing is staged.** The workers are processes, the kills are SIGKILLs, and the final count
searches the file for each record whose logging call has returned.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import multiprocessing.sharedctypes
import os
import re
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, TextIO

from mplog.cli.arguments import to_seconds
from mplog.cli.main import MisusedError
from mplog.monitoring.statistics import Stats
from mplog.server.log_server import LogServer
from mplog.server.pools import Process

#: Records per second of all workers together, while they are shown: so slow that a person can read them.
_READABLE_RATE = 20.0

#: When the events happen, as parts of the whole time.
_KILL_WORKER, _KILL_LOGGING, _FLAT_OUT, _KILL_BUSY, _END = 0.2, 0.4, 0.65, 0.75, 0.85

HELP = """\
Let some workers log, kill one of them and the logging process itself with
SIGKILL, and count in the file what has become of every record.
"""

EPILOG = """\
examples:
  mplog demo
  mplog demo --workers 8 --log demo.log      # keep the log
  mplog demo | cat                           # plain text

exit status:
  0  every record that was logged is in the file, once
  1  one is not, or the log could not be opened
  2  the arguments make no sense

With the extra "cli" (pip install 'mplog[cli]'), it is in colour.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = HELP, EPILOG
    parser.add_argument("--workers", metavar="N", type=int, default=4, help="how many workers (default: 4; at least 2)")
    parser.add_argument(
        "--seconds",
        metavar="SECONDS",
        type=lambda text: to_seconds(text, 1),
        default=10.0,
        help="how long, at least 1 (default: 10)",
    )
    parser.add_argument("--log", metavar="FILE", help="the log, which is kept (default: a temporary file)")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    if arguments.workers < 2:
        raise MisusedError("the demo takes at least two workers, since one is killed")
    screen = _Screen()
    with tempfile.TemporaryDirectory(prefix="mplog-demo-") as directory:
        os.chmod(directory, 0o700)  # whatever the umask is
        log = arguments.log or os.path.join(directory, "demo.log")
        begin = os.path.getsize(log) if os.path.exists(log) else 0
        numbers: Any = multiprocessing.sharedctypes.RawArray(ctypes.c_uint64, arguments.workers)
        stats = _perform(screen, log, begin, numbers, arguments.seconds)
        account = Account.of(log, begin, list(numbers))
    screen.account(account, stats)
    if arguments.log:
        screen.say(f"The log is {arguments.log}")
    return 0 if account.is_clean else 1


def _perform(screen: _Screen, log: str, begin: int, numbers: Any, seconds: float) -> Stats:
    """Run the workers, and kill; return the counts of the server."""
    pace: Any = multiprocessing.sharedctypes.RawValue(ctypes.c_double, len(numbers) / _READABLE_RATE)
    with LogServer(log, level="INFO") as server:
        screen.event(f"{len(numbers)} workers log to one file; the logging process is pid {server.pid}")
        workers = [
            Process(target=_work, args=(index, numbers, pace), name=f"worker-{index + 1}", server=server, daemon=True)
            for index in range(len(numbers))
        ]
        for worker in workers:
            worker.start()
        try:
            with open(log, encoding="utf-8", errors="replace") as file:
                file.seek(begin)
                # Where each worker is a fresh interpreter, the first record may come after seconds.
                while any(worker.is_alive() and not number for worker, number in zip(workers, numbers)):
                    time.sleep(0.01)
                follow = _Follower(screen, file, time.monotonic(), seconds)
                follow.until(_KILL_WORKER)
                screen.event(f"kill -KILL {workers[1].pid}: worker-2, while it logs")
                workers[1].kill()
                follow.until(_KILL_LOGGING)
                screen.event(f"kill -KILL {server.pid}: the logging process, while the workers go on")
                os.kill(server.pid, signal.SIGKILL)
                follow.until(_FLAT_OUT)
                screen.event("the workers log as fast as they can")
                pace.value = 0.0
                follow.until(_KILL_BUSY, is_shown=False)
                screen.event(f"kill -KILL {server.pid}: the logging process again, while it writes")
                os.kill(server.pid, signal.SIGKILL)
                follow.until(_END, is_shown=False)
        finally:
            pace.value = -1.0
            for worker in workers:
                worker.join(5)
        return server.stop()


def _work(index: int, numbers: Any, pace: Any) -> None:
    """Runs in a worker: log until told to end, and note each number when its logging call has returned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the demo itself answers it
    logger = logging.getLogger("demo")
    number = 0
    while (pause := pace.value) >= 0:
        number += 1
        logger.info("worker=%d record=%d", index, number)
        numbers[index] = number
        if pause:
            time.sleep(pause)


class _Follower:
    """Shows what comes into the log, from the place at which it is open."""

    def __init__(self, screen: _Screen, file: TextIO, begin: float, seconds: float) -> None:
        self._screen = screen
        self._file = file
        self._begin = begin
        self._seconds = seconds
        self._rest = ""

    def until(self, part: float, *, is_shown: bool = True) -> None:
        """Follow the log until a part of the time has passed; if not `is_shown`, count, and show mplog's own lines."""
        since, count = time.monotonic(), 0
        while time.monotonic() < self._begin + part * self._seconds:
            *lines, self._rest = (self._rest + self._file.read()).split("\n")
            count += len(lines)
            for line in lines:
                if is_shown or " | mplog: " in line:
                    self._screen.line(line)
            time.sleep(0.05)
        if not is_shown:
            self._screen.say(f"    {count:,} records written in {time.monotonic() - since:.1f} seconds")


@dataclass(frozen=True)
class Account:
    """What has become of the records, from the file.

    Logged are those whose calls have returned. A kill may have interrupted the calls of others that are written.
    """

    logged: int
    written: int
    lost: int
    doubled: int
    torn: int

    @property
    def is_clean(self) -> bool:
        """Whether each record is there once."""
        return not (self.lost or self.doubled or self.torn) and self.logged > 0

    @classmethod
    def of(cls, log: str, begin: int, logged: list[int]) -> Account:
        """Count the records in a log from a place on, given the number of each worker's last record."""
        found: Counter[tuple[int, int]] = Counter()
        torn = 0
        record = re.compile(r" \| worker=(\d+) record=(\d+)$")
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(begin)
            for line in file:
                match = record.search(line)
                if match is not None:
                    found[int(match[1]), int(match[2])] += 1
                elif " | mplog: " not in line:
                    torn += 1
        lost = sum((worker, number) not in found for worker, last in enumerate(logged) for number in range(1, last + 1))
        doubled = sum(count - 1 for count in found.values())
        return cls(sum(logged), found.total(), lost, doubled, torn)


class _Screen:
    """Standard output: in colour if it is a terminal and rich is installed."""

    def __init__(self) -> None:
        self._console: Any = None
        if sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                from rich.console import Console

                self._console = Console(highlight=False)

    def say(self, text: str, style: str = "") -> None:
        if self._console is None:
            print(text, flush=True)
        else:
            self._console.print(text, style=style, markup=False, soft_wrap=True)

    def event(self, text: str) -> None:
        """Show what is being done."""
        self.say(f">>> {text}", "bold yellow")

    def line(self, line: str) -> None:
        """Show a line of the log, each worker's in a colour of its own."""
        found = re.search(r" (worker-\d+) ", line)
        colors = ["cyan", "green", "magenta", "blue"]
        self.say(line, colors[zlib.crc32(found[1].encode()) % len(colors)] if found else "bold red")

    def account(self, account: Account, stats: Stats) -> None:
        for name, count in (
            ("records logged (calls that have returned)", account.logged),
            ("written, counted in the file", account.written),
            ("lost", account.lost),
            ("doubled", account.doubled),
            ("torn", account.torn),
            ("logging processes killed and replaced", stats.restarts),
        ):
            is_bad = count and name in ("lost", "doubled", "torn")
            self.say(f"{name:<44}{count:>12,}", "bold red" if is_bad else "")
