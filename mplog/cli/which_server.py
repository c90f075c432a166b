"""Which running server a command is for. It loads little, since `mplog log` uses it."""

from __future__ import annotations

import os

from mplog.errors import QueueNotFoundError


def running_queue(given: str | None) -> str:
    """Return the directory of the queue that ``--queue`` (a directory or a log) or the environment names."""
    where = given or os.environ.get("MPLOG_QUEUE")
    if not where:
        raise QueueNotFoundError(
            "no server is named: MPLOG_QUEUE is not set, and --queue is not given. Start one with "
            "export MPLOG_QUEUE=$(mplog serve start --log app.log), or run this under mplog run --log app.log"
        )
    if os.path.isfile(where):
        from mplog.monitoring.running import find_writer

        return find_writer(where)
    # A link, as serve --queue makes it, may lead to another server later.
    return os.path.realpath(where)
