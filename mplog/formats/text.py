"""From a batch of records to texts, in one pass. Runs in the logging process.

The rule of this file: **the same bytes as the stdlib, or the stdlib itself.** `renderer` compiles an exact
``logging.Formatter`` into a loop over the records as they come off the wire: the text is put together from pieces,
those that depend on a record's origin alone are kept, and the date is formatted once a second. What it cannot be sure
of goes through the formatter's own ``format()``: a formatter of another class or with methods of its own, a template
that does not give the stdlib's text on a few samples, and any single record that does not fit.
"""

from __future__ import annotations

import logging
import math
import re
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mplog.record.cache import Cache
from mplog.record.decoding import constant_fields, decode_entry, decode_rest, to_record
from mplog.record.encoding import encode
from mplog.record.layout import DETAILS, HAS_TASK_NAME, NO_DETAILS, ORIGIN, ByOrigin, Entry

__all__ = [
    "BatchFormatter",
    "DatedFormatter",
    "OnError",
    "Piece",
    "Renderer",
    "compile_loop",
    "compiled",
    "expression",
    "renderer",
]

#: What to do about a record that cannot be formatted.
OnError = Callable[[Entry, Exception], object]

_PLAIN_ATTRIBUTES = {"_style", "_fmt", "datefmt", "converter", "default_time_format", "default_msec_format"}
_STYLE_ATTRIBUTES = {"_fmt", "_defaults", "_tpl"}
_DETAILS = frozenset(name for name in DETAILS if HAS_TASK_NAME or name != "taskName")
#: What is an attribute of every record and stands in the loop as a variable.
_VARYING = frozenset({"msg", "exc_text", "created", "msecs", "stack_info", "relativeCreated"})
_STANDARD = _VARYING | _DETAILS | frozenset(ORIGIN)


@dataclass(frozen=True)
class Renderer:
    """A way to format a batch.

    Attributes:
        render: called with a batch and with what to do about a record that cannot be formatted; returns a text for each
            record, with its terminator, and an empty one for those.
        needs_details: whether it looks at what is sent on request only.
    """

    render: Callable[[Sequence[Entry], OnError], list[str]]
    needs_details: bool = True

    def __call__(self, batch: Sequence[Entry], on_error: OnError) -> list[str]:
        """Format a batch."""
        return self.render(batch, on_error)


@dataclass(frozen=True)
class Piece:
    """A piece of a text.

    Attributes:
        literal: text as it is; or
        expression: Python that gives a value, in the variables of the loop.
        fields: the attributes of the record that the expression uses.
        conversion: ``"!s"`` where its ``str()`` becomes the text, and ``""`` where its ``format()`` does.
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
        """Python that gives the text."""
        if not self.expression:
            return repr(self.literal)
        return f"{'str' if self.conversion else 'format'}({self.expression})"


class BatchFormatter(logging.Formatter):
    """A formatter that knows how to format a batch."""

    def renderer(self, terminator: str) -> Renderer | None:
        """Return the fast way to format a batch, or None to have `format` called for each record."""
        return None


def renderer(formatter: logging.Formatter, terminator: str) -> Renderer:
    """Return the fastest way to format a batch as `formatter` would, each record followed by `terminator`."""
    return compiled(formatter, terminator) or _interpreted(formatter, terminator)


def compiled(formatter: logging.Formatter, terminator: str) -> Renderer | None:
    """Return what formats a batch without calling ``format()`` for each record; None where there is no such way."""
    if isinstance(formatter, BatchFormatter):
        return formatter.renderer(terminator)
    return _compiled(formatter, terminator)


class DatedFormatter(logging.Formatter):
    """An exact ``logging.Formatter`` that keeps its date for as long as the second is the same.

    Attributes:
        needs_details: whether it looks, as far as can be told, at what is sent on request only.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        self.__dict__.update(vars(formatter))
        compiled = _compiled(formatter, "")
        self.needs_details = compiled is None or compiled.needs_details
        self._is_dated = formatter.usesTime()
        self._kept: tuple[float, str | None, str] = (math.nan, None, "")  # no second is equal to that

    @classmethod
    def instead_of(cls, formatter: logging.Formatter | None) -> logging.Formatter | None:
        """Return a faster formatter of the same texts; the given one where there is none."""
        return cls(formatter) if formatter is not None and _is_plain(formatter) else formatter

    def format(self, record: logging.LogRecord) -> str:
        """Return the text as the base class does, by fewer calls where there is no exception and no stack."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        record.message = record.getMessage()
        if self._is_dated:
            record.asctime = self.formatTime(record, self.datefmt)
        return self._style.format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the date as the base class does."""
        try:
            second = record.created // 1
        except TypeError:  # a record that somebody has made something else of
            return super().formatTime(record, datefmt)
        kept, form, stamp = self._kept
        if second != kept or datefmt != form:
            # localtime() and strftime() know no fraction of a second.
            stamp = time.strftime(datefmt or self.default_time_format, self.converter(record.created))
            self._kept = second, datefmt, stamp
        if datefmt or not self.default_msec_format:
            return stamp
        if self.default_msec_format == "%s,%03d":
            return f"{stamp},{_milliseconds[record.msecs]}"
        return self.default_msec_format % (stamp, record.msecs)


