"""What the program, the supervisor and the logging process say to each other.

::

    program ------- Launch ---------------------------> supervisor
            <------ its pid, NewProcess and a connection, Ended
    program ------- Records, ChildEnded, Question ----> logging process
            <------ Opened or an exception, Answer
    supervisor <--- Report, RELEASE answered by None -- logging process
               ---- a line for the log --------------->

All of these connections carry pickles, and all of them are trusted. The queue is not, and carries none of this.
"""

from __future__ import annotations

import enum
import logging
import os
from typing import Any, Literal

import msgspec

from mplog.monitoring.statistics import Stats
from mplog.queue.overflow import Overflow
from mplog.sinks.sink import Sink


class Configuration(msgspec.Struct, frozen=True):
    """What a logging process opens. It travels pickled with cloudpickle, and the supervisor does not unpickle it."""

    sinks: tuple[Sink, ...]
    #: For handlers that bring no formatter.
    format: str | logging.Formatter
    #: Attributes of the class ``logging.Formatter``.
    formatter_defaults: dict[str, Any]
    #: Those of the program; see `mplog.worker.state.level_names`.
    level_names: list[tuple[int, str]]
    overflow: Overflow
    #: The constant fields of all records.
    fields: dict[str, Any] = msgspec.field(default_factory=dict)


class Patience(msgspec.Struct, frozen=True):
    """How a supervisor treats logging processes that die one after the other, with nothing written in between."""

    #: How many are replaced at once. Each further one is replaced after a pause.
    at_once: int = 5
    #: The first pause, in seconds; each is twice as long as the one before, up to the longest.
    first_pause: float = 0.1
    longest_pause: float = 5.0
    #: The supervisor gives up after this many restarts without success,
    restarts: int = 12
    #: if nothing has been written for this many seconds: the cause of the deaths may pass.
    seconds: float = 60.0


#: Seconds after which the files of an idle server are made young, for some cleaners remove what is a few hours old, and
#: after which its locks are looked at.
LOOK_SECONDS = 3600.0


class Launch(msgspec.Struct, frozen=True):
    """Program to supervisor, first: what to run. With a plain queue, the supervisor becomes the logging process."""

    #: A pickled `Configuration`.
    configuration: bytes
    #: Of the queue; None for a plain queue.
    directory: str | None = None
    #: The reading end of the FIFO, which the supervisor inherits; -1 for a plain queue.
    fd: int = -1
    #: Bytes of each of the two buffers.
    buffer_size: int = 0
    #: Where the supervisor saves what is left when it gives up; None for a plain queue.
    overflow: Overflow | None = None
    patience: Patience = Patience()
    #: Seconds after which the queue's directory is made young, and the locks of log files are looked at.
    look: float = msgspec.field(default_factory=lambda: LOOK_SECONDS)
    #: The pid of the program.
    program: int = msgspec.field(default_factory=os.getpid)


class NewProcess(msgspec.Struct, frozen=True):
    """Supervisor to program: there is a new logging process. The connection to it follows (SCM_RIGHTS)."""

    pid: int


class Ended(msgspec.Struct, frozen=True):
    """Supervisor to program, last: there will be no logging process any more."""

    #: The exit status of the last one, negative for the signal that killed it.
    exitcode: int
    #: Why, if the supervisor has given up.
    reason: str = ""


class Report(enum.Enum):
    """Logging process to supervisor."""

    #: The sinks are open.
    READY = enum.auto()
    #: It is about to end. The supervisor closes the reading end of the FIFO, so that writers learn of it, and answers.
    RELEASE = enum.auto()
    #: Everything is written, and the directory of the queue removed.
    DONE = enum.auto()
    #: SIGTERM has ended it, and the program and the workers go on. Another one is to take its place.
    REPLACE = enum.auto()


class Opened(msgspec.Struct, frozen=True):
    """Logging process to program, first: its sinks are open. An exception in its place says why they are not."""

    pid: int
    #: Whether a sink looks at fields of a record that only some sinks use.
    needs_details: bool


class Records(msgspec.Struct, frozen=True):
    """Program to logging process: encoded records from a plain queue."""

    payloads: list[bytes]


class ChildEnded(msgspec.Struct, frozen=True):
    """Program to logging process: how a child of the program has ended, with its ``multiprocessing.Process`` fields."""

    pid: int
    name: str
    exitcode: int


Command = Literal["flush", "stats", "stop"]


class Question(msgspec.Struct, frozen=True):
    """Program to logging process, answered by an `Answer`."""

    number: int
    command: Command


class Answer(msgspec.Struct, frozen=True):
    """Logging process to program, with the number of the question."""

    number: int
    stats: Stats
