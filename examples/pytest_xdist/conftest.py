"""pytest-xdist: what tests log in the workers of a run is in one log, tests.log.

pytest -n 2
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

import mplog

SERVER = pytest.StashKey[mplog.LogServer]()


def pytest_configure(config: Any) -> None:
    """Start a server where the run is started, and join it in each worker, also in one that replaces another."""
    if hasattr(config, "workerinput"):
        multiprocessing.current_process().name = config.workerinput["workerid"]  # gw0, gw1, ...
        mplog.attach()
    else:
        config.stash[SERVER] = mplog.LogServer("tests.log", level="INFO").start()


def pytest_unconfigure(config: Any) -> None:
    """Write what is left."""
    if SERVER in config.stash:
        config.stash[SERVER].stop()
