"""`mplog.Pool` and its like in scripts, prompts and notebooks, whose functions no worker can import."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import sys
import textwrap
from pathlib import Path
from typing import Any

import jobs
import pytest
from start_methods import START_METHODS

import mplog

pytestmark = pytest.mark.processes


PROGRAM = """
import functools, logging, multiprocessing, sys
import mplog

offset = 10
current = None

class Task:
    def __init__(self, number):
        self.number = number
    def __call__(self, _):
        return self.number + offset

def initialize(value):
    global current
    current = value
    logging.getLogger("init").info("initialized")

def work(number, more=0):
    logging.getLogger("work").info("number %d", number)
    return number + offset + more

if __name__ == "__main__":
    factor = 3

    def guarded(number):
        return work(number) * factor

    class Guarded(Task):
        pass

    path, start_method = sys.argv[1:]
    context = multiprocessing.get_context(start_method)
    with mplog.LogServer(path, level="INFO", format="%(processName)s | %(message)s") as server:
        with mplog.Pool(1, initialize, (1000,), context=context, server=server) as pool:
            assert pool.map(work, [1, 2]) == [11, 12]
            assert pool.map(guarded, [1, 2]) == [33, 36]
            assert pool.map(lambda number: work(number) + factor, [1]) == [14]
            assert pool.map(functools.partial(guarded), [1]) == [33]
            assert pool.map(functools.partial(work, more=1), [1]) == [12]
            assert pool.map(Task(5), [0]) == [15]
            assert pool.map(Guarded(5), [0]) == [15]
            factor = 4
            assert pool.map(lambda number: number * factor, [1]) == [4]
        with mplog.ProcessPoolExecutor(1, context, lambda: initialize(1), server=server) as executor:
            assert list(executor.map(guarded, [1])) == [44]
            assert executor.submit(lambda: work(1)).result(60) == 11
        process = mplog.Process(target=lambda: logging.info("in a process"), context=context, server=server)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        initializer = server.initializer.then(lambda: logging.info("first")).then(initialize, 5).then(guarded, 8)
        with context.Pool(1, initializer) as pool:
            assert pool.map(abs, [-1]) == [1]
    print("done")
"""

WRITTEN_BY_PROGRAM = [
    *("initialized", "number 1", "number 2", "number 1", "number 2", "number 1", "number 1", "number 1"),
    *("initialized", "number 1", "number 1"),
    "in a process",
    *("first", "initialized", "number 8"),
]


@pytest.mark.parametrize("how", ["script", "command"])
def test_functions_of_the_main_program_work_in_workers(how: str, start_method: str, log: Path, tmp_path: Path) -> None:
    """Functions and classes of a script, under its main guard, too, and of `python -c` are tasks and initializers."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = jobs.run_python([*([str(script)] if how == "script" else ["-c", PROGRAM]), str(log), start_method])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")
    assert jobs.messages_in(log) == WRITTEN_BY_PROGRAM


def test_functions_of_a_program_from_stdin_work_in_workers(log: Path) -> None:
    """The same for a program that is read from a pipe; with fork, since the stdlib cannot spawn from one."""
    done = jobs.run_python(["-", str(log), "fork"], PROGRAM)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")
    assert jobs.messages_in(log) == WRITTEN_BY_PROGRAM


PROMPT = """
import logging, multiprocessing, sys, mplog
context = multiprocessing.get_context(sys.argv[2])
server = mplog.LogServer(sys.argv[1], level="INFO", format="%(processName)s | %(message)s").start()
offset = 10
def work(number):
    logging.info("number %d", number)
    return number + offset

pool = mplog.Pool(1, lambda word: logging.info(word), ("initialized",), context=context, server=server)
print(pool.map(work, [1, 2]))
print(pool.map(lambda number: work(number) + 1, [1, 2]))
pool.close(); pool.join()
stats = server.stop()
"""


