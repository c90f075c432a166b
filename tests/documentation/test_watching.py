"""The page about watching is true: its commands print what it shows, and its pictures are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from scripts import Gate, environment, run, write_script

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[2] / "docs" / "watching.rst"
DOCTREE = publish_doctree(PAGE.read_text(encoding="utf-8"), settings_overrides={"syntax_highlight": "none"})

#: What the commands on the page are about.
PROGRAM = """
    import logging, sys, mplog
    from scripts import Gate

    gate = Gate.__new__(Gate)
    gate.path = sys.argv[1]
    with mplog.LogServer("shop.log", level="INFO") as server:
        logging.getLogger("shop.orders").info("order 16 sent")
        logging.getLogger("shop.stock").warning("only 2 left")
        logging.getLogger("shop.orders").error("order 17 failed")
        server.flush()
        gate.wait()
"""


def read_commands() -> list[tuple[str, list[str]]]:
    """Return the commands on the page, with the lines that they print."""
    found: list[tuple[str, list[str]]] = []
    for block in DOCTREE.findall(nodes.literal_block):
        if "console" in block["classes"]:
            for line in block.astext().splitlines():
                if line.startswith("$ "):
                    found.append((line[2:], []))
                else:
                    found[-1][1].append(line)
    return found


COMMANDS = read_commands()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """The directory in which the program runs."""
    gate = Gate(tmp_path / "gate")
    script = write_script(tmp_path, PROGRAM, "shop.py")
    command = [sys.executable, script.name, gate.path]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL)
    gate.wait_until_reached()
    yield tmp_path
    gate.open()
    assert process.wait(30) == 0


def test_commands_print_what_the_page_says(shop: Path) -> None:
    """The commands print the lines on the page, except times, pids, rates and the widths that depend on them."""
    for command, expected in COMMANDS:
        done = run(["-m", *shlex.split(command)], cwd=shop)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert [_shape(line) for line in done.stdout.rstrip().splitlines()] == [_shape(line) for line in expected]


def _shape(line: str) -> list[str]:
    """Return the words of a line, with those made alike that are of one run."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", "TIME", line)
    line = re.sub(r"\S*/shop\.log", ".../shop.log", line)
    line = re.sub(r"\S*python\S* shop\.py.*", "python shop.py", line)
    line = re.sub(r"(running +)\d+s +\S+ +(\.\.\.|\d+\.?\d* \S+)", r"\g<1>N", line)
    line = re.sub(r"(MainProcess) +\S+ +(\d+ +\d+)$", r"\1 N \2", line)
    return [re.sub(r"^\d{3,}$", "PID", word) for word in line.split()]


def test_the_page_has_commands_and_pictures() -> None:
    """There are commands of both verbs, and each picture is a file that is made by the program that is named."""
    verbs = {command.split()[1] for command, _ in COMMANDS}
    assert verbs == {"top", "tail"}
    pictures = [image["uri"] for image in DOCTREE.findall(nodes.image)]
    assert sorted(pictures) == ["tail.svg", "top.svg"]
    maker = (PAGE.parent / "screens.py").read_text()
    for picture in pictures:
        assert (PAGE.parent / picture).read_text().startswith("<svg")
        assert picture in maker
