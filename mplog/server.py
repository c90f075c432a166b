"""`LogServer`: the logging process, seen from the program that starts it.

::

    LogServer.start()  --- exec --->  logging process        (mplog.logging_process)
              |  control connection: configuration, flush, stats, stop
              |  root logger: one QueueHandler, until stop()
    workers   ---- LogQueue ----->    logging process

The rule of this file: **the server never stands between a worker and the log.** It starts the logging process and asks
it things; records do not pass through here. So there is no thread here (but for a plain queue, which needs one), and
when this process dies the logging process goes on with what the others send.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import cloudpickle

from mplog.control import Control
from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, MplogError, ServerStateError, StartError
from mplog.logger import Logger, set_logger_class
from mplog.logging_process import Configuration, Stats
from mplog.plain_queue import Pump
from mplog.queue import LogQueue
from mplog.sinks import DEFAULT_FORMAT, FileSink, Sink, to_formatter
from mplog.worker import MPLOG_QUEUE, Initializer, LoggingState, install

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
        sinks: where to write: `Sink` objects; a path is short for a `FileSink`. At least one.
        level: the root logger's level while the server runs, here and in the workers; None (the default) leaves it as
            it is.
        format: a ``%``-style format or a ``logging.Formatter`` for the sinks that have none of their own.
        queue: a `LogQueue` of your own; or a plain ``Queue`` of ``multiprocessing`` or ``multiprocess``, which works
            everywhere but loses what a worker has not sent when it dies, and may wedge when one is killed. None (the
            default) makes a `LogQueue`.
        logger_class: ``mplog.Logger`` makes all loggers of this process and of the workers loggers of that class, those
            too that modules have got already. ``logging.Logger`` (the default) leaves them as they are.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self,
        *sinks: Sink | str | os.PathLike[str],
        level: int | str | None = None,
        format: str | logging.Formatter = DEFAULT_FORMAT,
        queue: Any = None,
        logger_class: type[logging.Logger] = logging.Logger,
    ) -> None:
        if not sinks:
            raise TypeError("LogServer needs somewhere to write: LogServer('app.log'), or LogServer(ConsoleSink())")
        self._sinks = tuple(_to_sink(sink) for sink in sinks)
        _check_paths(self._sinks)
        to_formatter(format)
        self._format = format
        self._level = None if level is None else logging.Handler(level).level
        if logger_class not in (logging.Logger, Logger):
            raise ValueError(f"logger_class is logging.Logger or mplog.Logger, not {logger_class!r}")
        self._given_queue = queue
        self._logger_class = logger_class
        self._lock = threading.RLock()
        self._owner = 0
        self._queue: Any = None
        self._control: Control | None = None
        self._pump: Pump | None = None
        self._stopping: Control | None = None
        self._is_ending = False
        self._takeover: _Takeover | None = None
        self._finalizer: Any = None
        self._last_stats = Stats()

    def __repr__(self) -> str:
        state = f"pid {self._control.pid}" if self._control is not None else "not running"
        return f"<LogServer {', '.join(map(repr, self._sinks))}: {state}>"

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
            configuration = self._pickled_configuration()
            self._queue = self._given_queue if self._given_queue is not None else _new_queue()
            self._control = self._start_process(configuration)
            self._owner = os.getpid()
            self._takeover = _Takeover(self._queue)
            try:
                self._takeover.apply(self._level, self._logger_class)
            except BaseException:
                self.stop()
                raise
            # Behind multiprocessing's own exit function, which waits for the children: they may still log.
            self._finalizer = multiprocessing.util.Finalize(None, self._at_exit, exitpriority=-100)
            return self

    def _pickled_configuration(self) -> bytes:
        try:
            configuration: bytes = cloudpickle.dumps(Configuration(self._sinks, self._format, _formatter_defaults()))
        except Exception as error:
            raise StartError(
                f"the sinks do not pickle, so they cannot be sent to the logging process: {error}. A sink is a recipe: "
                "open files, sockets and handlers inside its factory, HandlerSink(lambda: ...), not before."
            ) from error
        return configuration

    def _start_process(self, configuration: bytes) -> Control:
        if not isinstance(self._queue, LogQueue):
            control = Control(configuration, None, None, START_TIMEOUT)
            self._pump = Pump(self._queue, lambda batch: control.send("records", batch))
            self._pump.start()
            return control
        _close_starting_in_forks()
        fd = self._queue.release_reader()
        _starting.add(fd)
        try:
            return Control(configuration, self._queue.directory, fd, START_TIMEOUT)
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
            if isinstance(sink, FileSink):
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
        """The queue: a `LogQueue`, or the plain queue that was given.

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
        """What a worker calls to log to this server: give it to a Pool, an executor or a Process.

        Raises:
            ServerStateError: the server is not running.
        """
        self._require_running()
        return Initializer(self._queue)

    def _require_running(self) -> Control:
        if self._control is None:
            raise ServerStateError(
                f"{self!r}. Start it first: with LogServer(...) as server, or LogServer(...).start()."
            )
        return self._control

    def _require_own(self) -> Control:
        control = self._require_running()
        if self._owner != os.getpid():
            raise ServerStateError(
                f"{self!r} belongs to pid {self._owner}, which started it; only that one can ask it."
            )
        return control

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

        Args:
            timeout: seconds to wait at most.

        Raises:
            DrainTimeoutError: the time is over.
            LoggingProcessDiedError: the logging process has ended.
            ServerStateError: another process started the server.
        """
        return self._last_stats if self._control is None else self._require_own().ask("stats", timeout)

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
            self._last_stats = control.ask("stop", max(0.0, deadline - time.monotonic()))
        except LoggingProcessDiedError:
            self._clear_up()
            if control.parting_words is None:
                self._forget()
                raise
            self._last_stats = control.parting_words
        control.wait(max(1.0, deadline - time.monotonic()))
        self._forget()

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
                control.wait(STOP_TIMEOUT)
            else:
                control.ask("flush", STOP_TIMEOUT)
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
    """

    #: Those that are not undone, the latest last.
    _active: ClassVar[list[_Takeover]] = []
    _lock = threading.RLock()

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._handler: logging.Handler | None = None
        self._before = self._ours = _Logging.now()

    def apply(self, level: int | None, logger_class: type[logging.Logger]) -> None:
        """Take over."""
        with self._lock:
            self._active.append(self)
            self._handler = install(self._queue)
            if level is not None:
                logging.getLogger().setLevel(level)
            if logger_class is Logger:
                set_logger_class(Logger)
            if isinstance(self._queue, LogQueue):
                os.environ[MPLOG_QUEUE] = self._queue.directory
            self._ours = _Logging.now()
            if isinstance(self._queue, LogQueue):
                LoggingState.capture().save(self._queue.directory)

    def undo(self) -> None:
        """Put everything back."""
        with self._lock:
            if self not in self._active:
                return
            index = self._active.index(self)
            self._active.remove(self)
            if index < len(self._active):
                above = self._active[index]
                above._before = self._without(above._before)
            else:
                self._without(_Logging.now()).restore()

    def _without(self, state: _Logging) -> _Logging:
        """Return the state without what this has changed."""
        handlers = state.handlers
        if self._handler in handlers:
            added = [handler for handler in handlers if handler is not self._handler]
            handlers = [handler for handler in self._before.handlers if handler not in added] + added
        return _Logging(
            handlers,
            self._before.level if state.level == self._ours.level else state.level,
            self._before.logger_class if state.logger_class is self._ours.logger_class else state.logger_class,
            self._before.environment if state.environment == self._ours.environment else state.environment,
        )


@dataclass
class _Logging:
    """What a server changes in its process: the root logger, the class of loggers, and the environment variable."""

    handlers: list[logging.Handler]
    level: int
    logger_class: type[logging.Logger]
    environment: str | None

    @classmethod
    def now(cls) -> _Logging:
        root = logging.getLogger()
        return cls(root.handlers[:], root.level, logging.getLoggerClass(), os.environ.get(MPLOG_QUEUE))

    def restore(self) -> None:
        root = logging.getLogger()
        root.handlers = self.handlers
        root.setLevel(self.level)
        if self.logger_class is not logging.getLoggerClass():
            set_logger_class(self.logger_class)
        if self.environment is None:
            os.environ.pop(MPLOG_QUEUE, None)
        else:
            os.environ[MPLOG_QUEUE] = self.environment


def _formatter_defaults() -> dict[str, Any]:
    """Return what a program may have set for all formatters, such as ``logging.Formatter.converter = time.gmtime``."""
    names = ("converter", "default_time_format", "default_msec_format")
    return {name: vars(logging.Formatter)[name] for name in names}


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
    paths = [os.path.realpath(sink.path) for sink in sinks if isinstance(sink, FileSink)]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path} is given twice: its records would be written twice. Leave one out.")


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
