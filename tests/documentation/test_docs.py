"""The pages in docs/: what they name is there, and their programs run."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pages import DOCS, ROOT, read_blocks
from test_imports import ORDER

import mplog
import mplog.server.log_server
import mplog.worker.attach
from mplog.config import check as config_check
from mplog.files import names as file_names
from mplog.logging_process import dispatch, loop
from mplog.logging_process.set_aside import LONGEST_KEPT
from mplog.monitoring import tallies
from mplog.queue import buffer_memory, overflow
from mplog.queue import log_queue as queue
from mplog.queue.payloads import MAX_OBJECT_SIZE
from mplog.record import frame, plain
from mplog.record.frame_reader import UNFINISHED_LIMIT
from mplog.record.layout import MAX_RECORD_SIZE
from mplog.server import shutdown
from mplog.sinks.file import DERIVED


def test_delivery_page_names_tests_that_exist() -> None:
    """Each promise on the page names tests that exist."""
    text = (DOCS / "delivery.rst").read_text()
    named = set(re.findall(r"``(test_\w+)``", text))
    assert len(named) > 10
    assert named - {file.stem for file in (ROOT / "tests").rglob("test_*.py")} == set()
    functions = set(re.findall(r"``(test_\w+)::(test_\w+)``", text))
    assert len(functions) > 50
    for name, function in functions:
        assert f"\ndef {function}(" in next((ROOT / "tests").rglob(f"{name}.py")).read_text(), (
            f"{name}::{function} is not there"
        )


#: Everything that is written to be read.
TEXTS = [ROOT / "README.rst", ROOT / "CHANGELOG.rst", *ROOT.glob("examples/*.rst"), *ROOT.glob("benchmarks/*.rst")]
PAGES = sorted(DOCS.glob("*.rst"))


@pytest.mark.parametrize("page", [*TEXTS, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links of a page into this repository lead somewhere. (Sphinx checks their form, in .ci/run.)"""
    base = ROOT if page.name == "benchmark-table.rst" else page.parent  # the README takes it in
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    for target in re.findall(r"`[^`<>]+ <([^`<>]+)>`__?", text):
        assert target.startswith("https://") or (base / target.partition("#")[0]).exists(), target


def test_every_public_name_is_in_the_reference() -> None:
    """Each public name has one entry, with its documentation, on one page."""
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api-*.rst"))
    entries = Counter(re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)$", text, re.MULTILINE))
    assert entries == Counter([*mplog.__all__, "mplog.prometheus.MplogCollector"])


def test_every_environment_variable_is_in_the_reference() -> None:
    """The page lists the variables that the package reads, except the one that only tests set."""
    read = set()
    for file in (ROOT / "mplog").rglob("*.py"):
        read |= set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', file.read_text(encoding="utf-8")))
    named = set(re.findall(r"^   \* - ``(\w+)``", (DOCS / "environment.rst").read_text(encoding="utf-8"), re.MULTILINE))
    assert named >= read | {mplog.worker.attach.MPLOG_QUEUE}


def test_every_configuration_key_is_in_the_reference() -> None:
    """The page lists the keys that the check of a configuration knows, each in the section of its place."""
    text = (DOCS / "configuration-keys.rst").read_text(encoding="utf-8")
    _, *parts = re.split(r"^([^\n]+)\n-{3,}\n", text, flags=re.MULTILINE)
    keys = {title: set(re.findall(r"``([\w.()]+)``", part)) for title, part in zip(parts[::2], parts[1::2])}
    assert keys["At the top"] >= config_check.TOP_KEYS
    assert keys["Formatters"] >= config_check.FORMATTER_KEYS | {"()"}
    assert keys["Filters"] >= config_check.FILTER_KEYS | {"()"}
    assert keys["Handlers"] >= {"class", "()", "level", "formatter", "filters", "."}
    assert keys["Loggers"] >= config_check.LOGGER_KEYS - {"qualname"}  # which does nothing


def test_files_of_the_code_are_there() -> None:
    """The page on the architecture names every folder, in the order in which they import."""
    text = (DOCS / "architecture.rst").read_text(encoding="utf-8").partition("The files of the code")[2]
    rows = re.findall(r"^   \* - ``(\w+)/``$", text, re.MULTILINE)
    assert rows == [folder for folder in ORDER if (ROOT / "mplog" / folder).is_dir()]


