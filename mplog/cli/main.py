"""``mplog VERB ...``: find the verb, give it its arguments, and turn what goes wrong into a message and an exit status.

The rule of this package: **a verb loads what it needs, and nothing of the others**; shell scripts call ``mplog log``
thousands of times. A verb is a module with `add_arguments` and `run`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from mplog.errors import MplogError

__all__ = ["FAILED", "MISUSED", "MisusedError", "main"]

#: The exit status of a command that could not do what it was asked for.
FAILED = 1
#: The exit status where the arguments make no sense, as argparse has it.
MISUSED = 2

#: The verbs, and what ``mplog --help`` says of each.
VERBS: dict[str, str] = {
    "run": "run a command with one log of all that it starts",
    "serve": "start, run or stop a server for many commands",
    "log": "send a record, from a shell script",
    "tail": "follow a log across rotations, with filters",
    "top": "show the servers that run",
    "demo": "see it survive kills, in ten seconds",
}


class MisusedError(MplogError):
    """The arguments make no sense: the value of one, or two that do not go together."""


class Verb(Protocol):
    """A module of this package."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of this verb; also the description and the examples of its help."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those behind the name of the program; None (the default) takes those of this process.

    Returns:
        The exit status: 0, `FAILED`, or what the verb says.

    Raises:
        SystemExit: with `MISUSED`, where the arguments make no sense; with 0 for ``--help`` and ``--version``.
    """
    if sys.stdout is None or sys.stderr is None:
        _open_outputs()
    given = sys.argv[1:] if arguments is None else list(arguments)
    verb = "mplog"
    if given[:1] and given[0] in VERBS:
        verb = f"mplog {given[0]}"
    try:
        try:
            return _run(given)
        finally:
            sys.stdout.flush()  # here, where somebody answers for it
    except MplogError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return MISUSED if isinstance(error, MisusedError) else FAILED
    except BrokenPipeError:
        _drop_output()  # whoever read the output has seen enough
    except OSError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        _drop_output()
    except KeyboardInterrupt:
        return 130
    return FAILED


def _run(given: list[str]) -> int:
    """Parse the arguments, and run the verb."""
    parser = argparse.ArgumentParser(prog="mplog", description="One log from many processes.")
    parser.add_argument("--version", action="store_true", help="print the version, and end")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, text in VERBS.items():
        verb_parser = verbs.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in given[:1]:
            _verb(name).add_arguments(verb_parser)
    parsed, unknown = parser.parse_known_args(given)
    if unknown:
        verbs.choices.get(given[0], parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if parsed.version:
        from importlib.metadata import version

        print("mplog", version("mplog"))
        return 0
    if parsed.verb is None:
        parser.print_usage(sys.stderr)
        print("mplog: which of them? See mplog --help.", file=sys.stderr)
        return MISUSED
    return _verb(parsed.verb).run(parsed)


def _open_outputs() -> None:
    """Have the standard outputs that whoever has started this has closed: no other file is to get their numbers."""
    while (fd := os.open(os.devnull, os.O_WRONLY)) <= 2:
        if fd == 1:
            sys.stdout = os.fdopen(fd, "w")
        elif fd == 2:
            sys.stderr = os.fdopen(fd, "w")
    os.close(fd)


def _drop_output() -> None:
    """Keep the interpreter from writing at its end what is left of the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verb(name: str) -> Verb:
    return cast(Verb, importlib.import_module(f"mplog.cli.{name}"))
