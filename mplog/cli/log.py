"""``mplog log``: records from shell scripts.

The rule of this file: **it is started for a single line, thousands of times, so it loads little.** Only for a full
queue, filters, redactors or a long record does it log as a Python program does, through `attach`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mplog.cli.arguments import running_queue, to_level
from mplog.cli.main import MisusedError
from mplog.errors import MplogError
from mplog.queue.directory import read_file
from mplog.queue.fifo import open_writer, was_written

if TYPE_CHECKING:
    import logging

HELP = """\
Send a record to the running server that MPLOG_QUEUE or --queue names.

KEY=VALUE adds a field with a text, KEY:=JSON one of any type. Fields follow
the message, and are also fields of the record: %(KEY)s in a format, "KEY" in
JSON.
"""

EPILOG = """\
examples:
  mplog log info "backup done"
  mplog log warning "disk almost full" mount=/home percent:=97
  mplog log --logger backup.db error "dump failed" table="$table" status:=$?
  ./convert 2>&1 | mplog log info -            # a record for each line

exit status:
  0  the server has the record, or drops it because of its level
  1  there is no server; the message is printed on standard error
  2  the arguments make no sense
"""

_FIELD = re.compile(r"([A-Za-z_][\w.-]*)(:?=)(.*)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mplog log [OPTION ...] LEVEL MESSAGE [KEY=VALUE ...]"
    parser.description, parser.epilog = HELP, EPILOG
    parser.add_argument(
        "level", metavar="LEVEL", type=to_level, help="debug, info, warning, error, critical, or a number"
    )
    parser.add_argument("-l", "--logger", metavar="NAME", default="shell", help="the logger (default: shell)")
    parser.add_argument(
        "--process", metavar="NAME", help="what the log calls the process (default: the script's name and pid)"
    )
    parser.add_argument("--fields-only", action="store_true", help="do not repeat the fields after the message")
    parser.add_argument("--queue", metavar="PATH", help="the server's queue, or its log (default: MPLOG_QUEUE)")
    # After the level, nothing is an option: a message may look like one.
    parser.add_argument(
        "message",
        metavar="MESSAGE [KEY=VALUE ...]",
        nargs=argparse.REMAINDER,
        help="the message, or - for a record of each line of standard input; and fields",
    )


def _field(text: str) -> tuple[str, Any]:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not KEY=VALUE: quote a message of several words, and put options before LEVEL")
    key, sign, value = found.groups()
    if sign == "=":
        return key, value
    try:
        return key, json.loads(value)
    except ValueError:
        raise ValueError(f"{text!r}: what follows := must be JSON; for a text, use {key}=") from None


def run(arguments: argparse.Namespace) -> int:
    """Send the record, or those of the lines of standard input."""
    try:
        # Bytes that are not UTF-8 become escapes, as in lines of standard input.
        message, *texts = [os.fsencode(text).decode("utf-8", "backslashreplace") for text in arguments.message]
        fields = [_field(text) for text in texts]
    except ValueError as error:
        reason = error if arguments.message else "MESSAGE is missing"
        raise MisusedError(f"{reason}. See mplog log --help.") from None
    lines = _read_lines() if message == "-" else iter([message])
    suffix = "" if arguments.fields_only else "".join(f" {key}={_shown(value)}" for key, value in fields)
    messages = (line + suffix for line in lines)
    process = arguments.process or _name_of_script()
    send: Callable[[str], None] | None = None
    for message in messages:
        try:
            send = send or _sender(arguments.queue, _Record(arguments.logger, arguments.level, process, fields))
            send(message)
        except MplogError as error:
            print(f"mplog log: {error}", file=sys.stderr)
            for lost in itertools.chain([message], messages):
                print(lost, file=sys.stderr)
            return 1
    return 0


def _read_lines() -> Iterator[str]:
    from mplog.cli.capture import LONGEST_LINE, Lines

    lines = Lines()
    while data := os.read(0, LONGEST_LINE):
        yield from lines.feed(data)
    yield from lines.end()


def _shown(value: Any) -> str:
    """Return the value of a field as it follows the message."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False) if re.search(r'[\s="]|^$', value) else value


