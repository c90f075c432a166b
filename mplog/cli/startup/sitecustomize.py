"""Every Python under ``mplog run --python`` imports this when it starts, and joins the server at its first record.

The rule of this file: **a program that does not log pays nothing, and one without mplog runs as usual.** This module
only waits for the import of ``logging``, and imports the sitecustomize that it hides.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing itself takes its time to load
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_WAITED_FOR = ("logging", "logging.config")


class _Finder:
    """Finds the modules whose import is awaited, and has their loaders tell mplog."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _WAITED_FOR:
            return None
        spec = PathFinder.find_spec(name, path)
        loader: Any = None if spec is None else spec.loader

        def exec_module(module: ModuleType) -> None:
            type(loader).exec_module(loader, module)
            # The loader of a zip file loads all of its modules.
            if module.__name__ == name:
                loader.__dict__.pop("exec_module", None)
                _tell(name)

        if loader is not None:
            loader.exec_module = exec_module
        return spec


def _tell(name: str) -> None:
    try:
        from mplog.worker import autoattach
    except ImportError:
        return  # a Python without mplog: it logs as usual
    autoattach.on_import(name)


def _chain() -> None:
    """Import the sitecustomize that this one hides."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    sys.modules["sitecustomize"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


# The logging process of mplog is not one of the programs that should log.
if not any(
    "from mplog.logging_process.supervisor import run" in argument for argument in getattr(sys, "orig_argv", ())
):
    sys.meta_path.insert(0, _Finder)
    for _name in _WAITED_FOR:
        if _name in sys.modules:
            _tell(_name)
_chain()
