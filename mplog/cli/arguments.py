"""Values on a command line, as ``type=`` of argparse: a level, and a number of seconds."""

from __future__ import annotations

import argparse

from mplog.record.level import read_level

#: A year, in seconds. The operating system refuses waits that are much longer.
_LONGEST_WAIT = 365 * 86400.0


def to_level(text: str) -> int:
    """Return the number of a level."""
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
