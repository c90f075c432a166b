"""``mplog run --python``: programs that log to the server without a change, whatever they do to logging."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import mplog
from scripts import INSTALLED, environment, write_script
from start_methods import PAIRS, skip_without_dill

pytestmark = pytest.mark.processes

FORMAT = "%(levelname)s %(processName)s %(name)s | %(message)s"


def run(directory: Path, program: str, *options: str, **changes: str | None) -> tuple[list[str], list[str], list[str]]:
    """Run a program under mplog run --python; return the lines of the log, and of both outputs. It must succeed."""
    write_script(directory, program)
    command = ["--python", "--log", "app.log", "--format", FORMAT, *options, "--", sys.executable, "program.py"]
    done = mplog("run", *command, directory=directory, changes=changes)
    assert done.returncode == 0, done.stderr
    return (directory / "app.log").read_text().splitlines(), done.stdout.splitlines(), done.stderr.splitlines()


def test_program_without_any_configuration(tmp_path: Path) -> None:
    """The records of a program, from the server's level on, are in the log, and none on stderr."""
    program = "import logging\nlogging.getLogger('a.b').debug('no')\nlogging.info('one')\nlogging.error('two')\n"
    log, out, err = run(tmp_path, program)
    assert log == ["INFO MainProcess root | one", "ERROR MainProcess root | two"]
    assert (out, err) == ([], [])
    log, _, _ = run(tmp_path, program, "--level", "DEBUG")
    assert log[2:] == ["DEBUG MainProcess a.b | no", *log[:2]]


@pytest.mark.parametrize(
    "configure",
    [
        "logging.basicConfig(level='DEBUG', format='console %(message)s')",
        "logging.info('before'); logging.basicConfig(level='DEBUG', format='console %(message)s', force=True)",
        "import logging.config, json; logging.config.dictConfig(json.load(open('log.json')))",
        "from logging.config import fileConfig; fileConfig('log.ini')",
    ],
    ids=["basicConfig", "force", "dictConfig", "fileConfig"],
)
def test_program_that_configures_logging(tmp_path: Path, configure: str) -> None:
    """Logging that the program has set up works as without mplog, and the log has the same records."""
    (tmp_path / "log.ini").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n[logger_root]\nlevel=DEBUG\nhandlers=h\n"
        "[handler_h]\nclass=StreamHandler\nformatter=f\nargs=()\n[formatter_f]\nformat=console %(message)s\n"
    )
    (tmp_path / "log.json").write_text(
        """{"version": 1, "formatters": {"f": {"format": "console %(message)s"}},
        "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
        "root": {"level": "DEBUG", "handlers": ["h"]}}"""
    )
    program = f"import logging\n{configure}\nlogging.debug('one')\nlogging.getLogger('x').info('two')\n"
    log, out, err = run(tmp_path, program)
    assert [line for line in log if "before" not in line] == [
        "DEBUG MainProcess root | one",
        "INFO MainProcess x | two",
    ]
    assert (out, err) == ([], ["console one", "console two"])


@pytest.mark.parametrize(("start_method", "library"), PAIRS)
def test_workers_of_every_start_method(tmp_path: Path, start_method: str, library: str) -> None:
    """Workers log without an initializer, once each, under their names; so do their own children."""
    if library == "multiprocess":
        skip_without_dill()
    program = f"""
        import {library} as library, logging, os, subprocess, sys
        def work(number):
            logging.getLogger("work").info("number %d", number)
            subprocess.run([sys.executable, "-c", f"import logging; logging.info('child of {{number}}')"], check=True)
        if __name__ == "__main__":
            with library.get_context({start_method!r}).Pool(2) as pool:
                pool.map(work, range(2))
    """
    log, out, err = run(tmp_path, program)
    assert (out, err) == ([], [])
    assert sorted(line.partition(" | ")[2] for line in log) == ["child of 0", "child of 1", "number 0", "number 1"]
    assert sum("PoolWorker-" in line for line in log) == 2


def test_program_with_a_server_of_its_own(tmp_path: Path) -> None:
    """A program with a server of its own logs there, and its logging process does not join the other server."""
    program = """
        import logging, mplog, multiprocessing
        def work(number):
            logging.info("worker %d", number)
        if __name__ == "__main__":
            logging.info("before")
            with mplog.LogServer("own.log", level="INFO", format="%(message)s") as server:
                logging.info("own")
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    pool.map(work, range(1))
            logging.info("after")
    """
    log, out, err = run(tmp_path, program)
    assert log == ["INFO MainProcess root | before", "INFO MainProcess root | after"]
    assert (tmp_path / "own.log").read_text().splitlines() == ["own", "worker 0"]
    assert (out, err) == ([], [])


def test_program_that_attaches_itself(tmp_path: Path) -> None:
    """The records of a program that attaches itself are in the log once."""
    program = "import logging, mplog\nlogging.info('one')\nmplog.attach()\nlogging.info('two')\n"
    log, _, err = run(tmp_path, program)
    assert (log, err) == (["INFO MainProcess root | one", "INFO MainProcess root | two"], [])


def test_import_of_mplog_comes_first(tmp_path: Path) -> None:
    """A program logs to the server also if mplog imports logging first."""
    log, _, err = run(tmp_path, "import mplog.worker.attach, logging\nlogging.info('one')\n")
    assert (log, err) == (["INFO MainProcess root | one"], [])


