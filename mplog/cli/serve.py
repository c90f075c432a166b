"""``mplog serve``: a server for commands that somebody else starts: xargs, parallel, make, Slurm, systemd.

::

    mplog serve start --- fork, wait until ready ---> mplog serve, in the background: LogServer --> logging process
         prints the queue's directory --- printed --->      |
    mplog serve stop ---------- socket "serve" in it -------'  drains, answers what was written, ends

The rule of this file: **nobody is left in the dark.** A server in the background of which start could not tell anybody
ends again, and who stops one is told what was not written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from mplog.cli.arguments import to_seconds
from mplog.cli.child import has_terminal
from mplog.cli.main import MisusedError
from mplog.cli.server_options import (
    account,
    add_server_arguments,
    given_server_arguments,
    make_server,
    start,
    unwritten,
)
from mplog.cli.which_server import running_queue
from mplog.errors import MplogError, QueueNotFoundError
from mplog.queue.log_queue import LogQueue
from mplog.server.log_server import LogServer

__all__ = ["add_arguments", "run"]

#: Seconds that a stop waits for what is still to be written.
STOP_TIMEOUT = 30.0
#: Seconds after which it is looked whether the logging process is still there.
_LOOK_SECONDS = 30.0
#: Seconds that an answer to ``serve stop`` may take beyond what the writing may take.
_GRACE = 30.0
#: Bytes of what a server in the background has said on standard error that are kept.
_KEPT_ERRORS = 2**20

HELP = """\
Run a server for many commands, which find it by MPLOG_QUEUE.

  start   start it in the background; print the directory of its queue when it
          is ready
  stop    have it write everything, end it, and say what was not written
  (none)  run it in the foreground until SIGTERM or SIGINT, as systemd and
          containers like it
"""

EPILOG = """\
examples:
  export MPLOG_QUEUE=$(mplog serve start --log app.log)
  find . -name '*.wav' | xargs -P8 -n1 ./convert.sh   # calls: mplog log ...
  mplog serve stop

  mplog serve start --log app.log --queue ~/app.queue # a name known in advance
  MPLOG_QUEUE=~/app.queue make -j8
  mplog serve stop --queue ~/app.queue

  mplog serve --log app.log --queue /run/app/queue    # in a Type=notify service

ready: the directory is printed; READY=1 goes to $NOTIFY_SOCKET, a line to
--ready-fd.

signals: SIGTERM and SIGINT write everything and end it; SIGHUP opens the log
files anew.

exit status:
  0  ended as asked, and everything is written
  1  it could not be started; there is no such server; something is not written
  2  the arguments make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve``."""
    parser.description, parser.epilog = HELP, EPILOG
    parser.add_argument("action", nargs="?", choices=["start", "stop"], help="none: run in the foreground")
    parser.add_argument(
        "--queue",
        metavar="PATH",
        help="a link to make to the queue's directory; for stop, that or the log (MPLOG_QUEUE)",
    )
    parser.add_argument("--ready-fd", metavar="N", type=int, help="write the directory to this descriptor when ready")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=to_seconds,
        default=STOP_TIMEOUT,
        help=f"wait so long, at the end, for what is still to be written (default: {STOP_TIMEOUT:g})",
    )
    add_server_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start, run or stop a server; return the exit status."""
    if arguments.action == "stop":
        others = given_server_arguments(arguments) + ["ready-fd"] * (arguments.ready_fd is not None)
        if others:
            raise MisusedError(f"stop takes --queue and --timeout: --{others[0]} is for the start of a server")
        return _stop(running_queue(arguments.queue), arguments.timeout)
    server = make_server(arguments)
    if arguments.action == "start":
        if arguments.log and "-" in arguments.log:
            raise MisusedError("a server in the background has no standard error: name a file, or leave out start")
        if arguments.ready_fd is not None:
            raise MisusedError("start itself returns when the server is ready: leave out --ready-fd, or start")
        return _start_in_background(server, arguments)
    if arguments.ready_fd is not None:
        _check_descriptor(arguments.ready_fd)
    return _serve(server, arguments)


