"""Runs of pytest with the plugin installed, as a user has it."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import pytest
from scripts import INSTALLED

#: What the tests that are run may use.
JOBS = """
import logging, os, signal

log = logging.getLogger("app.jobs")


def find(number):
    log.warning("found %d", number)
    return number


def find_and_die(number):
    log.warning("found %d", number)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Runs:
    """Runs pytest in a directory of its own, in processes of its own.

    Args:
        pytester: the fixture.
        monkeypatch: the fixture.
    """

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.path = pytester.path
        # The plugin comes by the entry point of the package, once or, where the package is installed, twice.
        config = configparser.ConfigParser()
        config.read(Path(__file__).parents[1] / "setup.cfg")
        installed = self.path / "installed" / "mplog-0.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mplog\nVersion: 0\n")
        entry_point = config["options.entry_points"]["pytest11"].strip()
        (installed / "entry_points.txt").write_text(f"[pytest11]\n{entry_point}\n")
        paths = [str(installed.parent), str(INSTALLED), str(self.path), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        # Others cost a second each time.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        self.plugins = ["-p", "mplog", "-p", "xdist"]
        monkeypatch.delenv("MPLOG_QUEUE", raising=False)
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
            monkeypatch.delenv(name)
        pytester.makepyfile(jobs=JOBS)

    def __call__(self, test: str, *arguments: str, **outcomes: int) -> pytest.RunResult:
        """Run a test file, and hold the run to its outcomes; 'passed', 'failed' and so on, all others are 0."""
        self.pytester.makepyfile(test_it=test)
        # As the strictest user has it: any warning is an error, except the one that xdist's own threads cause.
        warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
        options = [*warnings, "-p", "no:cacheprovider", *self.plugins]
        result = self.pytester.runpytest_subprocess(*options, *arguments, timeout=100)
        if outcomes:
            result.assert_outcomes(**outcomes)
        return result

    def lines(self, name: str = "run.log") -> list[str]:
        """Return the lines of a log."""
        return Path(self.path, name).read_text(encoding="utf-8").splitlines()
