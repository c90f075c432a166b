"""Levels by number or name."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import mplog
from mplog.record.level import read_level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("info", 20),
        ("WARNING", 30),
        ("warn", 30),
        ("err", 40),
        ("Crit", 50),
        ("notset", 0),
        ("25", 25),
        ("-1", -1),
        (25, 25),
    ],
)
def test_names_and_numbers(text: int | str, level: int) -> None:
    """Names in upper and lower case, usual abbreviations, and numbers."""
    assert read_level(text) == level


def test_name_that_the_program_has_added() -> None:
    """Names from logging.addLevelName() are known."""
    logging.addLevelName(25, "NOTICE")
    logging.addLevelName(15, "Verbose")
    try:
        assert read_level("notice") == 25
        assert read_level("Verbose") == 15
    finally:
        del logging._nameToLevel["NOTICE"], logging._levelToName[25]
        del logging._nameToLevel["Verbose"], logging._levelToName[15]


@pytest.mark.parametrize("text", ["loud", "", "--5", "1.5"])
def test_what_is_not_a_level(text: str) -> None:
    """The message says what is."""
    with pytest.raises(
        ValueError, match=f"'{text}' is not a level: DEBUG, INFO, WARNING, ERROR, CRITICAL, or a number"
    ):
        read_level(text)


@pytest.mark.parametrize("level", [None, 1.5, b"INFO"])
def test_another_type_is_not_a_level(level: Any) -> None:
    """The message says what is."""
    with pytest.raises(TypeError, match="a level is a number or a name, such as 'INFO', not "):
        read_level(level)


def test_every_argument_takes_a_level_in_the_same_way() -> None:
    """Arguments take names in any case, as the command line does."""
    assert mplog.Overflow.drop_below("error").level == logging.ERROR
    assert mplog.ConsoleSink(level="warn").level == logging.WARNING
    mplog.LogServer("app.log", level="info", sync_level="error")
    for make in (mplog.Overflow.drop_below, lambda level: mplog.LogServer("app.log", level=level)):
        with pytest.raises(ValueError, match="'loud' is not a level: DEBUG, "):
            make("loud")
