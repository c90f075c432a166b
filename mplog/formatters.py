"""From a batch of records to texts, in one pass. Runs in the logging process.

The rule of this file: **the same bytes as the stdlib, or the stdlib itself.** `renderer` compiles an exact
``logging.Formatter`` into a loop over the records as they come off the wire: one template, fields by position, the
date formatted once a second. What it cannot be sure of goes through the formatter's own ``format()``: a formatter of
another class or with methods of its own, a template that does not give the stdlib's text on a few samples, and any
single record that does not fit the template.
"""

from __future__ import annotations

import logging
import re
import string
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mplog.record import HAS_TASK_NAME, HIDDEN, SHOWN, Values, decode_rest, decode_values, encode, to_record

__all__ = ["BatchFormatter", "Renderer", "compile_loop", "expression", "renderer"]

#: Called with a batch and with what to do about a record that cannot be formatted; returns a text for each record, with
#: its terminator, and an empty one for those.
Renderer = Callable[[Sequence[Values], Callable[[Values, Exception], object]], list[str]]

_PLAIN_ATTRIBUTES = {"_style", "_fmt", "datefmt", "converter", "default_time_format", "default_msec_format"}
_STYLE_ATTRIBUTES = {"_fmt", "_defaults", "_tpl"}
_REST = frozenset((*HIDDEN, *(["taskName"] if HAS_TASK_NAME else [])))
_STANDARD = frozenset(("msg", "exc_text", "processName", *SHOWN)) | _REST


class BatchFormatter(logging.Formatter):
    """A formatter that knows how to format a batch."""

    def renderer(self, terminator: str) -> Renderer | None:
        """Return the fast way to format a batch, or None to have `format` called for each record."""
        return None


def renderer(formatter: logging.Formatter, terminator: str) -> Renderer:
    """Return the fastest way to format a batch as `formatter` would, each record followed by `terminator`."""
    if isinstance(formatter, BatchFormatter):
        render: Renderer | None = formatter.renderer(terminator)
    else:
        render = _compiled(formatter, terminator)
    return render or _interpreted(formatter, terminator)


def _interpreted(formatter: logging.Formatter, terminator: str) -> Renderer:
    def render(batch: Sequence[Values], on_error: Callable[[Values, Exception], object]) -> list[str]:
        texts = []
        for values in batch:
            try:
                text = formatter.format(to_record(values)) + terminator
            except Exception as error:
                on_error(values, error)
                text = ""
            texts.append(text)
        return texts

    return render


def _compiled(formatter: logging.Formatter, terminator: str) -> Renderer | None:
    if type(formatter) is not logging.Formatter or not vars(formatter).keys() <= _PLAIN_ATTRIBUTES:
        return None
    if not vars(formatter._style).keys() <= _STYLE_ATTRIBUTES:
        return None
    if formatter.converter not in (time.localtime, time.gmtime):
        return None
    template = _template(formatter)
    if template is None:
        return None
    render = _build(formatter, template, terminator)
    return render if _agree(render, _interpreted(formatter, terminator)) else None


# --- templates: the text with its fields by position, and the fields' names ---


def _template(formatter: logging.Formatter) -> tuple[str, list[str], str] | None:
    """Return the template, the names of its fields in their order, and the operator that fills it."""
    style = formatter._style
    if type(style) is logging.PercentStyle:
        return _percent_template(style._fmt, formatter)
    if type(style) is logging.StrFormatStyle:
        return _brace_template(style._fmt)
    if type(style) is logging.StringTemplateStyle:
        return _dollar_template(style._fmt, formatter)
    return None


