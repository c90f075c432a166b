"""Other packages, each set up as its documentation says.

The rule of this file: **a package is imported where it is used**, since importing some changes the stdlib's logging.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contender import FORMAT, LOGGER, Contender, file_handler, root_handler

__all__ = [
    "ConcurrentLogHandler",
    "Logbook",
    "LoggerTt",
    "LoggingMp",
    "Loguru",
    "Logxide",
    "MultiprocessingLogging",
    "Picologging",
]

#: Seconds that a contender may take to write the rest.
_DRAIN_TIMEOUT = 300.0


def _wait_until_empty(queue: Any) -> None:
    """Wait until a multiprocessing.Queue has been read: longer than these packages would wait by themselves."""
    deadline = time.monotonic() + _DRAIN_TIMEOUT
    while queue.qsize() and time.monotonic() < deadline:
        time.sleep(0.002)


def _wait_until_quiet(queue: Any, path: str) -> None:
    """Wait until the queue has been read and its records are in the file."""
    _wait_until_empty(queue)
    size = -1
    while os.path.exists(path) and size != (size := os.path.getsize(path)):
        time.sleep(0.005)


def _flush(queue: Any) -> None:
    """Runs in a worker: write the records of the feeder thread, as the end of the process would."""
    queue.close()
    queue.join_thread()


class _Threaded(Contender):
    """A queue, which a thread of the parent reads.

    Attributes:
        queue: a multiprocessing.Queue.
    """

    queue: Any

    def leave(self) -> None:
        _flush(self.queue)

    def writer(self) -> int | None:
        return os.getpid()

    def drain(self) -> None:
        _wait_until_quiet(self.queue, self.path)


class ConcurrentLogHandler(Contender):
    """Each worker writes the same file, under a lock."""

    title = "concurrent-log-handler"
    package = "concurrent-log-handler"
    note = "ConcurrentRotatingFileHandler in each process, rotation at 1 GiB"
    share = 0.15

    def worker(self) -> Callable[..., object]:
        from concurrent_log_handler import ConcurrentRotatingFileHandler

        handler = ConcurrentRotatingFileHandler(
            self.path, "a", maxBytes=2**30, backupCount=2, lock_file_directory=os.path.dirname(self.directory)
        )
        handler.setFormatter(logging.Formatter(FORMAT))
        return root_handler(handler)


class Loguru(_Threaded):
    """``enqueue=True``: a queue with locks, and a thread in the parent."""

    title = "loguru, enqueue=True"
    package = "loguru"
    note = "a thread of the parent writes"
    template = "record {} {}"
    share = 0.15

    def start(self) -> None:
        from loguru import logger

        logger.remove()
        logger.add(
            self.path,
            level="INFO",
            format="{time:YYYY-MM-DD HH:mm:ss,SSS} {level:<8} {process.name} {name} | {message}",
            enqueue=True,
            context=self.start_method,
        )
        self.logger: Any = logger

    def worker(self) -> Callable[..., object]:
        info: Callable[..., object] = self.logger.info
        return info

    def leave(self) -> None:
        self.logger.complete()

    def drain(self) -> None:
        self.logger.complete()

    def close(self) -> None:
        self.logger.remove()


class MultiprocessingLogging(_Threaded):
    """Wraps existing handlers; a thread in the parent."""

    title = "multiprocessing-logging"
    package = "multiprocessing-logging"
    note = "a thread of the parent writes; its queue has no limit, so it never blocks"
    share = 0.3

    def start(self) -> None:
        import multiprocessing_logging

        root_handler(file_handler(self.path))
        multiprocessing_logging.install_mp_handler()
        (self._handler,) = logging.getLogger().handlers
        self.queue = self._handler.queue  # type: ignore[attr-defined]

    def worker(self) -> Callable[..., object]:
        return logging.getLogger(LOGGER).info

    def close(self) -> None:
        self._handler.close()


class Logbook(_Threaded):
    """Its MultiProcessingHandler and Subscriber; a thread in the parent."""

    title = "logbook"
    package = "Logbook"
    note = "MultiProcessingHandler, a thread of the parent writes; its queue has no limit, so it never blocks"
    template = "record {} {}"
    share = 0.15

    def start(self) -> None:
        import logbook
        import logbook.queues

        self.queue = multiprocessing.Queue(-1)
        logbook.set_datetime_format("local")
        self._file = logbook.FileHandler(
            self.path,
            format_string="{record.time:%Y-%m-%d %H:%M:%S} {record.level_name:<8} {record.process_name} "
            "{record.channel} | {record.message}",
        )
        self._controller = logbook.queues.MultiProcessingSubscriber(self.queue).dispatch_in_background(self._file)

    def worker(self) -> Callable[..., object]:
        import logbook
        import logbook.queues

        logbook.queues.MultiProcessingHandler(self.queue, level=logbook.INFO).push_application()
        info: Callable[..., object] = logbook.Logger(LOGGER).info
        return info

    def close(self) -> None:
        self._controller.stop()
        self._file.close()


class Picologging(Contender):
    """Private files."""

    title = "picologging, private files"
    package = "picologging"
    note = "a file for each process; leaves %(levelname)-8s as it stands and knows no process names"

    def worker(self) -> Callable[..., object]:
        import picologging

        handler = picologging.FileHandler(self.own_path)
        handler.setFormatter(picologging.Formatter(FORMAT))
        root = picologging.getLogger()
        root.setLevel(picologging.INFO)
        root.addHandler(handler)
        info: Callable[..., object] = picologging.getLogger(LOGGER).info
        return info


class Logxide(Contender):
    """Private files."""

    title = "logxide, private files"
    package = "logxide"
    note = "a file for each process; its formatter fails on this format, and it writes the bare message"
    template = None

    def worker(self) -> Callable[..., object]:
        import logxide

        # Its threads do not survive a fork, so it is imported here.
        self._handler = logxide.FileHandler(self.own_path)
        self._handler.setFormatter(logxide.logging.Formatter(FORMAT))
        logger = logxide.logging.getLogger(LOGGER)
        logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)
        info: Callable[..., object] = logger.info
        return info

    def leave(self) -> None:
        import logxide

        logxide.flush()
        self._handler.flush()


class LoggingMp(_Threaded):
    """A queue, and a thread in the parent."""

    title = "logging-mp"
    package = "logging-mp"
    note = "a thread of the parent writes; in a format of its own"
    share = 0.3

    def start(self) -> None:
        import logging_mp

        logging_mp.basicConfig(
            level=logging.INFO, console=False, file=True, file_path=self.directory, max_file_size=2**30
        )

    def worker(self) -> Callable[..., object]:
        import logging_mp

        info: Callable[..., object] = logging_mp.getLogger(LOGGER).info
        return info

    def leave(self) -> None:
        import logging_mp

        _flush(logging_mp._queue)

    def drain(self) -> None:
        import logging_mp

        _wait_until_empty(logging_mp._queue)
        logging_mp._manager._shutdown()  # what it does at exit


class LoggerTt(_Threaded):
    """A queue under fork, a socket otherwise; a thread in the parent."""

    title = "logger_tt"
    package = "logger_tt"
    note = "setup_logging(use_multiprocessing='fork'), a thread of the parent writes; its queue never blocks"
    share = 0.3

    def start(self) -> None:
        config = self._set_up()
        self._listeners: Any = config.q_listeners

    def _set_up(self) -> Any:
        from logger_tt import setup_logging

        # Next to the files that are counted.
        path = os.path.join(os.path.dirname(self.directory), "logger_tt.json")
        if not os.path.exists(path):
            file = {"class": "logging.FileHandler", "formatter": "text", "filename": self.path}
            config = {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"text": {"format": FORMAT}},
                "handlers": {"file": file},
                "loggers": {},
                "root": {"level": "INFO", "handlers": ["file"]},
                "logger_tt": {"suppress": []},
            }
            with open(path, "w", encoding="utf-8") as stream:
                json.dump(config, stream)
        return setup_logging(config_path=path, use_multiprocessing=self.start_method, port=0, server_timeout=1)

    def worker(self) -> Callable[..., object]:
        if self.start_method != "fork":
            self._set_up()
        return logging.getLogger(LOGGER).info

    def leave(self) -> None:
        handler = logging.getLogger().handlers[0]
        if isinstance(handler, logging.handlers.QueueHandler):
            _flush(handler.queue)
        else:
            handler.close()

    def drain(self) -> None:
        for listener in self._listeners:
            _wait_until_empty(listener.queue)
            listener.stop()  # what it does at exit
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        while any("process_request" in thread.name for thread in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.002)  # a socket is still being read
