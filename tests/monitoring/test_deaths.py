"""Which of the processes that log have died, and how: `Watch`."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from family import Family
from memory_groups import memory_group
from scripts import environment

import mplog
from mplog.monitoring import deaths, process
from mplog.monitoring.death_lines import Death, describe
from mplog.monitoring.deaths import Watch
from mplog.queue.directory import fifo_path

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not hasattr(os, "pidfd_open"), reason="only Linux from 5.3 on can watch processes that are not one's children"
    ),
]

#: Signals that are not sent on purpose, or every day.
UNEXPECTED = ["KILL", "SEGV", "ABRT", "BUS", "FPE", "ILL", "SYS", "XCPU", "USR1", "QUIT", "PIPE", "ALRM", "RTMIN"]
ROUTINE = ["exit:0", "exit:143", "exit:130", "signal:15", "signal:2", "signal:1"]

#: Of no process, as the largest pid is 2**22 (proc_sys_kernel(5)).
NO_PID = 2**22 + 1


@pytest.fixture
def queue() -> Iterator[mplog.LogQueue]:
    """A queue."""
    queue = mplog.LogQueue()
    yield queue
    queue.close()
    queue.remove()


@pytest.fixture
def family(queue: mplog.LogQueue) -> Iterator[Family]:
    """A parent of processes that have the queue open."""
    with Family(queue.path) as family:
        yield family


@pytest.fixture
def watch(queue: mplog.LogQueue) -> Iterator[Watch]:
    """A Watch whose owner is this process."""
    watch = Watch(queue.path, os.getpid())
    yield watch
    watch.close()


def is_readable(watch: Watch, timeout: float = 0.0) -> bool:
    """Return whether the loop would wake up."""
    return bool(select.select([watch.fileno()], [], [], timeout)[0])


def codes(found: list[Death]) -> dict[int, int]:
    """Return the exit codes by pid."""
    return {death.pid: death.exitcode for death in found}


@contextlib.contextmanager
def limited_descriptors(soft: int) -> Iterator[None]:
    """Lower the limit on this process's descriptors."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """No garbage collection: it would close files of other tests while this one counts descriptors."""
    gc.disable()
    yield
    gc.enable()


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def kernel_keeps_exit_codes() -> bool:
    """Whether the kernel tells by a pidfd how a process has ended that its parent has waited for (Linux 6.15)."""
    sleeping = subprocess.Popen(["sleep", "0"])
    pidfd = os.pidfd_open(sleeping.pid)
    sleeping.wait()
    try:
        return process.noted_status(pidfd) == 0
    finally:
        os.close(pidfd)


needs_exit_codes = pytest.mark.skipif(
    hasattr(os, "pidfd_open") and not kernel_keeps_exit_codes(),
    reason="this kernel forgets how a process has ended once its parent has waited for it",
)


