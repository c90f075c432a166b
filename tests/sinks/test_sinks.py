"""Sinks: files, the console, any handler (fault 27 as far as files go)."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import pty
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import drop_privileges, elapsed, environment, lines, run_script, write_script

import mplog
from mplog.handlers.text import TextHandler

pytestmark = pytest.mark.processes


def serve(*sinks: Any, messages: tuple[Any, ...] = ("x",), **options: Any) -> mplog.Stats:
    """Log the messages through a server of these sinks."""
    options = {"level": "DEBUG", "format": "%(message)s", **options}
    server = mplog.LogServer(*sinks, **options).start()
    try:
        for message in messages:
            logging.getLogger("a.b").info(message)
    finally:
        stats = server.stop()
    return stats


# --- files ---


def test_file_is_appended_to(log: Path) -> None:
    """What is in the file stays, and what is logged comes after it."""
    log.write_text("before\n")
    serve(log)
    assert lines(log) == ["before", "x"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o600, 0o600), (0o666, 0o666)])
def test_file_has_the_mode_asked_for(log: Path, umask: int, mode: int | None, expected: int) -> None:
    """A new file has mode 0640, or the one given, whatever the umask is."""
    before = os.umask(umask)
    try:
        serve(mplog.FileSink(log) if mode is None else mplog.FileSink(log, mode=mode))
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.stat().st_mode) == expected


def test_file_that_exists_keeps_its_mode(log: Path) -> None:
    """An administrator's choice of mode is respected."""
    log.touch()
    log.chmod(0o604)
    serve(log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o604


def test_symbolic_link_is_refused_unless_asked_for(tmp_path: Path, log: Path) -> None:
    """A planted link is not followed, its target unchanged; with follow_symlinks=True it is."""
    target = tmp_path / "target"
    for before in (None, "precious\n"):
        if before is not None:
            target.write_text(before)
        log.unlink(missing_ok=True)
        log.symlink_to(target)
        with pytest.raises(mplog.SinkError, match=r"symbolic link.*follow_symlinks=True"):
            serve(log)
        assert (target.read_text() if target.exists() else None) == before
    serve(mplog.FileSink(log, follow_symlinks=True))
    assert lines(target) == ["precious", "x"]
    target.unlink()
    serve(mplog.FileSink(log, follow_symlinks=True))
    assert (lines(target), log.is_symlink()) == (["x"], True)
    assert sorted(os.listdir(tmp_path)) == ["app.log", "target"]


def make_socket(path: Path) -> None:
    """Make a socket, by a name short enough for one."""
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


@pytest.mark.parametrize("reader", [False, True], ids=["", "with a reader"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, make_socket, os.mkdir, None], ids=["FIFO", "socket", "directory", "device"]
)
def test_what_is_no_file_is_refused_at_once(log: Path, make: Callable[[Path], None] | None, reader: bool) -> None:
    """A FIFO, a socket, a directory or a device in place of the file is refused promptly, and stays as it is."""
    path = log if make else Path("/dev/null")
    if make:
        make(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if reader and make is os.mkfifo else -1
    before, started = path.stat(), time.monotonic()
    with pytest.raises(mplog.SinkError, match=r"not a regular file|Is a directory"):
        serve(path)
    assert elapsed(started) < 10
    after = path.stat()
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)
    if reading >= 0:
        os.close(reading)
    assert not os.path.exists(path.parent / f".{path.name}.lock")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("os.mkdir('logs', 0o555)", "PermissionError"),
        ("os.mkdir('logs'); open('logs/app.log', 'w').close(); os.chmod('logs/app.log', 0o444)", "PermissionError"),
        ("os.mkdir('logs'); open('logs/app.log', 'w').close(); os.chmod('logs', 0o555)", "written"),
        ("os.mkdir('logs', 0)", "PermissionError"),
    ],
)
def test_permissions(tmp_path: Path, prepare: str, message: str) -> None:
    """Without permission start() raises; a file that may be written in a directory that may not is enough."""
    result = run_script(
        tmp_path,
        f"""
        import logging, os
        import mplog
        {prepare}
        try:
            with mplog.LogServer("logs/app.log", level="INFO", format="%(message)s"):
                logging.info("written")
            print(open("logs/app.log").read())
        except mplog.SinkError as error:
            print(error)
        """,
        preexec_fn=drop_privileges,
    )
    assert message in result.stdout, result
    assert result.stderr == ""


