"""pebble: a pool that kills a worker whose task takes too long, and replaces it; its records are in the log.

python examples/pebble_pool.py [LOG]
"""

from __future__ import annotations

import concurrent.futures
import logging
import sys
import time
from pathlib import Path

from pebble import ProcessPool

import mplog

logger = logging.getLogger("pages")


def fetch(page: str) -> str:
    """Runs in a worker."""
    logger.info("fetching %s", page)
    if page == "endless":
        time.sleep(600)
    return page.upper()


def main() -> None:
    """Run some tasks, one of which is killed, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "pebble_pool.log")
    log.unlink(missing_ok=True)
    with (
        mplog.LogServer(log, level="INFO") as server,
        ProcessPool(max_workers=1, initializer=server.initializer) as pool,
    ):
        futures = {page: pool.schedule(fetch, args=[page], timeout=1) for page in ("first", "endless", "last")}
        for page, future in futures.items():
            try:
                print(future.result())
            except concurrent.futures.TimeoutError:
                logger.error("%s took too long", page)
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
