"""The examples of Django, Flask and FastAPI, each under its real server with several workers."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes
from oracle import wait_until
from scripts import environment

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parents[2] / "examples"

GUNICORN = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--log-level", "info"]
UVICORN = ["-m", "uvicorn", "main:app", "--port", "0", "--workers", "2", "--log-config", "logging.json"]
# uvicorn takes a worker for hung, and kills it, that is not ready or does not answer within 5 seconds unless it is told
# otherwise; under load, Python and FastAPI alone may take that long to start.
PATIENT = ["--timeout-worker-healthcheck", "60"]

#: The applications, and how each is started as a service.
SERVICES = {"django_site": GUNICORN, "flask_app": GUNICORN, "fastapi_app": [*UVICORN, *PATIENT]}

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<process>\S+) (?P<level>\w+) (?P<request>\S+) (?P<logger>\S+) \| "
    r"(?P<text>.*)"
)


class Site:
    """An application that runs, in a copy of its directory.

    Args:
        directory: of the copy.
        process: what was started.
    """

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.directory = directory
        self.process = process
        self.port = 0
        self._numbers = itertools.count()

    def log(self) -> str:
        """Return the log as it is."""
        path = self.directory / "shop.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def lines(self) -> list[re.Match[str]]:
        """Return the lines of the log, each of which must be one."""
        matches = []
        for line in self.log().splitlines():
            match = LINE.fullmatch(line)
            assert match is not None, line
            matches.append(match)
        return matches

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until a pattern is in the log so many times; return the last."""
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            assert self.process.poll() is None, f"it has ended: {self.log()}"
            found[:] = re.finditer(pattern, self.log(), re.MULTILINE)
            return len(found) >= count

        wait_until(is_there, f"the log has {count} times {pattern}", timeout=40)
        return found[count - 1]

    def ask(self) -> str | None:
        """Send a request, and return its id; None where it was not answered."""
        request_id = f"id-{next(self._numbers)}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError, http.client.HTTPException):
            connection.request("GET", f"/price/{'x' * 7}", headers={"X-Request-ID": request_id})
            answer = connection.getresponse()
            body = answer.read()
            assert (answer.status, body) == (200, b"7")
            return request_id
        return None

    def end(self) -> None:
        """End the site as its manual says, and wait for all its processes, the logging process included."""
        self.process.terminate()
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, -signal.SIGTERM), output
        assert "Traceback" not in output

    def check(self, answered: list[str]) -> None:
        """Hold the log to having everything about each request once, under its id and in order."""
        lines = self.lines()
        for request_id in answered:
            of_it = [line for line in lines if request_id == line["request"] or line["text"].endswith(f"={request_id}")]
            asked, priced, access = of_it
            assert (asked["text"], priced["text"]) == ("asked for xxxxxxx", "pricing xxxxxxx")
            assert priced["logger"] == "shop.work" and asked["process"] != priced["process"]
            assert access["process"] == asked["process"] and access["logger"].endswith(".access")
            assert "/price/xxxxxxx" in access["text"] and "200" in access["text"]

    def workers(self) -> set[str]:
        """Return the names of the processes that have answered requests."""
        return set(re.findall(r"^\S+ \S+ (\S+) .* \| asked for", self.log(), re.MULTILINE))


@contextlib.contextmanager
def running(name: str, command: list[str], tmp_path: Path, address: str = r"http://127.0.0.1:(\d+)") -> Iterator[Site]:
    """Start an application with `python` and a command; the log says where it listens."""
    directory = tmp_path / name
    shutil.copytree(EXAMPLES / name, directory, ignore=shutil.ignore_patterns("__pycache__"))
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=directory,
        env=environment(HOME=str(tmp_path), MPLOG_QUEUE=None),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    site = Site(directory, process)
    try:
        found = site.wait_for(address)[1]
        if found:
            site.port = int(found)
            wait_until(site.ask, "it answers", timeout=40)
        yield site
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


@pytest.mark.parametrize("name", SERVICES)
def test_requests_to_all_workers_are_in_one_log(name: str, tmp_path: Path) -> None:
    """Whichever worker takes a request, what it, its pool and the access log say of it is in one file under its id;
    after SIGTERM the file is complete, and nothing else is left."""
    before = {path.name for path in (EXAMPLES / name).iterdir()}
    with running(name, SERVICES[name], tmp_path) as site, ThreadPoolExecutor(6) as clients:
        answered = list(clients.map(lambda _: site.ask(), range(12)))
        wait_until(lambda: answered.append(site.ask()) or len(site.workers()) == 2, "both workers have answered")
        site.end()
        assert None not in answered
        site.check([request_id for request_id in answered if request_id])
        assert [line["text"] for line in site.lines() if line["level"] not in ("INFO", "DEBUG")] == []
        assert "exiting" in site.log() or "Finished server process" in site.log()
        left = {path.name for path in site.directory.iterdir()} - before - {"__pycache__"}
        assert left == {"shop.log"}


