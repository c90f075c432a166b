"""``mplog top``: the running servers, as a screen, a table, or JSON.

The rule of this file: **it only looks** (`mplog.monitoring.find_servers`). No server notices, whatever state it is in.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from mplog.cli.arguments import to_seconds
from mplog.cli.top_text import as_json, as_text, left_text
from mplog.cli.watcher import SORTS, Watcher
from mplog.errors import MplogError
from mplog.monitoring.find_servers import Found

DESCRIPTION = """\
Show the running log servers of this user: how much they write, how full their
buffers are, what was dropped and why, which processes log to them, and into
which files.

A server is found by the directory of its queue, mplog-*, in the temporary
directory (TMPDIR). For a program with another TMPDIR, name that directory:
mplog top DIRECTORY (server.queue.directory), or TMPDIR=... mplog top. Looking
does not disturb a server: top only reads memory and files.
"""
EXAMPLES = """\
keys:
  q quit, s sort the workers by another column, up and down (k, j) choose
  another server

examples:
  mplog top                       a live screen, until q
  mplog top --once                one table, for an e-mail or a bug report
  mplog top --interval 10 | tee top.txt
  mplog top --json | jq '.servers[].dropped'

exit status:
  0  there is a server
  1  no server of this user runs, or none in the given directories
  2  the arguments make no sense
"""

#: Seconds between two looks of the screen: often enough to see a change, and a negligible load.
_INTERVAL = 1.0
#: Seconds between the two looks from which a single table takes its rates.
GAP = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "directory", nargs="*", metavar="DIRECTORY", help="of a server's queue, as in MPLOG_QUEUE (default: all)"
    )
    parser.add_argument("--once", action="store_true", help="print one table, and end; the default without a terminal")
    parser.add_argument(
        "--interval",
        type=lambda text: to_seconds(text, 0.1),
        metavar="SECONDS",
        help="between two looks (default: 1); without a terminal, print a table each time, until Ctrl-C",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and end")
    parser.add_argument("--sort", choices=list(SORTS), default="rate", help="the order of the workers (default: rate)")


def run(arguments: argparse.Namespace) -> int:
    """Show the servers; return the exit status."""
    if not hasattr(os, "geteuid"):
        raise MplogError("mplog top needs POSIX: on this platform, servers leave nothing to look at.")
    watcher = Watcher(arguments.directory)
    looks = watcher.look(arguments.sort)
    if not looks:
        if arguments.json:
            print(as_json(watcher.found, looks))
        raise MplogError(_nothing_found(watcher.found, arguments.directory))
    is_screen = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if is_screen and not arguments.once and not arguments.json:
        try:
            from mplog.cli.top_screen import show
        except ImportError:
            print("mplog top: for a live screen, install mplog[cli] (rich).", file=sys.stderr)
        else:
            return show(watcher, arguments.sort, arguments.interval or _INTERVAL)
    while True:
        time.sleep(GAP)
        looks = watcher.look(arguments.sort)
        print(as_json(watcher.found, looks) if arguments.json else as_text(watcher.found, looks), flush=True)
        if arguments.interval is None or arguments.once or arguments.json:
            return 0
        time.sleep(max(0.0, arguments.interval - GAP))


def _nothing_found(found: Found, directories: Sequence[str]) -> str:
    where = ", ".join(directories) or f"{found.place}/mplog-*"
    text = f"no server of this user runs in {where}."
    if not directories:
        text += " A program with another TMPDIR has its servers there: TMPDIR=... mplog top."
    return f"{text} {left_text(found.left)}" if found.left else text  # at the end, as a command to be copied
