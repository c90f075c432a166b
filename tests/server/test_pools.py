"""`mplog.Pool`, `mplog.ProcessPoolExecutor`, `mplog.Process`: the stdlib's, with a server."""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import logging
import multiprocessing
import multiprocessing.pool
import operator
import os
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import multiprocess
import pytest
from oracle import wait_until
from process_classes import Job, MultiprocessJob
from start_methods import library_of

import mplog

pytestmark = pytest.mark.processes

OURS = ["server", "log"]


# --- signatures ---


def parameters(function: Callable[..., object]) -> dict[str, tuple[Any, Any]]:
    """Return name, kind and default of each parameter."""
    return {name: (each.kind, each.default) for name, each in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        (mplog.Pool, multiprocessing.pool.Pool, OURS),
        # max_tasks_per_child is there from Python 3.11 on; with 3.10 it is accepted here, and refused by the stdlib.
        (
            mplog.ProcessPoolExecutor,
            concurrent.futures.ProcessPoolExecutor,
            (["max_tasks_per_child"] if sys.version_info < (3, 11) else []) + OURS,
        ),
        # The stdlib has its context not as a parameter but as a class of each context.
        (mplog.Process, multiprocessing.Process, ["context", *OURS]),
    ],
)
def test_the_signature_is_the_stdlib_s(ours: Any, theirs: Any, more: list[str]) -> None:
    """Each class has the stdlib's parameters in their order, and its own by keyword only."""
    own, stdlib = parameters(ours), parameters(theirs)
    assert [name for name in own if name not in stdlib] == more
    assert {name: own[name] for name in stdlib} == stdlib
    assert [name for name in own if name in stdlib] == list(stdlib)
    assert all(own[name][0] is inspect.Parameter.KEYWORD_ONLY for name in more)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mplog.Pool, multiprocessing.pool.Pool),
        (mplog.ProcessPoolExecutor, concurrent.futures.ProcessPoolExecutor),
        (mplog.Process, multiprocessing.Process),
    ],
)
def test_every_method_has_the_stdlib_s_signature(ours: Any, theirs: Any) -> None:
    """A method that is overridden takes what the stdlib's takes."""
    for name, method in inspect.getmembers(theirs, inspect.isfunction):
        if not name.startswith("_"):
            assert parameters(getattr(ours, name)) == parameters(method), name


def test_an_argument_that_this_python_does_not_know_is_refused_as_by_the_stdlib(server: mplog.LogServer) -> None:
    """max_tasks_per_child works where the stdlib has it, and is a TypeError elsewhere."""
    if sys.version_info < (3, 11):
        with pytest.raises(TypeError, match="max_tasks_per_child"):
            mplog.ProcessPoolExecutor(1, max_tasks_per_child=1, server=server)
    else:
        context = multiprocessing.get_context("spawn")
        with mplog.ProcessPoolExecutor(1, context, max_tasks_per_child=1, server=server) as executor:
            assert executor.submit(os.getpid).result(60) != executor.submit(os.getpid).result(60)


# --- which server ---

MAKERS = [mplog.Pool, mplog.ProcessPoolExecutor, mplog.Process]


@pytest.mark.parametrize("make", MAKERS)
def test_neither_server_nor_log_is_an_error(make: Any) -> None:
    """Either a server or a log must be given."""
    with pytest.raises(TypeError, match="give either server=, a running LogServer, or log=, a path"):
        make()


@pytest.mark.parametrize("make", MAKERS)
def test_server_and_log_is_an_error(make: Any, server: mplog.LogServer, tmp_path: Path) -> None:
    """Server and log cannot both be given; nothing is started for the log."""
    with pytest.raises(TypeError, match="give either"):
        make(server=server, log=tmp_path / "other.log")
    assert not (tmp_path / "other.log").exists()


@pytest.mark.parametrize("make", MAKERS)
def test_a_server_that_does_not_run_is_an_error(make: Any, tmp_path: Path) -> None:
    """A server that was given must run."""
    with pytest.raises(mplog.ServerStateError, match="not running"):
        make(server=mplog.LogServer(tmp_path / "app.log"))


def test_an_executor_refuses_a_context_of_multiprocess(server: mplog.LogServer) -> None:
    """The stdlib's executor does not work with multiprocess; the error says what does."""
    with pytest.raises(TypeError, match=r"mplog\.Pool\(context="):
        mplog.ProcessPoolExecutor(1, multiprocess.get_context("spawn"), server=server)


