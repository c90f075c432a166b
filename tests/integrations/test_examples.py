"""The examples, run as a user runs them: from some other directory, in an interpreter of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import docutils.core
import pytest
from start_methods import skip_without_dill

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parents[2] / "examples"

#: What the default format writes, with the process's name, the level, the logger and the message as groups.
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>\w+) +(?P<process>\S+) (?P<logger>\S+) \| (?P<text>.*)"
)

#: Run by these tests, by an example that is, or by tests/test_with_*.py.
TESTED = {
    "stdlib_survey.py",
    "plain_pool.py",
    "executor.py",
    "process.py",
    "multiprocess_lambdas.py",
    "attach.sh",
    "attach_server.py",
    "attach_job.py",
    "batch.sh",
    "celery_prefork.py",
    "data_loader.py",
    "gunicorn_workers.py",
    "joblib_parallel.py",
    "manager.py",
    "notebook.py",
    "pebble_pool.py",
    "subprocesses.py",
    "uvicorn_workers.py",
}

#: Directories, each with the files of one application; run by test_frameworks.py and test_with_xdist.py.
APPLICATIONS = {"django_site", "fastapi_app", "flask_app", "pytest_xdist"}


def run(name: str, directory: Path, *arguments: str) -> str:
    """Run an example to its end, and return what it printed; it must succeed, and say nothing on stderr."""
    command = [str(EXAMPLES / name)] if name.endswith(".sh") else [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHON": sys.executable, "MPLOG": f"{sys.executable} -m mplog"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def read(log: Path) -> list[re.Match[str]]:
    """Return the lines of a log in the default format, each of which must be one."""
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines():
        found = LINE.fullmatch(line)
        assert found is not None, line
        lines.append(found)
    return lines


def messages(lines: list[re.Match[str]], process: str = "") -> list[str]:
    """Return the messages, in their order, of processes whose name contains `process`."""
    return [line["text"] for line in lines if process in line["process"]]


def test_examples_are_listed_and_run() -> None:
    """Every example is in the list of examples/README.rst, and in that of these tests."""
    text = (EXAMPLES / "README.rst").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert files == TESTED
    directories = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert directories == APPLICATIONS == set(re.findall(r"<(\w+)/>", text))
    assert set(re.findall(r"<(\w+\.(?:py|sh))>", text)) == files
    # Anything that docutils has to say is an error.
    docutils.core.publish_string(text, settings_overrides={"report_level": 1, "halt_level": 1})


@pytest.mark.parametrize(
    ("package", "least"),
    [pytest.param("", 500, marks=[pytest.mark.long, pytest.mark.timeout(600)]), ("multiprocessing", 20)],
)
def test_stdlib_survey_has_every_file_of_the_standard_library(tmp_path: Path, package: str, least: int) -> None:
    """The survey logs each file of the standard library, and finds every record of every worker in its log."""
    directory = Path(sysconfig.get_path("stdlib"), package)
    log = tmp_path / "stdlib_survey.log"
    printed = run("stdlib_survey.py", tmp_path, *([str(log), str(directory)] if package else []))
    assert "Every record of every process is in the log, once and in order." in printed
    text = log.read_text(encoding="utf-8")
    files = {str(path) for path in directory.rglob("*.py") if "-packages" not in str(path)}
    assert len(files) > least
    about = Counter(re.findall(r" survey \| (/.*?\.py): (?:\d+ lines|does not)", text))
    assert about == Counter(files)
    assert f"{len(files)} files of {directory} in " in printed
    rows = re.findall(r"^(\S+ \d+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) *$", printed, re.MULTILINE)
    assert len(rows) >= 2  # the program itself, and a worker: one may be done before the others have begun
    assert all(logged == there for _, logged, there, *_ in rows)
    assert sum(int(there) for _, _, there, *_ in rows) == len(re.findall(r"^\S+ \S+ \w+ +\S+ \d+ #\d+ ", text, re.M))


def test_stdlib_survey_logs_what_is_odd_about_a_file(tmp_path: Path) -> None:
    """What does not decode, does not parse or is long becomes a warning or an error with its traceback."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "good.py").write_text("def f():\n    pass\n")
    (modules / "broken.py").write_text("def f(:\n")
    (modules / "latin.py").write_bytes(b"name = '\xe9'\n")
    (modules / "long.py").write_text("def f():\n" + "    pass\n" * 300)
    (modules / "escape.py").write_text("pattern = '\\d'\n")
    log = tmp_path / "other.log"
    printed = run("stdlib_survey.py", tmp_path, str(log), str(modules))
    assert f"5 files of {modules}" in printed
    text = log.read_text(encoding="utf-8")
    assert re.search(r"INFO .* \| \S+/good.py: 2 lines, 1 functions$", text, re.M)
    assert re.search(r"ERROR .* \| \S+/broken.py: does not parse\nTraceback .*\n(  .*\n)+SyntaxError: ", text)
    assert re.search(r"WARNING .* \| \S+/latin.py: does not decode: ", text)
    assert re.search(r"WARNING .* \| \S+/long.py:1: f\(\) has 301 lines$", text, re.M)
    assert re.search(r"WARNING .* py.warnings \| .*/escape.py:1: \w+Warning: .*invalid escape sequence", text)


