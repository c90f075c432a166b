"""A record of the command line is, on the wire, what `mplog.record.encoding` makes of it."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplog.cli.wire import encode
from mplog.record.decoding import decode
from mplog.record.encoding import encode as encode_record

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=40,
)
#: Long enough for every form of a length, and of any name but those that a record has.
FIELDS = st.dictionaries(TEXTS.map(lambda text: f"field {text}"), VALUES | TEXTS.map(lambda text: text * 300))


@given(TEXTS | TEXTS.map(lambda text: text * 9000), FIELDS, TEXTS, st.integers(-5, 2**31), TEXTS)
def test_record_is_the_same(message: str, fields: dict[str, Any], logger: str, level: int, process: str) -> None:
    """Every attribute is that of the record which logging makes and mplog.record.encoding encodes."""
    record = logging.LogRecord(logger, level, "", 0, message, None, None)
    record.processName = process
    record.__dict__.update(fields)
    origin = os.getpid(), logger, level, record.levelname, process
    ours = decode(encode(7, message, fields, record.created, origin))
    theirs = decode(encode_record(record, 7, False))
    ours.msecs = theirs.msecs  # which changes from one Python to the next
    assert vars(ours) == vars(theirs)


@pytest.mark.parametrize("length", [0, 31, 32, 255, 256, 65535, 65536])
def test_every_length(length: int) -> None:
    """Texts, lists and objects, of the last length of each form and of the first of the next."""
    fields = {"text": "x" * length, "list": [1] * length, "object": {str(n): n for n in range(length)}}
    ours = decode(encode(1, "x" * length, fields, 0.0, (1, "a", 20, "INFO", "p")))
    assert (ours.getMessage(), {name: vars(ours)[name] for name in fields}) == ("x" * length, fields)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\udc80", ("tuple",)])
def test_other_values_are_refused(value: Any) -> None:
    """Other values are left to mplog.record.encoding."""
    with pytest.raises(ValueError):
        encode(1, "x", {"field": value}, 0.0, (1, "a", 20, "INFO", "p"))
