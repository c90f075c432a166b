"""What a person at a terminal sees while a program ends slowly: how much of the log is left to write.

There is no thread: the code that waits calls `Progress.tick`. An error here never disturbs the end of the server.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from mplog.monitoring.find_servers import RunningServer, Snapshot, find_servers
from mplog.queue.fifo import monotonic
from mplog.queue.log_queue import LogQueue
from mplog.record.plain import printable

#: The environment variable that switches it off: ``MPLOG_PROGRESS=0``.
MPLOG_PROGRESS = "MPLOG_PROGRESS"

#: Seconds between two calls of `Progress.tick`: as often as a person reads a number that changes.
TICK_SECONDS = 0.2
#: Seconds before anything is shown.
SHOWN_AFTER = 1.0
#: Characters of the bar: with the longest text, the line fits into 80 columns.
_BAR = 12
_MEBIBYTE = 2**20


def is_wanted(stream: TextIO | None) -> bool:
    """Return whether the stream is a terminal that a person watches."""
    if os.environ.get(MPLOG_PROGRESS, "").lower() in ("0", "off", "no", "false") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):  # closed
        return False


class Remainder:
    """What is left of what was logged to a queue, as far as it is known: a plain queue does not tell."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue if isinstance(queue, LogQueue) else None
        self._server: RunningServer | None = None

    def look(self) -> tuple[Snapshot | None, int]:
        """Return how the server is, None where that cannot be told, and how many bytes of records are left.

        Those in the buffers are only known where there is a /proc.
        """
        queue, snapshot, left = self._queue, None, 0
        if queue is not None:
            if self._server is None:
                self._server = next(iter(find_servers([queue.directory]).servers), None)
            if self._server is not None:
                snapshot = self._server.look()
                left = snapshot.buffers.unwritten if snapshot.buffers else 0
            with contextlib.suppress(Exception):  # the queue is being closed
                left += queue.pending()
        return snapshot, left


class Progress:
    """Shows what is left while a server writes it."""

    def __init__(self, backlog: Remainder) -> None:
        self._backlog = backlog
        self._stream = sys.stderr
        self._began = monotonic()
        self._total = 0
        self._display: _Plain | _Rich | None = None

    @property
    def ticker(self) -> Callable[[], None] | None:
        """What to call every `TICK_SECONDS`; None if nobody watches."""
        return self.tick if is_wanted(self._stream) else None

    def close(self) -> None:
        """Wipe the display."""
        if self._display is not None:
            with contextlib.suppress(Exception):
                self._display.close()
            self._display = None

    def tick(self) -> None:
        """Show how much is left, if it has taken a while."""
        seconds = monotonic() - self._began
        with contextlib.suppress(Exception):  # a broken terminal is no reason to lose a record
            snapshot, left = self._backlog.look()
            self._total = max(self._total, left)
            if seconds >= SHOWN_AFTER:
                self._display = self._display or _open(self._stream)
                self._display.show(describe(snapshot, left, self._total), self._total - left, self._total, seconds)


def describe(snapshot: Snapshot | None, left: int, total: int) -> str:
    """Return what is going on, in words."""
    if snapshot is not None:
        if snapshot.state == "suspended":
            return f"the logging process is suspended: kill -CONT {snapshot.pid}"
        if snapshot.state == "restarting":
            return "the logging process is being restarted"
        if left:
            return f"writing the log: {left / _MEBIBYTE:.1f} of {total / _MEBIBYTE:.1f} MiB left"
        for directory in sorted({os.path.dirname(path) for path, _ in snapshot.files}):
            # Files that the compressor writes (mplog.files.archives).
            for part in glob.glob(os.path.join(glob.escape(directory), ".*.part")):
                return f"compressing {printable(os.path.splitext(os.path.basename(part)[1:-5])[0])}"
    return "closing the log"


def _open(stream: TextIO) -> _Plain | _Rich:
    try:
        return _Rich(stream)
    except Exception:  # not installed, or too late to be imported: the interpreter ends
        return _Plain(stream)


class _Plain:
    """One line, which is overwritten."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, text: str, done: int, total: int, seconds: float) -> None:
        part = f", {done / total:.0%} done" if total else ""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 80
        line = f"mplog: {text}{part}, {seconds:.0f} s"
        # A line that wraps cannot be overwritten. A terminal that does not know its width says 0.
        self._stream.write(f"\r{line[: (columns or 80) - 1]}\x1b[K")
        self._stream.flush()

    def close(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()


class _Rich:
    """A bar, by rich; raises ImportError where rich is not installed."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = TextColumn("mplog: {task.description}", markup=False), BarColumn(_BAR), TaskProgressColumn()
        self._bars: Any = Bars(
            *columns,
            TextColumn("{task.fields[seconds]:.0f} s"),
            console=Console(file=stream),
            # No thread, and no redirected output.
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bars.add_task("", total=None, seconds=0)
        self._bars.start()

    def show(self, text: str, done: int, total: int, seconds: float) -> None:
        self._bars.update(self._task, description=text, completed=done, total=total or None, seconds=seconds)
        self._bars.refresh()

    def close(self) -> None:
        self._bars.stop()
