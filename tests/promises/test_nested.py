"""Workers of workers, and many workers: faults 18 and 31."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from floods import log_as, start_pool
from oracle import Producer, acknowledged, verdict, wait_until
from start_methods import library_of

import mplog

# --- workers of workers ---


def test_a_process_that_starts_a_pool(context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Parent, two processes and the pool of each: three levels, and each record of each is there."""
    method = context.get_start_method()
    arguments = (server.initializer, str(tmp_path), library_of(context).__name__, method)
    processes = [context.Process(target=start_pool, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    log_as(str(tmp_path), "first")
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == result.acknowledged == 10 + 2 * 2 + 2 * 4 * 10


the_server: Any = None


def start_wrappers(directory: str) -> None:
    """Runs in a forked Process, which has the server itself: start each of mplog's wrappers."""
    log_as(directory, "process")
    with mplog.Pool(1, context=multiprocessing.get_context("fork"), server=the_server) as pool:
        pool.map(functools.partial(log_as, directory), ["pool"])
    with mplog.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), server=the_server) as executor:
        executor.submit(lambda: log_as(directory, "executor")).result(60)
    process = mplog.Process(
        target=lambda: log_as(directory, "grandchild"),
        context=multiprocessing.get_context("spawn"),
        server=the_server,
    )
    process.start()
    process.join(60)
    the_server.stop()  # not ours: does nothing


def test_a_forked_process_starts_wrappers(
    server: mplog.LogServer, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked worker gives the server that it has inherited to pools and processes of its own."""
    monkeypatch.setattr(sys.modules[__name__], "the_server", server)
    context = multiprocessing.get_context("fork")
    process = mplog.Process(target=start_wrappers, args=(str(tmp_path),), context=context, server=server)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    log_as(str(tmp_path), "parent")
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == result.acknowledged == 50


def start_program(directory: str, queue_directory: str) -> int:
    """Runs in a daemonic worker, which may start a program but no Process."""
    log_as(directory, f"daemonic-{os.getpid()}")
    code = "import sys, mplog, floods; mplog.attach(sys.argv[2]); floods.log_as(sys.argv[1], sys.argv[3])"
    command = [sys.executable, "-c", code, directory, queue_directory, f"program-of-{os.getpid()}"]
    return subprocess.run(command, env=jobs.environment(), timeout=60).returncode


def test_a_daemonic_worker_starts_a_program(context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """The worker of a Pool logs, and so does a program that it starts."""
    with mplog.Pool(1, context=context, server=server) as pool:
        assert pool.apply(start_program, (str(tmp_path), server.queue.directory)) == 0
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == result.acknowledged == 20


def leave_a_child(initializer: Any, directory: str, gate: str) -> None:
    """Runs in a worker: end, and leave a child that logs when the gate is open."""
    initializer()
    log_as(directory, "middle")
    if os.fork() == 0:
        os.setsid()
        producer = Producer(directory, "orphan")
        producer.log()
        with open(gate, "rb") as file:  # waits until the test opens the other end
            file.read()
        producer.log()
        os._exit(0)
    os._exit(0)


def test_a_grandchild_outlives_its_parent(context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """A grandchild goes on logging after the end of the worker that started it."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    process = context.Process(target=leave_a_child, args=(server.initializer, str(tmp_path), str(gate)))
    process.start()
    # Not join(60), which waits for a pipe that the grandchild has, too.
    wait_until(lambda: process.exitcode is not None, "the worker has ended")
    assert process.exitcode == 0
    wait_until(lambda: acknowledged(tmp_path, "orphan") == 1, "the grandchild logs")
    with open(gate, "wb"):
        pass
    wait_until(lambda: acknowledged(tmp_path, "orphan") == 2, "the grandchild logs again")
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == 12


# --- many workers ---


def descriptors(pid: int) -> set[tuple[str, str]]:
    """Return the descriptors that a process has open, each with what it stands for."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found.add((fd, os.readlink(f"/proc/{pid}/fd/{fd}")))
    return found


def stands_for(pid: int) -> Counter[str]:
    """Return what the descriptors of a process stand for, without numbers: it reopens its statistics."""
    return Counter(target for _, target in descriptors(pid))


def memory(pid: int) -> int:
    """Return how much memory a process has, in bytes."""
    return int(psutil.Process(pid).memory_info().rss)


def wait_and_log(initializer: Any, directory: str, name: str, gate: Any) -> None:
    """Runs in a worker: say that it is there, and log once all are."""
    initializer()
    producer = Producer(directory, name)
    producer.log()
    assert gate.wait(60)
    for _ in range(100):
        producer.log()


@pytest.fixture
def flat(server: mplog.LogServer) -> Iterator[None]:
    """Check that a test leaves neither descriptors nor memory, here and in the logging process."""
    server.flush()  # it has opened all that it needs
    mine, theirs, size = descriptors(os.getpid()), stands_for(server.pid), memory(server.pid)
    yield
    server.flush()
    # What other tests have left may be closed by now.
    assert descriptors(os.getpid()) - mine == set()
    # What it holds to watch a worker, it gives back when it notices the worker's end.
    wait_until(lambda: stands_for(server.pid) == theirs, f"the logging process has the descriptors {theirs} again")
    assert memory(server.pid) - size < 20 * 2**20


def run_workers(context: Any, server: mplog.LogServer, directory: Path, names: list[str]) -> None:
    """Run workers at the same time, all of which are there before the first one goes on."""
    gate = context.Event()
    processes = [
        context.Process(target=wait_and_log, args=(server.initializer, str(directory), name, gate)) for name in names
    ]
    for process in processes:
        process.start()
    for name in names:
        wait_until(functools.partial(acknowledged, directory, name), f"{name} logs", 60)
    gate.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
        process.close()


def test_hundred_workers_at_once(server: mplog.LogServer, log: Path, tmp_path: Path, flat: None) -> None:
    """100 workers that log at the same time: every record arrives."""
    run_workers(multiprocessing.get_context("fork"), server, tmp_path, [f"w{number}" for number in range(100)])
    server.flush()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == result.acknowledged == 100 * 101


def short_lived(server: mplog.LogServer, log: Path, directory: Path, count: int) -> None:
    """Run many workers, ten at a time, and check that the logging process does not grow."""
    context = multiprocessing.get_context("fork")
    sizes = []
    for first in range(0, count, 10):
        processes = [
            mplog.Process(target=log_as, args=(str(directory), f"w{number}"), context=context, server=server)
            for number in range(first, first + 10)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
            process.close()
        sizes.append(memory(server.pid))
    server.flush()
    result = verdict(log, directory)
    assert result.clean, result
    assert result.written == result.acknowledged == count * 10
    assert sizes[-1] - sizes[len(sizes) // 2] < 2 * 2**20


def test_many_short_lived_workers(server: mplog.LogServer, log: Path, tmp_path: Path, flat: None) -> None:
    """100 workers, ten at a time: every record arrives, and neither side grows."""
    short_lived(server, log, tmp_path, 100)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_thousand_short_lived_workers(server: mplog.LogServer, log: Path, tmp_path: Path, flat: None) -> None:
    """The same with 1,000 workers."""
    short_lived(server, log, tmp_path, 1000)
