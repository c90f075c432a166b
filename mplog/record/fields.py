"""`Fields`: what is added to every record of a server, and what is kept out of all records.

::

    worker:           record -> plain data -> enrichers add fields -> redactors see every text and field -> queue
    logging process:  ... -> the constant fields, which cost workers nothing -> sinks
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mplog.record.layout import RESERVED, Record
from mplog.record.packing import pack
from mplog.record.plain import plain_fields, unpack
from mplog.record.preparation import Enricher, Preparation, RedactorFunction


class Fields:
    """What is added to every record of a server, and what is kept out of all records.

    >>> fields = mplog.Fields({"service": "shop"}, redactors=[mplog.Redactor("password")])    # doctest: +SKIP
    >>> server = mplog.LogServer("app.log", fields=fields)                              # doctest: +SKIP

    What a record brings itself takes precedence over what is bound (`mplog.context`), that over what enrichers add, and
    that over the constant fields.

    Args:
        constant: fields that are the same for all records. The logging process adds them; workers do nothing.
        enrichers: called, in the process that logs, for every record, to return fields to add. Where one fails, the log
            says so, once per process, and the record goes without its fields.
        redactors: called, in the process that logs, with the name and the value of each field, and of each item in one
            that is a dictionary (with the key as its name) or a list, to return the value that is written. The texts of
            the record are ``message``, ``exc_text`` (the traceback, and the message of the exception) and
            ``stack_info``. Values are plain data, or a `ForeignValue` that shows how they look. Where one fails, a
            marker is written in place of the value. A `Redactor` will often do.

    Raises:
        ValueError: a constant field is called like something that every record has.
        TypeError: an enricher or redactor is not callable, or the name of a field is not a text.
    """

    def __init__(
        self,
        constant: Mapping[str, Any] | None = None,
        *,
        enrichers: Iterable[Enricher] = (),
        redactors: Iterable[RedactorFunction] = (),
    ) -> None:
        if constant is not None and not isinstance(constant, Mapping):
            raise TypeError(f"fields is a dictionary of names and values, or Fields, not {constant!r}")
        constant = dict(constant or {})
        for name in constant:
            if type(name) is not str:
                raise TypeError(f"the name of a field is a text, not {name!r}")
            if name in RESERVED or hasattr(Record, name):
                raise ValueError(
                    f"a field cannot be called {name!r}, since every record has an attribute of that name. Call it "
                    f"{name + '_'!r}, or something else."
                )
        #: As they would arrive in a record.
        self.constant: dict[str, Any] = unpack(pack(plain_fields(constant.items()) or {}))
        self.enrichers = tuple(enrichers)
        self.redactors = tuple(redactors)
        for function in (*self.enrichers, *self.redactors):
            if not callable(function):
                raise TypeError(
                    f"an enricher or a redactor is a function, or something else callable, not {function!r}"
                )

    def __repr__(self) -> str:
        return f"Fields({self.constant!r}, enrichers={self.enrichers!r}, redactors={self.redactors!r})"

    @classmethod
    def of(cls, fields: Mapping[str, Any] | Fields | None) -> Fields:
        return fields if isinstance(fields, Fields) else cls(fields)

    @property
    def preparation(self) -> Preparation | None:
        """What there is to do in a worker; None for nothing."""
        return Preparation(self.enrichers, self.redactors) if self.enrichers or self.redactors else None
