"""What wakes up the loop and the supervisor: signals, and threads that have something for the loop.

Signals that are sent to all processes of a service do not end the log: it ends after the program and the last worker.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time

#: Seconds after SIGTERM at which the logging process lets another one take its place. SIGTERM to all processes of a
#: service also ends the program and the workers; most take less, and the log then ends with the last of them.
TERMINATION_SECONDS = 3.0


def ignore_signals() -> None:
    """Have no signal end this process that is meant for the program; it may have blocked some of them."""
    for name in ("SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Wakeup:
    """Makes the socket `awake` readable at each signal that Python handles, and at `wake`."""

    def __init__(self) -> None:
        self.awake, self._waking = socket.socketpair()
        self.awake.setblocking(False)
        self._waking.setblocking(False)
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)

    def wake(self) -> None:
        """Make `awake` readable. Called from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._waking.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.awake.recv(4096)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self.awake.close()
        self._waking.close()


class Signals(Wakeup):
    """SIGTERM, `wake`, and SIGHUP, which tells a daemon that files have been moved and must be reopened."""

    def __init__(self) -> None:
        self.terminated_at: float | None = None
        self.shall_reopen = False
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._on_sighup)
        super().__init__()

    def _on_sigterm(self, *_: object) -> None:
        self.terminated_at = time.monotonic()

    def _on_sighup(self, *_: object) -> None:
        self.shall_reopen = True

    @property
    def has_waited(self) -> bool:
        """Whether SIGTERM came so long ago that it was meant for this process alone."""
        return self.terminated_at is not None and time.monotonic() - self.terminated_at > TERMINATION_SECONDS

    def let_go(self) -> None:
        """Runs in a process that a handler has forked: its signals are those of a process of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.close()
