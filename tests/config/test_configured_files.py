"""The files of a configuration when processes are killed: as safe as any other log (promise 4; faults 1, 4, 12)."""

from __future__ import annotations

import gzip
import logging
import logging.handlers
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from logs import rotated
from oracle import Producer, acknowledged, verdict, wait_until
from scripts import lines, stop_all_threads

import mplog
from mplog.logging_process.messages import Patience
from mplog.queue.kill_points import VARIABLE

pytestmark = pytest.mark.processes

Config = dict[str, Any]


def config_of(**handlers: Config) -> Config:
    """Return a configuration with these handlers, all of them on the root logger."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"text": {"format": "%(message)s"}},
        "handlers": {name: {"formatter": "text", "encoding": "utf-8", **entry} for name, entry in handlers.items()},
        "root": {"handlers": list(handlers), "level": "INFO"},
    }


def joined(log: Path) -> Path:
    """Return a file with what is in all files of a log, the oldest first."""
    numbered = sorted((int(path.suffix[1:]), path) for path in log.parent.glob(f"{log.name}.*"))
    path = log.with_name("joined")
    path.write_bytes(b"".join(path.read_bytes() for path in [*(path for _, path in reversed(numbered)), log]))
    return path


def restarts(log: Path) -> list[str]:
    """Return what the log says about restarts."""
    return [line for line in lines(log) if "restarted as" in line]


def flood(initializer: Any, directory: Path, name: str, pause: float = 0) -> None:
    """Runs in a worker: log lines of many lengths, 20 between two pauses, until there is a file that says the end."""
    initializer()
    producer = Producer(directory, name)
    sizes = random.Random(name)
    # No multiprocessing.Event, whose lock a worker that is killed may hold.
    while not (directory / "end").exists():
        for _ in range(20):
            producer.log(sizes.choice((20, 100, 1000, 5000)))
        time.sleep(pause)


def rotate_under_kills(directory: Path, kills: int, make_server: Callable[[Path], mplog.LogServer]) -> Path:
    """Have 8 workers log into a file that is rotated all the time, and kill workers and logging processes."""
    chance = random.Random(3)
    log = directory / "logs" / "app.log"
    log.parent.mkdir()
    context = multiprocessing.get_context("fork")
    with make_server(log) as server:
        workers = {
            name: context.Process(target=flood, args=(server.initializer, directory, name))
            for name in [f"w{number}" for number in range(8)]
        }
        try:
            for worker in workers.values():
                worker.start()
            for _ in range(kills):
                before = {name: acknowledged(directory, name) for name in workers}
                wait_until(
                    lambda before=before: all(acknowledged(directory, name) > count for name, count in before.items()),
                    "every worker logs on",
                )
                time.sleep(chance.uniform(0, 0.05))  # the moment of the kill, which is to be any
                killed = server.pid
                os.kill(killed, signal.SIGKILL)
                if len(workers) > 5:
                    worker = workers.pop(chance.choice(list(workers)))
                    worker.kill()
                    worker.join(60)
                wait_until(lambda killed=killed: server.pid != killed, "it is restarted")
            (directory / "end").touch()
            for worker in workers.values():
                worker.join(60)
                assert worker.exitcode == 0
        finally:
            for worker in workers.values():
                worker.kill()
                worker.join(60)
    return log


def rotating_handler(log: Path) -> mplog.LogServer:
    """Return a server with the stdlib's handler."""
    rotating = {"class": "logging.handlers.RotatingFileHandler", "filename": str(log)}
    return mplog.LogServer(config=config_of(file={**rotating, "maxBytes": 500_000, "backupCount": 2000}))


@pytest.mark.parametrize(
    "kills", [4, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(900)])], ids=["short", "long"]
)
def test_rotation_under_kills_has_each_record_in_one_file(tmp_path: Path, kills: int) -> None:
    """However workers and logging processes die, each record is in one file, whole, and in order across the files."""
    log = rotate_under_kills(tmp_path, kills, rotating_handler)
    assert sorted(name for name in os.listdir(log.parent) if name.startswith(".")) == []
    files = sorted(log.parent.glob("app.log*"))
    assert len(files) > 3
    # A record is never longer than the room that the stdlib would have left for it.
    assert all(path.stat().st_size < 500_000 for path in files)
    whole = joined(log)
    assert restarts(whole)
    found = verdict(whole, tmp_path)
    assert found.clean, found


def rotating_sink(log: Path, compress: Literal["gz"] | None) -> mplog.LogServer:
    """Return a server with a sink."""
    return mplog.LogServer(mplog.FileSink(log, rotate=500_000, compress=compress), level="INFO", format="%(message)s")


def configured_sink(log: Path, compress: Literal["gz"] | None) -> mplog.LogServer:
    """Return a server whose configuration names a sink."""
    sink = {"class": "mplog.FileSink", "path": str(log), "rotate": 500_000, "compress": compress}
    return mplog.LogServer(config=config_of(file=sink))


@pytest.mark.parametrize(
    ("make_server", "compress"),
    [(rotating_sink, None), (rotating_sink, "gz"), (configured_sink, "gz")],
    ids=["sink", "compressed", "configured"],
)
def test_rotation_of_a_sink_under_kills(
    tmp_path: Path,
    make_server: Callable[[Path, Literal["gz"] | None], mplog.LogServer],
    compress: Literal["gz"] | None,
) -> None:
    """The same for a FileSink, also that of a configuration, whose rotated files are compressed meanwhile."""
    log = rotate_under_kills(tmp_path, 4, lambda log: make_server(log, compress))
    files = rotated(log)
    assert len(files) > 3
    assert {path.suffix for path in files} == {".gz" if compress else ".log"}
    data = [gzip.decompress(path.read_bytes()) if compress else path.read_bytes() for path in files]
    assert all(len(each) <= 500_000 for each in data)
    whole = log.with_name("joined")
    whole.write_bytes(b"".join([*data, log.read_bytes()]))
    assert restarts(whole)
    found = verdict(whole, tmp_path)
    assert found.clean, found


