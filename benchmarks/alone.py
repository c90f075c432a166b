"""The logging process by itself: with a full queue, and no other process that uses the CPU.

The rule of this file: **only the work of the logging process on a full queue is timed**: read the queue into the
buffers, split the frames, decode them, render the text, write it, and commit. Filling the queue is not timed. The same
run also measures the machine's own rates: of `os.write` with the same text, and of msgspec with the same records.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import mplog
from benchmarks import isolated, workload
from benchmarks.contender import FORMAT, LOGGER
from benchmarks.throughput import Progress
from mplog.record.decoding import Decoder
from mplog.record.encoding import encode

__all__ = ["compare", "measure"]


def compare(rounds: int, records: int, progress: Progress) -> dict[str, Any]:
    """Measure text and JSON, in turn."""
    rows: dict[str, Any] = {}
    for kind in ("text", "json"):
        done = []
        for _ in range(rounds):
            progress(f"the logging process alone: {kind}")
            done.append(isolated.run("alone:measure", timeout=120, kind=kind, records=records))
        good = [outcome for outcome in done if "error" not in outcome]
        rows[kind] = {key: statistics.median(outcome[key] for outcome in good) for key in good[0]} if good else done[0]
    return {"rounds": rounds, "records": records, "rows": rows}


def measure(kind: str, records: int, directory: str) -> dict[str, Any]:
    """Return rates, in records a second. Runs in a process of its own."""
    path = os.path.join(directory, "app.log")
    formatter = mplog.JSONFormatter() if kind == "json" else logging.Formatter(FORMAT)
    handled, busy, cpu = 0, 0.0, 0.0
    queue = mplog.LogQueue()
    with mplog.LogServer(mplog.FileSink(path, format=formatter), queue=queue) as server:
        while handled < records:
            # It is stopped while the queue is filled.
            os.kill(server.pid, signal.SIGSTOP)
            filled = _fill(queue, handled)
            start, start_cpu = time.perf_counter(), workload.cpu_seconds(server.pid)
            os.kill(server.pid, signal.SIGCONT)
            server.flush(60)
            busy += time.perf_counter() - start
            cpu += workload.cpu_seconds(server.pid) - start_cpu
            handled += filled
    text = Path(path).read_bytes()
    if text.count(b"\n") != handled:
        raise RuntimeError(f"{handled} records went into the queue, {text.count(bytes([10]))} lines came out")
    decode = Decoder().decode
    payloads = [encode(_record(number), number, queue.details) for number in range(min(records, 50_000))]
    return {
        "records_per_second": handled / busy,
        "records_per_cpu_second": handled / cpu,
        "lines": text.count(b"\n") / handled,
        "write_batches_per_second": _write_rate(text, handled, 1000, directory),
        "write_each_per_second": _write_rate(text, handled, 1, directory),
        "decode_per_second": _decode_rate(decode, payloads),
        "msgspec_per_second": _decode_rate(msgspec.msgpack.Decoder().decode, payloads),
    }


def _record(number: int) -> logging.LogRecord:
    args = (number, "x" * 27)
    record = logging.LogRecord(LOGGER, logging.INFO, __file__, 1, "record %d %s", args, None, "_record")
    record.processName = "ForkProcess-1"
    return record


def _fill(queue: mplog.LogQueue, number: int) -> int:
    """Fill the queue, and return how many records there are in it."""
    count = 0
    while not queue.full():
        queue.sender.put_record(encode(_record(number + count), number + count + 1, queue.details))
        count += 1
    return count


def _write_rate(text: bytes, records: int, batch: int, directory: str) -> float:
    """Return how many records a second `os.write` takes, in writes of this many."""
    length = len(text) // records
    pieces = [text[at : at + length * batch] for at in range(0, min(len(text), 20 * 2**20), length * batch)]
    fd = os.open(os.path.join(directory, "written"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        start = time.perf_counter()
        for piece in pieces:
            os.write(fd, piece)
        return sum(map(len, pieces)) / length / (time.perf_counter() - start)
    finally:
        os.close(fd)


def _decode_rate(decode: Callable[[bytes], object], payloads: list[bytes]) -> float:
    start = time.perf_counter()
    for payload in payloads:
        decode(payload)
    return len(payloads) / (time.perf_counter() - start)
