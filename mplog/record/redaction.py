"""`Redactor`: masks what should not be in a log. `mplog.record.preparation` says when it sees what."""

from __future__ import annotations

import re
from typing import Any

from mplog.record.foreign import Looks
from mplog.record.plain import foreign_value


class Redactor:
    """Masks what should not be in a log: fields by their names, and what matches a pattern in any text.

    >>> mplog.Redactor("password", "secret", pattern="(?<=token=)[^&]+")                # doctest: +SKIP

    Args:
        names: of fields, and of keys in dictionaries, in whatever case.
        pattern: a regular expression; what it matches is masked in messages, tracebacks, and texts in fields.
        mask: what is written instead.

    Raises:
        re.error: the pattern is not valid.
    """

    def __init__(self, *names: str, pattern: str | re.Pattern[str] | None = None, mask: str = "***") -> None:
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"a Redactor takes the names of fields as separate arguments, not {name!r}")
        self._names = frozenset(name.casefold() for name in names)
        self._pattern = None if pattern is None else re.compile(pattern)
        self._mask = mask

    def __call__(self, name: str, value: Any) -> Any:
        if name.casefold() in self._names:
            return self._mask
        if type(value) is str:
            return self._masked(value)
        if isinstance(value, Looks):
            looks = str(value), repr(value), format(value)
            masked = tuple(map(self._masked, looks))
            content = self._masked(value.content) if type(value.content) is str else None
            if masked != looks or content not in (None, value.content):
                return foreign_value(masked[0], masked[1], None, masked[2], content)
        return value

    def _masked(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(lambda _: self._mask, text)
