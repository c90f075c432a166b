"""The page on announce, write, commit, settle, recover has a row for each kill point, and names tests that arm it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mplog
from mplog.queue.kill_points import POINTS

TESTS = Path(__file__).parent.parent
PAGE = (Path(mplog.__file__).parent / "logging_process" / "README.rst").read_text(encoding="utf-8")
#: By the point, the names of the tests in the last cell of its row.
ROWS = {
    row.partition("\n")[0]: re.findall(r"``(test_\w+)``", row.rpartition("\n     - ")[2])
    for row in PAGE.rpartition("- Armed by")[2].split("\n   * - ")[1:]
}


def test_every_kill_point_has_a_row() -> None:
    """The table and `kill_points.POINTS` name the same points."""
    assert set(ROWS) == set(POINTS)


@pytest.mark.parametrize("point", POINTS)
def test_the_tests_of_a_row_are_there(point: str) -> None:
    """Each row names a test, and the file of that test arms kill points."""
    assert ROWS[point]
    for name in ROWS[point]:
        (found,) = [text for path in TESTS.rglob("test_*.py") if f"def {name}(" in (text := path.read_text())]
        assert "kill_points" in found
