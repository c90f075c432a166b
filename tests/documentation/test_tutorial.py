"""The tutorial is true: its programs, saved and run in the order in which it says so, write what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, normalized, read_blocks
from scripts import environment

pytestmark = pytest.mark.processes

BLOCKS = read_blocks(DOCS / "tutorial.rst")
#: What is run by hand: it makes an environment and installs.
INSTALL = "$ mkdir tutorial && cd tutorial"


def comparable(line: str) -> str:
    """Return a line without what differs from run to run, also the day and the number of a rotated file."""
    return re.sub(r"\.\d{4}-\d\d-\d\d\.\d{3}\.log", ".DAY.NUMBER.log", normalized(line))


def execute(command: str, directory: Path) -> list[str]:
    """Run a command of the page in a shell, and return the lines of what it prints, on stderr, too."""
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        env=environment(PATH=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_tutorial(tmp_path: Path) -> None:
    """Each command prints the lines that the page shows, in whatever order the workers have; ``...`` is anything."""
    commands = 0
    for first, (language, text) in BLOCKS.items():
        if language == "python":
            (tmp_path / first.removeprefix("# ")).write_text(text + "\n", encoding="utf-8")
        elif first != INSTALL:
            _, *parts = re.split(r"^\$ (.*)\n?", text, flags=re.MULTILINE)
            for command, shown in zip(parts[::2], parts[1::2]):
                commands += 1
                printed = [comparable(line) for line in execute(command, tmp_path)]
                for pattern in map(comparable, shown.splitlines()):
                    match = re.compile(".*".join(map(re.escape, pattern.split("...")))).fullmatch
                    found = next((line for line in printed if match(line)), None)
                    assert found is not None, (command, pattern, printed)
                    printed.remove(found)
                assert printed == [], command
    assert commands == 11


def test_every_program_is_saved_and_run() -> None:
    """The text says under which name each program is saved, and the console after it runs it."""
    text = (DOCS / "tutorial.rst").read_text(encoding="utf-8")
    names = [first.removeprefix("# ") for first, (language, _) in BLOCKS.items() if language == "python"]
    assert len(names) == 5
    for name in names:
        assert f"``{name}``" in text
        assert f"$ python {name}" in BLOCKS
