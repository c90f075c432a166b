"""Parts of the log: by logger, level and filter, and a file per worker or task (faults 4, 5, 10, 12 and 27)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from oracle import Producer, acknowledged, verdict, wait_until
from readers import running
from scripts import lines

import mplog
from mplog.files import archives
from mplog.files.names import FileNames
from mplog.files.open_file import FileOptions
from mplog.handlers.log_file import LogFileHandler
from mplog.handlers.routed import RoutedFileHandler
from mplog.handlers.routes import Routes
from mplog.sinks.file import FileSink
from mplog.sinks.routed import RoutedFileSink


def contents(directory: Path) -> dict[str, list[str]]:
    """Return the lines of all files, except what mplog itself says."""
    return {
        path.name: [line for line in lines(path) if "mplog:" not in line] for path in sorted(directory.glob("*.log"))
    }


# --- by logger ---


@pytest.mark.processes
def test_sink_of_a_logger_gets_its_subtree(tmp_path: Path) -> None:
    """What is logged at a logger or below goes into its sink, and, unless that is off, into those above."""
    with mplog.LogServer(
        mplog.FileSink(tmp_path / "all.log"),
        mplog.FileSink(tmp_path / "db.log", logger="app.db"),
        mplog.FileSink(tmp_path / "audit.log", logger="app.audit", propagate=False),
        mplog.FileSink(tmp_path / "errors.log", level="ERROR", logger="app"),
        level="INFO",
        format="%(message)s",
    ):
        logging.getLogger("app.db.pool").info("1")
        logging.getLogger("app.db").error("2")
        logging.getLogger("app.dba").info("3")
        logging.getLogger("app.audit.x").error("4")
        logging.getLogger("other").error("5")
    assert contents(tmp_path) == {
        "all.log": ["1", "2", "3", "5"],
        "db.log": ["1", "2"],
        "audit.log": ["4"],
        "errors.log": ["2"],
    }


def test_bad_loggers_are_refused() -> None:
    """There is nothing above the root logger, and a logger is given by its name."""
    with pytest.raises(ValueError, match="the root logger has none"):
        mplog.ConsoleSink(propagate=False)
    with pytest.raises(TypeError, match="the name of a logger"):
        mplog.ConsoleSink(logger=logging.getLogger("x"))


# --- by what is in a record ---


def _log_job(initializer: Any, number: int) -> None:
    """Runs in a worker: log with an extra attribute, and without."""
    initializer()
    logging.info("start")
    for step in range(50):
        logging.info("step %d", step, extra={"job": number})


def test_file_per_worker_and_per_job(tmp_path: Path, context: Any) -> None:
    """Each worker has its file, and each job has one; each has all of it, in order."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "jobs").mkdir()
    with mplog.LogServer(
        RoutedFileSink(tmp_path / "workers" / "{processName}.log"),
        RoutedFileSink(tmp_path / "jobs" / "job-{job}.log", missing="outside"),
        level="INFO",
        format="%(message)s",
    ) as server:
        workers = [
            context.Process(target=_log_job, args=(server.initializer, number), name=f"w{number}")
            for number in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    steps = [f"step {step}" for step in range(50)]
    assert contents(tmp_path / "workers") == {
        **{f"w{number}.log": ["start", *steps] for number in range(3)},
        **({"mplog.log": []} if (tmp_path / "workers" / "mplog.log").exists() else {}),
    }
    assert contents(tmp_path / "jobs") == {
        "job-outside.log": ["start"] * 3,
        **{f"job-{number}.log": steps for number in range(3)},
    }


@pytest.mark.processes
@pytest.mark.parametrize("field", ["threadName", "funcName", "module", "lineno"])
def test_fields_that_are_sent_on_request_are_there(tmp_path: Path, field: str) -> None:
    """A pattern of thread or place has workers send these, as a format does."""
    with mplog.LogServer(RoutedFileSink(tmp_path / f"{{{field}}}.log"), level="INFO", format="%(message)s"):
        logging.info("x")
    assert "none.log" not in contents(tmp_path)
    assert list(contents(tmp_path).values()) == [["x"]]


@pytest.mark.processes
@pytest.mark.parametrize("filters", [(), (lambda record: True,)], ids=["texts", "records"])
def test_hostile_values_stay_in_the_directory(tmp_path: Path, filters: Sequence[Any]) -> None:
    """Whatever a record says, its file is in the directory, and shared with no other value."""
    values = ["..", "../up", "/etc/x", "a\0b", "a\nb", "\ud800", "", "x" * 400, "x" * 401, None, ["a"], {"a": 1}, 1.5]
    (tmp_path / "in").mkdir()
    with mplog.LogServer(
        RoutedFileSink(tmp_path / "in" / "{job}.log", filters=filters), level="INFO", format="%(message)s"
    ) as server:
        for number, value in enumerate(values):
            logging.info("%d", number, extra={"job": value})
        server.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert sorted(contents(tmp_path / "in").values()) == sorted([str(number)] for number in range(len(values)))


@pytest.mark.processes
@pytest.mark.parametrize("filters", [(), (lambda record: True,)], ids=["texts", "records"])
def test_fields_of_any_origin_name_the_file(tmp_path: Path, filters: Sequence[Any]) -> None:
    """A pattern has constant, enriched and bound fields, too; what a record brings itself takes precedence."""
    fields = mplog.Fields({"service": "shop", "zone": 1}, enrichers=[lambda: {"host": "h"}])
    sink = RoutedFileSink(tmp_path / "{service}-{zone}-{host}-{job}.log", filters=filters)
    with mplog.LogServer(sink, level="INFO", format="%(message)s", fields=fields):
        logging.info("plain")
        with mplog.context(job=42):
            logging.info("bound")
            logging.info("own", extra={"service": "other", "zone": None})
    assert contents(tmp_path) == {
        "shop-1-h-none.log": ["plain"],
        "shop-1-h-42.log": ["bound"],
        "other-none-h-42.log": ["own"],
    }


@pytest.mark.processes
@pytest.mark.parametrize("filters", [(), (lambda record: True,)], ids=["texts", "records"])
def test_a_constant_field_names_the_file(tmp_path: Path, filters: Sequence[Any]) -> None:
    """Even if it is the only field of the pattern, and with records that have fields of their own or none."""
    sink = RoutedFileSink(tmp_path / "{service}.log", filters=filters)
    with mplog.LogServer(sink, level="INFO", format="%(message)s", fields={"service": "shop"}):
        logging.info("1")
        logging.info("2", extra={"job": 7})
        logging.info("3", extra={"service": "other"})
    assert contents(tmp_path) == {"shop.log": ["1", "2"], "other.log": ["3"]}


@pytest.mark.processes
def test_literal_braces(tmp_path: Path) -> None:
    """A FileSink takes braces as they are, a directory of a pattern too, and in a pattern they are doubled."""
    directory = tmp_path / "{logs}"
    directory.mkdir()
    with mplog.LogServer(
        directory / "{processName}.log",
        RoutedFileSink(directory / "{{x}}-{processName}.txt"),
        level="INFO",
        format="%(message)s",
    ):
        logging.info("x")
    assert sorted(os.listdir(directory)) == ["{processName}.log", "{x}-MainProcess.txt"]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("{job}/x.log", {}, "only the name of the file may have fields"),
        ("../{job}/{task}.log", {}, "only the name of the file may have fields"),
        ("x.log", {}, "Use a FileSink"),
        ("{job}.log", {"max_open": 0}, "at least 1"),
        ("{job}.log", {"archive": "x.{index}.log", "rotate": "1 MB"}, "is for a single file"),
        ("{job}.log", {"keep": 3}, "say when with rotate="),
    ],
)
def test_bad_patterns_are_refused_in_the_program(path: str, options: dict[str, Any], message: str) -> None:
    """What cannot work, or could lead out of the directory, raises before anything is started."""
    with pytest.raises(ValueError, match=message):
        RoutedFileSink(path, **options)


