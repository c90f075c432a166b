"""Programs whose clocks freezegun has stopped, as their tests do: fault 44."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import lines, run_script

pytest.importorskip("freezegun")

pytestmark = pytest.mark.processes

HEAD = """
import atexit, fcntl, logging, os, queue, signal, sys, time, freezegun, mplog
from mplog.queue.directory import emergency_path

frozen = freezegun.freeze_time("2012-01-14 03:21:34")
"""

USE = """
import multiprocessing

def work(number):
    logging.getLogger("worker").info("from worker %d", number)
    logging.critical("through")

class Utc(logging.Formatter):
    converter = time.gmtime

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    if sys.argv[2] == "before":
        frozen.start()
    sink = mplog.FileSink("app.log", format=Utc("%(asctime)s %(message)s"))
    with mplog.LogServer(sink, level="INFO", logger_class=mplog.Logger, sync_level="CRITICAL") as server:
        if sys.argv[2] == "after":
            frozen.start()
        logging.getLogger("x").info("direct")
        logging.info("with a traceback: %s", "none", exc_info=ValueError("none"))
        server.set_level("quiet", "ERROR")
        logging.getLogger("quiet").warning("too low")
        server.flush()
        with multiprocessing.Pool(2, server.initializer) as pool:
            pool.map(work, range(2))
        stats = server.stop()
    assert not stats.lost, stats
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_server_works_while_the_time_is_frozen(tmp_path: Path, method: str, when: str) -> None:
    """The time may be frozen before a server starts, or later; records have that time, as in the stdlib."""
    done = run_script(tmp_path, HEAD + USE, method, when)
    assert (done.returncode, done.stderr) == (0, "")
    found = [re.sub(r"^[-\d]+ [:,\d]+ ", "", line) for line in lines(tmp_path / "app.log")]
    assert sorted(found) == sorted(
        ["direct", "with a traceback: none", "ValueError: none", "from worker 0", "from worker 1", *["through"] * 2]
    )
    ours = [line for line in lines(tmp_path / "app.log") if re.search("direct|traceback", line)]
    assert all(line.startswith("2012-01-14 03:21:34,000 ") for line in ours), ours


HELD_UP = """
sync = mplog.Sync(logging.CRITICAL, timeout=0.2)
server = mplog.LogServer("app.log", level="INFO", overflow="fallback", sync_level=sync).start()
empty, pid = mplog.LogQueue(), server.pid
frozen.start()

def check(call, error, least=0.2):
    began = freezegun.api.real_monotonic()
    try:
        call()
    except error:
        pass
    took = freezegun.api.real_monotonic() - began
    assert least <= took < 20, (call, took)

check(lambda: empty.get(timeout=0.2), queue.Empty)
os.kill(pid, signal.SIGSTOP)
atexit.register(os.kill, pid, signal.SIGCONT)
check(lambda: logging.critical("through"), ())
check(lambda: server.flush(timeout=0.2), mplog.DrainTimeoutError)

# Another process has the lock of the emergency file, and does not move.
holder = os.open(server.queue.overflow.emergency, os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(holder, fcntl.LOCK_EX)
while not server.queue.full():
    logging.info("x" * 2000)
check(lambda: logging.error("x" * 3000), (), least=1)
os.close(holder)

check(lambda: server.stop(timeout=0.2), mplog.DrainTimeoutError)
os.kill(pid, signal.SIGCONT)
print(server.stop().lost)
"""


def test_waits_end_while_the_time_is_frozen(tmp_path: Path) -> None:
    """Each wait has its limit in real time: for the disk, a lock, an answer, an object in a queue."""
    done = run_script(tmp_path, HEAD + HELD_UP)
    assert done.returncode == 0, done.stderr
    assert "NO_EMERGENCY" in done.stdout
