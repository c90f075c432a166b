"""`LogServer.from_logging`: the handlers of a running program, moved into the logging process and back."""

from __future__ import annotations

import datetime
import io
import logging
import logging.config
import logging.handlers
import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configurations import Mask, OneLine, too_loud
from scripts import lines, run_script

import mplog
from mplog.config.adopt import describe_handlers
from mplog.worker.state import all_loggers

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def bare() -> None:
    """No logger has a handler; conftest.py puts back those that others have set up."""
    for logger in all_loggers().values():
        logger.handlers = []


def log_as_worker(initializer: Any) -> None:
    """Runs in a worker."""
    initializer()
    logging.getLogger("app").info("worker, secret %d", 1)
    logging.getLogger("app.db").debug("worker")
    logging.getLogger("other").info("below")


def run_worker(context: Any, server: mplog.LogServer) -> None:
    """Have a worker log."""
    process = context.Process(target=log_as_worker, args=(server.initializer,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_handlers_of_all_loggers_move_and_come_back(stdlib_context: Any, tmp_path: Path) -> None:
    """Program and workers write the program's own files, in its formats, and afterwards the program alone does so."""
    root, app, database = (logging.getLogger(name) for name in ("", "app", "app.db"))
    file = logging.FileHandler(tmp_path / "root.log", "w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(name)s %(message)s"))
    own = logging.FileHandler(tmp_path / "db.log", delay=True)
    own.setFormatter(OneLine("%(message)s", "> "))
    own.addFilter(Mask("work"))
    root.handlers = [file]
    app.setLevel("INFO")
    app.addFilter(Mask())
    database.handlers, database.propagate = [own, logging.NullHandler()], False
    database.setLevel("DEBUG")
    app.info("before")
    with mplog.LogServer.from_logging() as server:
        app.info("program")
        run_worker(stdlib_context, server)
        assert [len(logger.handlers) for logger in (root, app, database)] == [1, 0, 1]
    assert (root.handlers, database.handlers[0], len(app.filters)) == ([file], own, 1)
    app.info("after")
    database.debug("after")
    assert lines(tmp_path / "root.log") == ["app before", "app program", "app worker, *** 1", "app after"]
    assert lines(tmp_path / "db.log") == ["> ***er ()", "> after ()"]
    file.close()
    own.close()


@pytest.mark.parametrize("format", ['format="> %(message)s"', 'formatter=logging.Formatter("> %(message)s")'])
def test_basic_config_moves(start_method: str, format: str, tmp_path: Path) -> None:
    """A program with basicConfig() has its workers' records where its own go: on stderr, once."""
    if "formatter" in format and sys.version_info < (3, 15):
        pytest.skip("basicConfig() takes no formatter")
    program = f"""
        import logging, multiprocessing, mplog

        def work(n):
            logging.info("worker %d", n)

        if __name__ == "__main__":
            logging.basicConfig(level="INFO", {format})
            logging.info("before")
            with mplog.LogServer.from_logging() as server:
                logging.info("program")
                server.flush()
                with multiprocessing.get_context({start_method!r}).Pool(1, server.initializer) as pool:
                    pool.map(work, [1])
            logging.info("after")
    """
    done = run_script(tmp_path, program)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["> before", "> program", "> worker 1", "> after"]


def test_it_takes_the_options_of_a_server(tmp_path: Path) -> None:
    """What becomes of records while the queue is full, and which are written through, is said as to any server."""
    logging.getLogger().handlers = [logging.FileHandler(tmp_path / "app.log")]
    with mplog.LogServer.from_logging(overflow="fallback", sync_level="ERROR", buffer_size=2**22) as server:
        assert (server.queue.overflow.policy, server.queue.sync.level) == ("fallback", logging.ERROR)
        assert server.queue.overflow.emergency == str(tmp_path / ".app.log.emergency")
        logging.error("on disk")
        assert lines(tmp_path / "app.log") == ["on disk"]
    logging.getLogger().handlers[0].close()


def test_rotated_file_is_opened_again(tmp_path: Path) -> None:
    """A handler that comes back writes to the file of that name, not to the one that was rotated away meanwhile."""
    root = logging.getLogger()
    handler = logging.handlers.RotatingFileHandler(tmp_path / "app.log", maxBytes=30, backupCount=9)
    root.handlers = [handler]
    logging.warning("before")
    with mplog.LogServer.from_logging():
        for number in range(5):
            logging.warning("record number %d", number)
    logging.warning("after")
    handler.close()
    files = [tmp_path / "app.log", *(tmp_path / f"app.log.{number}" for number in range(1, 5))]
    assert [lines(path) for path in reversed(files)] == [
        ["before", "record number 0"],
        *([f"record number {number}"] for number in range(1, 4)),
        ["record number 4", "after"],
    ]


def test_timed_handler_that_comes_back_does_not_roll_over_again(tmp_path: Path) -> None:
    """What the logging process has rolled over is left as it is by the handler of the program afterwards."""
    log = tmp_path / "app.log"
    log.write_text("yesterday\n")
    yesterday = time.time() - 86_400
    os.utime(log, (yesterday, yesterday))
    handler = logging.handlers.TimedRotatingFileHandler(log, when="midnight", utc=True)
    logging.getLogger().handlers = [handler]
    with mplog.LogServer.from_logging():
        logging.warning("today")
    logging.warning("after")
    handler.close()
    suffix = time.strftime("%Y-%m-%d", time.gmtime(yesterday))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"app.log.{suffix}": "yesterday\n",
        "app.log": "today\nafter\n",
    }


