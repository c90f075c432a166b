"""What ``run`` and ``serve`` share: a server from options, and its start."""

from __future__ import annotations

import argparse
import logging
import signal
from typing import Any

from mplog.cli.arguments import to_level
from mplog.cli.main import MisusedError
from mplog.errors import MplogError
from mplog.server.log_server import LogServer
from mplog.sinks.console import ConsoleSink
from mplog.sinks.file import FileSink
from mplog.sinks.sink import Sink

#: The root logger's level where none is given. Programs that a script starts set none, and WARNING, the default of
#: logging, would drop most of their records.
_DEFAULT_LEVEL = logging.INFO


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where and how to write")
    group.add_argument(
        "--log", metavar="FILE", action="append", help="a log file, or - for standard error; may be given several times"
    )
    group.add_argument("--config", metavar="FILE", help="a .toml or .json logging configuration, in place of the rest")
    group.add_argument("--level", type=to_level, help="the level of the root logger, by name or number (default: INFO)")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--format", metavar="TEXT", help="the format of a line, as in logging: '%%(asctime)s %%(message)s'"
    )
    form.add_argument(
        "--json", action="store_true", default=None, help="write a JSON object for each record, with all its fields"
    )
    group.add_argument("--rotate", metavar="WHEN", help="begin a new file: '100 MB', 'daily', '1 GB or midnight'")
    group.add_argument("--keep", metavar="WHAT", help="which rotated files to keep: '10', '14 days and 2 GB'")
    group.add_argument("--compress", choices=["gz", "zst"], help="compress the rotated files")


def given_server_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the names of those options for where and how to write that are given."""
    names = ("log", "config", "level", "format", "json", "rotate", "keep", "compress")
    return [name for name in names if getattr(arguments, name) is not None]


def make_server(arguments: argparse.Namespace) -> LogServer:
    """Return the server that the options describe, not started; raises MisusedError if they make no sense."""
    given = given_server_arguments(arguments)
    if arguments.config is not None:
        others = [name for name in given if name != "config"]
        if others:
            raise MisusedError(f"--config is in place of the rest: leave out --{others[0]}, or --config")
        return LogServer(config=arguments.config)
    if not arguments.log:
        raise MisusedError("where should it write? Give --log FILE, or --config FILE")
    level = _DEFAULT_LEVEL if arguments.level is None else arguments.level
    try:
        return LogServer(*(_to_sink(path, arguments) for path in arguments.log), level=level, format=_format(arguments))
    except (ValueError, TypeError) as error:
        raise MisusedError(str(error)) from error
    except (OSError, ImportError) as error:
        raise MplogError(str(error)) from error


def _to_sink(path: str, arguments: argparse.Namespace) -> Sink:
    if path == "-":
        return ConsoleSink()
    keep = int(arguments.keep) if arguments.keep and arguments.keep.isdigit() else arguments.keep
    return FileSink(path, rotate=arguments.rotate, keep=keep, compress=arguments.compress)


def _format(arguments: argparse.Namespace) -> Any:
    if arguments.json:
        from mplog.formats.json import JSONFormatter

        return JSONFormatter()
    return arguments.format


def start(server: LogServer) -> None:
    """Start the server.

    Ctrl-C, Ctrl-\\ and Ctrl-Z reach every process of a job, but the logging process must neither end nor stop. It
    ignores SIGINT by itself, and inherits SIGQUIT and SIGTSTP as blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT, signal.SIGTSTP})
    try:
        server.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
