"""gunicorn: its arbiter, and workers of its own and of uvicorn, under load, reloaded, replaced, killed and stopped."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from managed import Clients, end, entries, running, said
from oracle import wait_until
from scripts import process_has_ended, server_processes
from test_examples import EXAMPLES

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-m", "gunicorn", "-c", "gunicorn_workers.py", "-b", "127.0.0.1:0"]


@pytest.fixture(params=["sync", "uvicorn"])
def kind(request: pytest.FixtureRequest) -> tuple[list[str], str]:
    """A kind of worker: the arguments for it, and the logger of its access log."""
    if request.param == "sync":
        return COMMAND, "gunicorn.access"
    pytest.importorskip("uvicorn_worker")
    return [*COMMAND, "-k", "uvicorn_worker.UvicornWorker", "gunicorn_workers:asgi"], "uvicorn.access"


def booted(log: Path) -> list[int]:
    """Return the pids of the workers that were started so far."""
    return [int(pid) for pid in said(log, "gunicorn.error", r"Booting worker with pid: (\d+)")]


def may_miss(access_logger: str) -> bool:
    """Whether a worker may leave pages unanswered: at its end, uvicorn closes connections that it has not read yet."""
    return access_logger == "uvicorn.access"


def accessed(log: Path, access_logger: str) -> set[str]:
    """Return the pages that are in the access log so far."""
    return set(said(log, access_logger, r'"GET (/client\S+) '))


def clients_of(gunicorn: Any, log: Path) -> Clients:
    """Return clients, once it listens."""
    wait_until(lambda: said(log, "gunicorn.error", "Listening at") or gunicorn.poll() is not None, "gunicorn listens")
    return Clients(int(said(log, "gunicorn.error", r"Listening at: http://127.0.0.1:(\d+)")[0]))


def check(clients: Clients, log: Path, access_logger: str) -> None:
    """Compare the log with the answers after the end of gunicorn."""
    names = clients.check(log, access_logger)
    assert all(name.startswith("Worker-") for name in names)
    assert len(booted(log)) == len(set(booted(log)))
    assert set(names.values()) <= set(booted(log))
    assert entries(log)[-1]["text"] == "Shutting down: Master"
    assert (log.parent / "output").read_text() == ""


SLOW = """
import logging, time
from gunicorn_workers import wsgi as page

def wsgi(environ, start_response):
    logging.getLogger("slow").info("begun")
    time.sleep(8)
    logging.getLogger("slow").info("ended")
    return page(environ, start_response)
"""


def test_sigterm_to_all_while_a_request_takes_its_time(tmp_path: Path) -> None:
    """SIGTERM to the whole group, and to the logging process: what a worker logs as it finishes a request of 8 seconds
    is in the log, and the last words of the arbiter."""
    log = tmp_path / "gunicorn.log"
    (tmp_path / "slow.py").write_text(SLOW)
    with running([*COMMAND, "slow:wsgi"], tmp_path, "gunicorn_workers.py") as gunicorn:
        clients = clients_of(gunicorn, log)
        wait_until(lambda: len(booted(log)) == 2, "the workers are there")
        clients.ask(1)
        wait_until(lambda: said(log, "slow", "begun"), "a request is in flight")
        os.killpg(gunicorn.pid, signal.SIGTERM)
        for process in server_processes():
            process.terminate()
        clients.wait()
        assert gunicorn.wait(60) == 0
    assert len(said(log, "slow", "ended")) == len(clients.answers) >= 1
    check(clients, log, "gunicorn.access")


def test_reload_death_and_end_under_load(kind: tuple[list[str], str], tmp_path: Path) -> None:
    """Through a reload, a worker's death and the end of gunicorn, the log has each record of each worker once."""
    command, access_logger = kind
    log = tmp_path / "gunicorn.log"
    with running(command, tmp_path, "gunicorn_workers.py") as gunicorn:
        clients = clients_of(gunicorn, log)
        clients.ask(20)
        clients.wait_for_answers(10)
        gunicorn.send_signal(signal.SIGHUP)
        clients.wait()
        assert clients.unanswered == set() or may_miss(access_logger)
        wait_until(lambda: len(booted(log)) == 4, "there are new workers")
        wait_until(lambda: all(map(process_has_ended, booted(log)[:2])), "the old ones have ended")

        clients.ask(1)
        clients.wait()
        wait_until(lambda: clients.answers.keys() <= accessed(log, access_logger), "the last page is in the access log")
        killed = list(clients.answers.values())[-1]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(booted(log)) == 5, "a worker takes its place")

        clients.ask(20)
        clients.wait_for_answers(80)
        assert end(gunicorn) == 0
        clients.wait()
    check(clients, log, access_logger)
    assert said(log, "mplog", r"^mplog: (Worker-\d+ \(pid \d+\)) was killed by SIGKILL")[0].endswith(f"(pid {killed})")


def test_workers_that_end_after_some_requests(kind: tuple[list[str], str], tmp_path: Path) -> None:
    """With max_requests, the log has each record once, of those that have ended, too."""
    command, access_logger = kind
    log = tmp_path / "gunicorn.log"
    with running([*command, "--max-requests", "5"], tmp_path, "gunicorn_workers.py") as gunicorn:
        clients = clients_of(gunicorn, log)
        for number in range(1, 4):
            clients.ask(5)
            clients.wait()
            wait_until(lambda number=number: len(booted(log)) >= 2 + number, "a worker was replaced")
        assert end(gunicorn) == 0
    assert clients.unanswered == set() or may_miss(access_logger)
    assert len(clients.answers) + len(clients.unanswered) == 45
    check(clients, log, access_logger)


def test_workers_that_give_root_up(tmp_path: Path) -> None:
    """Workers of another user join by their group, after the change, and are counted and written through as others."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.chmod(os.environ["TMPDIR"], 0o755)  # where temporary files are, other users may look
    conf = (EXAMPLES / "gunicorn_workers.py").read_text(encoding="utf-8")
    conf = conf.replace('level="INFO")', 'level="INFO", sync_level="INFO", group=arbiter.cfg.gid)')
    conf = conf.replace("    arbiter.log_server.initializer()\n", "")
    conf += "\n\ndef post_worker_init(worker):\n    mplog.attach()\n"
    (tmp_path / "gunicorn_workers.py").write_text(conf, encoding="utf-8")
    log = tmp_path / "gunicorn.log"
    # Before the change, since the other user may not read the module.
    with running([*COMMAND, "--preload", "--user", "65534", "--group", "54321"], tmp_path) as gunicorn:
        clients = clients_of(gunicorn, log)
        clients.ask(5)
        clients.wait()
        assert {psutil.Process(pid).uids().effective for pid in booted(log)} == {65534}
        assert end(gunicorn) == 0
    assert clients.unanswered == set()
    check(clients, log, "gunicorn.access")
