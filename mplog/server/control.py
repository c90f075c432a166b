"""The logging process as the program holds it: start it, ask it, wait for its end.

Every wait has a limit. The end of a logging process closes its connection, so it is noticed at once; the supervisor
then hands over a connection to the next logging process, which is asked again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from collections.abc import Callable
from typing import Any

from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, MplogError, ServerStateError, StartError
from mplog.logging_process.messages import Answer, ChildEnded, Command, Launch, Opened, Question, Records
from mplog.monitoring.process import has_ended
from mplog.monitoring.statistics import Stats
from mplog.queue import fifo
from mplog.queue.fifo import monotonic
from mplog.queue.locks import give_locks
from mplog.queue.native import poll
from mplog.server.link import Connection, Link, NoneLeftError, have_hung_up, kill, wait_for_end
from mplog.server.progress import TICK_SECONDS

#: Seconds that the next logging process may take to open its sinks while the program asks for its pid.
_OPENING_TIMEOUT = 5.0


_NO_DESCRIPTOR = (
    "this program had no file descriptor left for the connection to it. Close files, or raise the limit (ulimit -n)"
)


class Control:
    """A running logging process; raises StartError, with what went wrong there, if it could not start."""

    _asking: threading.RLock
    _sending: threading.RLock

    def __init__(self, launch: Launch, timeout: float) -> None:
        self._link = Link(launch)
        #: With a plain queue, the supervisor is the logging process.
        self._connection: Any = self._link.end if launch.directory is None else None
        self._pid = 0
        self._owner = os.getpid()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Stats] = {}
        give_locks(self, "_asking", "_sending")
        #: Whether there was no descriptor for the connection to the latest logging process. It writes all the same.
        self._is_out_of_reach = False
        self._stop_request: int | None = None
        #: The answer to "stop".
        self._final: Stats | None = None
        self.needs_details = True
        try:
            self._start(timeout)
        except BaseException:
            self._kill()
            self._close()
            raise

    def _start(self, timeout: float) -> None:
        deadline = monotonic() + timeout
        try:
            if self._link.greet(deadline) and self._connect(deadline):
                return
        except MplogError:  # of which some are OSErrors
            raise
        except (EOFError, OSError, NoneLeftError):
            # Of a plain queue, the link has other messages.
            ended = None if self._connection is self._link.end else self._link.last_words(5.0)
            raise StartError(
                (ended and ended.reason)
                or "the logging process ended before it was ready "
                f"(exit status {'unknown' if ended is None else ended.exitcode}); what it wrote to stderr tells why"
            ) from None
        if self._is_out_of_reach:
            raise StartError(f"the logging process cannot be asked whether it is ready: {_NO_DESCRIPTOR}")
        raise StartError(
            f"the logging process has not opened its sinks within {timeout:g} seconds. "
            "A handler that connects to somewhere may wait for an answer: give it a time-out of its own."
        )

    def _connect(self, deadline: float) -> bool:
        """Connect to the latest logging process; return whether its sinks are open before the deadline.

        Raises what has kept it from opening them, EOFError or OSError if it has died, and NoneLeftError.
        """
        if self._connection is not self._link.end and not self._take_connection(deadline):
            return False
        if not self._connection.poll(max(0.0, deadline - monotonic())):
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
            while (next_one := self._link.take(0 if taken or self._is_out_of_reach else deadline)) is not None:
                self._pid, fd = next_one
                self._is_out_of_reach = fd is None
                if fd is None:
                    continue
                if self._connection is not None:
                    self._connection.close()
                self._connection, taken = Connection(fd), True
        except NoneLeftError:
            if not taken:
                raise
            # The last logging process may still have something to say.
        return taken

    def _follow(self, deadline: float) -> bool:
        """Connect to the next logging process, now that this one has died; return whether that was done in time."""
        if self._connection is self._link.end:
            raise self._died()
        while True:
            try:
                return self._connect(deadline)
            except NoneLeftError:
                raise self._died() from None
            except (EOFError, OSError, MplogError):
                continue  # it has died, too, or could not open its sinks; the supervisor starts another, or ends

    @property
    def is_alive(self) -> bool:
        """Whether the logging process runs, or a supervisor that will start another one."""
        return not have_hung_up(self._ends, 0) if self._is_connected else not has_ended(self._link.pid)

    @property
    def _is_connected(self) -> bool:
        """Whether the program has not closed the connections, as programs do that become daemons."""
        return all(end.is_ours for end in self._ends if isinstance(end, Connection))

    def _require_connection(self) -> None:
        if not self._is_connected:
            raise ServerStateError(
                f"this program has closed its connection to the logging process (pid {self._pid}), as programs do that "
                "become daemons. The log goes on, and ends after the last process that logs, but it cannot be asked "
                "for anything. Start the server after that."
            )

    @property
    def _ends(self) -> set[Any]:
        return {self._link.end, self._connection} - {None}

    @property
    def pid(self) -> int:
        """The process id of the latest logging process; in a fork of the program, as far as it is known there."""
        is_asked = self._connection is not self._link.end and self._owner == os.getpid()
        if is_asked and self._is_connected and self._asking.acquire(blocking=False):
            try:
                with contextlib.suppress(EOFError, OSError, MplogError, NoneLeftError):
                    if self._link.end.poll(0):
                        self._connect(monotonic() + _OPENING_TIMEOUT)
            finally:
                self._asking.release()
        return self._pid

    def _kill(self) -> None:
        """Kill the supervisor, and then the logging process."""
        self._link.kill()
        if self._pid not in (0, self._link.pid):
            kill(self._pid)

    def _close(self) -> None:
        for end in self._ends:
            end.close()

    def send(self, message: Records | ChildEnded) -> None:
        """Send something that is not answered; raise LoggingProcessDiedError if the logging process has ended."""
        self._require_connection()
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            before = self._connection
            _ = self.pid  # connects to the next logging process, if there is one already
            if self._connection is before:
                raise self._died() from None
            self.send(message)

    def ask(self, command: Command, timeout: float, tick: Callable[[], None] | None = None) -> Stats:
        """Send a request and return the answer, calling `tick` every `TICK_SECONDS` meanwhile.

        Raises:
            DrainTimeoutError: no answer within `timeout` seconds.
            LoggingProcessDiedError: the logging process has ended.
            ServerStateError: the program has closed the connection.
        """
        self._require_connection()
        deadline = monotonic() + timeout
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
        if not self._sending.acquire(timeout=max(0.0, deadline - monotonic())):
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
        answer: Answer | Opened | BaseException = self._connection.recv()
        if not isinstance(answer, Answer):
            return True  # what a call that has given up was waiting for in `_connect`
        self._answers[answer.number] = answer.stats
        if answer.number == self._stop_request:
            self._final = answer.stats
        return True

    def wait(self, timeout: float, tick: Callable[[], None] | None = None) -> None:
        """Wait for the end of a logging process that was asked to stop, with a `tick` every `TICK_SECONDS`.

        If the time is over, it goes on alone, and ends after the last process that logs.
        """
        ends = list(self._ends)
        if _wait(lambda seconds: have_hung_up(ends, seconds), monotonic() + timeout, tick):
            self._link.reap()
            wait_for_end(self._pid)  # of which the supervisor has taken care, unless it was killed
        self._close()

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
        ended = self._link.ended
        how = "died" if ended is None else f"died with exit status {ended.exitcode}"
        return LoggingProcessDiedError(
            f"the logging process (pid {self._pid}) {how}; what was logged since is not in the log. "
            "Look at stderr for the reason, and start a new server, which writes what is in the emergency file.",
            pid=self._pid,
            exitcode=None if ended is None else ended.exitcode,
        )


def _wait(poll: Callable[[float], bool], deadline: float, tick: Callable[[], None] | None) -> bool:
    """Poll until the deadline, with a tick every `TICK_SECONDS`; return whether the poll succeeded."""
    while tick is not None and deadline - monotonic() > TICK_SECONDS:
        if poll(TICK_SECONDS):
            return True
        tick()
    return poll(max(0.0, deadline - monotonic()))


def _wait_for_room(link: Any, deadline: float) -> bool:
    """Wait until a short message can be sent without waiting; return whether it can before the deadline."""
    return poll is None or fifo.wait(link.fileno(), select.POLLOUT, deadline)
