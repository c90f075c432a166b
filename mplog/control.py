"""The logging process as its parent holds it: start it, ask it, wait for its end.

The rule of this file: **every wait has a limit, and a logging process that has died says so at once**, since its end
of the connection closes with it.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing import spawn, util
from typing import Any

from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, StartError
from mplog.logging_process import Stats

__all__ = ["Control"]

# Its first imports are the stdlib's, not the current directory's, which -c puts first; the rest comes from where the
# parent would take it.
_BOOTSTRAP = (
    "import sys; sys.path = [entry for entry in sys.path if entry]; from multiprocessing import connection; "
    "control = getattr(connection, sys.argv[1])(int(sys.argv[2])); sys.path[:] = control.recv(); "
    "from mplog.logging_process import main; main(control)"
)


class Control:
    """A running logging process.

    Args:
        configuration: a `Configuration`, pickled with cloudpickle.
        directory: of the queue; None for a plain queue.
        fd: the reading end of the FIFO, for the logging process to inherit; None for a plain queue.
        timeout: seconds that it may take to open its sinks.

    Raises:
        StartError: it could not start; the message says what went wrong there.
    """

    def __init__(self, configuration: bytes, directory: str | None, fd: int | None, timeout: float) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        try:
            self._process = _spawn(theirs, fd)
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._numbers = itertools.count(1)
        self._replies: dict[int | None, Stats] = {}
        self._asking = threading.RLock()
        self._sending = threading.RLock()
        self._stop_request: int | None = None
        try:
            self.pid = self._handshake(configuration, directory, fd, timeout)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            raise

    def _handshake(self, configuration: bytes, directory: str | None, fd: int | None, timeout: float) -> int:
        path = _absolute_path()
        try:
            self._connection.send(path)
            self._connection.send((configuration, directory, fd))
            if not self._connection.poll(timeout):
                raise StartError(
                    f"the logging process has not opened its sinks within {timeout:g} seconds. "
                    "A handler that connects to somewhere may wait for an answer: give it a time-out of its own."
                )
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise StartError(
                f"the logging process ended before it was ready (exit status {self._ended()}); "
                "what it wrote to stderr tells why"
            ) from None
        if isinstance(answer, BaseException):
            self._ended()
            raise answer
        pid: int = answer
        return pid

    def _ended(self) -> int:
        """Return the exit status of a logging process that is about to end; it is made to, where it does not."""
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def send(self, *message: Any) -> None:
        """Send something that is not answered.

        Raises:
            LoggingProcessDiedError: it has ended.
        """
        try:
            with self._sending:
                self._connection.send((None, *message))
        except OSError:
            raise self._died() from None

    def ask(self, command: str, timeout: float) -> Stats:
        """Send a request and return the answer.

        Raises:
            DrainTimeoutError: no answer within `timeout` seconds.
            LoggingProcessDiedError: it has ended.
        """
        deadline = time.monotonic() + timeout
        if not self._asking.acquire(timeout=timeout):
            raise self._too_slow(command, timeout)
        try:
            number = self._send_request(command, deadline)
            # Another answer may come first: to a question that was given up, or to one that a signal handler asked.
            while number is not None and number not in self._replies:
                if not self._receive(deadline):
                    number = None
            if number is None:
                raise self._too_slow(command, timeout)
            return self._replies.pop(number)
        finally:
            self._asking.release()

    def _send_request(self, command: str, deadline: float) -> int | None:
        """Return the number of the request, or None when there was no time to send it."""
        if command == "stop" and self._stop_request is not None:
            return self._stop_request  # asked before, and given up: the one answer to it is still to come
        # Whoever sends records holds this while a sink is blocked.
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        try:
            number = next(self._numbers)
            # Where it has ended, what it said before can still be received.
            with contextlib.suppress(OSError):
                self._connection.send((number, command))
            if command == "stop":
                self._stop_request = number
            return number
        finally:
            self._sending.release()

    def _receive(self, deadline: float) -> bool:
        """Receive an answer; return whether one came before the deadline."""
        try:
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                return False
            answered, stats = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        self._replies[answered] = stats
        return True

    @property
    def parting_words(self) -> Stats | None:
        """What it reported when it ended without being asked to, after a SIGTERM."""
        return self._replies.get(None)

    def wait(self, timeout: float) -> None:
        """Wait for its end, which is near: it has said that it is done."""
        self._connection.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.leave()

    def leave(self) -> None:
        """Let it go on alone: it ends when the last process that logs has ended."""
        # subprocess would warn of a child that outlives its Popen object, which this one does on purpose.
        self._process.returncode = 0

    def _too_slow(self, command: str, timeout: float) -> DrainTimeoutError:
        return DrainTimeoutError(
            f"the logging process (pid {self._process.pid}) has not answered {command}() within {timeout:.3g} seconds: "
            "a sink is slow or blocked. It goes on writing, and nothing is lost as long as it lives."
        )

    def _died(self) -> LoggingProcessDiedError:
        try:
            exitcode: int | None = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            exitcode = None
        how = "was terminated" if exitcode == 0 else f"died with exit status {exitcode}"
        return LoggingProcessDiedError(
            f"the logging process (pid {self._process.pid}) {how}; what was logged since is not in the log. "
            "Look at stderr for the reason, and start a new server.",
            pid=self._process.pid,
            exitcode=exitcode,
        )


def _absolute_path() -> list[str]:
    """Return sys.path as it is for another process; a current directory that has been removed is not part of it."""
    path = []
    for entry in sys.path:
        try:
            path.append(os.path.abspath(entry))
        except OSError:
            continue
    return path


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return os.sep


def _spawn(connection: Any, fd: int | None) -> subprocess.Popen[Any]:
    """Start a fresh interpreter that inherits the connection and the FIFO, and nothing else."""
    executable = spawn.get_executable()
    if not executable or getattr(sys, "frozen", False):
        raise StartError(
            "the logging process needs a Python interpreter to run in, and this program has none "
            "(sys.executable is empty, or the program is frozen). "
            "Name one with multiprocessing.set_executable()."
        )
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        os.set_handle_inheritable(connection.fileno(), True)
        options["startupinfo"] = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [connection.fileno()]})
    else:
        options["pass_fds"] = [end for end in (connection.fileno(), fd) if end is not None]
    try:
        return subprocess.Popen(
            [
                os.fsdecode(executable),
                *util._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                "-c",
                _BOOTSTRAP,
                type(connection).__name__,
                str(connection.fileno()),
            ],
            stdin=subprocess.DEVNULL,
            # Some Pythons (3.13.0) cannot import everything where the working directory has been removed.
            cwd=_working_directory(),
            **options,
        )
    except OSError as error:
        raise StartError(
            f"the logging process could not be started: {error}. "
            "If this is no Python interpreter, name one with multiprocessing.set_executable()."
        ) from error
