"""``mplog tail``: what is shown of a log, and what comes of it across rotations."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Process
from pathlib import Path
from typing import Any

import psutil
import pytest
from logs import zstd
from oracle import wait_until
from scripts import drop_privileges, environment, run, write_script
from terminal import Terminal

import mplog
from mplog.cli.lines import LineParser
from mplog.cli.main import main
from mplog.sinks.sink import DEFAULT_FORMAT

TAIL = ["-m", "mplog", "tail"]


def tail(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return run([*TAIL, *map(str, arguments)], **options)


def shown(*arguments: object) -> list[str]:
    """Return the lines that the command shows; in this process, which is quicker."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(output):
        assert main(["tail", *map(str, arguments)]) == 0
    output.seek(0)
    return output.read().splitlines()


class Following:
    """A ``mplog tail -f`` that runs, with its output in a file."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.path = directory / "shown"
        with open(self.path, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *TAIL, "-f", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                env=environment(),
            )

    def wait_for(self, line: str) -> list[str]:
        """Return all lines once this one is shown, and end it."""
        wait_until(lambda: f"{line}\n" in self.path.read_text(), f"tail shows {line!r}")
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=30)
        assert (self.process.returncode, said) == (130, b"")
        return self.path.read_text().splitlines()

    def close(self) -> None:
        """End it, where that has not been done."""
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., Following]]:
    """Start a ``mplog tail -f``; it is ended at the end."""
    started = []

    def start(*arguments: object) -> Following:
        started.append(Following(tmp_path, *arguments))
        return started[-1]

    yield start
    for following in started:
        following.close()


def append(path: Path, text: str) -> None:
    """Write more."""
    with open(path, "a") as file:
        file.write(text)


# --- real servers ---


def everything(directory: Path) -> list[str]:
    """Return the lines of all files of app.log, those of rotated ones first."""
    rotated = [path for path in directory.iterdir() if path.name.startswith("app.") and path.name != "app.log"]
    rotated.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    texts = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in rotated]
    return b"".join([*texts, (directory / "app.log").read_bytes()]).decode().splitlines()


LINES = 4000


def flood(initializer: Any, number: int) -> None:
    """Runs in a worker: log in short bursts."""
    initializer()
    logger = logging.getLogger("flood")
    for line in range(LINES):
        logger.info("%d:%d %s", number, line, "x" * (line % 50))
        if line % 50 == 0:
            time.sleep(0.01)


@pytest.mark.processes
@pytest.mark.parametrize("seed", [1, 2])
def test_tail_follows_rotations_while_logging_processes_are_killed(
    tmp_path: Path, log: Path, follow: Callable[..., Following], seed: int
) -> None:
    """The output is the lines of the files, in their order: none is missing, none comes twice."""
    kills = random.Random(seed)
    sink = mplog.FileSink(log, rotate="30 kB", compress="gz" if seed == 1 else None)
    with mplog.LogServer(sink, level="INFO") as server:
        logging.info("the beginning")
        server.flush()
        following = follow("-n", "all", log)
        wait_until(lambda: "the beginning" in following.path.read_text(), "tail has begun")
        workers = [Process(target=flood, args=(server.initializer, number)) for number in range(3)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(kills.uniform(0.05, 0.5))  # load, not a wait: kills come at any moment
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.pid != pid, "it is restarted")  # noqa: B023
        for worker in workers:
            worker.join(30)
        server.flush()
        restarts = server.stats().restarts
    expected = everything(tmp_path)
    lines = following.wait_for(expected[-1])
    assert restarts >= 2
    assert len([line for line in expected if "flood" in line]) == 3 * LINES
    assert lines == expected


@pytest.mark.processes
@pytest.mark.parametrize("way", ["mv", "copytruncate", "rm"])
def test_tail_of_a_file_that_is_moved_under_a_server(
    tmp_path: Path, log: Path, follow: Callable[..., Following], way: str
) -> None:
    """By hand, or by logrotate."""
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        logging.info("0")
        server.flush()
        following = follow("-n", "all", log)
        wait_until(lambda: following.path.read_text() == "0\n", "tail has begun")
        for number in range(1, 6):
            if way == "mv":
                # It is noticed some time later, and what comes meanwhile stands in the file that was moved.
                log.rename(tmp_path / f"app.log.{number}")
                wait_until(lambda: logging.info("more") or log.exists(), "it is noticed")
            elif way == "copytruncate":
                shutil.copy(log, tmp_path / f"app.log.{number}")
                os.truncate(log, 0)
            else:
                log.unlink()
            logging.info("%d", number)
            server.flush()
            logging.info("%d again", number)
            server.flush()
            if way == "rm":
                # A file that is removed before tail has read it is gone.
                wait_until(lambda: f"{number} again\n" in following.path.read_text(), "tail has seen it")  # noqa: B023
    lines = following.wait_for("5 again")
    if way == "mv":
        assert lines == everything(tmp_path)
    shown = [line for line in lines if not line.startswith("mplog: ") and line != "more"]
    assert shown == ["0", *(text for number in range(1, 6) for text in (f"{number}", f"{number} again"))]


# --- the command ---


@pytest.fixture
def text(log: Path) -> Path:
    """A log in mplog's own format, of two processes, with a traceback."""
    log.write_text(
        "2026-11-21 10:00:00,001 INFO     worker-1 shop.db | connected\n"
        "2026-11-21 10:00:00,002 WARNING  worker-2 shop.db.pool | slow\n"
        "2026-11-21 10:00:00,003 ERROR    worker-1 shop.web | it failed\n"
        "Traceback (most recent call last):\n"
        "  ...\n"
        "KeyError: 1\n"
        "2026-11-21 10:00:00,004 DEBUG    worker-2 shopper | a | b\n"
        "2026-11-21 10:00:00,005 Level 25 worker 3 x | odd\n"
    )
    return log


