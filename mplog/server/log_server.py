"""`LogServer`: the logging process, seen from the program that starts it.

::

    LogServer.start()  --- exec --->  logging process        (mplog.logging_process.main)
              |  control connection: configuration, flush, stats, stop
              |  root logger: one QueueHandler, until stop()
    workers   ---- LogQueue ----->    logging process

Records do not pass through here. So there is no thread, except with a plain queue, which needs one; and if this process
dies, the logging process goes on writing what the workers send.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.util
import os
import threading
from collections.abc import Mapping
from typing import Any

from mplog.errors import DrainTimeoutError, LoggingProcessDiedError, MplogError, ServerStateError
from mplog.files.notices import say_on_stderr
from mplog.logging_process.messages import ChildEnded, Patience
from mplog.monitoring.statistics import Stats
from mplog.queue.fifo import monotonic
from mplog.queue.locks import give_locks
from mplog.queue.log_queue import LogQueue
from mplog.queue.overflow import Overflow
from mplog.queue.sync import Sync
from mplog.record.fields import Fields
from mplog.record.level import read_level
from mplog.server.arguments import Arguments
from mplog.server.started import Started, advice_on_a_full_disk
from mplog.sinks.sink import Sink
from mplog.worker.initializer import Initializer

#: Seconds that the logging process may take to open its sinks.
START_TIMEOUT = 30.0
#: Seconds that `LogServer.stop` and the end of a program wait for what is still to be written.
STOP_TIMEOUT = 30.0
#: With logging processes that die one after the other.
PATIENCE = Patience()


class LogServer:
    """A logging process, and the means to send records to it.

    >>> with LogServer("app.log", level="INFO") as server:                              # doctest: +SKIP
    ...     with Pool(4, initializer=server.initializer) as pool:
    ...         pool.map(work, tasks)

    While the server runs, the root logger of this process has one handler, which also sends to the logging process.
    `stop` puts the logging of this process back as it was. If the program never calls `stop`, everything is written
    before it ends.

    Args:
        sinks: where to write: `Sink` objects; a path is short for a `FileSink`. At least one, or a `config`.
        level: the root logger's level while the server runs, here and in the workers, as a number or a name in any
            case; None (the default) leaves it as it is.
        format: a ``%``-style format or a ``logging.Formatter``, for sinks that have none of their own; None (the
            default) is ``%(asctime)s %(levelname)-8s %(processName)s %(name)s | %(message)s``.
        config: in place of sinks, level and format: a dictionary as ``logging.config.dictConfig`` takes it, or the
            path of a ``.toml`` or ``.json`` file that holds one. Its handlers, formatters and their filters are made
            in the logging process; the levels, filters and ``propagate`` of its loggers hold here and in the workers.
        fields: fields of every record, such as ``{"service": "shop"}``, for formats (``%(service)s``) and
            ``JSONFormatter``; a record's own field of that name takes precedence. `Fields` can also compute fields for
            each record, and keep secrets out of all of them.
        queue: a `LogQueue` of your own; or a plain ``Queue`` of ``multiprocessing`` or ``multiprocess``, which works
            everywhere, but loses what a worker has not sent when the worker dies, and may wedge when one is killed.
            None (the default) makes a `LogQueue`.
        logger_class: ``mplog.Logger`` changes all loggers of this process and of the workers to that class, also
            loggers that modules have got already. ``logging.Logger`` (the default) leaves them as they are.
        overflow: what becomes of a record while the buffers and the queue are full: ``"block"`` (the default; nothing
            is lost, and calls wait), ``"drop_newest"``, ``"drop_oldest"``, ``"fallback"``, or an `Overflow` such as
            ``Overflow.drop_below("WARNING", at=0.8)``. Dropped records are counted, and the log says so; errors are
            kept as long as anything can be.
        sync_level: calls at this level and above return when their record is on disk; a `Sync` also has a timeout.
            None (the default) is none.
        buffer_size: bytes of each of the two buffers between the queue and the sinks. The default, 8 MiB, holds some
            40,000 records while a disk stands still. Memory that is never filled is never taken.
        group: whose members may join, also as other users, by name or number: for a program that root starts, and
            whose workers give root up. None (the default) lets no other user join.

    Raises:
        ValueError, TypeError: an argument is wrong; `ConfigurationError` if it is something in `config`.
        ServerStateError: by what needs a running server, if there is none, or if another process has started it.
    """

    _lock: threading.RLock

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
        group: int | str | None = None,
    ) -> None:
        self._arguments = Arguments(
            sinks,
            level=level,
            format=format,
            config=config,
            fields=fields,
            queue=queue,
            logger_class=logger_class,
            overflow=overflow,
            sync_level=sync_level,
            buffer_size=buffer_size,
            group=group,
        )
        give_locks(self, "_lock")
        self._started: Started | None = None
        self._stopping: Started | None = None
        self._is_ending = False
        self._finalizer: Any = None
        self._last_stats = Stats()

    def __repr__(self) -> str:
        state = f"pid {self._started.control.pid}" if self._started is not None else "not running"
        return f"<LogServer {self._arguments!r}: {state}>"

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
        group: int | str | None = None,
    ) -> LogServer:
        """Return a server that takes over the handlers that this program has set up, on all of its loggers.

        While the server runs, the handlers work in the logging process, for this process and its workers, with the
        same formatters, filters and levels, and on the same files. Loggers keep their levels and filters, which workers
        get, too. `stop` gives the loggers their handlers back.

        Args:
            fields, queue, logger_class, overflow, sync_level, buffer_size, group: see `LogServer`.

        Raises:
            ConfigurationError: there is no handler, or one that is neither the standard library's nor Django's and
                so cannot be moved; ``place`` names its logger.
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
            group=group,
        )
        server._arguments.adopts = True
        return server

    @advice_on_a_full_disk()
    def start(self) -> LogServer:
        """Start the logging process, and return the server when its sinks are open.

        Raises:
            StartError: the logging process could not start; `SinkError` if a sink cannot be opened, and
                `LogFileLockedError` if another logging process writes its file.
            OSError: the queue could not be made, for want of room in the directory for temporary files, say.
            ServerStateError: the server was started before.
        """
        with self._lock:
            if self._started is not None:
                raise ServerStateError(
                    f"{self!r} was started before, by pid {self._started.owner}. Make a LogServer for each use."
                )
            self._started = Started(self._arguments, START_TIMEOUT, PATIENCE)
            try:
                self._started.takeover.apply(self._arguments.level, self._arguments.logger_class)
            except BaseException:
                self.stop()
                raise
            # After multiprocessing's own exit function, which waits for the children: they may still log.
            self._finalizer = multiprocessing.util.Finalize(None, self._at_exit, exitpriority=-100)
            return self

    def __enter__(self) -> LogServer:
        return self.start() if self._started is None else self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ServerStateError):  # the program has closed the connection: all is written later
            self.stop()

    @property
    def queue(self) -> Any:
        """The `LogQueue`, or the plain queue that was given."""
        return self._require_running().queue

    @property
    def pid(self) -> int:
        """The process id of the logging process."""
        return self._require_running().control.pid

    @property
    def initializer(self) -> Initializer:
        """What a worker calls to log to this server. Give it to a Pool, an executor or a Process."""
        started = self._require_running()
        return Initializer(started.queue, layout=started.layout)

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and not stopped, and a logging process reads the queue."""
        return self._started is not None and self._started.control.is_alive

    @property
    def queue_fill(self) -> float:
        """How full the queue is at this moment, from 0 to 1; 0 if the server is not running, or cannot tell."""
        if self._started is not None and isinstance(self._started.queue, LogQueue):
            with contextlib.suppress(MplogError, OSError):  # no process reads it
                return self._started.queue.fill
        return 0.0

    def _require_running(self) -> Started:
        if self._started is None:
            raise ServerStateError(
                f"{self!r}. Start it first: with LogServer(...) as server, or LogServer(...).start()."
            )
        return self._started

    def _require_own(self) -> Started:
        started = self._require_running()
        if started.owner != os.getpid():
            raise ServerStateError(
                f"{self!r} belongs to pid {started.owner}, which started it; only that process can ask it."
            )
        return started

    def release_loggers(self) -> None:
        """Give the loggers of this process back what they had before the start; the server goes on."""
        self._require_own().takeover.undo()

    def note_end(self, pid: int, name: str, exitcode: int) -> None:
        """Tell the logging process how a child of this process has ended, which no other process may know."""
        started = self._started
        if started is not None and started.owner == os.getpid():
            with contextlib.suppress(LoggingProcessDiedError):
                started.control.send(ChildEnded(pid, name, exitcode))

    def set_level(self, logger: str, level: int | str) -> None:
        """Set the level of a logger, here and in the workers, also in those that run already.

        A running worker notices when it next sends a record of any logger; with ``logger_class=mplog.Logger``, at its
        next logging call, also at a level that is off. With a plain queue, only workers that start later notice. `stop`
        puts the level back.

        A logger that a configuration has disabled (``disable_existing_loggers``) is enabled.

        Args:
            logger: its name; ``""`` or ``"root"`` for the root logger.
            level: by number, or by name in any case.

        Raises:
            ValueError, TypeError: there is no such level.
            OSError: the directory for temporary files has no room to tell the workers; no level was changed.
        """
        number = read_level(level)
        name = "" if logger == "root" else logger
        with self._lock:
            self._require_own().takeover.set_level(name, number)

    def flush(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait until every record whose logging call has returned, in any process, is written.

        With a plain queue, only what the queue has delivered so far: its threads may still hold records.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DrainTimeoutError: the time is over; ``pending`` says how much is left.
            LoggingProcessDiedError: the logging process has ended.
        """
        self._require_own().ask("flush", timeout)

    def stats(self, timeout: float = STOP_TIMEOUT) -> Stats:
        """Return what the logging process has counted: until now, or until the server stopped.

        With a `LogQueue`, this reads shared memory and does not wait. Records of the last instant may be missing until
        the next `flush`.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DrainTimeoutError, LoggingProcessDiedError: see `flush`.
        """
        if self._started is None:
            return self._last_stats
        started = self._require_own()
        counted = started.counted()
        return started.ask("stats", timeout) if counted is None else counted

    def stop(self, timeout: float = STOP_TIMEOUT) -> Stats:
        """Write what is still in the queue, close the sinks and end the logging process.

        Records that other processes log meanwhile are either written or, once the queue is closed, refused in those
        processes. `stop` may be called at any time, again, and by several threads. In a process that did not start the
        server, it does nothing.

        Args:
            timeout: seconds to wait at most.

        Returns:
            What was counted; ``failed`` says what could not be written.

        Raises:
            DrainTimeoutError: the time is over; the logging process goes on, and ends when everything is written.
            LoggingProcessDiedError: the logging process has died before.
        """
        started = self._started or self._stopping
        if started is None or started.owner != os.getpid():
            return self._last_stats
        deadline = monotonic() + timeout
        lock = self._lock  # a fork of this thread, meanwhile, gets another one
        if not lock.acquire(timeout=timeout):
            raise DrainTimeoutError(
                f"another thread has been stopping {self!r} for {timeout:g} seconds", pending=started.backlog()
            )
        try:
            started = self._started or self._stopping
            if started is not None and not self._is_ending:  # a signal handler stops what is being stopped
                self._is_ending = True
                # Ctrl-C, or the end of the time, leaves it in `_stopping`, and the end of the program waits for it.
                self._stopping, self._started = started, None
                try:
                    self._end(started, deadline)
                finally:
                    self._is_ending = False
            return self._last_stats
        finally:
            lock.release()

    def _end(self, started: Started, deadline: float) -> None:
        started.takeover.undo()
        try:
            self._last_stats = started.end(deadline)
        except LoggingProcessDiedError:
            self._last_stats = started.counted() or self._last_stats
            started.clear_up()
            self._forget()
            raise
        except ServerStateError:  # there is no connection any more: the logging process ends by itself
            self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        self._stopping = None
        if self._finalizer is not None:
            self._finalizer.cancel()

    def _at_exit(self) -> None:
        """Have everything written that was logged so far, at the end of a program that has not called `stop`.

        The logging process goes on: atexit functions, ``__del__`` methods and daemon threads may still log.
        """
        started = self._started or self._stopping
        if started is None:
            return
        try:
            if started.pump is not None:
                self.stop()
            else:
                started.drain_at_exit(STOP_TIMEOUT, is_stopping=started is self._stopping)
        except KeyboardInterrupt:
            pass  # a user who presses Ctrl-C once more does not want to wait; the logging process goes on alone
        except ServerStateError:
            pass  # there is no connection any more, and the logging process writes everything all the same
        except MplogError as error:
            say_on_stderr(f"mplog: at the end of the program, {error}")