@pytest.mark.parametrize(
    "point",
    [*(f"before write:{moment}" for moment in (1, 2, 5, 17)), "after write:1", "after write:2", "after commit:20"],
)
def test_batch_of_many_rotations_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Killed between two of the many rotations of one batch: the files are those that no kill would have left."""
    monkeypatch.setenv(VARIABLE, point)
    log = tmp_path / "app.log"
    rotating = {"class": "logging.handlers.RotatingFileHandler", "filename": str(log), "maxBytes": 30}
    # Two handlers of one file make the parts of a batch short.
    twice = {"class": "logging.FileHandler", "filename": str(tmp_path / "twice.log")}
    config = config_of(file={**rotating, "backupCount": 4}, one=twice, two={**twice, "level": "CRITICAL"})
    log.write_text("old 0\n")
    for number in range(1, 5):
        log.with_name(f"app.log.{number}").write_text(f"old {number}\n")
    with mplog.LogServer(config=config) as server:
        logging.info("record a")
        server.flush()
        pid = server.pid
        stop_all_threads(pid)
        for number in range(12):
            logging.info("record %d", number)
        os.kill(pid, signal.SIGCONT)
        server.flush()
    written = [line for line in lines(tmp_path / "twice.log") if "mplog:" not in line]
    assert written == ["record a", *(f"record {number}" for number in range(12))]
    assert len(restarts(tmp_path / "twice.log")) == 1
    kept = [line for line in lines(joined(log)) if "mplog:" not in line]
    # Of five files, one may be that of the line about the restart, and two may hold a record only.
    assert len(kept) >= 6
    assert kept == [*(f"old {number}" for number in (4, 3, 2, 1, 0)), *written][-len(kept) :]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


class Poisoned(logging.Handler):
    """Kills its process when it is told to."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        if "poison" in record.getMessage():
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_given_up_is_written_by_the_next_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the logging process is given up, the rest is kept beside the first file, for the next server of it."""
    patience = Patience(at_once=2, first_pause=0.01, longest_pause=0.02, restarts=4, seconds=0.2)
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", patience)
    log = tmp_path / "app.log"
    config = config_of(device={"class": "logging.FileHandler", "filename": "/dev/null"})
    config["handlers"]["file"] = {"class": "logging.FileHandler", "filename": str(log), "formatter": "text"}
    config["root"]["handlers"].append("file")
    poisoned = {**config, "handlers": {**config["handlers"], "bad": {"()": Poisoned}}}
    poisoned["root"] = {**config["root"], "handlers": [*config["root"]["handlers"], "bad"]}
    server = mplog.LogServer(config=poisoned).start()
    logging.info("first")
    server.flush()
    logging.info("poison")
    logging.info("last")
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert (tmp_path / ".app.log.emergency").exists()
    with mplog.LogServer(config=config) as following:
        following.flush()
        logging.info("on")
    assert [line for line in lines(log) if "mplog:" not in line] == ["first", "poison", "last", "on"]


def test_restarted_process_empties_nothing(tmp_path: Path) -> None:
    """With ``mode: "w"``, the file begins empty, and keeps what was written before the logging process was killed."""
    log = tmp_path / "app.log"
    log.write_text("of the last run\n")
    config = config_of(file={"class": "logging.FileHandler", "filename": str(log), "mode": "w"})
    with mplog.LogServer(config=config) as server:
        logging.info("before")
        server.flush()
        killed = server.pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.pid != killed, "it is restarted")
        logging.info("after")
        server.flush()
    assert [line for line in lines(log) if "mplog:" not in line] == ["before", "after"]
    assert restarts(log)


def test_file_is_watched(tmp_path: Path) -> None:
    """What is logged after logrotate has moved the file of a WatchedFileHandler is in the new one, and nothing else."""
    log = tmp_path / "app.log"
    watched = {"class": "logging.handlers.WatchedFileHandler", "filename": str(log)}
    with mplog.LogServer(config=config_of(file=watched)) as server:
        logging.info("before")
        server.flush()
        log.rename(tmp_path / "app.log.1")
        logging.info("after")
        server.flush()
    assert (lines(tmp_path / "app.log.1"), lines(log)) == (["before"], ["after"])


def test_adopted_handlers_rotate_alike(tmp_path: Path) -> None:
    """from_logging() takes a rotating handler over: the names and sizes are those that it would have made itself."""
    expected = {}
    for how in ("stdlib", "mplog"):
        log = tmp_path / how / "app.log"
        log.parent.mkdir()
        handler = logging.handlers.RotatingFileHandler(log, maxBytes=50, backupCount=3, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root = logging.getLogger()
        root.handlers = [handler]
        if how == "stdlib":
            for number in range(30):
                logging.warning("record %d", number)
        else:
            logging.warning("record 0")
            with mplog.LogServer.from_logging() as server:
                for number in range(1, 29):
                    logging.warning("record %d", number)
                server.flush()
            logging.warning("record 29")
        handler.close()
        expected[how] = {path.name: path.read_bytes() for path in log.parent.iterdir()}
    assert len(expected["stdlib"]) == 4
    assert expected["mplog"] == expected["stdlib"]