# --- the server ---


def _serve(server: LogServer, arguments: argparse.Namespace, starter: socket.socket | None = None) -> int:
    """Run the server until it is told to end; return the exit status.

    Args:
        server: not started.
        arguments: those of the command line.
        starter: the connection to ``serve start``; in the background, where standard error is a file that nobody reads
            before the end. None in the foreground.
    """
    had_terminal = has_terminal()
    link = None if arguments.queue is None else os.path.abspath(arguments.queue)
    if link is not None:
        _check_link(link)
    with contextlib.ExitStack() as stack:
        with _Signals() as signals:
            start(server)
            try:
                directory = server.queue.directory
                listener = _listen(directory)
                if link is not None:
                    _make_link(link, directory)
                    stack.callback(_remove_link, link, directory)
                if starter is None:
                    _say_ready(link or directory, arguments.ready_fd)
                else:
                    _report_ready(link or directory, starter)
            except BaseException:
                server.stop()
                raise
            asking, timeout = _wait(server, signals, listener, had_terminal), arguments.timeout
        if asking is not None:
            timeout = _receive_timeout(asking, timeout)
        _notify("STOPPING=1")
        answer = _end(server, timeout)
    answer["said"] = "" if starter is None else _read_errors()
    with listener:
        if asking is not None:
            _answer(asking, listener, answer)
            return 0
    for line in answer["lost"]:
        print(f"mplog serve: {line}", file=sys.stderr)
    return 1 if answer["lost"] else 0


