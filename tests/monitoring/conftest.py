"""Fixtures: the memory that counts are in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mplog.queue import buffer_memory


@pytest.fixture
def memory() -> Iterator[int]:
    """The memory of a server."""
    fd = buffer_memory.create()
    yield fd
    os.close(fd)
