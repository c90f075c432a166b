"""``mplog tail``: the end of a log, and what comes, across rotations.

The rule of this file: **what goes into a pipe is the bytes of the log.** On a terminal, characters that would steer it
are shown as escapes, long lines are cut, and lines have the colour of their level. Memory is bounded, whatever the log
holds.
"""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import select
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator

from mplog.cli.arguments import to_level
from mplog.cli.file_reader import CHUNK, LONGEST_LINE, open_compressed, open_log, read_lines
from mplog.cli.following import Follower
from mplog.cli.lines import Filter, LineParser
from mplog.errors import MplogError
from mplog.files.compression import SUFFIXES
from mplog.monitoring.running import find_servers
from mplog.record.plain import printable
from mplog.sinks.sink import DEFAULT_FORMAT

__all__ = ["add_arguments", "run"]

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
  All of those that are given must hold; of one that is given several times,
  one. --field must hold each time.

examples:
  mplog tail -f app.log                      the last 10 records, and what comes
  mplog tail -n 50 --level ERROR app.log     the last 50 errors, with tracebacks
  mplog tail -f --server                     all files of the server that runs
  mplog tail -n all --logger shop.db --process 'ForkPoolWorker-*' app.log
  mplog tail -f --field request_id=4711 app.jsonl | jq .message
  mplog tail --format '%(name)s %(levelname)s %(message)s' --level WARNING o.log

default format:
  {DEFAULT_FORMAT}

exit status:
  0    done
  1    no such file or server, or it cannot be read; or whoever read the output
       has gone
  2    the arguments make no sense
  130  Ctrl-C
"""

#: Records that are shown unless told otherwise, as by tail(1).
_RECORDS = 10
#: Seconds between two looks while nothing comes: nobody sees so short a delay, and a look is two system calls a file.
_INTERVAL = 0.25
#: Bytes of a line above which it is cut on a terminal, where it fills hundreds of rows by then.
_LONGEST_SHOWN = 2**16
#: Bytes that are looked at first to find the last records.
_WINDOW = 2**16

_COLORS = (
    (logging.CRITICAL, b"\x1b[1;41m"),
    (logging.ERROR, b"\x1b[31m"),
    (logging.WARNING, b"\x1b[33m"),
    (logging.INFO, b""),
    (logging.NOTSET, b"\x1b[2m"),
)
_PLAIN = b"\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb; also the description and the examples of its help."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.add_argument("file", nargs="*", metavar="FILE", help="a log; a rotated one, also where it is compressed")
    parser.add_argument(
        "--server",
        nargs="?",
        const="",
        metavar="PID",
        help="the files of a server that runs: the only one, or by a pid that mplog top shows, or its queue",
    )
    parser.add_argument(
        "-n", "--lines", type=_count, default=_RECORDS, metavar="N",
        help=f"how many records of the end, of those that are shown; 'all' for all ({_RECORDS} by default)",
    )  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--level", type=to_level, default=0, help="this level and above: WARNING, or a number")
    parser.add_argument("--logger", action="append", default=[], metavar="NAME", help="this logger, and those below it")
    parser.add_argument(
        "--process", action="append", default=[], metavar="NAME|PID", help="this process, by its name (with *) or pid"
    )
    parser.add_argument(
        "--field", action="append", type=_field, default=[], metavar="NAME=VALUE",
        help="records in which a field of JSON, or of the format, is this",
    )  # fmt: skip
    parser.add_argument("--format", default=None, help="of the text lines, %%-style, as it was given to the server")
    parser.add_argument("--datefmt", default=None, help="of %%(asctime)s in it")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="lines in the colour of their level; auto: on a terminal, unless NO_COLOR is set",
    )  # fmt: skip


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of records: 0, 1, 2, ... or 'all'")
    return int(text)


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit status.

    Raises:
        MplogError: a file cannot be read, or there is no such server.
    """
    if not hasattr(os, "pread"):
        raise MplogError("mplog tail needs POSIX: on this platform, a file that is open cannot be renamed.")
    paths = list(arguments.file)
    if arguments.server is not None:
        # --server app.log: argparse takes the file for the pid.
        paths += _files_of_server(arguments.server)
    if not paths:
        print("mplog tail: which file? mplog tail app.log, or mplog tail --server", file=sys.stderr)
        return 2
    wanted = Filter(arguments.level, arguments.logger, arguments.process, arguments.field)
    try:
        parser = LineParser(arguments.format or DEFAULT_FORMAT, arguments.datefmt)
    except ValueError as error:
        print(f"mplog tail: --format {error}", file=sys.stderr)
        return 2
    output = _Output(_wants_color(arguments.color))
    sources: list[_Source] = []
    try:
        sources.extend(_Source(path, _View(parser, wanted)) for path in dict.fromkeys(paths))
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