#: What makes a handler, and attributes that the one that is made again must have, too.
HANDLERS: dict[str, tuple[Callable[[str], logging.Handler], list[str]]] = {
    "stderr": (lambda _: type(logging.lastResort)("ERROR"), ["stream"]),  # type: ignore[call-arg, return-value]
    "stdout": (lambda _: logging.StreamHandler(sys.stdout), ["stream"]),
    "file": (lambda path: logging.FileHandler(path, encoding="latin-1"), ["baseFilename", "encoding", "errors"]),
    "rotating": (
        lambda path: logging.handlers.RotatingFileHandler(path, maxBytes=9, backupCount=2, errors="replace"),
        ["baseFilename", "maxBytes", "backupCount", "errors"],
    ),
    "timed": (
        lambda path: logging.handlers.TimedRotatingFileHandler(
            path, when="W3", interval=1, backupCount=3, utc=True, atTime=datetime.time(3, 4)
        ),
        ["when", "interval", "dayOfWeek", "backupCount", "utc", "atTime", "suffix"],
    ),
    "hourly": (
        lambda path: logging.handlers.TimedRotatingFileHandler(path, when="h", interval=6),
        ["interval", "when"],
    ),
    "memory": (
        lambda path: logging.handlers.MemoryHandler(5, "ERROR", logging.FileHandler(path), flushOnClose=False),
        ["capacity", "flushOnClose"],
    ),
    "socket": (lambda _: logging.handlers.SocketHandler("localhost", 9), ["host", "port", "address"]),
    "datagram": (lambda _: logging.handlers.DatagramHandler("localhost", 9), ["host", "port", "closeOnError"]),
    "syslog": (
        lambda _: logging.handlers.SysLogHandler(("localhost", 9), "user", socket.SOCK_DGRAM),
        ["address", "facility", "socktype"],
    ),
    "syslog with a timeout": (
        lambda _: logging.handlers.SysLogHandler(("localhost", 9), timeout=3.0),
        ["timeout"],
    ),
    "http": (
        lambda _: logging.handlers.HTTPHandler("localhost:9", "/log", "POST", credentials=("a", "b")),
        ["host", "url", "method", "secure", "credentials"],
    ),
    "smtp": (
        lambda _: logging.handlers.SMTPHandler(("h", 25), "a", ["b"], "s", ("user", "word"), (), 3.0),
        ["mailhost", "mailport", "fromaddr", "toaddrs", "subject", "username", "password", "secure", "timeout"],
    ),
}


