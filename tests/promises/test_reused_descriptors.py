"""A program closes mplog's descriptors, and its own files get their numbers (fault 38)."""

from __future__ import annotations

import os
import select
from multiprocessing import Pipe
from pathlib import Path

import pytest
from queue_use import record
from scripts import run_script

from mplog import LogQueue
from mplog.queue.descriptor import NONE, Descriptor, out_of_the_way, what_is
from mplog.queue.sync import Waiter
from mplog.server.link import Connection

# --- whole programs ---

PROGRAM = """
import logging, os, resource, signal, sys, time

import mplog
from mplog.queue.descriptor import KNOWN_FOR

how, where, logger = sys.argv[1:]
if how == "reached":  # the number of the FIFO is among those that the program's own files get
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kind = mplog.Logger if logger == "Logger" else logging.Logger
log = mplog.FileSink("app.log", format="%(message)s")
server = mplog.LogServer(log, mplog.RawSink("raw.bin"), level="INFO", logger_class=kind).start()
pid = os.fork()
if where == "program" and pid == 0:
    time.sleep(30)  # without another process that logs, the log would end with the program's descriptors
    os._exit(0)
if where == "fork" and pid:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    server.stop()
    sys.exit(code)
log = logging.getLogger("job")
log.info("before")
queue = logging.getLogger().handlers[0].queue
number = queue.sender.write_fd
known = time.monotonic() + KNOWN_FOR
if how == "dup2":
    files = [open("own0", "wb", buffering=0)]
    os.dup2(files[0].fileno(), number)
    files.append(os.fdopen(number, "wb", buffering=0))
else:
    os.closerange(3, 4096)
    files = [open(f"own{n}", "wb", buffering=0) for n in range(240 if how == "reached" else 20)]
    assert (number in [file.fileno() for file in files]) == (how == "reached")
while time.monotonic() < known:
    pass
if logger == "bytes":
    mplog.write(b"after")
elif logger == "put":
    queue.put(logging.LogRecord("job", 20, "", 0, "after", None, None))
else:
    log.info("after")
assert queue.pending() >= 0
queue.close()
for file in files:
    os.fstat(file.fileno())
    assert os.path.getsize(file.fileno()) == 0, open(file.name, "rb").read()
if pid:
    os.kill(pid, signal.SIGKILL)
os._exit(0)
"""


KEPT = """
import logging, logging.handlers, os

import mplog

with mplog.LogServer("app.log", level="INFO", format="%(message)s"):
    pid = os.fork()
    if not pid:
        root = logging.getLogger()
        memory = logging.handlers.MemoryHandler(10, target=root.handlers[0])
        before, after = (logging.LogRecord("job", 20, "", 0, text, None, None) for text in ("before", "after"))
        after.created = before.created + 10e-6
        root.handlers[0].handle(before)
        memory.handle(after)
        os.closerange(3, 4096)
        files = [open(f"own{n}", "wb", buffering=0) for n in range(1000)]
        memory.flush()
        os._exit(any(os.path.getsize(file.fileno()) for file in files))
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.processes
def test_a_record_that_was_made_long_before_it_is_sent_goes_into_no_file_of_the_program(tmp_path: Path) -> None:
    """What counts is the time of the write, not that of the record: a MemoryHandler may have kept it meanwhile."""
    soft = "import resource\nhard = resource.getrlimit(7)[1]\nresource.setrlimit(7, (1024, hard))\n"
    done = run_script(tmp_path, soft + KEPT.lstrip())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.processes
@pytest.mark.parametrize("logger", ["logging", "Logger", "bytes", "put"])
@pytest.mark.parametrize("where", ["fork", "program"])
@pytest.mark.parametrize("how", ["closed", "reached", "dup2"])
def test_records_go_into_the_log_and_into_no_file_of_the_program(
    tmp_path: Path, how: str, where: str, logger: str
) -> None:
    """A process whose descriptors were closed, and their numbers taken, logs on, and leaves its own files alone."""
    done = run_script(tmp_path, PROGRAM, how, where, logger)
    assert (done.returncode, done.stderr) == (0, "")
    written = (tmp_path / "app.log").read_text() + (tmp_path / "raw.bin").read_text()
    assert written.split() == ["before", "after"]


SYNCED = """
import logging, os, threading

import mplog
from mplog.queue import sync

def take_the_numbers(self, deadline, wait=sync.Waiter.wait):
    os.closerange(3, 4096)
    for n in range(20):
        files.append(open(f"own{n}", "w+b", buffering=0))
        files[-1].write(b"precious")
        files[-1].seek(0)
    return wait(self, deadline)

files = []
with mplog.LogServer("app.log", level="INFO", format="%(message)s", sync_level="INFO") as server:
    pid = os.fork()
    if pid == 0:
        server.initializer()
        sync.Waiter.wait = take_the_numbers
        logging.info("synced")
        assert [file.read() for file in files] == [b"precious"] * 20
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.processes
def test_a_call_that_waits_for_the_disk_reads_and_closes_no_file_of_the_program(tmp_path: Path) -> None:
    """A call at sync_level during which all descriptors are closed returns, and leaves the program's files alone."""
    done = run_script(tmp_path, SYNCED)
    assert (done.returncode, done.stderr) == (0, "")
    written = (tmp_path / "app.log").read_text().splitlines()
    assert "synced" in written
    assert [line for line in written if line.startswith("mplog: 1 record not known to be on disk in time")]


