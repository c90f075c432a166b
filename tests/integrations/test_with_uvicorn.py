"""uvicorn with several workers, under load, restarted, killed and stopped."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from managed import Clients, end, entries, running, said
from oracle import wait_until
from test_examples import EXAMPLES

pytestmark = pytest.mark.processes


def test_every_record_of_every_worker_is_there(tmp_path: Path) -> None:
    """Through a restart of the workers, the death of one, and the end under load, the log has each record once."""
    log = tmp_path / "uvicorn.log"
    program = (EXAMPLES / "uvicorn_workers.py").read_text()
    assert program.count("workers=2") == 1
    # uvicorn kills a worker that is not ready within 5 seconds, which under load it may not be.
    patient = program.replace("workers=2", "workers=2, timeout_worker_healthcheck=30")
    (tmp_path / "uvicorn_workers.py").write_text(patient)
    with running([sys.executable, "uvicorn_workers.py", "0"], tmp_path) as uvicorn:
        wait_until(lambda: len(said(log, "uvicorn.error", "startup complete")) == 2, "two workers are there")
        clients = Clients(int(said(log, "uvicorn.error", r"running on http://127.0.0.1:(\d+)")[0]))

        clients.ask(20)
        clients.wait_for_answers(10)
        uvicorn.send_signal(signal.SIGHUP)
        clients.wait()
        assert clients.unanswered == set()
        wait_until(lambda: len(said(log, "uvicorn.error", "startup complete")) == 4, "the workers are new")
        wait_until(lambda: len(said(log, "uvicorn.error", "Finished server process")) == 2, "the old ones have ended")

        clients.ask(1)
        clients.wait()
        os.kill(list(clients.answers.values())[-1], signal.SIGKILL)
        # uvicorn waits the whole time for the answer of a worker that is killed just when it is asked.
        wait_until(lambda: len(said(log, "uvicorn.error", "startup complete")) == 5, "a worker takes its place", 60)

        clients.ask(20)
        clients.wait_for_answers(80)
        assert end(uvicorn) == 0
        clients.wait()

    names = clients.check(log, "uvicorn.access")
    assert len(names) > 2
    assert all(name.startswith("SpawnProcess-") for name in names)
    started = {int(pid) for pid in said(log, "uvicorn.error", r"Started server process \[(\d+)\]")}
    assert set(names.values()) <= started
    assert len(started) == 5
    assert entries(log)[-1]["text"].startswith("Stopping parent process")
    assert (tmp_path / "output").read_text() == ""
