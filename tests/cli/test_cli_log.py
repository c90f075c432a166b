"""``mplog log``: records from shell scripts, whatever is in them, whatever the server is like, and none lost unsaid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import mplog, shell
from oracle import wait_until
from scripts import environment, lines

import mplog as library
from mplog.cli.log import is_direct, read_state
from mplog.worker.state import Layout, LoggingState, all_loggers

pytestmark = pytest.mark.processes

FORMAT = "%(levelname)s %(levelno)d %(processName)s %(name)s | %(message)s"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> library.LogServer:
    """A server, not started, of a program like others: it has no logger of its own way, as dill brings one."""
    for logger in all_loggers().values():
        monkeypatch.setattr(logger, "propagate", True)
    return library.LogServer(tmp_path / "app.log", level="INFO", format=FORMAT)


def log(*arguments: object, directory: Path, **options: object) -> tuple[int, str, str]:
    """Run mplog log under the running server; return its exit status and what it said."""
    queue = options.pop("queue", None)
    done = mplog("log", *arguments, directory=directory, changes={"MPLOG_QUEUE": queue}, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("level", "expected"),
    [("info", "INFO 20"), ("INFO", "INFO 20"), ("Warn", "WARNING 30"), ("err", "ERROR 40"), ("25", "Level 25 25")],
)
def test_levels(tmp_path: Path, server: library.LogServer, level: str, expected: str) -> None:
    """Names in any case, the short ones that shells know, and numbers."""
    with server:
        assert log("--process", "p", level, "text", queue=server.queue.directory, directory=tmp_path) == (0, "", "")
    assert lines(tmp_path / "app.log") == [f"{expected} p shell | text"]


def test_levels_of_the_server(tmp_path: Path, server: library.LogServer) -> None:
    """What the levels of its loggers are above is not sent, also where they were changed while it runs."""
    with server:
        queue = server.queue.directory
        server.set_level("noisy", "ERROR")
        server.set_level("verbose", "DEBUG")
        for logger, level in (("other", "debug"), ("other", "info"), ("noisy.child", "info"), ("verbose", "debug")):
            assert log("--process", "p", "-l", logger, level, "x", queue=queue, directory=tmp_path) == (0, "", "")
    assert [line.split(" | ")[0] for line in lines(tmp_path / "app.log")] == ["INFO 20 p other", "DEBUG 10 p verbose"]


def test_fields(tmp_path: Path) -> None:
    """They follow the message, and are fields in JSON, of all types that JSON has."""
    fields = ["a=1", "b=two words", "c=", "n:=1", "f:=1.5", "t:=true", "l:=[1, 2]", "name=taken", 'q=a"b', "e=x=y"]
    with library.LogServer(tmp_path / "app.log", level="INFO", format=library.JSONFormatter()) as server:
        queue = server.queue.directory
        assert log("info", "text", *fields, queue=queue, directory=tmp_path) == (0, "", "")
        assert log("--fields-only", "info", "text", "n:=1", queue=queue, directory=tmp_path) == (0, "", "")
    first, second = map(json.loads, lines(tmp_path / "app.log"))
    expected = {"a": "1", "b": "two words", "c": "", "n": 1, "f": 1.5, "t": True, "l": [1, 2], "name_": "taken"}
    assert expected.items() <= first.items()
    assert first["message"] == ('text a=1 b="two words" c="" n=1 f=1.5 t=true l=[1, 2] name=taken q="a\\"b" e="x=y"')
    assert (second["message"], second["n"]) == ("text", 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["info", "x", "--queue", "q"], "put options before LEVEL"),
        (["loud", "x"], "'loud' is not a level"),
        (["info", "two", "words"], "'words' is not KEY=VALUE: quote a message of several words"),
        (["info", "x", "n:=one"], "for a text, use n="),
        (["info"], "MESSAGE"),
    ],
)
def test_misuse(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """The status is 2, and the message says what to write."""
    status, out, err = log(*arguments, directory=tmp_path)
    assert (status, out) == (2, "")
    assert reason in err


@pytest.mark.parametrize("message", ["-x", "--help", "-- two", "a=b", "%s %d"])
def test_message_that_looks_like_something_else(tmp_path: Path, server: library.LogServer, message: str) -> None:
    """After the level, nothing is an option, and nothing is formatted."""
    with server:
        arguments = ["--process", "p", "info", message]
        assert log(*arguments, queue=server.queue.directory, directory=tmp_path) == (0, "", "")
    assert lines(tmp_path / "app.log") == [f"INFO 20 p shell | {message}"]


def test_lines_of_standard_input(tmp_path: Path, server: library.LogServer) -> None:
    """A record for each, with the fields; one without an end, and bytes that are no text, among them."""
    with server:
        queue = server.queue.directory
        done = shell(
            r"printf 'one\ntwo\351\nthree' | mplog log --process p info - n:=1; mplog log info - < /dev/null",
            tmp_path,
            MPLOG_QUEUE=queue,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert lines(tmp_path / "app.log") == [
        "INFO 20 p shell | one n=1",
        "INFO 20 p shell | two\\xe9 n=1",
        "INFO 20 p shell | three n=1",
    ]


def test_bytes_that_are_no_text(tmp_path: Path, server: library.LogServer) -> None:
    """In a message or a field, they stand as escapes, as in lines of standard input."""
    with server:
        script = r"""mplog log --process p info "$(printf 'two\351')" "a=$(printf '\377')" """
        done = shell(script, tmp_path, MPLOG_QUEUE=server.queue.directory)
        assert (done.returncode, done.stderr) == (0, "")
    assert lines(tmp_path / "app.log") == ["INFO 20 p shell | two\\xe9 a=\\xff"]


def test_process_is_the_script(tmp_path: Path, server: library.LogServer) -> None:
    """By default, the log names the script that has called it, and its pid."""
    (tmp_path / "backup").write_text("#!/bin/sh\nmplog log info $$\nexit 0\n")
    (tmp_path / "backup").chmod(0o755)
    with server:
        assert shell("./backup; true", tmp_path, MPLOG_QUEUE=server.queue.directory).returncode == 0
    (line,) = lines(tmp_path / "app.log")
    pid = line.split()[-1]
    assert line == f"INFO 20 backup-{pid} shell | {pid}"


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 100_000])
def test_any_length(tmp_path: Path, server: library.LogServer, size: int) -> None:
    """Empty, of one frame, of several: the message arrives whole."""
    with server:
        arguments = ["--process", "p", "error", "x" * size]
        assert log(*arguments, queue=server.queue.directory, directory=tmp_path) == (0, "", "")
        stats = server.stop()
    assert lines(tmp_path / "app.log") == [f"ERROR 40 p shell | {'x' * size}"]
    assert (stats.received, stats.unexplained) == (1, {})


def test_server_with_a_configuration(tmp_path: Path) -> None:
    """Its loggers, levels and propagate hold, as for a Python program."""
    config = {
        "version": 1,
        "formatters": {"text": {"format": "%(name)s %(message)s"}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": str(tmp_path / "app.log"), "formatter": "text"}
        },
        "loggers": {"job": {"level": "WARNING", "handlers": ["file"], "propagate": False}},
        "root": {"level": "CRITICAL"},
    }
    with library.LogServer(config=config) as server:
        queue = server.queue.directory
        for logger in ("job", "job.sub", "other"):
            for level in ("info", "error"):
                assert log("-l", logger, level, level, queue=queue, directory=tmp_path) == (0, "", "")
    assert lines(tmp_path / "app.log") == ["job error", "job.sub error"]


def test_secrets_do_not_leave_the_process(tmp_path: Path) -> None:
    """A server's redactors work on what a script logs, too."""
    fields = library.Fields(redactors=[library.Redactor("password")])
    with library.LogServer(tmp_path / "app.log", level="INFO", format=library.JSONFormatter(), fields=fields) as server:
        arguments = ["--fields-only", "info", "text", "password=hunter2"]
        assert log(*arguments, queue=server.queue.directory, directory=tmp_path) == (0, "", "")
    assert "hunter2" not in (tmp_path / "app.log").read_text()


