"""The page on announce, write, commit, settle, recover has a row for each kill point, and names tests that arm it."""

from __future__ import annotations

import ast
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
def test_the_tests_of_a_row_arm_its_point(point: str) -> None:
    """Each row names tests, and each of these arms the point of the row."""
    assert ROWS[point]
    for name in ROWS[point]:
        assert point in armed_by(name), f"{name} does not arm {point!r}"


def armed_by(name: str) -> set[str]:
    """Return the points that a test arms: those that its body names, and those among its parameters."""
    (test,) = (
        node
        for path in TESTS.rglob("test_*.py")
        if f"def {name}(" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    body = [node for statement in test.body for node in ast.walk(statement)]
    used = {node.id for node in body if isinstance(node, ast.Name)}
    # By the environment variable, or by the list of a handler that arms a point in each logging process.
    assert used & {"VARIABLE", "_Armed"}, f"{name} arms no point"
    texts = [node.value for node in body if isinstance(node, ast.Constant)]
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.parametrize":
            parameter, values = decorator.args
            if ast.literal_eval(parameter) in used:
                texts += eval(ast.unparse(values), {"POINTS": POINTS})
    return {text.partition(":")[0] for text in texts if isinstance(text, str)} & {*POINTS}
