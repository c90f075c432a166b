"""How much of the log is left to write. Looking changes nothing and waits for nobody."""

from __future__ import annotations

import contextlib
from typing import Any

from mplog.monitoring.running import RunningServer, Snapshot, find_servers
from mplog.queue.log_queue import LogQueue


class Backlog:
    """What is left of what was logged to a queue, as far as it is known: a plain queue does not tell."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue if isinstance(queue, LogQueue) else None
        self._server: RunningServer | None = None

    def look(self) -> tuple[Snapshot | None, int]:
        """Return how the server is, None where that cannot be told, and how many bytes of records are left.

        Those in the buffers are only known where there is a /proc.
        """
        queue, snapshot, left = self._queue, None, 0
        if queue is not None:
            if self._server is None:
                self._server = next(iter(find_servers([queue.directory]).servers), None)
            if self._server is not None:
                snapshot = self._server.look()
                left = snapshot.waiting
            with contextlib.suppress(Exception):  # the queue is being closed
                left += queue.pending()
        return snapshot, left
