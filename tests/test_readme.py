"""The README is true: every block of code in it runs, and writes what it says."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes

import mplog

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.rst").read_text(encoding="utf-8")

#: What the README says that its recipes go without: names that they use, and do not define.
GIVEN = """
import concurrent.futures, logging, logging.handlers, multiprocessing, subprocess, sys
import multiprocess
import mplog

tasks = [1, 2]

def work(task):
    logging.getLogger("work").info("working on %s", task)

def connect(url):
    logging.getLogger("connect").info("connected to %s", url)
"""

#: How often a line must be there: at least once. A Pool may end before all of its workers have begun.
SOME = 0

#: The recipes by their first line: what each writes, by file, the lines as `normalized` makes them and how often.
RECIPES: dict[str, dict[str, dict[str, int]]] = {
    "with multiprocessing.Pool(4, initializer=server.initializer) as pool:": {
        "app.log": {
            "INFO PoolWorker work | working on 1": 1,
            "INFO PoolWorker work | working on 2": 2,
            "INFO PoolWorker work | working on 3": 1,
            "INFO PoolWorker work | working on 4": 1,
            "INFO PoolWorker work | working on 6": 1,
        }
    },
    "with concurrent.futures.ProcessPoolExecutor(4, initializer=server.initializer) as executor:": {
        "app.log": {
            "INFO Process work | working on 1": 1,
            "INFO Process work | working on 2": 2,
            "INFO Process work | working on 4": 1,
        }
    },
    "class Worker(mplog.Process):": {
        "app.log": {"INFO Process work | working on from a target": 1, "INFO Worker work | working on from run()": 1}
    },
    'with multiprocessing.Pool(4, initializer=server.initializer.then(connect, "db://example")) as pool:': {
        "app.log": {
            "INFO PoolWorker connect | connected to db://example": SOME,
            "INFO PoolWorker work | working on 1": 1,
            "INFO PoolWorker work | working on 2": 1,
        }
    },
    "with mplog.LogServer(": {
        "all.log": {
            "DEBUG MainProcess root | one file has it": 1,
            "WARNING MainProcess root | the console has it, too": 1,
            "ERROR MainProcess root | and so have all three": 1,
        },
        "errors.log": {"MainProcess and so have all three": 1},
        "stderr": {"WARNING: the console has it, too": 1, "ERROR: and so have all three": 1},
    },
    "def rotating():": {
        "rotating.log": {"INFO MainProcess root | there is one process that rotates, so nobody is in its way": 1}
    },
    'format = logging.Formatter("%(processName)s [%(job)s] %(message)s", defaults={"job": "-"})': {
        "app.log": {"MainProcess [nightly] started": 1, "MainProcess [-] no job at all": 1}
    },
    'lines = mplog.JSONFormatter({"level": "levelname", "message": "message"})     # or all the usual ones: ()': {
        "trades.jsonl": {'{"level":"INFO","message":"trade","symbol":"X","qty":3}': 1}
    },
    'with mplog.LogServer("app.log"):': {"app.log": {"WARNING MainProcess root | from a program of its own": 2}},
    "# notebook": {
        "notebook.log": {f"INFO PoolWorker root | cubing {n}": 1 for n in range(3)},
        "stdout": {"[0, 1, 8]": 1, "": 1} | {f"INFO PoolWorker root | cubing {n}": 1 for n in range(3)},
    },
}

#: Blocks that are part of another one's run: the first line, and the test or the recipe.
PARTS = {
    "# square.py": "test_program_writes_what_is_shown",
    "$ python square.py": "test_program_writes_what_is_shown",
    "# job.py": 'with mplog.LogServer("app.log"):',
    "$ python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python examples/stdlib_survey.py": "test_commands",
    "$ python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest -n auto": "test_commands",
}


def parse(text: str) -> nodes.document:
    """Return a document; anything that docutils has to say about it is an error."""
    settings = {"report_level": 1, "halt_level": 1, "syntax_highlight": "none"}
    return docutils.core.publish_doctree(text, settings_overrides=settings)


def read_blocks() -> dict[str, tuple[str, str]]:
    """Return the literal blocks of the README by their first line: the language, and the text."""
    blocks = {}
    for block in parse(TEXT).findall(nodes.literal_block):
        text = block.astext()
        language = " ".join(name for name in block["classes"] if name != "code")
        first = text.splitlines()[0]
        assert first not in blocks, f"two blocks begin with {first!r}"
        blocks[first] = language, text
    return blocks


BLOCKS = read_blocks()


def normalized(line: str) -> str:
    """Return a line of a log without what differs from run to run: the time, which worker, and how it was started."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line)
    line = re.sub(r"\b(?:Fork|Spawn|ForkServer)?(PoolWorker|Process|Worker)-\d+\b", r"\1", line)
    return re.sub(r"^([A-Z]+) +", r"\1 ", line).replace("__mp_main__", "__main__")


