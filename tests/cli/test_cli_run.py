"""``mplog run``: the command's status and signals, the terminal, captured output, and what is said of its end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import MPLOG, messages, mplog, shell, start
from oracle import wait_until
from scripts import logging_process_of, process_has_ended, run_script, write_script
from terminal import Terminal

from mplog.cli.capture import GOES_ON, Lines
from mplog.cli.main import main

pytestmark = pytest.mark.processes

# --- how it ends ---


@pytest.mark.parametrize("status", [0, 3, 255])
def test_exit_status_is_passed_on(tmp_path: Path, status: int) -> None:
    """The status of the command is that of mplog run, and one that is not 0 is in the log."""
    done = mplog("run", "--log", "app.log", "--", "sh", "-c", f"exit {status}", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    said = messages(tmp_path / "app.log")
    assert len(said) == (1 if status else 0)
    assert all(f"ended with exit code {status}" in line for line in said)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_a_signal_is_said(tmp_path: Path, number: signal.Signals) -> None:
    """The status is 128 and the signal's number, as in a shell, and the log names the signal."""
    done = mplog("run", "--log", "app.log", "sh", "-c", f"kill -{number.value} $$", directory=tmp_path)
    assert done.returncode == 128 + number
    assert re.search(
        rf"ERROR .* \| mplog: sh \(pid \d+\) was killed by {number.name}", (tmp_path / "app.log").read_text()
    )


def test_command_that_cannot_be_run(tmp_path: Path) -> None:
    """127 where it is not found, 126 where it cannot be executed, with the reason on stderr and in the log."""
    (tmp_path / "text").write_text("no program")
    for command, status, reason in (("./none", 127, "No such file"), ("./text", 126, "Permission denied")):
        done = mplog("run", "--log", "app.log", "--", command, directory=tmp_path)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith(f"mplog run: {command}: {reason}")
        assert f"was not started: {reason}" in messages(tmp_path / "app.log")[-1]


def test_script_without_an_interpreter_line(tmp_path: Path) -> None:
    """It is run by sh, as shells do."""
    (tmp_path / "script").write_text("exit 5\n")
    (tmp_path / "script").chmod(0o755)
    assert mplog("run", "--log", "app.log", "./script", directory=tmp_path).returncode == 5


