"""Sinks as the handlers of a configuration: with their own keywords, from any source, and mistakes by their place."""

from __future__ import annotations

import gzip
import json
import logging
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pytest
from commands import mplog as command
from commands import shell
from logs import rotated
from pages import DOCS
from scripts import lines, run_script, write_script

import mplog
from mplog.config.arguments import arguments_of
from mplog.config.check import NOT_IN_SINKS

pytestmark = pytest.mark.processes

Config = dict[str, Any]

#: What a whole program is configured by: TOML, in which there is nothing but plain keys.
TOML = """
version = 1
disable_existing_loggers = false

[formatters.short]
format = "%(levelname)s %(name)s %(message)s"

[formatters.lines]
class = "mplog.JSONFormatter"
fields = {level = "levelname", message = "message"}

[filters.no_noise]
name = "app"

[handlers.all]
class = "mplog.FileSink"
path = "all.log"
formatter = "short"
filters = ["no_noise"]
rotate = 200
keep = "1 day and 1 MB"
compress = "gz"
archive = "all.{index:02}.log"
mode = 0o600

[handlers.errors]
class = "mplog.FileSink"
path = "errors.jsonl"
formatter = "lines"
level = "ERROR"

[handlers.tasks]
class = "mplog.RoutedFileSink"
path = "{job}.task"
formatter = "short"
escape = true

[handlers.console]
class = "mplog.ConsoleSink"
stream = "stdout"
color = true
formatter = "short"
level = "CRITICAL"

[handlers.service]
class = "mplog.CallableSink"
function = "ext://sending.send"
formatter = "short"
batch = 3
retry = {first = 0.01, limit = 20}

[handlers.bytes]
class = "mplog.RawSink"
path = "bytes.bin"
name = "bytes"

[loggers."app.tasks"]
handlers = ["tasks"]
propagate = false

[loggers."app.service"]
handlers = ["service"]

[root]
handlers = ["all", "errors", "console"]
level = "INFO"
"""

#: The function of the sink for it, which fails at first.
SENDING = """
import itertools, os
attempts = itertools.count()

def send(batch):
    if not next(attempts):
        raise ConnectionError("not yet")
    with open("sent.txt", "a") as file:
        file.writelines(f"{line}\\n" for line in batch)
"""


def log_in_worker(number: int) -> None:
    """Runs in a worker: log to each of the sinks."""
    logging.getLogger("app").info("number %d of %s", number, "x" * 50)
    logging.getLogger("app.tasks").info("a\ntask", extra={"job": f"job-{number}"})
    logging.getLogger("app.service").warning("to send %d", number)
    logging.getLogger("other").error("noise in all.log\nand an error")
    logging.getLogger("other").debug("below")
    mplog.write(b"%d;" % number, to="bytes")