def test_plain_pool(tmp_path: Path) -> None:
    """The Pool returns its results, and logs one line per task, in order per worker."""
    printed = run("plain_pool.py", tmp_path)
    assert printed.splitlines()[0] == str([n * n for n in range(10)])
    lines = read(tmp_path / "plain_pool.log")
    assert printed.splitlines()[1:] == [line[0] for line in lines]
    assert sorted(messages(lines)) == [f"squaring {n}" for n in range(10)]
    for process in {line["process"] for line in lines}:
        assert re.fullmatch(r"\w+PoolWorker-\d+", process)
        numbers = [int(text.split()[1]) for text in messages(lines, process)]
        assert numbers == sorted(numbers)


def test_executor(tmp_path: Path) -> None:
    """Both executors run the user's initializer, and log each task; mplog's takes lambdas under spawn."""
    printed = run("executor.py", tmp_path).splitlines()
    assert printed[:2] == ["[0, 2, 4, 6, 8]", "[100, 101, 102, 103, 104]"]
    lines = read(tmp_path / "executor.log")
    texts = messages(lines)
    for n in range(5):
        assert texts.count(f"adding {n} and {n}") == 1
        assert texts.count(f"adding {n} and 100") == 1
    for line in lines:
        name, text = line["process"], line["text"]
        if text.startswith("good"):
            assert text in (f"good morning from {name}", f"good evening from {name}")
            assert messages(lines, name)[0] == text
            assert ("evening" in text) == name.startswith("Spawn")


def test_process(tmp_path: Path) -> None:
    """A target, a subclass that dies, and a process of the stdlib's each have their line, under their own name."""
    printed = run("process.py", tmp_path)
    assert "Waiter ended with exit code 1" in printed
    assert printed.count("ended with exit code 0") == 2
    lines = [(line["process"], line["level"], line["text"]) for line in read(tmp_path / "process.log")]
    deaths = [text for process, _, text in lines if process == "mplog"]
    assert all("Waiter" in text and "ended with exit code 1" in text for text in deaths)
    assert sorted(line for line in lines if line[0] != "mplog") == [
        ("Confectioner", "INFO", "cooking pudding"),
        ("Cook", "INFO", "cooking soup"),
        ("Waiter", "WARNING", "dropping the soup"),
    ]


