"""A program joins a server without a change to its code: what ``mplog run --python`` sets up in it.

::

    import logging --> on_import: levels of the server, a handler that waits, on the root logger
    first record   --> the handler joins the server, and a QueueHandler takes its place

The program's own logging stays: our handler is one more. While the program calls ``basicConfig()``, ``dictConfig()`` or
``fileConfig()``, our handler is taken off, so that they find the same as without it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mplog.queue.directory import read_file

if TYPE_CHECKING:
    from mplog.worker.queue_handler import QueueHandler


def on_import(name: str) -> None:
    """Set up logging, now that ``logging`` or ``logging.config`` has been imported."""
    if name == "logging":
        _wait()
        _wrap(logging, "basicConfig")
    else:
        module = sys.modules[name]
        _wrap(module, "dictConfig")
        _wrap(module, "fileConfig")


#: Our handler, which waits or sends, and the loggers that it is on.
_ours: list[logging.Handler] = []
_loggers: list[logging.Logger] = []


def _wait() -> None:
    """Put a handler that waits for the first record on the loggers that send, and set the server's levels."""
    directory = os.environ.get("MPLOG_QUEUE")
    if not directory or _ours:
        return
    try:
        # Not with msgspec, which most programs that import logging never need.
        state = json.loads(read_file(os.path.join(directory, "logging")))
        senders, level, levels, disable = state["layout"]["senders"], state["level"], state["levels"], state["disable"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # the server has ended; by now, another user may have made a directory of that name
    waiting = _Waiting(directory)
    _ours.append(waiting)
    for name in senders:
        logger = logging.getLogger(name)
        logger.addHandler(waiting)
        _loggers.append(logger)
    logging.getLogger().setLevel(level)
    for name, own in levels.items():
        logging.getLogger(name).setLevel(own)
    logging.disable(disable)
    # Joins once, and not again in each worker.
    os.register_at_fork(before=waiting.join, after_in_child=waiting.renew_lock)


class _Waiting(logging.Handler):
    """Joins the server whose queue has this directory when the first record comes."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory
        self.renew_lock()
        self._is_joining = False
        self._held: list[logging.LogRecord] = []
        self._joined: logging.Handler | None = None

    def createLock(self) -> None:
        """Have no lock, as QueueHandler has none."""
        self.lock = None

    def renew_lock(self) -> None:
        """Have a lock that no thread holds, as a process that has just been forked needs it."""
        self._joining = threading.RLock()

    def handle(self, record: logging.LogRecord) -> Any:
        """Join, and pass the record on."""
        with self._joining:
            if self._is_joining:
                self._held.append(record)  # from a signal handler, or from a module that joining imports
                return True
            self.join()
        self._pass_on(record)
        return True

    def _pass_on(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger(record.name)
        last = logging.lastResort
        if self._joined is not None:
            from mplog.worker.state import brought_filters

            # The logger's own filters have seen the record already, and may count what they see.
            brought = logging.Filterer()
            brought.filters = brought_filters(record.name)
            kept: Any = brought.filter(record)
            if kept:
                self._joined.handle(kept if isinstance(kept, logging.LogRecord) else record)
        elif last is not None and record.levelno >= last.level and not logger.hasHandlers():
            last.handle(record)

    def join(self) -> None:
        """Put a QueueHandler in the place of this handler; if the server has ended, only take this handler off."""
        with self._joining:
            # The program may have started a server of its own, which has taken this handler off.
            if self._is_joining or not any(self in logger.handlers for logger in _loggers):
                return
            self._is_joining = True
            try:
                self._joined = _join(self._directory)
            except Exception as error:
                if sys.stderr is not None:
                    print(f"mplog: this program does not log to the server: {error}", file=sys.stderr)
            finally:
                _ours[:] = [] if self._joined is None else [self._joined]
                for logger in _loggers:
                    # One assignment: another thread that logs at this moment sees the old list or the new one.
                    logger.handlers = [new for each in logger.handlers for new in (_ours if each is self else [each])]
                self._is_joining = False
            held, self._held = self._held, []
        for record in held:
            self._pass_on(record)


def _join(directory: str) -> QueueHandler:
    """Return a handler for the server, on no logger yet, and set up the loggers as the server has them."""
    from msgspec.structs import replace

    from mplog.queue.log_queue import LogQueue
    from mplog.worker import levels
    from mplog.worker.initializer import make_handler
    from mplog.worker.state import LoggingState

    state = LoggingState.load(directory)
    queue = LogQueue.open(directory)
    queue.details, queue.overflow, queue.sync = state.details, state.overflow, state.sync
    queue.preparation = state.layout.preparation
    handler = make_handler(queue, state.layout)
    # The levels were set when logging was imported; changes that the program has made since stay.
    now = {name: logging.getLogger(name).level for name in state.levels}
    root = logging.getLogger()
    replace(state, level=root.level, levels=now, disable=int(root.manager.disable)).apply(handler)
    levels.watch(queue)
    return handler


def _wrap(module: Any, name: str) -> None:
    """Replace a function that sets up logging by one that leaves our handler where it is."""
    configure: Callable[..., Any] = getattr(module, name)

    @functools.wraps(configure)
    def configure_beside(*args: Any, **kwargs: Any) -> Any:
        ours = [(logger, handler) for logger in _loggers for handler in _ours if handler in logger.handlers]
        for logger, handler in ours:
            logger.removeHandler(handler)
        try:
            return configure(*args, **kwargs)
        finally:
            for logger, handler in ours:
                logger.addHandler(handler)

    setattr(module, name, configure_beside)
