"""``mplog tail``: the end of a log, and what comes, across rotations.

The rule of this file: **a pipe gets the bytes of the log.** On a terminal, characters that would steer it are shown as
escapes, long lines are cut, and lines have the colour of their level.
"""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator

from mplog.cli.arguments import to_level
from mplog.cli.file_reader import LONGEST_LINE
from mplog.cli.lines import Filter, LineParser
from mplog.cli.log_view import Source, View
from mplog.cli.main import MisusedError
from mplog.errors import MplogError
from mplog.files.outlet import complete
from mplog.monitoring.find_servers import find_servers
from mplog.record.plain import printable
from mplog.sinks.sink import DEFAULT_FORMAT

DESCRIPTION = """\
Print the last records of a log; with -f, go on with those that come, also when
the file is rotated (renamed, compressed, copied and emptied, or replaced): no
line is missed, and none comes twice.

Lines are text in mplog's own format, or in the one of --format, or JSON, one
object a line (mplog.JSONFormatter). A line that begins no record, as in a
traceback, belongs to the record before it.
"""
EXAMPLES = f"""\
filters:
  A record must pass all filters. If an option is given several times, one of
  its values is enough; only --field must hold each time.

examples:
  mplog tail -f app.log                      the last 10 records, and what comes
  mplog tail -n 50 --level ERROR app.log     the last 50 errors, with tracebacks
  mplog tail -f --server                     all files of the running server
  mplog tail -n all --logger shop.db --process 'ForkPoolWorker-*' app.log
  mplog tail -f --field request_id=4711 app.jsonl | jq .message
  mplog tail --format '%(name)s %(levelname)s %(message)s' --level WARNING o.log

default format:
  {DEFAULT_FORMAT}

exit status:
  0    done
  1    there is no such file or server, or the file cannot be read; or the
       reader of the output has gone
  2    the arguments make no sense
  130  Ctrl-C
"""

#: Records that are shown by default, as by tail(1).
_RECORDS = 10
#: Seconds between two looks while nothing comes: nobody sees so short a delay, and a look is two system calls a file.
_INTERVAL = 0.25
#: Bytes of a line above which it is cut on a terminal, where it would fill hundreds of rows.
_LONGEST_SHOWN = 2**16

_COLORS = (
    (logging.CRITICAL, b"\x1b[1;41m"),
    (logging.ERROR, b"\x1b[31m"),
    (logging.WARNING, b"\x1b[33m"),
    (logging.INFO, b""),
    (logging.NOTSET, b"\x1b[2m"),
)
_PLAIN = b"\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("file", nargs="*", metavar="FILE", help="a log, or a rotated one, also if it is compressed")
    parser.add_argument(
        "--server", nargs="?", const="", metavar="PID",
        help="the files of a running server: of the only one, or by a pid that mplog top shows, or by its queue",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--lines", type=_to_count, default=_RECORDS, metavar="N",
        help=f"how many of the last records, after filtering; 'all' for all (default: {_RECORDS})",
    )  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--level", type=to_level, default=0, help="this level and above: WARNING, or a number")
    parser.add_argument("--logger", action="append", default=[], metavar="NAME", help="this logger, and those below it")
    parser.add_argument(
        "--process", action="append", default=[], metavar="NAME|PID", help="this process, by its name (with *) or pid"
    )
    parser.add_argument(
        "--field", action="append", type=_to_field, default=[], metavar="NAME=VALUE",
        help="records in which a field of JSON, or of the format, has this value",
    )  # fmt: skip
    parser.add_argument("--format", default=DEFAULT_FORMAT, help="of the text lines, %%-style, as given to the server")
    parser.add_argument("--datefmt", default=None, help="of %%(asctime)s in it")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="lines in the colour of their level; auto: on a terminal, unless NO_COLOR is set",
    )  # fmt: skip


def _to_count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number of records: 0, 1, 2, ... or 'all'")
    return int(text)


