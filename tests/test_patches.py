"""Whether a patch of a class is noticed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from mplog.patches import NEVER, armed, canary


def of_its_own(above: type, middle: type) -> None:
    middle.value = 2  # type: ignore[attr-defined]


def above_it(above: type, middle: type) -> None:
    above.value = 2  # type: ignore[attr-defined]


def of_another_name(above: type, middle: type) -> None:
    above.other = 2  # type: ignore[attr-defined]


def taken_away(above: type, middle: type) -> None:
    del above.value  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [of_its_own, above_it, of_another_name, taken_away])
def test_a_change_of_a_class_shows(change: Callable[[type, type], None]) -> None:
    """A canary has other flags behind a change of a class above it, whoever looks attributes up meanwhile."""

    class Above:
        value = 1

    class Middle(Above):
        pass

    bird = canary(Middle)
    for _ in range(3):
        flags = armed(bird)
        assert (flags == NEVER) == (sys.version_info >= (3, 13))
        for _ in range(1000):
            assert (Middle.value, Above().value) == (1, 1)
        assert flags in (bird.__flags__, NEVER)
        change(Above, Middle)
        assert getattr(Middle, "value", 0) in (0, 1, 2)
        assert bird.__flags__ != flags
        Above.value, Middle.other = 1, 1  # type: ignore[attr-defined]
        if "value" in vars(Middle):
            del Middle.value