@pytest.mark.processes
def test_formats_that_the_parser_knows_are_those_that_are_written(tmp_path: Path) -> None:
    """What a real server writes, as text and as JSON, is read back: level, logger, process, pid and fields."""
    formats = {
        "plain": None,
        "other": "[%(process)d] %(asctime)s.%(msecs)03d %(levelname)8s {%(name)s:%(lineno)04d} 100%% %(message)s",
        "json": mplog.JSONFormatter(),
    }
    sinks = [mplog.FileSink(tmp_path / name, format=format) for name, format in formats.items()]
    logging.addLevelName(25, "NOTICE")
    try:
        with mplog.LogServer(*sinks, level="DEBUG"):
            for level in (10, 20, 25, 30, 40, 50, 33):
                logging.getLogger("shop.db").log(level, "one\ntwo", extra={"request": 7})
        for name, format in formats.items():
            parser = LineParser(format if isinstance(format, str) else DEFAULT_FORMAT)
            parsed = [parser.parse(line) for line in (tmp_path / name).read_bytes().splitlines(keepends=True)]
            records = [record for record in parsed if record is not None]
            assert [record.level for record in records] == [10, 20, 25, 30, 40, 50, 33]
            assert {record.values["name"] for record in records} == {"shop.db"}
            assert len(parsed) == (7 if name == "json" else 14)
            if name != "plain":
                assert {str(record.values["process"]) for record in records} == {str(os.getpid())}
            if name != "other":
                assert {record.values["processName"] for record in records} == {"MainProcess"}
    finally:
        logging.addLevelName(25, "Level 25")
    assert shown("-n", "1", "--field", "request=7", "--field", "level=WARNING", tmp_path / "json") == [
        (tmp_path / "json").read_text().splitlines()[3]
    ]


def test_last_records(text: Path) -> None:
    """-n counts records: a traceback belongs to the one before it."""
    lines = text.read_text().splitlines()
    assert shown(text) == lines
    assert shown("-n", 1, text) == lines[-1:]
    assert shown("-n", 3, text) == lines[2:]
    assert shown("-n", 0, text) == []
    assert shown("-n", "all", text) == lines


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--level", "warning"], [1, 2, 3, 4, 5]),
        (["--level", "25"], [1, 2, 3, 4, 5, 7]),
        (["--level", "ERROR", "-n", "1"], [2, 3, 4, 5]),
        (["--logger", "shop.db"], [0, 1]),
        (["--logger", "shop", "--process", "worker-1"], [0, 2, 3, 4, 5]),
        (["--process", "worker-*", "--level", "INFO"], [0, 1, 2, 3, 4, 5]),
        (["--process", "worker 3"], [7]),
        (["--logger", "shop.web", "--logger", "shopper"], [2, 3, 4, 5, 6]),
        (["--field", "message=a | b"], [6]),
        (["--field", "message=a | b", "--field", "levelname=INFO"], []),
        (["-n", "1", "--logger", "nobody"], []),
    ],
)
def test_filters(text: Path, arguments: list[str], expected: list[int]) -> None:
    """All filters must hold; of one that is given several times, one; a record is shown with all of its lines."""
    lines = text.read_text().splitlines()
    assert shown(*arguments, text) == [lines[number] for number in expected]