def _interpreted(formatter: logging.Formatter, terminator: str) -> Renderer:
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


def _compiled(formatter: logging.Formatter, terminator: str) -> Renderer | None:
    if not _is_plain(formatter):
        return None
    pieces = _pieces(formatter)
    if pieces is None:
        return None
    names = {
        "strftime": time.strftime,
        "converter": formatter.converter,
        "date_format": formatter.datefmt or formatter.default_time_format,
        "msec_format": formatter.default_msec_format,
        "milliseconds": _milliseconds,
    }
    dated = any("created" in piece.fields and "stamp" in piece.expression for piece in pieces)
    render = compile_loop(
        # localtime() and strftime() know no fraction of a second.
        ["stamp = strftime(date_format, converter(created))"] if dated else [],
        pieces,
        [
            r"if exc_text: text = (text if text[-1:] == '\n' else text + '\n') + exc_text",
            r"if stack_info: text = (text if text[-1:] == '\n' else text + '\n') + stack_info",
        ],
        names,
        formatter,
        terminator,
    )
    return render if _agree(render, _interpreted(formatter, terminator)) else None


def _is_plain(formatter: logging.Formatter) -> bool:
    """Whether nothing about it is the program's own but its format."""
    return (
        type(formatter) is logging.Formatter
        and vars(formatter).keys() <= _PLAIN_ATTRIBUTES
        and vars(formatter._style).keys() <= _STYLE_ATTRIBUTES
        and formatter.converter in (time.localtime, time.gmtime)
    )


#: ``"%03d"`` of a number, kept for those that occur.
_milliseconds: Cache[float, str] = Cache("%03d".__mod__, 1000)

# --- templates ---


def _pieces(formatter: logging.Formatter) -> list[Piece] | None:
    """Return the pieces of a format; None where it has something that is better left to the stdlib."""
    style = formatter._style
    if type(style) is logging.PercentStyle:
        return _percent_pieces(style._fmt, formatter)
    if type(style) is logging.StrFormatStyle:
        return _brace_pieces(style._fmt, formatter)
    if type(style) is logging.StringTemplateStyle:
        return _dollar_pieces(style._fmt, formatter)
    return None


_PERCENT = re.compile(
    r"(?P<literal>(?:[^%]|%%)+)|%\((?P<name>\w+)\)(?P<spec>[#0 +-]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa])|(?P<else>%)"
)


def _percent_pieces(text: str, formatter: logging.Formatter) -> list[Piece] | None:
    pieces = []
    for match in _PERCENT.finditer(text):
        if match["literal"]:
            pieces.append(Piece(match["literal"].replace("%%", "%")))
        elif match["else"]:
            return None
        else:
            pieces += _field(match["name"], formatter, percent=match["spec"])
    return pieces


def _dollar_pieces(text: str, formatter: logging.Formatter) -> list[Piece] | None:
    pieces = []
    position = 0
    for match in string.Template.pattern.finditer(text):
        if match["invalid"] is not None:
            return None
        pieces.append(Piece(text[position : match.start()] + ("$" if match["escaped"] else "")))
        if not match["escaped"]:
            pieces += _field(match["named"] or match["braced"], formatter, percent="s")
        position = match.end()
    return [*pieces, Piece(text[position:])]


def _brace_pieces(text: str, formatter: logging.Formatter) -> list[Piece] | None:
    pieces = []
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError:
        return None  # a format that fills nothing: the stdlib says so for each record
    for literal, name, spec, conversion in fields:
        pieces.append(Piece(literal))
        if name is not None:
            # Neither a width that is a field itself, nor a field by position, nor parts of a field.
            if "{" in (spec or "") or not re.fullmatch(r"[^\W\d]\w*", name):
                return None
            pieces += _field(name, formatter, brace=(spec or "", conversion))
    return pieces


