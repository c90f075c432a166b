"""Every way to start a worker, with every start method, of both libraries."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from oracle import verdict
from process_classes import Job, MultiprocessJob
from scripts import FORMAT, LINE
from start_methods import LIBRARIES, START_METHODS

import mplog

TASKS = 6


@pytest.fixture(params=itertools.product(START_METHODS, LIBRARIES), ids="-".join)
def context(request: pytest.FixtureRequest) -> Any:
    """A context of each start method of each library."""
    start_method, library = request.param
    return LIBRARIES[library].get_context(start_method)


@pytest.fixture
def server(log: Path) -> Iterator[mplog.LogServer]:
    """A server, started by a process that has loggers with levels of every kind."""
    jobs.set_levels()
    with mplog.LogServer(log, format=FORMAT) as server:
        yield server
    del logging._levelToName[25]
    del logging._nameToLevel["NOTICE"]


def check(server: mplog.LogServer, log: Path, directory: Path, names: dict[int, str]) -> None:
    """Compare the log with what the processes of these pids and names were to log."""
    server.stop()
    result = verdict(log, directory)
    assert result.clean, result
    assert result.acknowledged == result.written
    written: dict[int, dict[str, list[str]]] = defaultdict(lambda: {name: [] for name in jobs.LOGGERS})
    seen = set()
    for line in log.read_text().splitlines():
        found = LINE.fullmatch(line)
        assert found, line
        pid = int(found["pid"])
        assert found["process_name"] == names[pid], line
        seen.add(pid)
        if found["logger"] == "producer":
            assert f"producer={pid} " in found["message"]
        else:
            written[pid][found["logger"]].append(found["level"])
    assert seen and seen <= set(names)
    assert dict(written) == dict.fromkeys(seen, jobs.WRITTEN)


def run_pool(pool: Any, directory: Path) -> dict[int, str]:
    """Have a Pool work, and return its processes' names by pid."""
    with pool:
        names = {process.pid: process.name for process in pool._pool}
        pids = pool.map(functools.partial(jobs.work_again, str(directory)), range(TASKS), 1)
        pool.close()
        pool.join()
    assert set(pids) <= set(names)
    assert all("PoolWorker-" in name for name in names.values())
    return names


def run_executor(executor: Any, directory: Path) -> dict[int, str]:
    """Have an executor work, and return its processes' names by pid."""
    with executor:
        futures = [executor.submit(jobs.work, str(directory)) for _ in range(TASKS)]
        names = {process.pid: process.name for process in executor._processes.values()}
        assert {future.result(60) for future in futures} <= set(names)
    return names


def run_processes(processes: list[Any]) -> dict[int, str]:
    """Run the processes at the same time, and return their names by pid."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return {process.pid: process.name for process in processes}


def plain_pool(context: Any, server: mplog.LogServer, directory: Path) -> dict[int, str]:
    return run_pool(context.Pool(2, initializer=server.initializer), directory)


def mplog_pool(context: Any, server: mplog.LogServer, directory: Path) -> dict[int, str]:
    return run_pool(mplog.Pool(2, context=context, server=server), directory)


def plain_process(context: Any, server: mplog.LogServer, directory: Path) -> dict[int, str]:
    arguments = (server.initializer, str(directory))
    named = context.Process(target=jobs.initialize_and_work, args=arguments, name="a name of its own: 100 %s")
    return run_processes([context.Process(target=jobs.initialize_and_work, args=arguments), named])


def mplog_process(context: Any, server: mplog.LogServer, directory: Path) -> dict[int, str]:
    named = mplog.Process(target=jobs.work, args=(str(directory),), name="Ünïcode", context=context, server=server)
    unnamed = mplog.Process(
        target=jobs.work, kwargs={"directory": str(directory)}, context=context, server=server, daemon=True
    )
    return run_processes([named, unnamed])


def attached_process(context: Any, server: mplog.LogServer, directory: Path) -> dict[int, str]:
    arguments = (server.queue.directory, str(directory))
    return run_processes([context.Process(target=jobs.attach_and_work, args=arguments) for _ in range(2)])


@pytest.mark.parametrize("way", [plain_pool, mplog_pool, plain_process, mplog_process, attached_process])
def test_every_record_of_a_worker_is_there_as_it_was_logged(
    context: Any, server: mplog.LogServer, log: Path, tmp_path: Path, way: Callable[..., dict[int, str]]
) -> None:
    """Each record is there once, in order, under its process's name and pid, at the levels of the parent."""
    check(server, log, tmp_path, way(context, server, tmp_path))


@pytest.mark.parametrize("subclass", [Job, MultiprocessJob])
@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_process_class_with_a_run_of_its_own_logs(
    start_method: str, server: mplog.LogServer, log: Path, tmp_path: Path, subclass: Any
) -> None:
    """A subclass of Process that overrides run() logs as any other worker."""
    context = subclass.library.get_context(start_method)
    processes = [subclass(str(tmp_path), context=context, server=server) for _ in range(2)]
    check(server, log, tmp_path, run_processes(processes))


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "mplog"])
def test_every_record_of_an_executor_is_there_as_it_was_logged(
    stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path, wrapped: bool
) -> None:
    """The same for the workers of a ProcessPoolExecutor, the stdlib's and mplog's."""
    if wrapped:
        executor: Any = mplog.ProcessPoolExecutor(2, stdlib_context, server=server)
    else:
        executor = concurrent.futures.ProcessPoolExecutor(2, stdlib_context, initializer=server.initializer)
    check(server, log, tmp_path, run_executor(executor, tmp_path))


def test_every_record_of_an_attached_program_is_there_as_it_was_logged(
    server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """The same for programs that were started by other means, and found the server through the environment."""
    code = "import sys, jobs; jobs.attach_and_work(None, sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(tmp_path)]
    programs = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [program.wait(60) for program in programs] == [0, 0]
    check(server, log, tmp_path, {program.pid: "MainProcess" for program in programs})
