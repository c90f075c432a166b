"""Whole programs, run as a user runs them, and handlers that the tests can hold up or break."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
from oracle import wait_until

import mplog
from mplog.monitoring.find_servers import find_servers
from mplog.monitoring.process import has_ended

#: The directory that mplog is imported from: where it is installed, which may be the checkout.
INSTALLED = Path(mplog.__file__).parents[1]

#: Where the helpers of the tests are.
TESTS = Path(__file__).parent

#: What every test of this suite logs in, so that the oracle can read it back.
FORMAT = "%(processName)s %(process)d %(levelname)s %(name)s | %(message)s"
LINE = re.compile(r"(?P<process_name>.*) (?P<pid>\d+) (?P<level>\S+) (?P<logger>\S+) \| (?P<message>.*)")


def environment(**changes: str | None) -> dict[str, str]:
    """Return this environment, with mplog and the helpers of the tests importable, and these changes; None removes."""
    path = os.pathsep.join(filter(None, (str(INSTALLED), str(TESTS), os.environ.get("PYTHONPATH"))))
    merged = {**os.environ, "PYTHONPATH": path, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def write_script(directory: Path, text: str, name: str = "program.py") -> Path:
    """Write a program, and return its path."""
    script = directory / name
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    return script


def run_script(
    directory: Path, text: str, *arguments: object, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program in `directory`, to its end and to that of all processes that have inherited its output.

    So what a logging process that outlives the program says is in the result, too, and the log is complete.
    """
    return run([str(write_script(directory, text)), *map(str, arguments)], cwd=directory, timeout=timeout, **options)


def run(arguments: list[str], *, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, and capture what it says."""
    options.setdefault("env", environment())
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def drop_privileges() -> None:
    """As `preexec_fn`: take from root what lets it ignore the permissions of files. For others, do nothing."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        cap_dac_override, cap_dac_read_search, pr_capbset_drop = 1, 2, 24
        for capability in (cap_dac_override, cap_dac_read_search):
            libc.prctl(pr_capbset_drop, capability, 0, 0, 0)


def fill_disk(disk: Path) -> Path:
    """Leave no room on a disk; return what takes it."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def stop_all_threads(pid: int) -> None:
    """Send SIGSTOP to a process, and wait until each of its threads stands still: the call returns before that."""
    os.kill(pid, signal.SIGSTOP)

    def is_stopped() -> bool:
        tasks = Path(f"/proc/{pid}/task").glob("*/stat")
        return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

    wait_until(is_stopped, "it stands still")


def wait_until_main_waits(pid: int) -> None:
    """Wait until a main thread has been in one and the same wait for longer than it waits for the GIL (5 ms).

    A signal that comes in the instant before it begins to wait, CPython handles when the wait is over.
    """
    if sys.platform != "linux":
        return
    seen: list[str] = []
    since = 0.0

    def waits() -> bool:
        nonlocal seen, since
        status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
        state = re.findall(r"^(?:State|(?:non)?voluntary_ctxt_switches):.*", status, re.MULTILINE)
        if state != seen:
            seen, since = state, time.monotonic()
        return "sleeping" in state[0] and time.monotonic() - since > 0.05

    wait_until(waits, "the main thread waits")


class Gate:
    """A gate between processes: tests see that a process waits there. Once opened, the gate stays open."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(self.path)

    def wait(self) -> None:
        """Say that a process is here, and wait until the gate is open."""
        with open(self.path + ".reached", "w"):
            pass
        with open(self.path, "rb"):
            pass

    def wait_until_reached(self) -> None:
        """Wait until a process stands at the gate."""
        wait_until(lambda: os.path.exists(self.path + ".reached"), f"a process stands at {self.path}")

    def open(self) -> None:
        """Let all processes through, from now on."""
        self.fd = os.open(self.path, os.O_RDWR)


class BlockedHandler(logging.FileHandler):
    """Stands at a gate at each record, and then writes it to a file."""

    def __init__(self, gate: Gate, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        """Wait at the gate."""
        self.gate.wait()
        super().emit(record)


class BadHandler(logging.Handler):
    """Does `what` with each record: raise, exit, interrupt, recurse, or log itself."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __repr__(self) -> str:
        return f"<BadHandler {self.what}>"

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        if self.what == "raise":
            raise ZeroDivisionError("as planned")
        if self.what == "handleError":
            try:
                raise ZeroDivisionError("as planned")
            except ZeroDivisionError:
                self.handleError(record)
        if self.what == "exit":
            sys.exit("as planned")
        if self.what == "interrupt":
            raise KeyboardInterrupt("as planned")
        if self.what == "recurse":
            self.emit(record)
        if self.what == "log":
            logging.getLogger("bad").warning("logged by the handler itself")


def lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a file, without their ends."""
    return Path(path).read_text(encoding="utf-8").splitlines()


def process_has_ended(pid: int) -> bool:
    """Whether there is no such process any more, or only what its parent has not yet asked for."""
    return has_ended(pid)


def kill_for_good(server: Any) -> int:
    """Kill the logging process of a server, and the supervisor, which would start another; return its pid."""
    pid: int = server.pid
    supervisor = psutil.Process(pid).ppid()
    stop_all_threads(pid)  # it would say that its supervisor was killed, if it had the time
    os.kill(supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_let_go(pid) and has_let_go(supervisor), "the logging process has ended")
    return pid


def server_processes() -> list[psutil.Process]:
    """Return the supervisors and logging processes that were started with this temporary directory: no one's children.

    Each pytest process has a temporary directory of its own.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if is_of_server(process) and process.environ().get("TMPDIR") == os.environ["TMPDIR"]:
                found.append(process)
    return found


def logging_process_of(program: int) -> psutil.Process:
    """Return the logging process of the server that a program has started."""
    (server,) = (server for server in find_servers().servers if server.notice.program == program)
    return psutil.Process(server.notice.pid)


def is_of_server(process: psutil.Process) -> bool:
    """Whether a process is one that mplog has started for a server."""
    return any("from mplog.logging_process.supervisor import run" in argument for argument in process.cmdline())


def has_let_go(pid: int) -> bool:
    """Whether a process that was killed has closed what it had open: its main thread may end before the others do."""
    try:
        return process_has_ended(pid) and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (FileNotFoundError, ProcessLookupError):  # the latter where it goes while it is looked at
        return True


def elapsed(since: float) -> float:
    """Return the seconds since a time of ``time.monotonic()``."""
    return time.monotonic() - since
