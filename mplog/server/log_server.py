"""`LogServer`: the logging process, seen from the program that starts it.

::

    LogServer.start()  --- exec --->  logging process        (mplog.logging_process.main)
              |  control connection: configuration, flush, stats, stop
              |  root logger: one QueueHandler, until stop()
    workers   ---- LogQueue ----->    logging process

The rule of this file: **the server never stands between a worker and the log.** It starts the logging process and asks
it things; records do not pass through here. So there is no thread here (but for a plain queue, which needs one), and
when this process dies the logging process goes on with what the others send.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle
import msgspec

from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, MplogError, ServerStateError, StartError
from mplog.logging_process.messages import ChildEnded, Configuration, Launch, Patience, Records
from mplog.monitoring.statistics import Stats, read_counts, to_stats
from mplog.queue.emergency import EmergencyFile
from mplog.queue.log_queue import DEFAULT_SIZE as QUEUE_SIZE
from mplog.queue.log_queue import LogQueue, emergency_path
from mplog.queue.overflow import Overflow
from mplog.queue.sync import Sync
from mplog.record.fields import Fields, note_preparation
from mplog.server.control import Control
from mplog.server.plain_queue import Pump
from mplog.server.progress import Progress
from mplog.sinks.collisions import check_names
from mplog.sinks.file import FileSink
from mplog.sinks.raw import check_raw_names
from mplog.sinks.sink import DEFAULT_FORMAT, Sink, to_formatter
from mplog.worker.attach import (
    MPLOG_QUEUE,
    Initializer,
    Layout,
    LoggingState,
    all_loggers,
    forget_filters,
    install,
    note_filters,
)
from mplog.worker.levels import LevelChanges
from mplog.worker.logger import Logger, set_logger_class

if TYPE_CHECKING:
    from mplog.config.logging_config import LoggingConfig

__all__ = ["LogServer"]

#: Seconds that the logging process may take to open its sinks.
START_TIMEOUT = 30.0
#: Seconds that `LogServer.stop` and the end of a program wait for what is still to be written.
STOP_TIMEOUT = 30.0


class LogServer:
    """A logging process, and the means to send records to it.

    >>> with LogServer("app.log", level="INFO") as server:                              # doctest: +SKIP
    ...     with Pool(4, initializer=server.initializer) as pool:
    ...         pool.map(work, tasks)

    While it runs, the root logger of this process has one handler, which sends to the logging process, too; `stop`
    puts the logging of this process back as it was. A server that is never stopped writes everything before the
    program ends.

    Args:
        sinks: where to write: `Sink` objects; a path is short for a `FileSink`. At least one, or a `config`.
        level: the root logger's level while the server runs, here and in the workers; None (the default) leaves it as
            it is.
        format: a ``%``-style format or a ``logging.Formatter`` for the sinks that have none of their own; None (the
            default) is ``%(asctime)s %(levelname)-8s %(processName)s %(name)s | %(message)s``.
        config: in place of sinks, level and format: a dictionary as ``logging.config.dictConfig`` takes it, or the
            path of a ``.toml`` or ``.json`` file that holds one. Its handlers, with their formatters and filters, are
            made in the logging process; the levels, filters and ``propagate`` of its loggers hold here and in the
            workers.
        fields: fields that every record gets, such as ``{"service": "shop"}``, for formats (``%(service)s``) and
            ``JSONFormatter``; a record's own field of that name takes precedence. Or `Fields`, which can also have
            fields worked out for each record, and keep secrets out of all of them.
        queue: a `LogQueue` of your own; or a plain ``Queue`` of ``multiprocessing`` or ``multiprocess``, which works
            everywhere but loses what a worker has not sent when it dies, and may wedge when one is killed. None (the
            default) makes a `LogQueue`.
        logger_class: ``mplog.Logger`` makes all loggers of this process and of the workers loggers of that class, those
            too that modules have got already. ``logging.Logger`` (the default) leaves them as they are.
        overflow: what becomes of a record while the buffers and the queue are full: ``"block"`` (the default; nothing
            is lost, and calls wait), ``"drop_newest"``, ``"drop_oldest"``, ``"fallback"``, or an `Overflow` with more
            to say, such as ``Overflow.drop_below("WARNING", at=0.8)``. What is dropped is counted, and the log says so;
            errors are kept as long as anything can be.
        sync_level: calls at this level and above return when their record is on disk; `Sync` to give a timeout, too.
            None (the default) is none.
        buffer_size: bytes of each of the two buffers between the queue and the sinks. The default, 8 MiB, takes some
            40,000 records while a disk stands still; memory that is never filled is never taken.

    Raises:
        ValueError, TypeError: an argument is wrong; `ConfigurationError` where it is something in `config`.
    """

    def __init__(
        self,
        *sinks: Sink | str | os.PathLike[str],
        level: int | str | None = None,
        format: str | logging.Formatter | None = None,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        fields: Mapping[str, Any] | Fields | None = None,
        queue: Any = None,
        logger_class: type[logging.Logger] = logging.Logger,
        overflow: Overflow | str = "block",
        sync_level: int | str | Sync | None = None,
        buffer_size: int = 8 * 2**20,
    ) -> None:
        self._config: LoggingConfig | None = None
        self._adopts = False
        if config is not None:
            _check_alone(sinks, level, format)
            self._config = _read_config(config)
        elif not sinks:
            raise TypeError("LogServer needs somewhere to write: LogServer('app.log'), or LogServer(ConsoleSink())")
        self._sinks = tuple(_to_sink(sink) for sink in sinks)
        _check_paths(self._sinks)
        raw_names = check_raw_names(self._sinks) if self._config is None else self._config.raw_names
        self._format = DEFAULT_FORMAT if format is None else format
        to_formatter(self._format)
        self._level = None if level is None else logging.Handler(level).level
        self._fields = Fields.of(fields)
        if logger_class not in (logging.Logger, Logger):
            raise ValueError(f"logger_class is logging.Logger or mplog.Logger, not {logger_class!r}")
        self._overflow = self._with_emergency_file(Overflow.of(overflow))
        self._sync = _to_sync(sync_level)
        if buffer_size < 2 * QUEUE_SIZE or buffer_size % mmap.PAGESIZE:
            raise ValueError(
                f"buffer_size={buffer_size}: a buffer takes all that a queue holds, twice; so it has at least "
                f"{2 * QUEUE_SIZE} bytes, in whole pages of {mmap.PAGESIZE}"
            )
        if queue is not None and not all(callable(getattr(queue, name, None)) for name in ("put", "get", "get_nowait")):
            raise TypeError(
                f"queue is a LogQueue, or a Queue of multiprocessing or multiprocess, not {queue!r}. A SimpleQueue "
                "does not do: nobody can wait for it for a limited time. Leave queue out, or give a Queue."
            )
        if queue is not None and not isinstance(queue, LogQueue) and (self._sync or self._overflow.policy != "block"):
            raise ValueError(
                f"overflow and sync_level need a LogQueue: {queue!r} waits when it is full, and cannot tell what is on "
                "disk. Leave queue out, or these."
            )
        if queue is not None and not isinstance(queue, LogQueue) and raw_names:
            raise ValueError(f"a sink for bytes needs a LogQueue: {queue!r} carries records alone. Leave queue out.")
        self._buffer_size = buffer_size
        self._given_queue = queue
        self._logger_class = logger_class
        self._lock = threading.RLock()
        self._owner = 0
        self._queue: Any = None
        self._layout = Layout()
        self._control: Control | None = None
        self._pump: Pump | None = None
        self._stopping: Control | None = None
        self._is_ending = False
        self._takeover: _Takeover | None = None
        self._finalizer: Any = None
        self._last_stats = Stats()

    #: With logging processes that die one after the other.
    _patience = Patience()

    def _with_emergency_file(self, overflow: Overflow) -> Overflow:
        """Have the emergency file beside the first log file, where it outlives the server."""
        files = [sink.path for sink in self._sinks if isinstance(sink, FileSink)]
        if self._config is not None:
            # The stdlib writes in directories, too, in which nobody can make a file.
            files = [path for path in self._config.files if os.access(os.path.dirname(path), os.W_OK)]
        if overflow.emergency or not files:
            return overflow
        try:
            files[0].encode()
        except UnicodeEncodeError:
            return overflow  # it would have to travel as text
        directory, name = os.path.split(files[0])
        return overflow.with_emergency_file(os.path.join(directory, f".{name}.emergency"))

    def __repr__(self) -> str:
        state = f"pid {self._control.pid}" if self._control is not None else "not running"
        what = repr(self._config) if self._config is not None else ", ".join(map(repr, self._sinks))
        return f"<LogServer {what}: {state}>"

    @classmethod
    def from_logging(
        cls,
        *,
        fields: Mapping[str, Any] | Fields | None = None,
        queue: Any = None,
        logger_class: type[logging.Logger] = logging.Logger,
        overflow: Overflow | str = "block",
        sync_level: int | str | Sync | None = None,
        buffer_size: int = 8 * 2**20,
    ) -> LogServer:
        """Return a server that takes over the handlers that this program has set up, on all of its loggers.

        While it runs, they work in the logging process, for this process and its workers: with the same formatters,
        filters and levels, and on the same files. Loggers keep their levels and filters, which workers get, too.
        `stop` gives the loggers their handlers back.

        Args:
            fields, queue, logger_class, overflow, sync_level, buffer_size: see `LogServer`.

        Raises:
            ConfigurationError: a handler cannot be moved, since it is neither one of the standard library's nor
                Django's, or there is none at all; ``place`` names its logger.
        """
        from mplog.config.adopt import describe_handlers

        server = cls(
            config=describe_handlers(),
            fields=fields,
            queue=queue,
            logger_class=logger_class,
            overflow=overflow,
            sync_level=sync_level,
            buffer_size=buffer_size,
        )
        server._adopts = True
        return server

    # --- starting ---

    def start(self) -> LogServer:
        """Start the logging process, and return when its sinks are open.

        Returns:
            The server itself.

        Raises:
            StartError: the logging process could not start; `SinkError` where a sink cannot be opened, and
                `LogFileLockedError` where another logging process writes its file.
            ServerStateError: it runs already.
        """
        with self._lock:
            if self._control is not None:
                raise ServerStateError(
                    f"{self!r} was started before, by pid {self._owner}. Make a LogServer for each use."
                )
            _check_not_importing_main()
            if self._logger_class is Logger and logging.getLoggerClass() not in (logging.Logger, Logger):
                raise ServerStateError(
                    f"logger_class=mplog.Logger would take the place of {logging.getLoggerClass()!r}, which the "
                    "program has given to logging.setLoggerClass(). Leave one of the two out."
                )
            for sink in self._sinks:
                if isinstance(sink, FileSink):
                    sink.check()
            if self._adopts:
                self._config = _adopted_config()
            layout, for_attached = self._prepared(*self._layouts())
            configuration = self._pickled_configuration()
            self._queue = self._given_queue if self._given_queue is not None else _new_queue()
            if isinstance(self._queue, LogQueue):
                self._queue.preparation = layout.preparation
            self._control = self._start_process(configuration)
            self._owner = os.getpid()
            self._layout = layout
            self._takeover = _Takeover(self._queue, self._config, layout, for_attached)
            try:
                self._takeover.apply(self._level, self._logger_class)
            except BaseException:
                self.stop()
                raise
            # Behind multiprocessing's own exit function, which waits for the children: they may still log.
            self._finalizer = multiprocessing.util.Finalize(None, self._at_exit, exitpriority=-100)
            return self

    def _layouts(self) -> tuple[Layout, Layout]:
        """Return what is put where, for workers, and for programs that attach themselves."""
        if self._config is None:
            return Layout(), Layout()
        self._sinks = (self._config.sink,)
        return self._config.layout(), self._config.layout(by_value=True)

    def _prepared(self, layout: Layout, for_attached: Layout) -> tuple[Layout, Layout]:
        """Return the layouts with what is done to records before they leave a process."""
        preparation = self._fields.preparation
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

    def _pickled_configuration(self) -> bytes:
        try:
            configuration: bytes = cloudpickle.dumps(
                Configuration(self._sinks, self._format, _formatter_defaults(), self._overflow, self._fields.constant)
            )
        except Exception as error:
            raise StartError(
                f"the sinks do not pickle, so they cannot be sent to the logging process: {error}. A sink is a recipe: "
                "open files, sockets and handlers inside its factory, HandlerSink(lambda: ...), not before."
            ) from error
        return configuration

    def _start_process(self, configuration: bytes) -> Control:
        if not isinstance(self._queue, LogQueue):
            control = Control(Launch(configuration), START_TIMEOUT)
            self._pump = Pump(self._queue, lambda batch: control.send(Records(batch)))
            self._pump.start()
            return control
        _close_starting_in_forks()
        fd = self._queue.release_reader()
        _starting.add(fd)
        try:
            self._queue.overflow, self._queue.sync = self._overflow, self._sync
            emergency = EmergencyFile(
                self._overflow.emergency or emergency_path(self._queue.directory), self._overflow.emergency_size
            )
            launch = Launch(
                configuration, self._queue.directory, fd, self._buffer_size, emergency, patience=self._patience
            )
            control = Control(launch, START_TIMEOUT)
            self._queue.details = control.needs_details
            return control
        except BaseException:
            self._clear_up()
            raise
        finally:
            _starting.discard(fd)
            os.close(fd)

    def _clear_up(self) -> None:
        """Remove what a logging process that has died could not remove itself."""
        if isinstance(self._queue, LogQueue):
            self._queue.remove()
        for sink in self._sinks:
            sink.clear_up()

    def __enter__(self) -> LogServer:
        return self.start() if self._control is None else self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    # --- what it is ---

    @property
    def queue(self) -> Any:
        """The queue, which is a `LogQueue` or the plain queue that was given.

        Raises:
            ServerStateError: the server is not running.
        """
        self._require_running()
        return self._queue

    @property
    def pid(self) -> int:
        """The process id of the logging process.

        Raises:
            ServerStateError: the server is not running.
        """
        return self._require_running().pid

    @property
    def initializer(self) -> Initializer:
        """What a worker calls to log to this server. Give it to a Pool, an executor or a Process.

        Raises:
            ServerStateError: the server is not running.
        """
        self._require_running()
        return Initializer(self._queue, layout=self._layout)

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not stopped, and somebody reads the queue."""
        return self._control is not None and self._control.is_alive

    @property
    def queue_fill(self) -> float:
        """How full the queue is at this moment, from 0 to 1; 0 where the server is not running, or cannot tell."""
        if self._control is not None and isinstance(self._queue, LogQueue):
            with contextlib.suppress(MplogError, OSError):  # nobody reads it
                return self._queue.fill
        return 0.0

    def _require_running(self) -> Control:
        if self._control is None:
            raise ServerStateError(
                f"{self!r}. Start it first: with LogServer(...) as server, or LogServer(...).start()."
            )
        return self._control

    def note_end(self, pid: int, name: str, exitcode: int) -> None:
        """Tell the logging process how a child of this process has ended, which no other process may know.

        Args:
            pid, name, exitcode: the child's, as in ``multiprocessing.Process``.
        """
        control = self._control
        if control is not None and self._owner == os.getpid():
            with contextlib.suppress(LoggingProcessDiedError):
                control.send(ChildEnded(pid, name, exitcode))

    def _require_own(self) -> Control:
        control = self._require_running()
        if self._owner != os.getpid():
            raise ServerStateError(
                f"{self!r} belongs to pid {self._owner}, which started it; only that one can ask it."
            )
        return control

    # --- changing ---

    def set_level(self, logger: str, level: int | str) -> None:
        """Set the level of a logger, here and in the workers, those that run already too.

        A running worker notices when it next sends a record of any logger; with ``logger_class=mplog.Logger``, with its
        next logging call, also at a level that is off. Workers of a plain queue notice only when they are started
        later. `stop` puts the level back.

        Args:
            logger: its name; ``""`` or ``"root"`` for the root logger.
            level: a level, by number or name.

        Raises:
            ServerStateError: the server is not running, or another process started it.
            ValueError, TypeError: there is no such level.
        """
        number = logging.Handler(level).level
        name = "" if logger == "root" else logger
        with self._lock:
            self._require_own()
            assert self._takeover is not None
            self._takeover.set_level(name, number)

    # --- asking ---

    def flush(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait until every record whose logging call has returned, in any process, is written.

        With a plain queue, only what the queue has delivered so far: nobody can tell what its threads still hold.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DrainTimeoutError: the time is over.
            LoggingProcessDiedError: the logging process has ended.
            ServerStateError: the server is not running, or another process started it.
        """
        self._require_own().ask("flush", timeout)

    def stats(self, timeout: float = STOP_TIMEOUT) -> Stats:
        """Return what the logging process has counted, at this moment or, when the server is stopped, in the end.

        With a `LogQueue` this reads shared memory, and so waits for nobody: what was logged in the last instant may be
        missing, until the next `flush`.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DrainTimeoutError: the time is over.
            LoggingProcessDiedError: the logging process has ended.
            ServerStateError: another process started the server.
        """
        if self._control is None:
            return self._last_stats
        control = self._require_own()
        counted = self._counted()
        return control.ask("stats", timeout) if counted is None else counted

    def _counted(self) -> Stats | None:
        """Return what is in shared memory; None where there is none, or it is there no more."""
        if not isinstance(self._queue, LogQueue):
            return None
        counts, lost = read_counts(self._queue.directory)
        return to_stats(counts, lost) if counts or self.is_running else None

    # --- stopping ---

    def stop(self, timeout: float = STOP_TIMEOUT) -> Stats:
        """Write what is still in the queue, close the sinks and end the logging process.

        Records that other processes log while this runs are either written or, once the queue is closed, refused
        there. May be called at any time, again, and by several threads. In a process that did not start the server it
        does nothing.

        Args:
            timeout: seconds to wait at most.

        Returns:
            What was counted; ``failed`` says what could not be written.

        Raises:
            DrainTimeoutError: the time is over; the logging process goes on, and ends when all is written.
            LoggingProcessDiedError: the logging process has died before.
        """
        if self._owner != os.getpid():
            return self._last_stats
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise DrainTimeoutError(f"another thread has been stopping {self!r} for {timeout:g} seconds")
        try:
            control = self._control or self._stopping
            if control is not None and not self._is_ending:  # a signal handler stops what is being stopped
                self._is_ending = True
                # Ctrl-C, or the end of the time, leaves it in here, and the end of the program waits for it.
                self._stopping, self._control = control, None
                try:
                    self._end(control, deadline)
                finally:
                    self._is_ending = False
            return self._last_stats
        finally:
            self._lock.release()

    def _end(self, control: Control, deadline: float) -> None:
        assert self._takeover is not None
        self._takeover.undo()
        try:
            if self._pump is not None and not self._pump.stop(max(0.0, deadline - time.monotonic())):
                raise DrainTimeoutError("the plain queue is still not empty: its writers go on, or a sink is slow")
            with self._progress() as progress:
                self._last_stats = control.ask("stop", max(0.0, deadline - time.monotonic()), progress.ticker)
        except LoggingProcessDiedError:
            self._last_stats = self._counted() or self._last_stats
            self._clear_up()
            if control.parting_words is None:
                self._forget()
                raise
            self._last_stats = control.parting_words
        control.wait(max(1.0, deadline - time.monotonic()))
        self._forget()

    def _progress(self) -> Progress:
        """Return what shows a person how much is left."""
        if not isinstance(self._queue, LogQueue):
            return Progress(None, lambda: 0)
        return Progress(self._queue.directory, self._queue.pending)

    def _forget(self) -> None:
        self._stopping = None
        if self._finalizer is not None:
            self._finalizer.cancel()

    def _at_exit(self) -> None:
        """Have everything written that was logged so far, at the end of a program that has not called `stop`.

        The logging process is not stopped: atexit functions, ``__del__`` methods and daemon threads may still log. It
        ends by itself when this process, and whoever else logs to it, has.
        """
        control = self._control or self._stopping
        if control is None:
            return
        try:
            if self._pump is not None:
                self.stop()
            elif control is self._stopping:
                with self._progress() as progress:
                    control.wait(STOP_TIMEOUT, progress.ticker)
            else:
                with self._progress() as progress:
                    control.ask("flush", STOP_TIMEOUT, progress.ticker)
        except KeyboardInterrupt:
            pass  # whoever presses Ctrl-C once more does not want to wait; the logging process goes on alone
        except MplogError as error:
            if sys.stderr is not None:
                print(f"mplog: at the end of the program, {error}", file=sys.stderr)
        control.leave()


#: Reading ends on their way to a logging process.
_starting: set[int] = set()


@functools.lru_cache(maxsize=1)
def _close_starting_in_forks() -> None:
    """Have no process that is forked meanwhile keep such an end: it would make a dead queue look alive."""

    def close() -> None:
        while _starting:
            os.close(_starting.pop())

    os.register_at_fork(after_in_child=close)


class _Takeover:
    """The logging of the process that starts a server, as it was before, and what it is meanwhile.

    What the program itself changes meanwhile stays when it is undone. Servers may stop in another order than they
    started: one that stops below another hands on what it has found.

    Args:
        queue: the server's.
        config: the server's; None for one without.
        layout: what the configuration puts where, for this process and its workers.
        for_attached: the same for programs that attach themselves.
    """

    #: Those that are not undone, the latest last.
    _active: ClassVar[list[_Takeover]] = []
    _lock = threading.RLock()

    def __init__(self, queue: Any, config: LoggingConfig | None, layout: Layout, for_attached: Layout) -> None:
        self._queue = queue
        self._config = config
        self._layout = layout
        self._for_attached = for_attached
        self._changes = LevelChanges(queue.directory) if isinstance(queue, LogQueue) else None
        self._handler: logging.Handler | None = None
        self._before = self._ours = _Logging.now()

    def apply(self, level: int | None, logger_class: type[logging.Logger]) -> None:
        """Take over."""
        with self._lock:
            self._active.append(self)
            if self._config is not None:
                self._config.apply()
                note_filters(self._layout.filters, self._config.filters)
            self._handler = install(self._queue, layout=self._layout)
            if level is not None:
                logging.getLogger().setLevel(level)
            if logger_class is Logger:
                set_logger_class(Logger)
            if isinstance(self._queue, LogQueue):
                os.environ[MPLOG_QUEUE] = self._queue.directory
            self._ours = _Logging.now()
            if isinstance(self._queue, LogQueue):
                self._save_state()
            if self._config is not None:
                self._config.release_files(self._taken_off())

    def set_level(self, name: str, level: int) -> None:
        """Set a logger's level, and tell the workers."""
        with self._lock:
            logger = logging.getLogger(name)
            self._before.loggers.setdefault(name, _LoggerState.of(logger))
            logger.setLevel(level)
            ours = self._ours.loggers.get(name) or _LoggerState.of(logger)
            self._ours.loggers[name] = replace(ours, level=level)
            if self._changes is not None:
                self._save_state()
                self._changes.set(name, level)

    def _save_state(self) -> None:
        state = msgspec.structs.replace(
            LoggingState.capture(self._for_attached),
            details=self._queue.details,
            overflow=self._queue.overflow,
            sync=self._queue.sync,
        )
        state.save(self._queue.directory)

    def _taken_off(self) -> list[logging.Handler]:
        """Return the handlers that no logger has meanwhile."""
        before, ours = (
            [handler for logger in state.loggers.values() for handler in logger.handlers]
            for state in (self._before, self._ours)
        )
        return [handler for handler in before if handler not in ours]

    def undo(self) -> None:
        """Put everything back."""
        with self._lock:
            if self not in self._active:
                return
            if self._config is not None:
                self._config.give_back(self._taken_off())
            index = self._active.index(self)
            self._active.remove(self)
            if index < len(self._active):
                above = self._active[index]
                above._before = self._without(above._before)
            else:
                self._without(_Logging.now()).restore()
            if self._config is not None:
                forget_filters(self._layout.filters)

    def _without(self, state: _Logging) -> _Logging:
        """Return the state without what this has changed."""
        loggers = {}
        for name, now in state.loggers.items():
            ours = self._ours.loggers.get(name)
            before = self._before.loggers.get(name, _UNTOUCHED)
            loggers[name] = now if ours is None else now.without(ours, before, self._handler)
        return _Logging(
            loggers,
            self._before.logger_class if state.logger_class is self._ours.logger_class else state.logger_class,
            self._before.environment if state.environment == self._ours.environment else state.environment,
            self._before.record_factory if state.record_factory is self._ours.record_factory else state.record_factory,
        )


@dataclass(frozen=True)
class _LoggerState:
    """What a server may change of a logger."""

    handlers: list[logging.Handler]
    filters: list[Any]
    level: int
    propagate: bool
    disabled: bool

    @classmethod
    def of(cls, logger: logging.Logger) -> _LoggerState:
        return cls(logger.handlers[:], logger.filters[:], logger.level, logger.propagate, logger.disabled)

    def without(self, ours: _LoggerState, before: _LoggerState, handler: logging.Handler | None) -> _LoggerState:
        """Return this state without what made `ours` of `before`; what the program has changed since stays."""
        handlers = self.handlers
        if handler in handlers or handler not in ours.handlers:
            added = [each for each in handlers if each not in ours.handlers]
            handlers = [each for each in before.handlers if each not in added] + added
        new_filters = [each for each in ours.filters if each not in before.filters]
        return _LoggerState(
            handlers,
            [each for each in self.filters if each not in new_filters],
            before.level if self.level == ours.level else self.level,
            before.propagate if self.propagate == ours.propagate else self.propagate,
            before.disabled if self.disabled == ours.disabled else self.disabled,
        )

    def restore(self, logger: logging.Logger) -> None:
        logger.handlers, logger.filters = self.handlers, self.filters
        logger.propagate, logger.disabled = self.propagate, self.disabled
        if logger.level != self.level:
            logger.setLevel(self.level)


_UNTOUCHED = _LoggerState([], [], logging.NOTSET, True, False)


@dataclass
class _Logging:
    """What a server changes in its process: loggers, the class of new ones, what makes records, and the environment."""

    loggers: dict[str, _LoggerState]
    logger_class: type[logging.Logger]
    environment: str | None
    record_factory: Any

    @classmethod
    def now(cls) -> _Logging:
        loggers = {name: _LoggerState.of(logger) for name, logger in all_loggers().items()}
        return cls(loggers, logging.getLoggerClass(), os.environ.get(MPLOG_QUEUE), logging.getLogRecordFactory())

    def restore(self) -> None:
        now = {name: _LoggerState.of(logger) for name, logger in all_loggers().items()}
        for name, state in self.loggers.items():
            if state != now.get(name):
                state.restore(logging.getLogger(name))
        if self.logger_class is not logging.getLoggerClass():
            set_logger_class(self.logger_class)
        logging.setLogRecordFactory(self.record_factory)
        if self.environment is None:
            os.environ.pop(MPLOG_QUEUE, None)
        else:
            os.environ[MPLOG_QUEUE] = self.environment


def _formatter_defaults() -> dict[str, Any]:
    """Return what a program may have set for all formatters, such as ``logging.Formatter.converter = time.gmtime``."""
    names = ("converter", "default_time_format", "default_msec_format")
    return {name: vars(logging.Formatter)[name] for name in names}


def _read_config(source: Mapping[str, Any] | str | os.PathLike[str]) -> LoggingConfig:
    # Here, because few programs need it, and it loads as much as all the rest.
    from mplog.config.logging_config import LoggingConfig

    return LoggingConfig(source)


def _adopted_config() -> LoggingConfig:
    from mplog.config.adopt import describe_handlers
    from mplog.config.logging_config import LoggingConfig

    return LoggingConfig(describe_handlers(), adopted=True)


def _check_alone(sinks: tuple[Any, ...], level: Any, format: Any) -> None:
    given = [
        name for name, value in (("sinks", sinks or None), ("level", level), ("format", format)) if value is not None
    ]
    if given:
        raise TypeError(
            f"config says where to write, at which levels and in which format, so {' and '.join(given)} cannot be "
            "given beside it. Put that into the configuration: its handlers, the level of its root, its formatters."
        )


def _to_sync(level: int | str | Sync | None) -> Sync | None:
    if level is None or isinstance(level, Sync):
        return level
    return Sync(logging.Handler(level).level)


def _to_sink(sink: Sink | str | os.PathLike[str]) -> Sink:
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


def _check_paths(sinks: tuple[Sink, ...]) -> None:
    check_names([sink for sink in sinks if isinstance(sink, FileSink)])


def _new_queue() -> Any:
    return LogQueue() if hasattr(os, "mkfifo") else multiprocessing.get_context("spawn").Queue(10_000)


def _check_not_importing_main() -> None:
    # What multiprocessing and multiprocess look at when they refuse to start a process at this point.
    for library in ("multiprocessing.process", "multiprocess.process"):
        module = sys.modules.get(library)
        if module is not None and getattr(module.current_process(), "_inheriting", False):
            raise StartError(
                "LogServer.start() was reached in a worker that is just importing the main module, as every spawned "
                'worker does. Put what starts the server and the workers under  if __name__ == "__main__":'
            )
