"""The logging process as its parent holds it: start it, ask it, wait for its end.

The rule of this file: **every wait has a limit, and a logging process that has died says so at once**, since its end
of the connection closes with it. Its supervisor then hands over an end to the next one, which is asked again.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, spawn, util
from typing import Any

from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, MplogError, StartError
from mplog.monitoring.deaths import has_ended
from mplog.monitoring.statistics import Stats
from mplog.server.progress import TICK_SECONDS

__all__ = ["Control"]

#: Seconds that another logging process may take to open its sinks while somebody asks for its pid.
_GREETING_TIMEOUT = 5.0

# Its first imports are the stdlib's, not the current directory's, which -c puts first; the rest comes from where the
# parent would take it. What is imported is no garbage, so nobody need look for some until
# `mplog.logging_process.supervisor.main`.
_BOOTSTRAP = (
    "import gc, sys; gc.disable(); sys.path = [entry for entry in sys.path if entry]; "
    "from multiprocessing import connection; "
    "control = getattr(connection, sys.argv[1])(int(sys.argv[2])); sys.path[:] = control.recv(); "
    "from mplog.logging_process.supervisor import run; run(control)"
)


class Control:
    """A running logging process.

    Args:
        configuration: a `Configuration`, pickled with cloudpickle.
        directory: of the queue; None for a plain queue.
        fd: the reading end of the FIFO, for the logging process to inherit; None for a plain queue.
        timeout: seconds that it may take to open its sinks.
        supplies: the size of each buffer in bytes, the emergency file, and the patience of the supervisor.

    Raises:
        StartError: it could not start; the message says what went wrong there.
    """

    def __init__(
        self,
        configuration: bytes,
        directory: str | None,
        fd: int | None,
        timeout: float,
        supplies: tuple[Any, ...] = (0, None, None),
    ) -> None:
        self._link, theirs = multiprocessing.Pipe()
        self._connection: Any = None
        try:
            self._process = _spawn(theirs, fd)
        except BaseException:
            self._link.close()
            raise
        finally:
            theirs.close()
        self._pid = self._process.pid
        self._numbers = itertools.count(1)
        self._replies: dict[int | None, Stats] = {}
        self._asking = threading.RLock()
        self._sending = threading.RLock()
        self._stop_request: int | None = None
        self.needs_details = True
        try:
            self._handshake(configuration, directory, fd, timeout, supplies)
        except BaseException:
            self._kill()
            self._close()
            raise

    def _handshake(
        self, configuration: bytes, directory: str | None, fd: int | None, timeout: float, supplies: tuple[Any, ...]
    ) -> None:
        path, deadline = _absolute_path(), time.monotonic() + timeout
        try:
            self._link.send(path)
            self._link.send((configuration, directory, fd, *supplies))
            if directory is None:
                self._connection = self._link
            elif not self._take_over(deadline):
                raise _not_opened(timeout)
            if not self._greet(deadline):
                raise _not_opened(timeout)
        except (EOFError, OSError) as error:
            if isinstance(error, MplogError):
                self._ended()
                raise
            raise StartError(
                f"the logging process ended before it was ready (exit status {self._ended()}); "
                "what it wrote to stderr tells why"
            ) from None

    def _take_over(self, deadline: float) -> bool:
        """Take the end of the control connection to the latest logging process; return whether it came in time.

        Raises:
            EOFError, OSError: there will be none.
        """
        taken = False
        while self._link.poll(0 if taken else max(0.0, deadline - time.monotonic())):
            try:
                kind, value = self._link.recv()
            except (EOFError, OSError):
                if taken:  # the last of them may still have something to say
                    return True
                raise
            if kind == "failed":
                raise StartError(value)
            with socket.socket(fileno=os.dup(self._link.fileno())) as carrier:
                _, (fd,), _, _ = socket.recv_fds(carrier, 1, 1)
            os.set_inheritable(fd, False)
            if self._connection is not None:
                self._connection.close()
            self._connection, self._pid, taken = connection.Connection(fd), value, True
        return taken

    def _greet(self, deadline: float) -> bool:
        """Receive what a logging process says when its sinks are open; return whether it came in time.

        Raises:
            MplogError: they could not be opened.
            EOFError, OSError: it has died.
        """
        if not self._connection.poll(max(0.0, deadline - time.monotonic())):
            return False
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        self._pid, self.needs_details = answer
        return True

    def _follow(self, deadline: float) -> bool:
        """Go on with the next logging process, now that this one has died; return whether it came in time.

        Raises:
            LoggingProcessDiedError: there is no next one.
        """
        if self._connection is self._link:
            raise self._died()
        while True:
            try:
                if not self._take_over(deadline):
                    return False
            except (EOFError, OSError, StartError):
                raise self._died() from None
            # Where it died, too, or could not open its sinks, there is another one, or the end of the supervisor.
            with contextlib.suppress(EOFError, OSError, MplogError):
                return self._greet(deadline)

    @property
    def is_alive(self) -> bool:
        """Whether the logging process, or a supervisor that will start another one, is there."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest logging process."""
        if self._connection is not self._link and self._asking.acquire(blocking=False):
            try:
                with contextlib.suppress(EOFError, OSError, MplogError):
                    if self._link.poll(0) and self._take_over(time.monotonic()):
                        self._greet(time.monotonic() + _GREETING_TIMEOUT)
            finally:
                self._asking.release()
        return self._pid

    def _kill(self) -> None:
        """End it for good: the supervisor first, which would start another one."""
        self._process.kill()
        self._process.wait()
        if self._pid != self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            # It is not a child of this process. Until it has ended, it holds the locks of its files.
            deadline = time.monotonic() + 5
            while not has_ended(self._pid) and time.monotonic() < deadline:
                time.sleep(0.002)

    def _close(self) -> None:
        for end in {self._link, self._connection} - {None}:
            end.close()

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

    def ask(self, command: str, timeout: float, tick: Callable[[], None] | None = None) -> Stats:
        """Send a request and return the answer.

        Args:
            command: what is asked.
            timeout: seconds to wait at most.
            tick: called every `TICK_SECONDS` meanwhile; None for nobody.

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
                try:
                    if not self._receive(deadline, tick):
                        number = None
                except (EOFError, OSError):
                    if None in self._replies:  # it has ended, and said so
                        raise self._died() from None
                    self._stop_request = None
                    number = self._send_request(command, deadline) if self._follow(deadline) else None
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
                # What was sent last may just have filled the connection.
                if not _wait_for_room(self._connection, deadline):
                    return None
                self._connection.send((number, command))
            if command == "stop":
                self._stop_request = number
            return number
        finally:
            self._sending.release()

    def _receive(self, deadline: float, tick: Callable[[], None] | None = None) -> bool:
        """Receive an answer; return whether one came before the deadline.

        Raises:
            EOFError, OSError: it has died.
        """
        while tick is not None and deadline - time.monotonic() > TICK_SECONDS:
            if self._connection.poll(TICK_SECONDS):
                break
            tick()
        if not self._connection.poll(max(0.0, deadline - time.monotonic())):
            return False
        answered, stats = self._connection.recv()
        self._replies[answered] = stats
        return True

    @property
    def parting_words(self) -> Stats | None:
        """What it reported when it ended without being asked to, after a SIGTERM."""
        return self._replies.get(None)

    def wait(self, timeout: float, tick: Callable[[], None] | None = None) -> None:
        """Wait for its end, which is near: it has said that it is done, or been asked to.

        Args:
            timeout: seconds to wait at most.
            tick: called every `TICK_SECONDS` meanwhile; None for nobody.
        """
        self._close()
        deadline = time.monotonic() + timeout
        while tick is not None and (timeout := deadline - time.monotonic()) > TICK_SECONDS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TICK_SECONDS)
                return
            tick()
        timeout = max(0.0, deadline - time.monotonic())
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.leave()

    def leave(self) -> None:
        """Let it go on alone: it ends when the last process that logs has ended."""
        # subprocess would warn of a child that outlives its Popen object, which this one does on purpose.
        self._process.returncode = 0

    def _too_slow(self, command: str, timeout: float) -> DrainTimeoutError:
        what_now = "It goes on writing, and nothing is lost as long as it lives."
        if command == "stop":
            what_now = (
                "It goes on alone until all is written; but what a disk has no room for within a minute is lost, and "
                "said on stderr."
            )
        return DrainTimeoutError(
            f"the logging process (pid {self._pid}) has not answered {command}() within "
            f"{round(timeout, 1):g} seconds: a sink is slow or blocked, or a disk full. {what_now}"
        )

    def _died(self) -> LoggingProcessDiedError:
        try:
            exitcode: int | None = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            exitcode = None
        how = "was terminated" if exitcode == 0 else f"died with exit status {exitcode}"
        return LoggingProcessDiedError(
            f"the logging process (pid {self._pid}) {how}; what was logged since is not in the log. "
            "Look at stderr for the reason, and start a new server.",
            pid=self._pid,
            exitcode=exitcode,
        )


def _not_opened(timeout: float) -> StartError:
    return StartError(
        f"the logging process has not opened its sinks within {timeout:g} seconds. "
        "A handler that connects to somewhere may wait for an answer: give it a time-out of its own."
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


def _spawn(end: Any, fd: int | None) -> subprocess.Popen[Any]:
    """Start a fresh interpreter that inherits the connection and the FIFO, and nothing else."""
    executable = spawn.get_executable()
    if not executable or getattr(sys, "frozen", False):
        raise StartError(
            "the logging process needs a Python interpreter to run in, and this program has none "
            "(sys.executable is empty, or the program is frozen). "
            "Name one with multiprocessing.set_executable()."
        )
    options: dict[str, Any] = {}
    number, spare = end.fileno(), []
    if sys.platform == "win32":
        os.set_handle_inheritable(number, True)
        options["startupinfo"] = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [number]})
    else:
        # A daemon may have closed the standard streams. Nothing else is to get their numbers there: it would be
        # written into by whatever reports an error.
        while number < 3:
            number = os.dup(number)
            spare.append(number)
        options["pass_fds"] = [inherited for inherited in (number, fd) if inherited is not None]
        closed = [name for name, stream in (("stdout", 1), ("stderr", 2)) if not _is_inheritable(stream)]
        options |= dict.fromkeys(closed, subprocess.DEVNULL)
    try:
        return subprocess.Popen(
            [
                os.fsdecode(executable),
                *util._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                "-c",
                _BOOTSTRAP,
                type(end).__name__,
                str(number),
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
    finally:
        for number in spare:
            os.close(number)


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _wait_for_room(link: connection.Connection, deadline: float) -> bool:
    """Wait until a short message can be sent without waiting; return whether it can before the deadline."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(link.fileno(), select.POLLOUT)
    return bool(poll.poll(1000 * max(0.0, deadline - time.monotonic())))
