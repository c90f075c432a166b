"""`Logger`: a ``logging.Logger`` that writes a call straight into the queue.

The rule of this file: **nobody can tell, but by the clock.** Where a QueueHandler is all that would ever see the
record, the call is encoded as it stands, without a LogRecord, which is most of what a logging call costs. Where
anything else could see it or change it (another handler, a filter, a record factory, a patched method, an exception, a
stack), the call takes the stdlib's own way.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.process import current_process
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from mplog.handler import QueueHandler
from mplog.plain import plain_fields, unless_signal
from mplog.record import MAX_RECORD_SIZE, encode_call, encode_ending

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
            while logger is not None:
                if logger.handlers:
                    if handler is not None or len(logger.handlers) > 1:
                        break
                    handler = logger.handlers[0]
                logger = logger.parent if logger.propagate else None
            if (
                logger is None  # otherwise there is more than one
                and type(handler) is QueueHandler
                and level >= handler.level
                and not handler.filters
                and _is_ordinary(self)
                and _send(self, handler, level, msg, args, fields, sys._getframe(1))
            ):
                return
        if fields:
            extra = {**(extra or {}), **dict(_named(fields))}
        if stacklevel > 1:
            stacklevel += _FRAMES_COUNTED
        super()._log(level, msg, args, exc_info, extra, stack_info, stacklevel)


_LOGGING_FILE: str = logging._srcfile  # type: ignore[assignment]
# findCaller() skips the frames of logging's own file, and this one is to be skipped with them.
Logger._log.__code__ = Logger._log.__code__.replace(co_filename=_LOGGING_FILE)
# But Python 3.10 counts it where it goes up by stacklevel.
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
        and logging.Logger._log is _LOG
        and logging.logThreads
        and logging.logProcesses
        and logging.logMultiprocessing
    )


_LogRecord = logging.LogRecord
_CALL_HANDLERS = logging.Logger.callHandlers
_HANDLE = logging.Logger.handle
_MAKE_RECORD = logging.Logger.makeRecord
_FIND_CALLER = logging.Logger.findCaller
_LOG = logging.Logger._log


def _is_ordinary(logger: Logger) -> bool:
    """Whether the logger has no filters, and no methods of its own."""
    attributes = logger.__dict__
    return (
        not logger.filters
        and type(logger) is Logger
        and (len(attributes) <= _ORDINARY_ATTRIBUTES or _METHODS.isdisjoint(attributes))
    )


# The manager gives each logger one more.
_ORDINARY_ATTRIBUTES = len(Logger("").__dict__) + 1


def _send(
    logger: Logger, handler: QueueHandler, level: int, msg: Any, args: Any, fields: dict[str, Any], frame: Any
) -> bool:
    """Do what a LogRecord's constructor and QueueHandler do; return False to have them do it."""
    code = frame.f_code
    if code.co_filename == _LOGGING_FILE:
        frame = frame.f_back
        code = frame.f_code
    try:
        message = msg if type(msg) is str else str(msg)
        if args:
            if len(args) == 1 and type(args[0]) not in _SCALARS and isinstance(args[0], Mapping) and args[0]:
                args = args[0]
            message = message % args
        thread = threading.current_thread()
        names = thread.name, _process_name()
        context = _contexts.get(thread)
        if context is None or context[0] != names:
            context = _new_context(thread, names)
        site = (logger.name, level, _level_names.get(level), id(code), frame.f_lasti, _task_name())
        ending = context[1].get(site)
        if ending is None:
            if not _is_caller(code):
                return False
            context[1][site] = ending = (_ending(logger, level, frame), code)
        payload = encode_call(message, plain_fields(_named(fields)) if fields else None, *_now(), ending[0])
        if len(payload) > MAX_RECORD_SIZE:
            return False
        handler.send_encoded(payload)
    except Exception:
        return False
    except (SystemExit, GeneratorExit) as error:
        unless_signal(error)
        return False
    return True


# --- what does not differ from call to call ---

#: For each thread, the names of it and of its process, and the ends of records by the place of the call; with the code,
#: which must not be collected as long as its id stands here.
_contexts: dict[threading.Thread, tuple[tuple[str, str], dict[tuple[Any, ...], tuple[bytes, Any]]]] = {}
_CONTEXTS = 1_000
_SITES = 10_000
_level_names = logging._levelToName


def _new_context(thread: threading.Thread, names: tuple[str, str]) -> Any:
    if not _contexts:
        _clear_after_fork()
    elif len(_contexts) >= _CONTEXTS:
        _contexts.clear()
    context = _contexts[thread] = (names, {})
    return context


@functools.lru_cache(maxsize=1)
def _clear_after_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_contexts.clear)


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
        if asyncio is None or not logging.logAsyncioTasks or asyncio._get_running_loop() is None:
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
    return logger


def set_logger_class(wanted: type[logging.Logger]) -> None:
    """Make `Logger`, or the stdlib's class again, the class of all loggers that are of the other, and of new ones."""
    other = logging.Logger if wanted is Logger else Logger
    if logging.getLoggerClass() is other:
        logging.setLoggerClass(wanted)
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if type(logger) is other:
            logger.__class__ = wanted
