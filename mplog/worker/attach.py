"""`attach`: a process that was started by other means joins a running server."""

from __future__ import annotations

import logging
import os

from mplog.errors import QueueNotFoundError
from mplog.queue.log_queue import LogQueue
from mplog.worker.initializer import install
from mplog.worker.queue_handler import QueueHandler
from mplog.worker.state import LoggingState

#: The environment variable that names the directory of a running server's queue.
MPLOG_QUEUE = "MPLOG_QUEUE"


def queue_directory(where: str) -> str:
    """Return the directory of the queue that `where` names, itself or by its log; raises QueueNotFoundError."""
    if not os.path.isfile(where):
        return where
    from mplog.monitoring.find_servers import find_writer  # few programs need it

    return find_writer(where)


def attach(directory: str | os.PathLike[str] | None = None, *, level: int | str | None = None) -> QueueHandler:
    """Send the records of this process to a running server. For processes that were started by other means.

    Args:
        directory: the directory of the server's queue (``server.queue.directory``), or the path of the log that the
            server writes; a log is found among the servers of this user with the same ``TMPDIR``. None (the default)
            takes it from the environment variable ``MPLOG_QUEUE``, which a running server sets for the processes that
            its program starts.
        level: the root logger's level; None (the default) takes all levels from the program of the server, as they
            were when the server started.

    Returns:
        The handler, now the only one of the root logger.

    Raises:
        QueueNotFoundError: there is no such server, its levels cannot be read, or neither `directory` nor
            ``MPLOG_QUEUE`` is given.
    """
    where = os.fspath(directory) if directory is not None else os.environ.get(MPLOG_QUEUE)
    if not where:
        raise QueueNotFoundError(
            f"attach() does not know which server to use: the environment variable {MPLOG_QUEUE} is not set, as it is "
            "in processes that a program with a running LogServer starts. Start one, or pass server.queue.directory or "
            "the path of its log."
        )
    where = queue_directory(where)
    queue = LogQueue.open(where)
    try:
        state = LoggingState.load(where)
    except (OSError, ValueError) as error:
        raise QueueNotFoundError(
            f"the levels of the server with the queue {where!r} cannot be read: {error}. Either no server has started "
            "with this queue yet, or another program has removed the file. In general it is there again within a "
            "second; if not, restart the server."
        ) from None
    queue.details, queue.overflow, queue.sync = state.details, state.overflow, state.sync
    handler = install(queue, state, state.layout)
    if level is not None:
        logging.getLogger().setLevel(level)
    return handler
