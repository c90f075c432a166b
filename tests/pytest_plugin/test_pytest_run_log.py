"""One log of a whole run of pytest (--mplog), in runs as a user starts them."""

from __future__ import annotations

import re
import signal

import pytest
from plugin_runs import Runs

pytestmark = pytest.mark.processes

pytest_plugins = "pytester"

#: A line in the default format.
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<worker>\S+) (?P<nodeid>\S+) (?P<level>\w+) (?P<process>\S+) "
    r"(?P<logger>\S+) \| (?P<text>.*)"
)


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs of pytest in a directory of their own."""
    return Runs(pytester, monkeypatch)


def read(runs: Runs, name: str = "run.log") -> list[re.Match[str]]:
    """Return the lines of a log, each of which must be one."""
    found = []
    for line in runs.lines(name):
        match = LINE.fullmatch(line)
        assert match is not None, line
        found.append(match)
    return found


def of_test(lines: list[re.Match[str]], name: str) -> list[tuple[str, str, str]]:
    """Return level, logger and text of what was logged under a test's id, without the seconds."""
    return [
        (line["level"], line["logger"], re.sub(r"\d+\.\d{3} s", "0 s", line["text"]))
        for line in lines
        if line["nodeid"] == f"test_it.py::{name}"
    ]


def test_all_workers_write_one_log(runs: Runs) -> None:
    """Each test stands in the log of a run with two xdist workers with what it and its children have logged, in order
    and under its id and worker; the run begins and ends it."""
    runs(
        """
        import logging, multiprocessing, pytest
        from jobs import find

        @pytest.mark.parametrize("number", range(20))
        def test_many(number):
            logging.warning("here %d", number)
            assert number != 13, "unlucky\\nthing"

        @pytest.mark.parametrize("method", ["fork", "spawn"])
        def test_children(method):
            with multiprocessing.get_context(method).Pool(1) as pool:
                pool.map(find, [1, 2])
        """,
        "-n2",
        "--mplog=run.log",
        passed=21,
        failed=1,
    )
    lines = read(runs)
    for number in range(20):
        end = ("ERROR", "pytest", "failed in 0 s: AssertionError: unlucky") if number == 13 else None
        assert of_test(lines, f"test_many[{number}]") == [
            ("INFO", "pytest", "started"),
            ("WARNING", "root", f"here {number}"),
            end or ("INFO", "pytest", "passed in 0 s"),
        ]
    for method in ("fork", "spawn"):
        assert of_test(lines, f"test_children[{method}]") == [
            ("INFO", "pytest", "started"),
            ("WARNING", "app.jobs", "found 1"),
            ("WARNING", "app.jobs", "found 2"),
            ("INFO", "pytest", "passed in 0 s"),
        ]
    tests = [line for line in lines if line["nodeid"] != "-"]
    assert {line["worker"] for line in tests} == {"gw0", "gw1"}
    for line in tests:
        assert line["process"] == line["worker"] or "PoolWorker" in line["process"]
    first, *_, last = lines
    assert first["text"].startswith("pytest ") and first["text"].endswith(" started") and first["worker"] == "main"
    assert last["text"] == "pytest ends with exit status 1"
    assert len(lines) == 20 * 3 + 2 * 4 + 2


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_crash_of_a_worker_loses_nothing(runs: Runs, how: str) -> None:
    """What a worker has logged before it ends without warning is there; and so is that it ended, in which test."""
    runs(
        f"""
        import logging, os, signal

        def test_crash():
            for number in range(1000):
                logging.warning("line %d", number)
            {how}

        def test_other():
            logging.warning("goes on")
        """,
        "-n1",
        "--mplog=run.log",
        passed=1,
        failed=1,
    )
    lines = read(runs)
    assert of_test(lines, "test_crash") == [
        ("INFO", "pytest", "started"),
        *(("WARNING", "root", f"line {number}") for number in range(1000)),
        ("ERROR", "pytest", "crashed: its xdist worker has ended"),
    ]
    assert ("WARNING", "root", "goes on") in of_test(lines, "test_other")
    texts = [line["text"] for line in lines]
    assert "xdist worker gw0 is down: Not properly terminated" in texts
    end = "exit code 3" if "_exit" in how else signal.SIGKILL.name
    assert [text for text in texts if text.startswith("mplog: gw0 (pid ") and end in text]


def test_without_xdist(runs: Runs) -> None:
    """Every outcome has its line, in the setup and teardown as well."""
    runs(
        """
        import logging, pytest

        @pytest.fixture
        def bad_setup():
            raise ValueError("no setup")

        @pytest.fixture
        def bad_teardown():
            yield
            raise ValueError("no teardown")

        def test_pass(): logging.warning("in it")
        def test_fail(): raise ValueError("no test")
        def test_setup(bad_setup): pass
        def test_teardown(bad_teardown): pass
        @pytest.mark.skip("not today")
        def test_skip(): pass
        @pytest.mark.xfail(reason="known")
        def test_xfail(): assert 0
        @pytest.mark.xfail(reason="known")
        def test_xpass(): pass
        """,
        "--mplog=run.log",
        passed=2,
        failed=1,
        errors=2,
        skipped=1,
        xfailed=1,
        xpassed=1,
    )
    lines = read(runs)
    started = ("INFO", "pytest", "started")
    assert of_test(lines, "test_pass") == [started, ("WARNING", "root", "in it"), ("INFO", "pytest", "passed in 0 s")]
    for name, *ends in (
        ("fail", ("ERROR", "pytest", "failed in 0 s: ValueError: no test")),
        ("setup", ("ERROR", "pytest", "failed in its setup in 0 s: ValueError: no setup")),
        (
            "teardown",
            ("INFO", "pytest", "passed in 0 s"),
            ("ERROR", "pytest", "failed in its teardown in 0 s: ValueError: no teardown"),
        ),
        ("skip", ("INFO", "pytest", "skipped in 0 s: Skipped: not today")),
        ("xfail", ("INFO", "pytest", "xfailed in 0 s: known")),
        ("xpass", ("INFO", "pytest", "xpassed in 0 s: known")),
    ):
        assert of_test(lines, f"test_{name}") == [started, *ends]
    assert {line["worker"] for line in lines} == {"main"}