@pytest.mark.parametrize("kind", HANDLERS)
def test_stdlib_handler_is_described(kind: str, tmp_path: Path) -> None:
    """Every handler of the standard library is made again as it was, with what was set on it later."""
    make, attributes = HANDLERS[kind]
    if "timeout" in kind and sys.version_info < (3, 14):
        pytest.skip("SysLogHandler has no timeout")
    handler = make(str(tmp_path / "app.log"))
    handler.setLevel("WARNING")
    handler.addFilter(too_loud)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.terminator = "!\n"  # type: ignore[attr-defined]
    logging.getLogger().handlers = [handler]
    config = describe_handlers()
    (name,) = config["loggers"][""]["handlers"]
    logging.getLogger().handlers = []
    target = getattr(handler, "target", None)
    # By the stdlib's own dictConfig(), in the place of the logging process. It closes the one that is there.
    logging.config.dictConfig(config)
    (again,) = logging.getLogger().handlers
    assert isinstance(handler, type(again)) and again.name == name
    for attribute in ("level", "filters", "formatter", "terminator", *attributes):
        assert getattr(again, attribute) == getattr(handler, attribute), attribute
    if "timeout" in kind:
        assert again.socket.gettimeout() == 3.0  # type: ignore[attr-defined]
    for each in filter(None, (getattr(again, "target", None), target)):
        assert each.baseFilename == str(tmp_path / "app.log")
        each.close()
    again.close()
    handler.close()


def test_program_under_django_is_taken_over(tmp_path: Path) -> None:
    """All that Django sets up by default works in the logging process for a spawned worker, its mails, too."""
    (tmp_path / "web_settings.py").write_text(
        f"""SECRET_KEY, DEBUG = "x", False
ADMINS = [("a", "admin@example.com")]
EMAIL_BACKEND, EMAIL_FILE_PATH = "django.core.mail.backends.filebased.EmailBackend", {str(tmp_path / "mails")!r}
"""
    )
    program = """
        import logging, multiprocessing, os
        import django, mplog

        def serve(number):
            logging.getLogger("django.server").info("served %d", number)
            logging.getLogger("django.request").error("%d failed", number)

        if __name__ == "__main__":
            os.environ["DJANGO_SETTINGS_MODULE"] = "web_settings"
            django.setup()
            handlers = logging.getLogger("django").handlers[:]
            with mplog.LogServer.from_logging() as server:
                with multiprocessing.get_context("spawn").Pool(1, initializer=server.initializer) as pool:
                    pool.map(serve, [7])
            assert logging.getLogger("django").handlers == handlers
    """
    done = run_script(tmp_path, program)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[.*\] served 7\n", done.stderr)
    (mail,) = (tmp_path / "mails").iterdir()
    assert "Subject: [Django] ERROR: 7 failed\n" in mail.read_text()


class Own(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler of a program's own."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Own, r"app.handlers: <Own .* cannot be moved .*only handlers of the standard library.*removeHandler"),
        (lambda: logging.handlers.QueueHandler(multiprocessing.SimpleQueue()), "the server takes the place of"),
        (lambda: logging.StreamHandler(io.StringIO()), "exists in this process only"),
    ],
    ids=["class", "queue", "stream"],
)
def test_handler_that_cannot_move_is_named(make: Callable[[], logging.Handler], message: str) -> None:
    """What cannot be described raises, with its logger and what to do, and nothing changes."""
    handler = make()
    logging.getLogger("app").addHandler(handler)
    with pytest.raises(mplog.ConfigurationError, match=message) as caught:
        mplog.LogServer.from_logging()
    assert caught.value.place == "app.handlers"
    assert logging.getLogger("app").handlers == [handler]


REDIRECTED = """
    import contextlib, io, logging, os, sys
    import mplog

    class Wrapper:
        def __init__(self, stream):
            self.stream = stream
        def __getattr__(self, name):
            return getattr(self.stream, name)

    class Notebook(io.StringIO):
        __module__ = "ipykernel.iostream"

    def run(handler):
        root = logging.getLogger()
        root.handlers = [handler]
        root.setLevel("INFO")
        with mplog.LogServer.from_logging():
            logging.info("moved")

    if __name__ == "__main__":
        before = logging.StreamHandler(sys.stdout)
"""


