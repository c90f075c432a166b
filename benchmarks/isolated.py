"""Run a measurement in a fresh interpreter.

The rule of this file: **no measurement sees another one**, since some packages change the stdlib's logging when they
are imported, and one that hangs must not stop the others. A measurement is a function of this package, by name, with
plain data as arguments and result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(function: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
    """Call a function in a new process, in an empty directory, and return its result.

    Args:
        function: as ``"module:name"``, in this package. It also gets the argument ``directory``.
        timeout: in seconds.
        arguments: plain data.

    Returns:
        Its result; or ``{"error": reason}``.
    """
    # So that it finds the package, even if this one was started by its path.
    path = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory:
        result, output = Path(directory, "result.json"), Path(directory, "output")
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.isolated", function, json.dumps(arguments), directory],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "TMPDIR": directory, "PYTHONPATH": os.pathsep.join(filter(None, path))},
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
            # All its children are in its session; those that still run hang.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if result.exists():
            answer: dict[str, Any] = json.loads(result.read_text())
            return answer
        if status is None:
            return {"error": f"had not ended after {timeout:g} seconds"}
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        return {"error": f"ended with status {status}{': ' if last else ''}{''.join(last)[:200]}"}


def _main(function: str, arguments: str, directory: str) -> None:
    """Runs in the new process."""
    files = Path(directory, "files")
    files.mkdir()
    module, _, name = function.partition(":")
    result: dict[str, Any]
    try:
        result = getattr(importlib.import_module(f"benchmarks.{module}"), name)(
            directory=str(files), **json.loads(arguments)
        )
    except Exception as error:
        text = str(error).strip().splitlines()
        result = {"error": f"{type(error).__name__}: {text[0] if text else ''}"[:300]}
    # Complete or missing: this process may be killed at any time.
    incomplete = Path(directory, "result")
    incomplete.write_text(json.dumps(result))
    incomplete.rename(Path(directory, "result.json"))
    # The contender's own work at exit is done by now, or hangs.
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
