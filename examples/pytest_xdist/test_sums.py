"""Some tests that log."""

from __future__ import annotations

import logging

import pytest


@pytest.mark.parametrize("n", range(10))
def test_sum(n: int) -> None:
    """The sum of the first numbers is right."""
    logging.getLogger("sums").info("adding up to %d", n)
    assert sum(range(n + 1)) == n * (n + 1) // 2
