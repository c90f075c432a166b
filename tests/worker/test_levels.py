"""Levels that are changed while workers run: `LogServer.set_level`."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest

import mplog

pytestmark = pytest.mark.processes

FORMAT = "%(levelname)s %(name)s | %(message)s"


def obey(initializer: Any, connection: Any) -> None:
    """Runs in a worker: do what it is told, and say so."""
    initializer()
    while (order := connection.recv()) is not None:
        name, level, message = order
        if message:
            logging.getLogger(name).log(level, message)
        else:
            logging.getLogger(name).setLevel(level)
        connection.send(os.getpid())


class Worker:
    """A worker that logs what it is told."""

    def __init__(self, context: Any, initializer: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=obey, args=(initializer, theirs))
        self.process.start()
        theirs.close()

    def log(self, name: str, level: int, message: str) -> None:
        """Let the worker log, and wait until it has."""
        self.tell(name, level, message)

    def tell(self, name: str, level: int | str, message: str) -> None:
        """Let the worker log, or, without a message, set a level of its own."""
        self.connection.send((name, level, message))
        assert self.connection.poll(60), "the worker does not answer"
        self.connection.recv()

    def end(self) -> None:
        """Let the worker end."""
        self.connection.send(None)
        self.process.join(60)
        assert self.process.exitcode == 0
        self.connection.close()


@pytest.fixture(params=[logging.Logger, mplog.Logger], ids=["stdlib", "mplog"])
def server(request: pytest.FixtureRequest, log: Path) -> Iterator[mplog.LogServer]:
    """A running server at INFO, with either class of loggers."""
    with mplog.LogServer(log, level="INFO", format=FORMAT, logger_class=request.param) as server:
        yield server


def written(server: mplog.LogServer, log: Path) -> list[str]:
    """Return the messages in the log."""
    server.flush()
    return jobs.messages_in(log)


def test_running_worker_notices(context: Any, server: mplog.LogServer, log: Path) -> None:
    """With its next record, a running worker takes over a level, up and down, under every start method."""
    worker = Worker(context, server.initializer)
    worker.log("app.db", logging.DEBUG, "too low")
    server.set_level("app", "DEBUG")
    worker.log("other", logging.INFO, "notices")
    worker.log("app.db", logging.DEBUG, "now")
    worker.log("other", logging.DEBUG, "another logger")
    server.set_level("app", logging.WARNING)
    worker.log("app.db", logging.WARNING, "notices, too")
    worker.log("app.db", logging.INFO, "no more")
    worker.end()
    assert written(server, log) == ["notices", "now", "notices, too"]


def test_mplog_logger_notices_with_a_call_that_is_off(stdlib_context: Any, log: Path) -> None:
    """With mplog.Logger, a worker notices at its next call, even if its levels let nothing through."""
    with mplog.LogServer(log, level="ERROR", format=FORMAT, logger_class=mplog.Logger) as server:
        worker = Worker(stdlib_context, server.initializer)
        worker.log("app", logging.DEBUG, "off")
        server.set_level("root", "DEBUG")
        worker.log("app", logging.DEBUG, "on")
        worker.end()
        assert written(server, log) == ["on"]


def test_worker_started_later_has_the_level(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """A worker that is started after the change has the level from its first call on."""
    server.set_level("app", "DEBUG")
    worker = Worker(stdlib_context, server.initializer)
    worker.log("app", logging.DEBUG, "on")
    worker.end()
    assert written(server, log) == ["on"]


def test_attached_program_has_the_level(server: mplog.LogServer, log: Path) -> None:
    """A program that attaches itself after the change has the level."""
    server.set_level("app", "DEBUG")
    done = jobs.run_python(["-c", "import logging, mplog; mplog.attach(); logging.getLogger('app').debug('on')"])
    assert (done.returncode, done.stderr) == (0, "")
    assert written(server, log) == ["on"]


def test_process_forked_by_a_worker_notices(server: mplog.LogServer, log: Path) -> None:
    """A process that was forked before a change, without any initializer, notices it."""
    changed, change = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(changed, 1)
        logging.getLogger("other").info("notices")
        logging.getLogger("app").debug("on")
        os._exit(0)
    server.set_level("app", "DEBUG")
    os.write(change, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(changed)
    os.close(change)
    assert written(server, log) == ["notices", "on"]


def test_level_that_a_worker_sets_itself_stays(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """A change of one logger does not bring back an earlier change of another."""
    server.set_level("app", "DEBUG")
    worker = Worker(stdlib_context, server.initializer)
    worker.log("app", logging.DEBUG, "before")
    worker.tell("app", "ERROR", "")
    server.set_level("other", "DEBUG")
    worker.log("x", logging.INFO, "notices")
    worker.log("other", logging.DEBUG, "has noticed")
    worker.log("app", logging.WARNING, "below the level of its own")
    worker.end()
    assert written(server, log) == ["before", "notices", "has noticed"]


def test_stop_puts_levels_back(log: Path) -> None:
    """stop() undoes what set_level() did, but not what the program has set since."""
    logging.getLogger("one").setLevel("ERROR")
    server = mplog.LogServer(log, level="INFO").start()
    for name in ("", "one", "two", "three"):
        server.set_level(name, "DEBUG")
        assert logging.getLogger(name).level == logging.DEBUG
    logging.getLogger("three").setLevel("CRITICAL")
    server.stop()
    levels = {name: logging.getLogger(name).level for name in ("", "one", "two", "three")}
    assert levels == {"": logging.WARNING, "one": logging.ERROR, "two": 0, "three": logging.CRITICAL}


@pytest.mark.parametrize("level", ["LOUD", None, 1.5])
def test_wrong_level_is_refused(server: mplog.LogServer, level: Any) -> None:
    """A value that is no level raises, and changes nothing."""
    with pytest.raises((TypeError, ValueError)):
        server.set_level("app", level)
    assert logging.getLogger("app").level == logging.NOTSET


def test_server_that_does_not_run_cannot_set_levels(log: Path) -> None:
    """Before start() and after stop() there are no workers to tell."""
    with pytest.raises(mplog.ServerStateError):
        mplog.LogServer(log).set_level("app", "DEBUG")


def test_with_a_plain_queue_workers_started_later_have_the_level(log: Path) -> None:
    """With a plain queue, this process and new workers have the level."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(1000)
    with mplog.LogServer(log, level="INFO", format=FORMAT, queue=queue) as server:
        server.set_level("app", "DEBUG")
        worker = Worker(context, server.initializer)
        worker.log("app", logging.DEBUG, "on")
        worker.end()
    assert jobs.messages_in(log) == ["on"]
    queue.close()
    queue.join_thread()
