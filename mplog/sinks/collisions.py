"""Whether two sinks could write one file. Pure code, no I/O.

The rule of this file: **what could collide is found before anything is started.** The names that a sink may give to
files are a pattern of characters and wildcards; two sinks of one directory have nothing in common, or are refused.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence

from mplog.files.compression import SUFFIXES
from mplog.sinks.file import FileSink
from mplog.sinks.routed import RoutedFileSink

__all__ = ["check_names"]

#: A character; or a wildcard for one or more of any, or of digits.
_ANY, _DIGITS = "any", "digits"


def check_names(sinks: Sequence[FileSink]) -> None:
    """Refuse sinks that could write to one file, or rotate to one name.

    Raises:
        ValueError: there are two.
    """
    for one, other in itertools.combinations(sinks, 2):
        if _directory(one) != _directory(other):
            continue
        if _path(one) == _path(other):
            raise ValueError(f"{_path(one)} is given twice: its records would be written twice. Leave one out.")
        for name, name_of_other in itertools.product(_names(one), _names(other)):
            if _overlap(name, name_of_other):
                raise ValueError(
                    f"{one!r} and {other!r} could write to one file, or give a rotated file the same name "
                    f"({_show(name)} and {_show(name_of_other)}). Give them different names, or directories."
                )


def _path(sink: FileSink) -> str:
    return os.path.realpath(sink.path)


def _directory(sink: FileSink) -> str:
    # Of a routed sink it is the directory that leads elsewhere, not the file.
    return os.path.realpath(os.path.dirname(sink.path)) if isinstance(sink, RoutedFileSink) else _parent(_path(sink))


def _parent(path: str) -> str:
    return os.path.dirname(path)


def _names(sink: FileSink) -> Iterator[list[str]]:
    """Yield the patterns of its files' names."""
    if isinstance(sink, RoutedFileSink):
        name = [*sink.names.texts[0]]
        for text in sink.names.texts[1:]:
            name += [_ANY, *text]
        yield name
        if sink.rotation is not None:
            suffix = sink.names.texts[-1]
            end = len(name) - (len(suffix) - suffix.rindex(".")) if "." in suffix else len(name)
            archive = [*name[:end], ".", _DIGITS, "-", _DIGITS, "-", _DIGITS, ".", _DIGITS, *name[end:]]
            if "." not in suffix:
                yield [*archive, ".", _ANY]  # a dot in a value
            yield archive
            yield from _compressed(archive, sink)
        return
    yield [*os.path.basename(_path(sink))]
    if sink.rotation is not None:
        archive = sink.rotation.name.pieces(_DIGITS)
        yield archive
        yield from _compressed(archive, sink)


def _compressed(archive: list[str], sink: FileSink) -> Iterator[list[str]]:
    if sink.rotation is not None and sink.rotation.compress is not None:
        yield [*archive, *SUFFIXES[sink.rotation.compress]]


def _show(name: list[str]) -> str:
    return "".join({_ANY: "*", _DIGITS: "#"}.get(piece, piece) for piece in name)


def _overlap(one: list[str], other: list[str]) -> bool:
    """Whether a name fits both: both are walked at once, in every way that there is."""
    # A wildcard is one character, and then any number of them.
    states, seen = [(0, 0, False, False)], set()
    while states:
        state = states.pop()
        if state in seen:
            continue
        seen.add(state)
        place, place_of_other, inside, inside_other = state
        # Leave a wildcard that has had its first character.
        if inside:
            states.append((place + 1, place_of_other, False, inside_other))
        if inside_other:
            states.append((place, place_of_other + 1, inside, False))
        if place == len(one) and place_of_other == len(other):
            return True
        if place == len(one) or place_of_other == len(other) or not _fit(one[place], other[place_of_other]):
            continue
        is_wild, is_wild_other = len(one[place]) > 1, len(other[place_of_other]) > 1
        states.append(
            (
                place if is_wild else place + 1,
                place_of_other if is_wild_other else place_of_other + 1,
                is_wild,
                is_wild_other,
            )
        )
    return False


def _fit(one: str, other: str) -> bool:
    if _ANY in (one, other) or one == other:
        return True
    digit = other if one == _DIGITS else one if other == _DIGITS else ""
    return digit.isdecimal() and digit.isascii()
