"""The fixture mplog_records, in runs of pytest as a user starts them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from plugin_runs import Runs

from mplog.pytest_plugin.records import LineEncoder, Records

pytestmark = pytest.mark.processes

pytest_plugins = "pytester"


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs of pytest in a directory of their own."""
    return Runs(pytester, monkeypatch)


def test_children_of_every_kind_are_heard(runs: Runs) -> None:
    """Pools and processes of both libraries and of each start method, with nothing changed in the code that starts
    them: when `map` has returned, what its workers have logged is there, in whatever order, and so is the parent's."""
    runs(
        """
        import multiprocess, multiprocessing, pytest
        from jobs import find

        @pytest.mark.parametrize("library", [multiprocessing, multiprocess])
        @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
        def test_pool(mplog_records, library, method):
            context = library.get_context(method)
            with context.Pool(2) as pool:
                assert pool.map(find, [1, 2, 3]) == [1, 2, 3]
                assert sorted(mplog_records.messages) == ["found 1", "found 2", "found 3"]
            process = context.Process(target=find, args=(4,), name="finder")
            process.start()
            process.join()
            find(5)
            assert mplog_records.messages[3:] == ["found 4", "found 5"]
            assert mplog_records.records[3].processName == "finder"
            assert mplog_records.records[3].process == process.pid
        """,
        passed=6,
    )


def test_what_else_starts_processes_is_heard(runs: Runs) -> None:
    """Executors, a bare fork, and programs that attach themselves."""
    runs(
        """
        import concurrent.futures, multiprocessing, os, pytest, subprocess, sys
        from jobs import find

        @pytest.mark.parametrize("method", ["fork", "spawn"])
        def test_executor(mplog_records, method):
            context = multiprocessing.get_context(method)
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
                assert list(executor.map(find, [1, 2])) == [1, 2]
                assert mplog_records.messages == ["found 1", "found 2"]

        def test_fork(mplog_records):
            pid = os.fork()
            if not pid:
                find(1)
                os._exit(0)
            os.waitpid(pid, 0)
            assert mplog_records.messages == ["found 1"]

        def start_another(method):
            process = multiprocessing.get_context(method).Process(target=find, args=(1,))
            process.start()
            process.join()

        @pytest.mark.parametrize("second", ["fork", "spawn"])
        def test_child_of_a_child(mplog_records, second):
            process = multiprocessing.get_context("spawn").Process(target=start_another, args=(second,))
            process.start()
            process.join()
            assert mplog_records.messages == ["found 1"]

        def test_program(mplog_records):
            program = "import jobs, mplog; mplog.attach(); jobs.find(1)"
            subprocess.run([sys.executable, "-c", program], check=True)
            assert mplog_records.messages == ["found 1"]

        def test_initializer(mplog_records):
            with multiprocessing.get_context("spawn").Pool(1, mplog_records.server.initializer) as pool:
                pool.map(find, [1, 2])
            assert mplog_records.messages == ["found 1", "found 2"]
        """,
        passed=7,
    )


def test_killed_child_has_its_records_and_nothing_else_is_there(runs: Runs) -> None:
    """What a child has logged before SIGKILL is there; that it was killed is no record of the test."""
    runs(
        """
        import multiprocessing, pytest
        from jobs import find_and_die

        @pytest.mark.parametrize("method", ["fork", "spawn"])
        def test_kill(mplog_records, method):
            process = multiprocessing.get_context(method).Process(target=find_and_die, args=(1,))
            process.start()
            process.join()
            assert process.exitcode == -9
            assert mplog_records.messages == ["found 1"]
        """,
        passed=2,
    )


def test_more_than_any_buffer_holds(runs: Runs) -> None:
    """A test may log megabytes before it looks for the first time."""
    runs(
        """
        import logging, multiprocessing

        def flood(number):
            for index in range(1000):
                logging.warning("%d %d %s", number, index, "x" * 10_000)

        def test_flood(mplog_records):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(flood, [0, 1], chunksize=1)
            seen = [tuple(map(int, message.split()[:2])) for message in mplog_records.messages]
            for number in (0, 1):
                assert [each for each in seen if each[0] == number] == [(number, index) for index in range(1000)]
        """,
        passed=1,
    )