def _sinks(*sinks: FileSink | str) -> mplog.LogServer:
    return mplog.LogServer(*sinks)


@pytest.mark.parametrize(
    "sinks",
    [
        ("app.log", "./app.log"),
        ("app.log", RoutedFileSink("{job}.log")),
        (RoutedFileSink("{job}.log"), RoutedFileSink("{processName}.log")),
        (RoutedFileSink("a-{job}.log"), RoutedFileSink("a-{job}-{name}.log")),
        (
            FileSink("a.log", rotate="1 MB", archive="x.{index}.log"),
            FileSink("b.log", rotate="1 MB", archive="x.{index:03}.log"),
        ),
        (FileSink("a.log", rotate="1 MB", archive="x.%Y.{index}.log"), "x.2026.1.log"),
        (FileSink("a.log", rotate="1 MB", compress="gz", archive="x.{index}"), "x.7.gz"),
        (FileSink("a.txt", rotate="1 MB", archive="x.{index}.log"), RoutedFileSink("x.{job}.log")),
        (RoutedFileSink("{job}.log", rotate="1 MB", compress="gz"), "x.2026-11-20.001.log.gz"),
        (RoutedFileSink("{job}", rotate="1 MB"), FileSink("b.log", rotate="1 MB", archive="{index}.x")),
    ],
    ids=str,
)
def test_sinks_that_could_collide_are_refused(sinks: tuple[Any, ...]) -> None:
    """Two sinks that could write to one file, or rotate to one name, raise before anything is started."""
    for order in (sinks, sinks[::-1]):
        with pytest.raises(ValueError, match=r"given twice|could write to one file"):
            _sinks(*order)


