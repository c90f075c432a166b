"""The points at which the logging process can be made to kill itself, so that its restart can be tested.

The rule of this file: **what is tested is what ships.** Whether something is lost depends on the very instruction at
which a process dies, and random kills seldom hit the rare ones. So the code names them, as in ``reach("after read")``,
and a test arms one: by the environment variable ``MPLOG_KILL_AT`` of the process, or by `arm`. A point that is not
armed costs one comparison.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterator

#: The environment variable: the name of a point, or ``name:n`` for the n-th time that it is reached.
VARIABLE = "MPLOG_KILL_AT"

#: All points there are.
POINTS = (
    "before read",  # a read of the FIFO is announced, and not made
    "after read",  # it is made, and not noted down
    "before replace",  # what stays of the intake buffer is written elsewhere, and does not count yet
    "after replace",
    "before swap",
    "after swap",
    "before commit",
    "after commit",
    "in state",  # a new state of the buffers is written, and does not count yet
    "before write",  # the next portion of a file is announced, and not written
    "after write",  # a batch is written, and not noted down
    "after say",  # the same for lines of our own
    "before remove",  # the losses of ended processes are in the totals, and their files not removed
    "in recovery",  # it is known whether the announced read was made, and not noted down
)

_armed = ""
_moments: Iterator[bool] = iter(())


def arm(point: str) -> None:
    """Let this process kill itself by SIGKILL at a point.

    Args:
        point: a name of `POINTS`, ``name:n`` for the n-th time from now, or "" for none.

    Raises:
        ValueError: there is no such point.
    """
    global _armed, _moments
    name, colon, count = point.partition(":")
    if point and (name not in POINTS or (colon and not re.fullmatch("[1-9][0-9]*", count))):
        raise ValueError(f"{point!r} is not a kill point. Give one of {', '.join(POINTS)}, with or without :n")
    _armed, _moments = name, (moment == int(count or 1) for moment in itertools.count(1))


def reach(point: str) -> None:
    """Die here if this point is armed."""
    if point == _armed and next(_moments):
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE, ""))