@pytest.mark.parametrize("kind", [mplog.FileSink, mplog.RawSink, mplog.RoutedFileSink])
def test_bad_path_is_found_before_any_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[mplog.FileSink]
) -> None:
    """A missing directory, or one in place of the file, is named, with what to do."""
    monkeypatch.setattr("mplog.server.started.Control", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(mplog.SinkError, match=r"its directory .*missing does not exist\. Create it first"):
        mplog.LogServer(kind(tmp_path / "missing" / "{name}.log")).start()
    (tmp_path / "{name}.log").mkdir()
    if kind is not mplog.RoutedFileSink:
        with pytest.raises(mplog.SinkError, match=r"Is a directory\. Name a file in it"):
            mplog.LogServer(kind(tmp_path / "{name}.log")).start()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "grün 漢 \\udcff\n".encode()),
        ("latin-1", "grün \\u6f22 \\udcff\n".encode("latin-1")),
        ("ascii", b"gr\\xfcn \\u6f22 \\udcff\n"),
        ("utf-16-le", "grün 漢 \\udcff\n".encode("utf-16-le")),
    ],
)
def test_file_has_its_encoding(log: Path, encoding: str, expected: bytes) -> None:
    """A file has the encoding asked for; what that cannot express is written as an escape."""
    serve(mplog.FileSink(log, encoding=encoding), messages=("grün 漢 \udcff",))
    assert log.read_bytes() == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_byte_order_mark_stands_at_the_beginning_alone(log: Path, tmp_path: Path, encoding: str) -> None:
    """A byte order mark is written into an empty file, and nowhere else, as by a FileHandler of the stdlib."""
    expected = tmp_path / "expected.log"
    for _ in range(2):
        with mplog.LogServer(mplog.FileSink(log, encoding=encoding), level="INFO", format="%(message)s") as server:
            for number in range(3):
                logging.info("%d", number)
                server.flush()
        handler = logging.FileHandler(expected, encoding=encoding)
        for number in range(3):
            handler.emit(logging.makeLogRecord({"msg": str(number)}))
        handler.close()
    assert log.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    "name", ["with space", "ümläut 漢", "new\nline", "%s {} %", "-", ".hidden", "a" * 200, "\udcff"]
)
def test_odd_characters_in_the_path(tmp_path: Path, name: str) -> None:
    """Any name that the file system takes works."""
    serve(tmp_path / name)
    assert lines(tmp_path / name) == ["x"]
    assert os.listdir(tmp_path) == [name]


def test_one_file_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file by two names in one server would have each record twice, and is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(".")
    for other in ("app.log", "./app.log", "link/app.log", mplog.FileSink(tmp_path / "app.log", level="ERROR")):
        with pytest.raises(ValueError, match="given twice"):
            mplog.LogServer("app.log", other)


# --- any handler ---


class _Stuck(TextHandler):
    """Cannot write the first time, during which another thread logs."""

    keeps_trying = True

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []
        self.is_full = True

    def write(self, texts: list[str]) -> None:
        """Fail, or keep them."""
        if self.is_full:
            self.is_full = False
            thread = threading.Thread(target=self.handle, args=(logging.makeLogRecord({"msg": "meanwhile"}),))
            thread.start()
            thread.join(30)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.all += texts


def test_what_a_thread_logs_while_a_disk_is_full_is_kept() -> None:
    """It comes after what waits already."""
    handler = _Stuck()
    handler.handle(logging.makeLogRecord({"msg": "before"}))
    handler.flush()
    assert handler.stuck_by is not None
    handler.flush()
    assert handler.all == ["before\n", "meanwhile\n"]
    assert handler.stuck_by is None


