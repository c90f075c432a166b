"""Whether a program has patched a class since somebody looked.

The rule of this file: **a patch counts from the next call on**, and looking for one costs next to nothing.

Up to Python 3.12, a class has a flag that says that its methods are in the interpreter's cache; setting an attribute of
the class, or of one above it, clears the flag (``Py_TPFLAGS_VALID_VERSION_TAG``, CPython's Objects/typeobject.c). A
class that nobody else uses, below all that may be patched, so is a canary: as long as it has the flag, nothing has
changed. Where there is no such flag, there is nothing to see, and whoever asks looks at the methods themselves.
"""

from __future__ import annotations

__all__ = ["NEVER", "armed", "canary"]

_HAS_VALID_TAG = 1 << 19

#: Flags that no class has.
NEVER = -1


def canary(*classes: type) -> type:
    """Return a class below all of these, which loses its flag when one of them, or one above, is changed."""
    return type("Canary", classes, {"__slots__": ()})


def armed(bird: type) -> int:
    """Have a canary show the next change, and return its ``__flags__`` until then; `NEVER` where it cannot show any."""
    flags = _looked_up(bird)
    return flags if _works and flags & _HAS_VALID_TAG else NEVER


def _looked_up(bird: type) -> int:
    getattr(bird, "any_name", None)  # fills the cache, and sets the flag
    return bird.__flags__


def _shows_changes() -> bool:
    class Above:
        pass

    bird = canary(Above)
    before = _looked_up(bird)
    Above.changed = True  # type: ignore[attr-defined]
    return bool(before & _HAS_VALID_TAG) and not bird.__flags__ & _HAS_VALID_TAG


_works = _shows_changes()
