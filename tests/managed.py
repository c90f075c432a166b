"""Process managers in the tests: an example, copied and run as a user does, and clients that ask it for pages."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import signal
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
from oracle import wait_until
from scripts import environment, server_processes
from test_examples import EXAMPLES, LINE


@contextlib.contextmanager
def running(command: list[str], directory: Path, *examples: str) -> Iterator[psutil.Popen]:
    """Run a command in a directory with copies of the examples; in the end nothing of it is left."""
    for name in examples:
        shutil.copy(EXAMPLES / name, directory)
    with open(directory / "output", "w") as output:
        process = psutil.Popen(
            command,
            cwd=directory,
            env=environment(HOME=str(directory), PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for each in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait(10)
            wait_until(lambda: not server_processes(), "the logging process has ended")


def end(process: psutil.Popen, number: int = signal.SIGTERM) -> int:
    """End it by a signal, and return its exit status."""
    process.send_signal(number)
    # A worker of gunicorn that is just starting overlooks SIGTERM, and gunicorn kills it after 30 seconds.
    status: int = process.wait(60)
    return status


def entries(log: Path) -> list[re.Match[str]]:
    """Return the complete lines of a log that is being written."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    found = [LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    return [line for line in found if line is not None]


def said(log: Path, logger: str, pattern: str) -> list[str]:
    """Return what `pattern` finds in the messages of a logger, in their order: its first group, or all of it."""
    found = [re.search(pattern, line["text"]) for line in entries(log) if line["logger"] == logger]
    return [match[min(match.re.groups, 1)] for match in found if match]


class Clients:
    """Clients that ask for pages, one after the other, each by its own name; the answer is the pid of the worker.

    Attributes:
        answers: the pid by page.
        unanswered: the pages that were asked for without an answer, as when a worker is killed.
    """

    def __init__(self, port: int, number: int = 3) -> None:
        self.port = port
        self.answers: dict[str, int] = {}
        self.unanswered: set[str] = set()
        self._asked = [0] * number
        self._threads: list[threading.Thread] = []

    def ask(self, pages: int) -> None:
        """Have each client ask for so many pages."""
        self._threads = [threading.Thread(target=self._ask, args=(client, pages)) for client in range(len(self._asked))]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until they have."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def wait_for_answers(self, number: int) -> None:
        """Wait until so many pages are there."""
        wait_until(lambda: len(self.answers) >= number, f"{number} pages are there")

    def _ask(self, client: int, pages: int) -> None:
        for _ in range(pages):
            self._asked[client] += 1
            page = f"/client{client}/{self._asked[client]}"
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                connection.request("GET", page)
                self.answers[page] = int(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                self.unanswered.add(page)
            finally:
                connection.close()

    def check(self, log: Path, access_logger: str) -> dict[str, int]:
        """Hold the log against the answers; return the pids of the workers by name.

        Each answered page is there once from the application and once in the access log, each client's in order, and
        all that one worker has logged is under one name.
        """
        pids: dict[str, set[int]] = defaultdict(set)
        for logger, pattern in (("shop", r"^selling (/client\S+)$"), (access_logger, r'"GET (/client\S+) ')):
            pages = said(log, logger, pattern)
            counts = Counter(pages)
            assert {page for page in self.answers if counts[page] != 1} == set()
            assert {
                page for page in counts if counts[page] != 1 or page not in {*self.answers, *self.unanswered}
            } == set()
            if logger == "shop":
                for client in range(len(self._asked)):
                    numbers = [int(page.split("/")[2]) for page in pages if page.startswith(f"/client{client}/")]
                    assert numbers == sorted(numbers)
            for line in entries(log):
                page = re.search(pattern, line["text"]) if line["logger"] == logger else None
                if page and page[1] in self.answers:
                    pids[line["process"]].add(self.answers[page[1]])
        assert {name: found for name, found in pids.items() if len(found) != 1} == {}
        by_name = {name: found.pop() for name, found in pids.items()}
        assert len(set(by_name.values())) == len(by_name)
        return by_name
