"""The oracle: producers that say what they log, and a reader that says what became of it.

A producer logs lines that carry a sequence number and a checksum of their payload, and, once the logging call has
returned, writes the number into a file of its own, which survives any death of the process: the acknowledgement.
`verdict` then reads the log and counts, per producer, what was lost, doubled, torn and out of order.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import re
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"producer=(\S+) seq=(\d+) crc=([0-9a-f]{8}) payload=(\S*)$")


class Counter:
    """A number in shared memory, which survives the death of the process that counts.

    Args:
        directory: where the numbers are.
        name: of this one.
        kind: the beginning of the file's name.
    """

    def __init__(self, directory: str | os.PathLike[str], name: object, kind: str = "count") -> None:
        descriptor = os.open(os.path.join(directory, f"{kind}-{name}"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, 8)
            # Not by struct, whose pack_into() clears the place first: a kill in between would leave a 0.
            self._word = memoryview(mmap.mmap(descriptor, 8)).cast("Q")
        finally:
            os.close(descriptor)

    def set(self, value: int) -> None:
        """Set it, in one store."""
        self._word[0] = value

    @property
    def value(self) -> int:
        """What it is."""
        return self._word[0]


class Producer:
    """Logs numbered, checksummed lines, and acknowledges each in a file.

    Args:
        directory: where the acknowledgements are.
        name: unique among the producers of a test; by default the pid.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str | None = None) -> None:
        self.name = name or str(os.getpid())
        self._numbers = itertools.count(1)
        self._acknowledged = Counter(directory, self.name, "ack")

    def log(self, size: int = 100, logger: logging.Logger | None = None) -> int:
        """Log one line with a payload of `size` bytes, acknowledge it, and return its number."""
        number = next(self._numbers)
        payload = (f"{self.name}:{number}:" * (size // 8 + 1))[:size]
        checksum = zlib.crc32(payload.encode())
        (logger or logging.getLogger("producer")).info(
            "producer=%s seq=%d crc=%08x payload=%s", self.name, number, checksum, payload
        )
        self._acknowledged.set(number)
        return number


@dataclass
class Verdict:
    """What became of the lines; all empty is what must be. Each is a list of (producer, number)."""

    lost: list[tuple[str, int]] = field(default_factory=list)
    doubled: list[tuple[str, int]] = field(default_factory=list)
    disordered: list[tuple[str, int]] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    #: Lines in the log, and acknowledged ones.
    written: int = 0
    acknowledged: int = 0

    @property
    def clean(self) -> bool:
        """Nothing lost, doubled, torn or out of order, and something there at all."""
        return not (self.lost or self.doubled or self.disordered or self.torn) and self.written > 0


def verdict(log: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Verdict:
    """Compare the log with the acknowledgements in `directory`."""
    result = Verdict()
    numbers: dict[str, list[int]] = defaultdict(list)
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            if "producer=" not in line:
                continue
            found = _LINE.search(line.rstrip("\n"))
            if found is None or f"{zlib.crc32(found[4].encode()):08x}" != found[3]:
                result.torn.append(line[:200])
                continue
            numbers[found[1]].append(int(found[2]))
            result.written += 1
    for name, seen in numbers.items():
        result.doubled += [(name, number) for number, count in _counted(seen) if count > 1]
        result.disordered += [(name, after) for before, after in itertools.pairwise(seen) if after < before]
    for path in Path(directory).glob("ack-*"):
        name = path.name.removeprefix("ack-")
        last = acknowledged(directory, name)
        result.acknowledged += last
        there = set(numbers[name])
        result.lost += [(name, number) for number in range(1, last + 1) if number not in there]
    return result


def acknowledged(directory: str | os.PathLike[str], name: str) -> int:
    """Return how many lines of a producer have been acknowledged so far; 0 also before it has started."""
    try:
        data = Path(directory, f"ack-{name}").read_bytes()
    except FileNotFoundError:
        return 0
    return int.from_bytes(data, sys.byteorder)


def _counted(numbers: list[int]) -> list[tuple[int, int]]:
    counts: dict[int, int] = defaultdict(int)
    for number in numbers:
        counts[number] += 1
    return list(counts.items())


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Wait until the condition holds; fail, and say for what, when it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} seconds until {what}"
        time.sleep(0.005)
