"""``mplog top``: which servers run, how they are, and that they do not notice being looked at."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from multiprocessing import Process
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from scripts import BlockedHandler, Gate, environment, kill_for_good, run, run_script, stop_all_threads
from terminal import Terminal

import mplog
from mplog.cli.main import main
from mplog.monitoring.find_servers import find_servers

pytestmark = pytest.mark.processes

TOP = ["-m", "mplog", "top"]


def top(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return run([*TOP, *map(str, arguments)], **options)


def servers(*arguments: object) -> list[dict[str, Any]]:
    """Return what the command says of servers, as data; in this process, which is quicker."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(output):
        patched.setattr("mplog.cli.top.GAP", 0.01)
        assert main(["top", "--json", *map(str, arguments)]) == 0
    found: list[dict[str, Any]] = json.loads(output.getvalue())["servers"]
    return found


def look(server: mplog.LogServer) -> Any:
    """Return how a server looks from outside."""
    (found,) = find_servers([server.queue.directory]).servers
    return found.look()


def filled(server: mplog.LogServer) -> float:
    """Return how full the buffers of a server are."""
    return float(look(server).buffers.fraction)


def log_and_wait(initializer: Any, gate: Gate) -> None:
    """Runs in a worker: log two records, and stay."""
    initializer()
    logging.info("one")
    logging.error("two")
    gate.wait()


@pytest.fixture
def worker(server: mplog.LogServer, tmp_path: Path) -> Iterator[Any]:
    """A worker of `server` that has logged two records and runs."""
    gate = Gate(tmp_path / "gate")
    process = Process(target=log_and_wait, args=(server.initializer, gate), name="worker-1")
    process.start()
    gate.wait_until_reached()
    server.flush()
    yield process
    gate.open()
    process.join(30)


# --- what is found ---


def test_top_shows_a_server(server: mplog.LogServer, worker: Any, log: Path) -> None:
    """Its records, workers, losses with reasons, and files with sizes, as the server itself counts them."""
    server.queue.losses.count(logging.INFO, mplog.Reason.SHED, "MainProcess")
    (found,) = servers()
    assert (found["pid"], found["program"], found["state"]) == (server.pid, os.getpid(), "running")
    assert found["directory"] == server.queue.directory
    assert "pytest" in found["command"] or "python" in found["command"]
    assert (found["records"], found["restarts"]) == (server.stats().received, 0)
    assert (found["dropped"], found["dropped_by_reason"]) == (1, {"shed": 1})
    assert {"path": str(log), "size": log.stat().st_size} in found["files"]
    assert 0 <= found["uptime"] < 60
    assert 0 < found["peak_fill"] < 1
    (shown,) = [each for each in found["workers"] if each["name"] == "worker-1"]
    assert (shown["pid"], shown["records"], shown["is_alive"]) == (worker.pid, 2, True)


def test_rates_are_of_the_time_between_two_looks(server: mplog.LogServer) -> None:
    """Records and bytes each second, for the server and for each process."""
    from mplog.cli.watcher import Watcher

    watcher = Watcher()
    logging.info("before")
    server.flush()
    watcher.look()
    for _ in range(100):
        logging.info("x" * 100)
    server.flush()
    before = look(server).at
    (found,) = watcher.look()
    assert 0 < found.records_per_second <= 100 / max(1e-3, found.snapshot.at - before) * 1e6
    assert found.bytes_per_second > 100 * found.records_per_second
    (here,) = found.workers
    assert here.rate == found.records_per_second


def test_all_files_of_a_sink_that_names_them(tmp_path: Path) -> None:
    """Each with its size, also those that the stdlib's handlers write; a sink without a file has none."""
    sinks = [
        mplog.RoutedFileSink(tmp_path / "by[logger]-{name}.log"),
        mplog.HandlerSink(lambda: logging.FileHandler(tmp_path / "plain.log")),
        mplog.HandlerSink(logging.NullHandler),
    ]
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        logging.getLogger("one").info("x")
        logging.getLogger("two").info("xx")
        server.flush()
        (found,) = servers()
        assert {(Path(file["path"]).name, file["size"]) for file in found["files"]} == {
            ("by[logger]-one.log", 2),
            ("by[logger]-two.log", 3),
            ("plain.log", 5),
        }


