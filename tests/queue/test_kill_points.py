"""Points at which a process can be made to kill itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

import mplog
from mplog.queue import kill_points as faults

PROGRAM = """
from mplog.queue import kill_points as faults
for number in range(1, 4):
    faults.reach("after read")
    faults.reach("before read")
    print(number, flush=True)
"""


def run(point: str) -> subprocess.CompletedProcess[str]:
    """Run a program that reaches two points three times, in this environment."""
    environment = {**jobs.environment(), faults.VARIABLE: point}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.processes
@pytest.mark.parametrize(
    "point, printed", [("after read", ""), ("after read:1", ""), ("before read:2", "1\n"), ("after read:3", "1\n2\n")]
)
def test_an_armed_point_kills_the_process_when_it_is_reached(point: str, printed: str) -> None:
    """The environment variable names the point, and which time; no other point and no other time kills."""
    done = run(point)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, printed)


@pytest.mark.processes
@pytest.mark.parametrize("point", ["", "after read:4", "in state"])
def test_what_is_not_reached_does_nothing(point: str) -> None:
    """A program in which the armed point is not reached, or not so often, runs to its end."""
    done = run(point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n2\n3\n", "")


@pytest.mark.parametrize(
    "point", ["after reading", "after read:x", "after read:", ":2", "after read:0", "after read:²"]
)
def test_a_name_that_is_no_point_is_an_error(point: str) -> None:
    """A misspelt point is an error."""
    with pytest.raises(ValueError, match="is not a kill point"):
        faults.arm(point)


def test_a_point_can_be_disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """arm("") takes back what was armed."""
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: kills.append(arguments))
    faults.arm("after read")
    faults.reach("after read")
    assert kills == [(os.getpid(), signal.SIGKILL)]
    faults.arm("after read")
    faults.arm("")
    faults.reach("after read")
    assert len(kills) == 1


def test_the_list_of_points_is_complete() -> None:
    """Every point that the code reaches is in the list, and the other way round."""
    reached = set()
    for path in Path(mplog.__file__).parent.rglob("*.py"):
        if path.stem != "kill_points":
            reached |= set(re.findall(r'\breach\("([^"]*)"\)', path.read_text()))
    assert reached == set(faults.POINTS)
