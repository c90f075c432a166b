"""The logging process as the program holds it: start it, ask it, wait for its end.

Every wait has a limit. The end of a logging process closes its connection, so it is noticed at once; the supervisor
then hands over a connection to the next logging process, which is asked again.
"""

from __future__ import annotations

import _socket
import contextlib
import itertools
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, MplogError, StartError
from mplog.logging_process.messages import (
    Answer,
    ChildEnded,
    Command,
    GivenUp,
    Launch,
    NewProcess,
    Opened,
    Question,
    Records,
)
from mplog.monitoring.process import has_ended
from mplog.monitoring.statistics import Stats
from mplog.server.interpreter import module_path, start_supervisor
from mplog.server.progress import TICK_SECONDS

#: Seconds that the next logging process may take to open its sinks while the program asks for its pid.
_OPENING_TIMEOUT = 5.0


_NO_DESCRIPTOR = (
    "this program had no file descriptor left for the connection to it. Close files, or raise the limit (ulimit -n)"
)


class _NoneLeftError(Exception):
    """There will be no other logging process: the supervisor has ended, or given up."""


class Control:
    """A running logging process; raises StartError, with what went wrong there, if it could not start."""

    def __init__(self, launch: Launch, timeout: float) -> None:
        self._link, theirs = multiprocessing.Pipe()
        #: With a plain queue, the supervisor is the logging process.
        self._connection: Any = self._link if launch.directory is None else None
        try:
            self._process = start_supervisor(theirs, launch.fd)
        except BaseException:
            self._link.close()
            raise
        finally:
            theirs.close()
        self._pid = self._process.pid
        self._numbers = itertools.count(1)
        self._answers: dict[int | None, Stats] = {}
        self._asking = threading.RLock()
        self._sending = threading.RLock()
        #: Whether there was no descriptor for the connection to the latest logging process. It writes all the same.
        self._is_out_of_reach = False
        self._stop_request: int | None = None
        #: The answer to "stop".
        self._final: Stats | None = None
        self.needs_details = True
        try:
            self._start(launch, timeout)
        except BaseException:
            self._kill()
            self._close()
            raise

    def _start(self, launch: Launch, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._link.send(module_path())
            self._link.send(launch)
            if self._connect(deadline):
                return
        except MplogError:  # of which some are OSErrors
            raise
        except (EOFError, OSError, _NoneLeftError) as error:
            reason = str(error) if isinstance(error, _NoneLeftError) else ""
            raise StartError(
                reason
                or f"the logging process ended before it was ready (exit status {self._ended()}); "
                "what it wrote to stderr tells why"
            ) from None
        if self._is_out_of_reach:
            raise StartError(f"the logging process cannot be asked whether it is ready: {_NO_DESCRIPTOR}")
        raise StartError(
            f"the logging process has not opened its sinks within {timeout:g} seconds. "
            "A handler that connects to somewhere may wait for an answer: give it a time-out of its own."
        )

    def _connect(self, deadline: float) -> bool:
        """Connect to the latest logging process; return whether its sinks are open before the deadline.

        Raises what has kept it from opening them, EOFError or OSError if it has died, and _NoneLeftError.
        """
        if self._connection is not self._link and not self._take_connection(deadline):
            return False
        if not self._connection.poll(max(0.0, deadline - time.monotonic())):
            return False
        answer: Opened | BaseException = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        self._pid, self.needs_details = answer.pid, answer.needs_details
        return True

    def _take_connection(self, deadline: float) -> bool:
        """Receive the connection to the latest logging process; return whether it came before the deadline."""
        taken = False
        try:
            while self._link.poll(0 if taken or self._is_out_of_reach else max(0.0, deadline - time.monotonic())):
                message: NewProcess | GivenUp = self._link.recv()
                if isinstance(message, GivenUp):
                    raise _NoneLeftError(message.reason)
                fd, self._pid = _receive_descriptor(self._link), message.pid
                self._is_out_of_reach = fd is None
                if fd is None:
                    continue
                if self._connection is not None:
                    self._connection.close()
                self._connection, taken = connection.Connection(fd), True
        except (EOFError, OSError):  # ended, also between the message and the connection, or closed by `wait`
            if not taken:
                raise _NoneLeftError from None
            # The last logging process may still have something to say.
        return taken

    def _follow(self, deadline: float) -> bool:
        """Connect to the next logging process, now that this one has died; return whether that was done in time."""
        if self._connection is self._link:
            raise self._died()
        while True:
            try:
                return self._connect(deadline)
            except _NoneLeftError:
                raise self._died() from None
            except (EOFError, OSError, MplogError):
                continue  # it has died, too, or could not open its sinks; the supervisor starts another, or ends

    @property
    def is_alive(self) -> bool:
        """Whether the logging process runs, or a supervisor that will start another one."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest logging process."""
        if self._connection is not self._link and self._asking.acquire(blocking=False):
            try:
                with contextlib.suppress(EOFError, OSError, MplogError, _NoneLeftError):
                    if self._link.poll(0):
                        self._connect(time.monotonic() + _OPENING_TIMEOUT)
            finally:
                self._asking.release()
        return self._pid

    def _kill(self) -> None:
        """Kill the supervisor, which would start another logging process, and then the logging process."""
        self._process.kill()
        self._process.wait()
        if self._pid != self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            # Not a child of this process. Until it has ended, it holds the locks of its files.
            deadline = time.monotonic() + 5
            while not has_ended(self._pid) and time.monotonic() < deadline:
                time.sleep(0.002)

    def _close(self) -> None:
        for end in {self._link, self._connection} - {None}:
            end.close()

    def _ended(self) -> int:
        """Return the exit status of a logging process that is about to end, and kill one that does not end."""
        if not self._ends_within(5):
            self._process.kill()
        return self._process.wait()

    def send(self, message: Records | ChildEnded) -> None:
        """Send something that is not answered; raise LoggingProcessDiedError if the logging process has ended."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            raise self._died() from None

    def ask(self, command: Command, timeout: float, tick: Callable[[], None] | None = None) -> Stats:
        """Send a request and return the answer, calling `tick` every `TICK_SECONDS` meanwhile.

        Raises:
            DrainTimeoutError: no answer within `timeout` seconds.
            LoggingProcessDiedError: the logging process has ended.
        """
        deadline = time.monotonic() + timeout
        if not self._asking.acquire(timeout=timeout):
            raise self._too_slow(command, timeout)
        try:
            number = self._send_request(command, deadline)
            # Another answer may come first: to a question that was given up, or that a signal handler asked.
            while number is not None and number not in self._answers:
                try:
                    if not self._receive(deadline, tick):
                        number = None
                except (EOFError, OSError):
                    if self._final is not None:  # another thread has stopped it: everything is written
                        return self._final
                    if None in self._answers:  # its last message: it has ended
                        raise self._died() from None
                    self._stop_request = None
                    number = self._send_request(command, deadline) if self._follow(deadline) else None
            if number is None:
                raise self._too_slow(command, timeout)
            return self._answers.pop(number)
        finally:
            self._asking.release()

    def _send_request(self, command: Command, deadline: float) -> int | None:
        """Return the number of the request, or None when there was no time to send it."""
        if command == "stop" and self._stop_request is not None:
            return self._stop_request  # asked before, and given up: its one answer is still to come
        # The thread that sends records holds this while a sink is blocked.
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        try:
            number = next(self._numbers)
            # After its end, what it has said before can still be received.
            with contextlib.suppress(OSError):
                # What was sent last may just have filled the connection.
                if not _wait_for_room(self._connection, deadline):
                    return None
                self._connection.send(Question(number, command))
            if command == "stop":
                self._stop_request = number
            return number
        finally:
            self._sending.release()

    def _receive(self, deadline: float, tick: Callable[[], None] | None = None) -> bool:
        """Receive an answer; return whether one came before the deadline."""
        if not _wait(self._connection.poll, deadline, tick):
            return False
        answer: Answer = self._connection.recv()
        self._answers[answer.number] = answer.stats
        if answer.number is not None and answer.number == self._stop_request:
            self._final = answer.stats
        return True

    @property
    def parting_words(self) -> Stats | None:
        """What a logging process has counted that SIGTERM, and not the program, has ended."""
        return self._answers.get(None)

    def wait(self, timeout: float, tick: Callable[[], None] | None = None) -> None:
        """Wait for the end of a logging process that was asked to stop, with a `tick` every `TICK_SECONDS`."""
        self._close()
        if not _wait(self._ends_within, time.monotonic() + timeout, tick):
            self.leave()

    def _ends_within(self, timeout: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.returncode is not None

    def leave(self) -> None:
        """Let the logging process go on alone: it ends after the last process that logs."""
        # subprocess would warn of a child that outlives its Popen object, as this one does on purpose.
        self._process.returncode = 0

    def _too_slow(self, command: Command, timeout: float) -> DrainTimeoutError:
        what_now = "It goes on writing, and nothing is lost as long as it lives."
        if command == "stop":
            what_now = (
                "It goes on alone until all is written. Records for which a disk has no room within a minute are lost, "
                "and stderr says so."
            )
        if self._is_out_of_reach:
            return DrainTimeoutError(
                f"the logging process (pid {self._pid}) cannot be asked to {command}: {_NO_DESCRIPTOR}. {what_now}"
            )
        return DrainTimeoutError(
            f"the logging process (pid {self._pid}) has not answered {command}() within "
            f"{round(timeout, 1):g} seconds: a sink is slow or blocked, or a disk full. {what_now}"
        )

    def _died(self) -> LoggingProcessDiedError:
        exitcode = self._process.returncode if self._ends_within(1) else None
        how = "was terminated" if exitcode == 0 else f"died with exit status {exitcode}"
        return LoggingProcessDiedError(
            f"the logging process (pid {self._pid}) {how}; what was logged since is not in the log. "
            "Look at stderr for the reason, and start a new server.",
            pid=self._pid,
            exitcode=exitcode,
        )


def _receive_descriptor(link: connection.Connection) -> int | None:
    """Receive the descriptor that comes with one byte; return None if this process has none left for it."""
    # The class in C: with green threads, socket.socket is another one, which does not wait for what has not come yet.
    carrier = _socket.socket(fileno=link.fileno())
    try:
        carrier.setblocking(True)  # whatever `socket.setdefaulttimeout` says
        byte, fds, _, _ = socket.recv_fds(carrier, 1, 1)  # type: ignore[arg-type]
    finally:
        carrier.detach()
    if not byte:
        raise EOFError
    for fd in fds:
        os.set_inheritable(fd, False)
        return fd
    return None


def _wait(poll: Callable[[float], bool], deadline: float, tick: Callable[[], None] | None) -> bool:
    """Poll until the deadline, with a tick every `TICK_SECONDS`; return whether the poll succeeded."""
    while tick is not None and deadline - time.monotonic() > TICK_SECONDS:
        if poll(TICK_SECONDS):
            return True
        tick()
    return poll(max(0.0, deadline - time.monotonic()))


def _wait_for_room(link: connection.Connection, deadline: float) -> bool:
    """Wait until a short message can be sent without waiting; return whether it can before the deadline."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(link.fileno(), select.POLLOUT)
    return bool(poll.poll(1000 * max(0.0, deadline - time.monotonic())))
