"""Compare mplog with other libraries, and write ``docs/benchmarks.rst`` and its plots.

python -m benchmarks.compare            all of it, about 15 minutes on 2 cores
python -m benchmarks.compare --quick    the same with few records, about a minute: shows that everything runs
python -m benchmarks.compare rate idle  some parts
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    # Started by its path: the package is one folder up.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import alone, delivery, idle, latency, memory, plots, report, throughput
from benchmarks.contender import FORMAT
from benchmarks.contenders import CONTENDERS
from benchmarks.machine import describe
from benchmarks.throughput import Progress

__all__ = ["FULL", "PARTS", "QUICK", "Effort", "main", "run"]

PARTS = ("rate", "latency", "lone", "alone", "workers", "sizes", "idle", "memory", "delivery")

#: What the parts that need only a few contenders compare.
_FEW = ["PrivateFiles", "OrdinaryLoggers", "FastLogger", "Cookbook"]
_CURVES = ["PrivateFiles", "OrdinaryLoggers", "FastLogger"]
_IDLE = [
    "OrdinaryLoggers",
    "Cookbook",
    "Sockets",
    "Loguru",
    "MultiprocessingLogging",
    "Logbook",
    "LoggingMp",
    "LoggerTt",
]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: of the comparison; of the other parts, up to 3 at most.
        records: records of each of 2 workers in a round.
        seconds: the length of a measurement of latency.
        lone: how many lone records.
        idle_seconds: the time without any logging.
        memory_records: records that go through the logging process.
        delivery_scale: 1 for the usual amounts.
        patience: seconds after which a process that does not go on counts as hung.
    """

    rounds: int
    records: int
    seconds: float
    lone: int
    idle_seconds: float
    memory_records: int
    delivery_scale: float
    patience: float

    @property
    def few_rounds(self) -> int:
        """The rounds of parts that take long, or vary little."""
        return min(3, self.rounds)


FULL = Effort(5, 100_000, 5.0, 100, 10.0, 1_000_000, 1.0, 10.0)
QUICK = Effort(1, 2_000, 0.5, 10, 1.0, 10_000, 0.1, 2.0)


def run(parts: Sequence[str], contenders: Sequence[str], effort: Effort, progress: Progress) -> dict[str, Any]:
    """Measure.

    Args:
        parts: of `PARTS`.
        contenders: by the names of their classes; each part takes those that make sense for it.
        effort: how much.
        progress: gets a line for each step.

    Returns:
        The results by part, and ``about``; plain data.
    """

    def among(names: Sequence[str]) -> list[str]:
        return [name for name in names if name in contenders]

    few, records = effort.few_rounds, effort.records
    files = [name for name in contenders if CONTENDERS[name].has_file]
    todo = {
        "rate": lambda: throughput.compare(contenders, effort.rounds, records, progress),
        "latency": lambda: latency.compare(among(_FEW), few, effort.seconds, progress),
        "lone": lambda: latency.lone(among(["OrdinaryLoggers", "FastLogger", "Cookbook"]), effort.lone, progress),
        "alone": lambda: alone.compare(few, 5 * records, progress),
        "workers": lambda: throughput.by_workers(among(_CURVES), few, 2 * records, progress),
        "sizes": lambda: throughput.by_size(among(_CURVES), few, records, progress),
        "idle": lambda: idle.compare(among(_IDLE), effort.idle_seconds, progress),
        "memory": lambda: memory.compare("OrdinaryLoggers", effort.memory_records, progress),
        "delivery": lambda: delivery.compare(files, effort.delivery_scale, effort.patience, progress),
    }
    results: dict[str, Any] = {"about": {**describe(), "format": FORMAT, "options": ""}}
    for part in PARTS:
        if part in parts:
            results[part] = todo[part]()
    return results


def write(results: dict[str, Any], directory: Path) -> None:
    """Write the page, the README's table and the plots."""
    directory.mkdir(exist_ok=True)
    (directory / "benchmarks.rst").write_text(report.page(results))
    if "rate" in results:
        (directory / "benchmark-table.rst").write_text(report.readme_table(results))
    try:
        plots.draw(results, directory)
    except ImportError:
        print("no plots: matplotlib is not installed", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parse(arguments)
    if options.render:
        write(json.loads(options.render.read_text()), options.output)
        return
    effort = QUICK if options.quick else FULL
    given = {
        "rounds": options.rounds,
        "records": options.records,
        "memory_records": 10_000_000 if options.long_memory else None,
    }
    effort = Effort(**{**effort.__dict__, **{name: value for name, value in given.items() if value is not None}})
    started = time.monotonic()

    def progress(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)

    results = run(options.parts or PARTS, options.contenders or list(CONTENDERS), effort, progress)
    results["about"]["options"] = _shown(options)
    if options.save:
        options.save.write_text(json.dumps(results, indent=1))
    print(report.page(results))
    if options.output:
        write(results, options.output)


def _shown(options: argparse.Namespace) -> str:
    """Return those options that change the figures, as they are given."""
    words = [*options.parts]
    for name in ("quick", "rounds", "records", "long_memory", "contenders"):
        value = getattr(options, name)
        if value:
            words.append(f"--{name.replace('_', '-')}")
        if value and value is not True:
            words += value if isinstance(value, list) else [str(value)]
    return " ".join(words)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description="Compare mplog with what else there is.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"what to measure: {', '.join(PARTS)}; default all")
    parser.add_argument("--quick", action="store_true", help="few records: shows that everything runs")
    parser.add_argument("--rounds", type=int, help=f"rounds of the comparison (default {FULL.rounds})")
    parser.add_argument("--records", type=int, help=f"records of each worker and round (default {FULL.records:,})")
    parser.add_argument("--long-memory", action="store_true", help="10 million records for the memory, not 1 million")
    parser.add_argument("--contenders", nargs="+", metavar="name", choices=list(CONTENDERS), help="only these")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the page and the plots; default docs/ when all parts are measured in full, else none",
    )
    parser.add_argument("--save", type=Path, metavar="file", help="write the results as JSON, too")
    parser.add_argument("--render", type=Path, metavar="file", help="measure nothing: write the page of saved results")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    is_whole = not (options.parts or options.quick or options.contenders) or options.render
    if options.output is None and is_whole:
        options.output = Path(__file__).resolve().parent.parent / "docs"
    return options


if __name__ == "__main__":
    main()
