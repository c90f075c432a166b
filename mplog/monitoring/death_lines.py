"""The line in the log about a process that has died: which one, how, and for SIGKILL the likely cause."""

from __future__ import annotations

import signal
import sys
import time
from typing import NamedTuple

from mplog.record.plain import printable

#: No line is needed about these: users, pools, terminals and supervisors end processes in these ways.
#: Leaving ``with Pool()`` sends SIGTERM to each of its workers.
_ROUTINE_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if sys.platform != "win32" else []))
#: With the same signals as a shell gives them (128 + n), for programs that handle them and exit with that code.
_ROUTINE_EXITS = {0, *(-number for number in _ROUTINE_SIGNALS), *(128 + number for number in _ROUTINE_SIGNALS)}


class Death(NamedTuple):
    """How a process ended that had been sending records.

    Attributes:
        exitcode: as in ``multiprocessing.Process``: the exit code, or minus the number of the signal.
        at: when that was noticed, in seconds since the epoch.
        memory_kills: how many processes the kernel has killed for lack of memory since this one was first seen; None
            where it does not count them.
    """

    pid: int
    name: str
    exitcode: int
    at: float
    memory_kills: int | None = None

    @property
    def is_routine(self) -> bool:
        """Whether the process ended as meant: with exit code 0, or by SIGTERM, SIGINT or SIGHUP."""
        return self.exitcode in _ROUTINE_EXITS


def describe(death: Death, received: int, last_record_at: float | None) -> str:
    """Return the line about a process: how it died, how many records were received, and when the last one came."""
    name = f"mplog: {printable(death.name[:100])} (pid {death.pid})"
    records = f"after {received:,} record{'' if received == 1 else 's'}"
    last = "" if last_record_at is None else f"; the last one at {_time_of_day(last_record_at)}"
    end = describe_end(death.exitcode, death.memory_kills)
    return f"{name} {end}{',' if death.exitcode < 0 else ''} {records}{last}"


def describe_end(exitcode: int, memory_kills: int | None) -> str:
    """Return how a process ended, and for SIGKILL the likely cause; the arguments are as in `Death`."""
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    name = signal_name(-exitcode)
    return f"was killed by {name}{_cause(memory_kills) if name == 'SIGKILL' else ''}"


def signal_name(number: int) -> str:
    """Return SIGTERM, or "signal 40" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cause(memory_kills: int | None) -> str:
    if memory_kills is None:
        return " (likely cause: out of memory)"
    if not memory_kills:
        return " (likely by another process; the kernel has killed none for being out of memory)"
    count = f"{memory_kills} process{'' if memory_kills == 1 else 'es'}"
    return f" (likely cause: out of memory; the kernel has killed {count} for that since this one began to log)"


def _time_of_day(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, OSError, ValueError):
        return f"{at:g}"  # it comes off the wire, and may be anything
