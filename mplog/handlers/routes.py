"""Which file a record goes into, by the values that name the file. It runs in the logging process."""

from __future__ import annotations

import logging
from typing import Any

from mplog.files.names import FileNames
from mplog.record.cache import Cache
from mplog.record.decoding import constant_fields
from mplog.record.layout import DETAILS, NO_DETAILS, ORIGIN, ByOrigin, Origin

#: Names that are remembered, by the values that make them, and how many characters these may have.
_KEPT_NAMES = 10_000
_LONGEST_KEPT = 1000

_STANDARD = {*ORIGIN, *DETAILS}
_DETAIL_PLACES = {name: place for place, name in enumerate(DETAILS)}


class Routes:
    """Finds the names of files, and remembers them: in `by_origin` those for records without extra attributes."""

    def __init__(self, names: FileNames) -> None:
        self._fields = names.fields
        self.by_origin = ByOrigin(self._file_name)
        #: Names by the values of all fields, as texts.
        self.by_values = Cache(names.name, _KEPT_NAMES, _is_kept)
        #: If the only field is an extra attribute: that field, and names by its values that are texts or integers.
        self._field = names.fields[0] if names.fields[0] not in _STANDARD and len(names.fields) == 1 else None
        self._by_value: Cache[str | int, str] = Cache(lambda value: self._name([value]), _KEPT_NAMES, _is_kept)
        #: Without a field that may be extra, extra attributes change nothing.
        self._has_extra = not _STANDARD.issuperset(names.fields)

    def name_with(self, origin: Origin, extra: dict[str, Any]) -> str:
        """Return the name for a record with extra attributes."""
        if self._field is not None:
            value = extra.get(self._field)
            # Not isinstance: True is equal to 1, and makes another name.
            if type(value) is str or type(value) is int:
                return self._by_value[value]
        elif not self._has_extra and _STANDARD.isdisjoint(extra):
            return self.by_origin[origin]
        return self._file_name(origin, extra)

    def name_of(self, record: logging.LogRecord) -> str:
        """Return the name for a record that was not sent."""
        return self._name([record.__dict__.get(field) for field in self._fields])

    def _file_name(self, origin: Origin, extra: dict[str, Any] | None = None) -> str:
        values = []
        for field in self._fields:
            if field in ORIGIN:
                value = getattr(origin, field)
            elif field in _DETAIL_PLACES:
                value = (origin.details or NO_DETAILS)[_DETAIL_PLACES[field]]
            else:
                value = None
            if value is None:
                # A text that UTF-8 cannot encode travels as an extra attribute (`mplog.record.encoding`).
                value = (extra or {}).get(field, constant_fields.get(field))
            values.append(value)
        return self._name(values)

    def _name(self, values: list[Any]) -> str:
        # 1, 1.0 and True are equal, and make other names.
        return self.by_values[tuple([value if type(value) is str or value is None else str(value) for value in values])]


def _is_kept(values: Any, name: str) -> bool:
    return sum(map(len, filter(None, values if isinstance(values, tuple) else (str(values),)))) <= _LONGEST_KEPT
