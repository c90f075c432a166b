"""`LogServer(config=...)`: the same files as with the stdlib alone, in all processes, and mistakes by their place."""

from __future__ import annotations

import itertools
import json
import logging
import logging.handlers
import os
import threading
from pathlib import Path
from typing import Any

import configurations
import pytest
from scripts import drop_privileges, lines, run_script, write_script
from start_methods import START_METHODS

import mplog

pytestmark = pytest.mark.processes

Config = dict[str, Any]


def file_config(path: Path, **changes: Any) -> Config:
    """Return a small configuration that writes to a file, with other entries at the top."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"short": {"format": "%(name)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(path), "formatter": "short"}},
        "root": {"handlers": ["file"], "level": "INFO"},
        **changes,
    }


# --- the same as the stdlib ---


def outcome(directory: Path, name: str, how: str) -> dict[str, bytes]:
    """Run a configuration in an empty directory, and return all that it has written."""
    directory.mkdir()
    (directory / "old.log").write_text("of the last run\n")
    (directory / "web_settings.py").write_text("DEBUG = True\nSECRET_KEY = 'x'\n")
    program = f"""
        import sys
        sys.path.insert(0, {str(directory)!r})
        if __name__ == "__main__":
            import configurations
            configurations.main({name!r}, {how!r})
    """
    done = run_script(directory, program)
    assert done.returncode == 0, done.stderr
    (directory / "program.py").unlink()
    written = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    return {**written, "stdout": done.stdout.encode(), "stderr": done.stderr.encode()}


@pytest.fixture(scope="module")
def by_stdlib(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What the stdlib alone writes, by configuration, as far as it has been asked for."""
    return {}


#: The start method makes no difference to what a configuration writes: the configurations share the three methods.
CASES = list(zip([*configurations.CONFIGS, *configurations.INSTALLED], itertools.cycle(START_METHODS)))


@pytest.mark.parametrize(("name", "start_method"), CASES)
def test_a_configuration_writes_the_same_through_mplog(
    name: str, start_method: str, tmp_path: Path, by_stdlib: dict[str, dict[str, bytes]]
) -> None:
    """Workers under a configuration write, byte for byte, the files that one process writes with the stdlib alone."""
    if name not in by_stdlib:
        by_stdlib[name] = outcome(tmp_path / "stdlib", name, "stdlib")
    expected = by_stdlib[name]
    assert sum(map(len, expected.values())) > 500
    written = outcome(tmp_path / "mplog", name, start_method)
    assert written.keys() == expected.keys()
    for file, data in expected.items():
        assert written[file] == data, file


def test_program_logs_by_the_configuration_and_is_put_back(tmp_path: Path) -> None:
    """The program has the configured levels, filters and propagation until stop(), and then its own again."""
    own, new = logging.NullHandler(), logging.NullHandler()
    app, database, other = (logging.getLogger(name) for name in ("app", "app.db", "other"))
    app.addHandler(own)
    app.setLevel("ERROR")
    app.addFilter(configurations.too_loud)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    config = file_config(
        tmp_path / "root.log",
        disable_existing_loggers=True,
        filters={"mask": {"()": configurations.Mask}},
        loggers={"app": {"level": "INFO", "filters": ["mask"]}, "app.db": {"level": "ERROR", "propagate": False}},
    )
    with mplog.LogServer(config=config):
        app.info("a secret")
        other.error("disabled, since it was there before")
        database.critical("nobody handles it")
        assert (app.level, len(app.filters), app.handlers) == (logging.INFO, 2, [])
        assert (database.level, database.propagate, other.disabled) == (logging.ERROR, False, True)
        other.addHandler(new)
        database.setLevel("CRITICAL")
    assert lines(tmp_path / "root.log") == ["app a ***"]
    assert (app.level, app.filters, app.handlers) == (logging.ERROR, [configurations.too_loud], [own])
    assert (database.level, database.propagate) == (logging.CRITICAL, True)
    assert (other.disabled, other.handlers) == (False, [new])
    assert (root.handlers, root.level) == before


