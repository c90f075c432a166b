"""The line in the log about a restart."""

from __future__ import annotations

from mplog.monitoring.restart_lines import Restarts, not_noted


def test_many_that_die_before_they_are_ready_are_counted_once() -> None:
    """Each logging process is told of all that died before, and knows which were noted, even if not all are said."""
    stories: list[str] = []
    untold: list[str] = []
    counted = 0
    for pid in range(1, 15):
        stories.append(f"logging process {pid} was killed by SIGKILL")
        new = not_noted(stories, untold)
        counted += len(new)
        new[-1] += f", restarted as {pid + 1}"
        untold = Restarts(untold, new, 0, {}, 0.0).untold
    assert counted == len(stories)
    assert [line.split()[2] for line in untold] == [str(pid) for pid in range(5, 15)]


def test_those_that_are_not_noted_are_new() -> None:
    """What is noted of one restart says nothing of later ones."""
    assert not_noted(["a", "b", "c"], []) == ["a", "b", "c"]
    assert not_noted(["a", "b", "c"], ["x", "a, restarted as 1", "b, restarted as 2"]) == ["c"]
    assert not_noted(["a"], ["a"]) == []
