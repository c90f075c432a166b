"""What the tests have workers do. Light to import, since every spawned worker does."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import logging
import os
import signal
import subprocess
import sys
from typing import Any

from oracle import Producer

import mplog

#: Levels that `log_levels` logs at in each of LOGGERS.
LEVELS = [5, 10, 20, 25, 30, 40, 50]
LOGGERS = ["inherits", "loud", "loud.child", "quiet", "off", "isolated"]

#: What of them is written once `set_levels` has been called.
WRITTEN = {
    "inherits": ["INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL"],
    "loud": ["DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL"],  # not 5, which logging.disable() holds back
    "loud.child": ["DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL"],
    "quiet": ["ERROR", "CRITICAL"],
    "off": [],
    "isolated": [],
}


def set_levels() -> None:
    """Give this process's loggers every kind of level."""
    logging.addLevelName(25, "NOTICE")
    logging.disable(5)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("loud").setLevel(1)
    logging.getLogger("quiet").setLevel(logging.ERROR)
    logging.getLogger("off").disabled = True
    logging.getLogger("isolated").propagate = False
    logging.getLogger("isolated").addHandler(logging.NullHandler())


def log_levels() -> None:
    """Log at every level in every logger."""
    for name in LOGGERS:
        for level in LEVELS:
            logging.getLogger(name).log(level, "level %d", level)


@functools.cache
def producer(directory: str, pid: int) -> Producer:
    """Return the one producer of a process."""
    return Producer(directory, str(pid))


def work(directory: str, lines: int = 10) -> int:
    """Log some lines, and, in the first task of a process, at every level; return the pid."""
    pid = os.getpid()
    log = producer(directory, pid).log
    for _ in range(lines):
        if log() == 1:
            log_levels()
    return pid


def work_again(directory: str, _: object) -> int:
    """The same for map(), which gives it a number."""
    return work(directory)


def initialize_and_work(initializer: Any, directory: str) -> None:
    """Runs in a Process: call the initializer, and work."""
    initializer()
    work(directory)


def attach_and_work(queue_directory: str | None, directory: str) -> None:
    """Runs in any process: attach, and work."""
    mplog.attach(queue_directory)
    logging.getLogger("isolated").addHandler(logging.NullHandler())
    work(directory)


def wait_and_warn(gate: Any, message: str) -> None:
    """Runs in a worker: log a warning once the gate is open."""
    assert gate.wait(60)
    logging.getLogger("job").warning(message)


_shared: Any = None


def share(value: Any) -> None:
    """Runs in a worker, as an initializer: keep what only a process that is just being started can get."""
    global _shared
    _shared = value


def increment() -> None:
    """Runs in a worker that has been given a value by `share`."""
    increment_value(_shared)


def increment_value(value: Any) -> None:
    """Runs in a worker: add one to a multiprocessing.Value."""
    with value.get_lock():
        value.value += 1


def note(what: object) -> None:
    """Log something."""
    logging.getLogger("job").info(what)


def environment() -> dict[str, str]:
    """Return an environment in which an interpreter can import what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run_python(command: list[str], input: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run an interpreter that can import what this one can."""
    return subprocess.run(
        [sys.executable, *command], input=input, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def messages_in(log: str | os.PathLike[str]) -> list[str]:
    """Return the messages of a log, without tracebacks."""
    with open(log, encoding="utf-8") as file:
        return [line.rstrip("\n").split(" | ", 1)[1] for line in file if " | " in line]


def log_lines(directory: str, lines: int, _: object) -> None:
    """Runs in a worker of a Pool: log some lines."""
    log = producer(directory, os.getpid()).log
    for _ in range(lines):
        log()


#: The ways in which `log_and_end` ends a process, and its exit code.
ENDS = {
    "return": 0,
    "sys.exit": 3,
    "exception": 1,
    "os._exit": 4,
    "abort": -signal.SIGABRT,
    "segfault": -signal.SIGSEGV,
    "exec": 0,
}


def log_and_end(initializer: Any, directory: str, how: str) -> None:
    """Runs in a worker: log one record, and end."""
    initializer()
    faulthandler.disable()  # a test runner's, which would report the fault as one of its own
    sys.stderr = None
    Producer(directory, how).log()
    if how == "sys.exit":
        sys.exit(3)
    elif how == "exception":
        raise ValueError("the end")
    elif how == "os._exit":
        os._exit(4)
    elif how == "abort":
        os.abort()
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exec":
        os.execv("/bin/true", ["true"])