def _follow(sources: list[_Source], output: _Output) -> None:
    """Write what comes, until Ctrl-C, or until whoever reads it has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # tells POLLERR, where it is a pipe that nobody reads any more
    while True:
        has_news = False
        for source in sources:
            data = source.new()
            has_news |= bool(data)
            output.write(source, data)
        if not has_news and any(event & select.POLLERR for _, event in poll.poll(1000 * _INTERVAL)):
            raise BrokenPipeError


def _files_of_server(which: str) -> list[str]:
    """Return the paths of the files of a server.

    Raises:
        MplogError: there is none, or more than one, or it writes no file.
    """
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
        raise MplogError(f"{what} runs. mplog top shows those that do; or name a file: mplog tail app.log")
    if len(servers) > 1:
        raise MplogError(f"{len(servers)} servers run: {known}. Say which: mplog tail --server PID")
    files = [path for path, length in servers[0].look().files if length >= 0 and os.path.isfile(path)]
    if not files:
        raise MplogError(f"server {known} writes into no file.")
    return files


def _wants_color(choice: str) -> bool:
    if choice != "auto":
        return choice == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _View:
    """What is shown of one log.

    Args:
        parser: tells which lines begin a record.
        wanted: which records are shown.

    Attributes:
        parser, wanted: the same.
        is_known: whether a line has begun a record, as far as the parser knows.
        level: of the record that the last line belongs to; None where that is not known.
        begun: how many bytes of a line that is too long have been taken, and more of it is to come; otherwise 0.
    """

    def __init__(self, parser: LineParser, wanted: Filter) -> None:
        self.parser = parser
        self.wanted = wanted
        self._is_shown = wanted.is_empty
        self.is_known = False
        self.level: int | None = None
        self.begun = 0
        self._is_text = False
        self._has_looked = False

    def check(self, path: str) -> None:
        """Raise MplogError where there were lines, and a filter had nothing to go by."""
        if self._has_looked and not self.is_known and not self.wanted.is_empty:
            raise MplogError(
                f"no line of {path} is JSON, or text in the format that was looked for, so there is nothing to filter "
                "by. Say how its lines look: --format '%(asctime)s %(levelname)s %(name)s %(message)s'"
            )

    def begins(self, line: bytes) -> bool:
        """Take the next line, and return whether it begins a record."""
        self._has_looked = True
        record = self.parser.parse(line)
        # In a text log, an object on a line of its own is part of a message.
        if record is None or (record.is_json and self._is_text):
            return False
        self.is_known = True
        self._is_text |= not record.is_json
        self.level = record.level
        self._is_shown = self.wanted.takes(record)
        return True

    def shows(self, line: bytes) -> bool:
        """Take the next line, or piece of one, and return whether it is shown: as the record that it belongs to."""
        if not self.begun:
            self.begins(line)
        return self._is_shown

    def go_on(self, line: bytes) -> None:
        """Note what was taken."""
        is_piece = len(line) >= LONGEST_LINE and not line.endswith(b"\n")
        self.begun = self.begun + len(line) if is_piece else 0

    def last(self, fd: int, end: int, count: int | None) -> int:
        """Return where the last records begin, of those that are shown, in a file of so many bytes."""
        if count is None or not end:
            return 0
        if not count:
            return end
        window = _WINDOW
        while True:
            # From the end on, and further back each time, until there are enough.
            begin = max(0, end - window)
            found = self._last_of(_lines(fd, begin, end), begin > 0, count)
            if len(found) == count or not begin:
                return found[0] if found else end
            window *= 8

    def _last_of(self, lines: Iterable[tuple[int, bytes]], is_cut: bool, count: int) -> deque[int]:
        view = _View(self.parser, self.wanted)
        records: deque[int] = deque(maxlen=count)
        any_lines: deque[int] = deque(maxlen=count)
        for number, (place, line) in enumerate(lines):
            was_text = view._is_text
            if view.begins(line):
                if is_cut and view._is_text and not was_text:
                    records.clear()  # objects in the message of a record that begins before
                if view._is_shown:
                    records.append(place)
            elif number or not is_cut:
                any_lines.append(place)
        self.is_known |= view.is_known
        self._has_looked |= view._has_looked
        # Of an unknown format, each line is a record.
        return records if view.is_known else any_lines if self.wanted.is_empty else deque()


def _lines(fd: int, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its place; of one that is too long, its beginning."""
    place, line = begin, b""
    while begin < end:
        data = os.pread(fd, min(CHUNK, end - begin), begin)
        if not data:
            break
        for piece in io.BytesIO(data):
            begin += len(piece)
            line += piece[: LONGEST_LINE - len(line)]
            if piece.endswith(b"\n"):
                yield place, line
                place, line = begin, b""
    if line:
        yield place, line


