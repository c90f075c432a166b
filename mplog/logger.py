"""`Logger`: a ``logging.Logger`` that writes a call straight into the queue.

The rule of this file: **nobody can tell, but by the clock.** Where a QueueHandler is all that would ever see the
record, the call is encoded as it stands, without a LogRecord, which is most of what a logging call costs. Where
anything else could see it or change it (another handler, a filter, a record factory, a patched method, an exception, a
stack), the call takes the stdlib's own way.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import current_process
from queue import SimpleQueue
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any

from mplog.errors import NoReaderError
from mplog.handler import QueueHandler
from mplog.plain import plain_fields, unless_signal
from mplog.record import MAX_RECORD_SIZE, decode, encode_call, encode_ending, unformattable

__all__ = ["Logger", "getLogger", "set_logger_class"]

#: What a LogRecord has, and a field therefore cannot be called.
_RESERVED = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}

_SCALARS = frozenset({str, int, float, bool})


class Logger(logging.Logger):
    """A ``logging.Logger`` that costs less than half, and takes fields as keywords.

    >>> log = mplog.getLogger(__name__)                                                 # doctest: +SKIP
    >>> log.info("trade", symbol="X", qty=3)

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
        if exc_info is None and extra is None and not stack_info and stacklevel == 1 and _no_hooks():
            handler = None
            logger: logging.Logger | None = self
            try:
                while logger is not None:
                    if logger.handlers:
                        if handler is not None or len(logger.handlers) > 1:
                            break
                        handler = logger.handlers[0]
                    logger = logger.parent if logger.propagate else None
            except IndexError:
                handler = None  # another thread has just taken it off
            if (
                logger is None  # otherwise there is more than one
                and type(handler) is QueueHandler
                and type(level) is int  # an enum's level has another name than its number
                and level >= handler.level
                and not handler.filters
                and len(handler.__dict__) == _HANDLER_ATTRIBUTES
                and _is_ordinary(self)
            ):
                rest = _send(self, handler, level, msg, args, fields, sys._getframe(1))
                if rest is None:
                    return
                msg, args = rest
        if fields:
            extra = {**(extra or {}), **dict(_named(fields))}
        super()._log(level, msg, args, exc_info, extra, stack_info, stacklevel + _FRAMES_COUNTED)

    def __reduce__(self) -> Any:
        # With the stdlib's answer to one that getLogger() would not find. Where it arrives, it takes fields, too.
        return getLogger, super().__reduce__()[1]


_LOGGING_FILE: str = logging._srcfile  # type: ignore[assignment]
# findCaller() skips the frames of logging's own file, and this one is to be skipped with them.
Logger._log.__code__ = Logger._log.__code__.replace(co_filename=_LOGGING_FILE)
# But Python 3.10 goes up by a number of frames from _log(), whatever file they are of, and this is one more.
_FRAMES_COUNTED = 1 if sys.version_info < (3, 11) else 0

_METHODS = frozenset({"_log", "handle", "callHandlers", "makeRecord", "findCaller", "filter"})


def _no_hooks() -> bool:
    """Whether nothing in this program changes what becomes of a call. Sentry, for one, patches callHandlers."""
    return (
        Logger.callHandlers is _CALL_HANDLERS
        and logging._logRecordFactory is _LogRecord  # type: ignore[attr-defined]
        and Logger.handle is _HANDLE
        and Logger.makeRecord is _MAKE_RECORD
        and Logger.findCaller is _FIND_CALLER
        and Logger.filter is _FILTER
        and logging.Logger._log is _LOG
        and _LogRecord.__init__ is _INIT
        and _LogRecord.getMessage is _GET_MESSAGE
        and QueueHandler.handle is _HANDLER_HANDLE
        and QueueHandler.emit is _EMIT
        and logging.logThreads
        and logging.logProcesses
        and logging.logMultiprocessing
    )


def _own(method: Callable[..., Any]) -> Any:
    """Return a method of logging itself; for one that was patched before this module was imported, what none is."""
    return method if type(method) is FunctionType and method.__code__.co_filename == _LOGGING_FILE else object()


_LogRecord = logging.LogRecord
_CALL_HANDLERS = _own(logging.Logger.callHandlers)
_HANDLE = _own(logging.Logger.handle)
_MAKE_RECORD = _own(logging.Logger.makeRecord)
_FIND_CALLER = _own(logging.Logger.findCaller)
_FILTER = _own(logging.Logger.filter)
_LOG = _own(logging.Logger._log)
_INIT = _own(_LogRecord.__init__)
_GET_MESSAGE = _own(_LogRecord.getMessage)
_HANDLER_HANDLE = QueueHandler.handle
_EMIT = QueueHandler.emit


def _is_ordinary(logger: Logger) -> bool:
    """Whether the logger has no filters, and no methods of its own."""
    attributes = logger.__dict__
    return (
        not logger.filters
        and not logger.disabled  # isEnabledFor() is not asked where a program calls _log() itself
        and type(logger) is Logger
        and ((len(attributes) == _ORDINARY_ATTRIBUTES and "manager" in attributes) or _METHODS.isdisjoint(attributes))
    )


