"""The arguments of a `LogServer`: checked when it is made, and what becomes of them when it starts."""

from __future__ import annotations

import logging
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from mplog.errors import ServerStateError, StartError
from mplog.logging_process.messages import Configuration
from mplog.queue.log_queue import DEFAULT_SIZE as QUEUE_SIZE
from mplog.queue.log_queue import LogQueue
from mplog.queue.overflow import Overflow
from mplog.queue.sync import Sync
from mplog.record.fields import Fields
from mplog.record.level import read_level
from mplog.record.portable import dump_by_value
from mplog.record.preparation import note_preparation
from mplog.sinks.collisions import check_names
from mplog.sinks.file import FileSink
from mplog.sinks.raw import check_raw_names
from mplog.sinks.sink import DEFAULT_FORMAT, Sink, to_formatter
from mplog.worker.logger import Logger
from mplog.worker.state import Layout, level_names

if TYPE_CHECKING:
    from mplog.config.logging_config import LoggingConfig


class Arguments:
    """The arguments of `LogServer`, which raise as it does."""

    def __init__(
        self,
        sinks: tuple[Any, ...],
        *,
        level: Any,
        format: Any,
        config: Any,
        fields: Any,
        queue: Any,
        logger_class: Any,
        overflow: Any,
        sync_level: Any,
        buffer_size: int,
        group: Any = None,
    ) -> None:
        #: Whether the configuration is what the program has set up itself, and is read again at the start.
        self.adopts = False
        self.config: LoggingConfig | None = None
        if config is not None:
            _check_alone(sinks=sinks or None, level=level, format=format)
            # Imported here, because few programs need it, and it loads as much as all the rest.
            from mplog.config.logging_config import LoggingConfig

            self.config = LoggingConfig(config)
        elif not sinks:
            raise TypeError("LogServer needs somewhere to write: LogServer('app.log'), or LogServer(ConsoleSink())")
        self.sinks = tuple(_to_sink(sink) for sink in sinks)
        check_names([sink for sink in self.sinks if isinstance(sink, FileSink)])
        raw_names = check_raw_names(self.sinks) if self.config is None else self.config.raw_names
        self.format = DEFAULT_FORMAT if format is None else format
        to_formatter(self.format)
        self.level = None if level is None else read_level(level)
        self.fields = Fields.of(fields)
        if logger_class not in (logging.Logger, Logger):
            raise ValueError(f"logger_class is logging.Logger or mplog.Logger, not {logger_class!r}")
        self.logger_class = logger_class
        self.overflow = self._with_emergency_file(Overflow.of(overflow))
        is_sync = sync_level is None or isinstance(sync_level, Sync)
        self.sync: Sync | None = sync_level if is_sync else Sync(read_level(sync_level))
        if buffer_size < 2 * QUEUE_SIZE or buffer_size % mmap.PAGESIZE:
            raise ValueError(
                f"buffer_size={buffer_size}: it must be at least {2 * QUEUE_SIZE} bytes, twice what a queue holds, in "
                f"whole pages of {mmap.PAGESIZE}"
            )
        self.buffer_size = buffer_size
        if queue is not None and not isinstance(queue, LogQueue):
            _check_plain_queue(queue, needs_log_queue=bool(self.sync or self.overflow.policy != "block"))
            if raw_names:
                raise ValueError(
                    f"a sink for bytes needs a LogQueue: {queue!r} carries records alone. Leave queue out."
                )
        self.queue = queue
        if group is not None and queue is not None:
            raise ValueError("group is for the queue that the server makes. Leave one of the two out")
        self.group = group if group is None or isinstance(group, int) else _group_id(group)

    def __repr__(self) -> str:
        return repr(self.config) if self.config is not None else ", ".join(map(repr, self.sinks))

    def _with_emergency_file(self, overflow: Overflow) -> Overflow:
        """Have the emergency file beside the first log file, where it outlives the server."""
        files = [sink.path for sink in self.sinks if isinstance(sink, FileSink)]
        if self.config is not None:
            # The stdlib also writes in directories in which this user can make no file.
            files = [path for path in self.config.files if os.access(os.path.dirname(path), os.W_OK)]
        if overflow.emergency or not files:
            return overflow
        try:
            files[0].encode()
        except UnicodeEncodeError:
            return overflow  # it would have to travel as text
        directory, name = os.path.split(files[0])
        return overflow.with_emergency_file(os.path.join(directory, f".{name}.emergency"))

    def check_at_start(self) -> None:
        """Check what may have changed since the server was made, and read an adopted configuration again."""
        _check_not_importing_main()
        if self.logger_class is Logger and logging.getLoggerClass() not in (logging.Logger, Logger):
            raise ServerStateError(
                f"logger_class=mplog.Logger would take the place of {logging.getLoggerClass()!r}, which the "
                "program has given to logging.setLoggerClass(). Leave one of the two out."
            )
        for sink in self.sinks:
            if isinstance(sink, FileSink):
                sink.check()
        if self.adopts:
            from mplog.config.adopt import describe_handlers
            from mplog.config.logging_config import LoggingConfig

            self.config = LoggingConfig(describe_handlers(), adopted=True)
        if self.config is not None:
            self.sinks = (self.config.sink,)

    def layouts(self) -> tuple[Layout, Layout]:
        """Return what is put where: for workers, and for programs that attach themselves."""
        config, preparation = self.config, self.fields.preparation
        layout, for_attached = (
            (Layout(), Layout()) if config is None else (config.layout(), config.layout(by_value=True))
        )
        if preparation is None:
            return layout, for_attached
        try:
            data = note_preparation(preparation)
        except Exception as error:
            raise StartError(
                f"the enrichers and redactors do not pickle, so they cannot be sent to workers: {error}. Define them "
                "as functions of a module, and let them look up there what they need."
            ) from error
        try:
            data_for_attached = note_preparation(preparation, by_value=True)
        except Exception:
            data_for_attached = data  # a program that has the same modules finds them
        replace = msgspec.structs.replace
        return replace(layout, preparation=data), replace(for_attached, preparation=data_for_attached)

    def pickled_configuration(self) -> bytes:
        """Return what the logging process opens."""
        # A program may have set these for all formatters, such as logging.Formatter.converter = time.gmtime.
        names = ("converter", "default_time_format", "default_msec_format")
        defaults = {name: vars(logging.Formatter)[name] for name in names}
        configuration = Configuration(
            self.sinks, self.format, defaults, level_names(), self.overflow, self.fields.constant
        )
        try:
            return dump_by_value(configuration)
        except Exception as error:
            raise StartError(
                f"the sinks do not pickle, so they cannot be sent to the logging process: {error}. A sink is a recipe: "
                "open files, sockets and handlers inside its factory, HandlerSink(lambda: ...), not before."
            ) from error