@pytest.mark.parametrize("kind", ["toml", "json", "dict"])
def test_sinks_in_a_configuration_of_any_kind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each sink does what its keywords say, for loggers with and without propagation, in all processes."""
    tomllib = pytest.importorskip("tomllib") if kind != "toml" else None
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    write_script(tmp_path, SENDING, "sending.py")
    source: Any = tmp_path / f"logging.{kind}"
    if tomllib is not None:
        source, text = tomllib.loads(TOML), source
        if kind == "json":
            text.write_text(json.dumps(source))
            source = text
    else:
        source.write_text(TOML)
    with mplog.LogServer(config=source) as server:
        with multiprocessing.get_context("spawn").Pool(1, initializer=server.initializer) as pool:
            pool.map(log_in_worker, range(6))
        logging.getLogger("app").critical("of the program")
        server.flush()
        assert server.stats().failed == {}
    archives = sorted(path for path in tmp_path.iterdir() if path.name.startswith("all.") and path.suffix == ".gz")
    assert len(archives) > 2
    assert [path.name for path in archives] == [f"all.{index:02}.log.gz" for index in range(1, len(archives) + 1)]
    text = b"".join([*(gzip.decompress(path.read_bytes()) for path in archives), (tmp_path / "all.log").read_bytes()])
    written = [line for line in text.decode().splitlines() if "mplog" not in line]
    expected = [
        line
        for number in range(6)
        for line in (f"INFO app number {number} of {'x' * 50}", f"WARNING app.service to send {number}")
    ]
    assert written == [*expected, "CRITICAL app of the program"]
    assert (tmp_path / "all.log").stat().st_mode & 0o777 == 0o600
    errors = [json.loads(line) for line in lines(tmp_path / "errors.jsonl") if "will be tried again" not in line]
    assert errors == [
        *6 * [{"level": "ERROR", "message": "noise in all.log\nand an error"}],
        {"level": "CRITICAL", "message": "of the program"},
    ]
    for number in range(6):
        assert lines(tmp_path / f"job-{number}.task") == ["INFO app.tasks a\\ntask"]
    assert lines(tmp_path / "sent.txt") == [f"WARNING app.service to send {number}" for number in range(6)]
    assert (tmp_path / "bytes.bin").read_bytes() == b"0;1;2;3;4;5;"
    assert capfd.readouterr().out == "\x1b[1;31mCRITICAL app of the program\x1b[0m\n"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("how", ["run", "serve"])
def test_sinks_of_the_command_line(how: str, tmp_path: Path) -> None:
    """``mplog run --config`` and ``mplog serve --config`` take a file with sinks."""
    (tmp_path / "logging.toml").write_text(
        'version = 1\n[handlers.app]\nclass = "mplog.FileSink"\npath = "app.log"\nrotate = 10\n'
        'archive = "app.{index}.log"\n[root]\nhandlers = ["app"]\nlevel = "INFO"\n'
    )
    log = "mplog log info 'first one'; mplog log info 'second one'"
    script = {
        "run": f'mplog run --config logging.toml -- sh -c "{log}"',
        "serve": f"export MPLOG_QUEUE=$(mplog serve start --config logging.toml); {log}; mplog serve stop",
    }
    done = shell(script[how], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (lines(tmp_path / "app.1.log"), lines(tmp_path / "app.log")) == (["first one"], ["second one"])


def test_command_line_names_the_place(tmp_path: Path) -> None:
    """A keyword that a sink does not understand is on stderr with its place, and nothing is run."""
    (tmp_path / "bad.toml").write_text(
        'version = 1\n[handlers.app]\nclass = "mplog.FileSink"\npath = "app.log"\nrotate = "100 MBs"\n'
        '[root]\nhandlers = ["app"]\n'
    )
    done = command("run", "--config", "bad.toml", "--", "touch", "was-run", directory=tmp_path)
    assert done.returncode == 125
    assert done.stderr.startswith("mplog run: handlers.app.rotate: rotate='100 MBs' is not understood")
    assert os.listdir(tmp_path) == ["bad.toml"]


def config_with(handlers: Config, **changes: Any) -> Config:
    """Return a configuration with these handlers on the root logger."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"short": {"format": "%(levelname)s %(message)s"}},
        "handlers": handlers,
        "root": {"handlers": list(handlers), "level": "INFO"},
        **changes,
    }


def test_handler_without_formatter_writes_the_message(tmp_path: Path) -> None:
    """Without a formatter, a sink writes what any handler of a configuration does; with ``fields``, it shows them."""
    handlers = {
        "sink": {"class": "mplog.FileSink", "path": str(tmp_path / "sink.log")},
        "handler": {"class": "logging.FileHandler", "filename": str(tmp_path / "handler.log")},
        "fields": {
            "()": mplog.FileSink,
            "path": tmp_path / "fields.log",
            "formatter": "fields",
            ".": {"terminator": "|"},
        },
    }
    config = config_with(handlers, formatters={"fields": {"format": "%(service)s %(message)s"}})
    with mplog.LogServer(config=config, fields={"service": "shop"}):
        logging.info("one")
        logging.info("two")
    assert (tmp_path / "sink.log").read_bytes() == (tmp_path / "handler.log").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "fields.log").read_text() == "shop one|shop two|"


