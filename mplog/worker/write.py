"""`write`: bytes that a worker sends into a sink of their own. Nothing looks into them."""

from __future__ import annotations

import os

from mplog.errors import ServerStateError
from mplog.queue.log_queue import LogQueue
from mplog.worker.attach import MPLOG_QUEUE, queue_directory
from mplog.worker.queue_handler import QueueHandler
from mplog.worker.state import all_loggers

#: Queues of programs whose loggers have no QueueHandler, by directory.
_opened: dict[str, LogQueue] = {}


def write(data: bytes | bytearray | memoryview, *, to: str = "", timeout: float | None = None) -> None:
    """Send bytes to a `RawSink` or `WriterSink` of the server that this process logs to.

    They are not formatted, and not ended with a newline. When the call has returned, they are out of the process.

    Args:
        data: of any content and length up to 256 MiB; they arrive in one piece.
        to: the name of the sink.
        timeout: seconds to wait at most while the queue is full; None (the default) waits for ever. The server's
            overflow policy is about records, and drops no bytes.

    Raises:
        queue.Full: no room within `timeout`; nothing was sent.
        ServerStateError: this process logs to no server with a `LogQueue`.
        NoReaderError: the logging process has ended.
        MessageTooLongError: over 256 MiB.
    """
    _queue().write(data, to=to, timeout=timeout)


def _queue() -> LogQueue:
    for logger in all_loggers().values():
        for handler in logger.handlers:
            if isinstance(handler, QueueHandler) and isinstance(handler.queue, LogQueue):
                return handler.queue
    directory = os.environ.get(MPLOG_QUEUE)
    if directory:
        known = _opened.get(directory)
        if known is None:
            known = _opened[directory] = LogQueue.open(queue_directory(directory))
        return known
    raise ServerStateError(
        "mplog.write() was called in a process that logs to no server with a LogQueue. Give its pool "
        "initializer=server.initializer, or call mplog.attach() first."
    )