def counted(text: str) -> Counter[str]:
    """Return how often each line is there, normalized, in whatever order."""
    return Counter(normalized(line) for line in text.splitlines())


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
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


def complete(recipe: str) -> str:
    """Return a recipe as the script that it is meant to be part of: definitions first, the rest under a main guard."""
    tree = ast.parse(recipe)
    is_definition = {
        node: isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)) for node in tree.body
    }
    definitions = [ast.unparse(node) for node, is_first in is_definition.items() if is_first]
    rest = "\n".join(ast.unparse(node) for node, is_first in is_definition.items() if not is_first)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "server"]
    if names and all(isinstance(node.ctx, ast.Load) for node in names):
        rest = 'with mplog.LogServer("app.log", level="INFO") as server:\n' + textwrap.indent(rest, "    ")
    return "\n".join([GIVEN, *definitions, 'if __name__ == "__main__":', textwrap.indent(rest, "    "), ""])


def test_every_block_is_run() -> None:
    """No block of the README is without a test, and none that is tested is missing; only drawings are not run."""
    code = {first for first, (language, _) in BLOCKS.items() if language != "text"}
    assert code == RECIPES.keys() | PARTS.keys()
    for first, where in PARTS.items():
        assert where in RECIPES or where in globals(), f"{first!r} has no test {where}"
    assert {language for language, _ in BLOCKS.values()} == {"python", "console", "text"}


def test_program_writes_what_is_shown(tmp_path: Path) -> None:
    """The first program prints and logs what the README shows, but for times, and which worker did what."""
    (tmp_path / "square.py").write_text(BLOCKS["# square.py"][1], encoding="utf-8")
    done = run(tmp_path, "square.py")
    log = (tmp_path / "app.log").read_text(encoding="utf-8")
    printed, _, logged = BLOCKS["$ python square.py"][1].partition("\n$ cat app.log\n")
    assert printed == f"$ python square.py\n{done.stdout}".rstrip()
    assert counted(log) == counted(logged)
    assert done.stderr == ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, tmp_path: Path) -> None:
    """A recipe, in the script that it is part of, writes the lines that it is about, and nothing else anywhere."""
    for part, where in PARTS.items():
        if where == recipe:
            (tmp_path / part.removeprefix("# ")).write_text(BLOCKS[part][1], encoding="utf-8")
    there = set(os.listdir(tmp_path))
    if recipe == "# notebook":
        done = run(tmp_path, "-c", BLOCKS[recipe][1])  # as there, no other process can import its functions
    else:
        (tmp_path / "recipe.py").write_text(complete(BLOCKS[recipe][1]), encoding="utf-8")
        there |= {"recipe.py"}
        done = run(tmp_path, "recipe.py")
    written = {name: (tmp_path / name).read_text(encoding="utf-8") for name in set(os.listdir(tmp_path)) - there}
    written |= {name: text for name, text in (("stdout", done.stdout), ("stderr", done.stderr)) if text}
    assert written.keys() == RECIPES[recipe].keys(), written
    for name, expected in RECIPES[recipe].items():
        lines = counted(written[name])
        assert lines == {line: count or lines[line] or 1 for line, count in expected.items()}


def test_commands() -> None:
    """The commands for a fresh machine name what there is, and the tests are run as .ci/run runs them."""
    commands = [part for first in PARTS if first.startswith("$ python3 -m venv") for part in first.split(" && ")]
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
            assert re.search(rf"^ *{re.escape(command)} ", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
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
    assert {"LogServer", "LoggingProcessDiedError"} <= names
    assert names <= set(mplog.__all__)


def test_first_version_is_in_the_changelog() -> None:
    """The changelog has an entry for the version that is packaged."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"\n{setup['metadata']['version']} " in (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
