"""The start methods and the libraries that start workers."""

from __future__ import annotations

import multiprocessing
from typing import Any

import dill
import multiprocess
import pytest

START_METHODS = ["fork", "spawn", "forkserver"]
LIBRARIES = {"multiprocessing": multiprocessing, "multiprocess": multiprocess}

#: Each start method and each library once or more; test_matrix.py runs all of their pairs.
PAIRS = [("fork", "multiprocessing"), ("spawn", "multiprocess"), ("forkserver", "multiprocessing")]


def skip_without_dill() -> None:
    """Skip a test that has multiprocess send a function of a script, where dill cannot: dill 0.4.1 on Python 3.15."""
    try:
        dill.dumps(eval("lambda: None", {"__name__": "__main__"}))
    except Exception as error:
        pytest.skip(f"dill {dill.__version__} cannot pickle a function by value: {error}")


def library_of(context: Any) -> Any:
    """Return the library of a context."""
    return LIBRARIES[type(context).__module__.partition(".")[0]]
