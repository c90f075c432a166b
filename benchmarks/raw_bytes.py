"""What it costs a worker to send bytes, against writing them into a private file: CPU microseconds a call.

python benchmarks/raw_bytes.py
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import mplog

CALLS = 50_000


def main() -> None:
    """Print a line for each length."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with mplog.LogServer(mplog.RawSink(directory / "raw.bin")) as server:
            for size in (20, 100, 1000, 4000, 20_000):
                data, calls = os.urandom(size), CALLS // max(1, size // 1000)
                fd = os.open(directory / f"private-{size}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                private = _measure(calls, lambda fd=fd, data=data: os.write(fd, data))
                os.close(fd)
                sent = _measure(calls, lambda data=data: server.queue.write(data))
                server.flush()
                print(f"{size:6} bytes: queue.write() {sent:6.2f} us, os.write() to a private file {private:6.2f} us")


def _measure(calls: int, call: object) -> float:
    assert callable(call)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - start) / calls * 1e6)
    return best


if __name__ == "__main__":
    main()
