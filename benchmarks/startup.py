"""What mplog costs before the first record and after the last: imports, start, stop, memory.

Every figure is the median of fresh interpreters, one of each kind in turn, so that other load on the machine affects
all of them alike. Run it on an idle machine, with every Python that matters:

    python benchmarks/startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORT = """
import json, logging, sys, time
{before}
began = time.perf_counter()
{what}
print(json.dumps({{{name!r}: (time.perf_counter() - began) * 1000}}))
"""

#: By the name of the figure: the module that is loaded first, and the one whose load is timed.
IMPORTS = {
    "import, worker": ("", "import mplog.worker.attach"),
    "import, worker: its stdlib": ("", "import logging.handlers, multiprocessing.queues"),
    "import, worker: msgspec": ("import logging.handlers, multiprocessing.queues", "import msgspec"),
    "import, worker: spawned": ("import multiprocessing.spawn, multiprocessing.pool", "import mplog.worker.attach"),
    "import, program": ("", "import mplog; mplog.LogServer"),
}

SERVER = """
import json, logging, os, tempfile, time
import mplog, psutil

def megabytes():
    memory = psutil.Process(server.pid).memory_full_info()
    return memory.uss / 1e6, memory.rss / 1e6

with tempfile.TemporaryDirectory() as directory:
    server = mplog.LogServer(os.path.join(directory, "app.log"), level="INFO")
    began = time.perf_counter()
    server.start()
    ready = time.perf_counter()
    logging.info("the first")
    server.flush()
    written = time.perf_counter()
    idle = megabytes()
    for number in range(20_000):
        logging.info("record %d", number)
    server.flush()
    busy = megabytes()
    stopping = time.perf_counter()
    server.stop()
    stopped = time.perf_counter()

print(json.dumps({
    "start": (ready - began) * 1000,
    "first record": (written - ready) * 1000,
    "stop": (stopped - stopping) * 1000,
    "memory, USS": idle[0],
    "memory, RSS": idle[1],
    "memory, USS busy": busy[0],
}))
"""

INTERPRETER = """
import json, subprocess, sys, time
began = time.perf_counter()
subprocess.run([sys.executable, "-c", "pass"])
print(json.dumps({"interpreter": (time.perf_counter() - began) * 1000}))
"""

#: The name of the figure, its meaning, its unit, and its limit.
ROWS = [
    ("import, worker", "import what a worker loads, over logging", "ms", 20),
    ("import, worker: its stdlib", "  of which logging.handlers, multiprocessing.queues", "ms", None),
    ("import, worker: msgspec", "  of which msgspec", "ms", None),
    ("import, worker: spawned", "  the same, in a spawned worker of a Pool", "ms", None),
    ("import, program", "import what a program loads, over logging", "ms", None),
    ("start", "LogServer.start(), until ready", "ms", 150),
    ("interpreter", "  of which an interpreter starts and ends", "ms", None),
    ("first record", "first record, until written", "ms", None),
    ("stop", "LogServer.stop(), idle", "ms", 50),
    ("memory, USS", "memory of the logging process, idle (USS)", "MB", 40),
    ("memory, RSS", "  the same, with what it shares (RSS)", "MB", None),
    ("memory, USS busy", "  after 20,000 records (USS)", "MB", 40),
]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="fresh interpreters per figure (%(default)s)")
    rounds = parser.parse_args().rounds
    probes = [IMPORT.format(name=name, before=before, what=what) for name, (before, what) in IMPORTS.items()]
    probes += [INTERPRETER, SERVER]
    figures: dict[str, list[float]] = {name: [] for name, *_ in ROWS}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(rounds + 1):
            for probe in probes:
                for name, figure in run(probe, cache).items():
                    if number > 0:  # the first round compiles the bytecode
                        figures[name].append(figure)
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()},", end=" ")
    print(f"{os.cpu_count()} x {cpu()}; median (lowest to highest) of {rounds}")
    for name, what, unit, aim in ROWS:
        of = figures[name]
        line = f"{what:52} {statistics.median(of):7.1f} {unit}  ({min(of):.1f} to {max(of):.1f})"
        print(line if aim is None else f"{line:85} aim: {aim} {unit}")


def run(probe: str, cache: str) -> dict[str, float]:
    """Run a probe in a fresh interpreter, with the bytecode of all modules, like an installed program."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    done = subprocess.run([sys.executable, "-c", probe], env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def cpu() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    main()
