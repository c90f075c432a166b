"""Notices in a log about its own files: that one was moved, that it cannot be rotated."""

from __future__ import annotations

import collections
import contextlib
import math
import sys
import time
from collections.abc import Iterable
from typing import Protocol

#: Seconds before a notice of the same kind is given again.
INTERVAL = 600.0


class Clock(Protocol):
    """Tells the time: `time` and `monotonic` do as in the module ``time``.

    `steady` is the time of day as it would be if nobody had set the clock since the process started.
    """

    def time(self) -> float: ...

    def monotonic(self) -> float: ...

    def steady(self) -> float: ...


class _SystemClock:
    def __init__(self) -> None:
        self._set_to = self.time() - _boottime()

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def steady(self) -> float:
        return self._set_to + _boottime()


def _boottime() -> float:
    """Return seconds that nobody sets, and that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


SYSTEM_CLOCK: Clock = _SystemClock()


class Notices:
    """Notices that wait to be logged, except those of the kinds in `silent_about`. Threads may share one object."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, silent_about: Iterable[str] = ()) -> None:
        self._clock = clock
        self._waiting: collections.deque[str] = collections.deque()
        self._said_at = dict.fromkeys(silent_about, math.inf)

    def say(self, kind: str, notice: str) -> None:
        """Add a notice, unless there was one of this kind within the last ten minutes."""
        now = self._clock.monotonic()
        if now - self._said_at.get(kind, -math.inf) >= INTERVAL:
            self._said_at[kind] = now
            self.add(notice)

    def add(self, notice: str) -> None:
        self._waiting.append(f"mplog: {notice}")

    def forget(self, kind: str) -> bool:
        """Have the next notice of this kind added at once; return whether there was one."""
        return self._said_at.pop(kind, None) is not None

    def take(self) -> list[str]:
        return [self._waiting.popleft() for _ in range(len(self._waiting))]


def say_on_stderr(message: str) -> None:
    """Print a line that cannot be in the log."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            print(message, file=sys.stderr, flush=True)


def changed_meanwhile(path: str) -> str:
    """Return the notice about a file that another program has changed, so that nothing can be taken back."""
    return f"{path} was changed while no logging process wrote it, and is left as it is"


def gone_meanwhile(path: str) -> str:
    """Return the notice about a file that is not found, so that nothing can be taken back."""
    return f"{path} was moved away or deleted as the logging process ended; its last lines may come again"
