"""The line in the log about a death."""

from __future__ import annotations

import os
import time

import pytest

from mplog.monitoring.death_lines import Death, describe

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="only Linux from 5.3 on can watch processes that are not one's children"
)


AT = time.mktime((2026, 11, 20, 14, 2, 11, 0, 0, -1))


@pytest.mark.parametrize(
    ("exitcode", "memory_kills", "line"),
    [
        (3, 0, "ended with exit code 3 after 1,234 records; the last one at 2026-11-20 14:02:11"),
        (-11, 0, "was killed by SIGSEGV, after 1,234 records; the last one at 2026-11-20 14:02:11"),
        (-40, 0, "was killed by signal 40, after 1,234 records; the last one at 2026-11-20 14:02:11"),
        (-9, None, "was killed by SIGKILL (likely cause: out of memory), after"),
        (-9, 1, "was killed by SIGKILL (likely cause: out of memory; the kernel has killed 1 process for that since "),
        (-9, 2, "was killed by SIGKILL (likely cause: out of memory; the kernel has killed 2 processes for that since"),
        (
            -9,
            0,
            "was killed by SIGKILL (likely by another process; the kernel has killed none for being out of memory)",
        ),
    ],
)
def test_the_line_says_which_process_and_how(exitcode: int, memory_kills: int | None, line: str) -> None:
    """The line has the name, the pid, the signal or exit code, the records and the time, and the cause of SIGKILL."""
    death = Death(711, "ForkPoolWorker-3", exitcode, AT + 5, memory_kills)
    assert describe(death, 1234, AT).startswith(f"mplog: ForkPoolWorker-3 (pid 711) {line}")


@pytest.mark.parametrize(("received", "records"), [(0, "after 0 records"), (1, "after 1 record; the last one at")])
def test_the_line_counts_in_words(received: int, records: str) -> None:
    """No record, and one."""
    assert records in describe(Death(711, "worker", 1, AT), received, AT if received else None)
    assert "last one" not in describe(Death(711, "worker", 1, AT), received, None)


@pytest.mark.parametrize("last", [float("nan"), float("inf"), 1e300, -1e300])
def test_a_time_that_cannot_be_does_no_harm(last: float) -> None:
    """The time of a record comes off the wire, and may be anything."""
    assert "1 record; the last one at" in describe(Death(711, "worker", 1, AT), 1, last)


def test_a_name_cannot_forge_a_line() -> None:
    """A process may call itself anything: it stays within the line, and readable."""
    line = describe(Death(711, "a\nb\x1b[0m\u2028\u202e\udc80é" + 1000 * "x", 1, AT), 1, None)
    assert line.isprintable()
    assert line.startswith(r"mplog: a\nb\x1b[0m\u2028\u202e\udc80éx")
    assert len(line) < 250
