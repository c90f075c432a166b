"""Jupyter: notebooks in a real kernel, whose functions run in processes that cannot import them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from scripts import environment
from test_examples import EXAMPLES, read

pytestmark = pytest.mark.processes


def run_notebook(cells: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the cells in a kernel, to their end; return what they printed."""
    for name, value in environment(HOME=str(directory), JUPYTER_RUNTIME_DIR=str(directory / "runtime")).items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own, about its paths and event loops
        nbclient = pytest.importorskip("nbclient")
        nbformat = pytest.importorskip("nbformat")
        pytest.importorskip("ipykernel")
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        client = nbclient.NotebookClient(
            notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
        )
        client.execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.outputs]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    return "".join(output.get("text", "") for output in outputs)


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's cells run in a kernel, and show the log."""
    _, *cells = (EXAMPLES / "notebook.py").read_text(encoding="utf-8").split("# %%\n")
    assert len(cells) == 3
    printed = run_notebook(cells, tmp_path, monkeypatch)
    lines = read(tmp_path / "notebook.log")
    assert printed.splitlines() == ["[0, 1, 8, 27, 64]", *(line[0] for line in lines)]
    assert sorted(line["text"] for line in lines) == [f"cubing {n}" for n in range(5)]
    assert all(line["process"].startswith("SpawnPoolWorker-") for line in lines)


CELLS = [
    """
import logging, multiprocessing, warnings
import mplog
# From Python 3.12 on, Python warns of a fork in a process with threads, as a kernel is.
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
server = mplog.LogServer("app.log", level="INFO").start()
logger = logging.getLogger("cells")
""",
    """
def work(task):
    for step in range(5):
        logger.info("task %d step %d", task, step)
    return task
""",
    """
context = multiprocessing.get_context("{start_method}")
with mplog.Pool(2, context=context, server=server, maxtasksperchild=2) as pool:
    print(pool.map(work, range(8), chunksize=1))
""",
    # The cell is run again, with another function of the same name.
    """
def work(task):
    logger.info("again %d", task)
    return -task

with mplog.Pool(2, context=context, server=server) as pool:
    print(pool.map(work, range(4), chunksize=1))
logger.info("in the kernel")
server.stop()
None
""",
]


def test_functions_of_cells(start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under each start method, each record is there once and in order, those of workers that were replaced, too."""
    cells = [cell.replace("{start_method}", start_method).strip() for cell in CELLS]
    printed = run_notebook(cells, tmp_path, monkeypatch)
    assert printed.splitlines() == [str(list(range(8))), str([-n for n in range(4)])]
    lines = read(tmp_path / "app.log")
    steps = [line["text"] for line in lines if line["text"].startswith("task")]
    assert sorted(steps) == sorted(f"task {task} step {step}" for task in range(8) for step in range(5))
    for task in range(8):
        of_task = [line for line in lines if re.match(rf"task {task} ", line["text"])]
        assert [line["text"] for line in of_task] == [f"task {task} step {step}" for step in range(5)]
        assert len({line["process"] for line in of_task}) == 1
    assert sorted(line["text"] for line in lines if line["text"].startswith("again")) == [
        f"again {n}" for n in range(4)
    ]
    assert (lines[-1]["process"], lines[-1]["text"]) == ("MainProcess", "in the kernel")
