"""What `TextHandler` does for all handlers that write a batch of texts at once."""

from __future__ import annotations

import logging

from mplog.handlers.text import TextHandler
from mplog.record.decoding import decode_entry
from mplog.record.encoding import encode


class _Small(TextHandler):
    """Has memory for some characters at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.failed: list[str] = []

    def write(self, texts: list[str]) -> None:
        """Write the texts."""
        if sum(map(len, texts)) > 100:
            raise MemoryError
        self.texts += texts

    def handleError(self, record: logging.LogRecord) -> None:
        """Note what could not be written."""
        self.failed.append(record.getMessage())


def test_no_memory_for_one_text_costs_that_text_alone() -> None:
    """Where a batch with a long text needs too much memory, the other texts are written one by one, in order."""
    handler = _Small()
    messages = [*(f"line {number}" for number in range(50)), "x" * 100, "last"]
    handler.handle_entries(
        [decode_entry(encode(logging.LogRecord("a", 20, "f", 1, text, None, None))) for text in messages]
    )
    handler.flush()
    assert handler.texts == [f"{text}\n" for text in messages if len(text) < 100]
    assert handler.failed == ["x" * 100]
