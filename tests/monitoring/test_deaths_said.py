"""The death of a worker is said in the log: by whole servers, on real processes."""

from __future__ import annotations

import concurrent.futures.process
import logging
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import jobs
import pytest
from oracle import wait_until
from scripts import FORMAT, process_has_ended, run_script, stop_all_threads
from start_methods import START_METHODS

import mplog
from mplog.monitoring import tallies

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux from 5.3 on tells of deaths"),
]

#: Of the ends that jobs.log_and_end knows, what is said of them.
SAID = {
    "sys.exit": "ended with exit code 3",
    "exception": "ended with exit code 1",
    "os._exit": "ended with exit code 4",
    "abort": "was killed by SIGABRT",
    "segfault": "was killed by SIGSEGV",
}


def said(log: Path) -> list[str]:
    """Return the lines about deaths, without where they come from."""
    lines = [line for line in jobs.messages_in(log) if line.startswith("mplog: ") and "(pid " in line]
    return [line for line in lines if "restarted as" not in line]


def wait_until_said(log: Path, what: str) -> str:
    """Wait for a line about a death, and return it."""
    wait_until(lambda: any(what in line for line in said(log)), f"the log says {what!r}")
    lines = [line for line in said(log) if what in line]
    assert len(lines) == 1, lines
    (line,) = lines
    return line


