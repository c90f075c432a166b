"""pytest-xdist: what the tests of a run log in its workers, one of which dies."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from scripts import environment, run
from test_examples import EXAMPLES, read

pytestmark = pytest.mark.processes

#: Beside the tests of the example, some of which one kills its worker.
DEADLY = '''
import logging, os, signal
import pytest

@pytest.mark.parametrize("n", range(10))
def test_that_may_die(n):
    """It dies in the middle."""
    logging.getLogger("deadly").info("run %d of %d", n, os.getpid())
    if n == 5:
        os.kill(os.getpid(), signal.SIGKILL)
'''


def test_run_with_a_worker_that_dies(tmp_path: Path) -> None:
    """Each test's record is there once, under its worker's name, those of a worker that was killed, too."""
    shutil.copytree(EXAMPLES / "pytest_xdist", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "test_deadly.py").write_text(DEADLY)
    done = run(
        ["-m", "pytest", "-n", "2", "-p", "xdist.plugin", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env=environment(PYTEST_ADDOPTS=None, PYTEST_XDIST_WORKER=None, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        timeout=100,
    )
    assert "1 failed, 19 passed" in done.stdout, done.stdout
    assert done.stderr == ""
    lines = read(tmp_path / "tests.log")
    tests: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in lines:
        if line["logger"] in ("sums", "deadly"):
            tests[line["logger"]].append((line["process"], line["text"]))
    assert sorted(text for _, text in tests["sums"]) == sorted(f"adding up to {n}" for n in range(10))
    assert sorted(int(text.split()[1]) for _, text in tests["deadly"]) == list(range(10))
    pids: dict[str, set[str]] = defaultdict(set)
    for worker, text in tests["deadly"]:
        pids[worker].add(text.split()[-1])
    assert all(re.fullmatch(r"gw\d", worker) and len(found) == 1 for worker, found in pids.items())
    assert set(pids) <= {"gw0", "gw1", "gw2"}
    deaths = [line["text"] for line in lines if line["process"] == "mplog"]
    assert len(deaths) == 1
    assert re.match(r"mplog: gw[01] \(pid \d+\) was killed by SIGKILL", deaths[0])
