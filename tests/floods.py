"""Workers that log flat out, or start others that do. Light to import, since every spawned worker does."""

from __future__ import annotations

import functools
import itertools
import logging
import logging.handlers
import os
import random
import re
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from oracle import Counter, Producer

import mplog

PIECE = struct.Struct("<4sIIII")  # a mark, worker, number, length and checksum of the rest


def flood_until_killed(server: Any, directory: str, name: str, largest: int) -> None:
    """Runs in a worker: log until killed; keep the longest call, in milliseconds."""
    server()
    producer, slowest = Producer(directory, name), Counter(directory, f"slowest-{name}")
    sizes = random.Random(name)
    while True:
        started = time.monotonic()
        producer.log(round(100 * (largest / 100) ** sizes.random()))
        slowest.set(max(slowest.value, round(1000 * (time.monotonic() - started))))


class Refused(logging.Handler):
    """Counts in a file what falls back to stderr."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.count = 0
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the number of the record down."""
        found = re.search(r"seq=(\d+)", record.getMessage())
        assert found is not None
        os.write(self.fd, found[1].encode() + b"\n")
        self.count += 1


def flood_until_refused(server: Any, directory: str, name: str) -> None:
    """Runs in a worker: log until the server takes no more."""
    sys.stderr = Path(directory, f"stderr-{name}").open("w")  # noqa: SIM115
    server()
    logging.lastResort = refused = Refused(os.path.join(directory, f"refused-{name}"))  # type: ignore[assignment]
    producer = Producer(directory, name)
    sizes = itertools.cycle([10, 100, 100, 20_000])
    while refused.count < 50:
        producer.log(next(sizes))


def piece(worker: int, number: int, size: int) -> bytes:
    """Return bytes that tell what they are."""
    content = random.Random(number).randbytes(size)
    return PIECE.pack(b"PIEC", worker, number, size, zlib.crc32(content)) + content


def flood_with_pieces(initializer: Any, directory: str, worker: int, ending: Any) -> None:
    """Runs in a worker: write numbered pieces of many sizes, and log between them, until told to end."""
    initializer()
    count, chance = Counter(directory, worker), random.Random(worker)
    for number in itertools.count(1):
        mplog.write(piece(worker, number, chance.choice((10, 10, 10, 200, 200, 5000, 20_000))))
        count.set(number)
        if number % 10 == 0:
            logging.info("%d", number)
            if ending.is_set():
                return


def log_many(initializer: Any, name: str, count: int) -> None:
    """Runs in a worker."""
    initializer()
    for number in range(count):
        logging.getLogger("worker").info("%s %d", name, number)


def log_as_the_stdlib_does(queue: Any, name: str, count: int) -> None:
    """Runs in a worker that knows nothing of mplog."""
    logging.getLogger().handlers = [logging.handlers.QueueHandler(queue)]
    logging.getLogger().setLevel("DEBUG")
    for number in range(count):
        logging.getLogger("worker").info("%s %d", name, number)


def log_as(directory: str, name: str, _: object = None) -> str:
    """Log some lines as a producer of this name."""
    producer = Producer(directory, name)
    for _ in range(10):
        producer.log()
    return name


def log_in_pool(directory: str, number: int) -> str:
    """Runs in a worker of a Pool of a worker."""
    return log_as(directory, f"third level {number} of {os.getppid()}".replace(" ", "-"))


def start_pool(initializer: Any, directory: str, library_name: str, method: str) -> None:
    """Runs in a Process: log, start a Pool whose workers log, and log again."""
    initializer()
    context = __import__(library_name).get_context(method)
    producer = Producer(directory, f"second-{os.getpid()}")
    producer.log()
    with context.Pool(2, initializer) as pool:
        pool.map(functools.partial(log_in_pool, directory), range(4))
    producer.log()
