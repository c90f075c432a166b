"""Forks that are made while another thread is in the middle of something (faults 15 and 42)."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import run_script

pytestmark = pytest.mark.processes

WHILE_A_LEVEL_IS_SET = """
import logging, os, signal, threading, warnings

import mplog
from mplog.server.takeover import Takeover

warnings.simplefilter("ignore")  # a fork beside threads
inside, go_on = threading.Event(), threading.Event()
save_state = Takeover._save_state

def wait_and_save(self):
    inside.set()
    assert go_on.wait(60)
    save_state(self)

with mplog.LogServer("app.log", level="INFO", format="%(message)s") as server:
    Takeover._save_state = wait_and_save
    setting = threading.Thread(target=server.set_level, args=("job", "DEBUG"))
    setting.start()
    assert inside.wait(60)
    pid = os.fork()
    Takeover._save_state = save_state
    if pid == 0:
        signal.alarm(30)
        try:
            server.set_level("job", "DEBUG")
        except mplog.ServerStateError:
            logging.info("refused in the fork")
        server.stop()
        with mplog.LogServer("fork.log", level="INFO", format="%(message)s") as own:
            own.set_level("job", "DEBUG")
            logging.getLogger("job").debug("in the fork")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    go_on.set()
    setting.join(60)
    logging.getLogger("job").debug("in the program")
assert code == 0, code
"""


def test_a_fork_while_a_level_is_set_may_use_servers(tmp_path: Path) -> None:
    """A fork that is made while another thread holds the server's locks is refused, and runs a server of its own."""
    done = run_script(tmp_path, WHILE_A_LEVEL_IS_SET)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "app.log").read_text() == "refused in the fork\nin the program\n"
    assert (tmp_path / "fork.log").read_text() == "in the fork\n"


IN_A_SIGNAL_HANDLER = """
import logging, os, signal, sys

import mplog
from mplog.server.takeover import Takeover

save_state = Takeover._save_state

reading, writing = os.pipe()

def fork_and_save(self):
    global pid
    pid = os.fork()
    if pid == 0:
        os.read(reading, 1)  # both write the same file
    save_state(self)

with mplog.LogServer("app.log", level="INFO", format="%(message)s") as server:
    Takeover._save_state = fork_and_save
    server.set_level("job", "DEBUG")
    Takeover._save_state = save_state
    os.write(writing, b"x")
    if pid == 0:
        signal.alarm(30)
        logging.info("in the fork")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    server.set_level("job", "INFO")
"""


def test_a_fork_in_the_middle_of_a_call_leaves_the_call(tmp_path: Path) -> None:
    """A thread that forks while it holds the server's locks itself, as in a signal handler, releases them there."""
    done = run_script(tmp_path, IN_A_SIGNAL_HANDLER)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "app.log").read_text() == "in the fork\n"


WHILE_A_THREAD_JOINS = """
import logging, os, signal, threading, warnings

import mplog
from mplog.worker import autoattach

warnings.simplefilter("ignore")  # a fork beside threads
fork_begins, is_held = threading.Event(), threading.Event()

def hold():
    assert fork_begins.wait(60)
    with waiting._joining:
        is_held.set()
        threading.Event().wait()

def let_another_thread_hold_it():
    fork_begins.set()
    assert is_held.wait(60)

with mplog.LogServer("app.log", level="INFO", format="%(message)s") as server:
    server.release_loggers()
    os.environ["MPLOG_QUEUE"] = server.queue.directory
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os.register_at_fork(before=let_another_thread_hold_it)  # called last before a fork
        autoattach.on_import("logging")
        waiting, = autoattach._ours
        threading.Thread(target=hold, daemon=True).start()
        pid = os.fork()
        if pid == 0:
            is_held.set()
            if os.fork() == 0:
                logging.info("in the fork of the fork")
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_fork_while_a_thread_joins_the_server_may_fork_again(tmp_path: Path) -> None:
    """Under ``mplog run --python``, the lock of threads that join the server is free in a fork."""
    done = run_script(tmp_path, WHILE_A_THREAD_JOINS)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "app.log").read_text() == "in the fork of the fork\n"
