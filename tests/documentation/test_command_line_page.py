"""The page about the command line is true: its snippets are run by a real shell, and print what it says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import docutils.core
import pytest
from commands import shell
from docutils import nodes

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[2] / "docs" / "command-line.rst"

DOCUMENT = docutils.core.publish_doctree(
    PAGE.read_text(encoding="utf-8"),
    settings_overrides={"report_level": 1, "halt_level": 1, "syntax_highlight": "none"},
)
BLOCKS = [block for block in DOCUMENT.findall(nodes.literal_block) if "console" in block["classes"]]


def commands_of(block: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a snippet, and the lines that each prints."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            commands[-1][1].append(line)
    return commands


def matches(pattern: str, line: str) -> bool:
    """Return whether a line is as on the page; ``...`` there stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), line) is not None


@pytest.mark.parametrize("block", [block.astext() for block in BLOCKS], ids=lambda block: block.split("\n")[0][:40])
def test_snippets_print_what_the_page_says(tmp_path: Path, block: str) -> None:
    """The commands of a snippet, run in one shell one after the other, print what the page says."""
    if " file @" in block and shutil.which("file") is None:
        block = block.replace("-- file @", "-- echo @: ")
    (tmp_path / "Makefile").write_text("all: one two\n%:\n\t@mplog log info $@\n.PHONY: all\n")
    commands = commands_of(block)
    for command, shown in commands:
        if command.startswith("cat ") and command.endswith((".sh", ".py", ".toml")):
            # What the page shows of a program is the program.
            program = tmp_path / command.split()[1]
            program.write_text("\n".join(shown) + "\n")
            program.chmod(0o755)
    # On a terminal, standard error is on the screen, too.
    done = shell("\n".join(["exec 2>&1", *(f"{command}\necho END-OF-COMMAND" for command, _ in commands)]), tmp_path)
    *printed, rest = done.stdout.split("END-OF-COMMAND\n")
    assert (len(printed), rest) == (len(commands), "")
    for (command, expected), found in zip(commands, printed):
        lines = found.splitlines()
        assert len(lines) == len(expected), (command, lines)
        assert all(map(matches, expected, lines)), (command, lines)


def test_every_verb_is_on_the_page() -> None:
    """Each of run, serve, log and demo is shown in a snippet."""
    text = "\n".join(block.astext() for block in BLOCKS)
    assert {verb for verb in ("run", "serve", "log", "demo") if f"mplog {verb} " in text} == {
        "run",
        "serve",
        "log",
        "demo",
    }
    assert len(BLOCKS) >= 8
