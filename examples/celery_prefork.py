"""Celery: a worker with its pool of processes, all of which write into one log, celery.log.

    celery -A celery_prefork worker
    celery -A celery_prefork call celery_prefork.add -a '[1, 2]'

The broker is a directory, which needs no server; replace it with yours.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals
from celery.utils.log import get_multiprocessing_logger, get_task_logger

import mplog

os.makedirs("queue", exist_ok=True)
app = Celery("celery_prefork", broker="filesystem://localhost")
app.conf.broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "queue"}

logger = get_task_logger(__name__)


server = mplog.LogServer("celery.log", level="INFO")


@signals.celeryd_init.connect
def start_server(**_: Any) -> None:
    """Runs in the main process of the worker."""
    server.start()


@signals.setup_logging.connect
@signals.worker_process_init.connect
def log_to_server(**_: Any) -> None:
    """Runs in every process of the worker. Since this handles ``setup_logging``, Celery leaves logging alone."""
    mplog.attach()
    get_multiprocessing_logger().propagate = True  # which says what has killed a process of the pool
    get_multiprocessing_logger().setLevel("ERROR")


@signals.worker_shutdown.connect
def stop_server(**_: Any) -> None:
    """Runs in the main process of the worker, after its pool has ended."""
    server.stop()


@app.task
def add(a: int, b: int) -> int:
    """Runs in a process of the pool."""
    logger.info("adding %d and %d", a, b)
    return a + b
