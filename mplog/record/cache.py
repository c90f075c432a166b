"""Dictionaries that never hold more than a number of entries.

Their keys may come off the wire, or from code that is made at run time, so there may be any number of them. A full
dictionary is emptied, and fills again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """A dictionary of at most `most` entries, if only `keep` adds them."""

    __slots__ = ("most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def keep(self, key: K, value: V) -> None:
        if len(self) >= self.most:
            self.clear()
        self[key] = value


class Cache(Bounded[K, V]):
    """What a function returns, by its argument. A hit is a plain subscript, without a call in Python.

    `keeps` tells, given a new key and its value, whether to keep them: they may be too large.
    """

    __slots__ = ("_keeps", "_make")

    def __init__(self, make: Callable[[K], V], most: int, keeps: Callable[[K, V], bool] | None = None) -> None:
        super().__init__(most)
        self._make = make
        self._keeps = keeps

    def __missing__(self, key: K) -> V:
        value = self._make(key)
        if self._keeps is None or self._keeps(key, value):
            self.keep(key, value)
        return value