@pytest.fixture
def older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not know the ioctl which tells how a process has ended."""
    monkeypatch.setattr(process, "PIDFD_GET_INFO", process.PIDFD_GET_INFO + 200)


# --- how processes end ---


@pytest.mark.parametrize("reap", [False, pytest.param(True, marks=needs_exit_codes)])
def test_an_unexpected_end_is_told(family: Family, watch: Watch, reap: bool) -> None:
    """A process that a signal kills, or that ends with an exit code, is told, whether its parent has waited or not."""
    expected = {family.fork(f"exit:{code}"): code for code in (1, 3, 255)}
    for name in UNEXPECTED:
        number = getattr(signal, f"SIG{name}")
        expected[family.fork(f"signal:{int(number)}")] = -number
    for pid in expected:
        watch.watch(pid, f"worker {pid}")
    assert len(watch) == len(expected)
    before = time.time()
    family.go(*expected, reap=reap)
    assert is_readable(watch)
    found = watch.deaths()
    assert codes(found) == expected
    assert all(death.name == f"worker {death.pid}" for death in found)
    assert all(before <= death.at <= time.time() for death in found)
    assert not is_readable(watch)
    assert len(watch) == 0


@pytest.mark.parametrize("reap", [False, pytest.param(True, marks=needs_exit_codes)])
def test_a_routine_end_is_not_told(family: Family, watch: Watch, reap: bool) -> None:
    """Code 0, SIGTERM, SIGINT and SIGHUP, or the codes a shell gives them, are how processes are meant to end."""
    pids = [family.fork(how) for how in ROUTINE]
    for pid in pids:
        watch.watch(pid, "worker")
    family.go(*pids, reap=reap)
    assert is_readable(watch)
    assert watch.deaths() == []
    assert not is_readable(watch)
    for pid in pids:
        assert watch.told(pid, "worker", -signal.SIGTERM) is None


def test_nothing_wakes_up_for_a_living_process(family: Family, watch: Watch) -> None:
    """The descriptor becomes readable when a process dies, and at no other time."""
    pid = family.fork("exit:7")
    watch.watch(pid, "worker")
    assert not is_readable(watch, 0.1)
    family.go(pid)
    assert is_readable(watch)
    assert codes(watch.deaths()) == {pid: 7}
    assert not is_readable(watch, 0.1)


def test_the_latest_name_is_told(family: Family, watch: Watch) -> None:
    """A process that has changed its name is told under the one of its last record."""
    pid = family.fork("exit:7")
    watch.watch(pid, "first")
    watch.watch(pid, "second")
    family.go(pid)
    assert [death.name for death in watch.deaths()] == ["second"]


def test_children_and_strangers_are_watched(family: Family, watch: Watch, queue: mplog.LogQueue) -> None:
    """Every process that has the queue open is watched: the owner, a child, a grandchild, and an orphan."""
    orphan = subprocess.run(
        [sys.executable, "-S", "-c", ORPHAN, queue.path], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    stranger = int(orphan.stdout)
    with Family(queue.path) as other:
        child = subprocess.Popen(["sleep", "100"], pass_fds=[queue.sender.write_fd])
        pids = [os.getpid(), child.pid, family.fork("signal:9"), other.fork("exit:1"), stranger]
        for pid in pids:
            watch.watch(pid, "worker")
        assert len(watch) == len(pids)
        for pid in (child.pid, stranger):
            os.kill(pid, signal.SIGKILL)
        family.go(pids[2])
        other.go(pids[3])
        child.wait()
        found = {}
        while len(watch) > 1:
            found |= codes(watch.deaths(60))
    wanted = {pids[2]: -signal.SIGKILL, pids[3]: 1, child.pid: -signal.SIGKILL, stranger: -signal.SIGKILL}
    for pid in (child.pid, stranger):  # waited for, which older kernels then do not know
        if not kernel_keeps_exit_codes():
            found.setdefault(pid, wanted[pid])
    assert found == wanted
    assert len(watch) == 1


ORPHAN = """
import os, sys, time
reader, writer = os.pipe()
if os.fork():
    os.read(reader, 1)
    os._exit(0)
os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
os.write(1, b"%d" % os.getpid())
os.close(1)
os.write(writer, b".")
time.sleep(100)
"""


def test_the_rest_is_waited_for_at_the_end(family: Family, watch: Watch) -> None:
    """At the end those that are dying are waited for, and no longer than it takes, nor than the limit."""
    dying, staying = family.fork("exit:3"), family.fork("exit:4")
    watch.watch(dying, "worker")
    family.go(dying)
    start = time.monotonic()
    assert codes(watch.rest(60)) == {dying: 3}
    assert time.monotonic() - start < 30
    watch.watch(staying, "worker")
    assert watch.rest(0.05) == []
    assert len(watch) == 1


# --- processes that are no senders ---


def test_a_process_without_the_queue_is_not_watched(family: Family, watch: Watch) -> None:
    """A pid that is another process here than where the record was made: nothing is said of that process's death."""
    pid = family.fork("signal:9", with_fifo=False)
    watch.watch(pid, "worker")
    assert len(watch) == 0
    family.go(pid)
    assert not is_readable(watch)
    assert watch.deaths() == []


