"""The results as text: ``docs/benchmarks.rst``, and the table for the README.

The rule of this file: **it shows what was measured**, failures as well; it leaves nothing out, rounds nothing in favour
of a contender, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.rst import heading, table

__all__ = ["page", "readme_table"]

_COMMAND = "python -m benchmarks.compare"

#: Characters of an error that a cell shows.
_FAILURE_LENGTH = 100


def page(results: Mapping[str, Any]) -> str:
    """Return the page. Parts that were not measured are left out."""
    parts = {
        "rate": _rate,
        "latency": _latency,
        "lone": _lone,
        "alone": _alone,
        "workers": _workers,
        "sizes": _sizes,
        "idle": _idle,
        "memory": _memory,
        "delivery": _delivery,
    }
    about = results["about"]
    text = [
        heading("Benchmarks", "="),
        (
            f"Made by ``{_COMMAND}{' ' + about['options'] if about['options'] else ''}``, which measures everything "
            "again and writes this page and its plots.\n"
        ),
        table(
            ["", ""],
            [
                ["Date", about["date"]],
                ["Machine", about["machine"]],
                ["Python", about["python"]],
                ["mplog", about["commit"]],
                ["Load average before", about["load"]],
            ],
        ),
        (
            f"Log lines look like ``{about['format']}``. Each measurement has a fresh interpreter for itself. "
            "What is compared was measured in the same round, in changing order; figures are medians of the rounds.\n"
        ),
    ]
    text += [part(results[name]) for name, part in parts.items() if name in results]
    return "\n".join(text)


def readme_table(results: Mapping[str, Any]) -> str:
    """Return the table of rates alone, with the command that makes it."""
    about = results["about"]
    return "\n".join(
        [
            (
                f"2 worker processes, {about['machine'].partition('(')[0].strip()}, {about['python']}; "
                "rate and CPU time per record (of all processes) against private ``FileHandler`` files in the same "
                "run, medians of "
                f"{results['rate']['rounds']} rounds. Made by ``{_COMMAND}``; all of it is in `docs/benchmarks.rst "
                "<docs/benchmarks.rst>`_.\n"
            ),
            _rate_table(results["rate"], notes=False),
        ]
    )


def _count(row: Mapping[str, Any]) -> str:
    if not row["expected"]:
        return "none"
    share = row["delivered"] / row["expected"]
    if row["delivered"] == row["expected"]:
        return "all"
    return f"{100 * share:.1f} %" if share <= 0.999 else f"all but {row['expected'] - row['delivered']}"


def _failure(row: Mapping[str, Any]) -> str:
    text = str(row["error"]).replace("|", "/").replace("`", "'").replace("*", "")
    return text if len(text) <= _FAILURE_LENGTH else f"{text[:_FAILURE_LENGTH]}..."


def _number(value: float) -> str:
    return f"{value:,.0f}"


# --- the parts ---


def _rate(results: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            heading("Rate and CPU time"),
            (
                f"2 workers log {_number(results['records'])} records each (slow contenders a part of that), as fast "
                "as they can, from a common start until everything is in the file. *CPU* is what all processes spend "
                f"on a record: workers, parent, and those that write. {results['rounds']} rounds; the smallest and the "
                "largest ratio of a round stand in brackets.\n"
            ),
            ".. image:: benchmark-rate.svg\n",
            ".. image:: benchmark-cpu.svg\n",
            _rate_table(results, notes=True),
        ]
    )


def _rate_table(results: Mapping[str, Any], *, notes: bool) -> str:
    head = ["", "Version", "Rate", "CPU per record", "Delivered", *(["Records/s", "CPU us", "Note"] if notes else [])]
    rows = []
    for row in results["rows"].values():
        line = [row["title"], row["version"]]
        if "error" in row:
            rest = ["did not run", _failure(row)]
            line += [*rest, *[""] * (len(head) - 4)]
            if notes:
                line[-1] = row["note"]
        else:
            line += [_ratio(row, "rate", spread=notes), _ratio(row, "cpu", spread=notes), _count(row)]
            if notes:
                line += [_number(row["rate"]), f"{row['cpu_us']:.2f}", _note(row)]
        rows.append(line)
    return table(head, rows)


def _ratio(row: Mapping[str, Any], name: str, *, spread: bool) -> str:
    if f"{name}_ratio" not in row:
        return ""
    low, high = row[f"{name}_range"]
    text = f"{row[f'{name}_ratio']:.2f}"
    return f"{text} ({low:.2f}-{high:.2f})" if spread else text


def _note(row: Mapping[str, Any]) -> str:
    failed = row.get("failed_rounds")
    return f"{row['note']}; {len(failed)} rounds failed: {failed[0]}" if failed else str(row["note"])


def _latency(results: Mapping[str, Any]) -> str:
    text = [
        heading("One call"),
        (
            f"2 workers make {_number(results['calls_per_second'])} calls a second each. Microseconds; in brackets the "
            "ratio to the FileHandler of the same round.\n"
        ),
    ]
    titles = {
        "steady": "The file takes what comes:\n",
        "blocked": f"The file blocks for {results['stall'] * 1000:.0f} ms every half second. (A blocked call is one in "
        "thousands: for the FileHandler, too, it is beyond p99.9.)\n",
    }
    for key, rows in results["tables"].items():
        lines = []
        for row in rows.values():
            if "error" in row:
                lines.append([row["title"], "did not run", _failure(row), "", ""])
                continue
            cells = [
                f"{row[name]:.1f} ({row[f'{name}_ratio']:.2f})" if f"{name}_ratio" in row else f"{row[name]:.1f}"
                for name in ("p50", "p99", "p99.9")
            ]
            lines.append([row["title"], *cells, _number(row["calls"])])
        text += [titles[key], table(["", "p50", "p99", "p99.9", "Calls"], lines)]
    return "\n".join(text)


def _lone(results: Mapping[str, Any]) -> str:
    rows = [
        [row["title"], "did not run", _failure(row)]
        if "error" in row
        else [row["title"], f"{row['median_ms']:.2f} ms", f"{row['max_ms']:.2f} ms"]
        for row in results["rows"].values()
    ]
    text = (
        f"From the call until the record is in the file, when nothing else is logged; {results['records']} records.\n"
    )
    return "\n".join([heading("A lone record"), text, table(["", "Median", "Longest"], rows)])


def _alone(results: Mapping[str, Any]) -> str:
    columns = {
        "records_per_second": "Records/s",
        "records_per_cpu_second": "Records per CPU second",
        "write_batches_per_second": "os.write of 1,000 at a time",
        "write_each_per_second": "os.write of each record",
        "decode_per_second": "decoding alone",
        "msgspec_per_second": "msgspec alone, untyped",
    }
    rows = []
    for kind, row in results["rows"].items():
        if "error" in row:
            rows.append([kind, "did not run", _failure(row), *[""] * (len(columns) - 2)])
        else:
            rows.append([kind, *(_number(row[name]) for name in columns)])
    return "\n".join(
        [
            heading("The logging process alone"),
            (
                "A queue that is full already is read, decoded, rendered, written and committed by a logging process "
                "that has the machine to itself; the last four columns are the machine's own rates, also in records a "
                "second.\n"
            ),
            table(["", *columns.values()], rows),
        ]
    )


def _workers(results: Mapping[str, Any]) -> str:
    text = (
        "CPU microseconds per record, of all processes, with more and more workers that log as many records together; "
        "in brackets as a ratio to 1 worker, or to the fewest that there are.\n"
    )
    return "\n".join(
        [heading("Workers"), text, ".. image:: benchmark-workers.svg\n", _curve(results, "cpu_us", "workers", True)]
    )


def _sizes(results: Mapping[str, Any]) -> str:
    text = "Records a second by the size of the message, 2 workers, beside what the pipe itself takes.\n"
    return "\n".join(
        [heading("Message sizes"), text, ".. image:: benchmark-sizes.svg\n", _curve(results, "rate", "bytes", False)]
    )


def _curve(results: Mapping[str, Any], key: str, unit: str, is_cpu: bool) -> str:
    lines = results["lines"]
    points = list(next(iter(lines.values()))["points"])
    rows = []
    for line in lines.values():
        cells, first = [], None
        for point in points:
            row = line["points"][point]
            if "error" in row:
                cells.append(_failure(row))
                continue
            first = first or row[key]
            text = f"{row[key]:.2f} ({row[key] / first:.2f})" if is_cpu else _number(row[key])
            cells.append(text if row["delivered"] == row["expected"] else f"{text}, delivered {_count(row)}")
        rows.append([line["title"], *cells])
    return table(["", *(f"{point} {unit}" for point in points)], rows)


def _idle(results: Mapping[str, Any]) -> str:
    rows = [
        [row["title"], "did not run", _failure(row)]
        if "error" in row
        else [row["title"], str(row["switches"]), f"{row['cpu_ms']:.2f} ms"]
        for row in results["rows"].values()
    ]
    text = (
        f"Context switches (``/proc/<pid>/status``, all threads) and CPU time of the process that writes, over "
        f"{results['seconds']:g} seconds in which nobody logs.\n"
    )
    return "\n".join([heading("Idle"), text, table(["", "Context switches", "CPU"], rows)])


def _memory(results: Mapping[str, Any]) -> str:
    if "error" in results:
        return "\n".join([heading("Memory"), f"Did not run: {_failure(results)}\n"])
    sizes = results["rss_mib"]
    text = (
        f"Resident size of the logging process over {_number(results['expected'])} records, "
        f"delivered: {_count(results)}.\n"
    )
    steps = [f"{100 * index // (len(sizes) - 1)} %" for index in range(len(sizes))]
    return "\n".join([heading("Memory"), text, table(["", *steps], [["MiB", *(f"{size:.1f}" for size in sizes)]])])


def _delivery(results: Mapping[str, Any]) -> str:
    scenarios = results["scenarios"]
    rows = [
        [row["title"], *(_delivered(row["scenarios"][name]) for name in scenarios)] for row in results["rows"].values()
    ]
    return "\n".join(
        [
            heading("Delivery"),
            (
                "What of the records whose logging call had returned was in the files in the end, whole. (Of a "
                "killed worker, a record more may be there, whose call had not returned.) *left with Pool*: "
                "the block of a ``multiprocessing.Pool`` is left, which terminates its workers, when all tasks are "
                "done. *killed workers*: one worker after the other is killed (SIGKILL) while it logs 20 kB records, "
                "another one goes on. *writer held up*: the process that writes stands still (SIGSTOP) for 1.5 "
                "seconds, the workers go on logging. *spawn*: the workers are spawned.\n"
            ),
            table(["", *scenarios.values()], rows),
        ]
    )


def _delivered(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return _failure(row).removeprefix("NotImplementedError: ")
    text = f"{_number(row['delivered'])} of {_number(row['logged'])}"
    return f"{text}; {row['trouble']}" if "trouble" in row else text
