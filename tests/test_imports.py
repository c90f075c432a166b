"""What a worker loads, and which way imports go."""

from __future__ import annotations

import ast
from pathlib import Path

import jobs
import pytest

import mplog

PACKAGE = Path(mplog.__file__).parent

#: What a worker may import of mplog. Nothing else may be loaded by it.
WORKER = {
    *("worker", "handler", "queue", "record", "frame", "fifo", "plain", "portable", "errors", "levels"),
    *("losses", "overflow", "emergency", "sync", "bound", "record_factory"),
}

#: The way of a record: what stands here imports nothing that stands behind it.
ORDER = [
    "errors",
    "faults",
    "fifo",
    "buffers",
    "frame",
    "portable",
    "plain",
    "bound",
    "decoded_size",
    "record",
    "record_factory",
    "fields",
    "losses",
    "overflow",
    "emergency",
    "sync",
    "queue",
    "deaths",
    "statistics",
    "running",
    "levels",
    "listener",
    "handler",
    "logger",
    "worker",
    "autoattach",
    "raw",
    "plain_queue",
    "formatters",
    "json_formatter",
    "escaping",
    "sinks",
    "file_lock",
    "regular_file",
    "rotation",
    "archives",
    "renames",
    "log_file",
    "stdlib_files",
    "files",
    "file_names",
    "routed_files",
    "collisions",
    "raw_sinks",
    "callable_sink",
    "intake",
    "announcements",
    "dispatch",
    "ended",
    "restarts",
    "loop",
    "unfinished",
    "fifo_loop",
    "logging_process",
    "supervisor",
    "progress",
    "control",
    "config_handlers",
    "config_mistakes",
    "configurator",
    "config_check",
    "config",
    "adopt",
    "server",
    "prometheus",
    "pools",
    "shutdown",
    "pytest_children",
    "pytest_records",
    "pytest_run_log",
    "pytest_plugin",
]

LOADED = "import sys; print(*sorted(sys.modules))"


def loaded_by(program: str) -> set[str]:
    """Return the modules that are loaded in a fresh interpreter behind a program."""
    done = jobs.run_python(["-c", f"{program}\n{LOADED}"])
    assert done.stderr == ""
    return set(done.stdout.split())


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
    loaded = loaded_by(f"import logging, mplog, pickle\n{start}\nlogging.info('x', extra={{'y': object()}})")
    assert {name.removeprefix("mplog.") for name in loaded if name.startswith("mplog.")} == WORKER
    heavy = {"cloudpickle", "filelock", "multiprocess", "dill", "asyncio", "ctypes", "importlib.metadata"}
    assert loaded & (heavy | {"multiprocessing.pool", "multiprocessing.managers", "concurrent.futures"}) == set()


def test_public_names_are_loaded_when_they_are_used() -> None:
    """Every public name is there, and dir() knows it."""
    assert set(mplog.__all__) <= set(dir(mplog))
    for name in mplog.__all__:
        assert getattr(mplog, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'mplog' has no attribute 'nothing'"):
        mplog.nothing


def test_imports_go_one_way() -> None:
    """A module imports only what comes before it on the way of a record."""
    assert sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__")) == sorted(
        ORDER
    )
    for path in PACKAGE.glob("*.py"):
        if path.stem in ("__init__", "__main__"):
            continue
        for imported in imports_of(path):
            assert ORDER.index(imported) < ORDER.index(path.stem), f"{path.stem} imports {imported}"


def imports_of(path: Path) -> set[str]:
    """Return the modules of mplog that a file imports anywhere."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mplog":
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mplog."):
            imported.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mplog.")}
    return imported
