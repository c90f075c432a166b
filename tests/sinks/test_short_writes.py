"""Standard output that takes only a part of what is written: full pipes, full disks, nobody who reads (fault 35)."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from scripts import environment, write_script

from mplog.files.outlet import Outlet, complete
from mplog.queue.fifo import pending

#: Prints the pid of the logging process, logs so many lines, and prints how many could not be written.
PROGRAM = """
import logging, sys
import mplog

kind, count = sys.argv[1], int(sys.argv[2])
if kind == "configuration":
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    config = {"version": 1, "handlers": {"out": handler}, "root": {"level": "INFO", "handlers": ["out"]}}
    server = mplog.LogServer(config=config)
else:
    sinks = {
        "ConsoleSink": mplog.ConsoleSink("stdout"),
        "HandlerSink": mplog.HandlerSink(lambda: logging.StreamHandler(sys.stdout)),
    }
    server = mplog.LogServer(sinks[kind], level="INFO", format="%(message)s")
server.start()
print(server.pid, file=sys.stderr, flush=True)
for number in range(count):
    logging.info("line %06d %s", number, "x" * 100)
if "impatient" in sys.argv:
    for end in (server.flush, server.stop):
        try:
            end(0.2)
        except mplog.DrainTimeoutError as error:
            print(type(error).__name__, file=sys.stderr, flush=True)
