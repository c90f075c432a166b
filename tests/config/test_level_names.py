"""Levels that the program has named are known by their names in all of its processes (fault 44)."""

from __future__ import annotations

import enum
import logging
import logging.handlers
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import lines, run

import mplog

pytestmark = pytest.mark.processes


class Level(enum.IntEnum):
    """Levels as a program may keep them."""

    TRACE = 5


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """A level with two names, the later one its own, and one of the stdlib's with another name."""
    before = logging._levelToName.copy(), logging._nameToLevel.copy()
    logging.addLevelName(Level.TRACE, "FINEST")
    logging.addLevelName(Level.TRACE, "TRACE")
    logging.addLevelName(logging.WARNING, "ATTENTION")
    yield
    for names, kept in zip((logging._levelToName, logging._nameToLevel), before):
        names.clear()  # type: ignore[attr-defined]
        names.update(kept)  # type: ignore[attr-defined]


class Knowing(logging.Formatter):
    """A formatter that looks names up, as those do that colour levels."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the name of the record's level, twice, and the number of another name."""
        names = record.levelname, logging.getLevelName(record.levelno), logging.getLevelName("FINEST")
        return f"{' '.join(map(str, names))} {record.getMessage()}"


def config(path: Path, **handler: Any) -> dict[str, Any]:
    """Return a configuration that names levels, in a logger and in a handler."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"f": {"()": Knowing}},
        "handlers": {"h": {"class": "logging.FileHandler", "filename": path, "formatter": "f", "level": "FINEST"}},
        "loggers": {"w": {"level": "TRACE"}},
        "root": {"handlers": ["h"], "level": "INFO"},
    }


def memory_config(path: Path) -> dict[str, Any]:
    """Return one whose handler buffers until a record of a named level comes."""
    base = config(path)
    base["handlers"]["memory"] = {
        "class": "logging.handlers.MemoryHandler",
        "capacity": 1000,
        "flushLevel": "TRACE",
        "target": "h",
    }
    base["root"]["handlers"] = ["memory"]
    return base


def sink_config(path: Path) -> dict[str, Any]:
    """Return one with a sink as its handler."""
    base = config(path)
    base["handlers"]["h"] = {"class": "mplog.FileSink", "path": path, "formatter": "f", "level": "TRACE"}
    return base


def sink_server(path: Path) -> mplog.LogServer:
    """Return a server that drops what is below a named level, and writes through what is above another."""
    return mplog.LogServer(
        mplog.FileSink(path, level="trace", format=Knowing()),
        level="FINEST",
        overflow=mplog.Overflow.drop_below("TRACE"),
        sync_level="ATTENTION",
    )


MAKE: dict[str, Callable[[Path], mplog.LogServer]] = {
    "configuration": lambda path: mplog.LogServer(config=config(path)),
    "configured sink": lambda path: mplog.LogServer(config=sink_config(path)),
    "memory handler": lambda path: mplog.LogServer(config=memory_config(path)),
    "sink": sink_server,
}


def log_as_worker(name: str) -> None:
    """Log at levels by number, and set one by name. Runs in a worker."""
    logging.getLogger("w").log(5, name)
    logging.getLogger("w.x").setLevel("FINEST")
    logging.getLogger("w.x").warning(name)


EXPECTED = ["TRACE TRACE 5 {}", "ATTENTION ATTENTION 5 {}"]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_names_are_known_in_every_process(
    make: Callable[[Path], mplog.LogServer], tmp_path: Path, context: Any
) -> None:
    """In the program, in workers, in the logging process, and in the one that takes its place."""
    path = tmp_path / "app.log"
    with make(path) as server:
        worker = context.Process(target=server.initializer.then(log_as_worker, "worker"))
        worker.start()
        worker.join(120)
        log_as_worker("program")
        server.set_level("other", "trace")
        logging.getLogger("other").log(5, "other")
        server.flush()
        killed = server.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.pid not in (killed, None), "another logging process")
        log_as_worker("again")
    expected = [text.format(name) for name in ("worker", "program") for text in EXPECTED]
    expected += [EXPECTED[0].format("other"), *(text.format("again") for text in EXPECTED)]
    assert [line for line in lines(path) if "mplog" not in line] == expected
    assert all(line.startswith("ATTENTION ATTENTION 5") for line in lines(path) if "mplog" in line)


def test_attached_program_knows_the_names(tmp_path: Path) -> None:
    """A program that joins by itself has the names before it names a level."""
    script = "import logging, mplog; mplog.attach(); logging.getLogger('w').setLevel('FINEST'); "
    script += "logging.getLogger('w').log(5, 'attached'); logging.warning('attached')"
    with mplog.LogServer(config=config(tmp_path / "app.log")):
        run(["-c", script])
    assert lines(tmp_path / "app.log") == [text.format("attached") for text in EXPECTED]


def test_name_that_is_added_later_is_the_records_own(tmp_path: Path) -> None:
    """A name that comes after the start is in the records of its level, and in workers that start after it."""
    with mplog.LogServer(tmp_path / "app.log", format="%(levelname)s %(message)s", level="TRACE") as server:
        logging.addLevelName(7, "LATER")
        logging.log(7, "program")
        server.set_level("w", "LATER")
        logging.getLogger("w").log(7, "set")
    assert lines(tmp_path / "app.log") == ["LATER program", "LATER set"]


def log_when_told(initializer: Any, conn: Any) -> None:
    """Runs in a worker: log to a logger that the configuration has disabled, before and after its level is set."""
    initializer()
    logging.getLogger("old").info("nowhere")
    conn.send(None)
    conn.recv()
    logging.getLogger("w").warning("a record, with which a worker looks")
    logging.getLogger("old").info("worker")


def test_level_that_is_set_enables_the_logger(tmp_path: Path, stdlib_context: Any) -> None:
    """A logger that the configuration has disabled, as existing ones by default, writes once its level is set."""
    old = logging.getLogger("old")
    ours, theirs = stdlib_context.Pipe()
    with mplog.LogServer(config=config(tmp_path / "app.log") | {"disable_existing_loggers": True}) as server:
        worker = stdlib_context.Process(target=log_when_told, args=(server.initializer, theirs))
        worker.start()
        assert ours.poll(60), "the worker has logged"
        old.info("nowhere")
        server.set_level("old", "INFO")
        old.info("program")
        ours.send(None)
        worker.join(60)
        assert worker.exitcode == 0
    assert [line.split()[-1] for line in lines(tmp_path / "app.log")] == ["program", "looks", "worker"]
    assert not old.disabled