def test_log_that_cannot_be_opened(tmp_path: Path) -> None:
    """The status is 125, the reason is on stderr, and the command was not run."""
    (tmp_path / "bad.toml").write_text('version = 1\n[handlers.file]\nclass = "logging.FileHandler"\nlevel = "LOUD"\n')
    for options, reason in (
        (["--log", "none/app.log"], "none/app.log"),
        (["--config", "bad.toml"], "handlers.file"),
        (["--config", "none.toml"], "none.toml"),
        ([], "MPLOG_QUEUE"),
        (["--queue", "/nowhere"], "/nowhere"),
    ):
        done = mplog("run", *options, "--", "touch", "was-run", directory=tmp_path)
        assert (done.returncode, done.stdout) == (125, ""), options
        assert done.stderr.startswith("mplog run: ")
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--log", "app.log", "--level", "LOUD"], "LOUD"),
        (["--log", "app.log", "--stdout-level", "LOUD"], "LOUD"),
        (["--log", "app.log", "--linger", "soon"], "soon"),
        (["--log", "app.log", "--format", "{x}"], "{x}"),
        (["--log", "app.log", "--rotate", "now and then"], "now and then"),
        (["--log", "app.log", "--keep", "3"], "rotate"),
        (["--log", "app.log", "--config", "log.toml"], "--log"),
        (["--log", "app.log", "--log", "app.log"], "twice"),
        (["--level", "INFO"], "--log FILE"),
        (["--queue", "/nowhere", "--log", "app.log"], "--queue"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_make_no_sense(
    options: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 2, the reason is on stderr, and the command was not run."""
    monkeypatch.chdir(tmp_path)
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "name", process.name)  # the command gives it the name of what it runs
    try:
        status = main(["run", *options, "--", "touch", "was-run"])
    except SystemExit as error:  # of argparse
        status = int(str(error.code))
    said = capsys.readouterr().err
    assert status == 2
    assert "mplog run: " in said
    assert reason in said
    assert os.listdir(tmp_path) == []


def test_no_command(tmp_path: Path) -> None:
    """Without a command, the status is 2, and the help is named."""
    for arguments in ([], ["--"], [""]):
        done = mplog("run", "--log", "app.log", *arguments, directory=tmp_path)
        assert (done.returncode, done.stderr) == (2, "mplog run: which command? See mplog run --help.\n")
    assert not (tmp_path / "app.log").exists()


def test_options_of_the_command_are_its_own(tmp_path: Path) -> None:
    """Arguments after the command reach it as they are, also -- and options of mplog."""
    wanted = ["--log", "x", "--", "-c", "--help"]
    program = ["sh", "-c", 'printf "%s\\n" "$@"', "sh"]
    for command in (program, ["--", *program]):
        done = mplog("run", "--log", "app.log", *command, *wanted, directory=tmp_path)
        assert (done.stdout.splitlines(), done.returncode) == (wanted, 0)


def test_shell_scripts_and_python_programs_share_the_log(tmp_path: Path) -> None:
    """Programs find the server by MPLOG_QUEUE; the options say how the log is written."""
    program = "import logging, mplog; mplog.attach(); logging.debug('from %s', 'Python')"
    script = f"mplog log debug 'from a shell' n:=1; python -c \"{program}\""
    command = "mplog run --log app.log --level debug --format '%(levelname)s %(message)s' -- ./job"
    done = shell(command, write_job(tmp_path, script))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "app.log").read_text() == "DEBUG from a shell n=1\nDEBUG from Python\n"


def write_job(directory: Path, text: str) -> Path:
    """Write a shell script called job; return the directory."""
    (directory / "job").write_text(f"#!/bin/sh\n{text}\n")
    (directory / "job").chmod(0o755)
    return directory


# --- signals ---

#: Says in the file "got" which signals come, and ends with SIGTERM.
COUNTS_SIGNALS = """\
import os, signal, sys, time
def note(number, frame):
    with open("got", "a") as file:
        print(signal.Signals(number).name, file=file)
    if number == signal.SIGTERM:
        sys.exit(7)
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, note)
print(os.isatty(0), os.isatty(1), os.getpgrp() == os.getpgid(os.getppid()), flush=True)
open("ready", "w").close()
while True:
    time.sleep(0.05)  # signal.pause() would not end for a signal that comes in the instant before it
"""


def got(directory: Path) -> list[str]:
    """Return the signals that the program has got."""
    with contextlib.suppress(FileNotFoundError):
        return (directory / "got").read_text().split()
    return []


def test_signals_are_passed_on(tmp_path: Path) -> None:
    """Each signal that is sent to mplog run reaches the command, once, and the command's status is passed on."""
    write_script(tmp_path, COUNTS_SIGNALS)
    running = start("run", "--log", "app.log", "--", sys.executable, "program.py", directory=tmp_path)
    try:
        wait_until((tmp_path / "ready").exists, "the command is ready")
        sent = []
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            running.send_signal(number)
            sent.append(number.name)
            wait_until(lambda: got(tmp_path) == sent, f"{number.name} has come")
        assert running.wait(30) == 7
    finally:
        running.kill()


def test_signal_that_ends_the_command(tmp_path: Path) -> None:
    """The log is complete, and says by what the command was killed."""
    running = start(
        "run", "--log", "app.log", "--capture", "sh", "-c", "echo begun; touch ready; exec sleep 60", directory=tmp_path
    )
    try:
        wait_until((tmp_path / "ready").exists, "the command is ready")
        running.terminate()
        assert running.wait(30) == 128 + signal.SIGTERM
    finally:
        running.kill()
    first, last = messages(tmp_path / "app.log")
    assert first == "begun"
    assert "was killed by SIGTERM" in last


def test_mplog_run_killed_loses_nothing(tmp_path: Path) -> None:
    """Where mplog run itself is killed, the command goes on logging, and the log ends with it."""
    program = "import logging, mplog, time, os\nmplog.attach()\nopen('ready', 'w').close()\n"
    program += "while not os.path.exists('go'): time.sleep(0.01)\nlogging.info('still here')\n"
    write_script(tmp_path, program)
    running = start("run", "--log", "app.log", "--", sys.executable, "program.py", directory=tmp_path)
    wait_until((tmp_path / "ready").exists, "the command is ready")
    running.kill()
    running.wait(30)
    (tmp_path / "go").touch()
    wait_until(lambda: "still here" in (tmp_path / "app.log").read_text(), "the record is written")
    wait_until(lambda: not list(Path(os.environ["TMPDIR"]).glob("mplog-*")), "the logging process has ended")


# --- the terminal ---


def test_keys_reach_the_command_once_and_not_the_log(tmp_path: Path) -> None:
    r"""The command has the terminal; Ctrl-C and Ctrl-\ reach it once each, and the logging process goes on."""
    write_script(tmp_path, COUNTS_SIGNALS)
    command = [*MPLOG, "run", "--log", "app.log", "--", sys.executable, "program.py"]
    with Terminal(command, directory=tmp_path, MPLOG_QUEUE=None) as terminal:
        terminal.wait_for("True True True")
        wait_until((tmp_path / "ready").exists, "the command is ready")
        logging_process = logging_process_of(terminal.process.pid).pid
        pressed = []
        for key, name in (("\x03", "SIGINT"), ("\x1c", "SIGQUIT"), ("\x03", "SIGINT")):
            terminal.press(key)
            pressed.append(name)
            wait_until(lambda: got(tmp_path) == pressed, f"{name} has come")
        assert not process_has_ended(logging_process)
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == 7
    assert got(tmp_path) == ["SIGINT", "SIGQUIT", "SIGINT", "SIGTERM"]
    assert len(messages(tmp_path / "app.log")) == 1


@pytest.mark.parametrize("capture", [False, True])
def test_job_control(tmp_path: Path, capture: bool) -> None:
    """Ctrl-Z stops the job for the shell, fg goes on with it, and the status arrives."""
    # Builtins alone: a shell that starts a program by vfork() stops only afterwards.
    (tmp_path / "job").write_text("#!/bin/sh\n: > ready\nwhile ! [ -e go ]; do :; done\nexit 9\n")
    (tmp_path / "job").chmod(0o755)
    options = ["--capture"] if capture else []
    command = shlex.join([*MPLOG, "run", "--log", "app.log", *options, "--", "./job"])
    with Terminal(["bash", "--norc", "-i"], directory=tmp_path, MPLOG_QUEUE=None, PS1="prompt> ") as terminal:
        terminal.wait_for("prompt>")
        terminal.press(f"{command}\n")
        wait_until((tmp_path / "ready").exists, "the command is ready")
        terminal.press("\x1a")
        terminal.wait_for("Stopped")
        (tmp_path / "go").touch()
        terminal.press("fg; echo status $?\n")
        terminal.wait_for("status 9")
        terminal.press("exit\n")
        terminal.wait()


# --- captured output ---


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nno end"], ["one", "no end"]),
        ([b"dos\r\nunix\n\n"], ["dos", "unix", ""]),
        ([b"dos\r", b"\nunix"], ["dos", "unix"]),
        ([b"10%\r", b"50%\r", b"100%\n"], ["100%"]),
        ([b"10%\r50%\r"], ["50%"]),
        ([b"gr\xc3", b"\xbcn\n\xe9t\xe9\n"], ["grün", "\\xe9t\\xe9"]),
        ([b"cut \xc3"], ["cut \\xc3"]),
        ([b"\n\n"], ["", ""]),
        ([b""], []),
        ([b"nul \0 esc \x1b[1m\n"], ["nul \0 esc \x1b[1m"]),
    ],
)
def test_lines(pieces: list[bytes], expected: list[str]) -> None:
    """Lines come out whole, however they come in; carriage returns go back; no byte is lost."""
    for cut in (False, True):
        lines = Lines()
        given = [bytes([byte]) for piece in pieces for byte in piece] if cut else pieces
        found = [line for piece in given for line in lines.feed(piece)] + list(lines.end())
        assert found == expected


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_line_that_is_too_long_comes_in_pieces(end: str) -> None:
    """Put together again, the pieces are the line; characters are not cut, and each piece but the last says so."""
    text = "aä€😀" * 50
    lines = Lines(longest=64)
    data = (text + end).encode()
    found = [line for start in range(0, len(data), 7) for line in lines.feed(data[start : start + 7])]
    found += lines.end()
    assert len(found) > 3
    assert all(line.endswith(GOES_ON) for line in found[:-1])
    assert "".join(line.removesuffix(GOES_ON) for line in found) == text
    assert max(len(line.encode()) for line in found) < 64 + 16 + len(GOES_ON)


