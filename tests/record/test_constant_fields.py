"""Constant fields of a server: in every format, and in all processes."""

from __future__ import annotations

import datetime
import json
import logging
import logging.handlers
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import jobs
import pytest
from field_records import make, own_fields

import mplog
from mplog.formats.escaping import escaped_formatter
from mplog.formats.text import compiled, renderer
from mplog.record.decoding import constant_fields, decode_entry, to_record
from mplog.record.encoding import encode
from mplog.record.layout import RESERVED, Entry

CONSTANT: dict[str, Any] = {"service": "shop", "version": 1.5, "tags": ["a", "b"], "odd name": None, "level": 3}

FORMATTERS = {
    "percent": lambda: logging.Formatter("%(asctime)s %(service)s %(levelname)s %(version)-6s| %(message)s"),
    "only": lambda: logging.Formatter("%(service)s"),
    "brace": lambda: logging.Formatter("{service:>9} {message} {tags!r}", style="{"),
    "dollar": lambda: logging.Formatter("$service ${version} $message", style="$"),
    "unused": lambda: logging.Formatter("%(message)s"),
    "json": lambda: mplog.JSONFormatter(),
    "json fields": lambda: mplog.JSONFormatter({"svc": "service", "text": "message", "tags": "levelname"}),
    "json nothing": lambda: mplog.JSONFormatter({}),
    "escaped": lambda: escaped_formatter(logging.Formatter("%(service)s %(message)s")),
    "escaped json": lambda: escaped_formatter(mplog.JSONFormatter()),
}


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """CONSTANT as the fields of this process."""
    for name, value in CONSTANT.items():
        monkeypatch.setitem(constant_fields, name, value)
    return CONSTANT


def batch() -> list[Entry]:
    """Return records of every kind: plain, with fields of their own, some of them called like constant ones."""
    made = [
        make(),
        make("second", created=1700000001.5),
        make("with %s", extra=1),
        make("own", service="other"),
        make("own", level="deep", level_=1),
        make("underscore", level_=1),
        make("traceback", exc_text="Traceback\nValueError"),
        make("traceback", exc_text="Traceback\nValueError", version=2),
        make("stack", stack_info="Stack"),
        make("two\nlines", service="a\nb"),
    ]
    return [decode_entry(encode(record)) for record in made]


@pytest.mark.parametrize("name", FORMATTERS)
def test_constant_fields_are_formatted_as_attributes(constants: dict[str, Any], name: str) -> None:
    """A batch reads as if each record had come with them as `extra`, by the compiled way and by `format()`."""
    formatter = FORMATTERS[name]()
    found = compiled(formatter, "\n")
    assert found is not None
    texts = found.render(batch(), lambda entry, error: pytest.fail(str(error)))
    assert texts == [formatter.format(to_record(*entry)) + "\n" for entry in batch()]