def _name_of_script() -> str:
    """Return the name and pid of the script that has started this process."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()}-{parent}"
    except OSError:
        return f"shell-{parent}"


class _Record(NamedTuple):
    """What all records of this command have in common."""

    logger: str
    level: int
    process: str
    fields: list[tuple[str, Any]]

    def extra(self) -> dict[str, Any]:
        """Return the fields. Names that a record already has get an underscore, as with ``mplog.context()``."""
        if not self.fields:
            return {}
        import logging

        taken = logging.LogRecord("", 0, "", 0, "", None, None).__dict__.keys() | {"message", "asctime", "taskName"}
        return {f"{key}_" if key in taken else key: value for key, value in self.fields}

    def full(self, message: str) -> logging.LogRecord:
        """Return a record as logging makes it."""
        import logging

        made = logging.LogRecord(self.logger, self.level, "", 0, message, None, None)
        made.processName = self.process
        made.__dict__.update(self.extra())
        return made


def _sender(queue: str | None, record: _Record) -> Callable[[str], None]:
    """Return a function that sends a message; raises MplogError if there is no server."""
    where = running_queue(queue)
    try:
        # First: this also checks that the queue is this user's, and with it the rest of the directory.
        fifo = open_writer(os.path.join(where, "queue"))
    except OSError:
        return _through_attach(where, record)
    state = read_state(where)
    if state is None or not is_direct(state):
        return _through_attach(where, record)
    if record.level < _effective_level(state, record.logger) or record.level <= state["disable"]:
        return lambda message: None
    from mplog.cli.wire import encode
    from mplog.record.frame import RECORD, frame

    level_name = dict(state["level_names"]).get(record.level, f"Level {record.level}")
    origin = os.getpid(), record.logger, record.level, level_name, record.process
    extra = record.extra()
    number = 0
    slowly: Callable[[str], None] | None = None

    def send(message: str) -> None:
        nonlocal number, slowly
        number += 1
        if slowly is None:
            try:
                whole = frame(RECORD, encode(number, message, extra, time.time(), origin))
                if whole is not None:
                    os.write(fifo, whole)  # whole or not at all
                    return
            except (ValueError, OSError) as error:
                if isinstance(error, OSError) and was_written(error):
                    return
            slowly = _through_attach(where, record, number)
        slowly(message)

    return send


def read_state(directory: str) -> dict[str, Any] | None:
    """Return what the server has published of its levels and handlers; None if there is nothing."""
    try:
        state: dict[str, Any] = json.loads(read_file(os.path.join(directory, "logging")))
    except (OSError, ValueError):
        return None
    return state


def is_direct(state: dict[str, Any]) -> bool:
    """Return whether only levels decide what happens to a record before it is in the queue."""
    layout = state["layout"]
    special = (layout["filters"], layout["with_args"], layout["preparation"], layout["senders"] != [""])
    others = (state["isolated"], state["disabled"], state["sync"], state["details"])
    return not any(special) and not any(others) and state["overflow"]["policy"] != "drop_below"


def _effective_level(state: dict[str, Any], logger: str) -> int:
    levels = state["levels"]
    while logger:
        if logger in levels:
            return int(levels[logger])
        logger = logger.rpartition(".")[0]
    return int(state["level"])


def _through_attach(directory: str, record: _Record, begin: int = 1) -> Callable[[str], None]:
    """Return a function that sends messages as a Python program does, numbered from `begin`."""
    import logging

    from mplog.errors import NoReaderError
    from mplog.worker.attach import attach

    handler = attach(directory)
    log_queue: Any = handler.queue
    log_queue.sequence = itertools.count(begin)

    def raise_again(record: logging.LogRecord, error: NoReaderError) -> None:
        raise error

    # A Python program goes on without its server; here, the error is reported.
    handler.fall_back = raise_again  # type: ignore[method-assign]
    logger = logging.getLogger(record.logger)

    def send(message: str) -> None:
        if logger.isEnabledFor(record.level):
            logger.handle(record.full(message))

    return send
