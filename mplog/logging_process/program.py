"""The connections of the logging process to the program and to the supervisor, which may end at any time."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection

import msgspec

from mplog.logging_process.messages import Answer, ChildEnded, Launch, Question, Records, Report
from mplog.monitoring.statistics import Stats


class Places(msgspec.Struct, frozen=True):
    """What a logging process is given. For a plain queue, `fd` and `memory` are -1.

    `stories` tell how earlier logging processes have ended, unless one of them has noted it.
    """

    control: Connection
    launch: Launch
    fd: int = -1
    memory: int = -1
    supervisor: Connection | None = None
    stories: tuple[str, ...] = ()


class Program:
    def __init__(self, control: Connection, supervisor: Connection | None) -> None:
        #: None once the program has gone.
        self.control: Connection | None = control
        #: None once the supervisor has gone.
        self.supervisor = supervisor
        #: What the supervisor has for the log.
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

    def answer(self, number: int | None, stats: Stats) -> None:
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

    def done(self) -> None:
        if self.supervisor is not None:
            with contextlib.suppress(OSError):  # it has been killed
                self.supervisor.send(Report.DONE)

    def let_go(self) -> None:
        """Runs in a process that a handler has forked: close both connections."""
        for connection in (self.control, self.supervisor):
            if connection is not None:
                connection.close()
