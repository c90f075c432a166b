"""Which running server a command is for.

The rule of this file: **it loads nothing**, for `mplog log` needs it; but where a log is named, what finds its server.
"""

from __future__ import annotations

import os

from mplog.errors import QueueNotFoundError

__all__ = ["running_queue"]


def running_queue(given: str | None) -> str:
    """Return the directory of the queue of the server to use: that of ``--queue``, or of the environment.

    Args:
        given: what ``--queue`` says, a directory or a log; None where it was not given.

    Raises:
        QueueNotFoundError: neither is given, or no server writes the log.
    """
    where = given or os.environ.get("MPLOG_QUEUE")
    if not where:
        raise QueueNotFoundError(
            "no server is named: MPLOG_QUEUE is not set, and --queue not given. Start one with "
            "export MPLOG_QUEUE=$(mplog serve start --log app.log), or run this under mplog run --log app.log"
        )
    if os.path.isfile(where):
        from mplog.monitoring.running import find_writer

        return find_writer(where)
    # Where it is a link, as serve --queue makes them, to where it leads now.
    return os.path.realpath(where)
