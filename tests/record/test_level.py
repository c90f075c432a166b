"""Levels that a person has typed."""

from __future__ import annotations

import logging

import pytest

from mplog.record.level import read_level


@pytest.mark.parametrize(
    ("text", "level"),
    [("info", 20), ("WARNING", 30), ("warn", 30), ("err", 40), ("Crit", 50), ("notset", 0), ("25", 25), ("-1", -1)],
)
def test_names_and_numbers(text: str, level: int) -> None:
    """Names in upper and lower case, usual abbreviations, and numbers."""
    assert read_level(text) == level


def test_name_that_the_program_has_added() -> None:
    """Names from logging.addLevelName() are known."""
    logging.addLevelName(25, "NOTICE")
    try:
        assert read_level("notice") == 25
    finally:
        del logging._nameToLevel["NOTICE"], logging._levelToName[25]


@pytest.mark.parametrize("text", ["loud", "", "--5", "1.5"])
def test_what_is_not_a_level(text: str) -> None:
    """The message says what is."""
    with pytest.raises(
        ValueError, match=f"'{text}' is not a level: DEBUG, INFO, WARNING, ERROR, CRITICAL, or a number"
    ):
        read_level(text)
