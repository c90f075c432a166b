"""How ``mplog top`` draws its live screen, with rich. What does not fit is left out, the least important first."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mplog.cli.terminal import keyboard, noted_signals
from mplog.cli.top_text import dropped_text, server_cells, size, troubles_text, worker_cells
from mplog.cli.watcher import SORTS, Look, Watcher, Worker
from mplog.queue.buffer_memory import State
from mplog.record.plain import printable

_BARS = "▁▂▃▄▅▆▇█"
#: On terminals with this many columns, files stand beside the workers, not above them.
_WIDE = 130
_STATE_STYLES = {"running": "green", "draining": "yellow", "restarting": "yellow", "suspended": "bold red"}
#: How full the buffers are when a person should look, and when calls will soon wait or drop records.
_FULL, _FULLER = 0.5, 0.8
#: The signals that stop or end it, before which it puts the terminal back as it was: Ctrl-Z, and that of kill(1).
_ENDING = (signal.SIGTSTP, signal.SIGTERM)
#: What the terminal sends for a key: three characters for an arrow.
_KEY = re.compile(r"\x1b[\[O].|.", re.DOTALL)


class Screen:
    """The screen, and what the keys have chosen."""

    def __init__(self, watcher: Watcher, sort: str) -> None:
        self._watcher = watcher
        self._sorts = list(SORTS)
        self.sort = sort
        self._chosen = ""
        self.looks: list[Look] = []

    def look(self) -> None:
        self.looks = self._watcher.look(self.sort)
        if self._chosen not in [look.server.directory for look in self.looks]:
            self._chosen = self.looks[0].server.directory if self.looks else ""

    def press(self, key: str) -> bool:
        """React to a key; return whether to go on."""
        if key == "q":
            return False
        if key == "s":
            self.sort = self._sorts[(self._sorts.index(self.sort) + 1) % len(self._sorts)]
        if key in ("j", "k", "\x1b[A", "\x1b[B", "\x1bOA", "\x1bOB") and self.looks:
            step = -1 if key in ("k", "\x1b[A", "\x1bOA") else 1
            directories = [look.server.directory for look in self.looks]
            self._chosen = directories[(directories.index(self._chosen) + step) % len(directories)]
        return True

    def render(self, width: int, height: int) -> RenderableType:
        """Return the screen for a terminal of this size."""
        head = self._head(width)
        if not self.looks:
            text = "No server of this user runs now. One that starts will be shown here."
            return Group(head, Text(), Text(text, style="yellow"))
        # The chosen server always has most of the room.
        rows = min(len(self.looks), max(1, (height - 14) // 2))
        above = rows + 2 + (rows < len(self.looks))
        look = next(look for look in self.looks if look.server.directory == self._chosen)
        rest = height - 1 - above
        layout = Layout()
        layout.split_column(
            Layout(head, size=1),
            Layout(self._servers(width, rows), size=above),
            Layout(self._details(look, width, rest), size=max(1, rest)),
        )
        return layout

    def _head(self, width: int) -> Text:
        looks = self.looks
        servers = f"{len(looks)} server{'' if len(looks) == 1 else 's'}"
        rate = f"{sum(look.records_per_second for look in looks):,.0f} records/s"
        text = _line(("mplog top", "bold"), f"  {time.strftime('%H:%M:%S')}  {servers}  {rate}")
        left = len(self._watcher.found.left)
        if left:
            text.append(f"  {left} left by killed programs (mplog top --once says which)", style="yellow")
        keys = f"q quit  s sort ({SORTS[self.sort]})" + ("  ↑↓ server" if len(looks) > 1 else "")
        if text.cell_len + len(keys) + 2 <= width:
            text.append(" " * (width - text.cell_len - len(keys)) + keys, style="dim")
        return text

    def _servers(self, width: int, rows: int) -> RenderableType:
        table = _table()
        for name, least in (
            ("SERVER", 0), ("STATE", 28), ("UPTIME", 96), ("RECORDS/S", 0), ("BYTES/S", 60), ("RECORDS", 90),
            ("FILL", 36), ("DROPPED", 46), ("WORKERS", 50), ("RESTARTS", 100),
        ):  # fmt: skip
            if width >= least:
                table.add_column(name, justify="left" if name == "STATE" else "right", no_wrap=True)
        if width >= 60:
            table.add_column("PROGRAM", no_wrap=True, overflow="ellipsis", ratio=1)
        directories = [look.server.directory for look in self.looks]
        first = max(0, min(directories.index(self._chosen) - rows + 1, len(self.looks) - rows))
        for look in self.looks[first : first + rows]:
            stats = look.snapshot.stats
            styles = {
                "STATE": _STATE_STYLES.get(look.snapshot.state, "red"),
                "FILL": _fill_style(look.snapshot.buffers),
                "DROPPED": "bold red" if stats.dropped else "",
                "RESTARTS": "yellow" if stats.restarts else "",
            }
            is_chosen = look.server.directory == self._chosen and len(self.looks) > 1
            _add_row(table, server_cells(look), styles, "reverse" if is_chosen else "")
        if rows < len(self.looks):
            return Group(table, Text(f"… {len(self.looks) - rows} more", style="dim"))
        return table

    def _details(self, look: Look, width: int, height: int) -> RenderableType:
        title = f"server {look.snapshot.pid} of program {look.server.notice.program}"
        inner = width - 4
        facts = self._facts(look, inner if width < _WIDE else inner // 2)
        if width >= _WIDE:
            grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
            grid.add_column(ratio=1)
            grid.add_column(ratio=1)
            room = max(1, height - 2)
            grid.add_row(
                Group(*facts, Text(), self._files(look, max(1, room - len(facts) - 3))),
                self._workers(look, inner // 2, room - 3),
            )
            body: RenderableType = grid
        else:
            room = max(2, height - 2 - len(facts))
            files = min(len(look.snapshot.files) + bool(look.snapshot.more_files), max(1, room // 4))
            parts: list[RenderableType] = [*facts]
            if look.snapshot.files and room >= 8:
                parts.append(self._files(look, files))
                room -= files + 2
            parts.append(self._workers(look, inner, room - 3))
            body = Group(*parts)
        return Panel(body, title=title, title_align="left", border_style="dim", height=max(3, height))

    def _facts(self, look: Look, width: int) -> list[RenderableType]:
        buffers, stats = look.snapshot.buffers, look.snapshot.stats
        history = list(self._watcher.history.get(look.server.directory, ()))
        rate = f"{look.records_per_second:>9,.0f} records/s  "
        bars = _bars(history[1:], max(0, width - 9 - len(rate)))
        peak = f"at most {stats.peak_fill:.0%}"
        fill = _line(("buffers  ", "dim"), peak)
        if buffers:
            length = max(5, min(20, width - 50))
            full = round(buffers.fraction * length)
            fill = _line(
                ("buffers  ", "dim"),
                ("█" * full, _fill_style(buffers) or "green"),
                ("░" * (length - full), "dim"),
                f" {buffers.fraction:.0%}, {peak}, {size(buffers.unwritten)} waiting",
            )
        if buffers and buffers.fraction >= 1:
            waits = look.server.notice.overflow == "block"
            fill.append("; the queue fills, too: " + ("calls wait" if waits else "records are dropped"), style="red")
        dropped = _line(("dropped  ", "dim"), (dropped_text(look), "bold red" if stats.dropped else ""))
        if troubles := troubles_text(look):
            dropped.append(f"; {troubles}", style="yellow")
        return [_line(("rate     ", "dim"), rate, (bars, "cyan")), fill, dropped]

    def _files(self, look: Look, rows: int) -> RenderableType:
        table = _table()
        table.add_column("SIZE", justify="right", no_wrap=True, min_width=9)
        table.add_column("FILE", no_wrap=True, ratio=1, overflow="ellipsis")
        files, more = look.snapshot.files, look.snapshot.more_files
        shown = files if len(files) + bool(more) <= rows else files[: max(0, rows - 1)]
        for path, length in shown:
            table.add_row(size(length), Text(_end_of(printable(path))))
        more += len(files) - len(shown)
        if more:
            table.add_row("", Text(f"… {more} more", style="dim"))
        return table

    def _workers(self, look: Look, width: int, rows: int) -> RenderableType:
        table = _table()
        table.add_column("PID", justify="right", no_wrap=True)
        table.add_column("WORKER", no_wrap=True, ratio=1, overflow="ellipsis")
        # Columns are left out if there is no room for them, the least important first.
        for name, least in (("RECORDS/S", 0), ("RECORDS", 60), ("DROPPED", 46)):
            if width >= least:
                table.add_column(name, justify="right", no_wrap=True)
        shown = look.workers if len(look.workers) <= rows else look.workers[: max(0, rows - 1)]
        for worker in shown:
            cells = worker_cells(worker)
            cells["WORKER"] += "" if worker.is_alive else " (ended)"
            styles = {"DROPPED": "bold red" if worker.dropped else ""}
            _add_row(table, cells, styles, "" if worker.is_alive else "dim")
        if rest := look.workers[len(shown) :]:
            records, rate, dropped = (sum(values) for values in zip(*((w.records, w.rate, w.dropped) for w in rest)))
            more = Worker(0, f"… {len(rest)} more", int(records), rate, int(dropped), True)
            _add_row(table, worker_cells(more) | {"PID": ""}, {"WORKER": "dim"})
        return table


def _line(*parts: str | tuple[str, str]) -> Text:
    """Return one line of texts, some with a style."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, expand=True, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _add_row(table: Table, cells: dict[str, str], styles: dict[str, str], style: str = "") -> None:
    """Add those cells for which the table has columns."""
    names = [str(column.header) for column in table.columns]
    table.add_row(*(Text(cells[name], style=styles.get(name, "")) for name in names), style=style)