def test_servers_may_stop_in_another_order(tmp_path: Path) -> None:
    """A configured server that stops below another leaves that one's set-up, and the first one's is put back last."""
    app = logging.getLogger("app")
    handlers = logging.getLogger().handlers[:]
    first = mplog.LogServer(config=file_config(tmp_path / "1.log", loggers={"app": {"level": "ERROR"}})).start()
    second = mplog.LogServer(config=file_config(tmp_path / "2.log", loggers={"app": {"level": "DEBUG"}})).start()
    first.stop()
    app.debug("to the second")
    assert app.level == logging.DEBUG
    second.stop()
    assert (app.level, logging.getLogger().handlers) == (logging.NOTSET, handlers)
    assert lines(tmp_path / "2.log") == ["app to the second"]


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_configuration_comes_from_a_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TOML or JSON file has the same keys, and relative paths start where the program is."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"logging.{kind}"
    if kind == "json":
        path.write_text(json.dumps(file_config(Path("app.log"))), encoding="utf-8")
    else:
        path.write_text(
            "version = 1\ndisable_existing_loggers = false\n"
            '[formatters.short]\nformat = "%(name)s %(message)s"\n[handlers.file]\n'
            'class = "logging.FileHandler"\nfilename = "app.log"\nformatter = "short"\n'
            '[root]\nhandlers = ["file"]\nlevel = "INFO"\n',
            encoding="utf-8",
        )
    with mplog.LogServer(config=path):
        logging.getLogger("a").info("here")
    assert lines(tmp_path / "app.log") == ["a here"]


def test_references_lead_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cfg://`` and ``ext://`` stand for sections, entries, classes, names and values, as in the stdlib."""
    monkeypatch.chdir(tmp_path)
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "parts": {
            "handlers": {"file": "cfg://parts.file"},
            "file": {"class": "ext://logging.FileHandler", "filename": "cfg://parts.names[1]", "formatter": "short"},
            "names": ["no.log", "app.log"],
            "format": {"class": "ext://logging.Formatter", "format": "%(name)s %(message)s"},
            "root": {"handlers": "cfg://parts.list", "level": "ext://logging.INFO"},
            "list": ["file"],
        },
        "formatters": {"short": "cfg://parts.format"},
        "handlers": "cfg://parts.handlers",
        "root": "cfg://parts.root",
    }
    with mplog.LogServer(config=config):
        logging.info("here")
    assert lines(tmp_path / "app.log") == ["root here"]
    assert os.listdir(tmp_path) == ["app.log"]


def test_what_the_script_itself_defines_may_be_named(start_method: str, tmp_path: Path) -> None:
    """Formatters, filters and handlers of the program's own script work by name, in the logging process and workers."""
    program = f"""
        import logging, multiprocessing, mplog

        class Shout(logging.Formatter):
            def format(self, record):
                return super().format(record).upper()

        class Only(logging.Filter):
            calls = 0
            def filter(self, record):
                Only.calls += 1
                return "no" not in record.getMessage()

        class Own(logging.FileHandler):
            pass

        def make(name):
            return Own(name)

        def work(n):
            logging.getLogger("app").warning("no")
            logging.getLogger("app").warning("yes %d", n)
            assert Only.calls == 2

        CONFIG = {{
            "version": 1,
            "formatters": {{"shout": {{"class": "__main__.Shout", "format": "%(message)s"}}}},
            "filters": {{"only": {{"()": "__main__.Only"}}}},
            "handlers": {{
                "own": {{"class": "__main__.Own", "filename": "own.log", "formatter": "shout"}},
                "made": {{"()": "ext://__main__.make", "name": "made.log"}},
            }},
            "loggers": {{"app": {{"filters": ["only"]}}}},
            "root": {{"handlers": ["own", "made"]}},
        }}

        if __name__ == "__main__":
            with mplog.LogServer(config=CONFIG) as server:
                context = multiprocessing.get_context({start_method!r})
                with context.Pool(1, initializer=server.initializer) as pool:
                    pool.map(work, [1])
    """
    done = run_script(tmp_path, program)
    assert (done.returncode, done.stderr) == (0, "")
    assert (lines(tmp_path / "own.log"), lines(tmp_path / "made.log")) == (["YES 1"], ["yes 1"])


def test_attached_program_has_levels_and_filters(tmp_path: Path) -> None:
    """A program that attaches itself logs under the configuration, too, with filters that the other script defines."""
    child = """
        import logging, mplog
        for _ in range(2):
            mplog.attach()
            logging.getLogger("app").info("noise")
            logging.getLogger("app").info("here")
        logging.getLogger("app").debug("below")
        assert logging.getLogger().handlers == []
        assert len(logging.getLogger("app").filters) == 1
    """
    program = """
        import logging, subprocess, sys, mplog

        def no_noise(record):
            return "noise" not in record.getMessage()

        CONFIG = {
            "version": 1,
            "handlers": {"file": {"class": "logging.FileHandler", "filename": "app.log"}},
            "loggers": {"app": {"handlers": ["file"], "level": "INFO", "filters": [no_noise], "propagate": False}},
        }

        if __name__ == "__main__":
            with mplog.LogServer(config=CONFIG):
                subprocess.run([sys.executable, "child.py"], check=True)
    """
    write_script(tmp_path, child, "child.py")
    done = run_script(tmp_path, program)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(tmp_path / "app.log") == ["here", "here"]


