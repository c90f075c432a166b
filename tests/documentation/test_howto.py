"""The how-to pages are true: each recipe on them runs, in the program that it is part of, and writes what it says."""

from __future__ import annotations

import ast
import os
import textwrap
from pathlib import Path

import pytest
from pages import DOCS, counted, read_blocks, run_program
from scripts import run_script

pytestmark = pytest.mark.processes

#: What recipes go without: names that they use, and do not define; docs/workers.rst says so.
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
    'sink = mplog.FileSink("app.log", rotate="100 MB or midnight", keep="14 days and 2 GB", compress="gz")': {
        "app.log": {"INFO MainProcess root | in one file, whichever that is at this moment": 1}
    },
    'policy = mplog.Overflow.drop_below("WARNING", at=0.8)   # or "drop_newest", "drop_oldest", "fallback", "block"': {
        "app.log": {"CRITICAL MainProcess root | on disk": 1}
    },
    "config = {": {
        "all.log": {"INFO app: only in all.log": 1, "DEBUG app: now this, too": 1},
        "sql.log": {"DEBUG app.db: only in sql.log": 1},
    },
    'logging.basicConfig(filename="basic.log", level="INFO", format="%(message)s")': {
        "basic.log": {"working on 1": 1, "working on 2": 1}
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
    'safe = mplog.FileSink("safe.log", format="%(levelname)s %(message)s", escape=True)': {
        "safe.log": {r"INFO user eve\nINFO user root \x1b[2J": 1},
        "stdout": {"INFO user eve": 1, "INFO user root \x1b[2J": 1},
    },
    'with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):': {
        "app.log": {"INFO PoolWorker work | working on 1": 1, "INFO PoolWorker work | working on 2": 1}
    },
    'logging.getLogger("shop").debug("not written")': {"app.log": {"DEBUG MainProcess shop | written": 1}},
    'work("something")': {
        "app.log": {"INFO MainProcess work | working on something": 1},
        "stdout": {"1 0 [(20, 1)]": 1},
    },
    'with mplog.LogServer("app.log"):': {"app.log": {"WARNING MainProcess root | from a program of its own": 2}},
    "# notebook": {
        "notebook.log": {f"INFO PoolWorker root | cubing {n}": 1 for n in range(3)},
        "stdout": {"[0, 1, 8]": 1, "": 1} | {f"INFO PoolWorker root | cubing {n}": 1 for n in range(3)},
    },
}

#: Blocks that are part of a recipe's run, by their first line: the recipe. Those in ``text`` say what all go without.
PARTS = {"# job.py": 'with mplog.LogServer("app.log"):'}

#: The pages with recipes.
PAGES = ["configuration.rst", "files.rst", "formats.rst", "services.rst", "workers.rst"]
#: Programs on them that stand alone, and the tests that run them.
PROGRAMS = {
    "# metrics.py": "test_metrics_for_prometheus",
    "# listener.py": "test_program_with_a_listener",
    "# manage_jobs.py": "test_program_under_django",
    "# logging.toml": "test_program_with_sinks",
    "# alerts.py": "test_program_with_sinks",
    "# shop.py": "test_program_with_sinks",
}

BLOCKS = {first: block for page in PAGES for first, block in read_blocks(DOCS / page).items()}


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


def test_every_recipe_is_run() -> None:
    """No program of these pages is without a test, and none that is tested is missing."""
    code = {first for first, (language, _) in BLOCKS.items() if language != "text"}
    assert code == RECIPES.keys() | PARTS.keys() | PROGRAMS.keys()
    assert set(PROGRAMS.values()) <= globals().keys()


def test_what_recipes_go_without_is_said() -> None:
    """The page on workers shows what the recipes are part of, and says what the names in them are."""
    shown = BLOCKS["import concurrent.futures, logging, multiprocessing, subprocess, sys"][1]
    given = ast.parse(GIVEN).body
    names = {alias.name for node in given if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in names if name not in shown} == {"logging.handlers"}
    assert {node.name for node in given if isinstance(node, ast.FunctionDef) and node.name in shown} == {"work"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, tmp_path: Path) -> None:
    """A recipe, in the script that it is part of, writes the lines that it is about, and nothing else anywhere."""
    for part, where in PARTS.items():
        if where == recipe:
            (tmp_path / part.removeprefix("# ")).write_text(BLOCKS[part][1], encoding="utf-8")
    there = set(os.listdir(tmp_path))
    if recipe == "# notebook":
        done = run_program(tmp_path, "-c", BLOCKS[recipe][1])  # as there, no other process can import its functions
    else:
        (tmp_path / "recipe.py").write_text(complete(BLOCKS[recipe][1]), encoding="utf-8")
        there |= {"recipe.py"}
        done = run_program(tmp_path, "recipe.py")
    written = {name: (tmp_path / name).read_text(encoding="utf-8") for name in set(os.listdir(tmp_path)) - there}
    written |= {name: text for name, text in (("stdout", done.stdout), ("stderr", done.stderr)) if text}
    assert written.keys() == RECIPES[recipe].keys(), written
    for name, expected in RECIPES[recipe].items():
        lines = counted(written[name])
        assert lines == {line: count or lines[line] or 1 for line, count in expected.items()}


# --- programs that stand alone ---


def test_metrics_for_prometheus(tmp_path: Path) -> None:
    """The collector shows that the server runs."""
    (tmp_path / "metrics.py").write_text(BLOCKS["# metrics.py"][1], encoding="utf-8")
    assert "\nmplog_up 1.0\n" in run_program(tmp_path, "metrics.py").stdout


def test_program_with_a_listener(tmp_path: Path) -> None:
    """The record is in the file of the listener."""
    done = run_script(tmp_path, BLOCKS["# listener.py"][1])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "app.log").read_text() == "written by a thread\n"


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_program_under_django(tmp_path: Path, start_method: str) -> None:
    """The workers' records are in the files of the settings, once, and no worker has set up logging itself."""
    (tmp_path / "web_settings.py").write_text(
        """SECRET_KEY, LOGGING_CONFIG = "x", None
LOGGING = {
    "version": 1,
    "formatters": {"text": {"format": "%(name)s %(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "shop.log", "formatter": "text", "mode": "w"}},
    "root": {"handlers": ["file"], "level": "INFO"},
}
"""
    )
    set_method = f"import multiprocessing; multiprocessing.set_start_method({start_method!r}, force=True)"
    done = run_script(tmp_path, f"{set_method}\n{BLOCKS['# manage_jobs.py'][1]}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted((tmp_path / "shop.log").read_text().splitlines()) == [f"shop job {number}" for number in range(3)]


def test_program_with_sinks(tmp_path: Path) -> None:
    """What the workers log is in the files of the sinks, and with the function, as the page says."""
    for name in ("logging.toml", "alerts.py", "shop.py"):
        (tmp_path / name).write_text(BLOCKS[f"# {name}"][1], encoding="utf-8")
    done = run_program(tmp_path, "shop.py")
    assert (done.stdout, done.stderr) == ("", "")
    failed = "CRITICAL shop: job 2 failed\n"
    assert (tmp_path / "all.log").read_text() == (tmp_path / "alerts.txt").read_text() == failed
    assert (tmp_path / "errors.jsonl").read_text() == '{"level":"CRITICAL","message":"job 2 failed","job":2}\n'
    for number in range(3):
        assert (tmp_path / f"job-{number}.log").read_text() == f"INFO shop.jobs: job {number}\n"