@pytest.mark.parametrize("name", SERVICES)
def test_reload_under_load_loses_nothing(name: str, tmp_path: Path) -> None:
    """SIGHUP replaces the workers while they are busy: the new ones write into the same log, and whatever was answered
    is in it."""
    answered: list[str | None] = []
    enough = threading.Event()

    def keep_asking(site: Site) -> None:
        while not enough.is_set():
            answered.append(site.ask())

    with running(name, SERVICES[name], tmp_path) as site, ThreadPoolExecutor(3) as clients:
        try:
            asking = [clients.submit(keep_asking, site) for _ in range(3)]
            wait_until(lambda: len(site.workers()) == 2, "both workers have answered")
            site.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(site.workers()) >= 4, "two new workers have answered", timeout=40)
        finally:
            enough.set()
        for future in asking:
            future.result(timeout=60)
        site.end()
        site.check([request_id for request_id in answered if request_id])


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", ["django_site", "flask_app"])
def test_reloader_in_development_goes_on_in_the_same_log(name: str, tmp_path: Path) -> None:
    """`manage.py runserver` and `flask run --debug` are two processes, the second of which is replaced when a file
    changes: there is one logging process and one log."""
    port = free_port()
    if name == "django_site":
        command, changed = ["manage.py", "runserver", str(port)], "shop/work.py"
    else:
        command, changed = ["-m", "flask", "run", "--debug", "--port", str(port)], "work.py"
    with running(name, command, tmp_path, "()Watching for file changes|()Restarting with") as site:
        site.port = port
        for number in range(2):
            ids: list[str] = []
            wait_until(lambda ids=ids: ids.append(site.ask() or "") or ids[-1], "it answers", timeout=40)
            site.wait_for(rf" {ids[-1]} shop.work \| pricing")
            site.wait_for('"GET /price/xxxxxxx HTTP/1.1" 200', number + 1)
            if not number:
                path = site.directory / changed
                path.write_text(path.read_text() + "\n# changed\n")
                site.wait_for(r"changed, reloading|Detected change in")
                site.wait_for(r"Watching for file changes|Restarting with", 2)
        site.end()


def test_commands_of_django(tmp_path: Path) -> None:
    """A command alone writes the log itself; beside the site it joins the site's. So does its pool, with
    `django.setup`."""
    program = """if True:
        import django, logging, multiprocessing
        from shop.work import price
        with multiprocessing.get_context("spawn").Pool(1, django.setup) as pool:
            pool.apply(price, ["nothing"])
        logging.getLogger("shop.command").info("cleared")
    """
    command = ["manage.py", "shell", "-c", program]

    def run_command(directory: Path) -> None:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=directory,
            env=environment(MPLOG_QUEUE=None),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")

    with running("django_site", GUNICORN, tmp_path) as site:
        run_command(site.directory)
        site.end()
        run_command(site.directory)
        of_commands = [line["text"] for line in site.lines() if line["text"] in ("cleared", "pricing nothing")]
        assert of_commands == ["pricing nothing", "cleared"] * 2
        assert site.lines()[-1]["text"] == "cleared"


def test_page_shows_the_examples() -> None:
    """What the page on frameworks shows stands word by word in a file that it names."""
    text = (EXAMPLES.parent / "docs" / "frameworks.rst").read_text(encoding="utf-8")
    named = re.findall(r"``examples/([\w./]+\.\w+)``", text)
    files = [(EXAMPLES / name).read_text(encoding="utf-8") for name in {*named, "django_site/shop/urls.py"}]
    page = docutils.core.publish_doctree(text, settings_overrides={"report_level": 1, "syntax_highlight": "none"})
    blocks = [block.astext() for block in page.findall(nodes.literal_block)]
    assert len(blocks) == 11
    commands = [block for block in blocks if block.startswith("$ ")]
    assert commands == ["$ " + " ".join(["uvicorn", *UVICORN[2:3], *UVICORN[5:]])]
    for block in set(blocks) - set(commands):
        assert any(block in re.sub(r"^ {4}(?=return HttpResponse)", "", file, flags=re.M) for file in files), block