def test_line_that_is_being_written_waits_for_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If other processes log during a look, it may find half a line at the end."""
    server = SimpleNamespace(flush=lambda: None)
    monkeypatch.setattr("mplog.pytest_plugin.records.start_beside", lambda not_started: server)
    records = Records(tmp_path / "records", logging.Formatter())
    first, second = (
        LineEncoder().format(logging.makeLogRecord({"msg": text, "levelno": 20})).encode() + b"\n"
        for text in ("first", "second")
    )
    for written, seen in (
        (b"", []),
        (first[:5], []),
        (first + second[:-1], ["first"]),
        (first + second, ["first", "second"]),
    ):
        (tmp_path / "records").write_bytes(written)
        assert records.messages == seen


def test_it_is_used_as_caplog(runs: Runs) -> None:
    """The same calls in a test give the same answers; what is set is put back after the test."""
    runs(
        """
        import logging, os, pytest

        log = logging.getLogger("app")
        isolated = logging.getLogger("isolated")
        isolated.propagate = False

        @pytest.fixture(params=["caplog", "mplog_records"])
        def logs(request):
            return request.getfixturevalue(request.param)

        def test_all(logs):
            log.info("not yet")
            log.warning("first %s", 1)
            isolated.error("isolated")
            assert logs.messages == ["first 1", "isolated"]
            assert logs.record_tuples == [("app", 30, "first 1"), ("isolated", 40, "isolated")]
            assert [record.levelname for record in logs.records] == ["WARNING", "ERROR"]
            assert logs.records[0].funcName == "test_all"
            logs.clear()
            assert logs.messages == logs.records == [] and logs.text == ""
            logs.set_level("INFO")
            log.info("second")
            log.debug("not yet")
            with logs.at_level(logging.DEBUG, logger="app"):
                log.debug("third")
                logging.debug("not at all")
            log.debug("not any more")
            try:
                1 / 0
            except ZeroDivisionError:
                log.exception("fourth")
            assert logs.messages == ["second", "third", "fourth"]
            assert "DEBUG    app:test_it.py:" in logs.text and "ZeroDivisionError" in logs.text
            log.info("not held up", extra={"order": 7})
            assert logs.records[-1].order == 7
            logging.disable(logging.CRITICAL)
            logs.set_level("ERROR", logger="other")
            logging.getLogger("other").error("heard")
            assert logs.messages[-1] == "heard"
            # What was there stays there.
            assert logs.records is logs.records

        def test_everything_is_back(request):
            assert logging.getLogger().level == logging.WARNING and log.level == 0
            assert logging.getLogger("other").level == 0 and logging.root.manager.disable == 0
            assert not [handler for handler in logging.getLogger().handlers if "mplog" in type(handler).__module__]
            assert not isolated.handlers or "mplog" not in repr(isolated.handlers)
            assert "MPLOG_QUEUE" not in os.environ

        test_all_again = test_all
        """,
        passed=5,
    )


def test_level_reaches_workers_that_run(runs: Runs) -> None:
    """set_level() and at_level() hold in workers that were started before, and in those that come."""
    runs(
        """
        import logging, multiprocessing, pytest

        def work(number):
            logging.getLogger("app").error("look %d", number)
            logging.getLogger("app").debug("debug %d", number)

        @pytest.mark.parametrize("method", ["fork", "spawn"])
        def test_level(mplog_records, method):
            context = multiprocessing.get_context(method)
            with context.Pool(1) as pool:
                pool.map(work, [1])
                with mplog_records.at_level("DEBUG", logger="app"):
                    pool.map(work, [2])
                pool.map(work, [3])
                mplog_records.set_level("DEBUG", logger="app")
            with context.Pool(1) as pool:
                pool.map(work, [4])
            looks = ["look 1", "look 2", "debug 2", "look 3", "look 4", "debug 4"]
            assert mplog_records.messages == looks
        """,
        passed=2,
    )


def test_pytest_s_own_logging_goes_on_beside_it(runs: Runs) -> None:
    """caplog has the parent's records, the live log shows them, and a log file has them, as without the fixture."""
    test = """
        import logging

        def test_it(mplog_records, caplog):
            logging.warning("once %d", 1)
            assert caplog.messages == mplog_records.messages == ["once 1"]
        """
    result = runs(test, "-o", "log_cli=true", "--log-file=own.log", passed=1)
    assert result.stdout.str().count("once 1") == 1
    assert "".join(runs.lines("own.log")).count("once 1") == 1
    runs(test.replace(", caplog", "").replace("caplog.messages == ", ""), "-p", "no:logging", passed=1)


def test_failure_shows_the_records(runs: Runs) -> None:
    """The report of a test that fails has what its children have logged."""
    result = runs(
        """
        import multiprocessing
        from jobs import find

        def test_it(mplog_records):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.map(find, [1])
            assert not mplog_records.messages
        """,
        "-o",
        "log_format=%(processName)s says %(message)s",
        failed=1,
    )
    result.stdout.fnmatch_lines(["*Captured mplog_records call*", "SpawnPoolWorker-1 says found 1"])


def test_nothing_is_loaded_for_tests_that_ask_for_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, and without the fixture and the option, the plugin is there, and nothing else of mplog is imported,
    nor what that needs."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    runs.plugins = []
    runs(
        """
        import sys

        def test_it(request):
            assert request.config.pluginmanager.hasplugin("mplog")
            assert sorted(name for name in sys.modules if name.partition(".")[0] == "mplog") == [
                "mplog", "mplog.pytest_plugin"
            ]
            assert not {"msgspec", "cloudpickle", "filelock", "multiprocess", "dill"} & sys.modules.keys()
        """,
        passed=1,
    )
    # As with every plugin:
    runs("def test_it(mplog_records): pass", "-p", "no:mplog", errors=1)
