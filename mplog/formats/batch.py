"""Formatting a batch of records in one pass. Runs in the logging process.

`compile_loop` makes a loop over the records as they come off the wire. It keeps the pieces of text that depend on a
record's origin alone, and makes those that depend on its second once a second. A record that does not fit goes through
the formatter's own ``format()``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mplog.record.decoding import constant_fields, decode_rest, to_record
from mplog.record.layout import DETAILS, HAS_TASK_NAME, NO_DETAILS, ORIGIN, ByOrigin, Entry

#: Called with a record that cannot be formatted, and the exception.
OnError = Callable[[Entry, Exception], object]

_DETAILS = frozenset(name for name in DETAILS if HAS_TASK_NAME or name != "taskName")
#: Attributes of every record that are variables of the loop.
_VARYING = frozenset({"msg", "exc_text", "created", "msecs", "stack_info", "relativeCreated"})
_STANDARD = _VARYING | _DETAILS | frozenset(ORIGIN)


class Renderer(msgspec.Struct, frozen=True):
    """A way to format a batch: `render` returns a text with its terminator for each record, "" if that is impossible.

    `needs_details` tells whether it uses attributes that workers send on request only.
    """

    render: Callable[[Sequence[Entry], OnError], list[str]]
    needs_details: bool = True


class BatchFormatter(logging.Formatter):
    """A formatter that knows how to format a batch."""

    def renderer(self, terminator: str) -> Renderer | None:
        """Return the fast way to format a batch; None to call `format` for each record."""
        return None


def interpreted(formatter: logging.Formatter, terminator: str) -> Renderer:
    def render(batch: Sequence[Entry], on_error: OnError) -> list[str]:
        texts = []
        for entry in batch:
            try:
                text = formatter.format(to_record(*entry)) + terminator
            except Exception as error:
                on_error(entry, error)
                text = ""
            texts.append(text)
        return texts

    return Renderer(render)


class Piece(msgspec.Struct, frozen=True):
    """A piece of a text: literal text, or Python that gives a value in the variables of the loop.

    `fields` are the attributes of the record that it uses. The conversion ``"!s"`` stands for ``str()``, and ``""`` for
    ``format()``.
    """

    literal: str = ""
    expression: str = ""
    fields: frozenset[str] = frozenset()
    conversion: str = ""

    @property
    def is_constant(self) -> bool:
        """Whether it is the same for all records of one origin."""
        return self.fields <= _DETAILS | frozenset(ORIGIN) | constant_fields.keys()

    @property
    def text(self) -> str:
        if not self.expression:
            return repr(self.literal)
        return f"{'str' if self.conversion else 'format'}({self.expression})"


def expression(name: str) -> str:
    """Return Python that gives the value of a record's attribute in the loop."""
    if name == "message":
        return "msg"
    if name in constant_fields:
        return f"constant_fields[{name!r}]"
    # Only known names become Python: others come from the user's format.
    return name if name in _STANDARD else f"extra[{name!r}]"


_LOOP = """\
def pieces_of(origin):
    process, name, levelno, levelname, processName = (
        origin.process, origin.name, origin.levelno, origin.levelname, origin.processName
    )
    {details} = origin.details or no_details
    return ({pieces})

def render(batch, on_error):
    second = next_second = 0.0
    texts = []
    append = texts.append
    buffer, other = bytearray(), bytearray()
    for entry in batch:
        try:
            (_, msg, extra, exc_text, created, msecs, stack_info, _, _), origin = entry
            if msg is None or extra is not None and not standard.isdisjoint(extra):
                raise LookupError  # no text, or an attribute that UTF-8 does not take: it is in extra
            {each_second}
            {values}
            {constants} = kept[origin]
            if exc_text or stack_info{rarely}:
                text = {text}
                {more}
                append(text + terminator)
            else:
                append({line})
        except Exception:
            texts += interpret((entry,), on_error)
    return texts
"""


def compile_loop(
    each_second: list[str],
    pieces: list[Piece],
    more: list[str],
    names: dict[str, Any],
    formatter: logging.Formatter,
    terminator: str,
    rarely: str = "",
) -> Renderer:
    """Return a renderer that puts a text together.

    All Python in the arguments sees the attributes of the record by their names, ``extra`` and `names`. Except in
    constant pieces, it may encode into ``buffer``, and into ``other`` what is of another length, so that neither grows
    each time. Where it raises, the record goes through ``formatter.format()``.

    Args:
        each_second: statements that run when the second of ``created`` has changed.
        more: statements that lengthen ``text``, for a record with an exception or a stack.
        rarely: further conditions for `more` to run: Python that begins with ``or``.
    """
    parts, constants, values, end = _arranged([*pieces, Piece(terminator)])
    fields = frozenset().union(*(piece.fields for piece in pieces))
    if "relativeCreated" in fields:
        values.insert(0, "relativeCreated = decode_rest(entry[0]).relative")
    source = _LOOP.format(
        details=", ".join(DETAILS),
        pieces=", ".join([*constants, end]),
        each_second=(
            "if not second <= created < next_second: "
            + "; ".join([*each_second, "second = created // 1", "next_second = second + 1"])
            if each_second
            else ""
        ),
        values="; ".join(values),
        constants=", ".join([*(f"p{number}" for number in range(len(constants))), "end"]),
        rarely=f" {rarely}" if rarely else "",
        text="f'" + "".join(f"{{{part}}}" for part in [*parts[:-1], "end"]) + "'",
        more="\n                ".join(more),
        line="f'" + "".join(f"{{{part}}}" for part in parts) + "'",
    )
    namespace: dict[str, Any] = {
        **names,
        "no_details": NO_DETAILS,
        "standard": _STANDARD | constant_fields.keys(),
        "constant_fields": constant_fields,
        "terminator": terminator,
        "interpret": interpreted(formatter, terminator).render,
        "decode_rest": decode_rest,
    }
    exec(source, namespace)
    namespace["kept"] = ByOrigin(namespace["pieces_of"])
    return Renderer(namespace["render"], not _DETAILS.isdisjoint(fields) or "relativeCreated" in fields)


def _arranged(pieces: list[Piece]) -> tuple[list[str], list[str], list[str], str]:
    """Return the names of a text's parts, Python for constant parts, statements for the others, and the last part.

    The last part, without the terminator, is for a text that is lengthened before its terminator.
    """
    groups: list[list[Piece]] = []
    for piece in pieces:
        if not groups or not (piece.is_constant and groups[-1][-1].is_constant):
            groups.append([])
        groups[-1].append(piece)
    parts: list[str] = []
    constants: list[str] = []
    values: list[str] = []
    for group in groups:
        if group[0].is_constant:
            parts.append(f"p{len(constants)}")
            constants.append(" + ".join(piece.text for piece in group))
        else:
            # A variable of its own: before Python 3.12, an f-string cannot hold every quote.
            parts.append(f"v{len(values)}{group[0].conversion}")
            values.append(f"v{len(values)} = {group[0].expression}")
    return parts, constants, values, " + ".join(["''", *(piece.text for piece in groups[-1][:-1])])
