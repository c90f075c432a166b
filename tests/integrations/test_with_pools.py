"""Pools of other packages, and managers: joblib and loky, pebble, PyTorch's DataLoader, each with its start methods."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing.managers
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jobs
import multiprocess.managers
import pytest
from oracle import acknowledged, verdict
from scripts import LINE
from start_methods import library_of, skip_without_dill

import mplog


def names_in(server: mplog.LogServer, log: Path, directory: Path) -> dict[int, str]:
    """Stop the server, hold the log against what the workers have logged, and return their names by pid."""
    server.stop()
    result = verdict(log, directory)
    assert result.clean, result
    assert result.acknowledged == result.written
    names: dict[int, set[str]] = defaultdict(set)
    for line in log.read_text().splitlines():
        found = LINE.fullmatch(line)
        if found and found["logger"] == "producer":
            assert f"producer={found['pid']} " in found["message"]
            names[int(found["pid"])].add(found["process_name"])
    assert all(len(found) == 1 for found in names.values())
    return {pid: found.pop() for pid, found in names.items()}


def work_and_die(directory: str, _: object = None) -> None:
    """Runs in a worker: log, and be killed."""
    jobs.work(directory)
    os.kill(os.getpid(), signal.SIGKILL)


def work_and_stay(directory: str) -> None:
    """Runs in a worker: log, and take too long."""
    jobs.work(directory)
    time.sleep(600)


# --- managers ---


class Worker:
    """Lives in a manager's process."""

    def work(self, directory: str) -> int:
        """Log some lines; return the pid."""
        return jobs.work(directory)


class Manager(multiprocessing.managers.BaseManager):
    """A manager of the standard library."""


class MultiprocessManager(multiprocess.managers.BaseManager):  # type: ignore[misc]
    """One of multiprocess."""


MANAGERS: dict[str, Any] = {"multiprocessing": Manager, "multiprocess": MultiprocessManager}
for manager_class in MANAGERS.values():
    manager_class.register("Worker", Worker)


def test_manager(context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """What the process of a manager has logged is in the log, even if a signal ends it."""
    if library_of(context).__name__ == "multiprocess":
        skip_without_dill()
    manager = MANAGERS[library_of(context).__name__](ctx=context)
    manager.start(server.initializer)
    worker = manager.Worker()
    pid = worker.work(str(tmp_path))
    assert worker.work(str(tmp_path)) == pid
    os.kill(pid, signal.SIGKILL)
    manager._process.join(60)
    names = names_in(server, log, tmp_path)
    assert list(names) == [pid]
    assert "Manager-" in names[pid]


# --- joblib and loky ---


@pytest.fixture
def joblib() -> Any:
    """joblib, whose workers end with the test."""
    joblib = pytest.importorskip("joblib")
    yield joblib
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)


def test_joblib_uses_its_workers_again(joblib: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Workers of loky are used again from one call to the next: initializers of one server are equal."""
    pids = set()
    for _ in range(3):
        parallel = joblib.Parallel(n_jobs=2, initializer=server.initializer)
        pids |= set(parallel(joblib.delayed(jobs.work)(str(tmp_path)) for _ in range(6)))
    names = names_in(server, log, tmp_path)
    assert set(names) == pids
    assert len(pids) <= 2
    assert all(name.startswith("LokyProcess-") for name in names.values())


def test_joblib_with_its_other_backend(joblib: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """The backend "multiprocessing" takes the initializer, too, by parallel_config() as well."""
    with joblib.parallel_config(backend="multiprocessing", initializer=server.initializer):
        pids = joblib.Parallel(n_jobs=2)(joblib.delayed(jobs.work)(str(tmp_path)) for _ in range(6))
    names = names_in(server, log, tmp_path)
    assert set(names) == set(pids)
    assert all("PoolWorker-" in name for name in names.values())


@pytest.mark.parametrize("start_method", ["loky", "spawn", "forkserver"])
def test_loky_replaces_a_worker(
    joblib: Any, start_method: str, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """A worker that is killed has left what it logged, and so have those of the executor that takes the place."""
    loky = joblib.externals.loky
    context = loky.backend.get_context(start_method)
    make = functools.partial(loky.get_reusable_executor, 2, context=context, initializer=server.initializer)
    with pytest.raises(loky.process_executor.TerminatedWorkerError):
        make().submit(work_and_die, str(tmp_path)).result(60)
    pids = {future.result(60) for future in [make().submit(jobs.work, str(tmp_path)) for _ in range(4)]}
    names = names_in(server, log, tmp_path)
    assert pids < set(names)
    assert all("Process-" in name for name in names.values())


# --- pebble ---


def test_pebble_replaces_workers(stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """What workers have logged is there if they end after some tasks, take too long or are killed."""
    pebble = pytest.importorskip("pebble")
    directory = str(tmp_path)
    with pebble.ProcessPool(2, max_tasks=2, initializer=server.initializer, context=stdlib_context) as pool:
        futures = [pool.schedule(jobs.work, args=[directory]) for _ in range(6)]
        pids = {future.result(60) for future in futures}
        with pytest.raises(pebble.ProcessExpired):
            pool.schedule(work_and_die, args=[directory]).result(60)
        with pytest.raises(concurrent.futures.TimeoutError):
            pool.schedule(work_and_stay, args=[directory], timeout=0.5).result(60)
        pids.add(pool.schedule(jobs.work, args=[directory]).result(60))
    names = names_in(server, log, tmp_path)
    assert pids <= set(names)
    assert len(names) >= 5
    assert set(names.values()) == {"pebble_pool_worker"}
    assert verdict(log, tmp_path).written == 90


# --- PyTorch ---


class Items:
    """A data set, as DataLoader takes any object with these methods."""

    def __init__(self, directory: str, fatal: int = -1) -> None:
        self.directory = directory
        self.fatal = fatal

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        pid = jobs.work(self.directory)
        if index == self.fatal:
            os.kill(pid, signal.SIGKILL)
        return pid


@pytest.mark.parametrize("persistent", [False, True])
def test_data_loader(start_method: str, persistent: bool, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Workers that end with each epoch, and those that do not, have logged each record once."""
    data = pytest.importorskip("torch.utils.data")
    loader = data.DataLoader(
        Items(str(tmp_path)),
        num_workers=2,
        worker_init_fn=server.initializer,
        multiprocessing_context=start_method,
        persistent_workers=persistent,
    )
    pids = {int(batch) for _ in range(2) for batch in loader}
    del loader
    names = names_in(server, log, tmp_path)
    assert set(names) == pids
    assert len(pids) == (2 if persistent else 4)
    assert all("Process-" in name for name in names.values())


def test_data_loader_whose_worker_is_killed(
    start_method: str, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """A killed worker has left what it logged."""
    data = pytest.importorskip("torch.utils.data")
    loader = data.DataLoader(
        Items(str(tmp_path), fatal=3),
        num_workers=2,
        worker_init_fn=server.initializer,
        multiprocessing_context=start_method,
    )
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(loader)
    # The killed one has had items 1 and 3; the other one may not have begun.
    assert 20 in {acknowledged(tmp_path, str(pid)) for pid in names_in(server, log, tmp_path)}
