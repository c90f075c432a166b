"""The pages of the documentation: their blocks of code, read as they stand, whatever else Sphinx makes of a page."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^\.\. code-block:: (?P<language>\w+)\n\n(?P<text>(?:(?: {4}.*)?\n)+)", re.MULTILINE)


def read_blocks(path: Path) -> dict[str, tuple[str, str]]:
    """Return the blocks of code of a page by their first line: the language, and the text."""
    blocks: dict[str, tuple[str, str]] = {}
    text = path.read_text(encoding="utf-8") + "\n"
    found = list(_BLOCK.finditer(text))
    assert len(found) == text.count(".. code-block::"), f"{path} has a block that is not read"
    for match in found:
        block = textwrap.dedent(match["text"]).strip("\n")
        first = block.splitlines()[0]
        assert first not in blocks, f"two blocks of {path} begin with {first!r}"
        blocks[first] = match["language"], block
    return blocks


def normalized(line: str) -> str:
    """Return a line of a log without what differs from run to run: the time, which worker, and how it was started."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line)
    line = re.sub(r"\b(?:Fork|Spawn|ForkServer)?(PoolWorker|Process|Worker)-\d+\b", r"\1", line)
    return re.sub(r"^([A-Z]+) +", r"\1 ", line).replace("__mp_main__", "__main__")


def counted(text: str) -> Counter[str]:
    """Return how often each line is there, normalized, in whatever order."""
    return Counter(normalized(line) for line in text.splitlines())


def run_program(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a directory, to its end; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done