@pytest.mark.parametrize(
    "sinks",
    [
        ("app.log", "app.error.log"),
        ("app.log", RoutedFileSink("worker-{job}.log")),
        ("app.log", RoutedFileSink("jobs/{job}.log")),
        (RoutedFileSink("{job}.log"), RoutedFileSink("{processName}.txt")),
        (FileSink("a.log", rotate="1 MB"), FileSink("b.log", rotate="1 MB")),
        (FileSink("app.log", rotate="1 MB", archive="app.{index}.log"), "app.error.log"),
        (FileSink("app.log", rotate="1 MB"), FileSink("app.db.log", rotate="1 MB")),
    ],
    ids=str,
)
def test_sinks_that_cannot_collide_are_accepted(sinks: tuple[Any, ...]) -> None:
    """Names that have nothing in common go together."""
    _sinks(*sinks)


@pytest.mark.processes
def test_rotated_files_are_tidied_up_with_a_plain_queue(tmp_path: Path) -> None:
    """With a plain queue of the stdlib, too, rotated files are compressed, and the oldest removed."""
    sink = RoutedFileSink(tmp_path / "{job}.log", rotate="200 B", keep=2, compress="gz")
    plain = multiprocessing.get_context("spawn").Queue(1000)
    with mplog.LogServer(sink, level="INFO", format="%(message)s", queue=plain) as server:
        for number in range(10):
            logging.info("%d %s", number, "x" * 100, extra={"job": "a"})
            server.flush()
        wait_until(lambda: len(list(tmp_path.glob("a.*.gz"))) == 2, "two are kept, compressed")


