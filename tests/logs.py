"""A log file's handler under a clock of the test's own, and what it has written, across all files."""

from __future__ import annotations

import contextlib
import datetime
import sys
from pathlib import Path
from typing import Any

import pytest

import mplog
from mplog.files.rotation_rules import ArchiveName
from mplog.handlers.log_file import LogFileHandler

#: In the middle of a day, in UTC.
NOON = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.timezone.utc).timestamp()


class Clock:
    """The time of day, and the seconds that never go back."""

    def __init__(self) -> None:
        self.now = NOON
        self.ticks = 1000.0

    def time(self) -> float:
        """As time.time()."""
        return self.now

    def monotonic(self) -> float:
        """As time.monotonic()."""
        return self.ticks

    def steady(self) -> float:
        """The time of day, had nobody set it."""
        return NOON + self.ticks - 1000.0

    def forward(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
        self.ticks += seconds


def open_log(path: Path | str, clock: Any = None, **words: Any) -> LogFileHandler:
    """Return the handler of a FileSink with these words, under the clock, in UTC."""
    if "rotate" in words:
        words.setdefault("timezone", "UTC")
    clock = clock or Clock()
    return mplog.FileSink(path, **words).open_file(clock=clock)


def rotated(path: Path, pattern: str | None = None) -> list[Path]:
    """Return the rotated files of a log that are not empty, the oldest first."""
    names = ArchiveName(pattern, path.name)
    found = []
    for other in path.parent.iterdir():
        key = names.index_of(other.name)
        with contextlib.suppress(FileNotFoundError):  # what is removed meanwhile
            if key is not None and other.stat().st_size:
                found.append((key, other))
    return [other for _, other in sorted(found)]


def written(path: Path, pattern: str | None = None) -> list[str]:
    """Return the contents of all files of a log, in order; a log that is not there is none."""
    return [other.read_text() for other in [*rotated(path, pattern), path] if other.exists()]


def write_all(handler: LogFileHandler, texts: list[str], attempts: int = 1) -> list[str]:
    """Write the texts, trying again with what is left after an error; return what is left in the end."""
    for _ in range(attempts):
        if not texts:
            break
        try:
            handler.write(texts)
        except OSError:
            texts = texts[handler.written :]
        else:
            texts = []
    return texts


def zstd() -> Any:
    """Return the module for Zstandard, or skip the test."""
    return pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
