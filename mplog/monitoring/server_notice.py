"""What a logging process tells of itself, so that its server is found from outside: a file in the queue's directory."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import time
from collections.abc import Iterable

import msgspec

from mplog.monitoring.process import start_mark
from mplog.queue.directory import read_file
from mplog.queue.shared_file import replace_file
from mplog.record.packing import pack_json

_NAME = "server"
#: Characters of a command line that are kept.
_LONGEST_COMMAND = 300


class Notice(msgspec.Struct, frozen=True):
    """What a logging process tells of itself, its server and the program that has started the server.

    A mark tells a process from a later one with its pid. `started` is in seconds since the epoch; `memory` is the
    number of the descriptor of the buffers, in the supervisor and in the logging process; `files` are patterns that
    find the files of handlers.
    """

    program: int
    program_mark: str
    command: str
    supervisor: int
    supervisor_mark: str
    pid: int
    world: str
    started: float
    memory: int
    overflow: str
    files: list[str]


def publish(directory: str, program: int, memory: int, overflow: str, handlers: Iterable[logging.Handler]) -> None:
    """Write the notice. Runs in the logging process, when its handlers are open."""
    before = read_notice(directory)
    notice = Notice(
        program,
        start_mark(program) if before is None else before.program_mark,
        _command(program) if before is None else before.command,
        os.getppid(),
        start_mark(os.getppid()),
        os.getpid(),
        this_world(),
        time.time() if before is None else before.started,
        memory,
        overflow,
        list(filter(None, map(_pattern, handlers))),
    )
    with contextlib.suppress(OSError):  # the server is not found from outside then; the log does not depend on it
        replace_file(os.path.join(directory, _NAME), pack_json(notice))


def _pattern(handler: logging.Handler) -> str:
    """Return a pattern that finds the files of a handler; "" for none."""
    path = getattr(handler, "path", None) or getattr(handler, "baseFilename", None)
    pattern = getattr(handler, "glob", None) or (glob.escape(path) if isinstance(path, str) else "")
    # A path may have lone surrogates, which JSON does not take.
    return str(pattern).encode("utf-8", "replace").decode()


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_LONGEST_COMMAND).split(b"\0")
    except OSError:
        return ""
    # The interpreter's directory says nothing of the program.
    return b" ".join((os.path.basename(words[0]), *words[1:])).decode("utf-8", "replace").strip()


def this_world() -> str:
    """Return what names the space of pids: it differs in another container, on another machine, and after a boot."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def read_notice(directory: str) -> Notice | None:
    """Return the notice in the directory of a queue; None if there is none."""
    try:
        return msgspec.json.decode(read_file(os.path.join(directory, _NAME)), type=Notice)
    except (OSError, ValueError):
        return None