def _percent_template(text: str, formatter: logging.Formatter) -> tuple[str, list[str], str]:
    fields: list[str] = []

    def positional(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "%%"
        if match["name"] == "asctime" and match["string"] and _has_milliseconds(formatter):
            fields.extend(("stamp", "msecs"))
            return "%s,%03d"
        fields.append(match["name"])
        return "%" + (match["string"] or "")

    return re.sub(r"%(?:%|\((?P<name>\w+)\)(?P<string>s)?)", positional, text), fields, "% "


def _dollar_template(text: str, formatter: logging.Formatter) -> tuple[str, list[str], str] | None:
    if any(match["invalid"] is not None for match in string.Template.pattern.finditer(text)):
        return None
    percent = string.Template.pattern.sub(
        lambda match: "$" if match["escaped"] else f"\0({match['named'] or match['braced']})s", text.replace("%", "%%")
    )
    return _percent_template(percent.replace("\0", "%"), formatter)


def _brace_template(text: str) -> tuple[str, list[str], str] | None:
    pieces, fields = [], []
    for literal, name, specification, conversion in string.Formatter().parse(text):
        pieces.append(literal.replace("{", "{{").replace("}", "}}"))
        if name is not None:
            if "{" in (specification or ""):
                return None  # a width that is a field itself
            attribute = re.match(r"\w*", name)
            assert attribute is not None
            if not attribute[0] or attribute[0].isdecimal():
                return None  # a field by position: there are none
            fields.append(attribute[0])
            pieces.append(
                "{" + name[attribute.end() :] + (f"!{conversion}" if conversion else "") + f":{specification}" + "}"
            )
    return "".join(pieces), fields, ".format"


def _has_milliseconds(formatter: logging.Formatter) -> bool:
    return not formatter.datefmt and formatter.default_msec_format == "%s,%03d"


# --- the loop ---

_LOOP = """\
def render(batch, on_error):
    second = None
    texts = []
    for values in batch:
        msg, extra, exc_text, shown, processName, _ = values
        created, msecs, relativeCreated, stack_info, process, name, levelno, levelname = shown
        try:
            if msg is None or extra is not None and not standard.isdisjoint(extra):
                raise LookupError  # no text, or one that UTF-8 does not take: it is among the extra ones
            {body}
            texts.append(text + terminator)
        except Exception:
            texts += interpret((values,), on_error)
    return texts
"""


def compile_loop(
    body: list[str], fields: Iterable[str], names: dict[str, Any], formatter: logging.Formatter, terminator: str
) -> Renderer:
    """Return a renderer around statements that make the ``text`` of one record.

    Args:
        body: the statements. They see the attributes of the record by their names, ``extra``, and ``second``, which is
            None in the beginning of a batch. Where they raise, the record goes through ``formatter.format()``.
        fields: the attributes that they use.
        names: what else they use.
        formatter: the formatter that they stand for.
        terminator: what follows each text.
    """
    if not _REST.isdisjoint(fields):
        body = [f"{', '.join(HIDDEN)}, taskName, _ = decode_rest(values)", *body]
    namespace = {
        **names,
        "terminator": terminator,
        "standard": _STANDARD,
        "interpret": _interpreted(formatter, terminator),
        "decode_rest": decode_rest,
    }
    exec(_LOOP.format(body="\n            ".join(body)), namespace)
    render: Renderer = namespace["render"]
    return render


def expression(field: str) -> str:
    """Return what gives the value of a record's attribute in the loop."""
    if field == "message":
        return "msg"
    # Names of attributes stand in it as they are only where they are ours.
    return field if field in _STANDARD else f"extra[{field!r}]"


def _build(formatter: logging.Formatter, template: tuple[str, list[str], str], terminator: str) -> Renderer:
    text, fields, operator = template
    body = []
    if "asctime" in fields or "stamp" in fields:
        # localtime() and strftime() know no fraction of a second.
        body.append("if created // 1 != second:")
        body.append("    stamp = strftime(date_format, converter(created))")
        body.append("    second = created // 1")
    milliseconds = not formatter.datefmt and formatter.default_msec_format
    special = {"stamp": "stamp", "asctime": "msec_format % (stamp, msecs)" if milliseconds else "stamp"}
    arguments = ", ".join(special.get(field) or expression(field) for field in fields)
    body += [
        f"text = template{operator}({arguments}{',' if operator == '% ' and fields else ''})",
        r"if exc_text: text = (text if text[-1:] == '\n' else text + '\n') + exc_text",
        r"if stack_info: text = (text if text[-1:] == '\n' else text + '\n') + stack_info",
    ]
    names = {
        "template": text,
        "strftime": time.strftime,
        "converter": formatter.converter,
        "date_format": formatter.datefmt or formatter.default_time_format,
        "msec_format": formatter.default_msec_format,
    }
    return compile_loop(body, fields, names, formatter, terminator)


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
        batch.append(decode_values(encode(sample)))

    def ignore(values: Values, error: Exception) -> None:
        pass

    return render(batch, ignore) == reference(batch, ignore)
