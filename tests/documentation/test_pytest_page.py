"""The page on pytest is true: its tests run, and print and log what it says."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes
from plugin_runs import Runs

pytestmark = pytest.mark.processes

pytest_plugins = "pytester"

PAGE = Path(__file__).parents[2] / "docs" / "pytest.rst"


def read_blocks() -> list[str]:
    """Return the programs of the page, each with what the console shows after it."""
    page = docutils.core.publish_doctree(
        PAGE.read_text(encoding="utf-8"),
        settings_overrides={"report_level": 1, "halt_level": 1, "syntax_highlight": "none"},
    )
    return [block.astext() for block in page.findall(nodes.literal_block)]


POOL, POOL_CONSOLE, SHOP, SHOP_CONSOLE = read_blocks()


def plain(line: str) -> str:
    """Return a line without the times and pids, which differ."""
    return re.sub(r"^[-\d]+ [:\d]+,\d+|\d+\.\d{3} s|pid \d+", "#", line)


def run(runs: Runs, program: str, console: str, **outcomes: int) -> pytest.RunResult:
    """Run the tests of a program with the arguments that the console shows."""
    name, command = program.splitlines()[0].removeprefix("# "), shlex.split(console.splitlines()[0])
    assert command[:2] == ["$", "pytest"] and command.pop() == name
    (runs.path / name).write_text(program, encoding="utf-8")
    result = runs.pytester.runpytest_subprocess(*runs.plugins, *command[2:], name, timeout=100)
    result.assert_outcomes(**outcomes)
    return result


def test_records_of_children(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test passes under each start method."""
    assert "3 passed in" in POOL_CONSOLE
    run(Runs(pytester, monkeypatch), POOL, POOL_CONSOLE, passed=3)


def test_log_of_a_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has the lines of the page and no others; those of a process are in its order."""
    runs = Runs(pytester, monkeypatch)
    run(runs, SHOP, SHOP_CONSOLE, passed=1, failed=2)
    lines = [plain(line) for line in runs.lines()]
    shown = SHOP_CONSOLE.partition("$ cat run.log\n")[2].splitlines()
    assert len(lines) == len(shown) == 13, lines
    places: dict[str, list[int]] = {}
    for line in shown:
        pattern = ".*".join(map(re.escape, plain(line).split("...")))
        places.setdefault(line.split()[5 if line.split()[2] == "main" else 4], []).extend(
            number for number, found in enumerate(lines) if re.fullmatch(pattern, found)
        )
    # Either process may be the first to say that a worker has ended.
    assert sorted(itertools.chain(*places.values())) == list(range(13)), lines
    assert all(numbers == sorted(numbers) for numbers in places.values()), places


def test_every_option_is_on_the_page(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the options and settings of `pytest --help`, and no others."""
    result = Runs(pytester, monkeypatch)("", "--help")
    text = PAGE.read_text(encoding="utf-8")
    options = set(re.findall(r"--mplog[-a-z]*", result.stdout.str()))
    settings = set(re.findall(r"^  (mplog\w*) \(", result.stdout.str(), re.MULTILINE))
    assert options == set(re.findall(r"``(--mplog[-a-z]*)=?\w*``", text))
    assert "%(worker)s and %(nodeid)s" in " ".join(result.stdout.str().split())
    assert settings == set(re.findall(r"^     - ``(mplog\w*)``", text, re.MULTILINE))
