"""A level by number or name, as an argument, on a command line or in an ini file.

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


def read_level(level: int | str) -> int:
    """Return the number of a level, given as that or by its name in any case; raise ValueError or TypeError if not.

    Names from ``logging.addLevelName()`` count, too.
    """
    if isinstance(level, int):
        return level
    if not isinstance(level, str):
        raise TypeError(f"a level is a number or a name, such as 'INFO', not {level!r}")
    added = getattr(sys.modules.get("logging"), "_nameToLevel", {})
    name = level.upper()
    found = added.get(level, added.get(name, _NAMES.get(name)))
    if isinstance(found, int):
        return found
    try:
        return int(level)
    except ValueError:
        raise ValueError(f"{level!r} is not a level: DEBUG, INFO, WARNING, ERROR, CRITICAL, or a number") from None