def test_output_becomes_records(tmp_path: Path) -> None:
    """A logger for each stream, levels by option, and nothing on the terminal."""
    script = "echo out; echo err >&2"
    done = mplog("run", "--log", "app.log", "--capture", "--name", "job", "sh", "-c", script, directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (tmp_path / "app.log").read_text()
    assert re.search(r"INFO +job job.stdout \| out$", text, re.M)
    assert re.search(r"WARNING +job job.stderr \| err$", text, re.M)
    options = ["--capture", "--stdout-level", "debug", "--stderr-level", "35", "--level", "30"]
    done = mplog("run", "--log", "b.log", *options, "sh", "-c", script, directory=tmp_path)
    assert messages(tmp_path / "b.log") == ["err"]
    assert " Level 35 " in (tmp_path / "b.log").read_text()


def test_endless_line_takes_no_memory(tmp_path: Path) -> None:
    """Of 32 MiB without an end, every byte is in the log, and mplog run does not grow with them."""
    count = 32 * 2**20
    program = f"""
        import os, sys
        def peak():
            with open(f"/proc/{{os.getppid()}}/status") as status:
                return int(status.read().partition("VmHWM:")[2].split()[0])
        before = peak()
        for _ in range({count} // 65536):
            sys.stdout.write("x" * 65536)
        with open("grown", "w") as file:
            print(peak() - before, file=file)
    """
    write_script(tmp_path, program)
    done = mplog("run", "--log", "app.log", "--capture", "--", sys.executable, "program.py", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = [line for line in messages(tmp_path / "app.log") if not line.startswith("mplog: ")]
    assert sum(len(line.removesuffix(GOES_ON)) for line in found) == count
    assert int((tmp_path / "grown").read_text()) * 1024 < count / 2


def test_more_than_the_log_takes_is_waited_for(tmp_path: Path) -> None:
    """While the logging process stands, so does the command; afterwards, every line is there, in order."""
    count = 60_000
    program = f"""
        import os, time
        for n in range({count}):
            print(n, "x" * 80)
            if not n % 100:
                with open("progress", "w") as file:
                    file.write(str(n))
            while not os.path.exists("go"):
                time.sleep(0.01)
    """
    write_script(tmp_path, program)
    running = start("run", "--log", "app.log", "--capture", "--", sys.executable, "program.py", directory=tmp_path)
    stopped = None
    try:
        progress = tmp_path / "progress"
        wait_until(lambda: progress.exists() and progress.read_text(), "the program prints")
        stopped = logging_process_of(running.pid)
        stopped.suspend()
        (tmp_path / "go").touch()
        seen: list[tuple[str, float]] = [("", time.monotonic())]

        def stands() -> bool:
            text = progress.read_text()
            if text != seen[0][0]:
                seen[0] = text, time.monotonic()
            return time.monotonic() - seen[0][1] > 0.5

        wait_until(stands, "the program stands")
        assert int(seen[0][0] or 0) < count - 100
        stopped.resume()
        assert running.wait(60) == 0
    finally:
        if stopped is not None and stopped.is_running():
            stopped.resume()
        running.kill()
    found = [line.split()[0] for line in messages(tmp_path / "app.log") if not line.startswith("mplog: ")]
    assert found == [str(n) for n in range(count)]


def test_lines_after_the_end_of_the_server_pass_through(tmp_path: Path) -> None:
    """After the server has ended, each line of any level comes out where the command has printed it."""
    lines = "seq 1000; seq 2000 2010 >&2"
    (tmp_path / "job").write_text(f"{lines}\nmplog serve stop >stopped\n{lines}\nexit 3\n")
    script = "export MPLOG_QUEUE=$(mplog serve start --log app.log); mplog run --capture --name job -- sh job"
    done = shell(script, tmp_path)
    assert done.returncode == 3
    expected = [str(n) for n in range(1, 1001)] * 2
    logged = re.findall(r"INFO .* \| (\d+)$", (tmp_path / "app.log").read_text(), re.M)
    assert logged + done.stdout.splitlines() == expected
    logged = re.findall(r"WARNING .* \| (\d+)$", (tmp_path / "app.log").read_text(), re.M)
    passed = [line for line in done.stderr.splitlines() if line.isdigit()]
    assert logged + passed == [str(n) for n in range(2000, 2011)] * 2
    assert done.stderr.count("the output of job comes out here\n") == 1
    count = len(done.stdout.splitlines()) + len(passed)
    assert f"mplog run: lines that are not in the log: {count:,}\n" in done.stderr


#: Runs mplog with a server that gives up soon, after failed restarts.
IMPATIENT = """
    import sys
    from mplog.cli.main import main
    from mplog.logging_process.messages import Patience
    from mplog.server import log_server
    log_server.PATIENCE = Patience(at_once=2, first_pause=0.01, longest_pause=0.02, restarts=4, seconds=0.2)
    sys.exit(main(sys.argv[1:]))
"""

#: Prints what kills the logging process, and more when the supervisor has given up.
POISONING = """
    import os, time
    print("poison", flush=True)
    while True:
        try:
            os.close(os.open(os.environ["MPLOG_QUEUE"] + "/queue", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            break
        time.sleep(0.01)
    print("after")
"""


@pytest.mark.parametrize("has_room", [True, False])
def test_lines_after_failed_restarts(tmp_path: Path, has_room: bool) -> None:
    """Where the logging process is given up, lines are kept for the next server; else they come out."""
    (tmp_path / "poisoned.py").write_text(
        "import logging, os, signal\nclass Poisoned(logging.Handler):\n    def emit(self, record):\n"
        "        if 'poison' in record.getMessage():\n            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "log.toml").write_text(
        'version = 1\nroot = {level = "INFO", handlers = ["file", "poisoned"]}\n'
        '[handlers.file]\nclass = "logging.FileHandler"\nfilename = "app.log"\n'
        '[handlers.poisoned]\nclass = "poisoned.Poisoned"\n'
    )
    write_script(tmp_path, POISONING, "poisoning.py")
    if not has_room:
        (tmp_path / ".app.log.emergency").mkdir()
    command = ["run", "--config", "log.toml", "--capture", "--", sys.executable, "poisoning.py"]
    done = run_script(tmp_path, IMPATIENT, *command)
    assert done.returncode == 0
    assert "given up" in done.stderr
    if has_room:
        assert done.stdout == ""
        assert mplog("run", "--log", "app.log", "true", directory=tmp_path).returncode == 0
        assert messages(tmp_path / "app.log") == ["poison", "after"]
    else:
        assert done.stdout == "after\n"
        assert "mplog run: lines that are not in the log: 1\n" in done.stderr


def test_pipe_that_a_process_keeps_open(tmp_path: Path) -> None:
    """mplog run waits for what the command has left running as long as it was told, and then says so."""
    script = "echo one; (while ! [ -e go ]; do sleep 0.05; done; echo two) & exit 4"
    began = time.monotonic()
    done = mplog("run", "--log", "app.log", "--capture", "--linger", "0.3", "sh", "-c", script, directory=tmp_path)
    (tmp_path / "go").touch()
    assert done.returncode == 4
    assert time.monotonic() - began < 30
    said = messages(tmp_path / "app.log")
    assert said[0] == "one"
    assert "a process that sh has left keeps sh.stdout open" in said[1]
    assert "ended with exit code 4" in said[-1]


def test_pipe_that_a_process_never_stops_writing_to(tmp_path: Path) -> None:
    """A program that is left running and prints without end does not keep mplog run from ending."""
    script = "(while echo more; do :; done) & echo $! > pid; exit 4"
    running = start("run", "--log", "app.log", "--capture", "--linger", "0.1", "sh", "-c", script, directory=tmp_path)
    try:
        assert running.wait(30) == 4
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by SIGPIPE
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        running.kill()
        running.wait(30)
    said = messages(tmp_path / "app.log")
    assert said[0] == "more"
    assert "a process that sh has left keeps sh.stdout open" in "".join(said)


def test_pipe_that_is_closed_in_time(tmp_path: Path) -> None:
    """Lines that are printed soon after the command has ended are in the log."""
    script = "(sleep 0.3; echo two) & echo one"
    done = mplog("run", "--log", "app.log", "--capture", "--linger", "30", "sh", "-c", script, directory=tmp_path)
    assert done.returncode == 0
    assert messages(tmp_path / "app.log") == ["one", "two"]


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e300", "soon"])
@pytest.mark.parametrize("option", ["run --linger", "serve --timeout"])
def test_seconds_that_cannot_be_waited(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A time that makes no sense is refused before anything is started, with status 2."""
    with pytest.raises(SystemExit) as ended:
        main([*option.split(), value, "--log", "app.log"])
    assert ended.value.code == 2
    assert value in capsys.readouterr().err


def test_help_names_every_exit_status(tmp_path: Path) -> None:
    """The help has examples and exit statuses, of every command, and fits a terminal."""
    for verb in ("run", "serve", "log", "tail", "top", "demo"):
        done = mplog(verb, "--help", directory=tmp_path, changes={"COLUMNS": "80"})
        assert (done.returncode, done.stderr) == (0, "")
        assert "examples:" in done.stdout
        assert "exit status:" in done.stdout
        assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Check that no test leaves a process."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    commands = [process.cmdline() for process in left]
    for process in left:
        process.kill()
    assert commands == []


def test_what_was_dropped_is_said(tmp_path: Path) -> None:
    """Records that a program has lost are counted on stderr, with the reason in words; the status is the program's."""
    script = (
        "import logging, mplog; logging.raiseExceptions = False; queue = mplog.attach().queue; queue.close();"
        " logging.error(1)"
    )
    done = mplog("run", "--log", "app.log", "--", sys.executable, "-c", script, directory=tmp_path)
    lost = "records are missing in the log: 1 record dropped: interrupted by an exception"
    assert (done.returncode, done.stderr) == (0, f"mplog run: {lost}\n")
