"""However a program ends, what it has logged is written: faults 8, 24, 28, and parts of 30."""

from __future__ import annotations

import glob
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from oracle import acknowledged, verdict, wait_until
from scripts import environment, lines, process_has_ended, run, run_script, wait_until_main_waits, write_script
from start_methods import PAIRS, skip_without_dill

pytestmark = pytest.mark.processes

BEGIN = """
import atexit, logging, multiprocessing, os, signal, sys, threading
import mplog

server = mplog.LogServer("app.log", level="INFO", format="%(message)s")

def log(count=2000):
    for number in range(count):
        logging.info("%d", number)
"""

ENDINGS = {
    "forgotten stop": ("server.start(); log()", 0),
    "forgotten name": ("server.start(); log(); del server", 0),
    "with": ("with server: log()", 0),
    "sys.exit": ("with server: log(); sys.exit(3)", 3),
    "sys.exit, no with": ("server.start(); log(); sys.exit(3)", 3),
    "exception": ("with server: log(); raise SystemError('as planned')", 1),
    "exception, no with": ("server.start(); log(); raise SystemError('as planned')", 1),
    "os._exit": ("server.start(); log(); os._exit(3)", 3),
    "os._exit after flush": ("server.start(); log(); server.flush(); os._exit(3)", 3),
    "SIGKILL": ("server.start(); log(); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "SIGTERM": ("server.start(); log(); os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGINT": ("server.start(); log(); os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    "stop in atexit": ("server.start(); atexit.register(server.stop); log()", 0),
    "stop in a thread": ("server.start(); log(); threading.Thread(target=server.stop).start()", 0),
    "in a thread": ("thread = threading.Thread(target=server.start); thread.start(); thread.join(); log()", 0),
    "thread goes on": ("server.start(); threading.Thread(target=log).start()", 0),
}


def no_directory() -> bool:
    """Whether no queue's directory is left."""
    return glob.glob(os.path.join(tempfile.gettempdir(), "mplog-*")) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_program_ends_with_everything_written(tmp_path: Path, ending: str) -> None:
    """However the program ends, everything that it has logged is in the file, and nothing else is left."""
    text, code = ENDINGS[ending]
    result = run_script(tmp_path, BEGIN + text)
    assert result.returncode == code, result
    assert ("Traceback" in result.stderr) == ("exception" in ending or ending == "SIGINT"), result.stderr
    assert "mplog" not in result.stderr.replace("/mplog", "")
    written = lines(tmp_path / "app.log")
    assert written[:2000] == [str(number) for number in range(2000)]
    assert all("MainProcess (pid" in line for line in written[2000:])  # how the program has ended, where that is known
    assert no_directory()
    assert sorted(os.listdir(tmp_path)) == ["app.log", "program.py"]


def test_server_that_never_started_does_nothing(tmp_path: Path) -> None:
    """Without start(), there is no file, no process and no output."""
    result = run_script(tmp_path, BEGIN + "server.stop(); log()")
    assert (result.returncode, result.stderr) == (0, "")
    assert os.listdir(tmp_path) == ["program.py"]


@pytest.mark.parametrize("kind", ["-c", "-"])
def test_program_without_a_file(tmp_path: Path, kind: str) -> None:
    """Server and lambdas work in `python -c` and in a program from standard input."""
    text = BEGIN + (
        "sink = mplog.HandlerSink(lambda: logging.FileHandler('b.log'), filters=[lambda record: record.msg != 'no'])\n"
        "with mplog.LogServer('app.log', sink, level='INFO', format='%(message)s'): log(10); logging.info('no')\n"
    )
    arguments = [kind, text] if kind == "-c" else [kind]
    result = run(arguments, cwd=tmp_path, **({} if kind == "-c" else {"input": text}))
    assert (result.returncode, result.stderr) == (0, "")
    assert lines(tmp_path / "b.log") == [str(number) for number in range(10)]
    assert lines(tmp_path / "app.log") == [*map(str, range(10)), "no"]


EXIT = """
import atexit
atexit.register(lambda: logging.info("atexit, after everything"))
import logging, multiprocessing.util, sys, threading
from oracle import Producer
import mplog

server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
atexit.register(logging.info, "atexit, before everything")

class Last:
    def __del__(self, log=logging.info):
        log("__del__")

last = Last()
multiprocessing.util.Finalize(None, logging.info, ("Finalize",), exitpriority=-1000)
first, later = Producer("."), Producer(".", "later")
started = threading.Event()

def flood():
    while True:
        first.log()
        started.set()

def outlive():
    threading.main_thread().join()
    for _ in range(1000):
        later.log()

threading.Thread(target=outlive).start()
if sys.argv[1] == "daemon thread":
    threading.Thread(target=flood, daemon=True).start()
    started.wait()
"""


@pytest.mark.parametrize("what", ["__del__", "daemon thread"])
def test_exit_while_everything_still_logs(tmp_path: Path, what: str) -> None:
    """At the end of the interpreter, what threads, atexit functions, finalizers and `__del__` log is written."""
    result = run_script(tmp_path, EXIT, what)
    assert (result.returncode, result.stderr) == (0, "")
    found = verdict(tmp_path / "app.log", tmp_path)
    assert found.clean and acknowledged(tmp_path, "later") == 1000, found
    others = [line for line in lines(tmp_path / "app.log") if "producer" not in line]
    # A daemon thread holds the globals of the program, so that CPython never calls their __del__.
    expected = ["atexit, before everything", "Finalize", "atexit, after everything", "__del__"]
    assert others == (expected if what == "__del__" else expected[:-1])
    assert no_directory()


INTERRUPTED = """
import multiprocessing, os, sys
from oracle import Producer
import mplog

def work(name):
    producer = Producer(".", name)
    while True:
        producer.log()

if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO", format="%(message)s") as server:
        with multiprocessing.get_context(sys.argv[1]).Pool(3, server.initializer) as pool:
            pool.map(work, ["w1", "w2", "w3"], chunksize=1)
"""


@pytest.mark.filterwarnings("ignore:subprocess.*still running:ResourceWarning")
def test_ctrl_c_three_times_loses_nothing(tmp_path: Path, start_method: str) -> None:
    """Ctrl-C to the whole group, three times, ends the program by KeyboardInterrupt, with everything written."""
    script = write_script(tmp_path, INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, "-B", str(script), start_method],
        cwd=tmp_path,
        env=environment(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            for name in ("w1", "w2", "w3"):
                wait_until(lambda name=name: acknowledged(tmp_path, name) > 100, f"{name} logs")  # type: ignore[misc]
            wait_until_main_waits(program.pid)
            for _ in range(3):
                os.killpg(program.pid, signal.SIGINT)
                time.sleep(random.uniform(0, 0.1))  # the random moment, not a wait for anything
            stderr = program.communicate(timeout=30)[1]
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    assert program.returncode == -signal.SIGINT, stderr
    assert "mplog:" not in stderr and "mplog.errors" not in stderr, stderr
    assert "mplog/server/" not in "".join(ignored_exceptions(stderr)), stderr
    found = verdict(tmp_path / "app.log", tmp_path)
    assert found.clean, found
    assert no_directory()
    assert glob.glob(str(tmp_path / ".*.lock")) == []


def ignored_exceptions(stderr: str) -> list[str]:
    """Return the tracebacks of the exceptions that the interpreter ignored, of which none may be ours.

    The program's own traceback may come after them, and pass through `stop` if a Ctrl-C comes there.
    """
    traceback = r"Traceback.*\n(?:[ \t].*\n)*\S.*\n"
    chained = rf"\n(?:During|The above).*\n\n{traceback}"
    return re.findall(rf"^Exception ignored.*\n{traceback}(?:{chained})*", stderr, flags=re.MULTILINE)


ORPHANS = """
import multiprocessing, os, sys
from oracle import Producer, wait_until
import mplog

def work(initializer, name):
    initializer()
    producer = Producer(".", name)
    if name != "late":
        while not os.path.exists("go"):
            producer.log()
    else:
        open("late is ready", "w").close()
        wait_until(lambda: os.path.exists("go"), "the parent is dead")
    for _ in range(500):
        producer.log()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
    workers = [context.Process(target=work, args=(server.initializer, name)) for name in sys.argv[2:]]
    for worker in workers:
        worker.start()
    print(server.pid, server.queue.directory, flush=True)
    workers[0].join()
"""


@pytest.mark.parametrize("busy", [["w1", "w2"], []], ids=["busy workers", "silent worker"])
def test_parent_killed_loses_nothing(tmp_path: Path, start_method: str, busy: list[str]) -> None:
    """When the parent is killed, the logging process goes on until the last worker has ended, and cleans up.

    A worker counts from its initializer on, whether it has logged yet or not.
    """
    script = write_script(tmp_path, ORPHANS)
    with subprocess.Popen(
        [sys.executable, "-B", str(script), start_method, "late", *busy],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        pid, directory = program.stdout.readline().split()
        try:
            for name in busy:
                wait_until(lambda name=name: acknowledged(tmp_path, name) > 100, f"{name} logs")  # type: ignore[misc]
            wait_until((tmp_path / "late is ready").exists, "the late worker is ready")
        finally:
            program.kill()
        program.wait()
        time.sleep(0.1)  # long enough for a logging process to end that should not
        (tmp_path / "go").touch()
        stderr = program.communicate(timeout=30)[1]
    wait_until(lambda: process_has_ended(int(pid)), "the logging process has ended")
    found = verdict(tmp_path / "app.log", tmp_path)
    assert found.clean and not stderr, (found, stderr)
    assert acknowledged(tmp_path, "late") == 500
    assert not os.path.exists(directory)
    assert glob.glob(str(tmp_path / ".*.lock")) == []


UNGUARDED = """
import sys, {library}
import mplog

def work():
    import logging
    logging.info("worked")

server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
worker = {library}.get_context("{method}").Process(target=work)
worker.start()
worker.join()
server.stop()
sys.exit(worker.exitcode)
"""


@pytest.mark.parametrize(("start_method", "library"), PAIRS)
def test_script_without_a_main_guard(tmp_path: Path, start_method: str, library: str) -> None:
    """Without a main guard, fork works; a spawned worker ends with the advice to write one, and the log is intact."""
    if library == "multiprocess":
        skip_without_dill()
    result = run_script(tmp_path, UNGUARDED.format(library=library, method=start_method))
    if start_method == "fork":
        assert (result.returncode, result.stderr) == (0, "")
        assert lines(tmp_path / "app.log") == ["worked"]
    else:
        assert result.returncode == 1, result
        assert result.stderr.count('if __name__ == "__main__":') == 1, result.stderr
        assert "StartError" in result.stderr
        assert lines(tmp_path / "app.log") == []
    assert no_directory()


DAEMON = """
import logging, os, sys
import mplog

server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
logging.info("before")
pid = server.pid
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.closerange(3, 4096)
print(pid, flush=True)
sys.stdin.read()
logging.info("first words of the daemon")
os.closerange(3, 4096)
print("again", flush=True)
logging.info("last words")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_program_becomes_a_daemon_after_the_start(tmp_path: Path) -> None:
    """A program that forks twice and closes all descriptors keeps its log until it ends, though it may log late."""
    pipe = subprocess.PIPE
    command = [sys.executable, str(write_script(tmp_path, DAEMON))]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert program.wait(60) == 0
        # There is no process left that has the FIFO open.
        wait_until_main_waits(pid)
        out, _ = program.communicate("", timeout=60)
        assert out == "again\n"
    wait_until(lambda: process_has_ended(pid), "the log ends with the daemon")
    assert lines(tmp_path / "app.log") == ["before", "first words of the daemon", "last words"]
    assert no_directory()
