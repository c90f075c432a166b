"""One ``logging.config`` dictionary for all processes: `LoggingConfig`.

Handlers, formatters and their filters are for the logging process (`ConfigSink`); levels, ``propagate`` and filters of
loggers for the program and its workers (`LoggingConfig.apply`).

The rule of this file: **the stdlib reads the configuration.** ``logging.config.DictConfigurator`` itself builds all
this, in the process where it belongs. mplog finds mistakes before any process is started, and has its own sinks write
what the stdlib's file and stream handlers would.
"""

from __future__ import annotations

import functools
import logging
import logging.config
import logging.handlers
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mplog.config.check import check_config, check_pickles
from mplog.config.configurator import ConfigSink, Configurator, find_of_main, kind_of
from mplog.config.handlers import FILE_HANDLERS, SERVED, SINKS
from mplog.config.mistakes import cause_of, wrong
from mplog.config.read import read_config
from mplog.formats.json import JSONFormatter
from mplog.record.portable import dump
from mplog.sinks.collisions import check_names
from mplog.sinks.file import FileSink
from mplog.sinks.raw import check_raw_names
from mplog.worker.state import Layout, all_loggers


class LoggingConfig:
    """A configuration for ``dictConfig()``, or the ``.toml`` or ``.json`` file that holds it, checked and split.

    If it is `adopted`, the loggers are set up already: their levels, filters and ``propagate`` stay as they are, and
    workers take them over.

    Raises:
        ConfigurationError: something in it is wrong; ``place`` says where.
    """

    def __init__(self, source: Mapping[str, Any] | str | os.PathLike[str], *, adopted: bool = False) -> None:
        config = dict(source) if isinstance(source, Mapping) else read_config(source)
        self._adopted = adopted
        self._config, self._sinks = check_config(config)
        self._loggers = _loggers_of(self._config)
        # Relative paths start in the current directory of the program at this moment.
        handlers = {
            name: FileSink(handler["filename"], follow_symlinks=True)
            for name, handler in (self._config.get("handlers") or {}).items()
            if "()" not in handler and kind_of(handler) in FILE_HANDLERS
        }
        sinks = {name: sink for name, sink in self._sinks.items() if isinstance(sink, FileSink)}
        self._files = {**handlers, **sinks}
        try:
            # Two of the stdlib's handlers may write one file.
            check_names([*{os.path.realpath(file.path): file for file in handlers.values()}.values(), *sinks.values()])
            self.raw_names = check_raw_names(list(self._sinks.values()))
        except ValueError as error:
            raise wrong("handlers", str(error), "") from None

    def __repr__(self) -> str:
        return f"config: {', '.join(self._config.get('handlers') or {}) or 'no handlers'}"

    @property
    def files(self) -> list[str]:
        """The absolute paths of the files of handlers and sinks, except devices and the like."""
        paths = [file.path for file in self._files.values()]
        return [path for path in paths if os.path.isfile(path) or not os.path.lexists(path)]

    # --- for the logging process ---

    @property
    def sink(self) -> ConfigSink:
        """The part for the logging process; `ConfigurationError` if it does not pickle, or a file is not writable."""
        config = dict(self._config)
        config["handlers"] = {name: dict(entry) for name, entry in (config.get("handlers") or {}).items()}
        for name, file in self._files.items():
            key = "path" if name in self._sinks else "filename"
            if key in config["handlers"][name]:  # a program's own sink may have its path from elsewhere
                config["handlers"][name][key] = file.path
            try:
                file.check_path()
            except OSError as error:
                raise wrong(f"handlers.{name}.{key}", f"{file.path} cannot be written: {error.strerror}", "") from None
        config["loggers"] = {
            name: {"handlers": self._handlers_of(name), "propagate": self._propagates(name)}
            for name in self._loggers
            if name
        }
        for name in self._cut_above():
            config["loggers"].setdefault(name, {"propagate": False})
        config["root"] = {"handlers": self._handlers_of("")}
        config["disable_existing_loggers"] = False
        of_main = find_of_main(config)
        check_pickles(config)
        return ConfigSink(config, of_main, list(self._files.values()))

    def _handlers_of(self, name: str) -> list[str]:
        return list(self._loggers.get(name, {}).get("handlers") or ())

    # --- for the program and its workers ---

    def layout(self, *, by_value: bool = False) -> Layout:
        """Return where processes need a QueueHandler: at the topmost logger with handlers that a record reaches.

        With `by_value`, filters are pickled for processes that cannot import the program's script.
        """
        with_handlers = {name for name in self._loggers if self._handlers_of(name)}
        senders = {name for name in with_handlers if with_handlers.isdisjoint(self._above(name))}
        emptied = self._loggers.keys() - senders - {""}
        return Layout(
            tuple(sorted(senders)), tuple(sorted(emptied)), self._pickled_filters(by_value=by_value), self._needs_args
        )

    @functools.cached_property
    def _needs_args(self) -> bool:
        """Whether anything may look at a record's ``args``: all but the formatters, filters and handlers known here."""
        known: dict[str, tuple[type, ...]] = {
            "formatters": (logging.Formatter, JSONFormatter),
            "filters": (logging.Filter,),
            "handlers": (*SERVED, *SINKS, logging.NullHandler, logging.handlers.MemoryHandler),
        }
        return any(
            kind_of(config, known[section][0]) not in known[section]
            for section in known
            for config in (self._config.get(section) or {}).values()
        )

    def _above(self, name: str) -> Iterator[str]:
        """Yield the loggers above one which its records reach."""
        while name and self._propagates(name):
            name = name.rpartition(".")[0]
            yield name

    def _propagates(self, name: str) -> bool:
        propagate = self._loggers.get(name, {}).get("propagate")
        if propagate is None:
            logger = logging.Logger.manager.loggerDict.get(name)
            return not isinstance(logger, logging.Logger) or logger.propagate
        return bool(propagate)

    def _cut_above(self) -> Iterator[str]:
        """Yield the loggers that do not propagate and are above a configured one."""
        for name in self._loggers:
            for above in self._above(name):
                if above and not self._propagates(above):
                    yield above

    @functools.cached_property
    def filters(self) -> dict[str, list[Any]]:
        """The filters of loggers, by the logger's name."""
        if self._adopted:
            return {name: logger.filters[:] for name, logger in all_loggers().items() if logger.filters}
        configurator = Configurator({**self._config, "handlers": {}})
        built: dict[str, Any] = {}
        filters: dict[str, list[Any]] = {}
        for name, logger in self._loggers.items():
            for filter in logger.get("filters") or ():
                if isinstance(filter, str) and filter not in built:
                    try:
                        built[filter] = configurator.configure_filter(configurator.config["filters"][filter])
                    except Exception as error:
                        raise wrong(f"filters.{filter}", f"it could not be built: {cause_of(error)}", "") from error
                filters.setdefault(name, []).append(built[filter] if isinstance(filter, str) else filter)
        return filters

    def _pickled_filters(self, *, by_value: bool) -> dict[str, bytes]:
        pickled = {}
        for name, filters in self.filters.items():
            try:
                pickled[name] = dump(filters, by_value=by_value)
            except Exception as error:
                raise wrong(
                    f"loggers.{name or 'root'}.filters",
                    f"{filters!r} cannot be sent to the workers: {cause_of(error)}",
                    "Filters of loggers work in every process; keep locks, files and connections out of them, or open "
                    "them when the first record comes",
                ) from error
        return pickled

    def apply(self) -> None:
        """Give the loggers of this process their levels, filters and ``propagate``, as dictConfig() does."""
        if self._adopted:
            return
        existing = all_loggers()
        disable = bool(self._config.get("disable_existing_loggers", True))
        configurator = Configurator({"version": 1})
        for name, config in self._loggers.items():
            logger = logging.getLogger(name)
            if config.get("level") is not None:
                logger.setLevel(config["level"])
            if name:
                logger.disabled = False
                if config.get("propagate") is not None:
                    logger.propagate = bool(config["propagate"])
            configurator.add_filters(logger, self.filters.get(name, ()))
        for name, logger in existing.items():
            if not name or name in self._loggers:
                continue
            if any(name.startswith(f"{above}.") for above in self._loggers.keys() & existing.keys() if above):
                logger.setLevel(logging.NOTSET)
                logger.handlers = []
                logger.propagate = True
            else:
                logger.disabled = disable

    @staticmethod
    def release_files(handlers: Iterable[logging.Handler]) -> None:
        """Close the files of handlers that were taken off their loggers, since these files may be rotated meanwhile.

        Each handler opens its file again when it gets a record, and appends.
        """
        for handler in handlers:
            if isinstance(handler, logging.FileHandler) and type(handler) in FILE_HANDLERS:
                handler.acquire()
                try:
                    if handler.stream is not None:
                        handler.stream.close()
                        handler.stream = None
                    handler.mode = "a"
                finally:
                    handler.release()

    def give_back(self, handlers: Iterable[logging.Handler]) -> None:
        """Move the next rollover of handlers beyond now: the logging process has rolled over their files meanwhile."""
        now = int(time.time())
        for handler in handlers if self._adopted else ():
            if type(handler) is logging.handlers.TimedRotatingFileHandler and handler.rolloverAt <= now:
                handler.rolloverAt = handler.computeRollover(now)


def _loggers_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configurations of all loggers by name; that of the root logger, wherever it stands, is at ""."""
    converted = logging.config.BaseConfigurator(dict(config)).config
    sections = _items(converted.get("loggers")).items()
    loggers: dict[str, dict[str, Any]] = {}
    for name, section in (*sections, ("root", converted.get("root"))):
        logger = _items(section)
        if name not in ("", "root"):
            loggers[name] = logger
        elif logger:
            before = loggers.get("", {})
            filters = [*(before.get("filters") or ()), *(logger.get("filters") or ())]
            level = before.get("level") if logger.get("level") is None else logger["level"]
            loggers[""] = {**logger, "filters": filters, "level": level}
    return loggers


def _items(section: Any) -> dict[str, Any]:
    """Return what is in a converted dictionary: it follows references when an item is looked up."""
    return {key: section[key] for key in section or ()}