class _Source:
    """One log that is shown.

    Args:
        path: of the log.
        view: what is shown of it.

    Raises:
        MplogError: it cannot be read.
    """

    def __init__(self, path: str, view: _View) -> None:
        self.path = path
        self.view = view
        self._fd = open_log(path)
        self._follower: Follower | None = None
        self._is_compressed = path.endswith(tuple(SUFFIXES.values()))
        if self._is_compressed:
            self._unpack()
        self._end = os.fstat(self._fd).st_size

    def _unpack(self) -> None:
        """Have what is in it in a file of its own, which nobody else sees, so that its end can be found."""
        with tempfile.TemporaryFile() as file:
            try:
                with open_compressed(self.path) as source:
                    shutil.copyfileobj(source, file, CHUNK)
            except Exception as error:  # each format raises errors of its own
                raise MplogError(f"{self.path} cannot be unpacked: {error}") from None
            file.flush()
            os.dup2(file.fileno(), self._fd, inheritable=False)

    def close(self) -> None:
        """Close its files."""
        if self._follower is not None:
            self._follower.close()
        else:
            os.close(self._fd)

    def last(self, count: int | None, *, is_followed: bool) -> Iterator[bytes]:
        """Yield the last records, in pieces of whole lines, and have `new` go on behind them."""
        place = self.view.last(self._fd, self._end, count)
        if is_followed and not self._is_compressed:
            self._follower = Follower(self.path, self._fd, place)
            return
        while place < self._end:
            data = read_lines(self._fd, place)[: self._end - place]
            if place + len(data) < self._end:
                data = data[: data.rfind(b"\n") + 1] or data
            if not data:
                return  # it has been cut meanwhile
            place += len(data)
            yield data

    def new(self) -> bytes:
        """Return whole lines that have come since."""
        return b"" if self._follower is None else self._follower.read()


class _Output:
    """Standard output.

    Args:
        has_color: lines get the colour of their level.
    """

    def __init__(self, has_color: bool) -> None:
        self._has_color = has_color
        self._is_terminal = sys.stdout.isatty()
        self._stream = sys.stdout.buffer
        self._current: _Source | None = None
        self.has_headings = False

    def write(self, source: _Source, data: bytes) -> None:
        """Write whole lines, those that are shown."""
        view = source.view
        if not view.wanted.is_empty or self._has_color or self._is_terminal:
            # Not splitlines(), for which a carriage return in a message ends a line, too.
            data = b"".join(self._lines(io.BytesIO(data), view))
        if not data:
            return
        if self.has_headings and source is not self._current:
            # As tail(1) has it.
            path = os.fsencode(source.path)
            path = _harmless(path) if self._is_terminal else path
            self._stream.write(b"%s==> %s <==\n" % (b"\n" if self._current else b"", path))
            self._current = source
        self._stream.write(data)
        self._stream.flush()

    def _lines(self, lines: Iterable[bytes], view: _View) -> Iterator[bytes]:
        for line in lines:
            if view.shows(line):
                yield self._line(line, view)
            view.go_on(line)

    def _line(self, line: bytes, view: _View) -> bytes:
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
    """Return the beginning of a line without what would steer a terminal: somebody else may have chosen its text."""
    # A byte that is no UTF-8 steers terminals that use another encoding. A character that is cut is left out.
    is_whole = len(line) <= _LONGEST_SHOWN
    text, _ = codecs.utf_8_decode(line[:_LONGEST_SHOWN], "backslashreplace", is_whole)
    return printable(text, tab=True).encode()
