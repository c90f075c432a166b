"""Tables in reStructuredText."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["heading", "table"]


def heading(text: str, underline: str = "-") -> str:
    """Return a heading."""
    return f"{text}\n{underline * len(text)}\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a grid table; a cell is one line."""
    cells = [list(head), *[list(row) for row in rows]]
    widths = [max(1, *(len(row[column]) for row in cells)) for column in range(len(head))]

    def rule(character: str) -> str:
        return "+" + "+".join(character * (width + 2) for width in widths) + "+"

    def line(row: Sequence[str]) -> str:
        return "|" + "|".join(f" {cell:<{width}} " for cell, width in zip(row, widths)) + "|"

    lines = [rule("-"), line(cells[0]), rule("=")]
    for row in cells[1:]:
        lines += [line(row), rule("-")]
    return "\n".join(lines) + "\n"