def log_isolated(initializer: Any) -> None:
    """Runs in a worker."""
    initializer()
    logging.getLogger("isolated").warning("once")
    logging.getLogger("isolated.child").warning("once more")


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_isolated_logger_of_the_program_is_written_by_spawned_workers(
    start_method: str, stdlib_context: Any, log: Path
) -> None:
    """Without a configuration, what goes to handlers that only the program has is in the server's log, once."""
    isolated = logging.getLogger("isolated")
    isolated.propagate = False
    isolated.addHandler(logging.StreamHandler())
    with mplog.LogServer(log, level="INFO", format="%(name)s | %(message)s") as server:
        process = stdlib_context.Process(target=log_isolated, args=(server.initializer,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    assert lines(log) == ["isolated | once", "isolated.child | once more"]


def test_file_modes_are_the_stdlibs(tmp_path: Path) -> None:
    """A new file has the permissions that open() gives it, and a link to a file is followed."""
    (tmp_path / "link.log").symlink_to(tmp_path / "real.log")
    umask = os.umask(0o027)
    try:
        with mplog.LogServer(config=file_config(tmp_path / "link.log")):
            logging.info("here")
    finally:
        os.umask(umask)
    assert (tmp_path / "real.log").stat().st_mode & 0o777 == 0o640
    assert lines(tmp_path / "real.log") == ["root here"]


def test_file_is_locked(tmp_path: Path) -> None:
    """The files of a configuration belong to one logging process, as those of a FileSink."""
    with mplog.LogServer(tmp_path / "app.log"), pytest.raises(mplog.LogFileLockedError):
        mplog.LogServer(config=file_config(tmp_path / "app.log")).start()


def test_device_is_written_as_by_the_stdlib(tmp_path: Path) -> None:
    """A file handler may write to a device, as programs in containers do."""
    program = """
        import logging, mplog
        CONFIG = {"version": 1, "handlers": {"out": {"class": "logging.FileHandler", "filename": "/dev/stdout"}},
                  "root": {"handlers": ["out"]}}
        with mplog.LogServer(config=CONFIG):
            logging.warning("here")
    """
    done = run_script(tmp_path, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


def test_trouble_is_said_on_stderr_where_the_root_logger_has_no_handler(tmp_path: Path) -> None:
    """A broken handler of a named logger is reported, although the line about it has nowhere to go in the log."""
    program = """
        import logging, mplog
        CONFIG = {"version": 1, "handlers": {"full": {"class": "logging.FileHandler", "filename": "/dev/full"}},
                  "loggers": {"app": {"handlers": ["full"]}}}
        with mplog.LogServer(config=CONFIG):
            logging.getLogger("app").warning("here")
    """
    done = run_script(tmp_path, program)
    assert done.returncode == 0
    assert "mplog: 1 record could not be written by <FileHandler /dev/full" in done.stderr


# --- mistakes ---

SELF: Config = {"version": 1, "handlers": {}}
SELF["handlers"]["again"] = SELF


def handlers(**entries: Any) -> Config:
    """Return a change of the handlers, beside which ``file`` is there as before."""
    return {"handlers": {"file": {"class": "logging.FileHandler", "filename": "app.log"}, **entries}}


FILE = "logging.FileHandler"
ROTATING = "logging.handlers.RotatingFileHandler"
TIMED = "logging.handlers.TimedRotatingFileHandler"
MEMORY = "logging.handlers.MemoryHandler"

MISTAKES: dict[str, tuple[Config, str]] = {
    "no version": ({"version": None}, "version: it is None. The version of the schema is the number 1"),
    "version": ({"version": 2}, "version: it is 2"),
    "incremental": ({"incremental": True}, "incremental: .*LogServer.set_level"),
    "top key": ({"handler": {}}, "handler: this key is unknown. Did you mean 'handlers'"),
    "section": ({"handlers": ["file"]}, r"handlers: it is \['file'\], a list. It must be a dictionary"),
    "disable": ({"disable_existing_loggers": "no"}, "disable_existing_loggers: it is 'no', a str"),
    "no handlers": ({"root": {}, "loggers": {"a": {}}}, "root.handlers: no logger has a handler"),
    "entry": (handlers(x=None), "handlers.x: it is None"),
    "no class": (handlers(x={"level": "INFO"}), "handlers.x: it names no class. Add class"),
    "class": (handlers(x={"class": "logging.FileHandlr"}), "handlers.x.class: 'logging.FileHandlr' cannot be imported"),
    "module": (handlers(x={"class": "no.such.Thing"}), "handlers.x.class: .*No module named 'no'"),
    "no handler": (
        handlers(x={"class": "logging.Formatter"}),
        "handlers.x.class: .* is not a logging.Handler. Name a handler's class, or a sink's",
    ),
    "not callable": (handlers(x={"()": "logging.INFO"}), r"handlers.x.\(\): 20 cannot be called"),
    "level": (handlers(x={"class": FILE, "filename": "a", "level": "LOUD"}), "handlers.x.level: 'LOUD' is not a level"),
    "bool level": (handlers(x={"class": FILE, "filename": "a", "level": True}), "handlers.x.level: True is not"),
    "formatter": (
        handlers(x={"class": FILE, "filename": "a", "formatter": "shrt"}),
        "handlers.x.formatter: 'shrt' is not defined in formatters. Did you mean 'short'",
    ),
    "filters": (handlers(x={"class": FILE, "filename": "a", "filters": "f"}), "handlers.x.filters: it is 'f', a str"),
    "filter": (
        handlers(x={"class": FILE, "filename": "a", "filters": ["f"]}),
        "handlers.x.filters: 'f' is not defined in filters. Define it in filters.",
    ),
    "argument": (
        handlers(x={"class": FILE, "filname": "a"}),
        "handlers.x.filname: this key is unknown. logging.FileHandler does not take it. Did you mean 'filename'",
    ),
    "missing": (handlers(x={"class": FILE}), "handlers.x.filename: it is missing, and logging.FileHandler needs it"),
    "filename": (handlers(x={"class": FILE, "filename": 7}), "handlers.x.filename: it is 7, an int. It must be a path"),
    "mode": (
        handlers(x={"class": FILE, "filename": "a", "mode": "rb"}),
        "handlers.x.mode: it is 'rb', a str. It is 'a'",
    ),
    "encoding": (handlers(x={"class": FILE, "filename": "a", "encoding": "utf9"}), "handlers.x.encoding: it is 'utf9'"),
    "errors": (handlers(x={"class": FILE, "filename": "a", "errors": "loud"}), "handlers.x.errors: it is 'loud'"),
    "size": (
        handlers(x={"class": ROTATING, "filename": "a", "maxBytes": "10 MB"}),
        "handlers.x.maxBytes: it is '10 MB', a str. It is a number: 10 MB are 10_000_000",
    ),
    "count": (
        handlers(x={"class": TIMED, "filename": "a", "backupCount": 1.5}),
        "handlers.x.backupCount: it is 1.5, a float. It is a whole number of files",
    ),
    "stream": (
        handlers(x={"class": "logging.StreamHandler", "stream": "sys.stdout"}),
        "handlers.x.stream: it is 'sys.stdout', a str. To name an object, write 'ext://sys.stdout'",
    ),
    "when": (
        handlers(x={"class": TIMED, "filename": "a", "when": "noon"}),
        "handlers.x.when: ValueError: .*NOON. It is one of S, M, H, D, midnight, and W0 to W6",
    ),
    "when type": (
        handlers(x={"class": TIMED, "filename": "a", "when": 1}),
        "handlers.x.when: it is 1, an int. It is one",
    ),
    "interval": (
        handlers(x={"class": TIMED, "filename": "a", "interval": 0}),
        "handlers.x.interval: it is 0, an int. It is a number above 0",
    ),
    "time": (
        handlers(x={"class": TIMED, "filename": "a", "atTime": "04:30"}),
        "handlers.x.atTime: it is '04:30', a str",
    ),
    "rotating directory": (
        handlers(x={"class": ROTATING, "filename": "missing/a.log", "maxBytes": 9}),
        "handlers.x.filename: .*its directory .*missing does not exist. Create it first",
    ),
    "attribute": (
        handlers(x={"class": FILE, "filename": "a", ".": {None: 1}}),
        r"handlers.x..: it is {None: 1}, a dict",
    ),
    "attributes of a formatter": (
        {"formatters": {"short": {"()": "logging.Formatter", ".": ["converter"]}}},
        r"formatters.short..: it is \['converter'\], a list. It must be a dictionary of attributes",
    ),
    "no target": (
        handlers(x={"class": MEMORY, "capacity": 1, "target": None}),
        "handlers.x.target: it is None, a NoneType. It must be the name of a handler",
    ),
    "nul": (handlers(x={"class": FILE, "filename": "a\0"}), r"handlers.x.filename: it is 'a\\x00', a str. No path has"),
    "long name": (handlers(x={"class": FILE, "filename": "a" * 300}), "handlers.x.filename: .* its name has 300 bytes"),
    "mode type": (handlers(x={"class": FILE, "filename": "a", "mode": {}}), "handlers.x.mode: it is {}, a"),
    "endless count": (
        handlers(x={"class": TIMED, "filename": "a", "backupCount": float("inf")}),
        "handlers.x.backupCount: it is inf, a float. It is a whole number of files",
    ),
    "no interval": (
        handlers(x={"class": TIMED, "filename": "a", "interval": None}),
        "handlers.x.interval: it is None, a NoneType. It is a number above 0",
    ),
    "encoding with a nul": (
        handlers(x={"class": FILE, "filename": "a", "encoding": "utf-8\0"}),
        "handlers.x.encoding: it is",
    ),
    "attributes": (handlers(x={"class": FILE, "filename": "a", ".": 1}), r"handlers.x..: it is 1"),
    "queue": (
        handlers(x={"class": "mplog.QueueHandler", "queue": 1}),
        "handlers.x.class: the server takes the place of a QueueHandler",
    ),
    "target": (
        handlers(x={"class": MEMORY, "capacity": 1, "target": "y"}),
        "handlers.x.target: 'y' is not defined in handlers",
    ),
    "circle of targets": (
        handlers(x={"class": MEMORY, "capacity": 1, "target": "y"}, y={"class": MEMORY, "capacity": 1, "target": "x"}),
        "handlers.y.target: it leads back to itself: x -> y -> x",
    ),
    "directory": (
        handlers(x={"class": FILE, "filename": "missing/a.log"}),
        "handlers.x.filename: .*its directory .*missing does not exist. Create it first",
    ),
    "is a directory": (
        handlers(x={"class": FILE, "filename": "."}),
        "handlers.x.filename: .* Is a directory. Name a file in it",
    ),
    "reference": (
        handlers(x={"class": FILE, "filename": "cfg://paths.log"}),
        "handlers.x.filename: 'cfg://paths.log' leads nowhere: KeyError: 'paths'",
    ),
    "external": (
        handlers(x={"class": "logging.StreamHandler", "stream": "ext://sys.stdoubt"}),
        "handlers.x.stream: 'ext://sys.stdoubt' leads nowhere",
    ),
    "circle": (
        {"a": {"b": "cfg://a.c", "c": "cfg://a.b"}},
        "a.b: 'cfg://a.c' leads back to itself. Break the circle of references",
    ),
    "circle of entries": (
        {"handlers": {"a": {"class": "cfg://handlers.a"}}},
        "handlers.a.class.*: 'cfg://handlers.a' leads back to itself",
    ),
    "reference to no entry": (handlers(x="cfg://y", y={}), "handlers.x: 'cfg://y' leads nowhere: KeyError: 'y'"),
    "itself": (SELF, "handlers.again.handlers: it contains itself"),
    "format": ({"formatters": {"short": {"format": "no field"}}}, "formatters.short.format: 'no field': ValueError"),
    "format type": ({"formatters": {"short": {"format": 1}}}, "formatters.short.format: it is 1, an int"),
    "style": ({"formatters": {"short": {"style": "#"}}}, "formatters.short.style: it is '#'. It is one of %, { and"),
    "formatter class": (
        {"formatters": {"short": {"class": "configurations.Mask"}}},
        r"formatters.short.class: configurations.Mask cannot be made from .* Name it as '\(\)'",
    ),
    "formatter key": ({"formatters": {"short": {"fmt": "x"}}}, "formatters.short.fmt: this key is unknown"),
    "defaults": ({"formatters": {"short": {"defaults": 1}}}, "formatters.short.defaults: it is 1"),
    "filter key": ({"filters": {"f": {"word": "x"}}}, r"filters.f.word: this key is unknown. .* name that as '\(\)'"),
    "filter argument": (
        {"filters": {"f": {"()": "configurations.Mask", "wrd": "x"}}},
        "filters.f.wrd: this key is unk",
    ),
    "logger key": ({"loggers": {"a": {"levl": "INFO"}}}, "loggers.a.levl: this key is unknown. Did you mean 'level'"),
    "logger level": ({"loggers": {"a": {"level": "INF"}}}, "loggers.a.level: 'INF' is not a level"),
    "as in dictConfig": (
        {"root": {"level": "info"}},
        "root.level: 'info' is not a level. It is a number or one of .*INFO",
    ),
    "logger handlers": ({"loggers": {"a": {"handlers": "file"}}}, "loggers.a.handlers: it is 'file', a str"),
    "logger handler": (
        {"root": {"handlers": ["fil"]}},
        "root.handlers: 'fil' is not defined in handlers. Did you mean 'file'",
    ),
    "propagate": ({"loggers": {"a": {"propagate": "no"}}}, "loggers.a.propagate: it is 'no', a str"),
    "unpicklable": (
        handlers(x={"class": "logging.StreamHandler", "stream": threading.Lock()}),
        "handlers.x.stream: <unlocked _thread.lock .* cannot be sent to the logging process.*ext://module.name",
    ),
    "logger filter that stays": (
        {"loggers": {"a": {"filters": [threading.Lock().acquire]}}},
        "loggers.a.filters: .* cannot be sent to the workers",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named_by_its_place(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong configuration raises, with the place and the remedy, before any process is started or file made."""
    monkeypatch.chdir(tmp_path)
    changes, message = MISTAKES[mistake]

    def fail(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("mplog.server.started.Control", fail)
    with pytest.raises(mplog.ConfigurationError, match=message) as caught:
        mplog.LogServer(config={**file_config(Path("app.log")), **changes}).start()
    assert str(caught.value).startswith(caught.value.place)
    assert isinstance(caught.value, ValueError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "version: 1", "neither a .toml nor a .json"),
        ("a.toml", "version = ", r"a\.toml is not valid TOML: "),
        ("a.json", "{'version': 1}", r"a\.json is not valid JSON: .*line 1"),
        ("a.json", "[1]", "It must hold a table"),
        ("a.json", "\udcff", "is not valid JSON"),
        ("missing.json", None, r"missing\.json cannot be read: No such file"),
    ],
)
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    """A file that is missing, of another kind or malformed raises, with its path."""
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(mplog.ConfigurationError, match=message):
        mplog.LogServer(config=tmp_path / name)


@pytest.mark.parametrize("beside", [{"level": "INFO"}, {"format": "%(message)s"}])
def test_config_takes_the_place_of_level_and_format(beside: Config) -> None:
    """config and what it replaces cannot be given together."""
    with pytest.raises(TypeError, match=f"{next(iter(beside))} cannot be given beside it"):
        mplog.LogServer(config=file_config(Path("app.log")), **beside)
    with pytest.raises(TypeError, match="sinks cannot be given beside it"):
        mplog.LogServer("app.log", config=file_config(Path("app.log")))
    with pytest.raises(TypeError, match="config is a dictionary"):
        mplog.LogServer(config=42)  # type: ignore[arg-type]


def broken_handler() -> logging.Handler:
    """A factory that fails."""
    raise ConnectionError("nobody answers")


def test_handler_that_fails_in_the_logging_process_is_named(tmp_path: Path) -> None:
    """What only the logging process can find is raised by start(), with its place, and everything is as before."""
    before = logging.getLogger().handlers[:]
    config = file_config(tmp_path / "app.log")
    config["handlers"]["net"] = {"()": broken_handler}
    with pytest.raises(mplog.ConfigurationError, match=r"handlers\.net: ConnectionError: nobody answers") as caught:
        mplog.LogServer(config=config).start()
    assert caught.value.place == "handlers.net"
    assert logging.getLogger().handlers == before
    mplog.LogServer(tmp_path / "app.log").start().stop()  # the file is free


def test_missing_permission_is_named(tmp_path: Path) -> None:
    """A file that may not be written is found before any process is started."""
    (tmp_path / "closed").mkdir(mode=0o500)
    program = """
        import mplog
        CONFIG = {"version": 1, "handlers": {"file": {"class": "logging.FileHandler", "filename": "closed/app.log"}},
                  "root": {"handlers": ["file"]}}
        try:
            mplog.LogServer(config=CONFIG).start()
        except mplog.ConfigurationError as error:
            print(error)
    """
    done = run_script(tmp_path, program, preexec_fn=drop_privileges)
    assert done.stdout.startswith("handlers.file.filename: ")
    assert "may not be written. Correct its permissions, or the path." in done.stdout
