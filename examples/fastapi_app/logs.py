"""The logging of the application."""

import logging
import os

import mplog

FORMAT = "%(asctime)s %(processName)s %(levelname)s %(request_id)s %(name)s | %(message)s"


def handler() -> logging.Handler:
    """Join the log of the program that has started this process; the first one starts it."""
    if "MPLOG_QUEUE" not in os.environ:
        mplog.LogServer("shop.log", level="INFO", format=FORMAT, fields={"request_id": "-"}).start()
    return mplog.attach()
