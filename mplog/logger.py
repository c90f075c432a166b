"""`Logger`: a ``logging.Logger`` that writes a call straight into the queue.

The rule of this file: **nobody can tell, but by the clock.** Where a QueueHandler is all that would ever see the
record, the call is encoded as it stands, without a LogRecord, which is most of what a logging call costs. Where
anything else could see it or change it (another handler, a filter, a record factory, a patched method, an exception, a
stack), the call takes the stdlib's own way.
"""

from __future__ import annotations

import logging
import multiprocessing.process
import os
import sys
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from mplog.bound import in_use, merged, named
from mplog.errors import NoReaderError
from mplog.handler import QueueHandler
from mplog.levels import look, watched
from mplog.plain import pack, plain_fields, unless_signal
from mplog.record import MAX_RECORD_SIZE, decode, encode_origin, unformattable
from mplog.record_factory import COUNTS_NANOSECONDS, make_record, now, own, task_name

__all__ = ["Logger", "getLogger", "set_logger_class"]

_SCALARS = frozenset({str, int, float, bool})


class Logger(logging.Logger):
    """A ``logging.Logger`` that costs less than half, and takes fields as keywords.

    >>> log = mplog.getLogger(__name__)                                                 # doctest: +SKIP
    >>> log.info("trade", symbol="X", qty=3)                                            # doctest: +SKIP

    Fields are extra attributes of the record, as with ``extra={"symbol": "X", "qty": 3}``. One whose name a record has
    already (``name``, ``process``, ``module``) gets a trailing underscore.

    Without a QueueHandler, and wherever anything else may see the record, it is a ``logging.Logger`` like any other.
    """

    if TYPE_CHECKING:  # at run time the base class passes all keywords on to _log()

        def debug(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def info(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def warning(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def error(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None: ...
        def critical(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None: ...

    def isEnabledFor(self, level: int) -> bool:
        """Whether records of this level are logged; notice first what `LogServer.set_level` has changed."""
        if watched.word[0] != watched.seen:
            look()
        if self.disabled:
            return False
        try:
            return self._cache[level]  # type: ignore[attr-defined, no-any-return]
        except KeyError:
            return super().isEnabledFor(level)

    def _log(  # noqa: PLR0915 (another call would take a tenth of its time)
        self,
        level: int,
        msg: object,
        args: Any,
        exc_info: Any = None,
        extra: Mapping[str, object] | None = None,
        stack_info: bool = False,
        stacklevel: int = 1,
        **fields: Any,
    ) -> None:
        handler = None
        if exc_info is None and extra is None and not stack_info and stacklevel == 1:
            handler = _only_handler(self, level)
        if handler is not None:
            # What a LogRecord's constructor and a QueueHandler do, in that order.
            queue = handler.queue
            rest = None
            if queue.details or COUNTS_NANOSECONDS:
                created, milliseconds, relative = now()
                if queue.details:
                    rest = relative, None
            else:
                created = time.time()
                milliseconds = created % 1 * 1000 // 1
            try:
                process_name = _processes._current_process._name
                if process_name == "MainProcess":
                    process_name = _process_name()
                if queue.details:
                    origin = _place(self, level, process_name, sys._getframe(1))
                else:
                    origin = _origins[self.name, level, _level_names.get(level), process_name]
            except Exception:
                origin = None
            if origin is not None:
                try:
                    message = msg if type(msg) is str else str(msg)
                    if args:
                        if len(args) == 1 and type(args[0]) not in _SCALARS:
                            args = _mapping_or(args)
                        message = message % args
                except (Exception, SystemExit, GeneratorExit) as error:
                    message = unformattable(msg, args, unless_signal(error))
                msg, args = message, ()
                try:
                    extra = plain_fields(named(fields.items())) if fields else None
                    if in_use.pid:
                        extra = merged(extra)
                    payload = pack(
                        (next(queue.sequence), message, extra, None, created, milliseconds, None, rest, origin)
                    )
                except Exception:
                    payload = b""
                except (SystemExit, GeneratorExit) as error:
                    unless_signal(error)
                    payload = b""
                if 0 < len(payload) <= MAX_RECORD_SIZE:
                    try:
                        handler.send_encoded(payload)
                        return
                    except RecursionError:
                        pass
                    except NoReaderError as error:
                        handler.fall_back(decode(payload), error)
                        return
                    except Exception:
                        handler.handleError(decode(payload))  # not once more: it may have been sent already
                        return
                else:
                    queue.count_unused()  # the number that it was encoded with; it gets another
                extra = None
        if fields:
            extra = {**(extra or {}), **dict(named(fields.items()))}
        super()._log(level, msg, args, exc_info, extra, stack_info, stacklevel + _FRAMES_COUNTED)

    def __reduce__(self) -> Any:
        # With the stdlib's answer to one that getLogger() would not find. Where it arrives, it takes fields, too.
        return getLogger, super().__reduce__()[1]


_LOGGING_FILE: str = logging._srcfile  # type: ignore[assignment]
# findCaller() skips the frames of logging's own file, and this one is to be skipped with them.
Logger._log.__code__ = Logger._log.__code__.replace(co_filename=_LOGGING_FILE)
# But Python 3.10 goes up by a number of frames from _log(), whatever file they are of, and this is one more.
_FRAMES_COUNTED = 1 if sys.version_info < (3, 11) else 0


def _only_handler(logger: Any, level: Any) -> Any:
    """Return the QueueHandler that is all that would ever see a call; None where something else might.

    Nothing in the program changes what becomes of a call (Sentry, for one, patches callHandlers), the logger has no
    filters and no methods of its own, and it and those above it have one handler together.
    """
    if (
        Logger.callHandlers is not _CALL_HANDLERS
        or Logger.handle is not _HANDLE
        or Logger.makeRecord is not _MAKE_RECORD
        or Logger.findCaller is not _FIND_CALLER
        or Logger.filter is not _FILTER
        or _Logger._log is not _LOG
        or _LogRecord.__init__ is not _INIT
        or _LogRecord.getMessage is not _GET_MESSAGE
        or (_logging._logRecordFactory is not make_record and _logging._logRecordFactory is not _LogRecord)
        or QueueHandler.handle is not _HANDLER_HANDLE
        or not (_logging.logThreads and _logging.logProcesses and _logging.logMultiprocessing)
        or logger.filters
        or logger.disabled  # isEnabledFor() is not asked where a program calls _log() itself
        or type(logger) is not Logger
        or type(level) is not int  # an enum's level has another name than its number
    ):
        return None
    attributes = logger.__dict__
    if (len(attributes) != _ORDINARY_ATTRIBUTES or "manager" not in attributes) and not _METHODS.isdisjoint(attributes):
        return None
    while not logger.handlers:
        if not logger.propagate or logger.parent is None:
            return None
        logger = logger.parent
    handlers = logger.handlers
    if len(handlers) != 1 or (logger.parent is not None and logger.propagate and _has_handlers(logger.parent)):
        return None
    handler = handlers[0]
    if (
        type(handler) is QueueHandler
        and handler.level <= level < handler.direct_below
        and not handler.filters
        and len(handler.__dict__) == _HANDLER_ATTRIBUTES
    ):
        return handler
    return None


_logging: Any = logging
_Logger = logging.Logger
_LogRecord = logging.LogRecord
_METHODS = frozenset({"_log", "handle", "callHandlers", "makeRecord", "findCaller", "filter"})
_CALL_HANDLERS = own(_Logger.callHandlers)
_HANDLE = own(_Logger.handle)
_MAKE_RECORD = own(_Logger.makeRecord)
_FIND_CALLER = own(_Logger.findCaller)
_FILTER = own(_Logger.filter)
_LOG = own(_Logger._log)
_INIT = own(_LogRecord.__init__)
_GET_MESSAGE = own(_LogRecord.getMessage)
_HANDLER_HANDLE = QueueHandler.handle


def _has_handlers(logger: Any) -> bool:
    while logger is not None:
        if logger.handlers:
            return True
        logger = logger.parent if logger.propagate else None
    return False


# The manager gives each logger one more: `manager`.
_ORDINARY_ATTRIBUTES = len(Logger("").__dict__) + 1
_HANDLER_ATTRIBUTES = len(QueueHandler(SimpleQueue()).__dict__)


def _mapping_or(args: tuple[Any, ...]) -> Any:
    """Return the one argument where it is a mapping, as a LogRecord does."""
    return args[0] if isinstance(args[0], Mapping) and args[0] else args


# --- what does not differ from call to call ---


class _Origins(dict[tuple[Any, ...], bytes]):
    """Origins without details, by the name of the logger, the level and its name, and the name of the process."""

    def __missing__(self, key: tuple[str, int, str | None, str]) -> bytes:
        name, level, _, process_name = key
        if len(self) >= _KEPT:
            self.clear()
        values = os.getpid(), name, level, logging.getLevelName(level), process_name, None
        origin = self[key] = encode_origin(values)
        return origin


_origins = _Origins()


class _Here(threading.local):
    """Of each thread: its names, and origins with details, by the place of the call.

    With each goes its code, which must not be collected as long as its id stands here.
    """

    names: tuple[str, str | None] | None = None
    places: dict[tuple[Any, ...], tuple[bytes, CodeType]]


_here = _Here()
#: Origins kept ready; more come from code that is made at run time, and from the names of asyncio's tasks.
_KEPT = 2_000
_level_names = logging._levelToName
_processes: Any = multiprocessing.process


def _forget() -> None:
    _origins.clear()
    _here.names = None


if hasattr(os, "register_at_fork"):
    # Also before, for what others have registered to run in the child ahead of this.
    os.register_at_fork(before=_forget, after_in_child=_forget)


def _place(logger: Logger, level: int, process_name: str | None, frame: Any) -> bytes | None:
    """Return the origin with its details; None where only findCaller() knows the place."""
    code = frame.f_code
    if _FRAMES_COUNTED or code.co_filename == _LOGGING_FILE:
        frame = frame.f_back
        code = frame.f_code
    names = threading.current_thread().name, process_name
    if _here.names != names:
        _here.places, _here.names = {}, names
    places = _here.places
    place = (logger.name, level, _level_names.get(level), id(code), frame.f_lasti, task_name())
    known = places.get(place)
    if known is None:
        # Not a LoggerAdapter, not an import.
        if code.co_filename == _LOGGING_FILE or "importlib" in code.co_filename:
            return None
        if len(places) >= _KEPT:
            places.clear()
        known = places[place] = (_origin(logger, level, process_name, frame), code)
    return known[0]


def _origin(logger: Logger, level: int, process_name: str | None, frame: FrameType) -> bytes:
    path = frame.f_code.co_filename
    filename = os.path.basename(path)
    details = (
        threading.get_ident(),
        threading.current_thread().name,
        path,
        filename,
        os.path.splitext(filename)[0],
        frame.f_lineno,
        frame.f_code.co_name,
        task_name(),
    )
    return encode_origin((os.getpid(), logger.name, level, logging.getLevelName(level), process_name, details))


def _process_name() -> str:
    name: str = _processes.current_process().name
    if name == "MainProcess":
        other = sys.modules.get("multiprocess.process")
        if other is not None:
            name = other.current_process().name
    return name


def getLogger(name: str | None = None) -> logging.Logger:
    """Return ``logging.getLogger(name)``, as a `Logger`.

    A logger that is there already becomes one, unless its class is another than the stdlib's. The root logger stays
    what it is.
    """
    logger = logging.getLogger(name)
    if type(logger) is logging.Logger:
        logger.__class__ = Logger
    _asked_for.add(logger)
    return logger


#: What has come from `getLogger`, and so keeps its class when a server stops.
_asked_for: set[logging.Logger] = set()


def set_logger_class(wanted: type[logging.Logger]) -> None:
    """Make `Logger`, or the stdlib's class again, the class of all loggers that are of the other, and of new ones.

    Those that a program has got from `getLogger` stay as they are.
    """
    other = logging.Logger if wanted is Logger else Logger
    if logging.getLoggerClass() is other:
        logging.setLoggerClass(wanted)
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if type(logger) is other and logger not in _asked_for:
            logger.__class__ = wanted
