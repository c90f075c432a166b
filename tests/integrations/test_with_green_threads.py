"""Programs with green threads: eventlet and gevent put functions of their own into os, select, time and threading."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from scripts import run_script

pytestmark = pytest.mark.processes

PROGRAM = """
import sys, warnings

warnings.simplefilter("ignore")  # eventlet is deprecated
library, order, threads = sys.argv[1:]

def patch():
    if library == "eventlet":
        import eventlet
        eventlet.monkey_patch(os=True, select=True, socket=True, time=True, thread=threads == "green")
    else:
        from gevent import monkey
        monkey.patch_all(thread=threads == "green")

def spawn(number):
    if library == "eventlet":
        import eventlet
        return eventlet.spawn(work, number).wait
    import gevent
    return gevent.spawn(work, number).join

if order == "after":
    patch()
import logging
import mplog, mplog.server.log_server, mplog.worker.logger
if order == "before":
    patch()

def work(number):
    for count in range(2_000):
        logging.info("%d %d %s", number, count, "x" * 300)  # more than the queue holds
    logging.error("%d synced", number)

with mplog.LogServer("app.log", level="INFO", format="%(message)s", sync_level="ERROR") as server:
    for wait in [spawn(number) for number in range(4)]:
        wait()
    server.flush(30)
    server.set_level("job", "DEBUG")
    assert server.stats(30).received == 8_004
    stats = server.stop(30)
assert stats.lost == [] and not stats.unexplained, stats
"""


@pytest.mark.parametrize("threads", ["green", "native"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("library", ["eventlet", "gevent"])
def test_nothing_is_lost_with_green_threads(tmp_path: Path, library: str, order: str, threads: str) -> None:
    """Green threads fill the queue, and log records that are written through: each record arrives once, in order.

    mplog is imported before or after the library has replaced functions of the standard library.
    """
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "eventlet" and sys.version_info >= (3, 15):
        pytest.skip("subprocess needs select.poll from Python 3.15 on, which eventlet takes away")
    done = run_script(tmp_path, PROGRAM, library, order, threads, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    written = [line.split()[:2] for line in (tmp_path / "app.log").read_text().splitlines()]
    for number in range(4):
        mine = [what for who, what in written if who == str(number)]
        assert mine == [*map(str, range(2_000)), "synced"]