# The manager gives each logger one more: `manager`.
_ORDINARY_ATTRIBUTES = len(Logger("").__dict__) + 1
_HANDLER_ATTRIBUTES = len(QueueHandler(SimpleQueue()).__dict__)


def _send(
    logger: Logger, handler: QueueHandler, level: int, msg: Any, args: Any, fields: dict[str, Any], frame: Any
) -> tuple[Any, Any] | None:
    """Do what a LogRecord's constructor and QueueHandler do, in that order.

    Returns:
        None; or, to have them do it, the msg and args, already formatted if they have been.
    """
    try:
        now = _now()
        code = frame.f_code
        if _FRAMES_COUNTED or code.co_filename == _LOGGING_FILE:
            frame = frame.f_back
            code = frame.f_code
        if args and len(args) == 1 and type(args[0]) not in _SCALARS and isinstance(args[0], Mapping) and args[0]:
            args = args[0]
        names = threading.current_thread().name, _process_name()
        context = _here.context
        if context[0] != names:
            _here.context = context = (names, {})
        site = (logger.name, level, _level_names.get(level), id(code), frame.f_lasti, _task_name())
        ending = context[1].get(site)
        if ending is None:
            if not _is_caller(code):
                return msg, args
            if len(context[1]) >= _SITES:
                context[1].clear()
            context[1][site] = ending = (_ending(logger, level, frame), code)
    except Exception:
        return msg, args
    try:
        message = msg if type(msg) is str else str(msg)
        if args:
            message = message % args
    except Exception as error:
        message = unformattable(msg, args, error)
    except (SystemExit, GeneratorExit) as error:
        message = unformattable(msg, args, unless_signal(error))
    try:
        payload = encode_call(message, plain_fields(_named(fields)) if fields else None, *now, ending[0])
    except Exception:
        return message, ()
    except (SystemExit, GeneratorExit) as error:
        unless_signal(error)
        return message, ()
    if len(payload) > MAX_RECORD_SIZE:
        return message, ()
    try:
        handler.send_encoded(payload)
    except (NoReaderError, RecursionError):
        return message, ()
    except Exception:
        handler.handleError(decode(payload))  # not once more: it may have been sent already
    return None


# --- what does not differ from call to call ---


class _Here(threading.local):
    """Of each thread: the names of it and of its process, and the ends of records by the place of the call.

    With each goes its code, which must not be collected as long as its id stands here.
    """

    context: tuple[Any, dict[tuple[Any, ...], tuple[bytes, CodeType]]] = (None, {})


_here = _Here()
#: Places kept ready; more come from code that is made at run time, and from the names of asyncio's tasks.
_SITES = 2_000
_level_names = logging._levelToName


def _forget_context() -> None:
    _here.context = (None, {})


if hasattr(os, "register_at_fork"):
    # Also before, for what others have registered to run in the child ahead of this.
    os.register_at_fork(before=_forget_context, after_in_child=_forget_context)


def _is_caller(code: CodeType) -> bool:
    """Whether findCaller() would name it: not a LoggerAdapter, not an import."""
    return code.co_filename != _LOGGING_FILE and "importlib" not in code.co_filename


def _ending(logger: Logger, level: int, frame: FrameType) -> bytes:
    path = frame.f_code.co_filename
    filename = os.path.basename(path)
    thread = threading.current_thread()
    hidden = (
        threading.get_ident(),
        thread.name,
        path,
        filename,
        os.path.splitext(filename)[0],
        frame.f_lineno,
        frame.f_code.co_name,
    )
    name = logging.getLevelName(level)
    return encode_ending(os.getpid(), logger.name, level, name, _process_name(), hidden, _task_name())


def _named(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{name}_" if name in _RESERVED else name, value) for name, value in fields.items()]


# The three times of a record, as the LogRecord of this Python works them out.
if sys.version_info >= (3, 13):

    def _now() -> tuple[float, float, float]:
        nanoseconds = time.time_ns()
        seconds = nanoseconds / 1e9
        milliseconds = (nanoseconds % 1_000_000_000) // 1_000_000 + 0.0
        if milliseconds == 999.0 and int(seconds) != nanoseconds // 1_000_000_000:
            milliseconds = 0.0  # the division has rounded up to the next second
        return seconds, milliseconds, (nanoseconds - _STARTED) / 1e6

else:

    def _now() -> tuple[float, float, float]:
        seconds = time.time()
        return seconds, int((seconds - int(seconds)) * 1000) + 0.0, (seconds - _STARTED) * 1000


_STARTED = logging._startTime  # type: ignore[attr-defined]


def _process_name() -> str:
    name = current_process().name
    if name == "MainProcess":
        other = sys.modules.get("multiprocess.process")
        if other is not None:
            name = other.current_process().name
    return name


if sys.version_info >= (3, 12):

    def _task_name() -> str | None:
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or not getattr(logging, "logAsyncioTasks", True) or asyncio._get_running_loop() is None:
            return None
        task = asyncio.current_task()
        return None if task is None else task.get_name()

else:

    def _task_name() -> str | None:
        return None


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
