"""Parse every module of Python's own standard library with a Pool of workers, all of which write into one log.

    python examples/stdlib_survey.py [LOG [DIRECTORY]]

Each file is a line in the log. Odd code is a warning, and a file that does not parse is an error with its traceback
(the standard library ships broken modules, to test itself). Every process numbers its records, so at the end the log
itself shows that each record of each worker is there, once and in order.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
import sysconfig
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import mplog

FORMAT = "%(asctime)s %(levelname)-8s %(processName)s %(process)d #%(number)d %(name)s | %(message)s"
RECORD = re.compile(r"^\S+ \S+ (?P<level>\w+) +(?P<process>\S+ \d+) #(?P<number>\d+) \S+ \| ", re.MULTILINE)
LONG = 200

logger = logging.getLogger("survey")


class NumberedRecord(logging.LogRecord):
    """A log record with its number among those of its process."""

    count = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        NumberedRecord.count += 1
        self.number = NumberedRecord.count


def prepare() -> None:
    """Number the records of this process, and log Python's own warnings, too."""
    NumberedRecord.count = 0
    logging.setLogRecordFactory(NumberedRecord)
    logging.captureWarnings(True)
    warnings.simplefilter("always")
    # Python 3.15 warns of the script itself while it formats a traceback in a worker that was not forked.
    warnings.filterwarnings("ignore", "Module globals", DeprecationWarning)


def survey(path: Path) -> tuple[int, int]:
    """Log the findings about a file; return the worker's pid, and how many records it has logged by now."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        logger.warning("%s: does not decode: %s", path, error)
        return os.getpid(), NumberedRecord.count
    try:
        tree = ast.parse(source, path)
    except Exception:
        logger.exception("%s: does not parse", path)
        return os.getpid(), NumberedRecord.count
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for function in functions:
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > LONG:
            logger.warning("%s:%d: %s() has %d lines", path, function.lineno, function.name, length)
    logger.info("%s: %d lines, %d functions", path, source.count("\n"), len(functions))
    return os.getpid(), NumberedRecord.count


def modules(directory: Path) -> Iterator[Path]:
    """Yield the Python files below a directory, except those of installed packages."""
    for path in sorted(directory.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(path.parts):
            yield path


def summary(log: Path, logged: dict[int, int]) -> bool:
    """Print how many records of each process are in the log; return whether all are there, once and in order."""
    levels: dict[str, Counter[str]] = {}
    numbers: dict[str, list[int]] = {}
    for record in RECORD.finditer(log.read_text(encoding="utf-8")):
        levels.setdefault(record["process"], Counter())[record["level"]] += 1
        numbers.setdefault(record["process"], []).append(int(record["number"]))
    print(f"{'process':30} {'logged':>8} {'in the log':>10} {'INFO':>8} {'WARNING':>8} {'ERROR':>8}")
    for process, count in levels.items():
        own = logged.pop(int(process.split()[1]))
        complete = numbers[process] == list(range(1, own + 1))
        print(f"{process:30} {own:8} {count.total():10}", end="")
        print(f" {count['INFO']:8} {count['WARNING']:8} {count['ERROR']:8}  {'' if complete else 'NOT COMPLETE'}")
        if not complete:
            return False
    return not logged


def main() -> None:
    """Survey the standard library, or another directory."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "stdlib_survey.log")
    directory = Path(sys.argv[2] if len(sys.argv) > 2 else sysconfig.get_path("stdlib"))
    log.unlink(missing_ok=True)
    prepare()
    began = time.monotonic()
    files = 0
    logged: dict[int, int] = {}  # records by the pid of the process
    with mplog.LogServer(log, level="INFO", format=FORMAT) as server:
        with Pool(max(2, os.cpu_count() or 1), initializer=server.initializer.then(prepare)) as pool:
            for pid, count in pool.imap_unordered(survey, modules(directory), chunksize=8):
                files += 1
                logged[pid] = max(count, logged.get(pid, 0))
        logger.info("%d files surveyed", files)
        logged[os.getpid()] = NumberedRecord.count
    print(f"{files} files of {directory} in {time.monotonic() - began:.1f} seconds, see {log}\n")
    if not summary(log, logged):
        sys.exit("\nRecords are missing, doubled or out of order.")
    print("\nEvery record of every process is in the log, once and in order.")


if __name__ == "__main__":
    main()
