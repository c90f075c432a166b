"""A Manager of multiprocessing or multiprocess: its process logs, too, and so do the workers that use it.

python examples/manager.py [LOG]
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import mplog


class Store:
    """Lives in the process of the manager."""

    def __init__(self) -> None:
        self._stock = {"tea": 2}
        self._lock = threading.Lock()  # the manager has a thread for each process that calls

    def take(self, item: str) -> bool:
        """Runs in the manager's process."""
        with self._lock:
            left = self._stock.get(item, 0)
            logging.getLogger("store").info("%d of %s left", left, item)
            self._stock[item] = left - 1
        return left > 0


class StoreManager(BaseManager):
    """A manager of stores."""


StoreManager.register("Store", Store)


def buy(store: Any) -> bool:
    """Runs in a worker."""
    bought: bool = store.take("tea")
    logging.getLogger("customer").info("bought tea" if bought else "went home")
    return bought


if __name__ == "__main__":
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "manager.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO") as server:
        manager = StoreManager()
        # Not multiprocessing.Manager(), which starts the process without an initializer: SyncManager() is its class.
        manager.start(server.initializer)
        with manager, multiprocessing.Pool(2, initializer=server.initializer) as pool:
            print(pool.map(buy, [manager.Store()] * 3, chunksize=1))  # type: ignore[attr-defined]
    print(log.read_text(encoding="utf-8"), end="")
