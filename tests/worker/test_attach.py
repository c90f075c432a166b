"""What runs in a worker: `Initializer`, `attach`."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import cloudpickle
import jobs
import pytest
from oracle import wait_until
from scripts import FORMAT, kill_for_good

import mplog

pytestmark = pytest.mark.processes


def run_in_worker(context: Any, function: Any, *args: Any) -> None:
    """Run a function in a process, which must end well."""
    process = context.Process(target=function, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == 0


# --- Initializer ---


def call_with_anything(initializer: Any) -> None:
    """Runs in a worker."""
    initializer(1, "two", None, *range(10))
    logging.info("here")


def test_an_initializer_takes_and_ignores_any_arguments(context: Any, server: mplog.LogServer, log: Path) -> None:
    """The initializer takes and ignores any arguments."""
    run_in_worker(context, call_with_anything, server.initializer)
    server.flush()
    assert jobs.messages_in(log) == ["here"]


def call_often(initializer: Any, second: Any, done: Any) -> None:
    """Runs in a worker: call two initializers of one server again and again."""
    for _ in range(3):
        initializer()
        handlers = logging.getLogger().handlers[:]
        second()
        assert logging.getLogger().handlers == handlers
        assert [type(handler) for handler in handlers] == [mplog.QueueHandler]
    logging.info("once")
    done.set()


def test_an_initializer_may_be_called_again(context: Any, server: mplog.LogServer, log: Path) -> None:
    """A second call, and another initializer of the same server, change nothing: each record arrives once."""
    done = context.Event()
    run_in_worker(context, call_often, server.initializer, server.initializer.then(jobs.note, "x"), done)
    assert done.is_set()
    server.flush()
    assert jobs.messages_in(log) == ["x"] * 3 + ["once"]


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_an_initializer_pickles_at_any_time(server: mplog.LogServer, log: Path, pickler: Any) -> None:
    """An initializer pickles with pickle and cloudpickle at any time, not only while a process is started."""
    initializer = server.initializer.then(jobs.note, "first").then(lambda: jobs.note("second"))
    ours = [handler for handler in logging.getLogger().handlers if isinstance(handler, mplog.QueueHandler)]
    for _ in range(3):
        initializer = pickle.loads(pickler.dumps(initializer))
    initializer()
    assert logging.getLogger().handlers == ours
    server.flush()
    assert jobs.messages_in(log) == ["first", "second"]


def test_then_chains_any_number_of_functions(context: Any, server: mplog.LogServer, log: Path) -> None:
    """then() calls functions, lambdas and closures in their order, each with its arguments, and changes no original."""
    first = server.initializer
    word = "closure"
    chained = first.then(jobs.note, "a").then(lambda *args: jobs.note(args), 1, 2).then(lambda: jobs.note(word))
    for number in range(20):
        chained = chained.then(functools.partial(jobs.note, number))
    run_in_worker(context, chained)
    run_in_worker(context, first)
    server.flush()
    assert jobs.messages_in(log) == ["a", "(1, 2)", "closure", *map(str, range(20))]


def test_initializers_of_one_server_are_equal(server: mplog.LogServer, tmp_path: Path) -> None:
    """Initializers are equal if they chain the same functions, and equal ones have the same hash."""

    def other() -> None:
        pass

    chained = server.initializer.then(jobs.note, "a")
    assert server.initializer == server.initializer != chained
    assert chained == server.initializer.then(jobs.note, "a")
    assert chained != server.initializer.then(jobs.note, "b")
    assert chained != server.initializer.then(other, "a")
    assert chained != jobs.note
    assert len({server.initializer, server.initializer, chained, server.initializer.then(jobs.note, "a")}) == 2
    assert pickle.loads(pickle.dumps(chained)) == pickle.loads(pickle.dumps(chained))
    with mplog.LogServer(tmp_path / "other.log") as second:
        assert second.initializer != server.initializer


def test_initializers_of_one_server_may_chain_each_other(server: mplog.LogServer, log: Path) -> None:
    """An initializer can be chained, too."""
    run_in_worker(
        multiprocessing.get_context("spawn"), server.initializer.then(jobs.note, 1).then(server.initializer, "any")
    )
    server.flush()
    assert jobs.messages_in(log) == ["1"]


def look_at_root(initializer: Any, seen: Any) -> None:
    """Runs in a worker: say what is on the root logger."""
    logging.getLogger().addHandler(logging.StreamHandler())
    initializer()
    logging.getLogger("job").warning("here")
    seen.send([type(handler).__name__ for handler in logging.getLogger().handlers])


def test_a_worker_has_one_handler(context: Any, server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Handlers that a fork inherits, or that the worker had, write nothing twice."""
    other = logging.FileHandler(tmp_path / "parent.log")
    logging.getLogger().addHandler(other)
    receiver, sender = context.Pipe(False)
    run_in_worker(context, look_at_root, server.initializer, sender)
    assert receiver.poll(60)
    assert receiver.recv() == ["QueueHandler"]
    logging.getLogger().removeHandler(other)
    other.close()
    server.flush()
    assert jobs.messages_in(log) == ["here"]
    assert (tmp_path / "parent.log").read_text() == ""


