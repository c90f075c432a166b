"""Values that are not plain data, as they looked in the process that logged them."""

from __future__ import annotations

import operator
from typing import Any

_NUMBER_FORMATS = frozenset("bcdeEfFgGnoxX%")


class Looks:
    """A value that is not plain data, as it looked in the process that logged it.

    It is written as the original would be, by ``str()``, ``repr()``, ``format()``, and ``%d`` and the like.
    """

    _str: str
    _repr: str
    _number: int | float | None
    _formatted: str
    #: The plain data that it is, as JSON writes it; None if it is none.
    content: Any

    def look(self, text: str, representation: str, number: int | float | None, formatted: str | None) -> None:
        self._str = text
        self._repr = representation
        self._number = number
        self._formatted = text if formatted is None else formatted

    def __str__(self) -> str:
        return self._str

    def __repr__(self) -> str:
        return self._repr

    def __format__(self, spec: str) -> str:
        if not spec:
            return self._formatted
        if self._number is not None and (spec[-1] in _NUMBER_FORMATS or self._formatted == str(self._number)):
            return format(self._number, spec)
        return format(self._formatted, spec)


class ForeignValue(Looks):
    """A value of ``extra`` that is not plain data: what it looked like in the process that logged it.

    ``str()``, ``repr()``, ``format()`` and, for numbers, ``%d``, ``%x`` and ``%f`` give what the value itself would.
    """

    def __init__(
        self,
        text: str,
        representation: str,
        number: int | float | None = None,
        formatted: str | None = None,
        content: Any = None,
    ) -> None:
        self.look(text, representation, number, formatted)
        self.content = content

    def __int__(self) -> int:
        return int(self._require_number())

    def __float__(self) -> float:
        return float(self._require_number())

    def __index__(self) -> int:
        return operator.index(self._require_number())  # type: ignore[arg-type]

    def _require_number(self) -> int | float:
        if self._number is None:
            raise TypeError(f"not a number: {self._repr}")
        return self._number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ForeignValue):
            return NotImplemented
        return self._looks() == other._looks()

    def __hash__(self) -> int:
        return hash(self._looks())

    def _looks(self) -> tuple[object, ...]:
        return self._str, self._repr, self._number, self._formatted


# Values of classes that are made from these types (enumerations of numbers or texts, named tuples, OrderedDict), and
# the numbers of numpy and the like: whatever asks for the type, as the encoders of JSON do, finds it.


class ForeignInt(Looks, int):
    pass


class ForeignFloat(Looks, float):
    pass


class ForeignStr(Looks, str):
    pass


class ForeignList(Looks, list[Any]):
    pass


class ForeignTuple(Looks, tuple[Any, ...]):
    pass


class ForeignDict(Looks, dict[Any, Any]):
    pass


#: Which of these stands for a value that is made from a type.
LIKE: dict[type, Any] = {
    int: ForeignInt,
    float: ForeignFloat,
    str: ForeignStr,
    list: ForeignList,
    tuple: ForeignTuple,
    dict: ForeignDict,
}
