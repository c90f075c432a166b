"""Single processes: mplog's Process, with a target or a run() of its own; and the standard library's.

python examples/process.py [LOG]
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import mplog

logger = logging.getLogger("kitchen")


def cook(dish: str) -> None:
    """Runs in a worker."""
    logger.info("cooking %s", dish)


class Waiter(mplog.Process):
    """A process of its own class."""

    def run(self) -> None:
        """Runs in the worker, and kills it; its records are in the log."""
        logger.warning("dropping the soup")
        os._exit(1)


def cook_alone(log_to_server: Callable[[], None], dish: str) -> None:
    """Runs in a worker of the standard library, which must call the initializer itself."""
    log_to_server()
    cook(dish)


def main() -> None:
    """Run three processes, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "process.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO") as server:
        processes = [
            mplog.Process(target=cook, args=("soup",), name="Cook", server=server),
            Waiter(name="Waiter", server=server),
            multiprocessing.Process(target=cook_alone, args=(server.initializer, "pudding"), name="Confectioner"),
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            print(f"{process.name} ended with exit code {process.exitcode}")
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
