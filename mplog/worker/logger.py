"""`Logger`: a ``logging.Logger`` that writes a call straight into the queue.

The rule of this file: **the difference is in speed alone.** If a QueueHandler is all that would ever see the record,
the call is encoded directly, without a LogRecord, which is most of what a logging call costs. If anything else could
see or change the record (another handler, a filter, a record factory, a patched method, an exception, a stack), the
call takes the stdlib's own way.
"""

from __future__ import annotations

import functools
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

from mplog.errors import NoReaderError
from mplog.record.cache import Bounded, Cache
from mplog.record.context import in_use, merged, named
from mplog.record.decoding import decode
from mplog.record.encoding import unformattable
from mplog.record.factory import COUNTS_NANOSECONDS, LOGGING_FILE, make_record, now, own, task_name
from mplog.record.layout import MAX_RECORD_SIZE, Origin
from mplog.record.packing import pack
from mplog.record.plain import plain_fields, unless_signal
from mplog.worker.levels import look, watched
from mplog.worker.queue_handler import QueueHandler

_SCALARS = frozenset({str, int, float, bool})
_logging: Any = logging
_Logger: Any = logging.Logger
_LogRecord = logging.LogRecord
_IS_ENABLED_FOR = own(logging.Logger.isEnabledFor)
_of_logging = vars(logging.Logger)


