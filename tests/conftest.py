"""Fixtures that all tests share: start methods and libraries, servers that log to a file, and root loggers put back."""

from __future__ import annotations

import compileall
import functools
import glob
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from multiprocessing import util
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from scripts import FORMAT, TESTS, Gate
from start_methods import LIBRARIES, PAIRS, START_METHODS

import mplog

# Other programs run beside the tests, so no example has a limit of its own. Each run has the same examples;
# --hypothesis-profile=explore looks for new ones.
EXAMPLES: dict[str, Any] = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("explore", **EXAMPLES)
hypothesis.settings.register_profile("repeat", derandomize=True, **EXAMPLES)
hypothesis.settings.load_profile("repeat")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """With ``-n auto``, run two tests more than there are CPUs: many of them wait for processes to start and to end."""
    return (os.cpu_count() or 1) + 2


def pytest_configure(config: pytest.Config) -> None:
    """Have all processes that the tests start begin alike, and soon."""
    # Thousands of processes import the same modules, and would compile them each time if the result were not kept.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if not hasattr(config, "workerinput"):
        for directory in (Path(mplog.__file__).parent, TESTS):
            compileall.compile_dir(directory, quiet=2)
    sys.addaudithook(_refuse_processes)
    for library in LIBRARIES.values():
        # No audit event of Python tells of spawn, nor of a child of the fork server.
        library.process.BaseProcess.start = _audited(library.process.BaseProcess.start)
    # What a shell starts in the background ignores SIGINT, and so would they.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What most modules of tests import, once, and not in each of the processes that are forked.
    for library in LIBRARIES.values():
        library.set_forkserver_preload(["hypothesis", "multiprocess", "psutil", "pytest"])


def pytest_collection_finish() -> None:
    """Look for modules in the folders of the tests last: all processes that the tests start take over this path."""
    sys.path.sort(key=lambda entry: entry.startswith(f"{TESTS}{os.sep}"))


#: The audit events of a new process; the last one is ours.
STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen", "Process.start"}

#: Fixtures that start processes, or that say how a test starts them.
STARTERS = {"context", "server", "small_disk", "start_method", "stdlib_context"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a fixture which starts processes, and those that take long.

    So ``-m "not processes"``, which takes the place of ``-m "not long"``, selects none of these either.
    """
    for item in items:
        if item.get_closest_marker("long") or not STARTERS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("processes")


#: The test that runs now, where it may not start a process.
_unmarked: pytest.Item | None = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold a test without the marker to starting no process."""
    global _unmarked
    _unmarked = None if item.get_closest_marker("processes") else item
    try:
        return (yield)
    finally:
        _unmarked = None


def _refuse_processes(event: str, _: tuple[Any, ...]) -> None:
    if event in STARTS and _unmarked is not None:
        pytest.fail(f"{_unmarked.nodeid} starts a process ({event}): mark it with pytest.mark.processes")


def _audited(start: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(start)
    def audited(self: Any) -> None:
        sys.audit("Process.start")
        start(self)

    return audited


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each way to start a process."""
    return str(request.param)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    """multiprocessing, and multiprocess."""
    return LIBRARIES[request.param]


@pytest.fixture(params=PAIRS, ids="-".join)
def context(request: pytest.FixtureRequest) -> Any:
    """A context of each start method and of each library."""
    start_method, library = request.param
    return LIBRARIES[library].get_context(start_method)


@pytest.fixture
def stdlib_context(start_method: str) -> Any:
    """Each start method of multiprocessing."""
    return multiprocessing.get_context(start_method)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The path of a log that is not there yet."""
    return tmp_path / "app.log"


@pytest.fixture
def server(log: Path) -> Iterator[mplog.LogServer]:
    """A running server that writes all levels to `log` in FORMAT."""
    with mplog.LogServer(log, level="DEBUG", format=FORMAT) as server:
        yield server


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A closed gate, which is opened at the end, whatever happens."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()
    os.close(gate.fd)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 1 MiB, or of the size that the test asks for."""
    place = tmp_path / "disk"
    place.mkdir()
    size = getattr(request, "param", "1m")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "mplog-test", place], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Put all loggers back as they were, whatever a test does to them; some libraries (dill) have set theirs up."""
    before = {logger: _state(logger) for logger in _all_loggers()}
    disable = logging.Logger.manager.disable
    yield
    logging.disable(disable)
    for logger in _all_loggers():
        handlers, filters, level, propagate, disabled = before.get(logger, ([], [], logging.NOTSET, True, False))
        logger.handlers, logger.filters, logger.propagate, logger.disabled = handlers, filters, propagate, disabled
        if logger.level != level:  # setLevel() looks at all loggers
            logger.setLevel(level)


def _all_loggers() -> list[logging.Logger]:
    known = list(logging.Logger.manager.loggerDict.values())
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]


def _state(logger: logging.Logger) -> tuple[list[Any], list[Any], int, bool, bool]:
    return logger.handlers[:], logger.filters[:], logger.level, logger.propagate, logger.disabled


@pytest.fixture(scope="session")
def temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A temporary directory for the whole run of this pytest process, in which no other one works."""
    tmp_path_factory.getbasetemp()  # stays where it is
    # Not below tmp_path: the paths of sockets have a limit of about 100 characters.
    directory = tempfile.mkdtemp(prefix="t")
    # After multiprocessing, which has a directory in there and removes it itself at exit.
    util.Finalize(None, shutil.rmtree, (directory, True), exitpriority=-200)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield directory


@pytest.fixture(autouse=True)
def no_directory_left(temporary_directory: str) -> Iterator[None]:
    """Fail a test that leaves the directory of a queue."""
    yield
    left = glob.glob(os.path.join(temporary_directory, "mplog-*"))
    for directory in left:
        shutil.rmtree(directory)
    assert left == [], "a test has left the directory of a queue"
