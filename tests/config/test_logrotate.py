"""Files that a real logrotate rotates while workers log into them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from oracle import acknowledged, verdict, wait_until
from scripts import lines
from test_configured_files import config_of, flood, joined

import mplog

LOGROTATE = shutil.which("logrotate") or shutil.which("logrotate", path="/usr/sbin:/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        LOGROTATE is None, reason="there is no logrotate, which pip cannot install: apt-get install logrotate"
    ),
]


def logrotate(log: Path, *options: str) -> None:
    """Rotate the log once."""
    directory = log.parent.parent
    lines = "\n".join(["rotate 20", "nodateext", *options])
    (directory / "conf").write_text(f"{log} {{\n{lines}\n}}\n")
    (directory / "conf").chmod(0o600)
    command = [str(LOGROTATE), "--force", "--state", str(directory / "state"), str(directory / "conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def sink(log: Path) -> mplog.LogServer:
    """Return a server with a FileSink."""
    return mplog.LogServer(log, level="INFO", format="%(message)s")


def watched(log: Path) -> mplog.LogServer:
    """Return a server whose configuration has the stdlib's handler for this."""
    handler = {"class": "logging.handlers.WatchedFileHandler", "filename": str(log)}
    return mplog.LogServer(config=config_of(file=handler))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log in a directory of its own, in which logrotate works."""
    (tmp_path / "logs").mkdir(mode=0o700)
    return tmp_path / "logs" / "app.log"


@pytest.mark.parametrize("make_server", [sink, watched])
@pytest.mark.parametrize("options", [["create 0600"], ["nocreate"]], ids=["create", "nocreate"])
@pytest.mark.parametrize("asks", [False, True], ids=["unasked", "sighup"])
def test_log_that_is_moved_has_each_record_once(
    make_server: Callable[[Path], mplog.LogServer], options: list[str], asks: bool, log: Path, tmp_path: Path
) -> None:
    """Moved away while workers log, with SIGHUP or without: each record is in one file, in order across the files."""
    context = multiprocessing.get_context("fork")
    names = ["w0", "w1", "w2"]
    with make_server(log) as server:
        workers = [context.Process(target=flood, args=(server.initializer, tmp_path, name, 0.005)) for name in names]
        try:
            for worker in workers:
                worker.start()
            for number in range(1, 4):
                wait_until(lambda: log.exists() and log.stat().st_size > 100_000, "the log grows")
                before = log.stat().st_ino
                more = ["postrotate", f"kill -HUP {server.pid}", "endscript"] if asks else []
                logrotate(log, *options, *more)
                assert os.stat(f"{log}.1").st_ino == before, number
                wait_until(lambda: log.exists() and log.stat().st_size > 0, "the log goes on in a new file")
            (tmp_path / "end").touch()
            for worker in workers:
                worker.join(60)
                assert worker.exitcode == 0
        finally:
            for worker in workers:
                worker.kill()
                worker.join(60)
    assert len(list(log.parent.glob("app.log.*"))) == 3
    found = verdict(joined(log), tmp_path)
    assert found.clean, found
    assert all(acknowledged(tmp_path, name) > 0 for name in names)
    assert [path.name for path in log.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("make_server", [sink, watched])
def test_log_that_is_copied_and_truncated_has_no_hole(
    make_server: Callable[[Path], mplog.LogServer], log: Path
) -> None:
    """With copytruncate, what was written before is in the copy, and what comes after is in the emptied file."""
    with make_server(log) as server:
        for number in range(1, 4):
            logging.info("record %d", number)
            server.flush()
            logrotate(log, "copytruncate")
        logging.info("record 4")
    names = [f"{log}.3", f"{log}.2", f"{log}.1", str(log)]
    written = [[line for line in lines(Path(name)) if "mplog:" not in line] for name in names]
    assert written == [[f"record {number}"] for number in range(1, 5)]
    assert all(b"\0" not in Path(name).read_bytes() for name in names)


def test_log_that_is_compressed_later_loses_nothing(log: Path, tmp_path: Path) -> None:
    """With compress and delaycompress, the file that has just been moved may still be written."""
    with sink(log) as server:
        for number in range(1, 4):
            logging.info("record %d", number)
            server.flush()
            logrotate(log, "compress", "delaycompress", "postrotate", f"kill -HUP {server.pid}", "endscript")
            wait_until(log.exists, "the log goes on in a new file")
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "app.log",
        "app.log.1",
        "app.log.2.gz",
        "app.log.3.gz",
    ]
    texts = [subprocess.check_output(["gzip", "-dc", f"{log}.{number}.gz"], text=True) for number in (3, 2)]
    assert [*texts, (log.parent / "app.log.1").read_text()] == [f"record {number}\n" for number in range(1, 4)]
