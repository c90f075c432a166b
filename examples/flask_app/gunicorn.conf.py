"""The settings of gunicorn, which finds this file by its name when it is started in this directory."""

import multiprocessing
from typing import Any

from gunicorn.glogging import Logger
from logs import start_logging

wsgi_app = "app:create_app()"
workers = 2
accesslog = "-"  # on; where it goes says the class below
access_log_format = "%(m)s %(U)s %(s)s request_id=%({x-request-id}o)s"


class logger_class(Logger):  # noqa: N801 (the name of a setting)
    """Leaves the records of gunicorn to the root logger, also after a reload."""

    def setup(self, cfg: Any) -> None:
        """Take the levels of gunicorn, but no handlers."""
        super().setup(cfg)
        for logger in (self.error_log, self.access_log):
            logger.handlers, logger.propagate = [], True


def on_starting(arbiter: Any) -> None:
    """Runs in the master. Its workers find the server, also after a reload."""
    start_logging()


def post_fork(arbiter: Any, worker: Any) -> None:
    """Runs in each worker, and names it in the log."""
    multiprocessing.current_process().name = f"Worker-{worker.age}"