class Logger(logging.Logger):
    """A ``logging.Logger`` that costs less than half, and takes fields as keywords.

    >>> log = mplog.getLogger(__name__)                                                 # doctest: +SKIP
    >>> log.info("trade", symbol="X", qty=3)                                            # doctest: +SKIP

    Fields are extra attributes of the record, as with ``extra={"symbol": "X", "qty": 3}``. A field with the name of an
    attribute that every record has (``name``, ``process``, ``module``) gets a trailing underscore.

    Without a QueueHandler, and whenever anything else may see the record, it works as any ``logging.Logger``.
    """

    if TYPE_CHECKING:

        def debug(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def info(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def warning(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def error(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None: ...
        def critical(self, msg: object, *args: object, **kwargs: Any) -> None: ...
        def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None: ...

    def isEnabledFor(self, level: int) -> bool:
        """Whether records of this level are logged; takes over first what `LogServer.set_level` has changed."""
        if watched.word[0] != watched.seen:
            look()
        if self.disabled:
            return False
        if _Logger.isEnabledFor is _IS_ENABLED_FOR:
            try:
                return self._cache[level]  # type: ignore[attr-defined, no-any-return]
            except KeyError:
                pass
        return super().isEnabledFor(level)

    def _log(
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
        if (
            exc_info is None
            and extra is None
            and not stack_info
            and stacklevel == 1
            and type(self) is Logger
            and type(level) is int  # the level of an enum has another name than its number
            and not self.disabled  # a program that calls this method has not asked isEnabledFor()
            and _methods() == _ORIGINAL
            and _METHODS.isdisjoint(self.__dict__)
        ):
            left = _send(self, level, msg, args, fields)
            if left is None:
                return
            msg, args = left
        extra = _with_fields(extra, fields)
        super()._log(level, msg, args, exc_info, extra, stack_info, stacklevel + _FRAMES_COUNTED)

    def __reduce__(self) -> Any:
        # The stdlib checks that getLogger() finds the logger. Unpickled by our getLogger(), it takes fields.
        return getLogger, super().__reduce__()[1]


def _with_fields(extra: Mapping[str, object] | None, fields: dict[str, Any]) -> Mapping[str, object] | None:
    return {**(extra or {}), **dict(named(fields.items()))} if fields else extra


# Python 3.10 goes up a number of frames from logging's _log(), of whatever file; ours adds one.
_FRAMES_COUNTED = 1 if sys.version_info < (3, 11) else 0

# --- the methods for the levels ---


def _method(name: str, level: int) -> Any:
    """Return the method that logs at a level: by `_send`, without the calls between, or as the stdlib does."""
    found: Any = getattr(_Logger, name)
    original = own(found)

    def log(self: Any, msg: object, *args: object, **kwargs: Any) -> None:
        if (
            type(self) is Logger
            and _of_logging[name] is original
            and _methods() == _ORIGINAL
            and (
                (len(attributes := self.__dict__) == _ORDINARY_ATTRIBUTES and "manager" in attributes)
                or _METHODS.isdisjoint(attributes)
            )
        ):
            if watched.word[0] != watched.seen:
                look()
            try:
                is_enabled = self._cache[level] and not self.disabled  # type: ignore[attr-defined]
            except KeyError:
                is_enabled = self.isEnabledFor(level)
            if is_enabled:
                if kwargs and not _OPTIONS.isdisjoint(kwargs):
                    self._log(level, msg, args, **kwargs)
                    return
                left = _send(self, level, msg, args, kwargs)
                if left is not None:
                    _Logger._log(self, level, *left, extra=_with_fields(None, kwargs))
            return
        if isinstance(self, Logger):
            # A program may have patched the method, or put a class in between.
            above: Any = getattr(super(Logger, self), name)
            if getattr(above, "__func__", above) is not original:
                above(msg, *args, **kwargs)
                return
        if self.isEnabledFor(level):
            self._log(level, msg, args, **kwargs)

    # findCaller() skips the frames of logging's own file, and must skip this one.
    log.__code__ = log.__code__.replace(co_filename=LOGGING_FILE, co_name=name)
    return functools.update_wrapper(log, found, ("__name__", "__qualname__", "__doc__", "__annotations__"), ())


for _name in ("debug", "info", "warning", "error", "critical"):
    setattr(Logger, _name, _method(_name, getattr(logging, _name.upper())))
Logger._log.__code__ = Logger._log.__code__.replace(co_filename=LOGGING_FILE)

#: What ``info()`` takes beside fields, and names that cannot be fields because `Logger._log` has them as arguments.
_OPTIONS = frozenset({"exc_info", "extra", "stack_info", "stacklevel", "level", "args"})


def _send(  # noqa: PLR0915 (another call would take a tenth of its time)
    logger: Any, level: Any, msg: object, args: Any, fields: dict[str, Any]
) -> tuple[object, Any] | None:
    """Send a call directly if a QueueHandler is all that would ever see its record; return what is left to log.

    The caller has checked that nothing about the logger is patched.
    """
    if (
        (_logging._logRecordFactory is not make_record and _logging._logRecordFactory is not _LogRecord)
        or not (_logging.logThreads and _logging.logProcesses and _logging.logMultiprocessing and _logging._srcfile)
        or logger.filters
    ):
        return msg, args
    # Two loops, each of which nearly always sees one kind of logger: the interpreter adapts to that.
    handlers: Any = logger.handlers
    above = logger.parent if logger.propagate else None
    while not handlers:
        if above is None:
            return msg, args
        handlers, above = above.handlers, above.parent if above.propagate else None
    try:
        (handler,) = handlers
    except ValueError:
        return msg, args
    while above is not None:
        if above.handlers:
            return msg, args
        above = above.parent if above.propagate else None
    if (
        type(handler) is not QueueHandler
        or not handler.level <= level < handler.direct_below
        or handler.filters
        or len(handler.__dict__) != _HANDLER_ATTRIBUTES
    ):
        return msg, args
    # From here on, what a LogRecord's constructor and a QueueHandler do, in that order.
    sender: Any = handler.sender
    rest = None
    if sender.details or COUNTS_NANOSECONDS:
        created, milliseconds, relative = now()
        if sender.details:
            rest = relative, None
    else:
        created = time.time()
        milliseconds = int((created - int(created)) * 1000) + 0.0
    try:
        process_name = _processes._current_process._name
        if process_name == "MainProcess":
            process_name = _process_name()
        if sender.details:
            origin = _place(logger, level, process_name, sys._getframe(1))
            if origin is None:
                return msg, args
        else:
            origin = _origins[logger.name, level, _level_names.get(level), process_name]
    except Exception:
        return msg, args
    try:
        message = msg if type(msg) is str else str(msg)
        if args:
            if len(args) == 1 and type(args[0]) not in _SCALARS and isinstance(args[0], Mapping) and args[0]:
                args = args[0]  # as a LogRecord does
            message = message % args
    except (Exception, SystemExit, GeneratorExit) as error:
        message = unformattable(msg, args, unless_signal(error))
    try:
        extra = plain_fields(named(fields.items())) if fields else None
        if in_use.pid:
            extra = merged(extra)
        payload = pack((next(sender.sequence), message, extra, None, created, milliseconds, None, rest, origin))
        size = len(payload)
    except Exception:
        size = 0
    except (SystemExit, GeneratorExit) as error:
        unless_signal(error)
        size = 0
    if 0 < size <= MAX_RECORD_SIZE:
        try:
            if sender.now() >= sender.end.known_until:
                sender.look()
            handler.send_encoded(payload)
        except RecursionError:
            return message, ()
        except NoReaderError as error:
            handler.fall_back(decode(payload), error)
        except Exception:
            handler.handleError(decode(payload))  # it may have been sent already, so not again
        return None
    sender.count_unused()  # the number of the record, which gets another
    return message, ()


# The manager gives each logger one more: `manager`.
_ORDINARY_ATTRIBUTES = len(Logger("").__dict__) + 1
_HANDLER_ATTRIBUTES = len(QueueHandler(SimpleQueue()).__dict__)


# --- what a program may have patched (Sentry, for one, patches callHandlers) ---

#: Attributes that a logger must not have of its own.
_METHODS = frozenset({"_log", "isEnabledFor", "handle", "callHandlers", "makeRecord", "findCaller", "filter"})


def _methods() -> tuple[Any, ...]:
    """Return the methods that a call goes through: first ours, then those of logging."""
    return (
        Logger._log,
        Logger.isEnabledFor,
        QueueHandler.handle,
        Logger.callHandlers,
        Logger.handle,
        Logger.makeRecord,
        Logger.findCaller,
        Logger.filter,
        _Logger._log,
        _Logger.isEnabledFor,
        _LogRecord.__init__,
        _LogRecord.getMessage,
    )


_ORIGINAL = (*_methods()[:3], *map(own, _methods()[3:]))


# --- what does not differ from call to call ---


#: Origins kept ready; more come from code that is made at run time, and from the names of asyncio's tasks.
KEPT = 2_000


def _encoded(key: tuple[str, int, str | None, str]) -> bytes:
    name, level, _, process_name = key
    return pack(Origin(os.getpid(), name, level, logging.getLevelName(level), process_name, None))


#: Origins without details, by the name of the logger, the level and its name, and the name of the process.
_origins = Cache(_encoded, KEPT)


class _Here(threading.local):
    """Of each thread: its names, and origins with details, by the place of the call, with its code.

    The code must not be collected as long as its id stands here.
    """

    names: tuple[str, str | None] | None = None
    places: Bounded[tuple[Any, ...], tuple[bytes, CodeType]]


here = _Here()
_level_names = logging._levelToName
_processes: Any = multiprocessing.process


def forget() -> None:
    _origins.clear()
    here.names = None


if hasattr(os, "register_at_fork"):
    # Also before, for what others have registered to run in the child ahead of this.
    os.register_at_fork(before=forget, after_in_child=forget)


def _place(logger: Logger, level: int, process_name: str | None, frame: Any) -> bytes | None:
    """Return the origin with its details, given our method's frame; None where only findCaller() knows the place."""
    skips_one = _FRAMES_COUNTED and frame.f_code is Logger._log.__code__
    frame = frame.f_back
    if skips_one or frame.f_code.co_filename == LOGGING_FILE:
        frame = frame.f_back
    code = frame.f_code
    names = threading.current_thread().name, process_name
    if here.names != names:
        here.places, here.names = Bounded(KEPT), names
    places = here.places
    place = (logger.name, level, _level_names.get(level), id(code), frame.f_lasti, task_name())
    known = places.get(place)
    if known is None:
        # Not a LoggerAdapter, not an import.
        if code.co_filename == LOGGING_FILE or "importlib" in code.co_filename:
            return None
        known = (_origin(logger, level, process_name, frame), code)
        places.keep(place, known)
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
    return pack(Origin(os.getpid(), logger.name, level, logging.getLevelName(level), process_name, details))


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
