"""A terminal: a program runs in it, and what a person would see can be read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pyte
from scripts import environment


class Terminal:
    """A program in a terminal of its own.

    Args:
        command: the program, with its arguments.
        columns, lines: the size.
        directory: where it runs; None for that of the tests.
        changes: of the environment.
    """

    def __init__(
        self,
        command: list[str],
        columns: int = 80,
        lines: int = 24,
        directory: Path | None = None,
        **changes: str | None,
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""
        changes = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": None, "LINES": None, **changes}
        self._fd, theirs = pty.openpty()
        try:
            _set_size(theirs, columns, lines)
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                command,
                cwd=directory,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                env=environment(**changes),
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._fd)

    def read(self, seconds: float = 0.01) -> bool:
        """Take what the program writes; return False at its end."""
        if select.select([self._fd], [], [], seconds)[0]:
            data = b""
            with contextlib.suppress(OSError):  # Linux, once the other end is closed
                data = os.read(self._fd, 65536)
            self.output += data
            self._stream.feed(data)
            return bool(data)
        return True

    @property
    def lines(self) -> list[str]:
        """What is on the screen now."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines)

    def wait_for(self, *texts: str, timeout: float = 30) -> str:
        """Wait until all of these are on the screen, and return the whole of it."""
        deadline = time.monotonic() + timeout
        while not all(text in self.text for text in texts):
            assert time.monotonic() < deadline, f"waited for {texts} on the screen:\n{self.text}"
            if not self.read(0.1):
                assert all(text in self.text for text in texts), f"it ended without {texts} on the screen:\n{self.text}"
        return self.text

    def wait_until_gone(self, text: str, timeout: float = 30) -> str:
        """Wait until this is not on the screen any more, and return the whole of it."""
        deadline = time.monotonic() + timeout
        while text in self.text:
            assert time.monotonic() < deadline, f"waited until {text!r} is gone from the screen:\n{self.text}"
            if not self.read(0.1):
                break
        return self.text

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Have another size; the program gets SIGWINCH."""
        self._screen.resize(lines, columns)
        _set_size(self._fd, columns, lines)

    def wait(self, timeout: float = 30) -> int:
        """Wait for the end of the program, and return its exit status."""
        deadline = time.monotonic() + timeout
        while self.read(0.1):
            assert time.monotonic() < deadline, f"waited for the end; on the screen:\n{self.text}"
        return self.process.wait(timeout)


def _set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
