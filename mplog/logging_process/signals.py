"""What wakes up the loop and the supervisor: signals, and threads that have something for the loop."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

#: After SIGTERM, the logging process ends once no record has come for this many seconds: SIGTERM to a group of
#: processes ends the workers at the same moment, and they log about that.
QUIET_SECONDS = 0.5
#: But no later than this after SIGTERM, in seconds.
_TERMINATION_SECONDS = 5.0


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
            signal.signal(signal.SIGIO, lambda *_: None)  # the supervisor has a line for the log
        super().__init__()

    def _on_sigterm(self, *_: object) -> None:
        self.terminated_at = time.monotonic()

    def _on_sighup(self, *_: object) -> None:
        self.shall_reopen = True

    def is_over(self, heard_at: float) -> bool:
        """Whether SIGTERM ends the logging process now; `heard_at` is when the last record came."""
        if self.terminated_at is None:
            return False
        now = time.monotonic()
        quiet = now - max(heard_at, self.terminated_at)
        return quiet > QUIET_SECONDS or now - self.terminated_at > _TERMINATION_SECONDS

    def let_go(self) -> None:
        """Runs in a process that a handler has forked: its signals are those of a process of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.close()