#: What stands in the second column of the table of limits, by a part of the first.
LIMITS = {
    "A frame": f"{frame.FRAME_SIZE:,} bytes on Linux",
    "A record, encoded": f"{MAX_RECORD_SIZE >> 20} MiB",
    "mplog.write": f"{MAX_OBJECT_SIZE >> 20} MiB",
    "The queue": f"{queue.DEFAULT_SIZE >> 20} MiB",
    "Each of the two buffers": f"{buffer_memory.DEFAULT_SIZE >> 20} MiB",
    "The emergency file": f"{overflow.EMERGENCY_SIZE >> 20} MiB",
    "set aside": f"up to {LONGEST_KEPT >> 20} MiB",
    "Unfinished long records": f"{UNFINISHED_LIMIT >> 20} MiB",
    "``start()``": f"{mplog.server.log_server.START_TIMEOUT:g} s",
    "``stop()``": f"{mplog.server.log_server.STOP_TIMEOUT:g} s",
    "GracefulShutdown": f"{shutdown.TIMEOUT:g} s",
    "full disk": f"{loop.LAST_RETRIES_SECONDS:g} s",
    "an error waits": f"{overflow.KEPT_TIMEOUT:g} s",
    "sync_level": f"{mplog.Sync(0).timeout:g} s",
    "broken sink": f"every {dispatch.REPORT_INTERVAL:g} s",
    "Nesting": f"{plain.MAX_DEPTH} levels",
    "``stats()``": f"{tallies.COUNTED_PROCESSES:,}",
    "Files that": f"{inspect.signature(mplog.RoutedFileSink).parameters['max_open'].default}",
    "A name that": f"{file_names.NAME_SIZE} bytes",
    "The name of a log": f"{255 - DERIVED} bytes",
}


def test_limits_are_those_of_the_code() -> None:
    """Each row of the table has the number that the code has, and there is no row without one."""
    text = (DOCS / "limits.rst").read_text(encoding="utf-8").partition("A record on the wire")[0]
    rows = re.findall(r"^   \* - (.+)\n     - (.+)$", text, re.MULTILINE)[1:]
    for part, number in LIMITS.items():
        (found,) = (how_much for what, how_much in rows if part in what)
        assert found.startswith(number), (part, found)
    assert all(any(part in what for part in LIMITS) for what, _ in rows)


def test_every_page_with_programs_has_tests() -> None:
    """A page with code on it is named by the file of tests that runs the code."""
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    shown = [page.name for page in PAGES if re.search(r"code-block:: (?!text)", page.read_text(encoding="utf-8"))]
    assert [name for name in shown if f'"{name}"' not in tests] == []


# --- the page about migrating ---

#: The programs on it, by the name in their first line.
PROGRAMS = {first.removeprefix("# "): text for first, (_, text) in read_blocks(DOCS / "migrating.rst").items()}


def written(directory: Path, name: str) -> Counter[str]:
    """Run a program of the page, and return the lines of its log, without the time, the start method and the number."""
    directory.mkdir()
    (directory / name).write_text(PROGRAMS[name])
    done = subprocess.run(
        [sys.executable, name], cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    files = list(directory.glob("app.log*"))
    assert files
    text = "".join(path.read_text() for path in files)
    text = re.sub(r"^[-\d]+ [:\d]+,\d+ ", "", text, flags=re.M)
    return Counter(re.sub(r"(?:Fork|ForkServer)?(Process|PoolWorker)-\d+", r"\1", text).splitlines())


#: How many lines each way writes.
WAYS = {"cookbook": 12, "multiprocessing_logging": 9, "concurrent_log_handler": 8, "loguru": 8}


@pytest.mark.processes
@pytest.mark.parametrize("way", WAYS)
def test_both_programs_write_the_same(tmp_path: Path, way: str) -> None:
    """The new program writes the lines that the old one has written."""
    after = written(tmp_path / "after", f"{way}_after.py")
    assert after.total() == WAYS[way]
    # Some lose what is logged just before the end, under load multiprocessing-logging even everything: the run that has
    # lost least counts.
    most = 0
    for run in range(10):
        before = written(tmp_path / f"before {run}", f"{way}_before.py")
        assert before <= after
        most = max(most, before.total())
        if most >= WAYS[way] - 1:
            break
    assert most >= WAYS[way] - 1


@pytest.mark.processes
def test_every_program_is_run(tmp_path: Path) -> None:
    """All four ways are on the page, and its other programs run, too."""
    assert PROGRAMS.keys() == {
        "file_sink_after.py",
        *(f"{way}_{when}.py" for way in WAYS for when in ("before", "after")),
    }
    assert written(tmp_path / "program", "file_sink_after.py").total() == 1
