"""`context`: fields that go with every record that is logged inside.

Values are encoded once, when they are bound, so that every record and every task can carry them. A process that has
never bound any pays nothing. As with all ``contextvars``, fields hold in this thread, and in the asyncio tasks that are
made meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from mplog.record.layout import RESERVED
from mplog.record.plain import plain_fields, readable

T = TypeVar("T")

_bound: ContextVar[dict[str, Any]] = ContextVar("mplog.context")
_NOTHING: dict[str, Any] = {}


class _InUse:
    """The pid of the process that has last bound fields: this one, or one that it was forked from; 0 for none."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = 0


#: Where ``pid`` is 0, nothing is bound anywhere in this process.
in_use = _InUse()


def named(fields: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the fields with a trailing underscore after each name that a record has already."""
    return [(f"{name}_" if name in RESERVED else name, value) for name, value in fields]


@contextlib.contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Have every record that is logged inside carry these fields, as if ``extra`` had them.

    >>> with mplog.context(job=42):                                                     # doctest: +SKIP
    ...     logging.info("started")

    Inside another one, they are added to its fields. What a record brings itself, by ``extra`` or as keywords, takes
    precedence. A field called like something that each record has (``name``, ``process``) gets a trailing underscore.

    Args:
        fields: values of any type, as they are at this moment.
    """
    token = _bind(_encoded(fields))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # left in another context: an async generator that is collected
            _bound.reset(token)


def bind(**fields: Any) -> None:
    """Add fields to the records that this thread or asyncio task logs from here on, as `context` does inside it."""
    _bind(_encoded(fields))


def unbind(*names: str) -> None:
    """Take fields away again, by the names that they were bound with. Those that are not bound are ignored."""
    gone = {name for name, _ in named((name, None) for name in names)}
    _bound.set({name: value for name, value in _bound.get(_NOTHING).items() if name not in gone})


def carry_context(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that does the same in any process, with the fields that are bound here and now.

    >>> with mplog.context(job=42):                                                     # doctest: +SKIP
    ...     pool.map(mplog.carry_context(work), tasks)

    Args:
        function: anything callable, a lambda too: the result pickles under every start method.
    """
    return _Carrying(function, _bound.get(_NOTHING))


class _Carrying:
    """A callable with the fields to be bound while it runs."""

    def __init__(self, function: Callable[..., Any], fields: dict[str, Any]) -> None:
        from mplog.record.portable import Portable  # few workers need it

        self._function = function if isinstance(function, Portable) else Portable(function)
        self._fields = fields
        functools.update_wrapper(self, function, updated=())

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        token = _bind(self._fields)
        try:
            return self._function(*args, **kwargs)
        finally:
            _bound.reset(token)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Carrying, (self._function, self._fields)


def _encoded(fields: dict[str, Any]) -> dict[str, Any]:
    return plain_fields((readable(name), value) for name, value in named(fields.items())) or {}


def _bind(fields: dict[str, Any]) -> Token[dict[str, Any]]:
    in_use.pid = os.getpid()
    return _bound.set({**_bound.get(_NOTHING), **fields})


def merged(extra: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the fields of a record, encoded, and the bound ones."""
    fields = _bound.get(_NOTHING)
    return {**fields, **extra} if extra and fields else extra or fields or None


def forget_inherited() -> None:
    """Runs in a worker: forget what was bound where it was forked, as a spawned worker never knew."""
    if in_use.pid and in_use.pid != os.getpid():
        _bound.set({})
        in_use.pid = 0
