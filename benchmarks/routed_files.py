"""What it costs to write one log into many files, in the logging process: CPU seconds, so the disk does not count.

python benchmarks/routed_files.py
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import mplog
from mplog.handlers.text import TextHandler
from mplog.record.decoding import Decoder
from mplog.record.encoding import encode
from mplog.record.layout import Entry
from mplog.sinks.sink import DEFAULT_FORMAT

RECORDS, BATCH = 200_000, 5_000


def entries(workers: int, *, extra: bool) -> list[Entry]:
    """Return a batch of records of this many workers, in turn."""
    decoder, batch = Decoder(), []
    for number in range(BATCH):
        record = logging.LogRecord("app.db", logging.INFO, "x.py", 1, f"query {number} took 0.1 s", None, None)
        record.processName = f"ForkPoolWorker-{number % workers}"
        if extra:
            record.job = number % workers
        batch.append(decoder.decode(encode(record, number)))
    return batch


def rate(sink: mplog.FileSink, batch: list[Entry]) -> float:
    """Return the records a CPU second."""
    handler = sink.open(logging.Formatter(DEFAULT_FORMAT))
    assert isinstance(handler, TextHandler)
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        for _ in range(RECORDS // BATCH):
            handler.handle_entries(batch)
            handler.flush()
        best = max(best, RECORDS / (time.process_time() - start))
    handler.close()
    return best


def main() -> None:
    """Print a line for each number of files."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for workers in (1, 4, 16, 64, 128):
            batch, with_job = entries(workers, extra=False), entries(workers, extra=True)
            one = rate(mplog.FileSink(directory / "one.log"), batch)
            one_job = rate(mplog.FileSink(directory / "one-job.log"), with_job)
            by_process = rate(mplog.RoutedFileSink(directory / "p-{processName}.log"), batch)
            by_job = rate(mplog.RoutedFileSink(directory / "j-{job}.log"), with_job)
            print(
                f"{workers:4} files: {by_process:9,.0f} records/s by process, {by_process / one:.2f} of one file; "
                f"{by_job:9,.0f} by extra, {by_job / one_job:.2f} of one file"
            )


if __name__ == "__main__":
    main()