class Shouting(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler of this module."""

    def __init__(self) -> None:
        super().__init__(open("class.log", "w"))  # noqa: SIM115

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).upper()


def make_function_handler() -> logging.Handler:
    """Runs in the logging process."""
    return logging.FileHandler("function.log")


def test_handlers_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lambdas, functions and classes make handlers; the stdlib's work unchanged, with their own formatter if any."""
    monkeypatch.chdir(tmp_path)

    def with_formatter() -> logging.Handler:
        handler = logging.handlers.TimedRotatingFileHandler("timed.log")
        handler.setFormatter(logging.Formatter("own %(message)s"))
        return handler

    serve(
        mplog.HandlerSink(lambda: logging.handlers.RotatingFileHandler("rotated.log", maxBytes=30, backupCount=9)),
        mplog.HandlerSink(lambda: logging.handlers.WatchedFileHandler("watched.log")),
        mplog.HandlerSink(with_formatter),
        mplog.HandlerSink(make_function_handler, format="function %(message)s"),
        mplog.HandlerSink(Shouting),
        mplog.HandlerSink(lambda: logging.handlers.MemoryHandler(1000, target=logging.FileHandler("memory.log"))),
        messages=tuple(f"number {number}" for number in range(10)),
    )
    expected = [f"number {number}" for number in range(10)]
    rotated = [f"rotated.log.{number}" for number in range(9, 0, -1)] + ["rotated.log"]
    assert [line for name in rotated if os.path.exists(name) for line in lines(name)] == expected
    assert lines("watched.log") == lines("memory.log") == expected
    assert lines("timed.log") == [f"own {line}" for line in expected]
    assert lines("function.log") == [f"function {line}" for line in expected]
    assert lines("class.log") == [line.upper() for line in expected]


def test_what_a_script_defines_travels(tmp_path: Path) -> None:
    """Handlers, formatters and filters defined in a script work, though the script is never imported."""
    result = run_script(
        tmp_path,
        """
        import logging
        import mplog

        print("the script runs")

        class Handler(logging.FileHandler):
            def emit(self, record):
                record.msg = f"<{record.msg}>"
                super().emit(record)

        class Formatter(logging.Formatter):
            def format(self, record):
                return "formatted " + super().format(record)

        class Filter:
            def filter(self, record):
                return record.msg != "hidden"

        def make():
            return Handler("app.log")

        if __name__ == "__main__":
            sink = mplog.HandlerSink(make, format=Formatter("%(message)s"), filters=[Filter(), lambda r: r.msg != "no"])
            with mplog.LogServer(sink, level="INFO"):
                for text in ("seen", "hidden", "no"):
                    logging.info(text)
        """,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "the script runs\n")
    assert lines(tmp_path / "app.log") == ["formatted <seen>"]


# --- levels, filters, formats ---


def test_levels_and_filters_of_sinks(tmp_path: Path) -> None:
    """Each sink writes what its own level and filters let through."""
    sinks = [
        mplog.FileSink(tmp_path / "errors", level="ERROR"),
        mplog.FileSink(tmp_path / "name", filters=[logging.Filter("a")]),
        mplog.FileSink(tmp_path / "function", filters=[lambda record: record.levelno < logging.ERROR]),
        mplog.FileSink(tmp_path / "all"),
    ]
    with mplog.LogServer(*sinks, level="DEBUG", format="%(message)s"):
        logging.getLogger("a.b").debug("debug in a.b")
        logging.getLogger("b").error("error in b")
    assert lines(tmp_path / "errors") == lines(tmp_path / "all")[1:] == ["error in b"]
    assert lines(tmp_path / "name") == lines(tmp_path / "function") == ["debug in a.b"]


@pytest.mark.parametrize(
    "format",
    [
        "%(levelname)s %(message)s",
        logging.Formatter("%(levelname)s %(message)s"),
        logging.Formatter("{levelname} {message}", style="{"),
        logging.Formatter("$levelname ${message}", style="$"),
    ],
    ids=["text", "%", "{", "$"],
)
def test_format_of_every_style(tmp_path: Path, format: Any) -> None:
    """A format is a %-style text or a Formatter of any style, for all sinks or for one."""
    serve(tmp_path / "all", mplog.FileSink(tmp_path / "one", format="one %(message)s"), format=format)
    assert lines(tmp_path / "all") == ["INFO x"]
    assert lines(tmp_path / "one") == ["one x"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mplog.FileSink(42), "42|int"),  # type: ignore[arg-type]
        (lambda: mplog.FileSink("x", encoding="klingon"), "klingon"),
        (lambda: mplog.FileSink("x", mode=640), "mode=640 is not a file mode.*mode=0o640"),
        (lambda: mplog.FileSink("x", mode="rw"), "mode='rw' is not a file mode.*or '640'"),
        (lambda: mplog.FileSink("x", level="LOUD"), "LOUD"),
        (lambda: mplog.FileSink("x", format="nothing"), "nothing"),
        (lambda: mplog.FileSink("x", format="{message}"), "{message}"),
        (lambda: mplog.FileSink("x", format=42), "42"),
        (lambda: mplog.FileSink("x", filters=["name"]), "'name'"),
        (lambda: mplog.FileSink("x", filters=42), "42|int"),
        (lambda: mplog.FileSink("x", filters="name"), "filters is a list of filters, not 'name'"),
        (lambda: mplog.FileSink("x", escape="no"), "escape is True or False, not 'no'"),
        (lambda: mplog.FileSink("x", follow_symlinks="no"), "follow_symlinks is True"),  # type: ignore[arg-type]
        (lambda: mplog.FileSink("x", encoding=None), "encoding is the name"),  # type: ignore[arg-type]
        (lambda: mplog.FileSink("x", rotate=9, archive=5), "archive is the pattern.*not 5"),  # type: ignore[arg-type]
        (lambda: mplog.FileSink("x", rotate=9, compress=[]), "compress is 'gz' or"),  # type: ignore[arg-type]
        (lambda: mplog.FileSink("x\0"), "has a NUL"),
        (lambda: mplog.RoutedFileSink("{name}", max_open=True), "max_open is a number of files"),
        (lambda: mplog.ConsoleSink(color="no"), "color is True, False or None, not 'no'"),  # type: ignore[arg-type]
        (lambda: mplog.CallableSink(print, retry=5), "retry is a Retry, or a dictionary with first"),  # type: ignore[arg-type]
        (lambda: mplog.CallableSink(print, retry={"limits": 5}), "with first, longest, limit, at_end"),
        (lambda: mplog.CallableSink(print, batch=True), "batch is a whole number, not True"),
        (lambda: mplog.CallableSink(print, timeout=float("inf")), "longer than a thread can wait"),
        (lambda: mplog.CallableSink(print, timeout=float("nan")), "longer than a thread can wait"),
        (lambda: mplog.Retry(first=float("inf"), longest=float("inf")), "0 < first <= longest <= "),
        (lambda: mplog.Retry(limit="60"), "limit of a Retry is a number of seconds, not '60'"),  # type: ignore[arg-type]
        (lambda: mplog.Redactor(["password"]), "names of fields as separate arguments"),  # type: ignore[arg-type]
        (lambda: mplog.LogServer("x", fields=5), "fields is a dictionary"),  # type: ignore[arg-type]
        (lambda: mplog.FileSink("x", colour=True), "colour"),
        (lambda: mplog.ConsoleSink("stdlog"), "'stdlog'"),  # type: ignore[arg-type]
        (lambda: mplog.HandlerSink(logging.NullHandler()), "belongs to this process"),  # type: ignore[arg-type]
        (lambda: mplog.HandlerSink("handler"), "'handler'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_found_where_they_are_given(make: Callable[[], object], message: str) -> None:
    """A sink's wrong argument raises in its constructor, and the message names it."""
    with pytest.raises((TypeError, ValueError, LookupError), match=message):
        make()


def test_sink_of_ones_own(tmp_path: Path) -> None:
    """A Sink subclass needs make_handler() alone, and says so."""

    class OwnSink(mplog.Sink):
        def __init__(self, path: Path) -> None:
            super().__init__(level="INFO")
            self.path = path

        def make_handler(self) -> logging.Handler:
            return logging.FileHandler(self.path)

    serve(OwnSink(tmp_path / "own.log"))
    assert lines(tmp_path / "own.log") == ["x"]
    with pytest.raises(mplog.SinkError, match=r"Sink must override make_handler\(\)"):
        serve(mplog.Sink())


# --- the console ---

CONSOLE = """
import logging, sys
import mplog
with mplog.LogServer(mplog.ConsoleSink(*sys.argv[1:]), level="DEBUG", format="%(levelname)s %(message)s"):
    logging.debug("d")
    logging.info("gr\\u00fcn \\udcff")
    logging.warning("w")
    logging.error("e")
    logging.critical("c")
"""
PLAIN = "DEBUG d\nINFO grün \\udcff\nWARNING w\nERROR e\nCRITICAL c\n"
COLORED = (
    "\x1b[2mDEBUG d\x1b[0m\n\x1b[32mINFO grün \\udcff\x1b[0m\n\x1b[33mWARNING w\x1b[0m\n"
    "\x1b[31mERROR e\x1b[0m\n\x1b[1;31mCRITICAL c\x1b[0m\n"
)


@pytest.mark.parametrize(
    ("stream", "terminal", "changes", "colored"),
    [
        ("stderr", False, {}, False),
        ("stdout", False, {}, False),
        ("stdout", False, {"FORCE_COLOR": "1"}, True),
        ("stderr", False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("stderr", True, {}, True),
        ("stdout", True, {}, True),
        ("stdout", True, {"NO_COLOR": "1"}, False),
        ("stderr", True, {"NO_COLOR": ""}, True),
        ("stdout", True, {"TERM": "dumb"}, False),
        ("stderr", True, {"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_console(tmp_path: Path, stream: str, terminal: bool, changes: dict[str, str], colored: bool) -> None:
    """The console is coloured on a terminal and if FORCE_COLOR is set, but never if NO_COLOR is."""
    base: dict[str, str | None] = {"NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm", "PYTHONUTF8": "1"}
    env = environment(**{**base, **changes})
    if not terminal:
        result = run_script(tmp_path, CONSOLE, stream, env=env, encoding="utf-8")
        output, other = (result.stderr, result.stdout)[:: 1 if stream == "stderr" else -1]
    else:
        script = write_script(tmp_path, CONSOLE)
        ours, theirs = pty.openpty()
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
        done = subprocess.run(
            [sys.executable, "-B", script, stream], env=env, stdin=subprocess.DEVNULL, timeout=60, check=True, **streams
        )
        output = os.read(ours, 10_000).decode().replace("\r\n", "\n")
        other = (done.stdout or done.stderr or b"").decode()
        os.close(theirs)
        os.close(ours)
    assert (output, other) == (COLORED if colored else PLAIN, "")


STEERING = """
import logging, sys
import mplog
escape = {"True": True, "False": False, "": None}[sys.argv[1]]
sink = mplog.ConsoleSink("stdout", escape=escape, color=False, format="\\x1b[35m%(message)s\\x1b[0m")
with mplog.LogServer(sink, level="INFO"):
    logging.info("a\\x1b[2J\\rb\\tc\\nd \\\\ e")
"""


@pytest.mark.parametrize(
    ("terminal", "escape", "shown"),
    [
        (True, "", "a\\x1b[2J\\rb\tc\nd \\ e"),
        (True, "False", "a\x1b[2J\rb\tc\nd \\ e"),
        (True, "True", "a\\x1b[2J\\rb\\tc\\nd \\\\ e"),
        (False, "", "a\x1b[2J\rb\tc\nd \\ e"),
        (False, "True", "a\\x1b[2J\\rb\\tc\\nd \\\\ e"),
    ],
)
def test_console_does_not_steer_a_terminal(tmp_path: Path, terminal: bool, escape: str, shown: str) -> None:
    """Unless it is told not to, it escapes what a record would do to a terminal; the format has its colours."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    script = write_script(tmp_path, STEERING)
    command = [sys.executable, "-B", script, escape]
    subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, stdout=theirs, timeout=60, check=True)
    output = os.read(ours, 10_000).decode().replace("\r\n", "\n")
    os.close(theirs)
    os.close(ours)
    assert output == f"\x1b[35m{shown}\x1b[0m\n"


def test_broken_console_hurts_nobody(tmp_path: Path) -> None:
    """When nobody reads the console any more, as after `| head`, the other sinks have it all, and the program ends."""
    script = write_script(
        tmp_path,
        """
        import logging
        import mplog
        console = mplog.ConsoleSink("stdout")
        with mplog.LogServer(console, "app.log", level="INFO", format="%(message)s") as server:
            for number in range(1000):
                logging.info("%d", number)
        assert server.stats().failed, server.stats()
        """,
    )
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-B", script],
        cwd=tmp_path,
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        os.close(writer)
        stderr = program.communicate(timeout=60)[1]
    assert (program.returncode, stderr) == (0, "")
    written = lines(tmp_path / "app.log")
    assert [line for line in written if "mplog" not in line] == [str(number) for number in range(1000)]
    (said,) = {line.partition("could")[2] for line in written if "mplog" in line}
    assert "BrokenPipeError" in said and "<stdout>" in said
