"""The work of the pool of processes."""

import logging


def price(item: str) -> int:
    """Runs in a process of the pool."""
    logging.getLogger("shop.work").info("pricing %s", item)
    return len(item)