def test_no_line_is_doubled_where_the_parent_had_handlers(start_method: str, tmp_path: Path) -> None:
    """If a program calls basicConfig() before start(), each record of parent and workers is written once."""
    program = """
        import logging, multiprocessing, sys
        import jobs, mplog

        if __name__ == "__main__":
            logging.basicConfig(level="INFO", format="console %(message)s")
            logging.info("before")
            with mplog.LogServer(sys.argv[1]) as server:
                logging.info("parent")
                context = multiprocessing.get_context(sys.argv[2])
                with context.Pool(1, server.initializer) as pool:
                    pool.map(logging.info, ["worker"])
            logging.info("after")
        """
    log = tmp_path / "app.log"
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = jobs.run_python([str(script), str(log), start_method])
    assert (done.returncode, done.stderr) == (0, "console before\nconsole after\n")
    assert jobs.messages_in(log) == ["parent", "worker"]


def log_to_each(first: Any, second: Any, go_on: Any) -> None:
    """Runs in a worker: log to one server, and then to another."""
    first()
    logging.info("to the first")
    assert go_on.wait(60)
    second()
    logging.info("to the second")
    assert len(logging.getLogger().handlers) == 1


def test_a_worker_may_change_servers(context: Any, tmp_path: Path) -> None:
    """If a worker changes servers, each server gets what was logged while it was the worker's."""
    go_on = context.Event()
    with mplog.LogServer(tmp_path / "second.log", level="INFO", format=FORMAT) as second:
        with mplog.LogServer(tmp_path / "first.log", level="INFO", format=FORMAT) as first:
            process = context.Process(target=log_to_each, args=(first.initializer, second.initializer, go_on))
            process.start()
            wait_until(lambda: first.stats().received, "the first record has arrived")
        go_on.set()
        process.join(60)
        assert process.exitcode == 0
    assert jobs.messages_in(tmp_path / "first.log") == ["to the first"]
    assert jobs.messages_in(tmp_path / "second.log") == ["to the second"]


# --- the server has gone ---