def test_functions_of_a_prompt_work_in_workers(start_method: str, log: Path) -> None:
    """Functions typed at an interactive prompt work in workers of every start method."""
    done = jobs.run_python(["-i", "-q", "-", str(log), start_method], PROMPT)
    assert "Traceback" not in done.stderr
    assert done.stdout == "[11, 12]\n[12, 13]\n"
    assert jobs.messages_in(log) == ["initialized", "number 1", "number 2", "number 1", "number 2"]


GLOBALS = """
import multiprocessing, sys
import mplog

connection = None

def connect(where):
    global connection
    connection = where

def use(_):
    return connection

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    with mplog.LogServer(sys.argv[1]) as server:
        with mplog.Pool(1, connect, ("db",), context=context, server=server) as pool:
            print(pool.map(use, [0]), pool.map(lambda number: use(number), [0]))
        with context.Pool(1, server.initializer.then(connect, "db")) as pool:
            print(pool.map(use, [0]))
"""


def test_a_global_that_an_initializer_sets_is_there_in_tasks(start_method: str, log: Path, tmp_path: Path) -> None:
    """`global connection` in an initializer of a script is seen by its functions, also when a lambda calls them."""
    script = tmp_path / "program.py"
    script.write_text(GLOBALS)
    done = jobs.run_python([str(script), str(log), start_method])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "['db'] ['db']\n['db']\n")


@pytest.mark.parametrize(
    "fork",
    [
        """process = mplog.Process(target=logging.info, args=["there"], server=server)
            process.start()
            process.join()""",
        """with mplog.ProcessPoolExecutor(2, server=server) as executor:
                executor.submit(logging.info, "there").result()""",
        """with mplog.Pool(2, server=server) as pool:
                pool.map(logging.info, ["there"])""",
        """if not (pid := os.fork()):
                logging.info("there")
                os._exit(0)
            os.waitpid(pid, 0)""",
    ],
)
def test_forking_warns_of_no_thread_of_ours(tmp_path: Path, fork: str) -> None:
    """A program with a server forks workers without the DeprecationWarning of Python 3.12 on forks with threads."""
    # One after the other in one program would be warned of: a thread of a pool may not quite have ended.
    program = f"""
        import logging, multiprocessing, os, sys
        import mplog

        with mplog.LogServer(sys.argv[1], level="INFO") as server:
            logging.info("here")
            server.flush()
            server.stats()
            {fork}
    """
    done = jobs.run_python(["-W", "always", "-c", textwrap.dedent(program), str(tmp_path / "app.log")])
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "app.log").read_text().splitlines()) == 2


the_server: Any = None


def start_daemon() -> str:
    """Runs in a daemonic worker: start a process, which the stdlib forbids."""
    try:
        multiprocessing.Process(target=abs, args=[-1]).start()
    except AssertionError as error:
        expected = str(error)
    try:
        mplog.Process(target=abs, args=[-1], server=the_server).start()
    except AssertionError as error:
        assert str(error) == expected
        return expected
    return "started"


def test_a_daemonic_worker_starts_no_process(server: mplog.LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemonic worker that starts an mplog.Process fails as in the stdlib."""
    monkeypatch.setattr(sys.modules[__name__], "the_server", server)
    context = multiprocessing.get_context("fork")
    with mplog.Pool(1, context=context, server=server) as pool:
        assert pool.apply(start_daemon) == "daemonic processes are not allowed to have children"


@pytest.mark.parametrize("start_method", START_METHODS)
def test_workers_that_share_a_lock_and_a_value_work(start_method: str, server: mplog.LogServer) -> None:
    """Locks and values, which can only be inherited, still go through initargs and args."""
    context = multiprocessing.get_context(start_method)
    value = context.Value("i", 0)
    with mplog.Pool(1, jobs.share, (value,), context=context, server=server) as pool:
        pool.apply(jobs.increment)
    process = mplog.Process(target=jobs.increment_value, args=(value,), context=context, server=server)
    process.start()
    process.join(60)
    with mplog.ProcessPoolExecutor(1, context, jobs.share, (value,), server=server) as executor:
        executor.submit(jobs.increment).result(60)
    assert value.value == 3