stats = server.stop(60)
print(sum(stats.failed.values()), file=sys.stderr)
"""
#: More than a pipe holds.
COUNT = 2000
EXPECTED = [f"line {number:06} {'x' * 100}" for number in range(COUNT)]

KINDS = pytest.mark.parametrize("kind", ["ConsoleSink", "HandlerSink", "configuration"])
UNBUFFERED = pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])


def start(directory: Path, output: int | io.FileIO, *arguments: str, unbuffered: str = "") -> subprocess.Popen[str]:
    """Start the program with this standard output."""
    return subprocess.Popen(
        [sys.executable, write_script(directory, PROGRAM), *arguments],
        cwd=directory,
        env=environment(PYTHONUNBUFFERED=unbuffered or None),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(program: subprocess.Popen[str]) -> list[str]:
    """Return the lines that the program prints on standard error until its end."""
    assert program.stderr is not None
    with program.stderr:
        lines = program.stderr.read().splitlines()
    assert program.wait(60) == 0, lines
    return lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe; the test may close the writing one."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def wait_until_full(reading: int) -> None:
    """Wait until a writer that has more to write finds no room: the pipe stays as full as it is."""
    seen: list[int] = []

    def is_full() -> bool:
        seen.append(pending(reading))
        return seen[-1] > 50_000 and len(seen) > 5 and len({*seen[-5:]}) == 1

    wait_until(is_full, "the pipe is full")


def read_all(reading: int) -> list[str]:
    """Return the lines that are still written until all writing ends are closed."""
    data = bytearray()
    while chunk := os.read(reading, 4000):
        data += chunk
    return data.decode().splitlines()


@pytest.mark.processes
@KINDS
@UNBUFFERED
@pytest.mark.parametrize("is_blocking", [True, False], ids=["blocking", "non-blocking"])
def test_full_pipe_is_waited_for(
    tmp_path: Path, pipe: tuple[int, int], kind: str, unbuffered: str, is_blocking: bool
) -> None:
    """Whatever interrupts the write, and even if another user of the pipe has made it non-blocking, all is written."""
    reading, writing = pipe
    os.set_blocking(writing, is_blocking)
    program = start(tmp_path, writing, kind, str(COUNT), unbuffered=unbuffered)
    os.close(writing)
    assert program.stderr is not None
    pid = int(program.stderr.readline())
    data = bytearray()
    for number in (signal.SIGHUP, signal.SIGSTOP, signal.SIGHUP):
        wait_until_full(reading)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        data += os.read(reading, 20_000)
    rest = read_all(reading)
    assert data.decode() + "\n".join(rest) + "\n" == "".join(f"{line}\n" for line in EXPECTED)
    assert said(program) == ["0"]


@pytest.mark.processes
def test_pipe_that_nobody_reads_costs_no_time(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """While a non-blocking pipe is full, flush() and stop() end in time, and no CPU is used; then all is written."""
    reading, writing = pipe
    os.set_blocking(writing, False)
    program = start(tmp_path, writing, "ConsoleSink", str(COUNT), "impatient")
    os.close(writing)
    assert program.stderr is not None
    process = psutil.Process(int(program.stderr.readline()))
    assert [program.stderr.readline() for _ in range(2)] == ["DrainTimeoutError\n"] * 2
    wait_until_full(reading)
    before = process.cpu_times()
    time.sleep(0.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.1
    assert read_all(reading) == EXPECTED
    assert said(program) == ["0"]


@pytest.mark.processes
@KINDS
@UNBUFFERED
@pytest.mark.parametrize("small_disk", ["100k"], indirect=True)
def test_full_disk_tears_nothing(tmp_path: Path, small_disk: Path, kind: str, unbuffered: str) -> None:
    """Each line is in the file, whole, or counted as failed."""
    path = small_disk / "output"
    with path.open("wb", buffering=0) as output:
        *_, failed = said(start(tmp_path, output, kind, str(COUNT), unbuffered=unbuffered))
    # A line of mplog's own, that others could not be written, may be short enough for the rest of the room.
    lines = [line for line in path.read_text().splitlines() if not line.startswith("mplog: ")]
    assert lines == EXPECTED[: len(lines)]
    assert 0 < len(lines) == COUNT - int(failed)


@pytest.mark.processes
def test_tail_into_a_pipe_that_is_full(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """``mplog tail`` waits for its reader, too, and leaves nothing out."""
    log = tmp_path / "app.log"
    log.write_text("".join(f"{line}\n" for line in EXPECTED))
    reading, writing = pipe
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "mplog", "tail", "-n", "all", log]
    with subprocess.Popen(command, stdout=writing, env=environment(PYTHONUNBUFFERED="1")) as program:
        os.close(writing)
        wait_until_full(reading)
        assert read_all(reading) == EXPECTED
        assert program.wait(60) == 0


# --- what a write leaves that has failed ---


class Full:
    """Stands for ``os.write`` on a disk with room for so many bytes, `more` of which others take in between."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, fd: int, data: Any) -> int:
        """Write what there is room for."""
        size = min(self.room, len(data))
        self.room -= size
        if not size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(fd, bytes(data[:size]))


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["offset", "appending"])
def test_part_of_a_line_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    """A write to a file that has failed leaves nothing, and the next one follows without a gap."""
    fd = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT | flags)
    outlet = Outlet(fd)
    outlet.write(b"first\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Full(3))
        with pytest.raises(OSError, match="No space"):
            outlet.write(b"second\n")
    outlet.write(b"third\n")
    os.close(fd)
    assert (tmp_path / "output").read_bytes() == b"first\nthird\n"


def test_part_that_cannot_be_cut_off_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file into which others have written since is not cut; the part of a line is a line of its own."""
    fd = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    outlet = Outlet(fd)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Full(3))
        done, error = outlet.attempt(b"second\n")
    assert (done, isinstance(error, OSError)) == (3, True)
    os.write(fd, b"|theirs")
    outlet.take_back(done)
    outlet.write(b"third\n")
    os.close(fd)
    assert (tmp_path / "output").read_bytes() == b"sec|theirs\nthird\n"


def test_part_of_a_line_in_a_pipe_is_ended(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a pipe cannot be taken back."""
    reading, writing = pipe
    outlet = Outlet(writing)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Full(3))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                outlet.write(b"second\n")
    outlet.write(b"third\n")
    os.close(writing)
    assert read_all(reading) == ["sec", "third"]


def test_stream_keeps_nothing_that_has_failed(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A text stream over an outlet writes each line at once, and does not write later what it could not write."""
    reading, writing = pipe
    stream = complete(io.TextIOWrapper(io.FileIO(writing, "w", closefd=False), "utf-8", "backslashreplace"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Full(0))
        with pytest.raises(OSError, match="No space"):
            print("lost", file=stream)
    print("grün \udcff", file=stream)
    assert pending(reading) == len("grün \\udcff\n".encode())
    os.close(writing)
    assert read_all(reading) == ["grün \\udcff"]


def test_stream_without_a_descriptor_stays_as_it_is() -> None:
    """What the program has put in place of a standard stream is used as it is."""
    for stream in (io.StringIO(), None, io.TextIOWrapper(io.BytesIO())):
        assert complete(stream) is stream
