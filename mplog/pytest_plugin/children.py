"""Sending what a test process and its children log to a server, in addition to what else is done with it.

The first thing that a spawned child unpickles attaches it (`followed`). Any other program needs `mplog.attach` in its
code, and finds MPLOG_QUEUE in its environment.

The rule of this file: **it only adds.** In this process, handlers, levels and streams of pytest and of the code under
test stay as they are. A spawned child gets the levels that a forked one would have.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mplog.worker import levels
from mplog.worker.attach import MPLOG_QUEUE
from mplog.worker.queue_handler import QueueHandler
from mplog.worker.state import LoggingState, all_loggers

if TYPE_CHECKING:
    from mplog.server.log_server import LogServer


class TestHandler(QueueHandler):
    """Sends records, with fields that tell the test; a record's own fields take precedence.

    `fields` may be changed at any time. `process_name` is the name of the main process in records; "" keeps its own.
    """

    __test__ = False

    def __init__(self, queue: Any, fields: Mapping[str, str] = {}, process_name: str = "") -> None:
        super().__init__(queue)
        self.fields = dict(fields)
        self.process_name = process_name

    def prepare(self, record: logging.LogRecord) -> bytes:
        if self.fields or self.process_name:
            record = copy.copy(record)  # other handlers must see it unchanged
            for name, value in self.fields.items():
                record.__dict__.setdefault(name, value)
            if self.process_name and record.processName == "MainProcess":
                record.processName = self.process_name
        return super().prepare(record)


def start_beside(server: LogServer) -> LogServer:
    """Start a server that leaves the loggers of this process, and its environment, as they are."""
    server.start().release_loggers()
    return server


def add_everywhere(handler: logging.Handler) -> None:
    """Add a handler to the root logger, and to all loggers whose records do not reach it."""
    for name, logger in all_loggers().items():
        if not name or not logger.propagate:
            logger.addHandler(handler)


#: The handlers that children get; that of the innermost `followed` is the last.
_followed: list[TestHandler] = []


@contextlib.contextmanager
def followed(handler: TestHandler) -> Iterator[None]:
    """While in the ``with`` block, send what this process and its children log; children get a copy of the handler."""
    before = os.environ.get(MPLOG_QUEUE)
    add_everywhere(handler)
    os.environ[MPLOG_QUEUE] = handler.queue.directory  # type: ignore[attr-defined]
    _followed.append(handler)
    _patch_spawn()
    try:
        yield
    finally:
        _followed.remove(handler)
        os.environ.pop(MPLOG_QUEUE, None)
        if before is not None:
            os.environ[MPLOG_QUEUE] = before
        for logger in all_loggers().values():
            logger.removeHandler(handler)


def _patch_spawn() -> None:
    """Patch what makes the data that a spawned child unpickles first."""
    for library in ("multiprocessing", "multiprocess"):
        if library not in sys.modules:
            continue  # the program does not use it
        module: Any = importlib.import_module(f"{library}.spawn")
        if not hasattr(module.get_preparation_data, "__wrapped__"):
            module.get_preparation_data = _with_attachment(module.get_preparation_data)


def _with_attachment(get_preparation_data: Any) -> Any:
    """Return the function with one more item in its result while there are handlers for children."""

    @functools.wraps(get_preparation_data)
    def wrapper(name: str) -> dict[str, Any]:
        data: dict[str, Any] = get_preparation_data(name)
        return {**data, "mplog": _Attachment()} if _followed else data

    return wrapper


class _Attachment:
    """Attaches the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        recipes = [(handler.queue, handler.fields, handler.process_name) for handler in _followed]
        return _attach, (LoggingState.capture(), recipes)


def _attach(state: LoggingState, recipes: list[tuple[Any, dict[str, str], str]]) -> None:
    """Runs in the child."""
    handlers = [TestHandler(*recipe) for recipe in recipes]
    for handler in handlers:
        state.apply(handler)
        logging.getLogger().addHandler(handler)
        for name in state.cut_off:
            logging.getLogger(name).addHandler(handler)
    levels.watch(recipes[-1][0])
    # For its own children.
    _followed.extend(handlers)
    _patch_spawn()
