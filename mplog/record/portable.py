"""Callables that travel into any process: lambdas, closures, functions of a notebook.

The rule of this file: **by reference where that works, by value only where it does not.** A function that the other
process can import is the function of its module there, globals and all, so that the usual ``global connection`` in an
initializer keeps its meaning. What cannot be imported goes by value, with cloudpickle.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any


class Portable:
    """A callable that pickles into any process, and is loaded there when it is called.

    If it cannot be loaded, only the task fails; a plain pickle would kill the worker of a Pool.

    Args:
        function: any callable.
        forked: the other process is a fork, which has the functions of a notebook's ``__main__`` already.
    """

    def __init__(self, function: Callable[..., Any], *, forked: bool = False) -> None:
        self._function: Callable[..., Any] | None = function
        self._forked = forked
        self._data = b""
        functools.update_wrapper(self, function, updated=())

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if self._function is None:
            # One that went by value is one function in its worker, however often it is called. One by reference is
            # loaded each time, as the stdlib does: an object's state must not go from one task to the next.
            self._function = (_load_once if self._data.startswith(_BY_VALUE) else load)(self._data)
        return self._function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Portable) or (self._function is None) != (other._function is None):
            return False
        return self._data == other._data if self._function is None else self._function == other._function

    def __hash__(self) -> int:
        return hash((Portable, self._data if self._function is None else getattr(self._function, "__qualname__", None)))

    def __getstate__(self) -> dict[str, Any]:
        if self._function is not None:
            self._data = _dump(self._function, forked=self._forked)
        return {"_function": None, "_forked": False, "_data": self._data}


def dump(obj: Any, *, by_value: bool = False) -> bytes:
    """Pickle anything as `Portable` pickles a callable; by value for a process without the same ``__main__``."""
    return _BY_VALUE + dump_by_value(obj) if by_value else _dump(obj, forked=False)


def load(data: bytes) -> Any:
    return pickle.loads(memoryview(data)[1:])


_load_once = functools.lru_cache(maxsize=64)(load)
_BY_VALUE = b"V"
_BY_REFERENCE = b"R"


def _dump(function: Any, *, forked: bool) -> bytes:
    pickler = ForkingPickler if forked else _ReferencePickler
    try:
        return _BY_REFERENCE + bytes(pickler.dumps(function))
    except (pickle.PicklingError, AttributeError, TypeError):
        # A lambda, a closure, something of a notebook, or something that holds one.
        return _BY_VALUE + dump_by_value(function, has_main=True)


class _ReferencePickler(ForkingPickler):
    """Refuses what the other process could not import."""

    def reducer_override(self, obj: Any) -> Any:
        if _is_of_main(obj) and not _is_importable(obj):
            raise pickle.PicklingError(f"another process could not import {obj!r}")
        return NotImplemented


def dump_by_value(obj: Any, *, has_main: bool = False) -> bytes:
    """Pickle anything with cloudpickle; `has_main`: the other process has the same ``__main__``."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            # freezegun has put others under their names. The other process finds these there.
            if isinstance(obj, (types.BuiltinFunctionType, type)) and obj.__module__ in ("time", "datetime"):
                return getattr, (sys.modules[obj.__module__], obj.__name__)
            # cloudpickle would send all of __main__ by value: a lambda would call copies of the script's functions,
            # which do not see what an initializer has set.
            if has_main and _is_of_main(obj) and _is_importable(obj):
                return obj.__qualname__
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(obj)
    return file.getvalue()


def _is_of_main(obj: Any) -> bool:
    return isinstance(obj, (types.FunctionType, type)) and obj.__module__ == "__main__"


def _is_importable(obj: Any) -> bool:
    """Whether another process finds the object in the ``__main__`` that it imports; a notebook or prompt has none."""
    if "<" in obj.__qualname__:  # a lambda, or defined in a function
        return False
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None and getattr(main, "__spec__", None) is None:
        return False
    name = obj.__qualname__.partition(".")[0]
    return hasattr(main, name) and name not in _names_under_guard(path)


@functools.lru_cache(maxsize=1)
def _names_under_guard(path: str | None) -> frozenset[str]:
    """Return what a script defines under ``if __name__ == "__main__":``, where its workers do not come."""
    import ast

    try:
        with open(path or "", "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    guarded = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.dump(node.test)]
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for block in guarded for node in ast.walk(block) if isinstance(node, definitions))