def test_sink_of_the_program_itself(tmp_path: Path) -> None:
    """A class of sinks that the script defines works by name, with whatever its constructor takes."""
    program = """
        import logging, mplog

        class Daily(mplog.FileSink):
            def __init__(self, name, **options):
                super().__init__(f"{name}.log", rotate="midnight", **options)

        CONFIG = {
            "version": 1,
            "handlers": {"daily": {"class": "__main__.Daily", "name": "shop", "mode": "600"}},
            "root": {"handlers": ["daily"]},
        }
        if __name__ == "__main__":
            with mplog.LogServer(config=CONFIG):
                logging.warning("here")
            try:
                mplog.LogServer(config={**CONFIG, "handlers": {"daily": {"class": "__main__.Daily", "nam": "shop"}}})
            except mplog.ConfigurationError as error:
                print(error.place)
    """
    done = run_script(tmp_path, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "handlers.daily.nam\n", "")
    assert lines(tmp_path / "shop.log") == ["here"]
    assert (tmp_path / "shop.log").stat().st_mode & 0o777 == 0o600


def test_sink_is_followed_through_references(tmp_path: Path) -> None:
    """``cfg://`` and ``ext://`` stand for whole entries, classes and values of a sink."""
    config = config_with(
        {"sink": "cfg://templates.sink"},
        templates={
            "sink": {"class": "ext://mplog.FileSink", "path": "cfg://templates.path", "rotate": "ext://os.path.pardir"},
            "path": str(tmp_path / "app.log"),
        },
    )
    with pytest.raises(mplog.ConfigurationError, match=r"handlers\.sink\.rotate: rotate='\.\.' is not understood"):
        mplog.LogServer(config=config)
    config["templates"]["sink"]["rotate"] = "1 MB"
    with mplog.LogServer(config=config):
        logging.info("here")
    assert lines(tmp_path / "app.log") == ["here"]


def test_sink_belongs_to_one_logging_process(tmp_path: Path) -> None:
    """The file of a sink is locked, and free again after the server has stopped."""
    config = config_with({"sink": {"class": "mplog.FileSink", "path": str(tmp_path / "app.log")}})
    with mplog.LogServer(config=config), pytest.raises(mplog.LogFileLockedError):
        mplog.LogServer(tmp_path / "app.log").start()
    with mplog.LogServer(config=config):
        logging.info("here")
    assert os.listdir(tmp_path) == ["app.log"]
    assert rotated(tmp_path / "app.log") == []


SINK = "mplog.FileSink"
SEND = "ext://builtins.print"

