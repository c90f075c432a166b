"""The page about pools and process managers: each program on it runs, and what it names is there."""

from __future__ import annotations

import json
import re
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.nodes import literal_block
from managed import Clients, end, running, said
from oracle import wait_until
from scripts import environment, run, run_script
from test_examples import EXAMPLES, messages, read

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "integrations.rst").read_text(encoding="utf-8")
BLOCKS = [block.astext() for block in publish_doctree(TEXT).findall(literal_block)]

#: What the page goes without.
GIVEN = """
import logging, multiprocessing, multiprocessing.managers, os, signal, subprocess, sys
import mplog

tasks = [1, 2]
task = 3

def work(task):
    logging.getLogger("work").info("working on %s", task)
    return task

def cube(n):
    logging.getLogger("work").info("cubing %d", n)
"""

APP = """
import logging, os

def wsgi(environ, start_response):
    logging.getLogger("shop").info("selling %s", environ["PATH_INFO"])
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]

async def app(scope, receive, send):
    if scope["type"] == "http":
        logging.getLogger("shop").info("selling %s", scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


def block(beginning: str) -> str:
    """Return the one block of the page that has this text."""
    (found,) = [text for text in BLOCKS if beginning in text]
    return found


def run_below_server(directory: Path, text: str, imports: str = "") -> list[str]:
    """Run a block in a program with a server, and return what is in the log."""
    main = 'with mplog.LogServer("app.log", level="INFO") as server:\n' + textwrap.indent(text, "    ")
    script = f'{GIVEN}\n{imports}\nif __name__ == "__main__":\n' + textwrap.indent(main, "    ")
    done = run_script(directory, script)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return messages(read(directory / "app.log"))


def test_table_names_what_there_is() -> None:
    """Each row has an example and a test that exist."""
    rows = re.findall(r"`([\w.]+) <\.\./examples/\1>`_\n     - ``(test_\w+)``$", TEXT, re.MULTILINE)
    assert len(rows) == 14
    for example, test in rows:
        assert (EXAMPLES / example).exists(), example
        assert len(list((ROOT / "tests").rglob(f"{test}.py"))) == 1, test


def test_manager(tmp_path: Path) -> None:
    """What is logged in the manager's process is there."""
    before = 'multiprocessing.managers.SyncManager.register("work", work)\n'
    text = before + block("SyncManager") + '\nmanager.work("start")\nmanager.work(1)\nmanager.shutdown()\n'
    assert run_below_server(tmp_path, text) == ["working on start", "working on 1"]


def test_joblib(tmp_path: Path) -> None:
    """Each task has its record."""
    pytest.importorskip("joblib")
    assert sorted(run_below_server(tmp_path, block("parallel_config"), "import joblib")) == [
        "working on 1",
        "working on 2",
    ]


def test_pebble(tmp_path: Path) -> None:
    """The task has its record."""
    pytest.importorskip("pebble")
    # Of several workers, pebble may end one that is still starting, which then complains.
    text = block("pebble.ProcessPool").replace("ProcessPool(4,", "ProcessPool(1,")
    logged = run_below_server(tmp_path, text + "\n    future.result()", "import pebble")
    assert logged[0] == "working on 3"


def test_data_loader(tmp_path: Path) -> None:
    """Each item has its record."""
    pytest.importorskip("torch")
    imports = textwrap.dedent(
        """
        from torch.utils.data import DataLoader
        class Items(list):
            def __getitem__(self, index):
                return work(super().__getitem__(index))
        dataset = Items(range(8))
        """
    )
    logged = run_below_server(tmp_path, block("worker_init_fn=server") + "\nassert len(list(loader)) == 8", imports)
    assert sorted(logged) == sorted(f"working on {n}" for n in range(8))


def test_subprocess(tmp_path: Path) -> None:
    """What the other program prints is logged."""
    (tmp_path / "build.sh").write_text("echo one\necho two >&2\n")
    assert run_below_server(tmp_path, block("subprocess.Popen")) == ["one", "two"]


def test_notebook(tmp_path: Path) -> None:
    """The pool brings a server with it."""
    script = f'{GIVEN}\nlogging.getLogger().setLevel("INFO")\nif __name__ == "__main__":\n'
    done = run_script(tmp_path, script + textwrap.indent(block("pool.map(cube"), "    "))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(messages(read(tmp_path / "notebook.log"))) == [f"cubing {n}" for n in range(5)]


