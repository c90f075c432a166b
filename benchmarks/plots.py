"""The results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw"]

_OURS, _BASE, _OTHERS = "#1b6ca8", "#444444", "#b8b8b8"


def draw(results: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw a plot for each part that has results; return the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text, and the same results give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mplog", "font.size": 9})
    drawn = []
    if "rate" in results:
        rows = results["rate"]["rows"]
        drawn += [
            _bars(rows, "rate_ratio", "rate, ratio to private FileHandlers (more is better)", directory, "rate"),
            _bars(
                rows, "cpu_ratio", "CPU per record, ratio to private FileHandlers (less is better)", directory, "cpu"
            ),
        ]
    if "workers" in results:
        drawn.append(_lines(results["workers"], "cpu_us", ("workers", "CPU per record, us"), directory, "workers"))
    if "sizes" in results:
        drawn.append(_lines(results["sizes"], "rate", ("message, bytes", "records/s"), directory, "sizes"))
    return drawn


def _figure(width: float, height: float) -> tuple[Any, Any, Callable[[str, Path], Path]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

    def save(name: str, directory: Path) -> Path:
        path = directory / f"benchmark-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        return path

    return figure, axes, save


def _bars(rows: Mapping[str, Any], key: str, label: str, directory: Path, name: str) -> Path:
    shown = [row for row in rows.values() if key in row]
    _, axes, save = _figure(7.5, 0.6 + 0.27 * len(shown))
    titles, values = [row["title"] for row in shown], [row[key] for row in shown]
    colors = [
        _OURS if title.startswith("mplog") else _BASE if title == "private FileHandler" else _OTHERS for title in titles
    ]
    bars = axes.barh(range(len(shown)), values, color=colors)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.set_yticks(range(len(shown)), titles)
    axes.invert_yaxis()
    axes.axvline(1, color=_BASE, linewidth=0.8, linestyle=":")
    axes.set_xlabel(label)
    axes.margins(x=0.1)
    return save(name, directory)


def _lines(results: Mapping[str, Any], key: str, labels: tuple[str, str], directory: Path, name: str) -> Path:
    _, axes, save = _figure(7.5, 3.6)
    for line in results["lines"].values():
        points = [(int(x), row[key]) for x, row in line["points"].items() if key in row]
        style = "--" if line["title"] == "the pipe alone" else "-"
        axes.plot(*zip(*points), style, marker="o", markersize=4, label=line["title"]) if points else None
    axes.set_xscale("log")
    ticks = sorted({int(x) for line in results["lines"].values() for x in line["points"]})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    if key == "rate":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False)
    return save(name, directory)