def test_filters_of_json(log: Path) -> None:
    """By the fields of the objects, with their types, also where the program has given them other names."""
    records = [
        {"level": "INFO", "logger": "a", "process": "P", "pid": 7, "n": 1, "ok": True, "text": "1"},
        {"levelname": "ERROR", "name": "a.b", "processName": "Q", "process": 8, "n": None},
        {"severity": "WARNING", "logger": "ab", "process": "Q", "n": 1.5},
    ]
    lines = [json.dumps(record) for record in records]
    log.write_text("\n".join(lines) + "\n")
    for arguments, expected in {
        ("--level", "WARNING"): [1, 2],
        ("--logger", "a"): [0, 1],
        ("--process", "8"): [1],
        ("--process", "Q"): [1, 2],
        ("--field", "n=1"): [0],
        ("--field", "ok=true"): [0],
        ("--field", "n=null"): [1],
        ("--field", "text=1"): [0],
    }.items():
        assert shown(*arguments, log) == [lines[number] for number in expected], arguments


def test_an_object_in_a_message_is_no_record(text: Path) -> None:
    """In a text log, a line of JSON belongs to the record before it, whatever fields it has."""
    append(text, '2026-11-21 10:00:00,006 ERROR    w x | answer:\n{"level": "DEBUG", "a": 1}\n')
    assert shown("-n", 1, text) == text.read_text().splitlines()[-2:]
    assert shown("-n", 1, "--level", "ERROR", text) == text.read_text().splitlines()[-2:]
    assert shown("--field", "a=1", text) == []


def test_the_last_records_of_a_large_file(log: Path) -> None:
    """They are found from the end on, however rare they are."""
    with open(log, "w") as file:
        for number in range(40_000):
            level = "ERROR" if number in (5, 20_000) else "INFO"
            file.write(f"2026-11-21 10:00:00,001 {level:8} worker-1 shop | {number}\n")
    assert [line[-6:] for line in shown("-n", 2, log)] == [" 39998", " 39999"]
    assert [line.split()[-1] for line in shown("-n", 2, "--level", "ERROR", log)] == ["5", "20000"]
    assert [line.split()[-1] for line in shown("-n", 1, "--level", "ERROR", log)] == ["20000"]


@pytest.mark.processes
def test_an_unknown_format(log: Path) -> None:
    """Lines count as records; a filter has nothing to go by, and says what to do; --format and --datefmt say it."""
    log.write_text("21.11.2026 10:00 <shop> ERROR: one\n  more\n21.11.2026 10:01 <shop> INFO: two\n")
    assert shown("-n", 1, log) == ["21.11.2026 10:01 <shop> INFO: two"]
    done = tail("--level", "ERROR", log)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no line of {log} is JSON" in done.stderr
    assert "--format" in done.stderr
    format = "%(asctime)s <%(name)s> %(levelname)s: %(message)s"
    known = ["--format", format, "--datefmt", "%d.%m.%Y %H:%M"]
    assert shown(*known, "--level", "ERROR", log) == ["21.11.2026 10:00 <shop> ERROR: one", "  more"]
    assert shown(*known, "-n", 2, log) == log.read_text().splitlines()


