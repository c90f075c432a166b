"""`make_record`: the record that the stdlib would have made."""

from __future__ import annotations

import asyncio
import collections
import enum
import logging
import multiprocessing.process
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import run_script

import mplog
from mplog.record import factory as record_factory
from mplog.record.factory import install_factory, make_record


class Level(enum.IntEnum):
    """A level that is a number with a name of its own."""

    INFO = 20


class Path_(str):
    """A path that is more than its text."""

    __slots__ = ()


class Named(multiprocessing.process.BaseProcess):
    """A process that makes up its name."""

    @property
    def name(self) -> str:
        """The name."""
        return "made up"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time, in nanoseconds; what is set stays."""
    now = [1_700_000_000_123_456_789]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0] / 1e9)
    return now


@pytest.fixture
def factory() -> Iterator[None]:
    """The stdlib's, before and afterwards."""
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(logging.LogRecord)


def outcome(make: Any, arguments: Any, keywords: Any) -> Any:
    """Return the class and the attributes of what is made, in their order; or the error."""
    try:
        made = make(*arguments, **keywords)
    except Exception as error:
        return type(error)
    return type(made), [(name, type(value), repr(value)) for name, value in made.__dict__.items()]


def same(*arguments: Any, **keywords: Any) -> None:
    """Hold the two makers against each other, the first time and later."""
    expected = outcome(logging.LogRecord, arguments, keywords)
    assert outcome(make_record, arguments, keywords) == expected
    assert outcome(make_record, arguments, keywords) == expected


names = st.one_of(st.text(), st.none())
levels = st.one_of(st.integers(-1, 60), st.sampled_from([20, 20.0, True, Level.INFO, None, "INFO", [], "x"]))
paths = st.one_of(
    st.text(st.sampled_from("/.\\ab\0é")), st.text().map(Path_), st.sampled_from([None, 3, b"/a/b.py", []])
)
arguments_ = st.one_of(
    st.sampled_from(
        [(), None, 0, "text", [], {"a": 1}, ({},), ({"a": 1},), (collections.UserDict(a=1),), ([],), (1, {})]
    ),
    st.tuples(st.one_of(st.integers(), st.text(), st.dictionaries(st.text(), st.integers()))),
)
instants = st.one_of(
    st.integers(0, 2**61), st.sampled_from([999_999_999, 1_700_000_000_999_999_999, 1_699_999_999_999_999_744])
)


@given(names, levels, paths, st.integers(), st.one_of(st.text(), st.integers()), arguments_, instants)
def test_any_record_is_the_one_of_the_stdlib(
    frozen: list[int], name: Any, level: Any, path: Any, line: int, message: Any, args: Any, instant: int
) -> None:
    """Its class, its attributes, their order, types and values, whatever it is made of; and so is the error."""
    frozen[0] = instant
    same(name, level, path, line, message, args, None)
    same(name, level, path, line, message, args, (None, None, None), "function", "stack", more=1)


@pytest.mark.parametrize("arguments", [(), ("name",), ("", 0, "", 0, "", (), None, None, None, None)])
def test_calls_that_fail_do_so_as_in_the_stdlib(arguments: tuple[Any, ...]) -> None:
    """With as many arguments as it does not take."""
    same(*arguments)
    assert outcome(make_record, arguments, {}) is TypeError


def test_all_arguments_have_the_names_of_the_stdlib(frozen: list[int]) -> None:
    """So that a call by keywords works."""
    same(name="n", level=20, pathname="/p.py", lineno=1, msg="m", args=(1,), exc_info=None, func="f", sinfo="s")


@pytest.mark.parametrize("switch", ["logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"])
def test_switches_of_logging_hold(frozen: list[int], monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    """What is switched off stays out."""
    monkeypatch.setattr(logging, switch, False, raising=False)

    async def main() -> None:
        same("n", 20, "/p.py", 1, "m", (), None)

    asyncio.run(main())


def test_threads_processes_tasks_and_levels_have_their_names(
    frozen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the moment."""

    def call() -> None:
        same("n", 20, "/p.py", 1, "m", (), None)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("a task")
        call()

    thread = threading.Thread(target=call, name="a thread")
    thread.start()
    thread.join(10)
    asyncio.run(main())
    monkeypatch.setattr(logging, "_levelToName", logging._levelToName)
    before = logging.getLevelName(20)
    logging.addLevelName(20, "a level")
    call()
    logging.addLevelName(20, before)
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.process._current_process, "_name", "a process")  # type: ignore[attr-defined]
        call()
        patch.setattr(multiprocessing.process, "_current_process", Named())
        call()


def test_a_patched_class_makes_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patched constructor of the class runs."""
    init = logging.LogRecord.__init__

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.patched = True

    monkeypatch.setattr(logging.LogRecord, "__init__", patched)
    assert make_record("n", 20, "/p.py", 1, "m", (), None).patched  # type: ignore[attr-defined]


def test_paths_kept_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is made at run time does not fill the memory."""
    monkeypatch.setattr(record_factory.modules, "most", 10)
    for number in range(100):
        assert make_record("n", 20, f"/made/{number}.py", 1, "m", (), None).module == str(number)
    assert len(record_factory.modules) <= 10


# --- users ---


@pytest.mark.usefixtures("factory")
def test_a_factory_of_the_program_stays() -> None:
    """It is not taken away."""

    def own(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return logging.LogRecord(*args, **kwargs)

    logging.setLogRecordFactory(own)
    install_factory()
    assert logging.getLogRecordFactory() is own


@pytest.mark.usefixtures("factory")
def test_a_record_of_an_unknown_python_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its LogRecord has other attributes, that makes the records."""
    monkeypatch.setattr(record_factory, "is_known", False)
    install_factory()
    assert logging.getLogRecordFactory() is logging.LogRecord


def worker() -> None:
    """Log with the factory that is there."""
    logging.getLogger("factory").info("%s", logging.getLogRecordFactory() is make_record)


@pytest.mark.usefixtures("factory")
def test_a_server_uses_it_in_all_processes_and_puts_the_old_one_back(stdlib_context: Any, log: Path) -> None:
    """It is there while a server runs, in workers of each start method, and what was there before is afterwards."""
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        assert logging.getLogRecordFactory() is make_record
        with mplog.LogServer(log.with_name("other.log"), level="INFO"):
            assert logging.getLogRecordFactory() is make_record
        assert logging.getLogRecordFactory() is make_record
        process = mplog.Process(target=worker, server=server, context=stdlib_context)
        process.start()
        process.join(60)
    assert logging.getLogRecordFactory() is logging.LogRecord
    assert log.read_text().splitlines() == ["True"]


@pytest.mark.processes
@pytest.mark.usefixtures("factory")
def test_a_factory_that_was_set_meanwhile_stays(log: Path) -> None:
    """A program may have set another one on top, which calls the one that was there."""
    with mplog.LogServer(log, level="INFO", format="%(message)s %(made)s"):
        before = logging.getLogRecordFactory()

        def own(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = before(*args, **kwargs)
            record.made = "by hand"
            return record

        logging.setLogRecordFactory(own)
        logging.info("text")
    assert logging.getLogRecordFactory() is own
    assert log.read_text().splitlines() == ["text by hand"]


@pytest.mark.processes
def test_a_class_patched_before_is_seen(tmp_path: Path) -> None:
    """Whatever was there first."""
    done = run_script(
        tmp_path,
        """
        import logging
        init = logging.LogRecord.__init__

        def patched(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.patched = True

        logging.LogRecord.__init__ = patched
        from mplog.record.factory import make_record
        assert make_record("n", 20, "/p.py", 1, "m", (), None).patched
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
