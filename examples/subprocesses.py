"""The subprocess module: a Python program that joins the log, and another one whose output is logged line by line.

python examples/subprocesses.py [LOG]
"""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
from pathlib import Path

import mplog


def job(name: str) -> None:
    """Runs in a program of its own, which finds the server by the environment variable MPLOG_QUEUE."""
    multiprocessing.current_process().name = name  # what the log calls it, in place of MainProcess
    mplog.attach()
    logging.getLogger("job").info("begins")
    logging.getLogger("job").info("done")


def main() -> None:
    """Run the programs, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "subprocesses.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO"):
        programs = [subprocess.Popen([sys.executable, __file__, "--job", name]) for name in ("fetch", "convert")]
        for program in programs:
            program.wait()

        command = ["sh", "-c", "echo one; echo two >&2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as shell:
            for line in shell.stdout or ():
                logging.getLogger("sh").info("%s", line.rstrip("\n"))
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(sys.argv[2])
    else:
        main()