MISTAKES: dict[str, tuple[Config, str]] = {
    "unknown": ({"class": SINK, "path": "a", "rotat": 1}, r"x\.rotat: this key is unknown.*Did you mean 'rotate'"),
    "missing": ({"class": SINK}, r"x\.path: it is missing, and mplog\.FileSink needs it"),
    "path": ({"class": SINK, "path": 7}, r"x\.path: path is that of a file, 'app\.log', not 7"),
    "nul": ({"class": SINK, "path": "a\0b"}, r"x\.path: path='a\\x00b' has a NUL"),
    "rotate": (
        {"class": SINK, "path": "a", "rotate": "100 MBs"},
        r"x\.rotate: rotate='100 MBs' is not understood.*100 MB",
    ),
    "keep": (
        {"class": SINK, "path": "a", "keep": "14 days"},
        r"x\.keep: keep='14 days' is about rotated files: say when",
    ),
    "two": ({"class": SINK, "path": "a", "compress": "gz", "keep": 1}, r"x\.keep: keep=1 is about rotated files"),
    "compress": (
        {"class": SINK, "path": "a", "rotate": 9, "compress": "bz2"},
        r"x\.compress: compress is 'gz' or 'zst', not 'bz2'",
    ),
    "archive": (
        {"class": SINK, "path": "a", "rotate": 9, "archive": "../a.{index}"},
        r"x\.archive: archive='\.\./a\.{index}' is the name of a file in the directory of the log",
    ),
    "timezone": (
        {"class": SINK, "path": "a", "rotate": "midnight", "timezone": "Europe/Berl"},
        r"x\.timezone: .*is not known on this machine",
    ),
    "mode": ({"class": SINK, "path": "a", "mode": "rw"}, r"x\.mode: mode='rw' is not a file mode.*'640'"),
    "encoding": ({"class": SINK, "path": "a", "encoding": "utf9"}, r"x\.encoding: unknown encoding: utf9"),
    "fsync": ({"class": SINK, "path": "a", "fsync": "always"}, r"x\.fsync: fsync is 'never', 'batch'"),
    "directory": (
        {"class": SINK, "path": "missing/a"},
        r"x\.path: .*its directory .*missing does not exist. Create it first",
    ),
    "level": ({"class": SINK, "path": "a", "level": "LOUD"}, r"x\.level: 'LOUD' is not a level"),
    "formatter": (
        {"class": SINK, "path": "a", "formatter": "shrt"},
        r"x\.formatter: 'shrt' is not defined in formatters",
    ),
    "format": ({"class": SINK, "path": "a", "format": "%(message)s"}, r"x\.format: .*Name one of the formatters"),
    "logger": ({"class": SINK, "path": "a", "logger": "app"}, r"x\.logger: .*Name the handler at that logger"),
    "propagate": ({"class": SINK, "path": "a", "propagate": False}, r"x\.propagate: .*It is a key of loggers"),
    "pattern": ({"class": "mplog.RoutedFileSink", "path": "a.log"}, r"x\.path: the file name 'a\.log' has no {field}"),
    "escapes": ({"class": "mplog.RoutedFileSink", "path": "{name}/a.log"}, r"x\.path: .*has a field in its directory"),
    "max_open": (
        {"class": "mplog.RoutedFileSink", "path": "{name}", "max_open": "9"},
        r"x\.max_open: max_open is a num",
    ),
    "stream": ({"class": "mplog.ConsoleSink", "stream": "ext://sys.stdout"}, r"x\.stream: .*'stderr' or 'stdout'"),
    "function": ({"class": "mplog.CallableSink", "function": "print"}, r"x\.function: .*needs a function"),
    "batch": ({"class": "mplog.CallableSink", "function": SEND, "batch": "9"}, r"x\.batch: batch is a whole number"),
    "timeout": ({"class": "mplog.CallableSink", "function": SEND, "timeout": "1"}, r"x\.timeout: timeout is a number"),
    "retry": ({"class": "mplog.CallableSink", "function": SEND, "retry": 5}, r"x\.retry: retry is a Retry, or a dict"),
    "retry key": ({"class": "mplog.CallableSink", "function": SEND, "retry": {"a": 1}}, r"x\.retry: .*first, longest"),
    "retry value": (
        {"class": "mplog.CallableSink", "function": SEND, "retry": {"limit": "1"}},
        r"x\.retry: limit of a Retry is a number of seconds, not '1'",
    ),
    "text of bytes": (
        {"class": "mplog.RawSink", "path": "a", "formatter": "short"},
        r"x\.formatter: RawSink does not take form",
    ),
    "level of bytes": (
        {"class": "mplog.WriterSink", "factory": SEND, "level": "INFO"},
        r"x\.level: mplog\.WriterSink takes bytes as they are. Leave it out",
    ),
    "records of bytes": (
        {"class": "mplog.RawSink", "path": "a"},
        r"root\.handlers: 'x' writes the bytes of mplog\.write",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_sink_is_named_by_its_place(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword of a sink that is wrong raises with its place and the remedy, before any process or file is made."""
    monkeypatch.chdir(tmp_path)
    handler, message = MISTAKES[mistake]

    def fail(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("mplog.server.started.Control", fail)
    with pytest.raises(mplog.ConfigurationError, match=message) as caught:
        mplog.LogServer(config=config_with({"x": handler})).start()
    assert str(caught.value).startswith(f"{caught.value.place}: ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("formatter", "message"),
    [
        (
            {"class": "mplog.JSONFormatter", "time": "iso"},
            r"formatters\.f\.time: time is written as 'rfc3339' or 'epoch'",
        ),
        ({"()": "mplog.JSONFormatter", "fields": ["a"]}, r"formatters\.f\.fields: fields is a dictionary"),
        ({"class": "mplog.JSONFormatter", "format": "%(message)s"}, r"formatters\.f\.format: this key is unknown"),
    ],
)
def test_mistake_in_a_json_formatter_is_named_by_its_place(formatter: Config, message: str) -> None:
    """What a JSONFormatter does not understand raises with its place, before anything is started."""
    handlers = {"x": {"class": SINK, "path": "a.log", "formatter": "f"}}
    with pytest.raises(mplog.ConfigurationError, match=message):
        mplog.LogServer(config=config_with(handlers, formatters={"f": formatter}))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"class": "logging.FileHandler", "filename": "app.log"}, r"app\.log is given twice"),
        ({"class": "mplog.RoutedFileSink", "path": "{name}.log"}, "could write to one file"),
        ({"class": "mplog.FileSink", "path": "b.log", "rotate": 9, "archive": "app.{index}.log"}, None),
        ({"class": "mplog.FileSink", "path": "b.log", "rotate": 9, "archive": "ap{index}.log"}, None),
    ],
)
def test_sinks_that_would_share_a_file_are_refused(
    other: Config, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sinks, or a sink and a handler, that could write one file are a mistake; other names go together."""
    monkeypatch.chdir(tmp_path)
    config = config_with({"sink": {"class": SINK, "path": "app.log"}, "other": other})
    if message is None:
        mplog.LogServer(config=config)
        return
    with pytest.raises(mplog.ConfigurationError, match=message) as caught:
        mplog.LogServer(config=config)
    assert caught.value.place == "handlers"


@pytest.mark.parametrize("kind", [mplog.FileSink, mplog.RoutedFileSink, mplog.ConsoleSink, mplog.CallableSink])
def test_page_of_keys_has_all_of_them(kind: type[mplog.Sink]) -> None:
    """What a sink takes in a configuration is in its row of docs/configuration-keys.rst."""
    page = (DOCS / "configuration-keys.rst").read_text(encoding="utf-8")
    rows = dict(re.findall(r"\* - ``mplog\.(\w+)``\n     - ((?:.+\n)+?)(?=   \*)", page))
    row = rows[kind.__name__] + (rows["FileSink"] if "those of a ``FileSink``" in rows[kind.__name__] else "")
    # Where a handler of any kind has these.
    names = arguments_of(kind)[0].keys() - {"level", "filters", *NOT_IN_SINKS}
    assert {name for name in names if f"``{name}``" not in row} == set()


def test_bytes_of_a_configuration_need_a_log_queue() -> None:
    """A sink for bytes beside a plain queue is refused, and so are two of one name."""
    raw = {"class": "mplog.RawSink", "path": "a.bin"}
    config = config_with({"console": {"class": "mplog.ConsoleSink"}, "raw": raw}, root={"handlers": ["console"]})
    with pytest.raises(ValueError, match="a sink for bytes needs a LogQueue"):
        mplog.LogServer(config=config, queue=multiprocessing.Queue())
    config["handlers"]["again"] = {**raw, "path": "b.bin"}
    with pytest.raises(mplog.ConfigurationError, match="handlers: two sinks for bytes are called ''"):
        mplog.LogServer(config=config)
