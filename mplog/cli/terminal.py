"""The terminal of a command: whether there is one, its keys, and its signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterable, Iterator

from mplog.logging_process.signals import Wakeup


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def keyboard() -> Iterator[int]:
    """Have keys come one by one, without echo; yield the descriptor, -1 if there is no keyboard."""
    fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    try:
        # A background job must not touch the terminal, and would be stopped for it.
        has_keys = fd >= 0 and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not the controlling terminal
        has_keys = False
    if not has_keys:
        yield -1
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def noted_signals(always: int, unless_ignored: Iterable[int]) -> Iterator[int]:
    """Yield a descriptor from which the numbers of signals are read, which do nothing else inside this context.

    Of `unless_ignored`, those that are ignored stay ignored, as nohup and shells without job control want.
    """
    noted = [always, *(number for number in unless_ignored if signal.getsignal(number) != signal.SIG_IGN)]
    with contextlib.closing(Wakeup()) as wakeup:
        before = {number: signal.signal(number, lambda number, frame: None) for number in noted}
        try:
            yield wakeup.awake.fileno()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
