"""The README is true: every block of code in it runs and writes what it says, and what it links to is there."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes
from pages import DOCS, ROOT, counted, read_blocks, run_program

import mplog

TEXT = (ROOT / "README.rst").read_text(encoding="utf-8")

#: The blocks of code by their first line, and the test that runs each.
TESTS = {
    "# square.py": "test_program_writes_what_is_shown",
    "$ python square.py": "test_program_writes_what_is_shown",
    "$ python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python examples/stdlib_survey.py": "test_commands",
    "$ python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest -n auto": "test_commands",
}


def parse(text: str) -> nodes.document:
    """Return a document; anything that docutils has to say about it is an error."""
    settings = {"report_level": 1, "halt_level": 1, "syntax_highlight": "none"}
    return docutils.core.publish_doctree(text, settings_overrides=settings)


BLOCKS = read_blocks(ROOT / "README.rst")


def test_every_block_is_run() -> None:
    """No block of the README is without a test, and none that is tested is missing."""
    assert BLOCKS.keys() == TESTS.keys()
    assert set(TESTS.values()) <= globals().keys()


@pytest.mark.processes
def test_program_writes_what_is_shown(tmp_path: Path) -> None:
    """The first program prints and logs what the README shows, except times and which worker did what."""
    (tmp_path / "square.py").write_text(BLOCKS["# square.py"][1], encoding="utf-8")
    done = run_program(tmp_path, "square.py")
    log = (tmp_path / "app.log").read_text(encoding="utf-8")
    printed, _, logged = BLOCKS["$ python square.py"][1].partition("\n$ cat app.log\n")
    assert printed == f"$ python square.py\n{done.stdout}".rstrip()
    assert counted(log) == counted(logged)
    assert done.stderr == ""


def test_front_page_of_the_documentation_shows_the_same_program() -> None:
    """The front page has the program of the README, so one test covers both."""
    assert read_blocks(DOCS / "index.rst") == {"# square.py": BLOCKS["# square.py"]}


def test_commands() -> None:
    """The commands for a fresh machine name what there is, and the tests are run as .ci/run runs them."""
    commands = [part for first in TESTS if first.startswith("$ python3 -m venv") for part in first.split(" && ")]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for command in commands:
        program, *arguments = command.removeprefix("$ ").split()
        if program == ".venv/bin/python":
            assert (ROOT / arguments[0]).is_file()
        elif program == ".venv/bin/pip":
            extras = re.findall(r"\[(\w+)\]", command)
            assert all(setup.has_option("options.extras_require", extra) for extra in extras)
        elif program == ".venv/bin/pytest":
            assert re.search(rf"^ *{re.escape(command)}$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
        else:
            assert command == "$ python3 -m venv .venv"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst", "examples/README.rst"])
def test_document_renders(name: str) -> None:
    """docutils has nothing to say about a document, and what it links to is there."""
    path = ROOT / name
    document = parse(path.read_text(encoding="utf-8"))
    targets = [node["refuri"] for node in document.findall(nodes.reference)]
    for target in targets:
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_names_exist() -> None:
    """Every name of mplog that the README uses is public, and those of the errors are right."""
    names = set(re.findall(r"\bmplog\.(\w+)", TEXT)) | set(re.findall(r"\w+Error\b", TEXT))
    assert "LogServer" in names
    assert names <= set(mplog.__all__)


def test_first_version_is_in_the_changelog() -> None:
    """The changelog has an entry for the version that is packaged."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"\n{setup['metadata']['version']} " in (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")


def test_table_of_the_benchmarks_is_the_last_one_made() -> None:
    """What the README shows of the benchmarks is what ``benchmarks.compare`` has written into docs/."""
    made = (ROOT / "docs" / "benchmark-table.rst").read_text(encoding="utf-8")
    intro, _, table = made.strip().partition("\n\n")
    assert table in TEXT
    assert " ".join(intro.split()) in " ".join(TEXT.split())
