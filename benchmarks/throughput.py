"""Rates and CPU time, in interleaved rounds.

The rule of this file: **a round has every contender once, and only figures of one round are compared**, so that other
load on the machine affects all alike. Each round begins with another contender.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any

from benchmarks import isolated
from benchmarks.contenders import BASE, CONTENDERS, by_name
from benchmarks.pipe import PipeLimit

__all__ = ["SIZES", "WORKERS", "by_size", "by_workers", "compare", "identity", "interleaved", "once"]

SIZES = (20, 200, 2_000, 20_000)
WORKERS = (1, 2, 8, 64)

#: Seconds that one measurement may take.
_TIMEOUT = 120.0
#: The most bytes that a measurement of long messages writes.
_MAX_BYTES = 64 * 2**20

Progress = Callable[[str], object]


def identity(name: str) -> dict[str, str]:
    """Return the facts about a contender in its row."""
    kind = by_name(name)
    try:
        version = kind.version()
    except PackageNotFoundError:
        version = "not installed"
    return {"title": kind.title, "version": version, "note": kind.note}


def interleaved(names: Sequence[str], rounds: int, measure: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure each contender once a round; return the rounds, each with the outcomes by name."""
    done = []
    for index in range(rounds):
        first = index * max(1, len(names) // rounds) % len(names)
        done.append({name: measure(name) for name in [*names[first:], *names[:first]]})
    return done


def once(names: Sequence[str], what: str, progress: Progress, function: str, **arguments: Any) -> dict[str, Any]:
    """Measure each contender once, by itself.

    Args:
        names: of the contenders.
        what: is measured, for `progress`.
        progress: told what is being done.
        function, arguments: see `isolated.run`; the name of the contender is added.
    """
    rows = {}
    for name in names:
        progress(f"{what}: {identity(name)['title']}")
        rows[name] = {**identity(name), **isolated.run(function, contender=name, **arguments)}
    return rows


def compare(names: Sequence[str], rounds: int, records: int, progress: Progress) -> dict[str, Any]:
    """Compare contenders: 2 workers, short messages.

    Args:
        names: of the contenders; the one that they are compared with is added.
        rounds: how often each is measured.
        records: how many each worker logs; a contender that is slow logs a part of them.
        progress: told what is being done.
    """
    names = list(dict.fromkeys([BASE.__name__, *names]))

    def measure(name: str) -> dict[str, Any]:
        progress(f"rate: {CONTENDERS[name].title}")
        return _run(name, 2, max(100, int(records * CONTENDERS[name].share)), 40)

    done = interleaved(names, rounds, measure)
    return {
        "rounds": rounds,
        "records": records,
        "rows": {name: {**identity(name), **_summary(name, done)} for name in CONTENDERS if name in names},
    }


def by_workers(names: Sequence[str], rounds: int, records: int, progress: Progress) -> dict[str, Any]:
    """Measure the CPU time per record with more and more workers, and the same number of records."""

    def measure(name: str, workers: int) -> dict[str, Any]:
        progress(f"{workers} workers: {CONTENDERS[name].title}")
        total = 2 * records * CONTENDERS[name].share
        return _run(name, workers, max(10, int(total / workers)), 40)

    return _curve(names, rounds, WORKERS, measure)


def by_size(names: Sequence[str], rounds: int, records: int, progress: Progress) -> dict[str, Any]:
    """Measure the rate with longer and longer messages, next to the rate of the pipe alone."""

    def measure(name: str, size: int) -> dict[str, Any]:
        title = identity(name)["title"]
        progress(f"messages of {size} bytes: {title}")
        share = CONTENDERS[name].share if name in CONTENDERS else 1.0
        return _run(name, 2, max(10, int(min(records, _MAX_BYTES // size // 2) * share)), size)

    return _curve([*names, PipeLimit.__name__], rounds, SIZES, measure)


def _curve(
    names: Sequence[str], rounds: int, points: Sequence[int], measure: Callable[[str, int], dict[str, Any]]
) -> dict[str, Any]:
    lines: dict[str, Any] = {name: {**identity(name), "points": {}} for name in names}
    for point in points:
        done = interleaved(names, rounds, lambda name, point=point: measure(name, point))  # type: ignore[misc]
        for name in names:
            lines[name]["points"][str(point)] = _own_summary(name, done)
    return {"rounds": rounds, "lines": lines}


def _run(name: str, workers: int, records: int, size: int) -> dict[str, Any]:
    return isolated.run(
        "workload:measure", timeout=_TIMEOUT, contender=name, workers=workers, records=records, size=size
    )


def _rate(outcome: dict[str, Any]) -> float:
    return float(outcome["logged"] / outcome["seconds"])


def _own_summary(name: str, done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of one contender, or the reason for having none."""
    outcomes = [outcomes[name] for outcomes in done]
    failed = [outcome["error"] for outcome in outcomes if "error" in outcome]
    good = [outcome for outcome in outcomes if "error" not in outcome]
    if not good:
        return {"error": failed[0]}
    summary = {
        "delivered": sum(outcome["delivered"] for outcome in good),
        "expected": sum(outcome["expected"] for outcome in good),
        "rate": statistics.median(_rate(outcome) for outcome in good),
        "cpu_us": 1e6 * statistics.median(outcome["cpu"] / outcome["logged"] for outcome in good),
        "writer_us": 1e6 * statistics.median(outcome["writer_cpu"] / outcome["logged"] for outcome in good),
    }
    return {**summary, "failed_rounds": failed} if failed else summary


def _summary(name: str, done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of one contender, as ratios to the base of the same round, too."""
    summary = _own_summary(name, done)
    pairs = [
        (outcomes[name], outcomes[BASE.__name__])
        for outcomes in done
        if "error" not in outcomes[name] and "error" not in outcomes[BASE.__name__]
    ]
    if not pairs:
        return summary
    rates = [_rate(one) / _rate(base) for one, base in pairs]
    cpus = [(one["cpu"] / one["logged"]) / (base["cpu"] / base["logged"]) for one, base in pairs]
    return {
        **summary,
        "rate_ratio": statistics.median(rates),
        "rate_range": [min(rates), max(rates)],
        "cpu_ratio": statistics.median(cpus),
        "cpu_range": [min(cpus), max(cpus)],
    }
