"""Texts as the stdlib's ``logging.Formatter`` makes them, but faster. Runs in the logging process.

The rule of this file: **the same bytes as the stdlib, or the stdlib itself.** `renderer` compiles the template of an
exact ``logging.Formatter``. Its own ``format()`` is called where that is not certain to be the same: for a subclass, a
formatter with methods of its own, or a template that does not give the stdlib's text for a few samples.
"""

from __future__ import annotations

import logging
import math
import re
import string
import time

from mplog.formats.batch import BatchFormatter, Piece, Renderer, compile_loop, expression, interpreted
from mplog.record.cache import Cache
from mplog.record.decoding import decode_entry
from mplog.record.encoding import encode

_PLAIN_ATTRIBUTES = {"_style", "_fmt", "datefmt", "converter", "default_time_format", "default_msec_format"}
_STYLE_ATTRIBUTES = {"_fmt", "_defaults", "_tpl"}


def renderer(formatter: logging.Formatter, terminator: str) -> Renderer:
    """Return the fastest way to format a batch as `formatter` would, each record followed by `terminator`."""
    return compiled(formatter, terminator) or interpreted(formatter, terminator)


def compiled(formatter: logging.Formatter, terminator: str) -> Renderer | None:
    """Return the way to format a batch without a call of ``format()`` for each record; None if there is none."""
    if isinstance(formatter, BatchFormatter):
        return formatter.renderer(terminator)
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
    return render if _agree(render, interpreted(formatter, terminator)) else None


class DatedFormatter(logging.Formatter):
    """An exact ``logging.Formatter`` that makes its date once a second.

    `needs_details` tells whether it may use attributes that workers send on request only.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        self.__dict__.update(vars(formatter))
        fast = compiled(formatter, "")
        self.needs_details = fast is None or fast.needs_details
        self._is_dated = formatter.usesTime()
        self._kept: tuple[float, str | None, str] = (math.nan, None, "")  # nan equals no second

    @classmethod
    def instead_of(cls, formatter: logging.Formatter | None) -> logging.Formatter | None:
        """Return a faster formatter of the same texts, or the given one if there is none."""
        return cls(formatter) if formatter is not None and _is_plain(formatter) else formatter

    def format(self, record: logging.LogRecord) -> str:
        """Return the text as the base class does, with fewer calls for a record without exception and stack."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        record.message = record.getMessage()
        if self._is_dated:
            record.asctime = self.formatTime(record, self.datefmt)
        return self._style.format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        try:
            second = record.created // 1
        except TypeError:  # a filter has changed the record
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


def _is_plain(formatter: logging.Formatter) -> bool:
    """Return whether a formatter has nothing of its own except its format."""
    return (
        type(formatter) is logging.Formatter
        and vars(formatter).keys() <= _PLAIN_ATTRIBUTES
        and vars(formatter._style).keys() <= _STYLE_ATTRIBUTES
        and formatter.converter in (time.localtime, time.gmtime)
    )


#: ``"%03d"`` of a number, kept for those that occur.
_milliseconds: Cache[float, str] = Cache("%03d".__mod__, 1000)


def _pieces(formatter: logging.Formatter) -> list[Piece] | None:
    """Return the pieces of a format; None if it has something that is left to the stdlib."""
    style = formatter._style
    pieces_of = {
        logging.PercentStyle: _percent_pieces,
        logging.StrFormatStyle: _brace_pieces,
        logging.StringTemplateStyle: _dollar_pieces,
    }.get(type(style))
    return None if pieces_of is None or not _is_plain(formatter) else pieces_of(style._fmt, formatter)


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
        return None  # not a valid format: the stdlib reports that for each record
    for literal, name, spec, conversion in fields:
        pieces.append(Piece(literal))
        if name is not None:
            # No width that is a field itself, no field by position, and no parts of a field.
            if "{" in (spec or "") or not re.fullmatch(r"[^\W\d]\w*", name):
                return None
            pieces += _field(name, formatter, brace=(spec or "", conversion))
    return pieces


def _field(
    name: str, formatter: logging.Formatter, percent: str = "", brace: tuple[str, str | None] = ("", None)
) -> list[Piece]:
    """Return the pieces of a field, with its %-style or {-style conversion."""
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
        function = {"s": "str", "r": "repr", "a": "ascii"}[conversion]
        value = f"{function}({value})"
    if spec:
        value = f"format({value}, {spec!r})"
    return [Piece(expression=value, fields=fields)]


def _agree(render: Renderer, reference: Renderer) -> bool:
    """Return whether two renderers give the same texts for a few records."""
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

    return render.render(batch, lambda *_: None) == reference.render(batch, lambda *_: None)