@pytest.mark.processes
def test_two_servers_of_one_pattern(tmp_path: Path) -> None:
    """The second server of a pattern is refused; a file that another server has is left to it, which is counted."""
    with mplog.LogServer(RoutedFileSink(tmp_path / "{job}.log"), level="INFO", format="%(message)s") as server:
        with pytest.raises(mplog.LogFileLockedError, match=r"\{job\}.log is already written"):
            mplog.LogServer(RoutedFileSink(tmp_path / "{job}.log")).start()
        with mplog.LogServer(mplog.FileSink(tmp_path / "a.log"), format="%(message)s"):
            pass
        other = LogFileHandler(str(tmp_path / "a.log"), FileOptions())
        logging.info("lost", extra={"job": "a"})
        logging.info("kept", extra={"job": "b"})
        server.flush()
        other.close()
        logging.info("there", extra={"job": "a"})
        stats = server.stop()
    assert sum(stats.failed.values()) == 1
    found = contents(tmp_path)
    assert (found["a.log"], found["b.log"]) == (["there"], ["kept"])
    assert any("1 record could not be written by <RoutedFileHandler" in line for line in lines(tmp_path / "none.log"))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


# --- many files ---


def _handler(directory: Path, max_open: int = 3, **options: Any) -> RoutedFileHandler:
    sink = RoutedFileSink(directory / "{job}.log", max_open=max_open, format="%(message)s", **options)
    handler = sink.open(logging.Formatter())
    assert isinstance(handler, RoutedFileHandler)
    return handler


def _handler_of(directory: Path, make: Callable[[str], LogFileHandler], max_open: int = 3) -> RoutedFileHandler:
    """Return a handler whose files are made by a function."""
    sink = RoutedFileSink(directory / "{job}.log")
    handler = RoutedFileHandler(sink.path, sink.names, make, max_open=max_open)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def _file(path: str, **options: Any) -> LogFileHandler:
    file = FileSink(path, **options).make_handler()
    assert isinstance(file, LogFileHandler)
    return file


def _open_files(directory: Path) -> list[str]:
    """Return the names of the open files, by their locks."""
    names = (name[1:].removesuffix(".lock") for name in os.listdir(directory) if name.endswith(".lock"))
    return sorted(name for name in names if "{" not in name)


def _record(job: object, message: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "job": job})


