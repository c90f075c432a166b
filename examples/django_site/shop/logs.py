"""The logging of the site. Not in the settings, so that gunicorn's master need not load those."""

import os
from pathlib import Path
from typing import Any

import mplog

SITE = Path(__file__).parents[1]
#: Says which queue leads into the log, to commands that are run beside the site.
QUEUE = SITE / "shop.queue"

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(processName)s %(levelname)s %(request_id)s %(name)s | %(message)s"},
    },
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": str(SITE / "shop.log"), "formatter": "line"},
    },
    "root": {"handlers": ["file"], "level": "INFO"},
}


def start_logging() -> None:
    """Join the log of the program that has started this process, or of the site that runs; else start it."""
    if "MPLOG_QUEUE" not in os.environ:
        try:
            server = mplog.LogServer(config=LOGGING, fields={"request_id": "-"}).start()
            QUEUE.write_text(server.queue.directory)
        except mplog.LogFileLockedError:
            os.environ["MPLOG_QUEUE"] = QUEUE.read_text()
    mplog.attach()
