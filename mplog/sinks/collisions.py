"""Whether two sinks could write one file, found before anything is started.

The names that a sink may give to files are a pattern: a list of characters and wildcards. Two sinks of one directory
are refused if a name could fit the patterns of both.
"""

from __future__ import annotations

import itertools
import os
import string
from collections.abc import Iterator, Sequence

from mplog.files.compression import SUFFIXES
from mplog.sinks.file import FileSink
from mplog.sinks.routed import RoutedFileSink

#: Wildcards: one or more of any character, or of digits.
_ANY, _DIGITS = "any", "digits"


def check_names(sinks: Sequence[FileSink]) -> None:
    """Raise a ValueError if two sinks could write to one file, or rotate to one name."""
    for one, other in itertools.combinations(sinks, 2):
        if _directory(one) != _directory(other):
            continue
        if os.path.realpath(one.path) == os.path.realpath(other.path):
            raise ValueError(
                f"{os.path.realpath(one.path)} is given twice: its records would be written twice. Leave one out."
            )
        for name, name_of_other in itertools.product(_names(one), _names(other)):
            if _overlap(name, name_of_other):
                raise ValueError(
                    f"{one!r} and {other!r} could write to one file, or give a rotated file the same name "
                    f"({_show(name)} and {_show(name_of_other)}). Give them different names, or directories."
                )


def _directory(sink: FileSink) -> str:
    # Of a routed sink it is the directory that leads elsewhere, not the file.
    if isinstance(sink, RoutedFileSink):
        return os.path.realpath(os.path.dirname(sink.path))
    return os.path.dirname(os.path.realpath(sink.path))


def _names(sink: FileSink) -> Iterator[list[str]]:
    """Yield the patterns of its files' names."""
    if isinstance(sink, RoutedFileSink):
        name = [*sink.names.texts[0]]
        for text in sink.names.texts[1:]:
            name += [_ANY, *text]
    else:
        name = [*os.path.basename(os.path.realpath(sink.path))]
    yield name
    if sink.rotation is None:
        return
    if isinstance(sink, RoutedFileSink):
        suffix = os.path.splitext(f"x{sink.names.texts[-1]}")[1]
        end = len(name) - len(suffix)
        archive = [*name[:end], ".", _DIGITS, "-", _DIGITS, "-", _DIGITS, ".", _DIGITS, *name[end:]]
        if not suffix:
            yield [*archive, ".", _ANY]  # a dot in a value
    else:
        archive = sink.rotation.name.pieces(_DIGITS)
    yield archive
    if sink.rotation.compress is not None:
        yield [*archive, *SUFFIXES[sink.rotation.compress]]


def _show(name: list[str]) -> str:
    return "".join({_ANY: "*", _DIGITS: "#"}.get(piece, piece) for piece in name)


def _overlap(one: list[str], other: list[str]) -> bool:
    """Whether a name fits both patterns: both are walked at once, in every way that there is."""
    places, seen = [(0, 0)], set()
    while places:
        place = i, j = places.pop()
        if place == (len(one), len(other)):
            return True
        if place in seen or i == len(one) or j == len(other) or not _fit(one[i], other[j]):
            continue
        seen.add(place)
        # One character of both; a wildcard may take the next one, too.
        places.append((i + 1, j + 1))
        if one[i] in (_ANY, _DIGITS):
            places.append((i, j + 1))
        if other[j] in (_ANY, _DIGITS):
            places.append((i + 1, j))
    return False


def _fit(one: str, other: str) -> bool:
    """Whether there is a character that both pieces take."""
    if one == other or _ANY in (one, other):
        return True
    return _DIGITS in (one, other) and any(piece in string.digits for piece in (one, other))