def _to_field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def run(arguments: argparse.Namespace) -> int:
    """Show the logs; return the exit status."""
    if not hasattr(os, "pread"):
        raise MplogError("mplog tail needs POSIX: on this platform, a file that is open cannot be renamed.")
    # mplog tail --server app.log: argparse takes the file for the pid.
    paths = arguments.file + ([] if arguments.server is None else _files_of_server(arguments.server))
    if not paths:
        raise MisusedError("which file? mplog tail app.log, or mplog tail --server")
    wanted = Filter(arguments.level, arguments.logger, arguments.process, arguments.field)
    try:
        parser = LineParser(arguments.format, arguments.datefmt)
    except ValueError as error:
        raise MisusedError(f"--format {error}") from None
    output = _Output(_wants_color(arguments.color))
    sources: list[Source] = []
    try:
        sources.extend(Source(path, View(parser, wanted)) for path in dict.fromkeys(paths))
        output.has_headings = len(sources) > 1
        for source in sources:
            for data in source.last(arguments.lines, is_followed=arguments.follow):
                output.write(source, data)
            source.view.check(source.path)
        if arguments.follow:
            _follow(sources, output)
    finally:
        for source in sources:
            source.close()
    return 0


def _follow(sources: list[Source], output: _Output) -> None:
    """Write what comes, until Ctrl-C, or until nobody reads the output any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # reports POLLERR if it is a pipe without a reader
    while True:
        has_news = False
        for source in sources:
            data = source.new()
            has_news |= bool(data)
            output.write(source, data)
        if not has_news and any(event & select.POLLERR for _, event in poll.poll(1000 * _INTERVAL)):
            raise BrokenPipeError


def _files_of_server(which: str) -> list[str]:
    is_directory = os.path.exists(which) and not which.isdigit()
    found = find_servers([which] if is_directory else ())
    servers = [
        server
        for server in found.servers
        if not which or is_directory or which in (str(server.notice.pid), str(server.notice.program))
    ]
    known = "; ".join(
        f"{server.notice.pid} of {printable(server.notice.command) or server.notice.program}" for server in servers
    )
    if not servers:
        what = f"no server {which} of this user" if which else "no server of this user"
        raise MplogError(f"{what} runs. mplog top shows running servers. Or name a file: mplog tail app.log")
    if len(servers) > 1:
        raise MplogError(f"{len(servers)} servers run: {known}. Choose one: mplog tail --server PID")
    files = [path for path, length in servers[0].look().files if length >= 0 and os.path.isfile(path)]
    if not files:
        raise MplogError(f"server {known} writes no file.")
    return files


def _wants_color(choice: str) -> bool:
    if choice != "auto":
        return choice == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Output:
    """Standard output, where lines may have the colour of their level."""

    def __init__(self, has_color: bool) -> None:
        self._has_color = has_color
        self._is_terminal = sys.stdout.isatty()
        self._text = complete(sys.stdout)  # closes the stream when it goes
        self._stream = self._text.buffer
        self._current: Source | None = None
        self.has_headings = False

    def write(self, source: Source, data: bytes) -> None:
        """Write those of some whole lines that are shown."""
        view = source.view
        if not view.wanted.is_empty or self._has_color or self._is_terminal:
            # Not splitlines(): for it, a carriage return in a message ends a line, too.
            data = b"".join(self._lines(io.BytesIO(data), view))
        if not data:
            return
        if self.has_headings and source is not self._current:
            # Like tail(1).
            path = os.fsencode(source.path)
            path = _harmless(path) if self._is_terminal else path
            self._stream.write(b"%s==> %s <==\n" % (b"\n" if self._current else b"", path))
            self._current = source
        self._stream.write(data)
        self._stream.flush()

    def _lines(self, lines: Iterable[bytes], view: View) -> Iterator[bytes]:
        for line in lines:
            if view.shows(line):
                yield self._line(line, view)
            view.go_on(line)

    def _line(self, line: bytes, view: View) -> bytes:
        text = line.rstrip(b"\n")
        end = line[len(text) :]
        if self._is_terminal:
            length = view.begun + len(text)
            is_last = end or len(text) < LONGEST_LINE
            text = b"" if view.begun else _harmless(text)
            if length > _LONGEST_SHOWN and is_last:
                text += f" [the line goes on; it has {length:,} bytes]".encode()
        if text and self._has_color and view.level is not None:
            color = next((color for level, color in _COLORS if view.level >= level), _COLORS[-1][1])
            text = b"%s%s%s" % (color, text, _PLAIN) if color else text
        return text + end


def _harmless(line: bytes) -> bytes:
    """Return the beginning of a line without what would steer a terminal: its text may come from anywhere."""
    # Bytes that are not UTF-8 steer terminals that use another encoding. A character that is cut is left out.
    is_whole = len(line) <= _LONGEST_SHOWN
    text, _ = codecs.utf_8_decode(line[:_LONGEST_SHOWN], "backslashreplace", is_whole)
    return printable(text, tab=True).encode()
