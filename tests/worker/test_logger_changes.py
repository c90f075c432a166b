"""What changes between two calls of `mplog.Logger` from one place: names, threads, processes, tasks, the clock."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
import threading
import time
import weakref

import pytest
from sent import Sent, Talking


def test_renamed_threads_and_processes_are_seen(sent: Sent) -> None:
    """A new name of the thread or the process is in the next record."""
    thread, process = threading.current_thread(), multiprocessing.current_process()
    names = thread.name, process.name

    def call(log: logging.Logger) -> None:
        for name in ("one", "two", names[0]):
            thread.name = name
            log.info("x")
        for name in ("three", "four", names[1]):
            process.name = name
            log.info("x")

    records = sent.as_stdlib(call)
    assert [record["threadName"] for record in records] == ["one", "two", *[names[0]] * 4]
    assert [record["processName"] for record in records] == [*[names[1]] * 3, "three", "four", names[1]]


def test_threads_are_told_apart(sent: Sent) -> None:
    """Each record has the id and the name of its thread, though ids are used again, and some threads have no object."""
    import _thread

    expected = []
    done = threading.Semaphore(0)

    def call() -> None:
        expected.append((threading.get_ident(), threading.current_thread().name))
        sent.logger.info("x")
        done.release()

    for number in range(30):
        thread = threading.Thread(target=call, name=f"thread {number}")
        thread.start()
        thread.join(30)
        assert done.acquire(timeout=30)
    _thread.start_new_thread(call, ())
    assert done.acquire(timeout=30)
    assert [(record["thread"], record["threadName"]) for record in sent.records()] == expected
    assert sent.straight == 31


def test_a_thread_that_has_ended_is_not_kept(sent: Sent) -> None:
    """The logger holds on to no thread, nor to what is in it."""
    thread = threading.Thread(target=sent.logger.info, args=("x",))
    thread.start()
    thread.join(30)
    reference = weakref.ref(thread)
    del thread
    assert reference() is None


def log_once(log: logging.Logger) -> None:
    """The single place from which a process and its children log."""
    log.info("x")


@pytest.mark.processes
def test_a_forked_process_is_seen(sent: Sent) -> None:
    """After os.fork() and in a forked Process, a place that has logged before has the new pid and name."""
    log_once(sent.logger)
    pid = os.fork()
    if not pid:
        try:
            log_once(sent.logger)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    process = multiprocessing.get_context("fork").Process(target=log_once, args=(sent.logger,), name="forked")
    process.start()
    process.join(30)
    log_once(sent.logger)
    seen = [(record["process"], record["processName"]) for record in sent.records()]
    own = (os.getpid(), multiprocessing.current_process().name)
    assert seen == [own, (pid, own[1]), (process.pid, "forked"), own]


def test_tasks_of_asyncio_are_seen(sent: Sent) -> None:
    """From Python 3.12 on, each record has the name of its task, also a new one."""

    def call(log: logging.Logger) -> None:
        async def work(name: str) -> None:
            for step in range(2):
                log_once(log)
                await asyncio.sleep(0)
                task = asyncio.current_task()
                assert task is not None
                task.set_name(f"{name} {step}")

        async def main() -> None:
            await asyncio.gather(*(asyncio.create_task(work(name), name=name) for name in ("a", "b")))

        log_once(log)
        asyncio.run(main())
        log_once(log)

    names = [record.get("taskName") for record in sent.as_stdlib(call)]
    assert names == ([None, "a", "b", "a 0", "b 0", None] if sys.version_info >= (3, 12) else [None] * 6)


def test_names_of_levels_are_seen(sent: Sent) -> None:
    """addLevelName() acts from the next call on."""
    names = logging.getLevelName(20), logging._levelToName.get(33)

    def call(log: logging.Logger) -> None:
        for name in ("ONE", "TWO"):
            logging.addLevelName(20, name)
            logging.addLevelName(33, name)
            log.info("x")
            log.log(33, "x")
        logging.addLevelName(20, names[0])
        del logging._levelToName[33]
        log.log(33, "x")

    try:
        seen = [record["levelname"] for record in sent.as_stdlib(call)]
    finally:
        logging._nameToLevel.pop("ONE", None)
        logging._nameToLevel.pop("TWO", None)
    assert seen == ["ONE", "ONE", "TWO", "TWO", "Level 33"]


def test_a_logger_that_changes_its_name_is_seen(sent: Sent) -> None:
    """The name is the one that the logger has."""

    def call(log: logging.Logger) -> None:
        for name in ("other", "base.tested.logger"):
            log.name = name
            log.info("x")

    assert [record["name"] for record in sent.as_stdlib(call)] == ["other", "base.tested.logger"]


@pytest.mark.parametrize("details", [True, False])
def test_a_clock_set_by_a_test_is_that_of_the_records(
    sent: Sent, monkeypatch: pytest.MonkeyPatch, details: bool
) -> None:
    """A program that replaces time.time() sees it in records, as with the stdlib."""
    sent.queue.details = details
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    sent.logger.info("text")
    assert sent.straight == 1
    assert sent.queue.get(timeout=10).created == 1_700_000_000.0


def test_times_are_those_of_the_call(sent: Sent) -> None:
    """The times of a record are consistent, and taken before its message is formatted."""
    before = time.time()
    sent.logger.info("outer %s", Talking())
    after = time.time()
    inner, outer = sent.queue.get(timeout=10), sent.queue.get(timeout=10)
    assert sent.straight == 2
    assert before <= outer.created <= inner.created <= after
    for record in (inner, outer):
        assert record.msecs == int(record.msecs)
        assert abs((record.created * 1000) % 1000 - record.msecs) < 1.001 or record.msecs == 0
        started = logging._startTime / (1e9 if sys.version_info >= (3, 13) else 1)  # type: ignore[attr-defined]
        assert abs(record.relativeCreated - (record.created - started) * 1000) < 1