def test_full_queue_is_waited_for(tmp_path: Path) -> None:
    """While there is no room, the command waits; then the record is there."""
    queue = library.LogQueue(maxsize=4096)
    LoggingState.capture(Layout()).save(queue.directory)
    while not queue.full():
        queue.put("x" * 1000)
    full = subprocess.Popen(
        [sys.executable, "-m", "mplog", "log", "error", "last"], env=environment(MPLOG_QUEUE=queue.directory)
    )
    try:
        wait_until(lambda: _has_open(full.pid, queue.path), "it has the queue open")
        assert full.poll() is None
        found = []
        while full.poll() is None or not queue.empty():
            if not queue.empty():
                found.append(queue.get())
        assert (full.returncode, found[-1].getMessage()) == (0, "last")
    finally:
        full.kill()
        full.wait()
        queue.close()
        queue.remove()


def _has_open(pid: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(os.path.realpath(link) == path for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def test_no_server(tmp_path: Path, server: library.LogServer) -> None:
    """The queue that is named is not there: status 1, and the message is on stderr, with the reason."""
    with server:
        ended = server.queue.directory
    for queue in (None, str(tmp_path), "/nowhere", ended):
        status, out, err = log("info", "precious", "n=1", queue=queue, directory=tmp_path)
        assert (status, out) == (1, "")
        *reason, message = err.splitlines()
        assert message == "precious n=1"
        assert len(reason) == 1
        assert reason[0].startswith("mplog log: ")
        assert "MPLOG_QUEUE" in reason[0]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_directory_that_another_user_has_made_again(tmp_path: Path, server: library.LogServer, level: str) -> None:
    """What another user has planted in place of a killed server is neither written to nor believed."""
    planted, target = tmp_path / "planted", tmp_path / "target"
    planted.mkdir()
    with server:
        shutil.copy(Path(server.queue.directory, "logging"), planted)
    state = read_state(str(planted))
    assert state is not None
    assert is_direct(state), "it is the short way that is tested here"
    target.write_text("precious\n")
    (planted / "queue").symlink_to(target)
    status, _, err = log(level, "x", queue=str(planted), directory=tmp_path)
    assert (status, err.splitlines()[1:], target.read_text()) == (1, ["x"], "precious\n")


def test_lines_after_the_end_of_the_server_are_not_lost(tmp_path: Path, server: library.LogServer) -> None:
    """Messages after the end of the server go to stderr, and the status is 1."""
    server.start()
    with subprocess.Popen(
        [sys.executable, "-m", "mplog", "log", "info", "-"],
        env=environment(MPLOG_QUEUE=server.queue.directory),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as logging_lines:
        assert logging_lines.stdin is not None
        assert logging_lines.stderr is not None
        logging_lines.stdin.write("one\n")
        logging_lines.stdin.flush()
        wait_until(lambda: server.stats().received == 1, "the first line has arrived")
        server.stop()
        logging_lines.stdin.write("two\nthree\n")
        logging_lines.stdin.close()
        said = logging_lines.stderr.read().splitlines()
    assert logging_lines.returncode == 1
    assert said[0].startswith("mplog log: ")
    assert said[1:] == ["two", "three"]
    assert [line.split(" | ")[1] for line in lines(tmp_path / "app.log")] == ["one"]


def test_it_loads_little() -> None:
    """Neither logging nor msgspec, nor anything of a server."""
    program = "import sys, mplog.cli.log, mplog.cli.main, mplog.cli.wire, mplog.record.frame; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    heavy = {
        "logging",
        "msgspec",
        "multiprocessing",
        "mplog.queue.log_queue",
        "mplog.record.encoding",
        "mplog.server.log_server",
        "mplog.worker.attach",
    }
    assert not heavy & set(loaded)