def test_sitecustomize_of_the_environment_is_imported(tmp_path: Path) -> None:
    """A sitecustomize of the system's runs as ever, and ours is not on sys.path."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import builtins\nbuiltins.customized = __file__\n")
    program = """
        import logging, sitecustomize, sys
        logging.info(customized)
        assert sitecustomize.__file__ == customized
        assert not any("startup" in entry for entry in sys.path), sys.path
    """
    path = os.pathsep.join(filter(None, (str(site), environment()["PYTHONPATH"])))
    log, _, err = run(tmp_path, program, PYTHONPATH=path)
    assert (log, err) == ([f"INFO MainProcess root | {site / 'sitecustomize.py'}"], [])


def test_modules_look_as_ever(tmp_path: Path) -> None:
    """The modules of logging have their usual loaders."""
    program = """
        import importlib.machinery, inspect, logging, logging.config
        for module in (logging, logging.config):
            assert type(module.__loader__) is importlib.machinery.SourceFileLoader
            assert module.__spec__.loader is module.__loader__
            assert inspect.getsource(module)
    """
    assert run(tmp_path, program) == ([], [], [])


def test_program_that_does_not_log_loads_nothing(tmp_path: Path) -> None:
    """A program that does not log imports neither logging nor mplog; importing logging does not connect."""
    program = """
        import sys
        assert not {"logging", "mplog", "typing"} & set(sys.modules), sys.modules.keys()
        import logging
        assert "msgspec" not in sys.modules
    """
    assert run(tmp_path, program) == ([], [], [])


def test_python_without_mplog(tmp_path: Path) -> None:
    """Without a server, a program runs and logs as ever."""
    program = """
        import subprocess, sys
        code = "import sys; sys.modules['mplog'] = None; import logging; logging.warning('on stderr')"
        subprocess.run([sys.executable, "-c", code], check=True)
    """
    assert run(tmp_path, program) == ([], [], ["WARNING:root:on stderr"])


def test_server_that_has_ended(tmp_path: Path) -> None:
    """If a program first logs after the end of the server, it goes on, says so, and has its warnings on stderr."""
    startup = INSTALLED / "mplog" / "cli" / "startup"
    directory = tmp_path / "queue"
    directory.mkdir()
    state = '{"layout": {"senders": [""]}, "level": 20, "levels": {}, "disable": 0}'
    (directory / "logging").write_text(state)
    path = os.pathsep.join((str(startup), environment()["PYTHONPATH"]))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging; logging.getLogger('x').warning('lost?'); logging.getLogger('x').info('i')",
        ],
        env=environment(MPLOG_QUEUE=str(directory), PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = done.stderr.splitlines()
    assert said[0].startswith("mplog: this program does not log to the server: ")
    assert said[1:] == ["lost?"]


def test_filters_see_each_record_once(tmp_path: Path) -> None:
    """A filter of the program that lets nothing pass twice lets the first record pass."""
    program = """
        import logging
        seen = []
        def once(record):
            seen.append(record.msg)
            return seen.count(record.msg) == 1
        logging.getLogger("a").addFilter(once)
        for message in ("one", "one", "two"):
            logging.getLogger("a").info(message)
        print(*seen)
    """
    log, out, _ = run(tmp_path, program)
    assert log == ["INFO MainProcess a | one", "INFO MainProcess a | two"]
    assert out == ["one one two"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_directory_of_another_user(tmp_path: Path) -> None:
    """Files of another user in the place of a server do not switch off a program's logging."""
    state = '{"layout": {"senders": [""]}, "level": 50, "levels": {"a": 50}, "disable": 50}'
    (tmp_path / "logging").write_text(state)
    program = "import logging; logging.getLogger('a').error('said')"
    startup = INSTALLED / "mplog" / "cli" / "startup"
    changes = environment(MPLOG_QUEUE=str(tmp_path))
    changes["PYTHONPATH"] = f"{startup}{os.pathsep}{changes['PYTHONPATH']}"
    for owner, said in ((0, ""), (65534, "said\n")):
        os.chown(tmp_path, owner, owner)
        done = subprocess.run(
            [sys.executable, "-c", program], env=changes, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == said


def test_first_records_of_many_threads(tmp_path: Path) -> None:
    """While one thread joins, the records of other threads wait, and each is in the log once."""
    program = """
        import logging, threading
        barrier = threading.Barrier(16)
        def work(number):
            barrier.wait()
            logging.info("thread %d", number)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    log, _, err = run(tmp_path, program)
    assert sorted(line.partition(" | ")[2] for line in log) == sorted(f"thread {number}" for number in range(16))
    assert err == []


def test_server_with_a_configuration(tmp_path: Path) -> None:
    """The loggers of the server's configuration decide what is written."""
    (tmp_path / "log.json").write_text(
        """{"version": 1, "formatters": {"f": {"format": "%(name)s %(message)s"}},
        "handlers": {"h": {"class": "logging.FileHandler", "filename": "app.log", "formatter": "f"}},
        "loggers": {"job": {"level": "INFO", "handlers": ["h"], "propagate": false}}}"""
    )
    program = """
        import logging
        logging.getLogger("job").debug("no")
        logging.getLogger("job.sub").info("yes")
        logging.getLogger("job").info("yes")
        logging.getLogger("other").error("on stderr")
    """
    write_script(tmp_path, program)
    command = ["--python", "--config", "log.json", "--", sys.executable, "program.py"]
    done = mplog("run", *command, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "on stderr\n")
    assert (tmp_path / "app.log").read_text().splitlines() == ["job.sub yes", "job yes"]