@pytest.mark.parametrize(("subclass", "library"), [(Job, multiprocess), (MultiprocessJob, multiprocessing)])
def test_a_process_class_of_one_library_refuses_a_context_of_the_other(
    subclass: Any, library: Any, server: mplog.LogServer
) -> None:
    """A subclass cannot change libraries; the error says what to derive it from."""
    with pytest.raises(TypeError, match=r"derive it from mplog\.Process; for multiprocess, from mplog\.Multi"):
        subclass("", context=library.get_context("spawn"), server=server)


def test_a_process_is_one_of_its_context_s_library(context: Any, server: mplog.LogServer) -> None:
    """The object is a Process of the library of its context, named as that library names it."""
    process = mplog.Process(context=context, server=server)
    assert isinstance(process, library_of(context).process.BaseProcess)
    assert process.name.startswith("Process-")
    assert repr(process).startswith("<Process name='Process-")
    assert process._start_method == context.get_start_method()


# --- a server of its own ---


def stopped(log: Path) -> bool:
    """Whether the logging process of this file has ended and released it."""
    return log.exists() and not list(log.parent.glob(".*.lock"))


def warn(message: str) -> None:
    """Runs in a worker."""
    logging.getLogger("job").warning(message)


def test_a_pool_with_log_stops_its_server_at_the_end_of_with(log: Path) -> None:
    """Leaving the `with` block stops the server, and all is written."""
    root_handlers = logging.getLogger().handlers[:]
    with mplog.Pool(1, log=log) as pool:
        pool.map(warn, ["a", "b"])
        assert not stopped(log)
    assert stopped(log)
    assert [line.split(" | ")[1] for line in log.read_text().splitlines()] == ["a", "b"]
    assert logging.getLogger().handlers == root_handlers


def test_a_pool_with_log_stops_its_server_with_close_and_join(log: Path) -> None:
    """close() and join() stop the server once the workers have ended; what they log last is there."""
    pool = mplog.Pool(1, log=log)
    pool.apply_async(warn, ["a"])
    pool.close()
    assert not stopped(log)
    pool.join()
    assert stopped(log)
    assert log.read_text().endswith("| a\n")


def test_a_pool_with_log_stops_its_server_with_terminate(log: Path) -> None:
    """terminate() stops the server; a later join() finds nothing left to do."""
    pool = mplog.Pool(1, log=log)
    pool.apply(warn, ["a"])
    pool.terminate()
    assert stopped(log)
    pool.join()
    assert log.read_text().endswith("| a\n")


def test_a_pool_with_log_stops_its_server_when_an_exception_leaves_it(log: Path) -> None:
    """An exception in the `with` block stops the server, too."""
    with pytest.raises(ZeroDivisionError), mplog.Pool(1, log=log) as pool:
        pool.apply(operator.truediv, (1, 0))
    assert stopped(log)


def test_an_executor_with_log_stops_its_server_at_the_end_of_with(log: Path) -> None:
    """Leaving the `with` block stops the server, and all is written."""
    with pytest.raises(ZeroDivisionError), mplog.ProcessPoolExecutor(1, log=log) as executor:
        executor.submit(warn, "a").result(60)
        executor.submit(operator.truediv, 1, 0).result(60)
    assert stopped(log)
    assert log.read_text().endswith("| a\n")


def test_an_executor_with_log_stops_its_server_with_shutdown(log: Path) -> None:
    """shutdown() stops the server once the workers have ended; what they log last is there."""
    executor = mplog.ProcessPoolExecutor(1, log=log)
    executor.submit(warn, "a")
    executor.shutdown()
    assert stopped(log)
    assert log.read_text().endswith("| a\n")


def test_an_executor_that_nobody_waits_for_has_its_server_until_the_end_of_the_program(log: Path) -> None:
    """After shutdown(wait=False), tasks go on and their records are written, even if shutdown() is called again."""
    program = """
        import sys, time
        import mplog
        import test_pools

        with mplog.ProcessPoolExecutor(1, log=sys.argv[1]) as executor:
            futures = [executor.submit(test_pools.warn, str(number)) for number in range(100)]
            executor.shutdown(wait=False)
        """
    done = jobs.run_python(["-c", textwrap.dedent(program), str(log)])
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: stopped(log), "the logging process has ended")
    assert jobs.messages_in(log) == [str(number) for number in range(100)]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="executors end their workers themselves from Python 3.14 on")
