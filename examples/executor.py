"""A ProcessPoolExecutor: the standard library's, with an initializer of your own; and mplog's, with any functions.

python examples/executor.py [LOG]
"""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import sys
from pathlib import Path

import mplog

logger = logging.getLogger("sums")


def set_up(greeting: str) -> None:
    """Runs in a worker, before its first task."""
    logger.info("%s from %s", greeting, multiprocessing.current_process().name)


def add(a: int, b: int) -> int:
    """Runs in a worker."""
    logger.info("adding %d and %d", a, b)
    return a + b


def main() -> None:
    """Run some tasks on either executor, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "executor.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO") as server:
        # The standard library's: your own initializer runs after the server's.
        initializer = server.initializer.then(set_up, "good morning")
        with concurrent.futures.ProcessPoolExecutor(2, initializer=initializer) as executor:
            print(list(executor.map(add, range(5), range(5))))

        # mplog's has the same signature, and also takes lambdas and closures in fresh processes.
        offset = 100
        spawn = multiprocessing.get_context("spawn")
        with mplog.ProcessPoolExecutor(2, spawn, set_up, ("good evening",), server=server) as executor:
            print(list(executor.map(lambda n: add(n, offset), range(5))))
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