@pytest.mark.processes
def test_what_goes_into_a_pipe_is_the_bytes(log: Path) -> None:
    """Whatever they are: not UTF-8, no end of the last line, escapes; also with a filter."""
    data = b"2026-11-21 10:00:00,001 INFO     w x | \xff\x1b[31m\r\x00 \n\xe2\x80\xa8 more \x85\nlast"
    log.write_bytes(data)
    for arguments in ([], ["--level", "INFO"]):
        done = subprocess.run(
            [sys.executable, *TAIL, *arguments, str(log)],
            capture_output=True, stdin=subprocess.DEVNULL, env=environment(), timeout=30,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


@pytest.mark.processes
@pytest.mark.parametrize("how", ["gz", "zst"])
def test_rotated_files(text: Path, tmp_path: Path, how: str) -> None:
    """A compressed file is shown like any other, and several with their names."""
    packed = tmp_path / f"app.1.log.{how}"
    packed.write_bytes((gzip if how == "gz" else zstd()).compress(text.read_bytes()))
    assert shown("-n", 2, packed) == text.read_text().splitlines()[-2:]
    assert shown("-n", 1, packed, text) == [
        f"==> {packed} <==",
        text.read_text().splitlines()[-1],
        "",
        f"==> {text} <==",
        text.read_text().splitlines()[-1],
    ]
    packed.write_bytes(packed.read_bytes()[:50])
    done = tail(packed)
    assert (done.returncode, "cannot be unpacked" in done.stderr) == (1, True)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["missing.log"], 1, "missing.log does not exist."),
        (["."], 1, ". is not a regular file."),
        (["secret.log"], 1, "secret.log may not be read by this user."),
        ([], 2, "which file?"),
        (["--level", "LOUD", "app.log"], 2, "'LOUD' is not a level"),
        (["--field", "x", "app.log"], 2, "'x' is not NAME=VALUE"),
        (["-n", "-1", "app.log"], 2, "-1 is not a number of records"),
        (["-n", "many", "app.log"], 2, "many is not a number of records"),
        (["--format", "no field", "app.log"], 2, "has no field"),
        (["--server"], 1, "no server of this user runs"),
        (["--server", "17"], 1, "no server 17 of this user runs"),
    ],
)
def test_errors(tmp_path: Path, text: Path, arguments: list[str], status: int, said: str) -> None:
    """An error is a line without a traceback, with its exit status."""
    (tmp_path / "secret.log").write_text("x\n")
    (tmp_path / "secret.log").chmod(0)
    done = tail(*arguments, cwd=tmp_path, preexec_fn=drop_privileges)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
def test_the_files_of_a_server(tmp_path: Path) -> None:
    """--server takes the one that runs, or the one that is named; of several it names them."""
    with mplog.LogServer(tmp_path / "one.log", level="INFO", format="%(message)s") as first:
        logging.info("in one")
        first.flush()
        assert shown("--server") == ["in one"]
        with mplog.LogServer(tmp_path / "two.log", level="INFO", format="%(message)s") as second:
            logging.info("in two")
            second.flush()
            assert "in two" in shown("--server", second.pid)
            assert "in two" in shown("--server", second.queue.directory)
            (tmp_path / "queue").symlink_to(second.queue.directory)
            done = tail("--server", "queue", cwd=tmp_path)
            assert (done.returncode, "in two" in done.stdout) == (0, True)
            done = tail("--server")
            assert done.returncode == 1
            assert "2 servers run" in done.stderr
            assert {str(first.pid), str(second.pid)} <= set(done.stderr.replace(";", " ").split())


def test_the_fifo_of_a_queue_is_not_opened(server: mplog.LogServer) -> None:
    """It is no log, and to open it would disturb the server."""
    done = tail("-f", server.queue.path)
    assert (done.returncode, "is not a regular file" in done.stderr) == (1, True)


@pytest.mark.processes
def test_a_pipe_that_is_closed_early(text: Path) -> None:
    """``mplog tail -f app.log | head -1`` ends, also when nothing comes any more."""
    command = subprocess.Popen(
        [sys.executable, *TAIL, "-f", str(text)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert command.stdout is not None and command.stderr is not None
    assert b"connected" in command.stdout.readline()
    command.stdout.close()
    assert command.wait(30) == 1
    assert command.stderr.read() == b""
    command.stderr.close()


@pytest.mark.processes
def test_follow_with_a_filter(log: Path, follow: Callable[..., Following]) -> None:
    """Lines that come are filtered, and those of a traceback go with their record."""
    with mplog.LogServer(log, level="INFO") as server:
        following = follow("-n", 0, "--level", "ERROR", log)
        probe = "probe"
        wait_until(
            lambda: logging.error(probe) or server.flush() or probe in following.path.read_text(), "tail has begun"
        )
        logging.info("not this")
        try:
            {}["x"]
        except KeyError:
            logging.exception("but this")
        logging.warning("nor this")
        logging.error("the end")
    lines = following.wait_for(log.read_text().splitlines()[-1])
    shown = [line for line in lines if probe not in line]
    assert shown[0].endswith("but this")
    assert shown[1] == "Traceback (most recent call last):"
    assert shown[-2] == "KeyError: 'x'"
    assert shown[-1].endswith("the end")


@pytest.mark.processes
def test_following_costs_little(text: Path, follow: Callable[..., Following]) -> None:
    """A second without news costs less than a twentieth of a processor."""
    following = follow(text)
    wait_until(lambda: "odd" in following.path.read_text(), "tail has begun")
    process = psutil.Process(following.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1)  # what is measured
    assert sum(process.cpu_times()[:2]) - before <= 0.05


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "changes", "is_colored"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {}, False),
    ],
)
def test_color(text: Path, arguments: list[str], changes: dict[str, str], is_colored: bool) -> None:
    """On a terminal, a record has the colour of its level, with its traceback; NO_COLOR and --color are respected."""
    with Terminal([sys.executable, *TAIL, *arguments, str(text)], 100, **changes) as terminal:
        terminal.wait_for("odd")
        assert terminal.wait() == 0
        assert (b"\x1b[31mKeyError: 1\x1b[0m" in terminal.output) == is_colored
        assert (b"\x1b[" in terminal.output) == is_colored


