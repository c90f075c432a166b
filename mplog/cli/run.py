"""``mplog run``: a command, and one log for all that it starts.

::

    mplog run --- exec ---> COMMAND, MPLOG_QUEUE in its environment --> Python programs: their records
       |   <--- --capture: stdout, stderr: a record for each line          scripts: mplog log
       |                                                                          |
       '-- LogServer --> logging process <---------------- LogQueue --------------'

The rule of this file: **the command decides how this ends.** Its exit status is passed on. Once it runs, errors of the
log are printed on standard error and change nothing.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys

from mplog.cli.arguments import running_queue, to_level, to_seconds
from mplog.cli.capture import Capture
from mplog.cli.child import NOT_EXECUTABLE, NOT_FOUND, Command, signals_held
from mplog.cli.main import MisusedError
from mplog.cli.server_options import add_server_arguments, given_server_arguments, make_server, start
from mplog.errors import MplogError
from mplog.monitoring.death_lines import describe_end
from mplog.monitoring.process import memory_kills, memory_kills_since
from mplog.monitoring.statistics import missing
from mplog.server.log_server import LogServer
from mplog.worker.attach import MPLOG_QUEUE, attach

#: The exit status if mplog itself could not start, as for env(1) and timeout(1).
_NOT_STARTED = 125

#: Seconds that processes with captured output may go on writing after the command has ended.
_LINGER = 2.0

HELP = f"""\
Run COMMAND with one log for all that it starts, and end with its exit status.

With --log or --config, a server is started; otherwise, the server named by
{MPLOG_QUEUE} or --queue is joined. COMMAND finds it in {MPLOG_QUEUE}: Python
programs by mplog.attach(), shell scripts by "mplog log". With --python, Python
programs join by themselves; with --capture, everything that is printed becomes
records.
"""

EPILOG = """\
examples:
  mplog run --log app.log -- ./nightly.sh
  mplog run --log app.log --python -- python train.py --epochs 10
  mplog run --log app.log --capture -- rsync -a src/ dst/
  mplog run --config logging.toml --capture --stderr-level INFO -- make -j4
  ls *.wav | xargs -P4 -n1 mplog run --capture -- flac     # under mplog serve

exit status:
  that of COMMAND; 128+N if signal N has ended it
  126  COMMAND cannot be executed       127  it is not found
  125  COMMAND was not run: the log could not be opened, the configuration is
       wrong, or there is no server
  2    COMMAND was not run: the arguments make no sense

SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP and SIGCONT are
passed on to COMMAND. Programs that outlive COMMAND lose the server: use
mplog serve for them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mplog run [OPTION ...] [--] COMMAND [ARGUMENT ...]"
    parser.description, parser.epilog = HELP, EPILOG
    add_server_arguments(parser)
    group = parser.add_argument_group("what becomes records")
    group.add_argument("--python", action="store_true", help="have Python programs join the server by themselves")
    group.add_argument("--capture", action="store_true", help="make a record of each line that is printed")
    for option, what, level in (("stdout", "standard output", "INFO"), ("stderr", "standard error", "WARNING")):
        text = f"of captured {what} (default: {level})"
        group.add_argument(f"--{option}-level", type=to_level, default=level, metavar="LEVEL", help=text)
    group.add_argument("--name", help="of COMMAND in the log (default: its file name); loggers are NAME.stdout, ...")
    text = f"wait this long for processes that COMMAND has left, and that are captured (default: {_LINGER:g})"
    group.add_argument("--linger", metavar="SECONDS", type=to_seconds, default=_LINGER, help=text)
    parser.add_argument(
        "--queue", metavar="PATH", help=f"the server to join, by its queue or log (default: {MPLOG_QUEUE})"
    )
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not any(command[:1]):
        raise MisusedError("which command? See mplog run --help.")
    levels = [arguments.stdout_level, arguments.stderr_level]
    name = arguments.name or os.path.basename(command[0])
    multiprocessing.current_process().name = name  # the process of captured lines
    try:
        server = _server(arguments)
    except MisusedError:
        raise
    except MplogError as error:
        print(f"mplog run: {error}", file=sys.stderr)
        return _NOT_STARTED
    if arguments.python:
        _have_python_attach()
    try:
        return _run(command, name, levels if arguments.capture else [], arguments.linger)
    finally:
        if server is not None:
            _stop(server)


def _server(arguments: argparse.Namespace) -> LogServer | None:
    """Start a server, or join a running one."""
    if given_server_arguments(arguments):
        if arguments.queue:
            raise MisusedError("--queue joins a running server: leave it out, or --log, --config and the rest")
        server = make_server(arguments)
        start(server)
        return server
    directory = running_queue(arguments.queue)
    attach(directory)
    os.environ[MPLOG_QUEUE] = directory
    return None


def _run(command: list[str], name: str, levels: list[int], linger: float) -> int:
    """Run the command to its end; return the exit status."""
    log = logging.getLogger("mplog.run")
    kills_before = memory_kills()
    with signals_held() as mask:
        try:
            running = Command(command, mask, capture=bool(levels))
        except OSError as error:
            log.error("mplog: %s was not started: %s", name, error.strerror)
            print(f"mplog run: {command[0]}: {error.strerror}", file=sys.stderr)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        capture = None
        if levels:
            assert running.process.stdout is not None
            assert running.process.stderr is not None
            # Duplicates, for Capture to close.
            ends = [os.dup(pipe.fileno()) for pipe in (running.process.stdout, running.process.stderr)]
            running.process.stdout.close()
            running.process.stderr.close()
            loggers = [logging.getLogger(f"{name}.{stream}") for stream in ("stdout", "stderr")]
            capture = Capture(zip(ends, loggers, levels, (1, 2)), lambda: _say_that_lines_pass(name))
        status = running.wait()
    # From here on, signals are for mplog itself. While the log is full, this can take long.
    if capture is not None:
        for stream in capture.finish(linger):
            log.warning("mplog: a process that %s has left keeps %s open; its further output is lost", name, stream)
        if capture.passed_through:
            print(f"mplog run: lines that are not in the log: {capture.passed_through:,}", file=sys.stderr)
    if status:
        level = logging.ERROR if status < 0 else logging.WARNING
        end = describe_end(status, memory_kills_since(kills_before))
        log.log(level, "mplog: %s (pid %d) %s", name, running.process.pid, end)
    return 128 - status if status < 0 else status


def _say_that_lines_pass(name: str) -> None:
    print(f"mplog run: the server has ended, so the output of {name} comes out here", file=sys.stderr, flush=True)


def _stop(server: LogServer) -> None:
    """Stop the server, and print what was not written."""
    try:
        lost = missing(server.stop())
    except MplogError as error:
        lost = f"while stopping: {error}"
    if lost:
        print(f"mplog run: {lost}", file=sys.stderr)


def _have_python_attach() -> None:
    """Make every Python with this environment import ``startup/sitecustomize.py`` when it starts."""
    directory = os.path.join(os.path.dirname(os.path.abspath(__file__)), "startup")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (directory, before)))
