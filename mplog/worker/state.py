"""The state of a process's loggers as data: what a worker takes over from the process that started the server."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import msgspec

from mplog.queue.directory import read_file
from mplog.queue.overflow import Overflow
from mplog.queue.shared_file import FOR_WORKERS, replace_file
from mplog.queue.sync import Sync
from mplog.record.packing import pack_json

if TYPE_CHECKING:
    from mplog.worker.queue_handler import QueueHandler

_STATE_NAME = "logging"


class Layout(msgspec.Struct, frozen=True):
    """What a configuration puts where, as data.

    Attributes:
        senders: the loggers that get the QueueHandler; "" is the root logger.
        emptied: the other loggers that it sets up, which have no handlers outside the logging process.
        filters: pickled lists of filters, by logger.
        with_args: whether the arguments of messages travel, too, for formatters and handlers that may look at them.
    """

    senders: tuple[str, ...] = ("",)
    emptied: tuple[str, ...] = ()
    filters: dict[str, bytes] = {}
    with_args: bool = False
    preparation: bytes = b""


class LoggingState(msgspec.Struct, frozen=True):
    """The levels of a process's loggers, as data.

    Attributes:
        levels: of the loggers that have one of their own, except the root logger.
        silenced: the isolated loggers (``propagate`` is off) with a ``NullHandler`` and no other.
        cut_off: the isolated loggers with other handlers, which exist in that process alone.
        disable: what ``logging.disable()`` has set.
        fast: whether the loggers are of `mplog.Logger`.
    """

    layout: Layout
    level: int
    levels: dict[str, int]
    isolated: list[str]
    silenced: list[str]
    cut_off: list[str]
    disabled: list[str]
    disable: int
    level_names: list[tuple[int, str]]
    fast: bool
    details: bool = True
    overflow: Overflow = Overflow()
    sync: Sync | None = None

    @classmethod
    def capture(cls, layout: Layout | None = None) -> LoggingState:
        manager = logging.Logger.manager
        loggers = [logger for name, logger in all_loggers().items() if name]
        layout = layout or Layout()
        # Copies: another thread may be changing the lists.
        isolated = {logger.name: logger.handlers[:] for logger in loggers if not logger.propagate}
        is_null = {
            name: all(isinstance(handler, logging.NullHandler) for handler in handlers)
            for name, handlers in isolated.items()
            if handlers and name not in layout.senders
        }
        return cls(
            layout=layout,
            level=logging.getLogger().level,
            levels={logger.name: logger.level for logger in loggers if logger.level != logging.NOTSET},
            isolated=list(isolated),
            silenced=[name for name, null in is_null.items() if null],
            cut_off=[name for name, null in is_null.items() if not null],
            disabled=[logger.name for logger in loggers if logger.disabled],
            disable=int(manager.disable),
            level_names=level_names(),
            fast=logging.getLoggerClass().__module__ == "mplog.worker.logger",
        )

    def apply(self, handler: QueueHandler) -> None:
        """Give this process's loggers the same levels and filters, and `handler` to those that are cut off."""
        add_level_names(self.level_names)
        logging.getLogger().setLevel(self.level)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        for name in self.isolated:
            logging.getLogger(name).propagate = False
        for name in self.silenced:
            if not logging.getLogger(name).handlers:
                logging.getLogger(name).addHandler(logging.NullHandler())
        for name in self.cut_off:
            # In the server's log rather than nowhere. If its root logger has no handlers, logging writes to stderr.
            if "" in self.layout.senders and not logging.getLogger(name).handlers:
                logging.getLogger(name).addHandler(handler)
        for name in self.disabled:
            logging.getLogger(name).disabled = True
        logging.disable(self.disable)
        _add_filters(self.layout.filters)
        if self.fast:
            from mplog.worker.logger import Logger, set_logger_class

            set_logger_class(Logger)

    def save(self, directory: str) -> None:
        """Write the state where `mplog.attach` finds it."""
        # A process that attaches at this moment finds the old state or this one.
        replace_file(os.path.join(directory, _STATE_NAME), pack_json(self), FOR_WORKERS)

    @classmethod
    def load(cls, directory: str) -> LoggingState:
        return msgspec.json.decode(read_file(os.path.join(directory, _STATE_NAME)), type=cls)


def level_names() -> list[tuple[int, str]]:
    """Return the numbers and names of this process's levels, those of the program, too, for `add_level_names`.

    A number may have several names; the last one is what records have.
    """
    # Copies, since another thread may add names. logging has no public way to ask for all of them.
    names = [(number, name) for name, number in logging._nameToLevel.copy().items()]
    names += logging._levelToName.copy().items()
    return [(int(number), str(name)) for number, name in names if isinstance(number, int)]


def add_level_names(names: list[tuple[int, str]]) -> None:
    """Give the levels of this process the names that they have in another one."""
    if names != level_names():
        for number, name in names:
            logging.addLevelName(number, name)


def all_loggers() -> dict[str, logging.Logger]:
    """Return the loggers of this process by name; the root logger is ""."""
    known = list(logging.Logger.manager.loggerDict.items())
    return {"": logging.getLogger(), **{name: logger for name, logger in known if isinstance(logger, logging.Logger)}}


#: Filters that have come from a server, by the name of their logger: the pickle, and the filters.
_filters: dict[str, tuple[bytes, list[Any]]] = {}


def _add_filters(pickled: dict[str, bytes]) -> None:
    """Give the loggers their filters, once."""
    for name, data in pickled.items():
        if name in _filters:
            if _filters[name][0] == data:
                continue
            for filter in _filters[name][1]:
                logging.getLogger(name).removeFilter(filter)
        from mplog.record.portable import load  # few workers need it

        filters = load(data)
        for filter in filters:
            logging.getLogger(name).addFilter(filter)
        _filters[name] = data, filters


def brought_filters(name: str) -> list[Any]:
    """Return those filters of a logger that have come from a server."""
    return _filters[name][1] if name in _filters else []


def note_filters(pickled: dict[str, bytes], filters: dict[str, list[Any]]) -> None:
    """Note that the loggers of this process have these filters, for the processes that are forked from it."""
    for name, data in pickled.items():
        _filters[name] = data, filters[name]


def forget_filters(pickled: dict[str, bytes]) -> None:
    """Undo `note_filters`."""
    for name, data in pickled.items():
        if name in _filters and _filters[name][0] == data:
            del _filters[name]
