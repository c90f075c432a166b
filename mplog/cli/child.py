"""The command of ``mplog run``, which **does not notice that it is not run directly.**

It has the terminal, stays in the foreground, and gets each signal once. The kernel sends it those of the terminal,
since it is in the same job; mplog passes on those that were sent to mplog.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from mplog.cli.terminal import has_terminal

#: The exit statuses of shells.
NOT_EXECUTABLE, NOT_FOUND = 126, 127

_PASSED_ON = {signal.Signals[f"SIG{name}"] for name in ("INT", "QUIT", "TERM", "HUP", "USR1", "USR2", "TSTP", "CONT")}
_WAITED_FOR = _PASSED_ON | {signal.SIGCHLD}


@contextlib.contextmanager
def signals_held() -> Iterator[set[Any]]:
    """Block the signals that `Command.wait` waits for; yield those that were blocked before, for the command."""
    # If the parent process has SIGCHLD ignored, the kernel would wait for children in our place.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    try:
        yield before
    finally:
        # Signals that came after the command's end were meant for it.
        while signal.sigpending() & _WAITED_FOR:
            signal.sigwait(_WAITED_FOR)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Command:
    """A running command, started with these signals blocked; with `capture`, its output goes into pipes."""

    def __init__(self, command: Sequence[str], mask: set[Any], *, capture: bool) -> None:
        pipe = subprocess.PIPE if capture else None

        def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                # Safe: there are no threads yet.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509
            )

        try:
            self.process = start(command)
        except OSError as error:
            found = shutil.which(command[0])
            if error.errno != errno.ENOEXEC or found is None:
                raise
            self.process = start(["/bin/sh", found, *command[1:]])  # a script without #!, like shells and execvp()
        self._has_terminal = has_terminal()

    def wait(self) -> int:
        """Pass signals on until the command ends; return its ``subprocess.Popen.returncode``."""
        pid = self.process.pid
        while True:
            number, is_from_kernel = _next_signal()
            if number == signal.SIGCHLD:
                while True:
                    ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
                    if not ended:
                        break
                    if not os.WIFSTOPPED(status):
                        self.process.returncode = os.waitstatus_to_exitcode(status)
                        return self.process.returncode
                    self._stop_too(os.WSTOPSIG(status))
            elif not is_from_kernel:
                # waitpid() has not returned the child yet, so the pid is still its own.
                os.kill(pid, number)

    def _stop_too(self, number: int) -> None:
        """Stop like the command, as the shell expects of a job. Its ``fg`` and ``bg`` continue the whole job."""
        is_job_control = number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
        if is_job_control and self._has_terminal and signal.SIGCONT not in signal.sigpending():
            os.kill(os.getpid(), signal.SIGSTOP)


def _next_signal() -> tuple[int, bool]:
    """Return the next signal, and whether it is from the kernel: a key of the terminal, sent to the whole job."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(_WAITED_FOR)
        return info.si_signo, info.si_code > 0 and info.si_signo != signal.SIGCHLD
    return signal.sigwait(_WAITED_FOR), False  # macOS does not tell