def _fill_style(buffers: State | None) -> str:
    fill = buffers.fraction if buffers else 0.0
    return "bold red" if fill >= _FULLER else "yellow" if fill >= _FULL else ""


def _bars(values: Sequence[float], width: int) -> str:
    values = values[-width:] if width else []
    most = max(values, default=0.0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values) if most else ""


def _end_of(path: str) -> str:
    """Return a path with the home directory as ``~``: its end tells files apart."""
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if home != "/" and path.startswith(f"{home}/") else path


def show(watcher: Watcher, sort: str, interval: float) -> int:
    """Show the screen until q or Ctrl-C; return the exit status."""
    screen = Screen(watcher, sort)
    while (number := _show(screen, interval)) is not None:
        os.kill(os.getpid(), number)  # its handler is the original one again
    return 0


def _show(screen: Screen, interval: float) -> int | None:
    """Show the screen until q or Ctrl-C, or a signal that stops or ends it; return that signal, or None."""
    console = Console()
    with (
        contextlib.suppress(KeyboardInterrupt),
        keyboard() as keys,
        noted_signals(signal.SIGWINCH, _ENDING) as signals,
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live,
    ):
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                screen.look()
                due = now + interval
            live.update(screen.render(console.width, console.height), refresh=True)
            sources = [fd for fd in (keys, signals) if fd >= 0]
            ready, _, _ = select.select(sources, [], [], max(0.0, due - time.monotonic()))
            if signals in ready:
                for number in os.read(signals, 4096):
                    if number in _ENDING:
                        return number
            if keys in ready:
                typed = os.read(keys, 64).decode("ascii", "replace")
                if not typed or not all(screen.press(key) for key in _KEY.findall(typed)):
                    break  # q, or the terminal has gone
                due = 0.0 if "s" in typed else due
    return None