def test_celery(tmp_path: Path) -> None:
    """The functions for Celery's signals, in an application, log what its tasks do."""
    celery = pytest.importorskip("celery")
    assert celery
    app = (EXAMPLES / "celery_prefork.py").read_text(encoding="utf-8")
    before, _, rest = app.partition('server = mplog.LogServer("celery.log"')
    _, _, after = rest.partition("@app.task")
    (tmp_path / "shop.py").write_text(
        before.replace("celery_prefork", "shop") + block("celeryd_init") + "\n\n@app.task" + after
    )
    log = tmp_path / "celery.log"
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "1"]
    with running(command, tmp_path) as worker:
        done = run(["-c", "import shop; shop.add.delay(1, 2)"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: said(log, "celery.app.trace", "succeeded"), "the task is done")
        assert end(worker) == 0
    assert said(log, "shop", "^adding.*") == ["adding 1 and 2"]


def test_gunicorn(tmp_path: Path) -> None:
    """The configuration is all that gunicorn needs."""
    (tmp_path / "shop.py").write_text(APP)
    settings = 'import multiprocessing\nimport gunicorn.glogging\nimport mplog\naccesslog = "-"\nworkers = 2\n'
    (tmp_path / "gunicorn.conf.py").write_text(settings + block("class logger_class"))
    log = tmp_path / "gunicorn.log"
    with running([sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "shop:wsgi"], tmp_path) as gunicorn:
        wait_until(lambda: said(log, "gunicorn.error", "Listening at"), "gunicorn listens")
        clients = Clients(int(said(log, "gunicorn.error", r"Listening at: http://127.0.0.1:(\d+)")[0]))
        clients.ask(5)
        clients.wait()
        assert end(gunicorn) == 0
    assert all(name.startswith("Worker-") for name in clients.check(log, "gunicorn.access"))


@pytest.mark.parametrize("how", ["program", "file"])
def test_uvicorn(how: str, tmp_path: Path) -> None:
    """The configuration is all that uvicorn needs, in a program, or as a file below a server."""
    (tmp_path / "shop.py").write_text(APP)
    text = block("LOG_CONFIG")
    assert 'uvicorn.run("shop:app", workers=4' in text
    if how == "program":
        script = "import uvicorn, mplog\n" + text.replace(
            "workers=4", "workers=2, port=0, timeout_worker_healthcheck=60"
        )
    else:
        config, _, _ = text.partition("if __name__")
        values: dict[str, object] = {}
        exec(config, values)
        (tmp_path / "log.json").write_text(json.dumps(values["LOG_CONFIG"]))
        script = """
import signal, subprocess, sys
import mplog
with mplog.LogServer("uvicorn.log", level="INFO"):
    command = "-m uvicorn --workers 2 --timeout-worker-healthcheck 60 --log-config log.json --port 0 shop:app"
    uvicorn = subprocess.Popen([sys.executable, *command.split()])
    signal.signal(signal.SIGTERM, lambda *_: uvicorn.terminate())
    sys.exit(uvicorn.wait())
"""
    (tmp_path / "program.py").write_text(script)
    log = tmp_path / "uvicorn.log"
    with running([sys.executable, "program.py"], tmp_path) as uvicorn:
        wait_until(lambda: len(said(log, "uvicorn.error", "startup complete")) == 2, "two workers are there")
        clients = Clients(int(said(log, "uvicorn.error", r"running on http://127.0.0.1:(\d+)")[0]))
        clients.ask(5)
        clients.wait()
        assert end(uvicorn, signal.SIGTERM) == 0
    assert all(name.startswith("SpawnProcess-") for name in clients.check(log, "uvicorn.access"))
    assert (tmp_path / "output").read_text() == ""


def test_xdist(tmp_path: Path) -> None:
    """The conftest.py is all that a run needs."""
    (tmp_path / "conftest.py").write_text("import multiprocessing, pytest\nimport mplog\n" + block("pytest_configure"))
    (tmp_path / "test_it.py").write_text(
        "import logging, pytest\n@pytest.mark.parametrize('n', range(4))\n"
        "def test_it(n, caplog):\n    logging.warning('test %d', n)\n    assert caplog.messages == [f'test {n}']\n"
    )
    done = run(
        ["-m", "pytest", "-n", "2", "-p", "xdist.plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment(PYTEST_ADDOPTS=None, PYTEST_XDIST_WORKER=None, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    lines = read(tmp_path / "tests.log")
    assert sorted(messages(lines, "gw")) == [f"test {n}" for n in range(4)]
