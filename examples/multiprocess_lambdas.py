"""Lambdas as tasks in freshly spawned processes: the pools of multiprocess, and mplog's for either library.

python examples/multiprocess_lambdas.py [LOG]
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from pathlib import Path

import multiprocess

import mplog


def main() -> None:
    """Run lambdas on three pools, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "multiprocess_lambdas.log")
    log.unlink(missing_ok=True)
    logger = logging.getLogger("lambdas")

    def add(a: int, b: int) -> int:
        logger.info("adding %d and %d", a, b)
        return a + b

    spawn = multiprocess.get_context("spawn")
    with mplog.LogServer(log, level="INFO") as server:
        with spawn.Pool(2, initializer=server.initializer) as pool:
            print(pool.map(lambda n: add(n, 10), range(3)))
        with mplog.Pool(2, context=spawn, server=server) as pool:
            print(pool.map(lambda n: add(n, 20), range(3)))
        with mplog.Pool(2, context=multiprocessing.get_context("spawn"), server=server) as pool:
            print(pool.map(lambda n: add(n, 30), range(3)))
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
