"""Fixtures: a queue, and a pair of buffers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from buffer_use import SIZE, Camera, Pipe

from mplog import LogQueue
from mplog.queue import buffer_memory
from mplog.queue.buffers import BufferPair


@pytest.fixture
def queue() -> Iterator[LogQueue]:
    """A queue of the usual size."""
    queue = LogQueue()
    yield queue
    queue.close()
    queue.remove()


@pytest.fixture
def small() -> Iterator[LogQueue]:
    """A queue with room for a frame or a few."""
    queue = LogQueue(4096)
    yield queue
    queue.close()
    queue.remove()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe."""
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def memory() -> Iterator[int]:
    """The memory of a pair."""
    fd = buffer_memory.create(SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def pair(memory: int) -> Iterator[BufferPair]:
    """A pair of the smallest size."""
    pair = BufferPair(memory)
    yield pair
    pair.close()


@pytest.fixture
def camera(memory: int, pair: BufferPair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    """A camera on the memory of `pair`."""
    camera = Camera(memory, monkeypatch)
    yield camera
    camera.forget()