def test_no_more_files_are_open_than_allowed(tmp_path: Path) -> None:
    """However many files there are, few are open, each with its lock; each has everything, in order."""
    handler = _handler(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    chance = random.Random(1)
    expected: dict[str, list[str]] = {}
    for batch in range(30):
        for number in range(20):
            job = chance.randrange(12)
            handler.handle(_record(job, f"{batch}.{number}"))
            expected.setdefault(f"{job}.log", []).append(f"{batch}.{number}")
        handler.flush()
        assert len(os.listdir("/proc/self/fd")) <= before + 6
        assert len([name for name in os.listdir(tmp_path) if name.endswith(".lock")]) <= 4
    handler.close()
    assert contents(tmp_path) == dict(sorted(expected.items()))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_the_least_recently_written_file_is_closed(tmp_path: Path) -> None:
    """A file that is written all the time stays open."""
    opened: list[str] = []

    def make(path: str) -> LogFileHandler:
        opened.append(os.path.basename(path))
        return _file(path)

    handler = _handler_of(tmp_path, make)
    for number in range(10):
        for job in ("always", number):
            handler.handle(_record(job, "x"))
            handler.flush()
    handler.close()
    assert opened.count("always.log") == 1


def test_each_file_is_rotated_by_itself(tmp_path: Path) -> None:
    """Sizes and numbers of rotated files are those of each file."""
    handler = _handler(tmp_path, rotate=100, keep=2, compress=None)
    for number, job in itertools.product(range(30), "ab"):
        handler.handle(_record(job, f"{number:09}"))
        handler.flush()
    handler.close()
    for job in "ab":
        files = sorted(tmp_path.glob(f"{job}.*"))
        assert len(files) == 3
        found = [line for path in files for line in lines(path)]
        assert found == [f"{number:09}" for number in range(30 - len(found), 30)]


def test_compressing_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of which a rotated one is being compressed stays open meanwhile, beyond the bound, and is closed then."""

    def wait_for(name: str) -> None:
        wait_until(lambda: not made[name].is_tidying, f"nothing of {name} is being compressed")

    gate = threading.Event()
    compress = archives.compress_into
    made: dict[str, LogFileHandler] = {}

    def slowly(*arguments: Any) -> Any:
        assert gate.wait(60)
        return compress(*arguments)

    def make(path: str) -> LogFileHandler:
        file = made[os.path.basename(path)] = _file(path, rotate=4, compress="gz")
        return file

    monkeypatch.setattr(archives, "compress_into", slowly)
    handler = _handler_of(tmp_path, make, max_open=1)
    for job in ("a", "a", "b", "c"):
        handler.handle(_record(job, "xxx"))
        handler.flush()
        handler.settle()
        if job != "a":
            wait_for(f"{job}.log")
    assert _open_files(tmp_path) == ["a.log", "c.log"]
    gate.set()
    wait_for("a.log")
    handler.handle(_record("d", "xxx"))
    handler.flush()
    assert _open_files(tmp_path) == ["d.log"]
    handler.close()
    assert len(list(tmp_path.glob("a.*.log.gz"))) == 1


def test_full_disk_holds_up_what_it_concerns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written at the moment is kept, once and in order, while other files are written."""
    handler = _handler(tmp_path)
    handler.keeps_trying = True
    full = True
    write = os.write

    def failing(fd: int, data: Any) -> int:
        if full and os.readlink(f"/proc/self/fd/{fd}").endswith("a.log"):
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data)

    monkeypatch.setattr(os, "write", failing)
    for number, job in itertools.product(range(3), "abcdef"):
        handler.handle(_record(job, str(number)))
        handler.flush()
        assert isinstance(handler.stuck_by, OSError)
    full = False
    handler.flush()
    assert handler.stuck_by is None
    handler.close()
    assert contents(tmp_path) == {f"{job}.log": ["0", "1", "2"] for job in "abcdef"}


def test_no_descriptors_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be opened for want of a descriptor is tried again; one that is no file is counted."""
    is_short = True

    def make(path: str) -> LogFileHandler:
        if is_short:
            raise OSError(errno.EMFILE, "too many")
        return _file(path)

    handler = _handler_of(tmp_path, make)
    handler.keeps_trying = True
    failed: list[str] = []
    monkeypatch.setattr(handler, "handleError", lambda record: failed.append(record.getMessage()))
    (tmp_path / "fifo.log").mkdir()
    handler.handle(_record("a", "1"))
    handler.flush()
    assert handler.stuck_by is not None
    is_short = False
    handler.handle(_record("fifo", "2"))
    handler.flush()
    assert handler.stuck_by is None
    handler.close()
    (tmp_path / "fifo.log").rmdir()
    assert contents(tmp_path) == {"a.log": ["1"]}
    assert failed == ["2"]


def test_reopen_follows_moved_files(tmp_path: Path) -> None:
    """After a move, as by logrotate, reopen() goes on in new files."""
    handler = _handler(tmp_path)
    handler.handle(_record("a", "1"))
    handler.flush()
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    handler.reopen()
    handler.handle(_record("a", "2"))
    handler.close()
    assert (lines(tmp_path / "a.log.1"), lines(tmp_path / "a.log")) == (["1"], ["2"])


def test_closed_files_are_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forced to the disk is all that was written, also into files that have been closed since."""
    handler = _handler(tmp_path, max_open=1)
    for job in "abc":
        handler.handle(_record(job, "x"))
    handler.flush()
    synced: set[str] = set()
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda fd, real=real: (synced.add(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), real(fd))
        )
    handler.sync()
    assert synced == {"a.log", "b.log", "c.log"}
    handler.close()


