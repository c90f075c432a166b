"""Subclasses of Process, for the tests that need them: apart from `jobs`, since mplog's pools take time to import."""

from __future__ import annotations

import multiprocessing
from typing import Any

import multiprocess
from jobs import work

import mplog


class Job(mplog.Process):
    """A process with a run() of its own."""

    library: Any = multiprocessing

    def __init__(self, directory: str, **options: Any) -> None:
        super().__init__(**options)
        self.directory = directory

    def run(self) -> None:
        work(self.directory)


class MultiprocessJob(mplog.MultiprocessProcess):
    """The same for multiprocess."""

    library: Any = multiprocess

    def __init__(self, directory: str, **options: Any) -> None:
        super().__init__(**options)
        self.directory = directory

    def run(self) -> None:
        work(self.directory)
