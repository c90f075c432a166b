"""Callables that travel into any process: lambdas, closures, functions of a notebook.

The rule of this file: **by reference where that works, by value only where it does not.** A function that the other
process can import stays the function of its module there, globals and all, so that the usual ``global connection`` in
an initializer keeps its meaning. What cannot be imported goes by value, with cloudpickle.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

__all__ = ["Portable"]


class Portable:
    """A callable that pickles into any process, and is loaded there when it is called.

    A failure to load it is so the failure of the task, where a plain pickle would kill the worker of a Pool.

    Args:
        function: any callable.
        forked: the other process is a fork, which has the functions of a notebook's ``__main__`` already.
    """

    def __init__(self, function: Callable[..., Any], *, forked: bool = False) -> None:
        self._function: Callable[..., Any] | None = function
        self._forked = forked
        self._data = b""
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is None:
            self._function = _load(self._data)
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._function is not None:
            self._data = _dump(self._function, forked=self._forked)
        return _unpickled, (self._data,)


def _unpickled(data: bytes) -> Portable:
    portable = Portable.__new__(Portable)
    portable._function = None
    portable._forked = False
    portable._data = data
    return portable


def _dump(function: Callable[..., Any], *, forked: bool) -> bytes:
    if forked or not _is_in_unimportable_main(function):
        try:
            return bytes(ForkingPickler.dumps(function))
        except (pickle.PicklingError, AttributeError, TypeError):
            pass  # a lambda, a closure, or something that holds one
    import cloudpickle

    data: bytes = cloudpickle.dumps(function)
    return data


def _is_in_unimportable_main(function: object) -> bool:
    """Whether it is defined where no other process can import it: a notebook, ``python -c``, a prompt."""
    if getattr(function, "__module__", None) != "__main__":
        return False
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is None and getattr(main, "__file__", None) is None


@functools.lru_cache(maxsize=64)
def _load(data: bytes) -> Callable[..., Any]:
    # Cached, so that a function that went by value is one function in its worker, however often it is called.
    function: Callable[..., Any] = pickle.loads(data)
    return function