def test_many_names_take_little_memory() -> None:
    """Names that are remembered have a bound, and long ones are not remembered."""
    routes = Routes(FileNames("{job}.log", "none"))
    for number in range(12_000):
        assert routes.name_of(_record(number, "")) == f"{number}.log"
    routes.name_of(_record("x" * 5000, ""))
    assert len(routes.by_values) <= 10_000
    assert max(len(key[0]) for key in routes.by_values) < 1000


# --- kills ---


class _Router:
    """Gives lines of one producer to many files."""

    def __init__(self, files: int) -> None:
        self.files = files

    def filter(self, record: logging.LogRecord) -> bool:
        record.job = str(record.args[1] % self.files) if isinstance(record.args, tuple) else "none"  # type: ignore[operator]
        return True


def _flood(initializer: Any, directory: str, name: str, files: int, ending: Any) -> None:
    """Runs in a worker: log numbered lines for many files until told to end."""
    initializer()
    logger = logging.getLogger("producer")
    logger.addFilter(_Router(files))
    producer = Producer(directory, name)
    while not ending.is_set():
        for _ in range(20):
            producer.log(100, logger)


def _merge(directory: Path, files: int, target: Path) -> None:
    """Put all files together, each line by its number, and hold each file to its own lines, in order."""
    merged: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(directory.iterdir()):
        last: dict[str, int] = {}
        for line in lines(path):
            if "producer=" not in line:
                continue
            producer, number = line.split("producer=")[1].split()[0], int(line.split("seq=")[1].split()[0])
            assert path.name.split(".")[0] == str(number % files)
            assert last.get(producer, 0) < number, f"doubled or out of order in {path.name}: {line[:100]}"
            last[producer] = number
            merged.setdefault(producer, []).append((number, line))
    target.write_text("".join(f"{line}\n" for found in merged.values() for _, line in sorted(found)))


# 120 are more than the note of the buffers has room for; of 12 files, 8 are opened again and again.
@pytest.mark.processes
@pytest.mark.parametrize(
    ("moments", "files", "max_open"),
    [
        ("random", 120, 120),
        ("random", 12, 8),
        ("before write:300", 120, 120),
        ("before commit:150", 120, 120),
        ("after write:3", 12, 8),
    ],
)
def test_killed_logging_process_loses_nothing_in_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: str, files: int, max_open: int
) -> None:
    """Killed while it writes many more files than may be open, nothing is lost, doubled or torn in any of them."""
    if moments != "random":
        monkeypatch.setenv("MPLOG_KILL_AT", moments)
    logs = tmp_path / "logs"
    logs.mkdir()
    context, chance = multiprocessing.get_context("fork"), random.Random(3)
    ending = context.Event()
    with mplog.LogServer(RoutedFileSink(logs / "{job}.log", max_open=max_open), level="INFO") as server:
        first, directory = server.pid, server.queue.directory
        workers = [
            context.Process(target=_flood, args=(server.initializer, str(tmp_path), f"w{number}", files, ending))
            for number in range(2)
        ]
        with running(workers):
            for _ in range(6 if moments == "random" else 0):
                count = acknowledged(tmp_path, "w0")
                wait_until(lambda count=count: acknowledged(tmp_path, "w0") > count + 100, "the worker logs on")
                time.sleep(chance.uniform(0, 0.05))  # the moment of the kill, which is to be any
                with contextlib.suppress(ProcessLookupError):  # the next one is still to come
                    os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: server.pid != first, "it is restarted")
            count = acknowledged(tmp_path, "w0")
            wait_until(lambda: acknowledged(tmp_path, "w0") > count + 100, "the worker logs on")
            ending.set()
            for worker in workers:
                worker.join(60)
                assert worker.exitcode == 0
        server.flush()
        assert [name for name in os.listdir(directory) if name.startswith("announced")] == []
    _merge(logs, files, tmp_path / "merged.log")
    found = verdict(tmp_path / "merged.log", tmp_path)
    assert found.clean, found
    assert [name for name in os.listdir(logs) if name.startswith(".")] == []
