"""Control groups whose processes have little memory together, of either version (cgroups(7))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import wait_until


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make one, whose processes have so many bytes together; skip the test where that is not possible."""
    try:
        group = _make(limit)
    except OSError as error:
        pytest.skip(f"no control group with a limit on memory can be made here: {error}")
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "all processes of the group have ended")
        group.rmdir()


def _make(limit: int) -> Path:
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    first = paths.get("memory")
    parent = Path("/sys/fs/cgroup/memory" + first if first else "/sys/fs/cgroup" + paths.get("", "/"))
    group = parent / f"mplog-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    except OSError:
        group.rmdir()
        raise
    return group
