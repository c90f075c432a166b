"""``mplog VERB ...``: find the verb, give it its arguments, and turn errors into a message and an exit status.

The rule of this package: **a verb loads what it needs, and nothing of the others**, since shell scripts call
``mplog log`` thousands of times. A verb is a module with two functions: ``add_arguments(parser)``, and
``run(arguments)``, which returns the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from mplog.errors import MplogError

#: The exit status of a command that could not do its work.
FAILED = 1
#: The exit status if the arguments make no sense, as in argparse.
MISUSED = 2

#: The verbs, with what ``mplog --help`` says of each.
VERBS: dict[str, str] = {
    "run": "run a command with one log for all that it starts",
    "serve": "start, run or stop a server for many commands",
    "log": "send a record, from a shell script",
    "tail": "follow a log across rotations, with filters",
    "top": "show the running servers",
    "demo": "see it survive kills, in ten seconds",
}


class MisusedError(MplogError):
    """The arguments make no sense: the value of one, or two that do not go together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default of this process; return the exit status: 0, `FAILED`, or what the verb says."""
    if sys.stdout is None or sys.stderr is None:
        _open_outputs()
    given = sys.argv[1:] if arguments is None else list(arguments)
    verb = f"mplog {given[0]}" if given[:1] and given[0] in VERBS else "mplog"
    try:
        try:
            return _run(given)
        finally:
            sys.stdout.flush()  # here, where an error is still reported
    except MplogError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return MISUSED if isinstance(error, MisusedError) else FAILED
    except BrokenPipeError:
        _drop_output()  # the reader of the output has seen enough
    except OSError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        _drop_output()
    except KeyboardInterrupt:
        return 130
    return FAILED


def _run(given: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mplog", description="One log from many processes.")
    parser.add_argument("--version", action="store_true", help="print the version, and end")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, text in VERBS.items():
        verb_parser = verbs.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in given[:1]:
            _module(name).add_arguments(verb_parser)
    parsed, unknown = parser.parse_known_args(given)
    if unknown:
        verbs.choices.get(given[0], parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if parsed.version:
        from importlib.metadata import version

        print("mplog", version("mplog"))
        return 0
    if parsed.verb is None:
        parser.print_usage(sys.stderr)
        raise MisusedError("which verb? See mplog --help.")
    status: int = _module(parsed.verb).run(parsed)
    return status


def _module(verb: str) -> Any:
    return importlib.import_module(f"mplog.cli.{verb}")


def _open_outputs() -> None:
    """Open standard outputs that were closed before the start, so that no other file gets their numbers."""
    while (fd := os.open(os.devnull, os.O_WRONLY)) <= 2:
        if fd == 1:
            sys.stdout = os.fdopen(fd, "w")
        elif fd == 2:
            sys.stderr = os.fdopen(fd, "w")
    os.close(fd)


def _drop_output() -> None:
    """Keep the interpreter from writing the rest of the output at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