def test_a_file_with_the_name_of_the_queue_is_not_the_queue(watch: Watch) -> None:
    """Having another queue open does not make a sender of this one."""
    other = mplog.LogQueue()
    assert os.path.basename(other.path) == os.path.basename(fifo_path(""))
    with Family(other.path) as strangers:
        watch.watch(strangers.fork("signal:9"), "worker")
        assert len(watch) == 0
    other.close()
    other.remove()


@pytest.mark.parametrize("pid", [0, -1, 1, NO_PID, 2**31, 2**63])
def test_a_pid_that_cannot_be_is_passed_over(watch: Watch, no_collector: None, pid: int) -> None:
    """Whatever number a record gives for its process, watching it does no harm."""
    before = open_descriptors()
    watch.watch(pid, "worker")
    assert len(watch) == 0
    assert open_descriptors() == before


def test_a_process_that_is_dead_before_it_is_seen_is_told(family: Family, queue: mplog.LogQueue) -> None:
    """A zombie has no queue open any more; it is a sender if it descends from the owner, and a stranger otherwise."""
    pid = family.fork("signal:11")
    family.go(pid)
    for owner, expected in [(os.getpid(), {pid: -signal.SIGSEGV}), (NO_PID, {})]:
        watch = Watch(queue.path, owner)
        watch.watch(pid, "worker")
        assert codes(watch.deaths()) == expected
        watch.close()


