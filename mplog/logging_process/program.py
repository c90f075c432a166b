"""The connections of the logging process to the program and to the supervisor, which may end at any time."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection

import msgspec

from mplog.logging_process.messages import Answer, ChildEnded, Launch, Question, Records, Report
from mplog.monitoring.statistics import Stats


class Places(msgspec.Struct, frozen=True):
    """What a logging process is given. For a plain queue, `fd` and `memory` are -1.

    `stories` tell how earlier logging processes have ended, unless one of them has noted it. `has_crashed`: the last
    one may have died of what it did, and not of a kill from outside.
    """

    control: Connection
    launch: Launch
    fd: int = -1
    memory: int = -1
    supervisor: Connection | None = None
    stories: tuple[str, ...] = ()
    has_crashed: bool = False


class Program:
    def __init__(self, control: Connection, supervisor: Connection | None) -> None:
        #: None once the program has gone.
        self.control: Connection | None = control
        #: None once the supervisor has gone, and with a plain queue.
        self.supervisor = supervisor
        #: What the supervisor has for the log, or its end.
        self.lines: list[str] = []

    def receive(self) -> Records | ChildEnded | Question | None:
        """Return the next message; None if the program has gone."""
        assert self.control is not None
        try:
            message: Records | ChildEnded | Question = self.control.recv()
        except (EOFError, OSError):
            self.control = None
            return None
        return message

    def answer(self, number: int, stats: Stats) -> None:
        if self.control is not None:
            try:
                self.control.send(Answer(number, stats))
            except OSError:
                self.control = None

    def release(self) -> None:
        """Have the supervisor close the reading end of the FIFO, so that writers learn that no process reads."""
        if self.supervisor is not None:
            with contextlib.suppress(EOFError, OSError):  # it has been killed
                self.supervisor.send(Report.RELEASE)
                while (line := self.supervisor.recv()) is not None:
                    self.lines.append(line)

    def hear(self) -> None:
        """Receive what the supervisor has for the log."""
        try:
            while self.supervisor is not None and self.supervisor.poll():
                self.lines.append(self.supervisor.recv())
        except (EOFError, OSError):
            self.supervisor = None
            self.lines.append(
                "mplog: the supervisor of the logging process was killed. The log goes on, but if the logging process "
                "is killed, too, no other takes its place."
            )

    def report(self, report: Report) -> None:
        """Tell the supervisor how this process ends."""
        if self.supervisor is not None:
            with contextlib.suppress(OSError):  # it has been killed
                self.supervisor.send(report)

    def let_go(self) -> None:
        """Runs in a process that a handler has forked: close both connections."""
        for connection in (self.control, self.supervisor):
            if connection is not None:
                connection.close()
