"""Reading a configuration: from a file, and with its references resolved."""

from __future__ import annotations

import json
import logging.config
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from mplog.config.mistakes import cause_of, join, pairs, show, wrong
from mplog.errors import ConfigurationError


def read_config(path: Any) -> dict[str, Any]:
    """Return the dictionary that a .toml or .json file holds."""
    try:
        path = os.fspath(path)
    except TypeError:
        raise TypeError(
            f"config is a dictionary, or the path of a .toml or .json file that holds one, not {path!r}"
        ) from None
    kind = os.path.splitext(os.fsdecode(path))[1].lower()
    if kind not in (".toml", ".json"):
        raise wrong("", f"{path} is neither a .toml nor a .json file", "Rename it, or read it and give the dictionary")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise wrong("", f"{path} cannot be read: {error.strerror}", "Check the path and its permissions") from error
    try:
        config = msgspec.toml.decode(data) if kind == ".toml" else json.loads(data)
    except ValueError as error:
        raise wrong("", f"{path} is not valid {kind[1:].upper()}: {error}", "Correct the file at that place") from error
    if not isinstance(config, dict):
        raise wrong("", f"{path} holds {show(config)}", "It must hold a table with the keys of dictConfig()")
    return config


#: The values of ``ext://`` references that are put in their place before any process is started.
_PLAIN = (str, int, float, type(None))


class References(logging.config.BaseConfigurator):
    """Follows the references in a configuration one at a time: a ``cfg://`` may lead to an ``ext://``."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.value_converters = {"cfg": "cfg_convert"}

    def resolved(self, value: Any, place: str = "", followed: tuple[str, ...] = ()) -> Any:
        """Return a part of the configuration with its references replaced by what they lead to.

        An ``ext://`` that leads to anything but a text or a number stays: the process that needs it imports it.
        """
        if isinstance(value, str) and value.startswith(("cfg://", "ext://")):
            try:
                found = self.ext_convert(value[6:]) if value.startswith("ext://") else self.convert(value)
            except RecursionError:
                raise _circle(place, value) from None
            except Exception as error:
                raise wrong(place, f"{value!r} leads nowhere: {cause_of(error)}", "Correct the name") from error
            if value.startswith("ext://"):
                return found if isinstance(found, _PLAIN) else value
            if value in followed:
                raise _circle(place, value)
            return self.resolved(found, place, (*followed, value))
        if isinstance(value, Mapping):
            return {key: self.resolved(inner, join(place, key), followed) for key, inner in value.items()}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            resolved = [self.resolved(inner, join(place, index), followed) for index, inner in enumerate(value)]
            return resolved if isinstance(value, list) else tuple(resolved)
        return value


def _circle(place: str, reference: str) -> ConfigurationError:
    return wrong(place, f"{reference!r} leads back to itself", "Break the circle of references")


def check_cycles(value: Any, place: str = "", above: tuple[int, ...] = ()) -> None:
    """Raise `ConfigurationError` if a part of a configuration contains itself."""
    inside = pairs(value)
    if inside and id(value) in above:
        raise wrong(place, "it contains itself", "Put a copy of that part there")
    for key, inner in inside or ():
        check_cycles(inner, join(place, key), (*above, id(value)))