@pytest.mark.parametrize(
    "moves",
    [
        "with contextlib.redirect_stdout(io.StringIO()): run(before)",
        "with contextlib.redirect_stdout(io.StringIO()): run(logging.StreamHandler(sys.__stdout__))",
        "with contextlib.redirect_stdout(open('other', 'w')): run(before)",
        "sys.stdout = Wrapper(sys.stdout); run(logging.StreamHandler(sys.stdout))",
        "sys.stdout = io.TextIOWrapper(sys.stdout.detach()); run(logging.StreamHandler(sys.stdout))",
        "sys.stdout = io.TextIOWrapper(sys.stdout.detach()); run(before)",
        "sys.stdout = None; run(before)",
        "sys.stdout = os.fdopen(os.dup(1), 'w'); run(logging.StreamHandler(sys.stdout))",
        "with contextlib.redirect_stderr(sys.stdout): run(logging.StreamHandler())",
        "os.dup2(os.open('out', os.O_WRONLY | os.O_CREAT), 1); run(before); print(open('out').read(), file=sys.stderr)",
        "sys.stdout = Notebook(); run(logging.StreamHandler(sys.stdout))",
    ],
)
def test_handler_of_the_true_stdout_moves_whatever_is_redirected(moves: str, tmp_path: Path) -> None:
    """A handler whose text comes to the program's stdout moves there, whatever sys.stdout is at the moment."""
    done = run_script(tmp_path, f"{REDIRECTED}        {moves}")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).split() == ["moved"]
    assert not (tmp_path / "other").exists() or not (tmp_path / "other").read_text()


@pytest.mark.parametrize("redirected", ["io.StringIO()", "open('other', 'w')", "type('Tee', (), {'write': print})()"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_handler_of_a_redirected_stream_is_refused(redirected: str, name: str, tmp_path: Path) -> None:
    """A handler whose text goes elsewhere in this process cannot move, and the message says why, and what to do."""
    program = f"""
        with contextlib.redirect_{name}({redirected}):
            try:
                run(logging.StreamHandler(sys.{name}))
            except mplog.ConfigurationError as error:
                told = str(error)
        assert f"since sys.{name} is redirected to it. Make the handler before" in told
        print("refused")
    """
    done = run_script(tmp_path, REDIRECTED + program)
    assert (done.stdout, done.stderr) == ("refused\n", "")


@pytest.mark.parametrize("handler", [{"class": "logging.StreamHandler"}, {"()": lambda stream: Own(stream)}])
def test_configuration_with_a_stream_in_memory_is_refused(handler: dict[str, Any]) -> None:
    """A text in memory would go into the logging process as a copy, which nobody ever reads."""
    config = {
        "version": 1,
        "handlers": {"h": {**handler, "stream": io.StringIO()}},
        "root": {"handlers": ["h"]},
    }
    with pytest.raises(mplog.ConfigurationError, match="in the memory of this process") as caught:
        mplog.LogServer(config=config)
    assert caught.value.place == "handlers.h.stream"


def test_handler_under_pytests_capture(capfd: pytest.CaptureFixture[str]) -> None:
    """With capfd, a handler on sys.stdout moves, and what it writes is captured."""
    root = logging.getLogger()
    root.handlers = [logging.StreamHandler(sys.stdout)]
    with mplog.LogServer.from_logging():
        logging.warning("captured")
    assert capfd.readouterr().out == "captured\n"


def test_handler_under_pytests_redirection(capsys: pytest.CaptureFixture[str]) -> None:
    """With capsys, it is refused: the logging process cannot write into the memory of this one."""
    logging.getLogger().handlers = [logging.StreamHandler(sys.stdout)]
    with pytest.raises(mplog.ConfigurationError, match="with capfd there is none"):
        mplog.LogServer.from_logging()
    assert capsys.readouterr().out == ""


def test_program_without_handlers_has_nothing_to_take_over() -> None:
    """Where nothing is set up, from_logging() says so; NullHandlers are nothing."""
    logging.getLogger().handlers = [logging.NullHandler()]
    with pytest.raises(mplog.ConfigurationError, match=r"no handler that could be taken over.*basicConfig"):
        mplog.LogServer.from_logging()


def test_second_server_cannot_take_over_the_first_ones_handler(log: Path) -> None:
    """Below a running server there are no handlers to take over, and the message says which one to stop."""
    with mplog.LogServer(log), pytest.raises(mplog.ConfigurationError, match="another LogServer is running"):
        mplog.LogServer.from_logging()
