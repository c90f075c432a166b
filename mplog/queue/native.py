"""The blocking calls of the operating system, also in a program with green threads.

eventlet and gevent put functions of their own into ``os``, ``select`` and ``time``, which switch to another green
thread while they wait, and take away what they cannot replace. A logging call must not switch: a signal handler and the
green library's own loop may log, and eventlet refuses a second writer of one descriptor. The functions of the C
modules stay as they are.
"""

from __future__ import annotations

import select
import sys
import time
import types
from typing import Any

if sys.platform == "win32":
    import nt as posix
else:
    import posix

write = posix.write
read = posix.read


def _original(module: Any, name: str) -> Any:
    """Return a function of a C module, from a new copy of the module if it is not there any more."""
    found = getattr(module, name, None)
    if isinstance(found, types.BuiltinFunctionType) or module.__spec__ is None:
        return found
    import importlib.util  # loaded already by what has replaced it

    copy = importlib.util.module_from_spec(module.__spec__)
    module.__spec__.loader.exec_module(copy)
    return getattr(copy, name, None)


poll: Any = _original(select, "poll")  # there is none on Windows
sleep: Any = _original(time, "sleep")