def test_each_unexpected_end_is_said(stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """However a Process of ours ends, the log has one line about it; of one that ended as it was meant to, none."""
    processes = {
        how: mplog.Process(
            target=jobs.log_and_end,
            args=(server.initializer, str(tmp_path), how),
            context=stdlib_context,
            server=server,
            name=f"worker of {how}",
        )
        for how in jobs.ENDS
    }
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join(60)
    server.stop()
    lines = said(log)
    assert len(lines) == len(SAID), lines
    for how, words in SAID.items():
        pid = processes[how].pid
        (line,) = [line for line in lines if f"(pid {pid})" in line]
        assert line.startswith(f"mplog: worker of {how} (pid {pid}) {words}")
        assert "after 1 record; the last one at 2" in line
        # After what it had logged.
        messages = jobs.messages_in(log)
        assert [f"producer={how} " in message for message in messages[: messages.index(line)]].count(True) == 1


def be_killed() -> None:
    """Runs in a worker."""
    os.kill(os.getpid(), signal.SIGKILL)


def log_and_be_killed() -> None:
    """Runs in a worker."""
    logging.getLogger("job").info("the last words")
    be_killed()


def log_by_many_names() -> None:
    """Runs in a worker."""
    for name in ("one", "two"):
        multiprocessing.current_process().name = name
        logging.getLogger("job").info("from %s", name)


def two_are_told_apart() -> logging.Handler:
    """Runs in the logging process: have it count the records of two names only by themselves."""
    tallies.COUNTED_PROCESSES = 2
    return logging.NullHandler()


def test_the_records_of_one_beyond_those_that_are_counted_apart_are_known(log: Path) -> None:
    """After very many processes, it is still said how many records had come from the one that was killed."""
    context = multiprocessing.get_context("fork")
    with mplog.LogServer(mplog.FileSink(log, format=FORMAT), mplog.HandlerSink(two_are_told_apart)) as server:
        logging.getLogger().setLevel(logging.INFO)
        for target in (log_by_many_names, log_and_be_killed):
            process = mplog.Process(target=target, server=server, context=context)
            process.start()
            process.join(60)
        assert "after 1 record; the last one at 2" in wait_until_said(log, "was killed by SIGKILL")


def log_some() -> None:
    """Runs in a worker."""
    for number in range(10):
        logging.getLogger("job").info("number %d", number)


def kill_one_of(pool: Any, log: Path, records: str) -> str:
    """Have a worker be killed while the pool goes on; return the line that says so, with its number of records."""
    pool.apply_async(log_and_be_killed)
    line = wait_until_said(log, "was killed by SIGKILL")
    pool.apply(jobs.note, ("and on",))
    assert "PoolWorker-" in line
    assert f"after {records}; the last one at 2" in line
    assert jobs.messages_in(log).index("the last words") < jobs.messages_in(log).index(line)
    return line


def test_a_killed_worker_of_a_plain_pool_is_said(context: Any, server: mplog.LogServer, log: Path) -> None:
    """A worker that is killed is said while the pool goes on; that leaving the pool terminates the others is not."""
    with context.Pool(1, initializer=server.initializer) as pool:
        pool.apply(log_some)
        server.flush()
        line = kill_one_of(pool, log, "11 records")
    server.stop()
    assert said(log) == [line]


def test_a_killed_worker_of_our_pool_is_said_however_soon(context: Any, server: mplog.LogServer, log: Path) -> None:
    """A Pool of ours tells of a worker that has ended and been waited for before its first record was read."""
    with mplog.Pool(1, context=context, server=server) as pool:
        line = kill_one_of(pool, log, "1 record")
    server.stop()
    assert said(log) == [line]


def test_a_killed_worker_of_an_executor_is_said(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """A worker whose death breaks an executor is said once, whether the kernel tells how it died, or the executor."""
    broken = pytest.raises(concurrent.futures.process.BrokenProcessPool)
    with mplog.ProcessPoolExecutor(2, stdlib_context, server=server) as executor, broken:
        executor.submit(log_and_be_killed).result(60)
    server.stop()
    (line,) = said(log)
    assert "was killed by SIGKILL" in line
    assert "after 1 record; the last one at 2" in line


def test_a_process_that_has_logged_nothing_is_said(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """A process of ours that dies before its first record is said by its name, too, once it is joined."""
    process = mplog.Process(target=be_killed, context=stdlib_context, server=server, name="silent")
    process.start()
    process.join(60)
    server.stop()
    (line,) = said(log)
    assert line.startswith(f"mplog: silent (pid {process.pid}) was killed by SIGKILL")
    assert line.endswith(", after 0 records")


def test_the_death_of_the_program_is_said(log: Path, tmp_path: Path) -> None:
    """When the program itself is killed, the logging process writes what is left, says so, and ends."""
    done = run_script(
        tmp_path,
        f"""
        import logging, os, signal, mplog
        mplog.LogServer({str(log)!r}, level="INFO", format={FORMAT!r}).start()
        logging.getLogger("job").info("the last words")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert done.returncode == -signal.SIGKILL
    (line,) = said(log)
    assert line.startswith("mplog: MainProcess (pid ")
    assert "was killed by SIGKILL" in line


def test_a_routine_end_of_an_attached_process_is_not_said(server: mplog.LogServer, log: Path) -> None:
    """An attached process that ends with code 0 or by SIGTERM leaves no line."""
    for end in ("", "os.kill(os.getpid(), signal.SIGTERM)"):
        jobs.run_python(["-c", f"import logging, mplog, os, signal; mplog.attach(); logging.warning('here'); {end}"])
    server.stop()
    assert said(log) == []
    assert jobs.messages_in(log) == ["here", "here"]


def log_and_wait(initializer: Any, ready: Any, how: str) -> None:
    """Runs in a worker: log one record, say so, wait to be told, and end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    initializer()
    logging.getLogger("job").info("the last words")
    ready.release()
    signal.sigwait({signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else os._exit(0)


# A fork server waits for its children at once, and keeps to itself how they ended.
@pytest.mark.parametrize(
    ("start_method", "when"),
    [(method, "after the restart") for method in START_METHODS]
    + [(method, "before the restart") for method in START_METHODS if method != "forkserver"],
)
def test_a_silent_worker_is_watched_over_a_restart(
    stdlib_context: Any, server: mplog.LogServer, log: Path, when: str
) -> None:
    """Of a worker that has logged nothing since the logging process was restarted, the death is said all the same."""
    ready = stdlib_context.Semaphore(0)
    workers = {
        how: stdlib_context.Process(target=log_and_wait, args=(server.initializer, ready, how), name=how)
        for how in ("killed", "well")
    }
    for worker in workers.values():
        worker.start()
    for _ in workers:
        assert ready.acquire(timeout=60)
    server.flush()
    first = server.pid
    if when == "before the restart":
        stop_all_threads(first)
        for worker in workers.values():
            os.kill(worker.pid, signal.SIGUSR1)
        # Dead, and not waited for: a zombie.
        wait_until(lambda: all(process_has_ended(worker.pid) for worker in workers.values()), "they have ended")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: server.pid != first, "it is restarted")
    if when == "after the restart":
        for worker in workers.values():
            os.kill(worker.pid, signal.SIGUSR1)
    line = wait_until_said(log, "was killed by SIGKILL (")
    assert line.startswith(f"mplog: killed (pid {workers['killed'].pid}) was killed by SIGKILL")
    assert "after 1 record; the last one at 2" in line
    for worker in workers.values():
        worker.join(60)
    server.flush()
    second = server.pid
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: server.pid != second, "it is restarted")
    server.stop()
    assert [line for line in said(log) if "well" in line] == []
    assert len([line for line in said(log) if line.startswith("mplog: killed ")]) == 1
