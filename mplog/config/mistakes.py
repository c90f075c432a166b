"""What is wrong with a configuration, in words: the place, the mistake, the remedy.

``handlers.file.level: 'LOUD' is not a level. It is a number or one of ...``
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mplog.errors import ConfigurationError


def wrong(place: str, what: str, remedy: str) -> ConfigurationError:
    """Return the error for what is wrong at a place, such as ``handlers.file.level``; "" is the whole configuration."""
    message = f"{what}. {remedy}" if remedy else what
    message += "" if message.endswith(("?", ".")) else "."
    return ConfigurationError(f"{place}: {message}" if place else message, place=place)


def expect(place: str, value: Any, kinds: type | tuple[type, ...], remedy: str) -> None:
    """Raise `ConfigurationError` if the value at a place is neither None nor of these types."""
    if value is not None and not isinstance(value, kinds):
        raise wrong(place, f"it is {show(value)}", remedy)


def unknown(place: str, key: Any, known: Iterable[str], remedy: str = "") -> ConfigurationError:
    """Return the error for a key that means nothing at that place."""
    hint = ". ".join(filter(None, [remedy, suggest(key, sorted(known), "The known keys are")]))
    return wrong(join(place, key), "this key is unknown", hint)


def check_keys(place: str, config: Iterable[Any], known: Iterable[str], remedy: str = "") -> None:
    """Raise `ConfigurationError` for the first key that means nothing at a place."""
    for key in config:
        if key not in known:
            raise unknown(place, key, known, remedy)


def suggest(name: Any, known: Iterable[str], otherwise: str) -> str:
    """Return a question with the name that may be meant, or `otherwise` with all known names; "" if there are none."""
    names = [str(candidate) for candidate in known]
    close = difflib.get_close_matches(str(name), names, 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"{otherwise} {', '.join(names)}" if names else ""


def stdlib_mistake(error: BaseException) -> ConfigurationError:
    """Return the error for what the stdlib found while it built a configuration."""
    found = re.match(r"Unable to configure (handler|formatter|filter|logger) '(.*)'", str(error))
    place = f"{found[1]}s.{found[2]}" if found else "root" if "root logger" in str(error) else ""
    return wrong(place, cause_of(error), "")


def cause_of(error: BaseException) -> str:
    first = first_cause(error)
    return f"{type(first).__name__}: {first}"


def first_cause(error: BaseException) -> BaseException:
    """Return the innermost cause of an error, which is the one that tells something."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def show(value: Any) -> str:
    name = type(value).__name__
    if name.startswith("Converting"):  # a configurator's own kinds of dict, list and tuple
        name = name.removeprefix("Converting").lower()
    return f"{value!r}, {'an' if name[0] in 'aeiou' else 'a'} {name}"


def join(place: str, key: Any) -> str:
    """Return the place of something inside another place."""
    return f"{place}.{key}" if place else str(key)


def pairs(value: Any) -> list[tuple[Any, Any]] | None:
    """Return what is inside a value, with its keys or indices; None if it is not a container."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    return None


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for _, inner in pairs(value) or () for text in texts(inner)]