def test_multiprocess_lambdas(tmp_path: Path) -> None:
    """Lambdas run in spawned workers of either library, and what they log is there."""
    skip_without_dill()
    printed = run("multiprocess_lambdas.py", tmp_path).splitlines()
    assert printed[:3] == ["[10, 11, 12]", "[20, 21, 22]", "[30, 31, 32]"]
    lines = read(tmp_path / "multiprocess_lambdas.log")
    assert sorted(messages(lines)) == sorted(f"adding {n} and {m}" for n in range(3) for m in (10, 20, 30))
    assert all(line["process"].startswith("SpawnPoolWorker-") for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_attach(tmp_path: Path) -> None:
    """Programs that a shell script starts write into the log of the server above them, under their own names."""
    printed = run("attach.sh", tmp_path)
    lines = read(tmp_path / "attach.log")
    assert printed.splitlines() == [line[0] for line in lines]
    assert messages(lines)[0] == "starting sh"
    assert messages(lines, "fetch") == [f"step {n} of 3" for n in (1, 2, 3)]
    assert messages(lines, "convert") == [f"step {n} of 2" for n in (1, 2)]
    assert messages(lines)[-2:] == ["step 1 of 1", "sh ended with exit status 0"]
    assert len(lines) == 8


def test_job_without_server_says_so(tmp_path: Path) -> None:
    """A program that is to attach, but was started outside of a server, says what is missing."""
    environment = {name: value for name, value in os.environ.items() if name != "MPLOG_QUEUE"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "attach_job.py"), "alone", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 1
    assert "QueueNotFoundError" in done.stderr
    assert "MPLOG_QUEUE is not set" in done.stderr


@pytest.mark.parametrize("name", ["plain_pool.py", "process.py"])
def test_log_goes_where_the_argument_says(tmp_path: Path, name: str) -> None:
    """An example overwrites the log whose path is its argument, and writes nothing else anywhere."""
    for _ in range(2):
        run(name, tmp_path, "here.log")
    assert os.listdir(tmp_path) == ["here.log"]
    texts = messages(read(tmp_path / "here.log"))
    assert len(texts) == len(set(texts))


def test_start_up_benchmark_runs(tmp_path: Path) -> None:
    """The benchmark of start-up prints every figure that has an aim."""
    script = EXAMPLES.parent / "benchmarks" / "startup.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "1"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    aims = re.findall(r"^(.+?) +[\d.]+ (?:ms|MB) .*aim: (\d+) ", done.stdout, re.M)
    assert [int(aim) for _, aim in aims] == [20, 150, 50, 40, 40]
    assert os.listdir(tmp_path) == []


def test_batch(tmp_path: Path) -> None:
    """The script, what it runs at once, a program that prints, and a Python program are in the log, and counted."""
    assert run("batch.sh", tmp_path) == "8 records of 7 processes written\n"
    lines = read(tmp_path / "batch.log")
    found = [(line["level"], line["logger"], line["text"]) for line in lines]
    assert (found[0], found[-1]) == (("INFO", "shell", "begin files=3"), ("INFO", "shell", "end"))
    assert sorted(found[1:4]) == [("INFO", "convert", f"converted file={name}.wav") for name in "abc"]
    assert sorted(found[4:6]) == [
        ("INFO", "check.stdout", "3 files are fine"),
        ("WARNING", "check.stderr", "1 is empty"),
    ]
    assert found[6] == ("INFO", "report", "from an ordinary Python program")


def test_manager(tmp_path: Path) -> None:
    """The manager's process and the workers have their lines, in order."""
    printed = run("manager.py", tmp_path).splitlines()
    lines = read(tmp_path / "manager.log")
    assert sorted(printed[0].strip("[]").split(", ")) == ["False", "True", "True"]
    assert printed[1:] == [line[0] for line in lines]
    assert messages(lines, "StoreManager-1") == [f"{left} of tea left" for left in (2, 1, 0)]
    assert sorted(messages(lines, "PoolWorker-")) == ["bought tea", "bought tea", "went home"]
    assert len(lines) == 6


def test_joblib_parallel(tmp_path: Path) -> None:
    """Both backends of joblib log each task once, under the names of their processes."""
    pytest.importorskip("joblib")
    printed = run("joblib_parallel.py", tmp_path).splitlines()
    assert printed[:3] == [str([n * n for n in range(begin, begin + 5)]) for begin in (0, 5, 10)]
    lines = read(tmp_path / "joblib_parallel.log")
    assert sorted(messages(lines, "LokyProcess-")) == sorted(f"squaring {n}" for n in range(10))
    assert sorted(messages(lines, "PoolWorker-")) == sorted(f"squaring {n}" for n in range(10, 15))
    assert len(lines) == 15


def test_pebble_pool(tmp_path: Path) -> None:
    """A worker that was killed for being late has left what it logged, and the pool has gone on."""
    pytest.importorskip("pebble")
    printed = run("pebble_pool.py", tmp_path).splitlines()
    assert printed[:2] == ["FIRST", "LAST"]
    lines = read(tmp_path / "pebble_pool.log")
    assert messages(lines, "pebble_pool_worker") == ["fetching first", "fetching endless", "fetching last"]
    assert messages(lines, "MainProcess") == ["endless took too long"]


def test_data_loader(tmp_path: Path) -> None:
    """Each item of each epoch is loaded by a worker, which has logged it."""
    pytest.importorskip("torch")
    printed = run("data_loader.py", tmp_path).splitlines()
    assert printed[:2] == ["70", "70"]
    lines = read(tmp_path / "data_loader.log")
    assert messages(lines, "MainProcess") == ["epoch 1", "epoch 2"]
    assert sorted(messages(lines, " ") + messages(lines, "Process-")) == sorted([f"loading {n}" for n in range(6)] * 2)


def test_subprocesses(tmp_path: Path) -> None:
    """Both programs have their lines under their own names, and so has the output of the shell."""
    run("subprocesses.py", tmp_path)
    lines = read(tmp_path / "subprocesses.log")
    assert messages(lines, "fetch") == messages(lines, "convert") == ["begins", "done"]
    assert [(line["process"], line["logger"], line["text"]) for line in lines[-2:]] == [
        ("MainProcess", "sh", "one"),
        ("MainProcess", "sh", "two"),
    ]
    assert len(lines) == 6


def test_notebook_as_a_program(tmp_path: Path) -> None:
    """The notebook runs as a program, too; test_with_jupyter.py runs it in a kernel."""
    printed = run("notebook.py", tmp_path).splitlines()
    assert printed[0] == "[0, 1, 8, 27, 64]"
    lines = read(tmp_path / "notebook.log")
    assert sorted(messages(lines, "SpawnPoolWorker-")) == [f"cubing {n}" for n in range(5)]
