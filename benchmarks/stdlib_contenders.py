"""What the standard library offers: private files, nothing at all, and the two recipes of its cookbook."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import pickle
import platform
import select
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.contender import LOGGER, Contender, file_handler, root_handler

__all__ = ["Cookbook", "Null", "PrivateFiles", "Sockets"]

#: Seconds that a listener may take to write the rest.
_DRAIN_TIMEOUT = 300.0


class _Stdlib(Contender):
    @classmethod
    def version(cls) -> str:
        return f"Python {platform.python_version()}"


class PrivateFiles(_Stdlib):
    """Each worker writes a file of its own: the base of the comparison."""

    title = "private FileHandler"
    note = "a file for each process"
    can_stall = True

    def worker(self) -> Callable[..., object]:
        return root_handler(file_handler(self.own_path, self.stall))


class Null(_Stdlib):
    """Each worker logs to nowhere."""

    title = "NullHandler"
    note = "writes nothing"
    has_file = False

    def worker(self) -> Callable[..., object]:
        return root_handler(logging.NullHandler())


class _Listening(_Stdlib):
    """A listener process, which `_listen` runs."""

    def start(self) -> None:
        self._drain = multiprocessing.Event()
        self._drained = multiprocessing.Event()
        self._end = multiprocessing.Event()
        ready, theirs = multiprocessing.Pipe(False)
        self._listener = multiprocessing.Process(
            target=self._run, args=(theirs, self._drain, self._drained, self._end), name="listener", daemon=True
        )
        self._listener.start()
        self._on_ready(ready.recv())

    def _run(self, ready: Any, drain: Any, drained: Any, end: Any) -> None:
        """Runs in the listener process."""
        handler = file_handler(self.path, self.stall)
        self._listen(handler, ready.send, drain, drained)
        handler.close()
        end.wait(_DRAIN_TIMEOUT)

    def _listen(self, handler: logging.Handler, is_ready: Callable[[Any], None], drain: Any, drained: Any) -> None:
        raise NotImplementedError

    def _on_ready(self, word: Any) -> None:
        pass

    def services(self) -> list[int]:
        return [self._listener.pid or 0]

    def drain(self) -> None:
        self._drain.set()
        self._drained.wait(_DRAIN_TIMEOUT)

    def close(self) -> None:
        self._end.set()
        self._listener.join(10)


class Cookbook(_Listening):
    """https://docs.python.org/3/howto/logging-cookbook.html#logging-to-a-single-file-from-multiple-processes"""

    title = "QueueHandler + multiprocessing.Queue"
    note = "the cookbook's queue, in a process of its own; it has no limit, so it never blocks"
    share = 0.5
    can_stall = True

    def start(self) -> None:
        self.queue: Any = multiprocessing.Queue(-1)
        super().start()

    def _listen(self, handler: logging.Handler, is_ready: Callable[[Any], None], drain: Any, drained: Any) -> None:
        listener = logging.handlers.QueueListener(self.queue, handler)
        listener.start()
        is_ready(None)
        drain.wait()
        listener.stop()
        drained.set()

    def worker(self) -> Callable[..., object]:
        return root_handler(logging.handlers.QueueHandler(self.queue))

    def leave(self) -> None:
        """Write the records of the feeder thread, as the end of a process does."""
        self.queue.close()
        self.queue.join_thread()


class _RecordStreamHandler(socketserver.StreamRequestHandler):
    """The cookbook's."""

    def handle(self) -> None:
        while True:
            chunk = self.connection.recv(4)
            if len(chunk) < 4:
                break
            length = struct.unpack(">L", chunk)[0]
            chunk = self.connection.recv(length)
            while len(chunk) < length:
                chunk += self.connection.recv(length - len(chunk))
            record = logging.makeLogRecord(pickle.loads(chunk))
            logging.getLogger(record.name).handle(record)


class _RecordReceiver(socketserver.ThreadingTCPServer):
    """The cookbook's, with room for many workers that connect at once."""

    allow_reuse_address = True
    request_queue_size = 128


class Sockets(_Listening):
    """https://docs.python.org/3/howto/logging-cookbook.html#sending-and-receiving-logging-events-across-a-network"""

    title = "SocketHandler"
    note = "the cookbook's server, in a process of its own"
    share = 0.25
    port = 0

    def _listen(self, handler: logging.Handler, is_ready: Callable[[Any], None], drain: Any, drained: Any) -> None:
        root_handler(handler)
        with _RecordReceiver(("localhost", 0), _RecordStreamHandler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            is_ready(server.server_address[1])
            drain.wait()
            while select.select([server], [], [], 0.01)[0]:
                pass  # a worker that has connected is not served yet
            for serving in threading.enumerate():
                if "process_request" in serving.name:
                    serving.join()  # reads to the end of its connection
            drained.set()
            server.shutdown()
            thread.join()

    def _on_ready(self, word: Any) -> None:
        self.port = word

    def worker(self) -> Callable[..., object]:
        root_handler(logging.handlers.SocketHandler("localhost", self.port))
        return logging.getLogger(LOGGER).info

    def leave(self) -> None:
        logging.shutdown()
