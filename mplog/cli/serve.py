"""``mplog serve``: a server for commands that others start: xargs, parallel, make, Slurm, systemd.

::

    mplog serve start --- fork, wait until ready ---> mplog serve, in the background: LogServer --> logging process
         prints the queue's directory                       |
    mplog serve stop ---------- socket "serve" in it -------'  writes everything, says what was not written, ends
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from multiprocessing.connection import wait

from mplog.cli.arguments import running_queue, to_seconds
from mplog.cli.background import read_errors, report_ready, start_in_background, trim_errors
from mplog.cli.main import MisusedError
from mplog.cli.server_options import add_server_arguments, given_server_arguments, make_server, start
from mplog.cli.stop_socket import Answer, answer_all, ask_to_end, listen, receive_timeout
from mplog.cli.terminal import has_terminal, noted_signals
from mplog.errors import MplogError, QueueNotFoundError
from mplog.monitoring.statistics import missing, written
from mplog.queue.log_queue import LogQueue
from mplog.server.log_server import STOP_TIMEOUT, LogServer

#: Seconds between two checks that the logging process is still there.
_LOOK_SECONDS = 30.0

HELP = """\
Run a server for many commands, which find it by MPLOG_QUEUE.

  start   start it in the background; print the directory of its queue when it
          is ready
  stop    have it write everything and end; say what was not written
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

ready: the server prints the directory, sends READY=1 to $NOTIFY_SOCKET, and
writes the directory to --ready-fd.

signals: SIGTERM and SIGINT write everything and end it; SIGHUP reopens the log
files.

exit status:
  0  ended as asked, and everything is written
  1  it could not be started; there is no such server; something is not written
  2  the arguments make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = HELP, EPILOG
    parser.add_argument("action", nargs="?", choices=["start", "stop"], help="none: run in the foreground")
    parser.add_argument(
        "--queue",
        metavar="PATH",
        help="a link to the queue's directory, to be created; for stop, that link or the log (default: MPLOG_QUEUE)",
    )
    parser.add_argument("--ready-fd", metavar="N", type=int, help="write the directory to this descriptor when ready")
    text = f"at the end, wait this long for records to be written (default: {STOP_TIMEOUT:g})"
    parser.add_argument("--timeout", metavar="SECONDS", type=to_seconds, default=STOP_TIMEOUT, help=text)
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
        return start_in_background(
            lambda starter: _serve(server, arguments, starter), is_known=arguments.queue is not None
        )
    if arguments.ready_fd is not None:
        try:
            os.fstat(arguments.ready_fd)
        except (OSError, OverflowError):
            raise MisusedError(f"--ready-fd: there is no descriptor {arguments.ready_fd}") from None
    return _serve(server, arguments)


def _stop(directory: str, timeout: float) -> int:
    """Have a server write everything and end; print what became of it, and return the exit status."""
    answer = ask_to_end(directory, timeout)
    if answer.said:
        print(f"mplog serve stop: the server had said:\n{answer.said.rstrip()}", file=sys.stderr)
    if answer.lost:
        print(f"mplog serve stop: {answer.lost}", file=sys.stderr)
    if answer.account:
        print(answer.account)
    return 1 if answer.lost else 0


def _serve(server: LogServer, arguments: argparse.Namespace, starter: socket.socket | None = None) -> int:
    """Run the server until it is told to end; return the exit status.

    In the background, `starter` is the connection to ``serve start``, and standard error a file for the end.
    """
    had_terminal = has_terminal()
    link = None if arguments.queue is None else os.path.abspath(arguments.queue)
    if link is not None:
        _check_link(link)
    with contextlib.ExitStack() as stack:
        # SIGHUP is about files here, so it counts even under nohup. After this context, a second Ctrl-C ends the wait.
        with noted_signals(signal.SIGHUP, (signal.SIGTERM, signal.SIGINT)) as signals:
            start(server)
            try:
                directory = server.queue.directory
                listener = listen(directory)
                if link is not None:
                    _make_link(link, directory)
                    stack.callback(_remove_link, link, directory)
                _notify("READY=1")
                if starter is None:
                    _say_ready(link or directory, arguments.ready_fd)
                else:
                    report_ready(link or directory, starter)
            except BaseException:
                server.stop()
                raise
            asking, timeout = _wait(server, signals, listener, had_terminal), arguments.timeout
        if asking is not None:
            timeout = receive_timeout(asking, timeout)
        _notify("STOPPING=1")
        answer = _end(server, timeout)
    with listener:
        if asking is not None:
            answer.said = "" if starter is None else read_errors()
            answer_all(asking, listener, answer)
            return 0
    if answer.lost:
        print(f"mplog serve: {answer.lost}", file=sys.stderr)
    return 1 if answer.lost else 0


def _wait(server: LogServer, signals: int, listener: socket.socket, had_terminal: bool) -> socket.socket | None:
    """Wait until the server is told to end; return the connection to ``serve stop``, None if it was a signal."""
    while server.is_running:
        trim_errors()
        ready = wait([signals, listener], _LOOK_SECONDS)
        if listener in ready:
            return listener.accept()[0]
        for number in os.read(signals, 1000) if ready else b"":
            # SIGHUP means that files were moved; or that the terminal was closed, which ends what runs in it.
            if number != signal.SIGHUP or (had_terminal and not has_terminal()):
                return None
            with contextlib.suppress(OSError, MplogError):
                os.kill(server.pid, signal.SIGHUP)
    return None


def _end(server: LogServer, timeout: float) -> Answer:
    """Stop the server; return what became of it."""
    try:
        stats = server.stop(timeout)
    except MplogError as error:
        return Answer("", str(error))
    return Answer(written(stats), missing(stats))


def _say_ready(queue: str, ready_fd: int | None) -> None:
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


def _notify(state: str) -> None:
    """Tell systemd, or another supervisor that listens at ``NOTIFY_SOCKET`` (sd_notify(3))."""
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        address = f"\0{where[1:]}" if where.startswith("@") else where
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(state.encode(), address)


def _check_link(link: str) -> None:
    """Refuse a path that is not a link, or leads to a running server."""
    if not os.path.lexists(link):
        if not os.path.isdir(os.path.dirname(link)):
            raise MplogError(f"--queue {link}: there is no directory {os.path.dirname(link)}")
        return
    if not os.path.islink(link):
        raise MplogError(f"--queue {link}: something else has that name. Remove it, or use another name for the link")
    with contextlib.suppress(QueueNotFoundError):
        LogQueue.open(os.path.realpath(link)).close()
        raise MplogError(
            f"--queue {link}: a server runs there. Stop it (mplog serve stop --queue {link}), or use another name"
        )


def _make_link(link: str, directory: str) -> None:
    """Create the link. It replaces one that a killed server has left."""
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
