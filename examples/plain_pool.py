"""A Pool of the standard library, unchanged: its workers need only the server's initializer.

python examples/plain_pool.py [LOG]
"""

from __future__ import annotations

import logging
import sys
from multiprocessing import Pool
from pathlib import Path

import mplog


def square(n: int) -> int:
    """Runs in a worker."""
    logging.getLogger(__name__).info("squaring %d", n)
    return n * n


if __name__ == "__main__":
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "plain_pool.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO") as server, Pool(4, initializer=server.initializer) as pool:
        print(pool.map(square, range(10)))
    print(log.read_text(encoding="utf-8"), end="")
