"""All contenders, in the order of the table."""

from __future__ import annotations

from benchmarks import mplog_contenders, other_contenders, stdlib_contenders
from benchmarks.contender import Contender
from benchmarks.pipe import PipeLimit

__all__ = ["BASE", "CONTENDERS", "MPLOG", "by_name"]

#: The base of the comparison.
BASE = stdlib_contenders.PrivateFiles

MPLOG: list[type[Contender]] = [
    mplog_contenders.OrdinaryLoggers,
    mplog_contenders.FastLogger,
    mplog_contenders.FastLoggerJSON,
    mplog_contenders.StdlibHandler,
]

_ALL: list[type[Contender]] = [
    *MPLOG,
    BASE,
    stdlib_contenders.Null,
    stdlib_contenders.Cookbook,
    stdlib_contenders.Sockets,
    other_contenders.ConcurrentLogHandler,
    other_contenders.Loguru,
    other_contenders.MultiprocessingLogging,
    other_contenders.Logbook,
    other_contenders.LoggingMp,
    other_contenders.LoggerTt,
    other_contenders.Picologging,
    other_contenders.Logxide,
]

#: By the name of the class.
CONTENDERS: dict[str, type[Contender]] = {contender.__name__: contender for contender in _ALL}


def by_name(name: str) -> type[Contender]:
    """Return one of them, or the pipe alone, which is measured like a contender."""
    return PipeLimit if name == PipeLimit.__name__ else CONTENDERS[name]