OUTLIVED = """
import logging, os, sys
import mplog

mplog.attach()
logging.info("in the log")
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
for number in range(3):
    logging.info("nowhere %d", number)
    logging.warning("to stderr %d", number)
    logging.getLogger("deeper").error("to stderr, too")
if os.fork() == 0:
    logging.warning("from a fork")
    logging.warning("from a fork again")
    sys.exit()
os.wait()
"""


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_worker_outlives_its_server(server: mplog.LogServer, log: Path, how: str) -> None:
    """After the end of the server, a worker goes on, says so once, and sends warnings to stderr."""
    worker = subprocess.Popen(
        [sys.executable, "-c", OUTLIVED],
        env=jobs.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout
    assert worker.stdout.readline() == "ready\n"
    server.flush()
    if how == "stopped":
        server.stop()
    else:
        kill_for_good(server)
        with pytest.raises(mplog.LoggingProcessDiedError):
            server.stop()
    _, stderr = worker.communicate("go on\n", timeout=60)
    assert worker.returncode == 0
    lines = stderr.splitlines()
    notices = [line for line in lines if line.startswith("mplog: nobody reads ")]
    assert len(notices) == 2  # the second one by the fork
    assert f"warnings of pid {worker.pid} go to stderr" in notices[0]
    assert [line for line in lines if line not in notices] == [
        *(f"to stderr {number}" if which == 0 else "to stderr, too" for number in range(3) for which in range(2)),
        "from a fork",
        "from a fork again",
    ]
    assert jobs.messages_in(log) == ["in the log"]


# --- attach ---


def test_attach_takes_the_directory_as_an_argument(context: Any, server: mplog.LogServer, log: Path) -> None:
    """attach(directory) needs no environment; it returns the handler, and may be called again."""
    run_in_worker(context, attach_with_argument, server.queue.directory)
    run_in_worker(context, attach_with_argument, Path(server.queue.directory))
    server.flush()
    assert jobs.messages_in(log) == ["attached", "attached"]


def attach_with_argument(directory: Any) -> None:
    """Runs in a worker."""
    os.environ.pop("MPLOG_QUEUE", None)
    handler = mplog.attach(directory)
    assert mplog.attach(directory) is handler
    assert logging.getLogger().handlers == [handler]
    logging.info("attached")


@pytest.mark.parametrize("how", ["argument", "environment", "link"])
def test_attach_finds_the_server_that_writes_a_log(
    server: mplog.LogServer, log: Path, tmp_path: Path, how: str
) -> None:
    """An unrelated program joins by the path of the log, also if several servers run."""
    where = log
    if how == "link":
        where = tmp_path / "link"
        where.symlink_to(log)
    program = (
        "import logging, mplog, os, sys\n"
        "os.environ['MPLOG_QUEUE'] = sys.argv[1]\n"
        "mplog.attach(*sys.argv[2:])\n"
        "logging.warning('found')\n"
    )
    arguments = [str(where)] if how == "environment" else ["/nowhere", str(where)]
    with mplog.LogServer(tmp_path / "other.log"):
        assert jobs.run_python(["-c", program, *arguments]).stderr == ""
    server.flush()
    assert jobs.messages_in(log) == ["found"]
    assert (tmp_path / "other.log").read_text() == ""


def test_attach_takes_the_levels_of_the_server_s_process(tmp_path: Path, log: Path) -> None:
    """Without a level, an attached program has the levels of the server's program; with one, it has that level."""
    logging.getLogger("quiet").setLevel(logging.ERROR)
    program = (
        "import logging, mplog, sys\n"
        "mplog.attach(level=int(sys.argv[1]) if len(sys.argv) > 1 else None)\n"
        "logging.info('info'); logging.warning('warning'); logging.getLogger('quiet').warning('quiet')\n"
    )
    with mplog.LogServer(log, level="WARNING", format=FORMAT):
        assert jobs.run_python(["-c", program]).stderr == ""
        assert jobs.run_python(["-c", program, "20"]).stderr == ""
    assert jobs.messages_in(log) == ["warning", "info", "warning"]


@pytest.mark.parametrize("value", [None, ""])
def test_attach_without_a_server_in_the_environment_says_so(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither argument nor variable: the error names both, and the root logger stays as it is."""
    monkeypatch.delenv("MPLOG_QUEUE", raising=False)
    if value is not None:
        monkeypatch.setenv("MPLOG_QUEUE", value)
    handlers = logging.getLogger().handlers[:]
    with pytest.raises(mplog.QueueNotFoundError, match=r"MPLOG_QUEUE is not set.*pass server\.queue\.directory"):
        mplog.attach()
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_attach_to_a_wrong_path_says_so(kind: str, tmp_path: Path) -> None:
    """A path where no queue is raises an error with the path, and leaves the root logger as it is."""
    where = tmp_path / "somewhere"
    if kind == "empty":
        where.mkdir()
    elif kind == "file":
        where.write_text("")
    handlers = logging.getLogger().handlers[:]
    with pytest.raises(mplog.QueueNotFoundError, match=r"there is no log queue in '.*somewhere'"):
        mplog.attach(where)
    assert logging.getLogger().handlers == handlers


def test_attach_to_a_server_that_has_stopped_says_so(tmp_path: Path) -> None:
    """The path of a queue that has been removed."""
    with mplog.LogServer(tmp_path / "app.log") as server:
        directory = server.queue.directory
    with pytest.raises(mplog.QueueNotFoundError, match="there is no log queue"):
        mplog.attach(directory)


def test_attach_to_a_server_that_was_killed_says_so(server: mplog.LogServer) -> None:
    """The path of a queue that no process reads."""
    directory = server.queue.directory
    kill_for_good(server)
    with pytest.raises(mplog.QueueNotFoundError, match=r"there is no log queue in .*: its server has ended"):
        mplog.attach(directory)
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"level": "x"}'])
def test_attach_without_the_levels_says_so(
    server: mplog.LogServer, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """If the levels of the server cannot be read, attach() raises, and takes none in their place."""
    path = Path(server.queue.directory, "logging")
    really = os.open

    def lost(name: Any, *rest: Any, **more: Any) -> int:
        if name == "logging" and content is None:
            raise FileNotFoundError(2, "No such file or directory", name)
        return really(name, *rest, **more)

    monkeypatch.setattr(os, "open", lost)
    if content is not None:
        path.write_bytes(content)
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    with pytest.raises(mplog.QueueNotFoundError, match=r"the levels of the server .* cannot be read"):
        mplog.attach(server.queue.directory)
    assert (root.level, root.handlers) == before


def test_attach_by_a_link(server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """A link of this user's to the directory of a queue leads there."""
    link = tmp_path / "link"
    link.symlink_to(server.queue.directory)
    program = "import logging, mplog, sys; mplog.attach(sys.argv[1]); logging.warning('by a link')"
    assert jobs.run_python(["-c", program, str(link)]).stderr == ""
    server.flush()
    assert jobs.messages_in(log) == ["by a link"]


def test_a_shell_script_passes_the_server_on(server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Programs that a shell script starts, in turn, at once and in pipes, find the server through MPLOG_QUEUE."""
    program = tmp_path / "step.py"
    program.write_text("import logging, mplog, sys\nmplog.attach()\nlogging.info('step %s', sys.argv[1])\n")
    script = tmp_path / "steps.sh"
    script.write_text('set -e\n"$1" "$2" 1\n"$1" "$2" 2 & "$1" "$2" 3 | cat\nwait\n(cd / && exec "$1" "$2" 4)\n')
    command = ["sh", str(script), sys.executable, str(program)]
    done = subprocess.run(command, env=jobs.environment(), timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    server.flush()
    lines = log.read_text().splitlines()
    assert sorted(line.split(" | ")[1] for line in lines) == ["step 1", "step 2", "step 3", "step 4"]
    assert len({line.split()[1] for line in lines}) == 4


def test_the_environment_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPLOG_QUEUE is set while a server runs, and afterwards what it was before."""
    monkeypatch.delenv("MPLOG_QUEUE", raising=False)
    with mplog.LogServer(tmp_path / "app.log") as server:
        assert os.environ["MPLOG_QUEUE"] == server.queue.directory
        with mplog.LogServer(tmp_path / "other.log") as other:
            assert os.environ["MPLOG_QUEUE"] == other.queue.directory
        assert os.environ["MPLOG_QUEUE"] == server.queue.directory
    assert "MPLOG_QUEUE" not in os.environ
