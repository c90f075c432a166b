"""What a worker loads, and which way imports go."""

from __future__ import annotations

import ast
from pathlib import Path

import jobs
import pytest

import mplog
from mplog import _MODULE_OF as MODULE_OF

PACKAGE = Path(mplog.__file__).parent

#: What a worker may import of mplog. Nothing else may be loaded by it.
WORKER = {
    "errors",
    *(
        "record",
        "record.layout",
        "record.encoding",
        "record.decoding",
        "record.foreign",
        "record.frame",
        "record.packing",
        "record.plain",
    ),
    *("record.context", "record.factory"),
    "record.cache",
    *("queue", "queue.log_queue", "queue.fifo", "queue.losses", "queue.overflow", "queue.emergency", "queue.sync"),
    *("queue.sender", "queue.payloads", "queue.directory", "queue.locks", "queue.shared_file"),
    *("queue.descriptor", "queue.native", "queue.elsewhere", "queue.presence"),
    *("worker", "worker.initializer", "worker.state", "worker.queue_handler", "worker.levels"),
}

#: The way of a record, by folder: what stands here imports nothing that stands after it.
ORDER = [
    "errors",
    "record",
    "queue",
    "monitoring",
    "formats",
    "files",
    "handlers",
    "sinks",
    "worker",
    "logging_process",
    "config",
    "server",
    "pytest_plugin",
    "cli",
]

LOADED = "import sys; print(*sorted(sys.modules))"


def loaded_by(program: str) -> set[str]:
    """Return the modules that are loaded in a fresh interpreter after a program."""
    done = jobs.run_python(["-c", f"{program}\n{LOADED}"])
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.processes
def test_import_mplog_loads_nothing_else() -> None:
    """`import mplog` alone loads none of its modules, and not even logging."""
    loaded = loaded_by("import mplog")
    assert {name for name in loaded if name.startswith("mplog")} == {"mplog"}
    assert "logging" not in loaded


@pytest.mark.parametrize("how", ["initializer", "attach"])
def test_a_worker_loads_only_what_a_worker_needs(server: mplog.LogServer, how: str) -> None:
    """A worker that logs has loaded neither server, sinks, pools nor what they need."""
    import pickle

    start = "mplog.attach()" if how == "attach" else f"pickle.loads({pickle.dumps(server.initializer)!r})()"
    own = {"worker.attach"} if how == "attach" else set()
    loaded = loaded_by(f"import logging, mplog, pickle\n{start}\nlogging.info('x', extra={{'y': object()}})")
    assert {name.removeprefix("mplog.") for name in loaded if name.startswith("mplog.")} == WORKER | own
    heavy = {"cloudpickle", "filelock", "multiprocess", "dill", "asyncio", "ctypes", "importlib.metadata"}
    heavy |= {"multiprocessing.pool", "multiprocessing.managers", "concurrent.futures"}
    assert loaded & heavy == set()
    # Python 3.14's traceback loads it, and so its logging.
    assert "dataclasses" not in loaded - loaded_by("import logging")


def test_public_names_are_loaded_when_they_are_used() -> None:
    """Every public name is there, and dir() knows it."""
    assert set(mplog.__all__) <= set(dir(mplog))
    for name in mplog.__all__:
        assert getattr(mplog, name).__qualname__ == name
    with pytest.raises(AttributeError, match="module 'mplog' has no attribute 'nothing'"):
        mplog.nothing


def test_tests_are_in_the_folders_of_what_they_test() -> None:
    """Each folder of the package has one of tests; the others are about the whole of it."""
    tests = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    package = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert tests == package | {"documentation", "integrations", "promises"}


def test_imports_go_one_way() -> None:
    """A file imports only from its own folder, and from those that come before it on the way of a record."""
    folders = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert folders - {"__init__", "__main__", "__pycache__"} == {*ORDER, "prometheus"}
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if folder in ORDER:
            for imported in imports_of(path):
                assert ORDER.index(imported) <= ORDER.index(folder), f"{path} imports {imported}"


def imports_of(path: Path) -> set[str]:
    """Return the folders of mplog from which a file imports anywhere."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mplog."):
            imported.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "mplog":
            imported |= {MODULE_OF.get(alias.name, alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mplog.")}
    return imported
