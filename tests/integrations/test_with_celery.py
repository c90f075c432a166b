"""Celery with its pool of prefork processes, which are replaced, killed and stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from managed import end, entries, running, said
from oracle import wait_until
from scripts import environment, server_processes

pytestmark = pytest.mark.processes

#: As a script: with ``python -m``, Celery could not restart itself.
CELERY = str(Path(sys.executable).with_name("celery"))
WORKER = [sys.executable, CELERY, "-A", "celery_prefork", "worker", "-c", "2"]


#: A task that kills its process.
DEADLY = """
import os, signal
from celery_prefork import app, logger

@app.task
def die(*_):
    logger.info("dying")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def send(directory: Path, first: int, last: int, task: str = "celery_prefork.add") -> None:
    """Send tasks, numbered."""
    code = f"import celery_prefork\nfor n in range({first}, {last}): celery_prefork.app.send_task({task!r}, (n, 1))"
    subprocess.run([sys.executable, "-c", code], cwd=directory, env=environment(), check=True, timeout=60)


def wait_for_tasks(log: Path, number: int) -> None:
    """Wait until so many tasks are done."""
    wait_until(
        lambda: len(said(log, "celery.app.trace", "succeeded")) >= number, f"{number} tasks are done", timeout=60
    )


def check(log: Path, tasks: int) -> set[str]:
    """Compare the log with the tasks; return the names of the processes that did them."""
    done = Counter(int(n) for n in said(log, "celery_prefork", r"^adding (\d+) and 1$"))
    assert done == Counter(range(tasks))
    by_process: dict[str, list[str]] = defaultdict(list)
    for line in entries(log):
        if re.match(r"adding|Task celery_prefork\.add.* succeeded", line["text"]):
            by_process[line["process"]].append(line["text"])
    for texts in by_process.values():
        for begun, ended in zip(texts[::2], texts[1::2], strict=True):
            number = re.fullmatch(r"adding (\d+) and 1", begun)
            assert number
            assert re.search(rf"succeeded in \S+s: {int(number[1]) + 1}$", ended)
    return set(by_process)


def test_processes_that_end_after_some_tasks(tmp_path: Path) -> None:
    """With max-tasks-per-child, the log has each task's records once, and a warm shutdown loses none."""
    log = tmp_path / "celery.log"
    with running([*WORKER, "--max-tasks-per-child", "5"], tmp_path, "celery_prefork.py") as celery:
        send(tmp_path, 0, 20)
        wait_for_tasks(log, 20)
        send(tmp_path, 20, 40)
        wait_for_tasks(log, 40)
        celery.send_signal(signal.SIGTERM)
        # Not its end: when all is said and done, Celery, also without mplog, may wait for ever for a lock that one of
        # its processes has died with (Pool._help_stuff_finish of billiard 4.3).
        wait_until(lambda: not server_processes(), "the logging process has ended")
    names = check(log, 40)
    assert len(names) >= 8
    assert all(re.fullmatch(r"ForkPoolWorker-\d+", name) for name in names)
    assert "worker: Warm shutdown (MainProcess)" in (tmp_path / "output").read_text()


#: A task that takes its time, in processes that leave SIGTERM to the main process: by itself, Celery lets it end them.
SLOW = """
import signal, time
from celery import signals
from celery_prefork import app, logger

@signals.worker_process_init.connect
def ignore(**_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

@app.task
def sleep(seconds, _):
    logger.info("begun")
    time.sleep(seconds)
    logger.info("ended")
"""


def test_sigterm_to_all_while_a_task_takes_its_time(tmp_path: Path) -> None:
    """SIGTERM to the whole group, and to the logging process: what Celery and its pool log until their end is there."""
    log = tmp_path / "celery.log"
    (tmp_path / "slow.py").write_text(SLOW)
    with running([*WORKER, "-I", "slow"], tmp_path, "celery_prefork.py") as celery:
        send(tmp_path, 8, 9, "slow.sleep")
        wait_until(lambda: said(log, "celery_prefork", "begun"), "a task has begun", timeout=60)
        os.killpg(celery.pid, signal.SIGTERM)
        for process in server_processes():
            process.terminate()
        wait_until(lambda: not server_processes(), "the logging process has ended", timeout=60)
    assert said(log, "celery_prefork", "ended") == ["ended"]
    assert said(log, "celery.app.trace", "succeeded") == ["succeeded"]


def test_process_that_is_killed(tmp_path: Path) -> None:
    """A process of the pool that is killed has left what it logged, and the log goes on with the one in its place."""
    log = tmp_path / "celery.log"
    (tmp_path / "deadly.py").write_text(DEADLY)
    with running([*WORKER, "-I", "deadly"], tmp_path, "celery_prefork.py"):
        send(tmp_path, 0, 10)
        wait_for_tasks(log, 10)
        # In a task: one that is killed while it waits for one may leave Celery's own pool locked.
        send(tmp_path, 0, 1, "deadly.die")
        wait_until(lambda: said(log, "mplog", r"^mplog: ForkPoolWorker-\d+ .* killed by SIGKILL"), "it is said")
        wait_until(lambda: said(log, "multiprocessing", "SIGKILL"), "Celery has said it as well")
        send(tmp_path, 10, 20)
        wait_for_tasks(log, 20)
        # Not its end: with Celery 5.7, a warm shutdown after the death of a process may never end.
    assert said(log, "celery_prefork", "^dying") == ["dying"]
    check(log, 20)


@pytest.mark.long  # each of Celery's two ends takes five seconds
def test_worker_that_restarts_itself(tmp_path: Path) -> None:
    """A worker that is told to by SIGHUP ends its server and starts another one, in the same log."""
    log = tmp_path / "celery.log"
    with running(WORKER, tmp_path, "celery_prefork.py") as celery:
        send(tmp_path, 0, 10)
        wait_for_tasks(log, 10)
        celery.send_signal(signal.SIGHUP)
        wait_until(lambda: len(said(log, "celery.apps.worker", "ready")) == 2, "it is there again")
        send(tmp_path, 10, 20)
        wait_for_tasks(log, 20)
        assert end(celery) == 0
    check(log, 20)
