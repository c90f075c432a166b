"""`Overflow`: what becomes of a record for which there is no room.

The rule of this file: **no policy loses an error while anything can hold it, and none loses anything silently.** A
record of level ERROR and above waits for room, for a bounded time, and then goes into the emergency file. Whatever is
dropped is counted (`mplog.queue.losses`).

A policy is a value: it travels with the queue into every worker, which applies it where the queue is full
(`mplog.queue.sender`). Two of them need the logging process: it tells workers how full the buffers are for `drop_below`
(`mplog.queue.fill`), and takes the oldest records out of the intake buffer for `drop_oldest`
(`mplog.logging_process.drop_oldest`).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Literal, get_args

import msgspec

#: Records of this level and above are kept as long as anything can be.
KEPT_LEVEL = logging.ERROR

#: Seconds that such a record waits for room under a policy that does not let others wait: longer than a restart of the
#: logging process takes.
KEPT_TIMEOUT = 1.0

#: After one wait has failed, errors do not wait again for this many seconds. Otherwise a burst of errors would take a
#: second each while the logging process stands still.
PATIENCE = 5.0

#: Bytes of the emergency file unless told otherwise: some 250,000 records of usual length.
EMERGENCY_SIZE = 64 * 2**20

#: The share of it that records below `KEPT_LEVEL` leave to those of that level and above.
_KEPT_SHARE = 0.25

Policy = Literal["block", "drop_newest", "drop_oldest", "drop_below", "fallback"]


class Overflow(msgspec.Struct, frozen=True):
    """What becomes of a record while the buffers of the logging process and the queue are full.

    Make one with `block`, `drop_newest`, `drop_oldest`, `drop_below` or `fallback`; the name alone means the one with
    its defaults.

    Whatever the policy, a record of level ERROR and above is kept as long as anything can be: it waits for room, as
    long as the policy lets it or for 1 second, and then goes into the emergency file. ``block()`` without a timeout
    waits for ever, for all levels.

    Attributes:
        policy: its name.
        timeout: for how many seconds a call waits at most; None waits for ever.
        level: what `drop_below` drops is below it.
        at: from which fill on, from 0 to 1.
        never_block_loop: whether a call never waits while an asyncio event loop runs in its thread.
        emergency: the path of the emergency file; None for one in the directory of the queue, which the server replaces
            by one next to its first log file.
        emergency_size: of that file, in bytes, together with those that are just being merged; what does not fit is
            dropped. Records below ERROR use three quarters of it, so that there is room for errors.
    """

    policy: Policy = "block"
    timeout: float | None = None
    level: int = logging.NOTSET
    at: float = 1.0
    never_block_loop: bool = False
    emergency: str | None = None
    emergency_size: int = EMERGENCY_SIZE

    # --- making one ---

    @classmethod
    def block(cls, timeout: float | None = None, *, never_block_loop: bool = False) -> Overflow:
        """Wait for room.

        Args:
            timeout: for how many seconds at most; the record is then dropped, or goes into the emergency file. None
                (the default) waits for ever: nothing is ever dropped.
            never_block_loop: do not wait in a thread in which an asyncio event loop runs.
        """
        return cls("block", _checked_timeout(timeout), never_block_loop=never_block_loop)

    @classmethod
    def drop_newest(cls, *, never_block_loop: bool = False) -> Overflow:
        """Drop the record that is just being logged; only errors wait."""
        return cls("drop_newest", 0.0, never_block_loop=never_block_loop)

    @classmethod
    def drop_oldest(cls, *, never_block_loop: bool = False) -> Overflow:
        """Have the logging process drop the oldest records below ERROR that it has not begun to write.

        If it does not do that within 1 second, because it is stopped or just being restarted, the newest is dropped.
        """
        return cls("drop_oldest", KEPT_TIMEOUT, never_block_loop=never_block_loop)

    @classmethod
    def drop_below(
        cls,
        level: int | str = logging.WARNING,
        at: float = 0.8,
        *,
        timeout: float | None = None,
        never_block_loop: bool = False,
    ) -> Overflow:
        """Drop what is below a level as soon as the buffers fill, so that there is room for the rest, which waits.

        Args:
            level: what is below it is dropped.
            at: from which fill on, from 0 to 1, where 1 is when the queue begins to fill up; 0.8 (the default) is that
                of Logback's discardingThreshold.
            timeout: for how many seconds the rest waits for room; None (the default) waits for ever.
            never_block_loop: do not wait in a thread in which an asyncio event loop runs.
        """
        if not 0 < at <= 1:
            raise ValueError(f"drop_below(at={at!r}): at must be above 0, and at most 1")
        from mplog.record.level import read_level  # no worker needs it

        return cls("drop_below", _checked_timeout(timeout), read_level(level), float(at), never_block_loop)

    @classmethod
    def fallback(cls, timeout: float = 0.0, *, never_block_loop: bool = False) -> Overflow:
        """Write the record into the emergency file at once; the logging process takes it from there later.

        Args:
            timeout: for how many seconds a call waits for room before that; by default it does not wait.
            never_block_loop: do not wait in a thread in which an asyncio event loop runs; writing into the file is not
                waiting.
        """
        return cls("fallback", _checked_timeout(timeout), never_block_loop=never_block_loop)

    @classmethod
    def of(cls, value: Overflow | str) -> Overflow:
        """Return a policy as it is, or the one that a name means.

        Raises:
            ValueError, TypeError: there is no such policy.
        """
        if isinstance(value, Overflow):
            return value
        if not isinstance(value, str):
            raise TypeError(f"overflow is the name of a policy or an Overflow, not {value!r}")
        if value not in get_args(Policy):
            raise ValueError(f"{value!r} is not an overflow policy. Give one of {', '.join(get_args(Policy))}")
        made: Overflow = getattr(cls, value)()
        return made

    def with_emergency_file(self, path: str | os.PathLike[str], size: int | None = None) -> Overflow:
        """Return the same policy with another emergency file.

        Args:
            path: where it lies.
            size: of how many bytes at most; None (the default) leaves it at 64 MiB.
        """
        return msgspec.structs.replace(
            self, emergency=os.fspath(os.path.abspath(path)), emergency_size=size or self.emergency_size
        )

    # --- applying it: runs in the workers ---

    def wait(self, level: int, is_impatient: bool = False) -> float | None:
        """Return for how many seconds a record waits for room; None for ever.

        Args:
            level: of the record.
            is_impatient: whether a wait of this process has failed within the last `PATIENCE` seconds.
        """
        if self.sheds(level):
            return 0.0
        timeout = self.timeout
        if self.policy in ("drop_newest", "drop_oldest"):
            if level >= KEPT_LEVEL:
                timeout = KEPT_TIMEOUT
            if is_impatient:
                timeout = 0.0
        if timeout != 0 and self.never_block_loop and is_in_event_loop():
            return 0.0
        return timeout

    def sheds(self, level: int) -> bool:
        """Whether a record is dropped once the fill is at the mark."""
        return self.policy == "drop_below" and level < min(self.level, KEPT_LEVEL)

    def keeps(self, level: int) -> bool:
        """Whether a record for which there is no room goes into the emergency file."""
        return level >= KEPT_LEVEL or self.policy == "fallback"

    def room(self, level: int) -> int:
        """Return how many bytes the emergency file may have with a record of this level."""
        return self.emergency_size if level >= KEPT_LEVEL else int(self.emergency_size * (1 - _KEPT_SHARE))


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={timeout!r}: it must be 0 seconds or more, or None")
    return None if timeout is None else float(timeout)


def is_in_event_loop() -> bool:
    """Whether an asyncio event loop runs in this thread."""
    asyncio: Any = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