def test_top_shows_a_restart(server: mplog.LogServer) -> None:
    """The new logging process, since when the server runs, and how often it was restarted."""
    started = servers()[0]["started"]
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.pid != pid, "it is restarted")
    server.flush()
    (found,) = servers()
    assert (found["pid"], found["restarts"], found["started"]) == (server.pid, 1, started)


def test_top_shows_full_buffers_and_a_suspended_server(tmp_path: Path, log: Path) -> None:
    """How full they are while nothing is written, and that the logging process is suspended."""
    with mplog.LogServer(log, level="INFO", buffer_size=2**22) as server:
        stop_all_threads(server.pid)
        try:
            (found,) = servers()
            assert (found["state"], found["fill"]) == ("suspended", 0.0)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        gate = Gate(tmp_path / "gate")

    path = tmp_path / "blocked"
    with mplog.LogServer(mplog.HandlerSink(lambda: BlockedHandler(gate, path)), level="INFO") as server:
        logging.info("first")
        gate.wait_until_reached()
        for _ in range(2000):
            logging.info("x" * 1000)
        wait_until(lambda: filled(server) > 0.2, "the buffers fill")
        (found,) = servers()
        assert found["fill"] > 0.2
        assert found["waiting_bytes"] > 1_500_000
        gate.open()


def test_a_server_whose_program_was_killed(tmp_path: Path, log: Path) -> None:
    """It is shown as long as a process logs to it; then it is gone."""
    gate = Gate(tmp_path / "gate")
    program = f"""
        import multiprocessing, os, signal, sys, mplog
        sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
        from test_cli_top import log_and_wait
        from scripts import Gate
        gate = Gate.__new__(Gate)
        gate.path = {gate.path!r}
        server = mplog.LogServer({str(log)!r}, level="INFO").start()
        multiprocessing.get_context("fork").Process(target=log_and_wait, args=(server.initializer, gate)).start()
        gate.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    script = tmp_path / "program.py"

    script.write_text(textwrap.dedent(program))
    process = subprocess.Popen([sys.executable, str(script)], env=environment(), stdin=subprocess.DEVNULL)
    gate.wait_until_reached()
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) == 2, "the worker has logged")
    process.kill()
    process.wait(30)
    (found,) = servers()
    assert (found["state"], found["program"]) == ("draining", process.pid)
    gate.open()
    wait_until(lambda: top("--json").returncode == 1, "it has ended")


def test_what_a_killed_server_has_left_is_told_apart(server: mplog.LogServer) -> None:
    """A directory without processes is no server; its name is said, and what to do with it."""
    directory = server.queue.directory
    kill_for_good(server)
    done = top()
    assert done.returncode == 1
    assert "no server of this user runs" in done.stderr
    assert f"1 directory is left by programs that were killed; remove with: rm -r {directory}\n" in done.stderr
    done = top("--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"servers": [], "left": [directory]})
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()


def test_pids_that_others_have_now_are_no_server(server: mplog.LogServer, tmp_path: Path) -> None:
    """The directory of a dead server is not taken for a running one if its pids belong to other processes by now."""
    copy = tempfile.mkdtemp(prefix="mplog-")
    try:
        with open(os.path.join(server.queue.directory, "server")) as file:
            notice = json.load(file)
        os.mkfifo(os.path.join(copy, "queue"))
        notice |= {"supervisor": os.getpid(), "pid": os.getpid()}
        Path(copy, "server").write_text(json.dumps(notice))
        found = find_servers()
        assert [each.directory for each in found.servers] == [server.queue.directory]
        assert found.left == [copy]
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize("mode", [0o770, 0o701])
def test_what_others_may_have_planted_is_not_looked_at(server: mplog.LogServer, mode: int) -> None:
    """A directory that other users can write into is not believed."""
    os.chmod(server.queue.directory, mode)
    try:
        assert find_servers().servers == []
    finally:
        os.chmod(server.queue.directory, 0o700)


def test_a_server_in_a_container_is_neither_running_nor_left(server: mplog.LogServer) -> None:
    """In a container with the same temporary directory, pids mean other processes, so nothing is shown."""
    path = Path(server.queue.directory, "server")
    whole = path.read_bytes()
    notice = json.loads(whole)
    assert "pid:[" in notice["world"]
    path.write_text(json.dumps(notice | {"world": "another"}))
    assert (find_servers().servers, find_servers().left) == ([], [])
    path.write_bytes(whole)


def test_a_notice_that_is_none_is_skipped(server: mplog.LogServer) -> None:
    """What cannot be read is no server, and no error."""
    path = Path(server.queue.directory, "server")
    whole = path.read_bytes()
    for broken in (b"", whole[:40], b"\xff\xff", b"[]"):
        path.write_bytes(broken)
        assert find_servers().servers == []
    path.write_bytes(whole)
    assert len(find_servers().servers) == 1


def test_looking_does_not_disturb(tmp_path: Path, log: Path) -> None:
    """The queue is never opened: neither does a look keep a server alive, nor is one asked; it may stand still."""
    server = mplog.LogServer(log, level="INFO").start()
    supervisor = psutil.Process(server.pid).ppid()
    stop_all_threads(server.pid)
    stop_all_threads(supervisor)
    try:
        opened = subprocess.run(
            [sys.executable, "-c", _AUDIT, *TOP[1:], "--json"],
            capture_output=True, text=True, env=environment(), timeout=30, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert opened.returncode == 0, opened.stderr
        paths = opened.stderr.splitlines()
        names = [os.path.basename(path) for path in paths]
        assert "server" in names
        assert any("/fd/" in path for path in paths)
        assert "queue" not in names
    finally:
        os.kill(supervisor, signal.SIGCONT)
        os.kill(server.pid, signal.SIGCONT)
        server.stop()


#: Runs a module, and says on stderr which files it opens.
_AUDIT = """
import os, runpy, sys
opened = []
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(os.path.realpath(arguments[0]) if "/fd/" not in arguments[0] else arguments[0])
sys.argv = ["mplog", *sys.argv[2:]]
sys.addaudithook(note)
try:
    runpy.run_module("mplog", run_name="__main__")