def test_no_color_in_a_pipe(text: Path) -> None:
    """Unless it is asked for."""
    assert not any("\x1b" in line for line in shown(text))
    assert any("\x1b" in line for line in shown("--color", "always", text))


@pytest.mark.processes
def test_what_was_logged_cannot_steer_the_terminal(log: Path) -> None:
    """On a terminal, what is no printable character is shown as an escape."""
    log.write_text("2026-11-21 10:00:00,001 INFO     w x | \x1b]0;title\x07 \x9b2J \u202e é\tß\n")
    other = log.with_name("other\x1b]0;title\x07.log")
    other.write_bytes(b"no UTF-8: \x9b2J\n")
    with Terminal([sys.executable, *TAIL, str(log), str(other)], 200) as terminal:
        shown = terminal.wait_for(
            r"\x1b]0;title\x07 \x9b2J \u202e é", "ß", r"no UTF-8: \x9b2J", r"other\x1b]0;title\x07.log"
        )
        assert terminal.wait() == 0
        assert "\x1b" not in shown
        assert b"\x9b" not in terminal.output


def test_a_carriage_return_begins_no_record(log: Path) -> None:
    """A message cannot pretend to be another record: only a line feed ends a line."""
    line = "2026-11-21 10:00:00,001 INFO     w x | one\r2026-11-21 10:00:00,001 ERROR    w x | forged\n"
    log.write_text(line)
    assert shown("--level", "ERROR", log) == []
    assert shown("--level", "INFO", log) == line.splitlines()


#: Bytes of a line that should not be held in memory.
HUGE = 100 * 10**6


@pytest.fixture
def huge(log: Path) -> Path:
    """A log with a line of 100 MB between two others."""
    with open(log, "w") as file:
        file.write("2026-11-21 10:00:00,001 INFO     w x | before\n2026-11-21 10:00:00,002 ERROR    w x | ")
        for _ in range(HUGE // 10**6):
            file.write("x" * 10**6)
        file.write("\n2026-11-21 10:00:00,003 INFO     w x | after\n")
    return log


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [["-n", "3"], ["-n", "1", "--level", "ERROR"], ["-n", "all", "--logger", "x"]])
def test_huge_line_takes_no_memory(huge: Path, tmp_path: Path, arguments: list[str]) -> None:
    """The bytes of a line of 100 MB come out whole in a pipe, the filters hold, and memory is bounded."""
    program = """
        import sys
        def peak():
            with open("/proc/self/status") as status:
                return 1024 * int(status.read().partition("VmHWM:")[2].split()[0])
        from mplog.cli.main import main
        before = peak()
        assert main(["tail", *sys.argv[1:]]) == 0
        print(peak() - before, file=sys.stderr)
    """
    script = write_script(tmp_path, program)
    with open(tmp_path / "shown", "wb") as output:
        command = [sys.executable, str(script), *arguments, str(huge)]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment(), timeout=60, check=True)
    assert int(done.stderr) < HUGE / 2
    lines = huge.read_bytes().splitlines(keepends=True)
    expected = lines[1:2] if "ERROR" in arguments else lines
    assert (tmp_path / "shown").read_bytes() == b"".join(expected)


@pytest.mark.processes
def test_huge_line_on_a_terminal(huge: Path) -> None:
    """It is cut, and its true length is said; what follows is shown."""
    with Terminal([sys.executable, *TAIL, str(huge)], 200) as terminal:
        length = HUGE + len("2026-11-21 10:00:00,002 ERROR    w x | ")
        terminal.wait_for(f"[the line goes on; it has {length:,} bytes]", "after")
        assert terminal.wait() == 0
        assert terminal.output.count(b"x") < 2**16 + 100


@pytest.mark.processes
def test_help_has_examples_and_exit_statuses() -> None:
    """``mplog tail --help`` says what it is for, how it is used, and what its exit statuses mean."""
    done = tail("--help")
    assert done.returncode == 0
    for text in ("examples:", "mplog tail -f app.log", "exit status:", "filters:", DEFAULT_FORMAT):
        assert text in done.stdout
