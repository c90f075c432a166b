"""`make_record`: the record that ``logging.LogRecord()`` would have made, for half the time.

The rule of this file: **only the time tells the difference.** It makes a ``logging.LogRecord`` with the same attributes
in the same order. What does not differ from call to call is looked up: the name of a level, the file and module of a
path. Whatever is out of the ordinary is left to the class itself.
"""

from __future__ import annotations

import logging
import multiprocessing.process
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from mplog.record.cache import Cache

_LogRecord = logging.LogRecord
_logging: Any = logging
_processes: Any = multiprocessing.process
_new: Any = object.__new__
_level_names = logging._levelToName
_STARTED = logging._startTime  # type: ignore[attr-defined]
_SCALARS = frozenset({str, int, float, bool})

#: Whether a LogRecord of this Python works its times out from nanoseconds.
COUNTS_NANOSECONDS = sys.version_info >= (3, 13)
_HAS_TASK_NAME = sys.version_info >= (3, 12)


def own(method: Any) -> Any:
    """Return a method of logging; if it was patched before this import, an object that equals no method."""
    return method if type(method) is FunctionType and method.__code__.co_filename == LOGGING_FILE else object()


#: Not logging._srcfile, which a program may set to None.
LOGGING_FILE = os.path.normcase(logging.addLevelName.__code__.co_filename)
_INIT = own(logging.LogRecord.__init__)


def _names(path: str) -> tuple[str, str]:
    filename = os.path.basename(path)
    return filename, os.path.splitext(filename)[0]


#: The file and the module of a path. A subclass of str could bring code along, and is not kept.
modules = Cache(_names, 2_000, lambda path, _: type(path) is str)


def make_record(
    name: str,
    level: int,
    pathname: str,
    lineno: int,
    msg: Any,
    args: Any,
    exc_info: Any,
    func: str | None = None,
    sinfo: str | None = None,
    **kwargs: object,
) -> logging.LogRecord:
    """Return ``logging.LogRecord(...)`` of the same arguments."""
    try:
        levelname = _level_names[level]
        filename, module = modules[pathname]
        process_name = _processes._current_process.name
    except Exception:
        return _LogRecord(name, level, pathname, lineno, msg, args, exc_info, func, sinfo, **kwargs)
    if _LogRecord.__init__ is not _INIT or not (
        _logging.logThreads and _logging.logProcesses and _logging.logMultiprocessing
    ):
        return _LogRecord(name, level, pathname, lineno, msg, args, exc_info, func, sinfo, **kwargs)
    if COUNTS_NANOSECONDS:
        created, milliseconds, relative = now()
    else:
        created = time.time()
        milliseconds = int((created - int(created)) * 1000) + 0.0
        relative = (created - _STARTED) * 1000
    if args and len(args) == 1 and type(args[0]) not in _SCALARS and isinstance(args[0], Mapping) and args[0]:
        args = args[0]
    record: Any = _new(_LogRecord)
    record.name = name
    record.msg = msg
    record.args = args
    record.levelname = levelname
    record.levelno = level
    record.pathname = pathname
    record.filename = filename
    record.module = module
    record.exc_info = exc_info
    record.exc_text = None
    record.stack_info = sinfo
    record.lineno = lineno
    record.funcName = func
    record.created = created
    record.msecs = milliseconds
    record.relativeCreated = relative
    record.thread = threading.get_ident()
    record.threadName = threading.current_thread().name
    record.processName = process_name
    record.process = os.getpid()
    if _HAS_TASK_NAME:
        record.taskName = task_name()
    made: logging.LogRecord = record
    return made


def install_factory() -> None:
    """Make `make_record` the factory of all records, unless the program has one of its own."""
    if is_known and logging.getLogRecordFactory() is _LogRecord:
        logging.setLogRecordFactory(make_record)


# The three times of a record, as the LogRecord of this Python works them out.
if sys.version_info >= (3, 13):

    def now() -> tuple[float, float, float]:
        """Return created, msecs and relativeCreated."""
        nanoseconds = time.time_ns()
        seconds = nanoseconds / 1e9
        milliseconds = (nanoseconds % 1_000_000_000) // 1_000_000 + 0.0
        if milliseconds == 999.0 and int(seconds) != nanoseconds // 1_000_000_000:
            milliseconds = 0.0  # the division has rounded up to the next second
        return seconds, milliseconds, (nanoseconds - _STARTED) / 1e6

else:

    def now() -> tuple[float, float, float]:
        """Return created, msecs and relativeCreated."""
        seconds = time.time()
        return seconds, int((seconds - int(seconds)) * 1000) + 0.0, (seconds - _STARTED) * 1000


def task_name() -> str | None:
    """Return the name of asyncio's task that is running; None where there is none, and before Python 3.12."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not getattr(logging, "logAsyncioTasks", False) or not _HAS_TASK_NAME:
        return None
    try:
        if asyncio._get_running_loop() is None:
            return None
        name: str = asyncio.current_task().get_name()
    except Exception:
        return None
    return name


_nothing = "", 0, "", 0, "", None, None
#: Whether a LogRecord of this Python has the attributes that are known here.
is_known = [*make_record(*_nothing).__dict__] == [*_LogRecord(*_nothing).__dict__]