@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_an_executor_whose_workers_are_ended_loses_nothing(stdlib_context: Any, log: Path, method: str) -> None:
    """What the workers have logged until then is there."""
    with mplog.LogServer(log, level="INFO") as server:
        executor = mplog.ProcessPoolExecutor(1, stdlib_context, server=server)
        executor.submit(warn, "a").result(60)
        (worker,) = executor._processes.values()  # type: ignore[attr-defined]
        getattr(executor, method)()
        worker.join(60)
    first, *others = jobs.messages_in(log)
    # How a process of the forkserver has ended, only the forkserver knows for certain.
    killed = f"mplog: {worker.name} (pid {worker.pid}) was killed by SIGKILL"
    assert (first, [text for text in others if not text.startswith(killed)]) == ("a", [])


def test_a_process_with_log_stops_its_server_when_it_is_joined(context: Any, log: Path) -> None:
    """join() stops the server of a process that has ended, and not of one that has not."""
    gate = context.Event()
    process = mplog.Process(target=jobs.wait_and_warn, args=(gate, "a"), context=context, log=log)
    process.start()
    process.join(0.01)
    assert process.is_alive()
    assert not stopped(log)
    gate.set()
    process.join(60)
    assert stopped(log)
    assert log.read_text().endswith("| a\n")


def test_a_process_with_log_stops_its_server_when_it_is_closed(log: Path) -> None:
    """close() stops the server of a process that was never joined."""
    process = mplog.Process(target=warn, args=["a"], log=log)
    process.start()
    wait_until(lambda: process.exitcode is not None, "the process has ended")
    process.close()
    assert stopped(log)


def test_a_process_with_log_that_cannot_start_stops_its_server(log: Path) -> None:
    """If the process does not start, its server stops."""
    context = multiprocessing.get_context("spawn")
    process = mplog.Process(target=warn, args=[threading.Lock()], context=context, log=log)
    with pytest.raises(TypeError, match="pickle"):
        process.start()
    assert stopped(log)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (mplog.Pool, {"processes": 0}),
        (mplog.Pool, {"initargs": 5, "initializer": print}),
        (mplog.ProcessPoolExecutor, {"max_workers": 0}),
        (mplog.ProcessPoolExecutor, {"initargs": 5, "initializer": print}),
        (mplog.Process, {"group": 1}),
        (mplog.Process, {"daemon": True, "context": object()}),
    ],
)
def test_a_constructor_that_fails_leaves_no_server_behind(make: Any, wrong: dict[str, Any], log: Path) -> None:
    """A wrong argument raises as in the stdlib, and leaves no logging process."""
    handlers = logging.getLogger().handlers[:]
    with pytest.raises((ValueError, TypeError, AssertionError, AttributeError)):
        make(log=log, **wrong)
    assert not list(log.parent.glob(".*.lock"))
    assert logging.getLogger().handlers == handlers


def test_a_server_that_was_given_goes_on(server: mplog.LogServer, log: Path) -> None:
    """Pools, executors and processes do not stop a server that was given with server=."""
    with mplog.Pool(1, server=server) as pool:
        pool.apply(warn, ["pool"])
    with mplog.ProcessPoolExecutor(1, server=server) as executor:
        executor.submit(warn, "executor").result(60)
    process = mplog.Process(target=warn, args=["process"], server=server)
    process.start()
    process.join(60)
    process.close()
    logging.getLogger("parent").warning("parent")
    server.flush()
    assert [line.split(" | ")[1] for line in log.read_text().splitlines()] == ["pool", "executor", "process", "parent"]


# --- tasks ---


