"""The logging of the site. Not in the settings, so that gunicorn's master need not load those."""

import os
from pathlib import Path
from typing import Any

import mplog

SITE = Path(__file__).parents[1]
LOG = str(SITE / "shop.log")

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(processName)s %(levelname)s %(request_id)s %(name)s | %(message)s"},
    },
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": LOG, "formatter": "line"},
    },
    "root": {"handlers": ["file"], "level": "INFO"},
}


def start_logging() -> None:
    """Join the log of the program that has started this process, or of the site that runs; else start it."""
    if "MPLOG_QUEUE" not in os.environ:
        try:
            mplog.LogServer(config=LOGGING, fields={"request_id": "-"}).start()
        except mplog.LogFileLockedError:
            os.environ["MPLOG_QUEUE"] = LOG
    mplog.attach()
