"""What can go wrong, as exceptions.

Every message says what happened, the likely cause and what to do. The evidence is kept in attributes. Every error
pickles, because the logging process finds most of them and the program that started it raises them.
"""

from __future__ import annotations


class MplogError(Exception):
    """The root of all errors that mplog raises."""


class NoReaderError(MplogError, BrokenPipeError):
    """No process reads the queue any more: the logging process has ended."""


class QueueNotFoundError(MplogError, FileNotFoundError):
    """There is no queue at the path: its server has stopped, or the path is wrong."""


class MessageTooLongError(MplogError, ValueError):
    """An object that is not a log record is too long for a queue.

    Attributes:
        length: its pickled length in bytes.
    """

    def __init__(self, message: str, *, length: int = 0) -> None:
        super().__init__(message)
        self.length = length


class StartError(MplogError, RuntimeError):
    """The logging process could not start."""


class ConfigurationError(StartError, ValueError):
    """Something in a logging configuration is wrong.

    Attributes:
        place: where, as the path of its keys: ``handlers.file.level``; "" for all of it.
    """

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class SinkError(StartError):
    """A sink could not be opened in the logging process; the original error is in the message and the attributes.

    Attributes:
        sink: what the sink calls itself.
        reason: the original error, as ``TypeName: message``.
        details: the original traceback, as text.
    """

    def __init__(self, message: str, *, sink: str = "", reason: str = "", details: str = "") -> None:
        super().__init__(message)
        self.sink = sink
        self.reason = reason
        self.details = details


class LogFileLockedError(StartError, OSError):
    """Another logging process already writes the file.

    Attributes:
        path: the log file.
        pid: the process that owns it; None where its owner left no note.
        since: when that process took it, as ``YYYY-MM-DD HH:MM:SS`` in local time; None where its owner left no note.
    """

    def __init__(self, message: str, *, path: str = "", pid: int | None = None, since: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid
        self.since = since


class ServerStateError(MplogError, RuntimeError):
    """The call does not fit the state of the server: not started, stopped, or another process's."""


class LoggingProcessDiedError(MplogError, RuntimeError):
    """The logging process ended without being asked to.

    Attributes:
        pid: its process id.
        exitcode: its exit status, negative for the signal that killed it.
    """

    def __init__(self, message: str, *, pid: int = 0, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode


class DrainTimeoutError(MplogError, TimeoutError):
    """The time ran out before everything was written; the logging process goes on with the rest.

    Attributes:
        pending: bytes of records that were not written when the time was over, in the queue and in the buffers of the
            logging process. 0 if that is not known: with a plain queue; and in the buffers on systems without /proc.
    """

    def __init__(self, message: str, *, pending: int = 0) -> None:
        super().__init__(message)
        self.pending = pending
