"""How ``mplog serve stop`` asks a server to end: by a socket in the directory of its queue, which is this user's alone.

::

    serve stop: ask_to_end() --- timeout ---> socket "serve" ---> mplog serve: receive_timeout()
                       ^                                              |  writes everything, ends
                       '------------------ Answer --------------------'
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import msgspec

from mplog.errors import MplogError
from mplog.queue.log_queue import LogQueue

#: Seconds that an answer may take in addition to the time for writing.
GRACE = 30.0


class Answer(msgspec.Struct):
    """What a server that was asked to end has written and lost, and what it printed in the background."""

    account: str
    lost: str
    said: str = ""


def listen(directory: str) -> socket.socket:
    """Return the socket that `ask_to_end` connects to."""
    listener = socket.socket(socket.AF_UNIX)
    with _short_path(directory) as path:
        listener.bind(path)
    listener.listen()
    return listener


def receive_timeout(asking: socket.socket, default: float) -> float:
    """Return how many seconds the end may take, as the other side asks."""
    asking.settimeout(5.0)
    with contextlib.suppress(OSError, ValueError):
        return float(asking.recv(100))
    return default


def answer_all(asking: socket.socket, listener: socket.socket, answer: Answer) -> None:
    """Answer every client that has asked the server to end."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            with contextlib.suppress(ConnectionError, TimeoutError), asking:
                asking.sendall(msgspec.json.encode(answer))
            asking = listener.accept()[0]
            receive_timeout(asking, 0.0)  # unread bytes would break the connection


def ask_to_end(directory: str, timeout: float) -> Answer:
    """Have a server write everything within `timeout` seconds and end; return its answer, or raise if there is none."""
    with socket.socket(socket.AF_UNIX) as connection, _short_path(directory) as path:
        try:
            connection.connect(path)
        except FileNotFoundError:
            LogQueue.open(directory).close()  # raises if there is no server
            raise MplogError(
                f"the server of {directory} was not started by mplog serve. End the program that has started it"
            ) from None
        except OSError as error:
            raise MplogError(
                f"there is no server in {directory}: {error.strerror}. It has ended, or is ending"
            ) from None
        connection.settimeout(timeout + GRACE)
        try:
            connection.sendall(f"{timeout}\n".encode())
            with connection.makefile("rb") as stream:
                return msgspec.json.decode(stream.read(), type=Answer)
        except TimeoutError:
            raise MplogError(
                f"the server of {directory} still runs, but has not answered for {timeout + GRACE:g} seconds: it is "
                "suspended, or the machine is very busy. It will write everything and end as soon as it can"
            ) from None
        except (OSError, msgspec.DecodeError):
            if not os.path.isdir(directory):
                raise MplogError(f"the server of {directory} was already ending") from None
            raise MplogError(
                f"the server of {directory} was killed before it could answer. Its logging process writes what is "
                "left, and ends when no process has the queue open any more"
            ) from None


@contextlib.contextmanager
def _short_path(directory: str) -> Iterator[str]:
    """Yield a path of the socket that fits into an address, which has room for about 100 bytes."""
    path = os.path.join(directory, "serve")
    with contextlib.ExitStack() as stack:
        if len(os.fsencode(path)) >= 100 and os.path.isdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, fd)
                path = f"/proc/self/fd/{fd}/serve"
        yield path
