"""A logger, and what it sends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sent import Sent

import mplog
import mplog.worker.logger


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """A QueueHandler that is the only one on the way, and a Logger below it."""
    sent = Sent()
    # pytest puts handlers of its own on the root logger, and on any that does not propagate.
    base = logging.getLogger("base")
    monkeypatch.setattr(base, "parent", None)
    base.handlers = [sent.handler]
    base.setLevel(1)
    pack = mplog.worker.logger.pack

    def counting(values: Any) -> bytes:
        payload = pack(values)
        sent.straight += type(values) is tuple  # an origin is none
        return payload

    monkeypatch.setattr(mplog.worker.logger, "pack", counting)
    yield sent
    sent.queue.close()
    sent.queue.remove()
