"""Make the pictures of docs/watching.rst, from a real run: ``python docs/screens.py``."""

from __future__ import annotations

import io
import logging
import random
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import mplog
from mplog.cli.top_screen import Screen
from mplog.cli.watcher import Watcher

HERE = Path(__file__).parent
SECONDS = 12


def work(initializer: Any, number: int) -> None:
    """Runs in a worker: log like a shop."""
    initializer()
    chance = random.Random(number)
    end = time.monotonic() + SECONDS + 3
    while time.monotonic() < end:
        logger = logging.getLogger(chance.choice(["shop.orders", "shop.stock", "shop.db"]))
        order = chance.randrange(10**4)
        match chance.randrange(40):
            case 0:
                try:
                    {}[order]
                except KeyError:
                    logger.exception("order %d is not in the database", order)
            case 1 | 2:
                logger.warning("order %d is waiting for stock", order)
            case 3 | 4 | 5:
                logger.debug("cache miss for %d", order)
            case _:
                logger.info("order %d sent", order)
        time.sleep(chance.uniform(0.001, 0.004) * (1 + number / 3) * (1.5 + random.Random(int(end)).random()))


def save(name: str, content: Any, width: int, height: int, title: str) -> None:
    """Write a picture of what a terminal would show."""
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(content)
    console.save_svg(str(HERE / name), title=title, theme=MONOKAI, unique_id=name.partition(".")[0])


def main() -> None:
    """Make both pictures."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "shop.log"
        sink = mplog.FileSink(log, rotate="1 MB", compress="gz")
        with mplog.LogServer(sink, Path(directory) / "audit.log", level="DEBUG", overflow="drop_newest") as server:
            workers = [
                Process(target=work, args=(server.initializer, number), name=f"worker-{number}") for number in range(8)
            ]
            for worker in workers:
                worker.start()
            screen = Screen(Watcher([server.queue.directory]), "rate")
            for _ in range(SECONDS * 4):
                screen.look()
                time.sleep(0.25)
            save("top.svg", screen.render(116, 24), 116, 24, "mplog top")
            server.flush()
            command = ["-m", "mplog", "tail", "-n", "14", "--color", "always", str(log)]
            shown = subprocess.run([sys.executable, *command], capture_output=True, check=True).stdout.decode()
            shown = shown.replace(str(HERE), "/srv/shop")  # a reader of the picture has no such directory
            for worker in workers:
                worker.join()
    save("tail.svg", Text.from_ansi(shown), 100, len(shown.splitlines()) + 1, "mplog tail -f shop.log")


if __name__ == "__main__":
    main()
