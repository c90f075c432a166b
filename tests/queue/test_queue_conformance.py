"""CPython's own tests of multiprocessing.Queue, run against LogQueue under every start method."""

from __future__ import annotations

import multiprocessing
import sys
import unittest
from typing import Any

import pytest
from start_methods import START_METHODS

from mplog import LogQueue

cpython = pytest.importorskip(
    "test._test_multiprocessing",
    reason="this Python comes without the tests of its standard library",
    exc_type=ImportError,
)

# The tests of CPython leave descriptors to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

#: The tests that cannot hold for a LogQueue, and why. Each has its counterpart in test_queue.py.
EXCEPTIONS = {
    "test_put": "needs a queue that is full after 6 objects; the bound of a LogQueue is in bytes",
    "test_task_done": "is a test of JoinableQueue",
    "test_queue_feeder_donot_stop_onexc": "needs put() to take what does not pickle; with no feeder thread, it raises",
    "test_queue_feeder_on_queue_feeder_error": "is a test of a hook of the feeder thread, which there is not",
    "test_closed_queue_empty_exceptions": "needs close() to leave an unused queue open; here it always closes",
}

NAMES = [name for name in vars(cpython._TestQueue) if name.startswith("test_")]


class LogQueueTests(cpython._TestQueue):  # type: ignore[misc, name-defined]
    """The tests, with what their classes are given in CPython's own run."""

    TYPE = "processes"
    Queue = staticmethod(LogQueue)


class ForkTests(LogQueueTests, unittest.TestCase):
    """Under fork."""

    __test__ = False
    Process = multiprocessing.get_context("fork").Process
    Event = staticmethod(multiprocessing.get_context("fork").Event)


class SpawnTests(LogQueueTests, unittest.TestCase):
    """Under spawn."""

    __test__ = False
    Process = multiprocessing.get_context("spawn").Process
    Event = staticmethod(multiprocessing.get_context("spawn").Event)


class ForkserverTests(LogQueueTests, unittest.TestCase):
    """Under forkserver."""

    __test__ = False
    Process = multiprocessing.get_context("forkserver").Process
    Event = staticmethod(multiprocessing.get_context("forkserver").Event)


CASES = {"fork": ForkTests, "spawn": SpawnTests, "forkserver": ForkserverTests}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EXCEPTIONS])
@pytest.mark.parametrize("start_method", START_METHODS)
def test_conforms(start_method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LogQueue passes CPython's own test."""
    made: list[LogQueue] = []

    class Counted(LogQueue):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    # Some of the tests ask multiprocessing itself for a queue.
    monkeypatch.setattr(multiprocessing, "Queue", Counted)
    # One of them imports a module that makes a queue: it must do so each time.
    monkeypatch.delitem(sys.modules, "imported_by_an_imported_module", raising=False)
    case = CASES[start_method](name)
    case.Queue = Counted
    result = unittest.TestResult()
    case.run(result)
    assert (result.testsRun, result.skipped) == (1, [])
    assert result.wasSuccessful(), "\n".join(text for _, text in result.errors + result.failures)
    assert made, "the test has not used a LogQueue"
    made.clear()


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception_is_one(name: str) -> None:
    """Each exception names a test that CPython has in some version, with a reason."""
    known = {*NAMES, "test_closed_queue_empty_exceptions"}  # which is new in 3.13
    assert name in known
    assert EXCEPTIONS[name]