def test_a_process_that_dies_while_it_is_looked_at_is_told(
    family: Family, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has closed the queue because it is dying at that moment is a sender all the same."""
    pid = family.fork("signal:9")

    def look_too_late(pid: int) -> bool:
        family.go(pid)
        return has_fifo_open(pid)

    has_fifo_open = watch.senders.has_fifo_open
    monkeypatch.setattr(watch.senders, "has_fifo_open", look_too_late)
    watch.watch(pid, "worker")
    assert codes(watch.deaths()) == {pid: -signal.SIGKILL}


def test_users_of_a_plain_queue_descend_from_the_owner(family: Family) -> None:
    """Where there is no FIFO, only the owner's descendants are watched."""
    pid = family.fork("exit:5", with_fifo=False)
    for owner, expected in [(os.getpid(), 1), (NO_PID, 0)]:
        watch = Watch(None, owner)
        watch.watch(pid, "worker")
        assert len(watch) == expected
        watch.close()


def test_a_refused_process_is_tried_again_later(family: Family, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid that is refused is not looked at with each batch, but now and then, since it may come into use again."""
    pid = family.fork(with_fifo=False)
    looked = []
    monkeypatch.setattr(watch.senders, "has_fifo_open", lambda pid: looked.append(pid) or len(looked) > 1)
    for _ in range(5):
        watch.watch(pid, "worker")
    assert looked == [pid]
    monkeypatch.setattr(deaths.time, "monotonic", lambda clock=time.monotonic: clock() + deaths.RETRY_SECONDS)
    watch.watch(pid, "worker")
    assert len(watch) == 1


def test_what_is_remembered_has_a_bound(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of pids without a process does not fill the memory: the latest are remembered, and the others are not."""
    last = NO_PID + 3 * deaths.REMEMBERED
    for pid in range(NO_PID, last):
        watch.watch(pid, f"worker {pid}")
    tried: list[int] = []

    def find_none(pid: int) -> int:
        tried.append(pid)
        raise ProcessLookupError(pid)

    monkeypatch.setattr(os, "pidfd_open", find_none)
    bounds = (NO_PID, last - deaths.REMEMBERED - 1, last - deaths.REMEMBERED, last - 1)
    deaths_told = [watch.told(pid, "not remembered", 3) for pid in bounds]
    names = [death.name for death in deaths_told if death is not None]
    assert names == ["not remembered", "not remembered", f"worker {bounds[2]}", f"worker {bounds[3]}"]
    for pid in reversed(bounds):  # each that is tried again makes the oldest forgotten
        watch.watch(pid, "worker")
    assert tried == [bounds[1], bounds[0]]


# --- what the owner knows ---


def test_an_older_kernel_knows_a_zombie(family: Family, watch: Watch, older_kernel: None) -> None:
    """Before Linux 6.15, how a process has ended is known until its parent has waited for it."""
    pid = family.fork("signal:9")
    watch.watch(pid, "worker")
    family.go(pid)
    assert codes(watch.deaths()) == {pid: -signal.SIGKILL}


def test_the_owner_tells_what_the_kernel_has_forgotten(family: Family, watch: Watch, older_kernel: None) -> None:
    """Before Linux 6.15, the death of a process that its parent has waited for is told once the owner tells it."""
    pid, other = family.fork("signal:9"), family.fork("signal:9")
    watch.watch(pid, "as in its records")
    watch.watch(other, "never told")
    family.go(pid, other, reap=True)
    assert watch.deaths() == []
    death = watch.told(pid, "as the owner calls it", -signal.SIGKILL)
    assert death is not None
    assert (death.pid, death.name, death.exitcode) == (pid, "as in its records", -signal.SIGKILL)


def test_a_death_is_told_once(family: Family, watch: Watch) -> None:
    """If the pidfd tells of a death first, the owner adds nothing, and the other way round."""
    first, second = family.fork("exit:3"), family.fork("exit:3")
    watch.watch(first, "worker")
    watch.watch(second, "worker")
    family.go(first)
    assert codes(watch.deaths()) == {first: 3}
    assert watch.told(first, "worker", 3) is None
    family.go(second)
    assert codes([watch.told(second, "worker", 3)]) == {second: 3}  # type: ignore[list-item]
    assert watch.deaths() == []
    assert not is_readable(watch)
    assert len(watch) == 0


def test_the_last_records_of_a_dead_process_do_not_tell_it_again(family: Family, watch: Watch) -> None:
    """Records that are read after the death of their process, before its parent has waited, change nothing."""
    pid = family.fork("signal:9")
    watch.watch(pid, "worker")
    family.go(pid)
    assert codes(watch.deaths()) == {pid: -signal.SIGKILL}
    watch.watch(pid, "worker")
    assert watch.deaths() == []
    assert len(watch) == 0
    family.reap(pid)
    watch.watch(pid, "worker")
    assert watch.told(pid, "worker", -signal.SIGKILL) is None


def test_the_owner_tells_of_a_process_that_was_never_seen(family: Family, watch: Watch) -> None:
    """The owner tells of a child that has sent no record, or was waited for before its first record was read."""
    pid = family.fork("signal:11")
    family.go(pid, reap=True)
    watch.watch(pid, "as in its records")
    assert watch.deaths() == []
    death = watch.told(pid, "worker", -signal.SIGSEGV)
    assert death is not None
    assert (death.name, death.exitcode) == ("as in its records", -signal.SIGSEGV)
    death = watch.told(NO_PID, "worker", 1)
    assert death is not None
    assert (death.name, death.exitcode) == ("worker", 1)
    assert watch.told(NO_PID, "worker", 0) is None


def test_a_living_process_is_not_the_one_that_the_owner_means(family: Family, watch: Watch) -> None:
    """Where the pid of a dead child is in use again, its new holder stays watched."""
    pid = family.fork("exit:3")
    watch.watch(pid, "the new one")
    death = watch.told(pid, "the old one", 4)
    assert death is not None
    assert (death.name, death.exitcode) == ("the old one", 4)
    family.go(pid)
    assert [(death.name, death.exitcode) for death in watch.deaths()] == [("the new one", 3)]


# --- pids of other processes ---


def run_in_pid_namespace(tmp_path: Path, program: str) -> Any:
    """Run a program as the first process of a pid namespace, which has a /proc of its own; return what it prints."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare(1) to make a pid namespace")
    command = [unshare, *([] if os.geteuid() == 0 else ["--map-root-user"]), "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=60)
    if probe.returncode:
        pytest.skip(f"pid namespaces are not to be had here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*command, sys.executable, str(script)], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REUSE = """
    import json, os, sys, time
    import mplog
    from family import Family
    from mplog.monitoring import deaths, process

    def fork_as(pid, how, **words):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(pid - 1))
        assert family.fork(how, **words) == pid

    if {older}:
        process.PIDFD_GET_INFO += 200
    queue = mplog.LogQueue()
    watch = deaths.Watch(queue.path, os.getpid())
    with Family(queue.path) as family:
        said = []
        # Dies, and another has its pid before anybody looks.
        fork_as(1000, "exit:3")
        watch.watch(1000, "first")
        started = process.Stat.read(1000).started
        family.go(1000, reap=True)
        while True:  # until the kernel's clock, which starts are told by, has gone on
            fork_as(1000, "signal:9", with_fifo=False)
            if process.Stat.read(1000).started != started:
                break
            family.go(1000, reap=True)
        family.go(1000)
        said.append([tuple(death[:3]) for death in watch.deaths()])
        # The next one has not the queue open, so it is no sender.
        family.reap(1000)
        fork_as(1000, "signal:9", with_fifo=False)
        deaths.RETRY_SECONDS = 0
        watch.watch(1000, "second")
        said.append(len(watch))
        family.go(1000, reap=True)
        # The third is one again.
        fork_as(1000, "exit:5")
        watch.watch(1000, "third")
        family.go(1000)
        said.append([tuple(death[:3]) for death in watch.deaths()])
        family.reap(1000)
        print(json.dumps(said))
"""


@pytest.mark.parametrize("older", [False, True])
def test_a_pid_that_is_in_use_again_is_another_process(tmp_path: Path, older: bool) -> None:
    """A pid's next holder is never taken for its last one: neither its death, nor how it ended, nor that it sends."""
    if not older and not kernel_keeps_exit_codes():
        pytest.skip("this kernel forgets how a process has ended once its parent has waited for it")
    first, second, third = run_in_pid_namespace(tmp_path, REUSE.replace("{older}", str(older)))
    assert first == ([] if older else [[1000, "first", 3]])
    assert second == 0
    assert third == [[1000, "third", 5]]


INSIDE = """
    import json, os, sys, time
    import logging
    import mplog

    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write({pid} - 1)
    pid = os.fork()
    if not pid:
        queue = mplog.LogQueue.open({directory})
        queue.put(logging.LogRecord("container", logging.INFO, "", 0, "here", None, None))
        os._exit(0)
    os.waitpid(pid, 0)
    print(json.dumps(pid))
"""


def test_a_pid_of_another_namespace_is_not_taken_for_ours(
    tmp_path: Path, queue: mplog.LogQueue, family: Family, watch: Watch
) -> None:
    """A container that shares the queue sends its own pids: a process with such a pid out here is no sender."""
    ours = family.fork("signal:9", with_fifo=False)
    program = INSIDE.replace("{pid} - 1", repr(str(ours - 1))).replace("{directory}", repr(queue.directory))
    assert run_in_pid_namespace(tmp_path, program) == ours
    record = queue.get(timeout=10)
    assert record.process == ours
    watch.watch(record.process, record.processName)
    assert len(watch) == 0
    family.go(ours)
    assert watch.deaths() == []


# --- limits ---


def test_the_number_of_descriptors_has_a_bound(
    family: Family, watch: Watch, no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 600 processes 500 are watched, each with one descriptor, which is given back; the others die unsaid."""
    before = open_descriptors()
    pids = [family.fork("exit:3") for _ in range(600)]
    for pid in pids:
        watch.watch(pid, "worker")
    assert len(watch) == deaths.MAX_WATCHED == 500
    assert open_descriptors() == before + 500
    family.go(*pids[1:])
    assert codes(watch.rest(0.0)) == dict.fromkeys(pids[1:500], 3)
    assert open_descriptors() == before + 1
    # There is room again.
    monkeypatch.setattr(deaths.time, "monotonic", lambda clock=time.monotonic: clock() + deaths.RETRY_SECONDS)
    watch.watch(pids[-1], "worker")
    assert len(watch) == 2
    watch.close()
    assert open_descriptors() == before - 1


def test_half_of_the_descriptors_are_left_for_the_log(family: Family, watch: Watch, no_collector: None) -> None:
    """Where few descriptors are allowed, half of them stay free for files."""
    limit = 2 * (open_descriptors() + 10)
    pids = [family.fork() for _ in range(limit // 2 + 10)]
    with limited_descriptors(limit):
        for pid in pids:
            watch.watch(pid, "worker")
        assert len(watch) == limit // 2


def test_no_descriptor_left_is_no_error(
    family: Family, watch: Watch, no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where any of the steps finds no free descriptor, no process is watched, and no descriptor is lost."""
    monkeypatch.setattr(deaths, "most_watched", lambda: 500)
    monkeypatch.setattr(deaths, "RETRY_SECONDS", 0.0)
    pid = family.fork("exit:3")
    before = open_descriptors()
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = []
    with limited_descriptors(highest + 2), contextlib.suppress(OSError):
        while True:
            fillers.append(os.dup(0))
    tried = 0
    while not len(watch):
        with limited_descriptors(highest + 2):
            watch.watch(pid, "worker")
        tried += 1
        os.close(fillers.pop())
    for filler in fillers:
        os.close(filler)
    assert tried > 2
    assert open_descriptors() == before + 1
    family.go(pid)
    assert codes(watch.deaths()) == {pid: 3}
    assert open_descriptors() == before


def test_a_kernel_without_pidfds_watches_nobody(
    family: Family, queue: mplog.LogQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where processes cannot be watched, nothing fails, and what the owner tells is told."""
    pid = family.fork("exit:3")
    monkeypatch.delattr(os, "pidfd_open")
    watch = Watch(queue.path, os.getpid())
    assert watch.fileno() is None
    watch.watch(pid, "worker")
    family.go(pid)
    assert watch.deaths() == watch.rest(60) == []
    assert codes([watch.told(pid, "worker", 3)]) == {pid: 3}  # type: ignore[list-item]
    watch.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_refused_system_call_watches_nobody(
    family: Family, watch: Watch, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A kernel before 5.3, or a sandbox that forbids the call, is put up with in silence."""

    def pidfd_open(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    watch.watch(family.fork("exit:3"), "worker")
    assert len(watch) == 0
    assert not is_readable(watch)


# --- out of memory ---


HUNGRY = """
import os, sys
os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
print(os.getpid(), flush=True)
sys.stdin.readline()
eaten = bytearray(os.urandom(2**20) * 500)
"""


def test_out_of_memory_is_named_where_it_was(watch: Watch, queue: mplog.LogQueue) -> None:
    """A process that the kernel kills for lack of memory is said to be."""
    with (
        memory_group(50 * 2**20) as group,
        subprocess.Popen(
            [sys.executable, "-S", "-c", HUNGRY, queue.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        (group / "cgroup.procs").write_text(str(pid))
        watch.watch(pid, "hungry")
        process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    (death,) = watch.deaths() or [watch.told(pid, "hungry", process.returncode)]
    assert death is not None
    assert "likely cause: out of memory; the kernel has killed" in describe(death, 1, None)
