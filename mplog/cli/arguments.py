"""Values on a command line: a level and a number of seconds, as ``type=`` of argparse, and the queue of a server."""

from __future__ import annotations

import argparse
import os

from mplog.errors import QueueNotFoundError
from mplog.record.level import read_level

#: A year, in seconds. The operating system refuses waits that are much longer.
_LONGEST_WAIT = 365 * 86400.0


def to_level(text: str) -> int:
    try:
        return read_level(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_seconds(text: str, least: float = 0.0) -> float:
    """Return a time that the command will wait, of at least so many seconds."""
    try:
        value = float(text)
        if least <= value <= _LONGEST_WAIT:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from {least:g} to {_LONGEST_WAIT:.0f}")


def running_queue(given: str | None) -> str:
    """Return the directory of the queue that ``--queue`` (a directory or a log) or the environment names."""
    where = given or os.environ.get("MPLOG_QUEUE")
    if not where:
        raise QueueNotFoundError(
            "no server is named: MPLOG_QUEUE is not set, and --queue is not given. Start one with "
            "export MPLOG_QUEUE=$(mplog serve start --log app.log), or run this under mplog run --log app.log"
        )
    if os.path.isfile(where):
        from mplog.monitoring.find_servers import find_writer

        return find_writer(where)
    # A link, as serve --queue makes it, may lead to another server later.
    return os.path.realpath(where)
