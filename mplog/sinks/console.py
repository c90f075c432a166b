"""The sink that is the terminal."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Any, Literal, TextIO

from mplog.formats.escaping import escaped_formatter
from mplog.handlers.console import ConsoleHandler
from mplog.sinks.sink import Sink


class ConsoleSink(Sink):
    """The terminal: the program's own standard error or output, wherever that leads.

    Args:
        stream: ``"stderr"`` (the default) or ``"stdout"``.
        color: colour each record by its level; None (the default) does so on a terminal, unless ``NO_COLOR`` is set,
            and anywhere if ``FORCE_COLOR`` is.
        escape: see `Sink`. None (the default) escapes, on a terminal only, what would steer it: all control characters
            except line breaks and tabs, and marks of direction. What the format itself has stays, its colours too.
            False writes the bytes that logging would write, also to a terminal.
        level, format, filters, logger, propagate: see `Sink`.
    """

    def __init__(
        self,
        stream: Literal["stderr", "stdout"] = "stderr",
        *,
        color: bool | None = None,
        escape: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(escape=False if escape is None else escape, **options)
        if stream not in ("stderr", "stdout"):
            raise ValueError(f"a ConsoleSink writes to 'stderr' or 'stdout', not to {stream!r}")
        if color is not None and not isinstance(color, bool):
            raise TypeError(f"color is True, False or None, not {color!r}")
        self.stream = stream
        self.color = color
        self.disarms_terminal = escape is None

    def describe(self) -> str:
        return self.stream

    def open(self, default: logging.Formatter) -> logging.Handler:
        handler = super().open(default)
        if self.disarms_terminal and getattr(sys, self.stream).isatty():
            handler.setFormatter(escaped_formatter(handler.formatter or default, for_terminal=True))
        return handler

    def make_handler(self) -> logging.Handler:
        stream: TextIO | None = getattr(sys, self.stream)
        if stream is None:
            raise OSError(errno.EBADF, f"this program has no {self.stream}")
        # A character that cannot be shown is shown as an escape: an exception would be worse.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        color = _wants_color(stream) if self.color is None else self.color
        return ConsoleHandler(stream, color=color)


def _wants_color(stream: TextIO) -> bool:
    """Decide as CPython does for its own tracebacks (the environment variables of https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()