def _check_alone(**others: Any) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise TypeError(
            f"config says where to write, at which levels and in which format, so {' and '.join(given)} cannot be "
            "given beside it. Put that into the configuration: its handlers, the level of its root, its formatters."
        )


def _group_id(name: str) -> int:
    import grp  # not on Windows

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {name!r}. Name one that workers are in, or give its number") from None


def _to_sink(sink: Any) -> Sink:
    if isinstance(sink, Sink):
        return sink
    if isinstance(sink, (str, os.PathLike)):
        return FileSink(sink)
    if isinstance(sink, logging.Handler):
        raise TypeError(
            f"{sink!r} belongs to this process, and cannot be moved into the logging process. "
            "Give the recipe instead: HandlerSink(lambda: TheHandler(...)), or a path for a file."
        )
    raise TypeError(f"a sink is a path, a FileSink, a ConsoleSink or a HandlerSink, not {sink!r}")


def _check_plain_queue(queue: Any, *, needs_log_queue: bool) -> None:
    if not all(callable(getattr(queue, name, None)) for name in ("put", "get", "get_nowait")):
        raise TypeError(
            f"queue is a LogQueue, or a Queue of multiprocessing or multiprocess, not {queue!r}. A SimpleQueue "
            "does not do: nobody can wait for it for a limited time. Leave queue out, or give a Queue."
        )
    if needs_log_queue:
        raise ValueError(
            f"overflow and sync_level need a LogQueue: {queue!r} waits when it is full, and cannot tell what is on "
            "disk. Leave queue out, or these."
        )


def _check_not_importing_main() -> None:
    # As multiprocessing and multiprocess do when they refuse to start a process at this point.
    for library in ("multiprocessing.process", "multiprocess.process"):
        module = sys.modules.get(library)
        if module is not None and getattr(module.current_process(), "_inheriting", False):
            raise StartError(
                "LogServer.start() was reached in a worker that is just importing the main module, as every spawned "
                'worker does. Put what starts the server and the workers under  if __name__ == "__main__":'
            )