def _wait(server: LogServer, signals: _Signals, listener: socket.socket, had_terminal: bool) -> socket.socket | None:
    """Wait until the server is told to end; return who has asked for it, None where that was not ``serve stop``."""
    with selectors.DefaultSelector() as selector:
        selector.register(signals.fd, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while server.is_running:
            _trim_errors()
            ready = [key.fileobj for key, _ in selector.select(_LOOK_SECONDS)]
            if listener in ready:
                return listener.accept()[0]
            for number in signals.take() if ready else ():
                # A terminal that was closed ends what runs in it; otherwise, SIGHUP comes from whoever has moved files.
                if number != signal.SIGHUP or (had_terminal and not has_terminal()):
                    return None
                with contextlib.suppress(OSError, MplogError):
                    os.kill(server.pid, signal.SIGHUP)
    return None


def _answer(asking: socket.socket, listener: socket.socket, answer: dict[str, Any]) -> None:
    """Tell all who have asked the server to end."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            with contextlib.suppress(ConnectionError, TimeoutError), asking:
                asking.sendall(json.dumps(answer).encode())
            asking = listener.accept()[0]
            _receive_timeout(asking, 0.0)  # what is left unread would break the connection


def _end(server: LogServer, timeout: float) -> dict[str, Any]:
    """Stop the server; return what to say of it."""
    try:
        stats = server.stop(timeout)
    except MplogError as error:
        return {"account": "", "lost": [str(error)]}
    lost = unwritten(stats)
    return {"account": account(stats), "lost": [f"records are missing in the log: {'; '.join(lost)}"] if lost else []}


class _Signals:
    """The signals that `_wait` answers, as a descriptor to wait for. Behind it, a second Ctrl-C ends the waiting."""

    def __enter__(self) -> _Signals:
        self._before: dict[int, Any] = {}
        self.fd, self._end = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._end, False)
        signal.set_wakeup_fd(self._end)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # What nohup and shells without job control ignore stays ignored, but for SIGHUP, which means files here.
            if number == signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda number, frame: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self.fd)
        os.close(self._end)

    def take(self) -> list[int]:
        """Return those that have come."""
        try:
            return list(os.read(self.fd, 1000))
        except BlockingIOError:
            return []


# --- ready ---


def _say_ready(queue: str, ready_fd: int | None) -> None:
    _notify("READY=1")
    line = os.fsencode(f"{queue}\n")
    with contextlib.suppress(OSError):  # nobody reads it, or it is closed
        os.write(1, line)
    if ready_fd is not None:
        try:
            os.write(ready_fd, line)
            os.close(ready_fd)
        except BrokenPipeError:
            pass
        except OSError as error:
            raise MplogError(f"--ready-fd {ready_fd}: {error.strerror}") from None


def _report_ready(queue: str, starter: socket.socket) -> None:
    """Have ``serve start`` say where the server is.

    Raises:
        MplogError: it has been interrupted or killed, or could not say it, so nobody counts on this server.
    """
    _notify("READY=1")
    with starter, contextlib.suppress(OSError):
        starter.sendall(os.fsencode(f"{queue}\n"))
        if starter.recv(1):
            return
    raise MplogError("serve start has ended before the server was ready")


def _check_descriptor(ready_fd: int) -> None:
    try:
        os.fstat(ready_fd)
    except (OSError, OverflowError):
        raise MisusedError(f"--ready-fd: there is no descriptor {ready_fd}") from None


def _notify(state: str) -> None:
    """Tell systemd, or whoever else listens at ``NOTIFY_SOCKET`` (sd_notify(3))."""
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        address = f"\0{where[1:]}" if where.startswith("@") else where
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(state.encode(), address)


def _check_link(link: str) -> None:
    """Refuse a path that is something else, or leads to a server that runs."""
    if not os.path.lexists(link):
        if not os.path.isdir(os.path.dirname(link)):
            raise MplogError(f"--queue {link}: there is no directory {os.path.dirname(link)}")
        return
    if not os.path.islink(link):
        raise MplogError(
            f"--queue {link}: something else has that name, which is to be a link. Remove it, or use another"
        )
    with contextlib.suppress(QueueNotFoundError):
        LogQueue.open(os.path.realpath(link)).close()
        raise MplogError(
            f"--queue {link}: a server runs there. Stop it (mplog serve stop --queue {link}), or use another"
        )


def _make_link(link: str, directory: str) -> None:
    """Make the link, in the place of one that a server has left that was killed."""
    new = f"{link}.{os.getpid()}"
    try:
        os.symlink(directory, new)
        os.replace(new, link)
    except OSError as error:
        raise MplogError(f"--queue {link}: {error.strerror}") from None


def _remove_link(link: str, directory: str) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(link) == directory:
            os.unlink(link)


# --- in the background ---


def _start_in_background(server: LogServer, arguments: argparse.Namespace) -> int:
    """Start the server in a process of its own, and return the exit status when it is ready."""
    sys.stdout.flush()
    connection, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            status = 1
            try:
                connection.close()
                starter = socket.socket(fileno=_detach(theirs.detach(), errors.fileno()))
                status = _serve(server, arguments, starter)
            except MplogError as error:
                print(f"mplog serve: {error}", file=sys.stderr, flush=True)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(status)
        theirs.close()
        is_told = False
        try:
            with connection:
                directory = _receive_line(connection)
                if directory:
                    _print_directory(directory, is_known=arguments.queue is not None)
                    is_told = True
                    connection.send(b"\n")
                    return 0
        finally:
            if not is_told:  # it has failed, or it ends because the connection is closed, by Ctrl-C for instance
                os.waitpid(child, 0)
        errors.seek(0)
        sys.stderr.write(errors.read().decode(errors="replace"))
        return 1


def _receive_line(connection: socket.socket) -> bytes:
    """Return a line, b"" where none comes any more."""
    line = b""
    while not line.endswith(b"\n"):
        data = connection.recv(4096)
        if not data:
            return b""
        line += data
    return line


def _print_directory(line: bytes, *, is_known: bool) -> None:
    try:
        os.write(sys.stdout.fileno(), line)
    except OSError as error:
        if not is_known:
            raise MplogError(
                f"the directory of the queue cannot be printed ({error.strerror}), and nobody would find the server, "
                "so it was stopped. Read what start prints, or give it a name: --queue PATH"
            ) from None


def _detach(ready: int, errors: int) -> int:
    """Keep nothing of whoever has started this but the end of the connection, and return it."""
    os.setsid()
    fcntl.fcntl(errors, fcntl.F_SETFL, fcntl.fcntl(errors, fcntl.F_GETFL) | os.O_APPEND)
    # First out of the way: where standard input was closed, one of them may have its number.
    null, errors, ready = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (os.open(os.devnull, os.O_RDWR), errors, ready))
    for fd, number in zip((null, null, errors, ready), range(4)):
        os.dup2(fd, number)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(3, False)
    return 3


def _read_errors() -> str:
    """Return what was said on standard error."""
    with contextlib.suppress(OSError):
        return os.pread(2, _KEPT_ERRORS, 0).decode(errors="replace")
    return ""


def _trim_errors() -> None:
    """Forget what was said on standard error where that is a file without a name, and too much."""
    with contextlib.suppress(OSError):
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and not status.st_nlink and status.st_size > _KEPT_ERRORS:
            os.ftruncate(2, 0)


# --- stopping ---


def _stop(directory: str, timeout: float) -> int:
    """Have a server write everything and end; say what became of it, and return the exit status."""
    answer = _ask_to_end(directory, timeout)
    if answer["said"]:
        print(f"mplog serve stop: the server had said:\n{answer['said'].rstrip()}", file=sys.stderr)
    for line in answer["lost"]:
        print(f"mplog serve stop: {line}", file=sys.stderr)
    if answer["account"]:
        print(answer["account"])
    return 1 if answer["lost"] else 0


def _ask_to_end(directory: str, timeout: float) -> dict[str, Any]:
    """Have a server write everything and end; return its answer.

    Raises:
        MplogError: there is none, or it has not answered.
    """
    with socket.socket(socket.AF_UNIX) as connection, _short(directory) as path:
        try:
            connection.connect(path)
        except FileNotFoundError:
            LogQueue.open(directory).close()  # or say that there is none
            raise MplogError(
                f"the server of {directory} was not started by mplog serve. End the program that has started it"
            ) from None
        except OSError as error:
            raise MplogError(
                f"there is no server in {directory}: {error.strerror}. It has ended, or is just ending"
            ) from None
        connection.sendall(json.dumps(timeout).encode() + b"\n")
        # It answers in that time, but for the time that it takes to end.
        connection.settimeout(timeout + _GRACE)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
            answer: dict[str, Any] = json.loads(received)
        except TimeoutError:
            raise MplogError(
                f"the server of {directory} still runs, but has not answered for {timeout + _GRACE:g} seconds: it is "
                "suspended, or the machine is very busy. It ends, and writes what there is, as soon as it can"
            ) from None
        except (OSError, ValueError):
            if not os.path.isdir(directory):
                raise MplogError(f"the server of {directory} was just ending by itself, or for somebody else") from None
            raise MplogError(
                f"the server of {directory} was killed before it could answer. Its logging process writes what there "
                "is, and ends when nobody has the queue open any more"
            ) from None
    return answer


def _receive_timeout(asking: socket.socket, default: float) -> float:
    """Return how many seconds the stop may take, as ``serve stop`` says."""
    asking.settimeout(5.0)
    with contextlib.suppress(OSError, ValueError):
        return float(asking.recv(100))
    return default


def _listen(directory: str) -> socket.socket:
    """Return the socket where ``serve stop`` asks. The directory is 0700, so nobody else does."""
    listener = socket.socket(socket.AF_UNIX)
    with _short(directory) as path:
        listener.bind(path)
    listener.listen()
    return listener


@contextlib.contextmanager
def _short(directory: str) -> Iterator[str]:
    """Yield a path of the socket that fits into an address, which has room for about 100 bytes."""
    path = os.path.join(directory, "serve")
    if len(os.fsencode(path)) < 100 or not os.path.isdir("/proc/self/fd"):
        yield path
        return
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield path
        return
    try:
        yield f"/proc/self/fd/{fd}/serve"
    finally:
        os.close(fd)
