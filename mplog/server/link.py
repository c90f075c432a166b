"""The program's connection to the supervisor: start it, take the connections to its logging processes, learn its end.

The supervisor is no child of the program. When it ends, its end of the link is closed, and the link hangs up.
"""

from __future__ import annotations

import _socket
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterable
from multiprocessing import connection
from typing import Any

from mplog.logging_process.messages import Ended, Launch, NewProcess
from mplog.monitoring.process import has_ended
from mplog.queue.descriptor import Descriptor, out_of_the_way
from mplog.queue.fifo import monotonic
from mplog.queue.native import poll, sleep
from mplog.server.interpreter import module_path, start_supervisor


class NoneLeftError(Exception):
    """There will be no other logging process: the supervisor has ended, or given up."""


class Connection(connection.Connection):
    """A connection whose descriptor the program may close, and use its number for a file of its own."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._own = Descriptor(fd)

    @property
    def is_ours(self) -> bool:
        """Whether the program has left the descriptor open."""
        return self._own.is_ours()

    def _close(self) -> None:  # also when it is collected
        if sys is not None and not sys.is_finalizing():
            self._own.close()


class Link:
    """A started supervisor.

    Args:
        launch: what it is to run.

    Attributes:
        end: this end of the connection.
        pid: of the supervisor; 0 until `greet`.
        ended: what the supervisor has said last, None while it runs, and if it was killed.
    """

    def __init__(self, launch: Launch) -> None:
        ours, theirs = multiprocessing.Pipe()
        self.end: Any = ours
        if sys.platform != "win32":
            for end in ours, theirs:
                os.set_blocking(end.fileno(), True)  # whatever the socket module is: see `mplog.queue.native`
            with ours:
                self.end = Connection(out_of_the_way(os.dup(ours.fileno())))
        self.pid = 0
        self.ended: Ended | None = None
        self._launch = launch
        try:
            self._process = start_supervisor(theirs, launch.fd)
        except BaseException:
            self.end.close()
            raise
        finally:
            theirs.close()

    def greet(self, deadline: float) -> bool:
        """Tell the supervisor what to run; return whether it has begun before the deadline.

        Raises:
            EOFError, OSError: it has ended; `ended` says how.
        """
        try:
            if not self.end.poll(max(0.0, deadline - monotonic())):
                return False
            self.pid = self.end.recv()
            if hasattr(os, "fork"):
                self._process.wait()
            else:
                self._process.returncode = 0  # subprocess would warn of a child that outlives this object
            self.end.send(module_path())
            self.end.send(self._launch)
        except (EOFError, OSError):
            if not self.pid:
                self.ended = Ended(self._process.wait())
            raise
        return True

    def take(self, deadline: float) -> tuple[int, int | None] | None:
        """Return the pid of the next logging process and a descriptor of the connection to it; None if none came.

        The descriptor is None where this process has none left for it.

        Raises:
            NoneLeftError: there will be no other one.
        """
        try:
            if self.end.poll(max(0.0, deadline - monotonic())):
                message: NewProcess | Ended = self.end.recv()
                if isinstance(message, NewProcess):
                    return message.pid, _receive_descriptor(self.end)
                self.ended = message
                raise NoneLeftError
        except (EOFError, OSError):  # killed, also between the message and the descriptor, or closed by `close`
            raise NoneLeftError from None
        return None

    def last_words(self, timeout: float) -> Ended | None:
        """Return `ended`, after waiting for it, of a supervisor that starts no other logging process."""
        deadline = monotonic() + timeout
        with contextlib.suppress(NoneLeftError):
            while self.ended is None and (taken := self.take(deadline)) is not None:
                if taken[1] is not None:
                    os.close(taken[1])
        return self.ended

    @property
    def has_ended(self) -> bool:
        """Whether the supervisor has ended."""
        return have_hung_up([self.end], 0)

    def kill(self) -> None:
        """Kill the supervisor, which would start another logging process."""
        if not self.pid:
            self._process.kill()
            self._process.wait()
            return
        if not self.has_ended:
            kill(self.pid)
        self.reap()

    def reap(self) -> None:
        """Wait for the last instant of a supervisor that is ending."""
        wait_for_end(self.pid)
        with contextlib.suppress(OSError):  # where this is process 1 of a container, it has become its child
            os.waitpid(self.pid, os.WNOHANG)


def kill(pid: int) -> None:
    """Kill a process, and wait until it has ended: until then, it holds what it has locked."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended that is not a child of this one, for 5 seconds at most."""
    deadline = monotonic() + 5
    while not has_ended(pid) and monotonic() < deadline:
        sleep(0.002)


def have_hung_up(ends: Iterable[Any], timeout: float) -> bool:
    """Wait until the other ends of all of these connections are closed; return whether they are."""
    deadline = monotonic() + timeout
    for end in ends:
        if poll is not None:
            waiting = poll()
            waiting.register(end.fileno(), 0)  # nothing but the end
            if not waiting.poll(1000 * max(0.0, deadline - monotonic())):
                return False
            continue
        try:
            while end.poll(max(0.0, deadline - monotonic())):
                end.recv_bytes()
            return False
        except (EOFError, OSError):
            continue
    return True


def _receive_descriptor(link: Any) -> int | None:
    """Receive the descriptor that comes with one byte; return None if this process has none left for it."""
    # The class in C: with green threads, socket.socket is another one, which does not wait for what has not come yet.
    carrier = _socket.socket(fileno=link.fileno())
    try:
        carrier.setblocking(True)  # whatever `socket.setdefaulttimeout` says
        # At once: another thread may start a program meanwhile, which would hold the connection open.
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        byte, fds, _, _ = socket.recv_fds(carrier, 1, 1, flags)  # type: ignore[arg-type]
    finally:
        carrier.detach()
    if not byte:
        raise EOFError
    for fd in fds:
        os.set_inheritable(fd, False)  # where there is no such flag
        return out_of_the_way(fd)
    return None
