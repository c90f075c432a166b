"""Records are the same for whoever copies them, pickles them or formats them by hand (fault 44).

Each formatter and filter here writes the same as in one process, where the stdlib alone passes it the record.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripts import lines
from travel import Code, Point

import mplog
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.layout import REST, Record
from mplog.record.preparation import Preparation

Calls = list[tuple[Any, tuple[Any, ...]]]

#: Messages and their arguments.
CALLS: Calls = [
    ("plain", ()),
    ("user %s logged in", ("ann",)),
    ("%(a)s and %(b)r", ({"a": 1, "b": "x"},)),
    ("100 %d%%", (5,)),
    ("%5.1f|%-4s|%x", (2.25, "ab", 255)),
    ("%s %s", (Code.TEAPOT, Point((1, 2)))),
    ("the template %%s of %s", ("%d",)),
    (Code.TEAPOT, ()),
    ("grüß %s", ("\udc80",)),
]


# --- what formatters and filters do with a record ---


def is_copied(record: logging.LogRecord) -> str:
    """As structlog's ProcessorFormatter does."""
    return logging.makeLogRecord(record.__dict__).getMessage()


def is_formatted_by_hand(record: logging.LogRecord) -> str:
    """As formatters do that know how a message is made."""
    return str(record.msg) % record.args if record.args else str(record.msg)


def is_pickled(record: logging.LogRecord) -> str:
    """As handlers do that send a record on."""
    message: str = pickle.loads(pickle.dumps(record)).getMessage()
    return message


def is_copied_deeply(record: logging.LogRecord) -> str:
    """As handlers do that keep a record."""
    return copy.deepcopy(record).getMessage()


def is_prefixed(record: logging.LogRecord) -> str:
    """As filters do that know where a record comes from."""
    record = copy.copy(record)
    record.msg = f"[here] {record.msg!s}"  # before Python 3.12, an IntEnum is formatted as its number
    return is_copied(record) + record.getMessage()


def is_masked(record: logging.LogRecord) -> str:
    """As filters do that keep secrets."""
    record = copy.copy(record)
    if isinstance(record.args, dict):
        record.args["a"] = "***"
    elif record.args:
        record.args = tuple("***" if isinstance(arg, str) else arg for arg in record.args)
    return is_copied(record) + record.getMessage()


def is_shown(record: logging.LogRecord) -> str:
    """As trackers of errors do, which group records by their template."""
    return json.dumps([str(record.msg), [str(arg) for arg in record.args or ()], record.getMessage()])


USES: list[Callable[[logging.LogRecord], str]] = [
    is_copied,
    is_formatted_by_hand,
    is_pickled,
    is_copied_deeply,
    is_prefixed,
    is_masked,
    is_shown,
]


def made(msg: Any, args: tuple[Any, ...]) -> logging.LogRecord:
    """Return a record as a call makes it; its arguments are its own."""
    return logging.LogRecord("a", logging.INFO, "f.py", 1, msg, copy.deepcopy(args), None)


@pytest.mark.parametrize("use", USES)
def test_record_with_its_arguments_is_used_as_in_one_process(use: Callable[[logging.LogRecord], str]) -> None:
    """Where arguments travel, template and arguments are used with the same result as in one process."""
    for msg, args in CALLS:
        record = made(msg, args)
        for arrived in (
            decode(encode(record, with_args=True)),
            decode(encode(record, details=False, with_args=True)),
            decode(encode(decode(encode(record, with_args=True)), with_args=True)),
            decode(Preparation((), (lambda _, value: value,))(encode(record, with_args=True))),
        ):
            assert type(arrived) is Record
            try:
                expected = use(made(msg, args))
            except UnicodeEncodeError:  # the surrogate, by pickle
                continue
            assert use(arrived).replace("\\udc80", "\udc80") == expected.replace("\\udc80", "\udc80")


@pytest.mark.parametrize("use", [is_copied, is_pickled, is_copied_deeply])
def test_record_without_its_arguments_has_its_message(use: Callable[[logging.LogRecord], str]) -> None:
    """Where arguments do not travel, the finished message is what every copy has, and there is nothing to format."""
    for msg, args in CALLS:
        arrived = decode(encode(made(msg, args)))
        assert use(arrived) == made(msg, args).getMessage() == arrived.msg % arrived.args
        assert arrived.args == ()


def test_template_of_a_worker_is_not_formatted() -> None:
    """Whatever a worker says its template is, its message is the one that it has sent."""
    wire = msgspec.msgpack.decode(encode(made("%s", ("x",)), with_args=True))
    wire[REST][2][0] = "%999999999999s"
    record = decode(msgspec.msgpack.encode(wire))
    assert record.msg == "%999999999999s"
    assert {use(record) for use in (is_copied, is_formatted_by_hand, logging.LogRecord.getMessage)} == {"x"}


# --- under a server ---


class Using(logging.Formatter):
    """A formatter of a program's own."""

    def __init__(self, use: Callable[[logging.LogRecord], str]) -> None:
        super().__init__()
        self.use = use

    def format(self, record: logging.LogRecord) -> str:
        """Use the record, and write the result as JSON."""
        return json.dumps(self.use(record))


def structlogs() -> logging.Formatter:
    """Return structlog's formatter for the records of other loggers."""
    structlog = pytest.importorskip("structlog")
    formatter: logging.Formatter = structlog.stdlib.ProcessorFormatter(
        processor=structlog.processors.KeyValueRenderer(key_order=["event"]), pass_foreign_args=True
    )
    return formatter


FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {
    "structlog": structlogs,
    **{use.__name__: lambda use=use: Using(use) for use in USES},  # type: ignore[misc]
}


def log_all(*_: object) -> None:
    """Log each of the calls. Runs in a worker, too."""
    for msg, args in CALLS:
        logging.getLogger("calls").info(msg, *copy.deepcopy(args))


@pytest.mark.processes
@pytest.mark.parametrize("how", ["config", "adopted"])
def test_formatters_write_what_they_do_in_one_process(how: str, tmp_path: Path, context: Any) -> None:
    """Under a configuration, given or taken over, formatters that copy or format records write the stdlib's bytes."""
    names = list(FORMATTERS)
    expected = {}
    root = logging.getLogger()
    for name in names:
        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(FORMATTERS[name]())
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        log_all()
        expected[name] = handler.stream.getvalue().splitlines()
    root.handlers = []
    paths = {name: tmp_path / name for name in names}
    if how == "adopted":
        for name, path in paths.items():
            handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
            handler.setFormatter(FORMATTERS[name]())
            root.addHandler(handler)
        make = mplog.LogServer.from_logging
    else:
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {name: {"()": FORMATTERS[name]} for name in names},
            "handlers": {
                name: {"class": "logging.FileHandler", "filename": str(path), "formatter": name, "encoding": "utf-8"}
                for name, path in paths.items()
            },
            "root": {"handlers": names, "level": "INFO"},
        }
        make = lambda: mplog.LogServer(config=config)  # noqa: E731
    with make() as server:
        with context.Pool(1, initializer=server.initializer) as pool:
            pool.map(log_all, [None])
        assert not server.stats().failed
    for name, path in paths.items():
        assert lines(path) == expected[name], name
