"""One log from many processes.

A logging process owns the files; worker processes send it their records through a queue that no death of a process
can break. `LogServer` starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from mplog.formats.escaping import unescape as unescape
    from mplog.formats.json import JSONFormatter as JSONFormatter
    from mplog.handlers.raw import Writer as Writer
    from mplog.monitoring.statistics import Stats as Stats
    from mplog.queue.log_queue import LogQueue as LogQueue
    from mplog.queue.losses import Reason as Reason
    from mplog.queue.overflow import Overflow as Overflow
    from mplog.queue.process_losses import ProcessLosses as ProcessLosses
    from mplog.queue.sync import Sync as Sync
    from mplog.record.context import bind as bind
    from mplog.record.context import carry_context as carry_context
    from mplog.record.context import context as context
    from mplog.record.context import unbind as unbind
    from mplog.record.fields import Fields as Fields
    from mplog.record.foreign import ForeignValue as ForeignValue
    from mplog.record.redaction import Redactor as Redactor
    from mplog.server.log_server import LogServer as LogServer
    from mplog.server.pools import MultiprocessProcess as MultiprocessProcess
    from mplog.server.pools import Pool as Pool
    from mplog.server.pools import Process as Process
    from mplog.server.pools import ProcessPoolExecutor as ProcessPoolExecutor
    from mplog.server.shutdown import GracefulShutdown as GracefulShutdown
    from mplog.sinks.callable import CallableSink as CallableSink
    from mplog.sinks.callable import Retry as Retry
    from mplog.sinks.console import ConsoleSink as ConsoleSink
    from mplog.sinks.file import FileSink as FileSink
    from mplog.sinks.raw import RawSink as RawSink
    from mplog.sinks.raw import WriterSink as WriterSink
    from mplog.sinks.routed import RoutedFileSink as RoutedFileSink
    from mplog.sinks.sink import HandlerSink as HandlerSink
    from mplog.sinks.sink import Sink as Sink
    from mplog.worker.attach import attach as attach
    from mplog.worker.initializer import Initializer as Initializer
    from mplog.worker.logger import Logger as Logger
    from mplog.worker.logger import getLogger as getLogger
    from mplog.worker.queue_handler import QueueHandler as QueueHandler
    from mplog.worker.write import write as write

_MODULES = {
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
    "record.context": ["bind", "carry_context", "context", "unbind"],
    "record.fields": ["Fields"],
    "record.foreign": ["ForeignValue"],
    "record.redaction": ["Redactor"],
    "queue.log_queue": ["LogQueue"],
    "queue.losses": ["Reason"],
    "queue.overflow": ["Overflow"],
    "queue.process_losses": ["ProcessLosses"],
    "queue.sync": ["Sync"],
    "monitoring.statistics": ["Stats"],
    "formats.escaping": ["unescape"],
    "formats.json": ["JSONFormatter"],
    "handlers.raw": ["Writer"],
    "sinks.callable": ["CallableSink", "Retry"],
    "sinks.console": ["ConsoleSink"],
    "sinks.file": ["FileSink"],
    "sinks.raw": ["RawSink", "WriterSink"],
    "sinks.routed": ["RoutedFileSink"],
    "sinks.sink": ["HandlerSink", "Sink"],
    "worker.attach": ["attach"],
    "worker.initializer": ["Initializer"],
    "worker.logger": ["Logger", "getLogger"],
    "worker.queue_handler": ["QueueHandler"],
    "worker.write": ["write"],
    "server.log_server": ["LogServer"],
    "server.pools": ["MultiprocessProcess", "Pool", "Process", "ProcessPoolExecutor"],
    "server.shutdown": ["GracefulShutdown"],
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
