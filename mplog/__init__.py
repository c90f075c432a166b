"""One log from many processes.

A logging process owns the files; worker processes send it their records through a queue that no death of a process
can break. `LogServer` starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mplog.errors import DrainTimeoutError as DrainTimeoutError
    from mplog.errors import LogFileLockedError as LogFileLockedError
    from mplog.errors import LoggingProcessDiedError as LoggingProcessDiedError
    from mplog.errors import MessageTooLongError as MessageTooLongError
    from mplog.errors import MplogError as MplogError
    from mplog.errors import NoReaderError as NoReaderError
    from mplog.errors import QueueNotFoundError as QueueNotFoundError
    from mplog.errors import ServerStateError as ServerStateError
    from mplog.errors import SinkError as SinkError
    from mplog.errors import StartError as StartError
    from mplog.handler import QueueHandler as QueueHandler
    from mplog.json_formatter import JSONFormatter as JSONFormatter
    from mplog.logger import Logger as Logger
    from mplog.logger import getLogger as getLogger
    from mplog.logging_process import Stats as Stats
    from mplog.plain import ForeignValue as ForeignValue
    from mplog.pools import Pool as Pool
    from mplog.pools import Process as Process
    from mplog.pools import ProcessPoolExecutor as ProcessPoolExecutor
    from mplog.queue import LogQueue as LogQueue
    from mplog.server import LogServer as LogServer
    from mplog.sinks import ConsoleSink as ConsoleSink
    from mplog.sinks import FileSink as FileSink
    from mplog.sinks import HandlerSink as HandlerSink
    from mplog.sinks import Sink as Sink
    from mplog.worker import Initializer as Initializer
    from mplog.worker import attach as attach

_MODULES = {
    "errors": [
        "DrainTimeoutError",
        "LogFileLockedError",
        "LoggingProcessDiedError",
        "MessageTooLongError",
        "MplogError",
        "NoReaderError",
        "QueueNotFoundError",
        "ServerStateError",
        "SinkError",
        "StartError",
    ],
    "handler": ["QueueHandler"],
    "json_formatter": ["JSONFormatter"],
    "logger": ["Logger", "getLogger"],
    "logging_process": ["Stats"],
    "plain": ["ForeignValue"],
    "pools": ["Pool", "Process", "ProcessPoolExecutor"],
    "queue": ["LogQueue"],
    "server": ["LogServer"],
    "sinks": ["ConsoleSink", "FileSink", "HandlerSink", "Sink"],
    "worker": ["Initializer", "attach"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562), so that a worker loads only what a worker needs."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'mplog' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"mplog.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
