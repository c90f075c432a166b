"""The account of a log in words."""

from __future__ import annotations

import pytest

import mplog
from mplog.monitoring.statistics import missing, written
from mplog.queue.losses import Reason
from mplog.queue.process_losses import ProcessLosses


@pytest.mark.parametrize(
    ("by_origin", "words"),
    [
        ({}, "0 records of 0 processes written"),
        ({("w", 1, 20): 1}, "1 record of 1 process written"),
        ({("w", 1, 20): 1000, ("w", 2, 20): 234}, "1,234 records of 2 processes written"),
    ],
)
def test_what_was_written(by_origin: dict[tuple[str, int, int], int], words: str) -> None:
    """Records and processes are counted, in the singular and in the plural."""
    assert written(mplog.Stats(by_origin=by_origin)) == words


def test_nothing_is_missing() -> None:
    """Where all is written, there is nothing to say; cut records are in the log."""
    assert missing(mplog.Stats()) == ""
    assert missing(mplog.Stats(lost=[ProcessLosses(1, "w", {(20, Reason.TRUNCATED): 3})])) == ""


def test_everything_that_can_be_missing() -> None:
    """Each cause is named in words, with its number, over all processes and levels."""
    dropped = {(20, Reason.QUEUE_FULL): 1000, (30, Reason.QUEUE_FULL): 1, (20, Reason.OLDEST): 1}
    stats = mplog.Stats(
        failed={"<A>": 1, "<B>": 37},
        lost=[ProcessLosses(1, "w", dropped), ProcessLosses(2, "w", {(20, Reason.OLDEST): 1})],
        incomplete=1,
        objects=2,
        broken=1,
    )
    assert missing(stats) == (
        "records are missing in the log: 1 record not written by <A>; 37 records not written by <B>; "
        "1,001 records dropped: queue full; 2 records dropped: oldest in full buffers; "
        "1 long record whose end never came; 2 objects in the queue that cannot be logged; "
        "1 piece of garbage in the queue"
    )


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.is_loss])
def test_every_loss_has_words(reason: Reason) -> None:
    """No reason is told by its number."""
    lost = missing(mplog.Stats(lost=[ProcessLosses(1, "w", {(20, reason): 1})]))
    assert lost == f"records are missing in the log: 1 record dropped: {reason.text}"
    assert not set("0123456789_") & set(reason.text)
