"""A level that a person has typed, on a command line or in an ini file.

This module does not load `logging`: shell scripts call ``mplog log`` thousands of times.
"""

from __future__ import annotations

import sys

#: The names of logging, and their usual abbreviations.
_NAMES = {
    "NOTSET": 0,
    "DEBUG": 10,
    "INFO": 20,
    "WARNING": 30,
    "WARN": 30,
    "ERROR": 40,
    "ERR": 40,
    "CRITICAL": 50,
    "CRIT": 50,
    "FATAL": 50,
}


def read_level(text: str) -> int:
    """Return the number of a level, given as that or by its name in any case; raise ValueError if it is neither.

    Names from ``logging.addLevelName()`` count, too.
    """
    added = getattr(sys.modules.get("logging"), "_nameToLevel", {})
    name = text.upper()
    found = added.get(name, _NAMES.get(name))
    if isinstance(found, int):
        return found
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a level: DEBUG, INFO, WARNING, ERROR, CRITICAL, or a number") from None