def _field(
    name: str, formatter: logging.Formatter, percent: str = "", brace: tuple[str, str | None] = ("", None)
) -> list[Piece]:
    """Return the pieces of a field, with what formats it: a %-style conversion, or a {-style one."""
    is_plain = percent == "s" or (not percent and brace == ("", None))
    value, fields = expression(name), frozenset({name})
    if name == "message":
        fields = frozenset({"msg"})
    elif name == "asctime":
        value, fields = "stamp", frozenset({"created"})
        if not formatter.datefmt and formatter.default_msec_format:
            fields = frozenset({"created", "msecs"})
            if is_plain and formatter.default_msec_format == "%s,%03d":
                return [
                    Piece(expression="stamp", fields=fields),
                    Piece(","),
                    Piece(expression="milliseconds[msecs]", fields=fields),
                ]
            value = "(msec_format % (stamp, msecs))"
    if percent == "s":
        return [Piece(expression=value, fields=fields, conversion="!s")]
    if percent:
        return [Piece(expression=f"({'%' + percent!r} % ({value},))", fields=fields)]
    spec, conversion = brace
    if conversion:
        value = f"{_CONVERSIONS[conversion]}({value})"
    if spec:
        value = f"format({value}, {spec!r})"
    return [Piece(expression=value, fields=fields)]


_CONVERSIONS = {"s": "str", "r": "repr", "a": "ascii"}


def expression(name: str) -> str:
    """Return what gives the value of a record's attribute in the loop."""
    if name == "message":
        return "msg"
    if name in constant_fields:
        return f"constant_fields[{name!r}]"
    # Names of attributes stand in it as they are only where they are ours.
    return name if name in _STANDARD else f"extra[{name!r}]"


# --- the loop ---

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
    for entry in batch:
        try:
            (_, msg, extra, exc_text, created, msecs, stack_info, _, _), origin = entry
            if msg is None or extra is not None and not standard.isdisjoint(extra):
                raise LookupError  # no text, or one that UTF-8 does not take: it is among the extra ones
            {each_second}
            {values}
            {constants} = kept[origin]
            if exc_text or stack_info{rarely}:
                text = {text}
                {behind}
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
    behind: list[str],
    names: dict[str, Any],
    formatter: logging.Formatter,
    terminator: str,
    rarely: str = "",
) -> Renderer:
    """Return a renderer that puts a text together.

    All Python in the arguments sees the attributes of the record by their names, and ``extra``. Where it raises, the
    record goes through ``formatter.format()``.

    Args:
        each_second: statements for when the second of ``created`` has changed.
        pieces: of the text.
        behind: statements that lengthen ``text``, for a record with an exception or a stack.
        names: what else the Python uses.
        formatter: the formatter that it stands for.
        terminator: what follows each text.
        rarely: further conditions for `behind` to run: Python that begins with ``or``.
    """
    interpreted = _interpreted(formatter, terminator)
    groups: list[list[Piece]] = []
    for piece in (*pieces, Piece(terminator)):
        if not groups or not (piece.is_constant and groups[-1][-1].is_constant):
            groups.append([])
        groups[-1].append(piece)
    constants: list[str] = []
    values: list[str] = []
    parts: list[str] = []
    fields = frozenset().union(*(piece.fields for piece in pieces))
    if "relativeCreated" in fields:
        values.append("relativeCreated = decode_rest(entry[0])[0]")
    for group in groups:
        if group[0].is_constant:
            parts.append(f"p{len(constants)}")
            constants.append(" + ".join(piece.text for piece in group))
        else:
            # Before Python 3.12, there is no place for every quote in an f-string.
            parts.append(f"v{len(values)}{group[0].conversion}")
            values.append(f"v{len(values)} = {group[0].expression}")
    end = " + ".join(["''", *(piece.text for piece in groups[-1][:-1])])
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
        behind="\n                ".join(behind),
        line="f'" + "".join(f"{{{part}}}" for part in parts) + "'",
    )
    namespace: dict[str, Any] = {
        **names,
        "no_details": NO_DETAILS,
        "standard": _STANDARD | constant_fields.keys(),
        "constant_fields": constant_fields,
        "terminator": terminator,
        "interpret": interpreted,
        "decode_rest": decode_rest,
    }
    exec(source, namespace)
    namespace["kept"] = ByOrigin(namespace["pieces_of"])
    return Renderer(namespace["render"], not _DETAILS.isdisjoint(fields) or "relativeCreated" in fields)


def _agree(render: Renderer, reference: Renderer) -> bool:
    """Hold the two against each other on a few records."""
    batch = []
    for level, message, exc_text, stack_info in (
        (logging.INFO, "text", None, None),
        (logging.CRITICAL, "%d {0} $x \n", "Traceback\n", "Stack"),
        (5, "", "", "Stack"),
    ):
        sample = logging.LogRecord("a.b", level, "/x/y.py", 3, message, None, None, "function", stack_info)
        sample.exc_text = exc_text
        sample.created, sample.msecs = 1234567890.5, 500.0
        batch.append(decode_entry(encode(sample)))

    def ignore(entry: Entry, error: Exception) -> None:
        pass

    return render(batch, ignore) == reference(batch, ignore)