class Counter:
    """A callable with a state."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int) -> int:
        self.count += 1
        return self.count

    def add(self, number: int) -> int:
        self.count += number
        return self.count


def test_tasks_of_a_pool_may_be_anything_callable(context: Any, server: mplog.LogServer) -> None:
    """Every method of a Pool takes lambdas, closures, partials, methods and objects under every start method."""
    offset = 10

    def closure(number: int, more: int = 0) -> int:
        return number + offset + more

    with mplog.Pool(1, context=context, server=server) as pool:
        assert pool.apply(lambda: 5) == 5
        assert pool.apply(closure, (1,), {"more": 2}) == 13
        assert pool.map(lambda number: number * offset, range(5), chunksize=2) == [0, 10, 20, 30, 40]
        assert list(pool.imap(closure, range(3))) == [10, 11, 12]
        assert list(pool.imap(closure, range(3), chunksize=2)) == [10, 11, 12]
        assert sorted(pool.imap_unordered(closure, range(3))) == [10, 11, 12]
        assert pool.starmap(closure, [(1, 2), (3, 4)]) == [13, 17]
        assert pool.starmap_async(lambda a, b: a * b, [(1, 2), (3, 4)]).get(60) == [2, 12]
        assert pool.map_async(functools.partial(closure, more=5), [1]).get(60) == [16]
        assert pool.map(Counter(), range(3), 3) == [1, 2, 3]
        assert pool.map(Counter().add, [1, 2], 2) == [1, 3]
        assert pool.map(abs, [-1]) == [1]
        assert pool.map("{:>3}".format, [1]) == ["  1"]


def test_tasks_of_an_executor_may_be_anything_callable(stdlib_context: Any, server: mplog.LogServer) -> None:
    """submit() and map() take lambdas, closures, partials, methods and objects under every start method."""
    offset = 10
    with mplog.ProcessPoolExecutor(1, stdlib_context, server=server) as executor:
        assert executor.submit(lambda number, *, more: number + offset + more, 1, more=2).result(60) == 13
        assert list(executor.map(lambda a, b: a * b + offset, [1, 2], [3, 4])) == [13, 18]
        assert list(executor.map(lambda a: a + offset, range(4), chunksize=3)) == [10, 11, 12, 13]
        assert executor.submit(Counter(), 1).result(60) == 1
        # Named as submit()'s own, and as its wrapper's.
        assert executor.submit(lambda **named: sorted(named), fn=1, self=2, function=3).result(60) == [
            "fn",
            "function",
            "self",
        ]


def test_the_target_of_a_process_may_be_anything_callable(context: Any, server: mplog.LogServer, log: Path) -> None:
    """A Process runs a lambda or a closure under every start method."""
    word = "closure"
    process = mplog.Process(
        target=lambda *args, **named: logging.getLogger("job").info("%s %s %s", word, args, named),
        args=(1, 2),
        kwargs={"three": 3},
        context=context,
        server=server,
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    server.flush()
    assert log.read_text().endswith("| closure (1, 2) {'three': 3}\n")


@pytest.mark.parametrize("make", [multiprocessing.pool.Pool, mplog.Pool])
def test_each_task_has_a_function_object_of_its_own(make: Any, server: mplog.LogServer) -> None:
    """As in the stdlib, a task does not see what an earlier task did to the called object."""
    options = {"server": server} if make is mplog.Pool else {}
    with make(1, **options) as pool:
        assert pool.map(Counter(), range(3), 1) == [1, 1, 1]
        counter = Counter()
        assert [pool.apply(counter.add, (1,)) for _ in range(3)] == [1, 1, 1]


def test_a_function_that_goes_by_value_is_one_function_in_its_worker(server: mplog.LogServer) -> None:
    """A closure is loaded once per worker, so that a cache on it works."""
    loads: list[int] = []

    def remember(number: int) -> int:
        loads.append(number)
        return len(loads)

    context = multiprocessing.get_context("spawn")
    with mplog.Pool(1, context=context, server=server) as pool:
        assert pool.map(remember, range(3), 1) == [1, 2, 3]
    assert loads == []


def raise_it(error: BaseException) -> None:
    """Runs in a worker."""
    raise error


def raise_unpicklable() -> None:
    """Runs in a worker."""

    class LocalError(Exception):
        pass

    raise LocalError("local")


def test_exceptions_in_tasks_arrive(context: Any, server: mplog.LogServer) -> None:
    """An exception of a task is raised by get(), with the worker's traceback as its cause."""
    with mplog.Pool(1, context=context, server=server) as pool:
        with pytest.raises(KeyError, match="lost") as caught:
            pool.apply(raise_it, [KeyError("lost")])
        assert "in raise_it" in str(caught.value.__cause__)
        with pytest.raises(ZeroDivisionError):
            pool.map(lambda number: 1 // number, [1, 0])
        with pytest.raises(Exception, match=r"LocalError|local"):
            pool.apply(raise_unpicklable)
        assert pool.apply(abs, [-1]) == 1


class Unloadable:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return raise_it, (LookupError("not here"),)

    def __call__(self) -> None:
        """Never reached."""


@pytest.mark.parametrize("make", [mplog.Pool, mplog.ProcessPoolExecutor])
def test_a_task_that_cannot_be_loaded_in_the_worker_fails_alone(make: Any, server: mplog.LogServer) -> None:
    """If a worker cannot load a function, that task fails; the worker goes on."""
    with make(1, server=server) as pool:
        submit = pool.submit if make is mplog.ProcessPoolExecutor else pool.apply_async
        task = submit(Unloadable())
        with pytest.raises(LookupError, match="not here"):
            task.result(60) if make is mplog.ProcessPoolExecutor else task.get(60)
        assert pool.submit(abs, -1).result(60) == 1 if make is mplog.ProcessPoolExecutor else pool.apply(abs, [-1])


@pytest.mark.parametrize("make", [mplog.Pool, mplog.ProcessPoolExecutor])
def test_a_task_that_cannot_be_pickled_fails_alone(make: Any, server: mplog.LogServer) -> None:
    """If a closure holds something that does not pickle, that task fails and says why."""
    lock = threading.Lock()
    with make(1, server=server) as pool:
        task = (pool.submit if make is mplog.ProcessPoolExecutor else pool.apply_async)(lambda: lock)
        with pytest.raises(TypeError, match="pickle"):
            task.result(60) if make is mplog.ProcessPoolExecutor else task.get(60)


def test_callbacks_are_called(server: mplog.LogServer) -> None:
    """Callbacks and error callbacks get results and errors."""
    results: list[Any] = []
    with mplog.Pool(1, server=server) as pool:
        pool.apply_async(lambda: 1, callback=results.append).wait(60)
        pool.map_async(abs, [-2], None, results.append).wait(60)
        pool.apply_async(raise_it, [KeyError()], {}, None, lambda error: results.append(type(error))).wait(60)
    assert results == [1, [2], KeyError]


def test_new_workers_of_a_pool_log(server: mplog.LogServer, log: Path) -> None:
    """With maxtasksperchild=1 each task has a worker of its own, and each logs."""
    with mplog.Pool(2, maxtasksperchild=1, context=multiprocessing.get_context("forkserver"), server=server) as pool:
        pool.map(warn, map(str, range(8)), 1)
    server.flush()
    lines = [line.split(" | ") for line in log.read_text().splitlines()]
    assert sorted(message for _, message in lines) == sorted(map(str, range(8)))
    assert len({sender for sender, _ in lines}) == 8


# --- initializers ---

connection: Any = None


def connect(*arguments: Any) -> None:
    """Runs in a worker: the usual idiom."""
    global connection
    connection = arguments
    logging.getLogger("job").info("connected %s", arguments)


def use(_: object) -> Any:
    """Runs in a worker: use what `connect` has set."""
    return connection


def test_a_pool_chains_the_user_s_initializer(context: Any, server: mplog.LogServer, log: Path) -> None:
    """The initializer gets its arguments, may log, and sets globals that the tasks see."""
    with mplog.Pool(1, connect, ("db", 5), context=context, server=server) as pool:
        assert pool.map(use, [None]) == [("db", 5)]
    server.flush()
    assert log.read_text().endswith("| connected ('db', 5)\n")
    assert connection is None


def test_an_executor_chains_the_user_s_initializer(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """The same for an executor, whose initializer is a closure, too."""
    text = "closed over"
    with mplog.ProcessPoolExecutor(1, stdlib_context, connect, ("db", 5), server=server) as executor:
        assert executor.submit(use, None).result(60) == ("db", 5)
    first = mplog.ProcessPoolExecutor(
        1, stdlib_context, lambda more: logging.getLogger("job").info(text + more), ("!",), server=server
    )
    with first as executor:
        executor.submit(abs, -1).result(60)
    server.flush()
    assert [line.split(" | ")[1] for line in log.read_text().splitlines()] == ["connected ('db', 5)", "closed over!"]


def test_an_initializer_that_fails_is_in_the_log(server: mplog.LogServer, log: Path) -> None:
    """If its initializer raises, an executor is broken, as in the stdlib; the log has what the stdlib logs of it."""
    with mplog.ProcessPoolExecutor(1, initializer=raise_it, initargs=(KeyError("x"),), server=server) as executor:
        future = executor.submit(abs, -1)
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            future.result(60)
    server.flush()
    assert "concurrent.futures | Exception in initializer:\nTraceback" in log.read_text()