MAPPING = """
import gc, os, sys

from mplog.queue.shared_file import make_file, map_file

make_file(os.path.abspath("mapped"), 8)
before = len(os.listdir("/dev/fd"))
mapping = map_file(os.path.abspath("mapped"), 8)
assert len(os.listdir("/dev/fd")) == before + (sys.version_info < (3, 13))
os.closerange(3, 4096)
files = [open(f"own{n}", "wb") for n in range(20)]
del mapping
gc.collect()
again = [map_file(os.path.abspath("mapped"), 8) for _ in range(3)]
for file in files:
    os.fstat(file.fileno())
    file.write(b"x")  # written when the interpreter ends
"""


@pytest.mark.processes
def test_a_mapping_closes_no_file_of_the_program(tmp_path: Path) -> None:
    """A mapped file that is collected leaves a number alone that the program has taken since, also at the end."""
    done = run_script(tmp_path, MAPPING)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.read_bytes() for path in tmp_path.glob("own*")] == [b"x"] * 20


@pytest.mark.processes
def test_mappings_that_nobody_uses_are_given_back(tmp_path: Path) -> None:
    """A program that maps file after file has no more descriptors than at the beginning."""
    program = """
        import os
        from mplog.queue.shared_file import make_file, map_file
        make_file(os.path.abspath("mapped"), 8)
        for number in range(50):
            used = map_file(os.path.abspath("mapped"), 8)
        assert len(os.listdir("/dev/fd")) < 10, os.listdir("/dev/fd")
        """
    done = run_script(tmp_path, program)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.processes
@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 10_000])
def test_ends_of_a_queue_are_at_high_numbers(tmp_path: Path, limit: int) -> None:
    """The numbers are the highest that the limit allows, up to 4096, so that the program's files get them last."""
    program = """
        import resource, sys
        import mplog
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        queue = mplog.LogQueue()
        print(queue.reader.read_fd, queue.sender.write_fd)
        """
    done = run_script(tmp_path, program, limit)
    lowest = min(limit, 4096) * 7 // 8
    assert done.stdout.split() == [str(lowest), str(lowest + 1)], done.stderr


# --- one process ---


@pytest.fixture
def own(tmp_path: Path) -> Descriptor:
    """A descriptor of ours whose number has become a file of the program's."""
    ours = Descriptor(out_of_the_way(os.open(tmp_path, os.O_RDONLY)))
    assert ours.is_ours()
    take(ours.fd, tmp_path / "own")
    return ours


def take(number: int, path: Path) -> None:
    """Open a file of the program's under a number."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)


def test_a_descriptor_that_is_somebody_elses_is_not_closed(own: Descriptor) -> None:
    """close() leaves it alone, and says nothing."""
    assert not own.is_ours()
    own.close()
    os.close(own.fd)
    own.close()
    NONE.close()
    assert not NONE.is_ours()


def test_a_descriptor_is_closed_once(tmp_path: Path) -> None:
    """close() closes it; a second call leaves whoever has got the same number since alone."""
    ours = Descriptor(os.open(tmp_path, os.O_RDONLY))
    ours.close()
    take(ours.fd, tmp_path / "own")
    ours.close()
    os.close(ours.fd)


def test_a_marked_descriptor_is_told_from_a_fifo_of_the_program() -> None:
    """The quick look tells a pipe of the program's from ours, too."""
    reader, writer = os.pipe()
    marked = Descriptor(os.dup(writer))
    marked.mark()
    assert marked.is_still_ours()
    other_reader, other_writer = os.pipe()
    os.dup2(other_writer, marked.fd)
    assert not marked.is_still_ours()
    for fd in (reader, writer, other_reader, other_writer, marked.fd):
        os.close(fd)
    assert not marked.is_still_ours()


def test_a_connection_whose_number_is_somebody_elses_forgets_it(tmp_path: Path) -> None:
    """Neither close() nor the garbage collector closes the number; one of ours is closed."""
    ours, theirs = (Connection(os.dup(end.fileno())) for end in Pipe())
    number = ours.fileno()
    take(number, tmp_path / "own")
    assert not ours.is_ours
    ours.close()
    assert ours.closed
    del ours
    os.close(number)
    number = theirs.fileno()
    assert theirs.is_ours
    del theirs
    assert what_is(number) is None


def test_a_reader_takes_nothing_out_of_a_pipe_of_the_program() -> None:
    """get() opens the FIFO again, and leaves the program's pipe, and close() leaves it open."""
    queue = LogQueue()
    pipe_reader, pipe_writer = os.pipe()
    os.write(pipe_writer, b"precious")
    number = queue.reader.read_fd
    queue.put(record("hello"))
    os.dup2(pipe_reader, number)
    assert queue.get(timeout=60).getMessage() == "hello"
    queue.close()
    assert os.read(number, 100) == b"precious"
    for fd in (pipe_reader, pipe_writer, number):
        os.close(fd)


def test_a_waiter_whose_number_is_somebody_elses_reads_nothing(tmp_path: Path) -> None:
    """wait() returns that the record is not known to be on disk, and close() removes the FIFO alone."""
    waiter = Waiter(str(tmp_path))
    pipe_reader, pipe_writer = os.pipe()
    os.write(pipe_writer, b"\1")
    number = waiter._end.fd
    os.dup2(pipe_reader, number)
    assert not waiter.wait(0)
    waiter.close()
    assert select.select([number], [], [], 0)[0]
    assert list(tmp_path.iterdir()) == []
    for fd in (pipe_reader, pipe_writer, number):
        os.close(fd)
