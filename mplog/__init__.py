"""One log from many processes.

A logging process owns the files; worker processes send it their records through a queue that no death of a process
can break. `LogServer` starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mplog.bound import bind as bind
    from mplog.bound import carry_context as carry_context
    from mplog.bound import context as context
    from mplog.bound import unbind as unbind
    from mplog.callable_sink import CallableSink as CallableSink
    from mplog.callable_sink import Retry as Retry
    from mplog.errors import ConfigurationError as ConfigurationError
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
    from mplog.escaping import unescape as unescape
    from mplog.fields import Fields as Fields
    from mplog.fields import Redactor as Redactor
    from mplog.files import FileSink as FileSink
    from mplog.handler import QueueHandler as QueueHandler
    from mplog.json_formatter import JSONFormatter as JSONFormatter
    from mplog.logger import Logger as Logger
    from mplog.logger import getLogger as getLogger
    from mplog.losses import ProcessLosses as ProcessLosses
    from mplog.losses import Reason as Reason
    from mplog.overflow import Overflow as Overflow
    from mplog.plain import ForeignValue as ForeignValue
    from mplog.pools import Pool as Pool
    from mplog.pools import Process as Process
    from mplog.pools import ProcessPoolExecutor as ProcessPoolExecutor
    from mplog.queue import LogQueue as LogQueue
    from mplog.raw import write as write
    from mplog.raw_sinks import RawSink as RawSink
    from mplog.raw_sinks import Writer as Writer
    from mplog.raw_sinks import WriterSink as WriterSink
    from mplog.routed_files import RoutedFileSink as RoutedFileSink
    from mplog.server import LogServer as LogServer
    from mplog.shutdown import GracefulShutdown as GracefulShutdown
    from mplog.sinks import ConsoleSink as ConsoleSink
    from mplog.sinks import HandlerSink as HandlerSink
    from mplog.sinks import Sink as Sink
    from mplog.statistics import Stats as Stats
    from mplog.sync import Sync as Sync
    from mplog.worker import Initializer as Initializer
    from mplog.worker import attach as attach

_MODULES = {
    "bound": ["bind", "carry_context", "context", "unbind"],
    "callable_sink": ["CallableSink", "Retry"],
    "errors": [
        "ConfigurationError",
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
    "escaping": ["unescape"],
    "fields": ["Fields", "Redactor"],
    "files": ["FileSink"],
    "handler": ["QueueHandler"],
    "json_formatter": ["JSONFormatter"],
    "logger": ["Logger", "getLogger"],
    "losses": ["ProcessLosses", "Reason"],
    "overflow": ["Overflow"],
    "plain": ["ForeignValue"],
    "pools": ["Pool", "Process", "ProcessPoolExecutor"],
    "queue": ["LogQueue"],
    "raw": ["write"],
    "raw_sinks": ["RawSink", "Writer", "WriterSink"],
    "routed_files": ["RoutedFileSink"],
    "server": ["LogServer"],
    "shutdown": ["GracefulShutdown"],
    "sinks": ["ConsoleSink", "HandlerSink", "Sink"],
    "statistics": ["Stats"],
    "sync": ["Sync"],
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
