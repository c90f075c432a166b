"""gunicorn: the arbiter and its workers, with their access and error logs, write into one log, gunicorn.log.

    gunicorn -c gunicorn_workers.py
    gunicorn -c gunicorn_workers.py -k uvicorn_worker.UvicornWorker gunicorn_workers:asgi

The first part belongs in your gunicorn.conf.py; the applications below stand for yours.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable
from typing import Any

import gunicorn.glogging

import mplog

workers = 2
max_requests = 1000
accesslog = "-"  # on; it goes where the logger below sends it
wsgi_app = "gunicorn_workers:wsgi"
pythonpath = os.path.dirname(os.path.abspath(__file__))


class logger_class(gunicorn.glogging.Logger):  # noqa: N801 (the name of a setting)
    """Leaves the records of gunicorn to the root logger, also after a reload."""

    def setup(self, cfg: Any) -> None:
        """Take the level from the configuration, but no handlers."""
        super().setup(cfg)
        for logger in (self.error_log, self.access_log):
            logger.handlers, logger.propagate = [], True


def on_starting(arbiter: Any) -> None:
    """Runs in the arbiter, which keeps the server: a reload reads this file again."""
    arbiter.log_server = mplog.LogServer("gunicorn.log", level="INFO").start()


def post_fork(arbiter: Any, worker: Any) -> None:
    """Runs in each worker."""
    multiprocessing.current_process().name = f"Worker-{worker.age}"
    arbiter.log_server.initializer()
    for name in ("uvicorn.error", "uvicorn.access"):  # of a UvicornWorker, which has turned it off
        logging.getLogger(name).propagate = True


def on_exit(arbiter: Any) -> None:
    """Runs in the arbiter, after the last worker has ended."""
    arbiter.log_server.stop()


# --- the applications ---


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Runs in a worker."""
    logging.getLogger("shop").info("selling %s", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()}\n".encode()]


async def asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Runs in a worker of uvicorn."""
    if scope["type"] == "http":
        logging.getLogger("shop").info("selling %s", scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": f"{os.getpid()}\n".encode()})