def test_settings_in_the_configuration_file(runs: Runs) -> None:
    """Path, level, format and output can stand there; each run empties the log first; the command line prevails."""
    runs.pytester.makeini(
        """
        [pytest]
        mplog = logs/of_ini.log
        mplog_level = info
        mplog_format = %(worker)s %(nodeid)s %(levelname)s %(name)s %(message)s
        mplog_output = true
        """
    )
    (runs.path / "logs").mkdir()
    test = """
        import logging, sys

        def test_it():
            print("printed")
            print("more", file=sys.stderr)
            logging.info("logged")
            logging.debug("not logged")

        def test_level():
            assert logging.getLogger().level == logging.{level}
        """
    for _ in range(2):
        runs(test.format(level="INFO"), passed=2)
        _, *lines, _ = (re.sub(r"[\d.]+ s$", "0 s", line) for line in runs.lines("logs/of_ini.log"))
        prefix = "main test_it.py::test_it INFO"
        assert lines[:5] == [
            f"{prefix} pytest started",
            f"{prefix} root logged",
            f"{prefix} stdout printed",
            f"{prefix} stderr more",
            f"{prefix} pytest passed in 0 s",
        ]
        assert len(lines) == 7
    runs(test.format(level="DEBUG"), "--mplog=other.log", "--mplog-level=DEBUG", "-n1", passed=2)
    assert "gw0 test_it.py::test_it DEBUG root not logged" in runs.lines("other.log")


def test_log_is_live(runs: Runs) -> None:
    """What a test has logged can be read while it still runs; that of another process, too."""
    runs(
        """
        import logging, multiprocessing, pathlib, time
        from jobs import find

        def test_it():
            process = multiprocessing.get_context("spawn").Process(target=find, args=(1,))
            process.start()
            process.join()
            logging.warning("look")
            deadline = time.monotonic() + 20
            while "| look" not in (text := pathlib.Path("run.log").read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert "| found 1" in text
        """,
        "-n1",
        "--mplog=run.log",
        passed=1,
    )


def test_pytest_s_own_logging_is_as_without(runs: Runs) -> None:
    """What pytest prints, its live log, its log file and caplog do not differ, nor does the root logger's level."""
    test = """
        import logging

        def test_it(caplog):
            logging.warning("once")
            logging.info("not at this level")
            assert caplog.messages == ["once"]
            record, = caplog.records
            assert not hasattr(record, "nodeid") and record.processName == "MainProcess"
            assert 0
        """
    printed = []
    for options in ([], ["--mplog=run.log"]):
        result = runs(test, "-o", "log_cli=true", "--log-file=own.log", *options, failed=1)
        lines = [re.sub(r" in [\d.]+s", "", re.sub("0x[0-9a-f]+", "", line).strip("= ")) for line in result.outlines]
        printed.append((lines, "".join(runs.lines("own.log")).count("once")))
    assert printed[0] == printed[1]
    runs("def test_it(): __import__('logging').warning('once')", "-p", "no:logging", "--mplog=run.log", passed=1)
    assert [text for _, _, text in of_test(read(runs), "test_it")] == ["started", "once", "passed in 0 s"]


def test_loggers_that_are_set_up_again(runs: Runs) -> None:
    """A test that configures logging itself takes the log off for no test but itself."""
    runs(
        """
        import logging, logging.config

        def test_first():
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
            logging.getLogger("apart").propagate = False

        def test_second():
            logging.warning("by the root")
            logging.getLogger("apart").warning("apart")
        """,
        "--mplog=run.log",
        passed=2,
    )
    texts = [text for _, _, text in of_test(read(runs), "test_second")]
    assert texts == ["started", "by the root", "apart", "passed in 0 s"]


def test_records_of_a_test_go_to_both(runs: Runs) -> None:
    """With the fixture, children and their parent are in its records and in the log."""
    runs(
        """
        import multiprocessing, pytest
        from jobs import find

        @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
        def test_it(mplog_records, method):
            with multiprocessing.get_context(method).Pool(1) as pool:
                pool.map(find, [1])
            find(2)
            assert mplog_records.messages == ["found 1", "found 2"]
        """,
        "--mplog=run.log",
        passed=3,
    )
    lines = read(runs)
    for method in ("fork", "spawn", "forkserver"):
        texts = [text for _, _, text in of_test(lines, f"test_it[{method}]")]
        assert texts == ["started", "found 1", "found 2", "passed in 0 s"]


def test_mistakes_are_errors_of_usage(runs: Runs) -> None:
    """A log that cannot be written, or is by another run, and a level that is none, are told in a line; status 4."""
    test = """
        import subprocess, sys

        def test_it():
            command = [sys.executable, "-m", "pytest", "-p", "mplog", "--mplog=run.log", "other"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 4
            assert "ERROR: --mplog: " in done.stderr and "is already written by" in done.stderr
            assert "Traceback" not in done.stderr
        """
    runs(test, "--mplog=run.log", passed=1)
    for option, message in (
        ("--mplog=nowhere/run.log", "ERROR: --mplog: /*nowhere/run.log cannot be written: *"),
        ("--mplog-level=LOUD", "ERROR: --mplog-level: 'LOUD' is not a level*"),
    ):
        result = runs(test, "--mplog=run.log", option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([message])
        assert "Traceback" not in result.stderr.str()
