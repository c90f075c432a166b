"""What processes have lost is said in the log once, whatever kills the logging process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from readers import read_losses

from mplog.monitoring.loss_reader import LossReader
from mplog.monitoring.tallies import Tallies
from mplog.queue.losses import Losses, Reason

INFO, ERROR = logging.INFO, logging.ERROR


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """What looks like the directory of a queue."""
    (tmp_path / "queue").touch()
    return str(tmp_path)


class Reader:
    """A LossReader, which the next one follows after a kill.

    Args:
        memory: of the server.
        directory: of the queue.
        before: the reader before this one.
    """

    def __init__(self, memory: int, directory: str, before: Reader | None = None) -> None:
        self.serial = before.serial if before else 0
        if before:
            before.tallies.close()
        self.tallies = Tallies(memory, directory, self.serial)
        self.new = LossReader(directory, self.tallies, lambda pid: False).new

    def commit(self) -> None:
        """Keep what is said."""
        self.tallies.write()
        self.serial = self.tallies.serial


@pytest.fixture
def reader(memory: int, directory: str) -> Iterator[Reader]:
    """The first reader."""
    reader = Reader(memory, directory)
    yield reader
    reader.tallies.close()


def test_what_is_new_is_said_once(memory: int, directory: str, reader: Reader) -> None:
    """A look returns what was lost since the last look. After a kill, it is what was lost since the last commit."""
    mine = Losses(directory)
    assert reader.new() == []
    for _ in range(3):
        mine.count(INFO, Reason.QUEUE_FULL, "w")
    (first,) = reader.new()
    assert first.lost == 3
    mine.count(ERROR, Reason.QUEUE_FULL, "w")
    reader = Reader(memory, directory, reader)
    assert reader.new()[0].lost == 4
    reader.commit()
    mine.count(INFO, Reason.QUEUE_FULL, "w")
    (second,) = reader.new()
    assert second.counts == {(INFO, Reason.QUEUE_FULL): 1}
    reader = Reader(memory, directory, reader)
    assert reader.new() == [second]
    assert reader.new() == []
    reader.commit()
    reader = Reader(memory, directory, reader)
    assert reader.new() == []
    assert read_losses(directory)[0].lost == 5
    reader.tallies.close()


@pytest.mark.parametrize("content", [b"", b"mplogls1", bytes(4096), os.urandom(5000)])
def test_what_is_no_file_of_losses_is_skipped(directory: str, reader: Reader, content: bytes) -> None:
    """A file that is just being made, or is another's, is not read."""
    Path(directory, "losses-7-0").write_bytes(content)
    assert reader.new() == []
