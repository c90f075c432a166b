"""Start a fresh interpreter that inherits a connection and the FIFO, and nothing else of the program.

It has a session of its own, so that no signal for the program's terminal or process group reaches it. And it is the
child of a process that has ended: a program that waits for all its children (wait(2)) does not wait for it.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from multiprocessing import spawn, util
from typing import Any

from mplog.errors import StartError

# Its first imports are the stdlib's, not the current directory's, which -c puts first; the rest comes from where the
# program would take it. What is imported is no garbage, so the garbage collector is off until
# `mplog.logging_process.supervisor.main`.
_BOOTSTRAP = (
    ("import os; os.fork() and os._exit(0); " if hasattr(os, "fork") else "import os; ")
    + "import gc, sys; gc.disable(); sys.path = [entry for entry in sys.path if entry]; "
    "from multiprocessing import connection; "
    "control = getattr(connection, sys.argv[1])(int(sys.argv[2])); "
    "control.send(os.getpid()); sys.path[:] = control.recv() or sys.path; "
    "from mplog.logging_process.supervisor import run; run(control)"
)


def start_supervisor(end: Any, fd: int) -> subprocess.Popen[Any]:
    """Start the supervisor with its `end` of the connection; -1 is no `fd`.

    Over the connection, it first sends its pid, and then receives `module_path`. The process that is returned ends as
    soon as the supervisor has begun, except on Windows, where it is the supervisor.
    """
    executable = _executable()
    options: dict[str, Any] = {}
    number, spare = end.fileno(), []
    if sys.platform == "win32":
        os.set_handle_inheritable(number, True)
        options["startupinfo"] = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [number]})
    else:
        # A daemon may have closed the standard streams. Nothing else may get their numbers: errors would be written
        # into it.
        while number < 3:
            number = os.dup(number)
            spare.append(number)
        options["pass_fds"] = [inherited for inherited in (number, fd) if inherited >= 0]
        closed = [name for name, stream in (("stdout", 1), ("stderr", 2)) if not _is_inheritable(stream)]
        options |= dict.fromkeys(closed, subprocess.DEVNULL)
    # A frozen program has flags (-S) with which an interpreter would not find its own modules.
    flags = [] if _is_frozen() else util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    try:
        return subprocess.Popen(
            [executable, *flags, "-c", _BOOTSTRAP, type(end).__name__, str(number)],
            stdin=subprocess.DEVNULL,
            # Some Pythons (3.13.0) cannot import everything where the working directory has been removed.
            cwd=_working_directory(),
            start_new_session=True,
            **options,
        )
    except OSError as error:
        advice = "If this is not a Python interpreter, name one with multiprocessing.set_executable()."
        if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
            advice = "The machine, the container or this user has no process, memory or descriptor left for it."
        raise StartError(f"the logging process could not be started: {error}. {advice}") from error
    finally:
        for number in spare:
            os.close(number)


def _executable() -> str:
    """Return what the program has named, or the Python that runs it; nothing else is ever started."""
    named = os.fsdecode(spawn.get_executable() or "")
    if named and named != sys.executable:
        return named
    if not _is_frozen():
        # An interpreter has its own name only in sys.orig_argv. A program that embeds Python has it in both or in
        # neither, and its sys.executable may be that program (uWSGI, Blender), or whatever Python PATH has.
        if named and sys.orig_argv and sys.orig_argv[:1] != sys.argv[:1]:
            return named
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}{sys.abiflags}"
        installed = os.path.join(sys.exec_prefix, "bin", name)
        if os.access(installed, os.X_OK):
            return installed
        if os.path.basename(named).startswith("python"):
            return named
    why = "and the program is frozen" if _is_frozen() else "which is no Python"
    raise StartError(
        "the logging process needs a Python interpreter to run in, and this program knows none: "
        f"sys.executable is {sys.executable!r}, {why}. "
        "Name one that has the same version, with mplog installed: multiprocessing.set_executable()."
    )


def _is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


def module_path() -> list[str]:
    """Return sys.path as another process needs it: absolute, and without a working directory that was removed.

    It is empty for a frozen program, whose modules are of no use to an interpreter of its own.
    """
    if _is_frozen():
        return []
    path = []
    for entry in sys.path:
        try:
            path.append(os.path.abspath(entry))
        except OSError:
            continue
    return path


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return os.sep


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False
