"""What all commands of mplog have in common: their output may be closed, or full."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from commands import shell, start

pytestmark = pytest.mark.processes

COMMANDS = [
    ["--help"],
    ["run", "--help"],
    ["top", "--json", "."],
    ["tail", "app.log"],
    ["demo", "--seconds", "1"],
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a log."""
    (tmp_path / "app.log").write_text("2026-11-20 18:03:46,567 INFO     MainProcess app | hello\n")
    return tmp_path


@pytest.mark.parametrize("unbuffered", [None, "1"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_without_a_reader(directory: Path, command: list[str], unbuffered: str | None) -> None:
    """A command whose output goes into a closed pipe ends silently with exit status 1.

    Help that is not buffered has status 0: argparse itself ignores it.
    """
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        running = start(
            *command,
            directory=directory,
            stdout=closed,
            stderr=subprocess.PIPE,
            changes={"PYTHONUNBUFFERED": unbuffered},
        )
        said = running.communicate(timeout=60)[1]
    is_help = unbuffered and "--help" in command
    assert (running.returncode == 1 or is_help, said) == (True, "")


@pytest.mark.parametrize("command", COMMANDS[2:], ids=" ".join)
def test_output_on_a_full_disk(directory: Path, command: list[str]) -> None:
    """A command whose output cannot be written says why, in a line, and its exit status is 1."""
    with open("/dev/full", "w") as full:
        running = start(*command, directory=directory, stdout=full, stderr=subprocess.PIPE)
        said = running.communicate(timeout=60)[1]
    assert (running.returncode, said) == (1, f"mplog {command[0]}: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("command", ["--help", "tail app.log", "demo --seconds 1"])
@pytest.mark.parametrize("closing", [">&-", "<&- >&-"])
def test_output_that_was_closed_at_the_start(directory: Path, command: str, closing: str) -> None:
    """Without a standard output, a command does its work and prints nothing."""
    done = shell(f"mplog {command} {closing}", directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_option_that_there_is_not(directory: Path) -> None:
    """The usage that is shown is that of the verb."""
    done = shell("mplog run --bogus true", directory)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: mplog run [OPTION ...] [--] COMMAND")
    assert done.stderr.endswith("mplog run: error: unrecognized arguments: --bogus\n")


def test_error_output_that_was_closed_at_the_start(directory: Path) -> None:
    """Without a standard error, what goes wrong is not said on standard output, and the command starts without it."""
    command = "sh -c 'test -e /dev/fd/2 || echo closed'"
    done = shell(f"mplog run --log app.log none 2>&-; mplog run --log app.log -- {command} 2>&-", directory)
    assert (done.returncode, done.stdout) == (0, "closed\n")


def test_nothing_gets_the_number_of_an_output_that_was_closed(directory: Path) -> None:
    """What mplog serve prints when it is ready does not go into a file that it has opened itself."""
    script = """
        mplog serve --log new.log --queue queue >&- &
        until mplog log --queue queue info ready 2>/dev/null; do sleep 0.05; done
        mplog serve stop --queue queue && wait
        mplog serve start --log new.log >&- --queue queue && mplog serve stop --queue queue
    """
    done = shell(script, directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert (directory / "new.log").read_text().endswith("| ready\n")
