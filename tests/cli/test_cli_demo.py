"""``mplog demo``: the kills are real, the account comes from the file, and the screen suits what it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from commands import MPLOG, mplog, start
from terminal import Terminal

from mplog.cli.demo import Account

pytestmark = pytest.mark.processes


def test_it_kills_and_counts(tmp_path: Path) -> None:
    """A worker and two logging processes are killed, nothing is lost, and the log, which is kept, has every record."""
    done = mplog("demo", "--seconds", "4", "--log", "demo.log", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert len(re.findall(r"^>>> kill -KILL", done.stdout, re.M)) == 3
    rows = dict(re.findall(r"^(\w.*?)  +([\d,]+)$", done.stdout, re.M))
    count = int(rows["written, counted in the file"].replace(",", ""))
    text = (tmp_path / "demo.log").read_text()
    assert count == len(re.findall(r" \| worker=\d record=\d+$", text, re.M)) > 1000
    assert (rows["lost"], rows["doubled"], rows["torn"]) == ("0", "0", "0")
    assert rows["logging processes killed and replaced"] == "2"
    assert "worker-2 (pid " in text
    again = mplog("demo", "--seconds", "1", "--workers", "2", "--log", "demo.log", directory=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "demo.log").read_text().startswith(text)


def test_account_tells_the_truth(tmp_path: Path) -> None:
    """Missing, doubled and torn records in the file are counted, and an empty account is not clean."""
    log = tmp_path / "demo.log"
    line = "2026-01-01 00:00:00,000 INFO worker-1 demo | worker={} record={}\n"
    log.write_text("older\n")
    begin = log.stat().st_size
    assert not Account.of(str(log), begin, [0, 0]).is_clean
    with log.open("a") as file:
        file.write(line.format(0, 1) + line.format(0, 2) + "2026 | mplog: a notice\n" + line.format(1, 1))
    assert Account.of(str(log), begin, [2, 1]) == Account(logged=3, written=3, lost=0, doubled=0, torn=0)
    assert Account.of(str(log), begin, [2, 1]).is_clean
    with log.open("a") as file:
        file.write(line.format(0, 2) + "worker=0 rec\n")
    assert Account.of(str(log), begin, [4, 1]) == Account(logged=5, written=4, lost=2, doubled=1, torn=1)


def test_terminal(tmp_path: Path) -> None:
    """On a terminal, it is in colour."""
    pytest.importorskip("rich")
    with Terminal([*MPLOG, "demo", "--seconds", "1"], directory=tmp_path) as terminal:
        terminal.wait_for("records logged")
        assert terminal.wait() == 0
        assert b"\x1b[1;33m>>> " in terminal.output


def test_terminal_without_rich(tmp_path: Path) -> None:
    """It works without colours."""
    (tmp_path / "rich.py").write_text("raise ImportError('as if it were not installed')\n")
    with Terminal([*MPLOG, "demo", "--seconds", "1"], directory=tmp_path) as terminal:
        terminal.wait_for(">>> ", "records logged")
        assert terminal.wait() == 0
        assert b"\x1b" not in terminal.output


def test_output_that_is_closed(tmp_path: Path) -> None:
    """It ends without a traceback when its output is closed."""
    running = start("demo", directory=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline().startswith(">>> 4 workers")
    running.stdout.close()
    assert running.wait(30) == 1
    with running.stderr:
        assert running.stderr.read() == ""


def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C, which reaches the workers, too, ends it without a traceback, and leaves nothing running."""
    running = start("demo", directory=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert running.stdout is not None
    said = ""
    while not all(f"worker={index} record=1\n" in said for index in range(4)):
        said += running.stdout.readline()
    os.killpg(running.pid, signal.SIGINT)
    assert running.communicate(timeout=60)[1] == ""  # and no process has its output open any more
    assert running.returncode == 130


def test_misuse(tmp_path: Path) -> None:
    """One worker and less than a second are too few, and a log that cannot be opened is said."""
    assert mplog("demo", "--workers", "1", directory=tmp_path).returncode == 2
    for seconds in ("x", "0", "0.9"):
        done = mplog("demo", "--seconds", seconds, directory=tmp_path)
        assert done.returncode == 2
        assert f"{seconds} is not a number of seconds from 1 to " in done.stderr
    done = mplog("demo", "--log", "none/demo.log", directory=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("mplog demo: ")