def test_they_read_as_extra_does(constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a text log and a JSON log show is what they would for records that bring these fields themselves."""
    names = "percent", "brace", "dollar", "json", "json fields"
    here = [FORMATTERS[name]().format(to_record(*entry)) for name in names for entry in batch()]
    for field in CONSTANT:
        monkeypatch.delitem(constant_fields, field)
    there = []
    for name in names:
        for entry in batch():
            record = to_record(*entry)
            own = own_fields(record)
            for field in own:
                del record.__dict__[field]
            record.__dict__.update({**CONSTANT, **own})
            there.append(FORMATTERS[name]().format(record))
    assert there == here


def test_compiled_formats_keep_them(constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A format with constant fields costs no LogRecord and no call of `format()`."""
    for name in ("percent", "brace", "dollar", "json", "json fields"):
        formatter = FORMATTERS[name]()
        render = renderer(formatter, "\n").render
        with monkeypatch.context() as patched:
            patched.setattr(type(formatter), "format", lambda *_: pytest.fail("format() was called"))
            assert len(render([decode_entry(encode(make()))] * 3, lambda entry, error: pytest.fail(str(error)))) == 3


def test_dangerous_constants_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `escape=True`, a line break in a constant field is none in the file."""
    monkeypatch.setitem(constant_fields, "service", "a\nb")
    formatter = escaped_formatter(logging.Formatter("%(service)s|%(message)s"))
    assert renderer(formatter, "\n").render([decode_entry(encode(make()))], pytest.fail) == ["a\\nb|hello\n"]


@pytest.mark.parametrize("name", sorted(RESERVED) + ["getMessage", "exc_type"])
def test_a_constant_field_cannot_hide_an_attribute(name: str) -> None:
    """A name that every record has already is refused at once."""
    with pytest.raises(ValueError, match=f"a field cannot be called '{name}'"):
        mplog.LogServer("app.log", fields={name: 1})


def test_arguments_of_wrong_types_are_refused() -> None:
    """A name that is no text and an enricher that cannot be called are errors of their own."""
    with pytest.raises(TypeError, match="the name of a field is a text, not 5"):
        mplog.LogServer("app.log", fields={5: 1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="something else callable, not 'host'"):
        mplog.Fields(enrichers=["host"])  # type: ignore[list-item]
    with pytest.raises(re.error):
        mplog.Redactor(pattern="(")


def test_all_records_of_a_server_have_them(context: Any, tmp_path: Path) -> None:
    """They stand on the records of workers and of the parent, with their types, in every sink; a record's own field of
    that name takes precedence."""
    constant = {"service": "shop", "since": datetime.date(2026, 1, 2), "lock": threading.Lock(), "n": 2**70}
    sinks = (
        mplog.FileSink(tmp_path / "a.log", format="%(service)s %(since)s %(message)s"),
        mplog.FileSink(tmp_path / "b.jsonl", format=mplog.JSONFormatter({"message": "message"})),
    )
    with mplog.LogServer(*sinks, level="INFO", fields=constant) as server:
        with context.Pool(1, initializer=server.initializer) as pool:
            pool.map(jobs.note, ["worker"])
        logging.info("parent", extra={"service": "own"})
    assert (tmp_path / "a.log").read_text() == "shop 2026-01-02 worker\nown 2026-01-02 parent\n"
    first, second = (json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines())
    assert first.pop("lock").startswith("<unlocked")
    assert first == {"message": "worker", "service": "shop", "since": "2026-01-02", "n": 2**70}
    assert second["service"] == "own"


@pytest.mark.processes
def test_a_restarted_logging_process_has_them(tmp_path: Path) -> None:
    """When the logging process has been killed, what the next one writes has the constant fields as well."""
    path = tmp_path / "app.log"
    with mplog.LogServer(path, level="INFO", format="%(service)s %(message)s", fields={"service": "shop"}) as server:
        logging.info("before")
        server.flush()
        os.kill(server.pid, signal.SIGKILL)
        logging.info("after")
    written = path.read_text().splitlines()
    assert [line for line in written if "mplog" not in line] == ["shop before", "shop after"]
    assert all(line.startswith("shop ") for line in written)


@pytest.mark.processes
def test_they_go_with_a_configuration(tmp_path: Path) -> None:
    """`fields` combines with `config`, where handlers of every kind see them, and with `from_logging`."""
    config = {
        "version": 1,
        "formatters": {"f": {"format": "%(service)s %(message)s"}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": str(tmp_path / "a.log"), "formatter": "f"},
            "memory": {"class": "logging.handlers.MemoryHandler", "capacity": 1, "target": "file"},
        },
        "root": {"handlers": ["memory"], "level": "INFO"},
    }
    with mplog.LogServer(config=config, fields={"service": "shop"}):
        logging.info("hello")
    handler = logging.FileHandler(tmp_path / "b.log")
    handler.setFormatter(logging.Formatter("%(service)s %(message)s"))
    logging.getLogger().handlers = [handler]
    logging.getLogger().setLevel("INFO")
    with mplog.LogServer.from_logging(fields={"service": "shop"}):
        logging.info("hello")
    handler.close()
    assert (tmp_path / "a.log").read_text() == (tmp_path / "b.log").read_text() == "shop hello\n"