finally:
    print(*opened, sep="\\n", file=sys.stderr)
"""


# --- the command ---


def test_no_server(temporary_directory: str) -> None:
    """The message says where it has looked, and what else may be the matter; the exit status is 1."""
    done = top()
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no server of this user runs in {temporary_directory}/mplog-*" in done.stderr
    assert "TMPDIR" in done.stderr


def test_a_server_by_its_directory(server: mplog.LogServer, tmp_path: Path) -> None:
    """One of a program with another TMPDIR is found where it is named."""
    elsewhere = environment(TMPDIR=str(tmp_path))
    assert top("--json", env=elsewhere).returncode == 1
    done = top("--json", server.queue.directory, env=elsewhere)
    assert json.loads(done.stdout)["servers"][0]["pid"] == server.pid
    done = top(str(tmp_path), env=elsewhere)
    assert (done.returncode, str(tmp_path) in done.stderr) == (1, True)


def test_a_server_by_a_link(server: mplog.LogServer, tmp_path: Path) -> None:
    """What ``mplog serve --queue`` prints, and ``MPLOG_QUEUE`` has then, names the server here, too."""
    (tmp_path / "queue").symlink_to(server.queue.directory)
    done = top("--json", str(tmp_path / "queue"))
    assert [found["pid"] for found in json.loads(done.stdout)["servers"]] == [server.pid]


def test_the_table(server: mplog.LogServer, worker: Any, log: Path) -> None:
    """Without a terminal, one table of servers, files and workers, each row with the pid of its server."""
    done = top("--sort", "name")
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line.split()[0:3] for line in done.stdout.splitlines() if line.lstrip().startswith("SERVER")]
    assert heads == [["SERVER", "STATE", "UPTIME"], ["SERVER", "SIZE", "FILE"], ["SERVER", "PID", "WORKER"]]
    assert str(log) in done.stdout
    assert f"{worker.pid}  worker-1" in done.stdout
    assert done.stdout.count(f"{server.pid} ") >= 3


def test_many_servers_and_a_pipe_that_is_closed_early(tmp_path: Path) -> None:
    """A table each half second, until its output is closed."""
    running = [mplog.LogServer(tmp_path / f"{number}.log").start() for number in range(3)]
    try:
        assert len(servers()) == 3
        command = subprocess.Popen(
            [sys.executable, *TOP, "--interval", "0.5"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.readline().split()[0] == b"SERVER"
        command.stdout.close()
        assert command.wait(30) == 1
        assert command.stderr.read() == b""
        command.stderr.close()
    finally:
        for server in reversed(running):
            server.stop()


@pytest.mark.parametrize("arguments", [["--interval", "0"], ["--interval", "x"], ["--sort", "size"]])
def test_arguments_that_make_no_sense(arguments: list[str]) -> None:
    """The exit status is 2, and the message names the argument."""
    done = top(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_help_has_examples_and_exit_statuses() -> None:
    """``mplog top --help`` says what it is for, how it is used, and what its exit statuses mean."""
    done = top("--help")
    assert done.returncode == 0
    for text in ("examples:", "mplog top --json", "exit status:", "keys:", "TMPDIR"):
        assert text in done.stdout


def test_without_rich(server: mplog.LogServer) -> None:
    """On a terminal, one table, and what to install for a live screen."""
    program = (
        "import sys; sys.modules['rich'] = sys.modules['rich.box'] = None; "
        "from mplog.cli.main import main; sys.exit(main(['top']))"
    )
    with Terminal([sys.executable, "-c", program], columns=120) as terminal:
        terminal.wait_for("install mplog[cli]", "SERVER", str(server.pid))
        assert terminal.wait() == 0


# --- the screen ---


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50), (132, 20), (60, 16), (40, 10), (20, 4)])
def test_the_screen_fits_its_terminal(server: mplog.LogServer, worker: Any, columns: int, lines: int) -> None:
    """Whatever the size: the server is there, nothing is wrapped, and q leaves the terminal as it was."""
    with Terminal([sys.executable, *TOP], columns, lines) as terminal:
        terminal.wait_for("mplog top", str(server.pid))
        if columns >= 60 and lines >= 16:
            terminal.wait_for("worker-1", "buffers", "dropped", "FILL")
        assert len(terminal.lines) == lines
        assert terminal.lines[0].startswith("mplog top")
        terminal.press("q")
        assert terminal.wait() == 0
        assert b"\x1b[?1049l" in terminal.output  # the screen of before
        assert b"\x1b[?25h" in terminal.output  # the cursor


def test_the_screen_lives(server: mplog.LogServer, worker: Any, tmp_path: Path) -> None:
    """Counts change, another size is taken at once, keys sort and choose, Ctrl-C ends it."""
    with Terminal([sys.executable, *TOP, "--interval", "0.2"], 100, 30) as terminal:
        terminal.wait_for("worker-1", "1 server ")
        received = server.stats().received
        for _ in range(1000 - received):
            logging.info("more")
        terminal.wait_for("1,000")
        terminal.resize(140, 40)
        terminal.wait_for("RESTARTS")
        terminal.press("s")
        terminal.wait_for("sort (records)")
        with mplog.LogServer(tmp_path / "other.log") as other:
            terminal.wait_for("2 servers", f"server {server.pid} of")
            terminal.press("\x1b[B")
            terminal.wait_for(f"server {other.pid} of")
            terminal.press("k")
            terminal.wait_for(f"server {server.pid} of")
        terminal.wait_for("1 server ")
        terminal.press("\x03")
        assert terminal.wait() == 0


def test_the_screen_outlives_the_servers(tmp_path: Path) -> None:
    """When the last server has ended it says so, and shows the next one."""
    with mplog.LogServer(tmp_path / "one.log") as first:
        terminal = Terminal([sys.executable, *TOP, "--interval", "0.2"])
        terminal.wait_for(str(first.pid))
    with terminal:
        terminal.wait_for("No server of this user runs now.")
        with mplog.LogServer(tmp_path / "two.log") as second:
            terminal.wait_for(str(second.pid))
            terminal.press("q")
            assert terminal.wait() == 0


_SCREEN_ON, _SCREEN_OFF = b"\x1b[?1049h", b"\x1b[?1049l"


def _is_put_back(output: bytes) -> bool:
    """Whether a terminal shows the screen of before, and its cursor."""
    cursor_on, cursor_off = b"\x1b[?25h", b"\x1b[?25l"
    return output.rfind(_SCREEN_OFF) > output.rfind(_SCREEN_ON) and output.rfind(cursor_on) > output.rfind(cursor_off)


def test_terminal_is_put_back_before_a_signal_ends_it(server: mplog.LogServer) -> None:
    """kill(1) ends it as it ends others, and leaves neither its screen nor a hidden cursor."""
    with Terminal([sys.executable, *TOP]) as terminal:
        terminal.wait_for("running")
        assert not _is_put_back(terminal.output)
        terminal.process.terminate()
        assert terminal.wait() == -signal.SIGTERM
        assert _is_put_back(terminal.output)


def test_terminal_is_put_back_while_it_is_stopped(server: mplog.LogServer) -> None:
    """Ctrl-Z gives the terminal back to the shell as it was, and fg goes on with the screen, as often as one likes."""
    with Terminal(["bash", "--norc", "-i"], PS1="prompt> ") as terminal:
        terminal.wait_for("prompt>")
        terminal.press(f"{shlex.join([sys.executable, *TOP])}\n")

        def shows(text: bytes, after: bytes) -> bool:
            return terminal.read() and text in terminal.output.rpartition(after)[2]

        for _ in range(2):
            wait_until(lambda: shows(b"running", _SCREEN_ON), "the screen is there")
            terminal.press("\x1a")
            wait_until(lambda: shows(b"Stopped", _SCREEN_OFF), "it has stopped")
            assert _is_put_back(terminal.output)
            terminal.output = b""
            terminal.press("fg\n")
        wait_until(lambda: shows(b"running", _SCREEN_ON), "the screen is there again")
        terminal.press("q")
        wait_until(lambda: shows(b"prompt>", _SCREEN_OFF), "the shell goes on")
        terminal.press("exit 3\n")
        assert terminal.wait() == 3


def test_names_cannot_steer_the_terminal(server: mplog.LogServer) -> None:
    """What processes call themselves is shown with escapes, on the screen and in the table."""
    name = "\x1b[31mred\x07"
    process = Process(target=_log_as, args=(server.initializer,), name=name)
    process.start()
    process.join(30)
    server.flush()
    done = top()
    assert "\x1b" not in done.stdout
    assert r"\x1b[31mred\x07" in done.stdout
    with Terminal([sys.executable, *TOP], 120) as terminal:
        terminal.wait_for(r"\x1b[31mred\x07 (ended)")
        terminal.press("q")
        terminal.wait()
        assert b"\x1b[31mred\x07" not in terminal.output


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    """A file whose name is not UTF-8 is listed, in the table and in JSON."""
    (tmp_path / os.fsdecode(b"\xff.log")).touch()
    with mplog.LogServer(mplog.RoutedFileSink(tmp_path / "{name}.log")) as server:
        server.flush()
        assert r"/\udcff.log" in top("--once").stdout
        (found,) = servers()
    assert [file["path"] for file in found["files"]] == [f"{tmp_path}/\ufffd.log"]


def _log_as(initializer: Any) -> None:
    """Runs in a worker."""
    initializer()
    logging.info("here")


def test_sixty_four_workers(server: mplog.LogServer) -> None:
    """Those that do not fit are counted in one row."""
    program = """
        import logging, os, sys, mplog
        mplog.attach()
        for number in range(63):
            if not os.fork():
                logging.info("here")
                os._exit(0)
        for number in range(63):
            os.wait()
        logging.info("here")
    """

    with tempfile.TemporaryDirectory() as directory:
        done = run_script(Path(directory), program)
    assert (done.returncode, done.stderr) == (0, "")
    server.flush()
    with Terminal([sys.executable, *TOP], 80, 24) as terminal:
        shown = terminal.wait_for(" more")
        terminal.press("q")
        terminal.wait()
    (row,) = [line for line in shown.splitlines() if " more" in line]
    rows = [line for line in shown.splitlines() if "(ended)" in line]
    assert int(row.split("…")[1].split()[0]) + len(rows) == 64
