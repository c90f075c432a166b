"""Handlers of a log file under a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from logs import Clock, open_log

from mplog.handlers.log_file import LogFileHandler


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is told."""
    return Clock()


@pytest.fixture
def open_handler(log: Path, clock: Clock) -> Iterator[Callable[..., LogFileHandler]]:
    """Open handlers of `log` under the clock; they are closed at the end, and must have had nothing left to say."""
    opened = []

    def open_one(**words: Any) -> LogFileHandler:
        opened.append(open_log(log, clock, **words))
        return opened[-1]

    yield open_one
    for handler in opened:
        assert handler.take_notices() == []
        handler.close()
