"""The commands of mplog, run as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts import environment

MPLOG = [sys.executable, "-m", "mplog"]


def mplog(*arguments: object, directory: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of mplog in `directory`, to the end of all that have inherited its output."""
    changes = options.pop("changes", {})
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(
        [*MPLOG, *map(str, arguments)],
        cwd=directory,
        env=environment(**{"MPLOG_QUEUE": None, "NOTIFY_SOCKET": None, **changes}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def start(*arguments: object, directory: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a command of mplog in `directory`."""
    changes = options.pop("changes", {})
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(
        [*MPLOG, *map(str, arguments)],
        cwd=directory,
        env=environment(**{"MPLOG_QUEUE": None, "NOTIFY_SOCKET": None, **changes}),
        text=True,
        **options,
    )


def shell(script: str, directory: Path, *, name: str = "sh", **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which ``mplog`` and ``python`` are what they are here."""
    binaries = directory / "bin"
    binaries.mkdir(exist_ok=True)
    for command, what in (("mplog", f"{sys.executable} -m mplog"), ("python", sys.executable)):
        (binaries / command).write_text(f'#!/bin/sh\nexec {what} "$@"\n')
        (binaries / command).chmod(0o755)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [name, "-c", script],
        cwd=directory,
        env=environment(**{"MPLOG_QUEUE": None, "NOTIFY_SOCKET": None, "PATH": path, **changes}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def messages(log: Path) -> list[str]:
    """Return the messages of a log in the default format."""
    return [line.split(" | ", 1)[1] for line in log.read_text(encoding="utf-8").splitlines()]
