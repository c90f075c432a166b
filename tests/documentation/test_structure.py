"""The page on structure is true: each program on it runs, in workers of some start method, and writes what it says."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from pages import DOCS, read_blocks
from scripts import run, write_script
from start_methods import START_METHODS


def read_programs() -> dict[str, tuple[str, str]]:
    """Return the programs of the page by their names: the text, and what the console shows after it."""
    blocks = [text for _, text in read_blocks(DOCS / "structure.rst").values()]
    assert len(blocks) % 2 == 0, "each program is followed by what it writes"
    programs = {}
    for program, console in zip(blocks[::2], blocks[1::2]):
        name = program.splitlines()[0].removeprefix("# ")
        assert console.startswith(f"$ python {name}\n")
        programs[name] = program, console
    return programs


PROGRAMS = read_programs()


@pytest.mark.parametrize(("name", "start_method"), list(zip(PROGRAMS, itertools.cycle(START_METHODS))))
def test_programs_write_what_the_page_says(tmp_path: Path, name: str, start_method: str) -> None:
    """Each program writes the lines on the page; ``...`` there stands for anything."""
    program, console = PROGRAMS[name]
    set_method = f"import multiprocessing; multiprocessing.set_start_method({start_method!r}, force=True)"
    write_script(tmp_path, f"{set_method}\n{program}", name)
    done = run([name], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    _, *shown = re.split(r"^\$ cat (.*)\n", console, flags=re.MULTILINE)
    for file, expected in zip(shown[::2], shown[1::2]):
        lines = (tmp_path / file).read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(expected.splitlines()), lines
        for line, pattern in zip(lines, expected.splitlines()):
            assert re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), line), (line, pattern)


def test_the_page_shows_all_of_it() -> None:
    """There is a program for each part."""
    assert list(PROGRAMS) == ["service.py", "jobs.py", "secrets.py", "with_structlog.py", "with_loguru.py"]
