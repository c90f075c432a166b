"""Names of files by what is in a record: they stay in their directory, and differ where values do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplog.files.names import NAME_SIZE, FileNames
from mplog.files.rotation_rules import ArchiveName

#: Values that an attacker, or bad luck, would choose.
NASTY = [
    *("", ".", "..", "/", "../../etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "%", "%25", "%2E", "%~", "none", " "),
    *(".app.log.lock", "app.2026-11-20.001", "app.2026-11-20.001.log", "app.2026-11-20.0001", "é", "e\u0301", "\ud800"),
    *("x" * 300, "x" * 301, "é" * 300, "/" * 2000, "a-b", "a", "b", "-", "con", "~", "$HOME", "*", "{job}"),
]

texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=300), st.text(alphabet="-.%ab0", max_size=20))


@pytest.mark.parametrize(
    ("pattern", "values", "expected"),
    [
        ("{processName}.log", ["ForkPoolWorker-3"], "ForkPoolWorker-3.log"),
        ("{name}.log", ["app.db"], "app.db.log"),
        ("worker-{process}.log", [711], "worker-711.log"),
        ("{processName}-{process}.log", ["ForkPoolWorker-3", 711], "ForkPoolWorker-3-711.log"),
        ("{processName}-{job}.log", ["ForkPoolWorker-3", 7], "ForkPoolWorker%2D3-7.log"),
        ("{{{job}}}.log", [42], "{42}.log"),
        ("{job}.log", [None], "none.log"),
        ("{job}.log", ["../../etc/passwd"], "%2E.%2F..%2Fetc%2Fpasswd.log"),
        ("{job}", [".."], "%2E."),
        ("{job}.log", [""], "%.log"),
        ("{job}.log", ["Übung 1"], "%C3%9Cbung%201.log"),
        ("{job}.log", ["app.2026-11-20.001"], "app%2E2026-11-20%2E001.log"),
    ],
)
def test_what_a_name_is(pattern: str, values: list[Any], expected: str) -> None:
    """Usual values stay as they are; what could leave the directory, or disturb, is escaped as in a URL."""
    assert FileNames(pattern, "none").name(values) == expected


@pytest.mark.parametrize("pattern", ["{job}.log", "{job}", "x{job}", "{job}-{task}.log", "{job}--{process}-{task}.log"])
@given(texts, texts, texts, texts)
def test_different_values_never_share_a_name(pattern: str, a: str, b: str, c: str, d: str) -> None:
    """Two records get one name if and only if all their values are equal."""
    names = FileNames(pattern, "none")
    count = len(names.fields)
    one, other = [a, 7, b][: count - 1] + [b], [c, 7, d][: count - 1] + [d]
    assert (names.name(one) == names.name(other)) == (one == other)


@pytest.mark.parametrize("pattern", ["{job}.log", "{job}", "{job}-{task}.log"])
@given(texts, texts)
def test_every_name_is_a_safe_file_name(pattern: str, one: str, other: str) -> None:
    """No separator, no control character, no dot at the beginning, not empty, not too long, not that of an archive."""
    names = FileNames(pattern, "none")
    name = names.name([one, other][: len(names.fields)])
    assert re.fullmatch(r"[-A-Za-z0-9_+@=,%~][-A-Za-z0-9_.+@=,%~]*", name)
    assert len(name) <= NAME_SIZE + len("%2E")
    archive = ArchiveName(None, name)
    assert archive.index_of(name) is None
    assert ArchiveName(None, "app.log").index_of(name) is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("app.log", "has no .field., so it names a single file"),
        ("{}.log", "a field that is not the name of an attribute"),
        ("{job:03}.log", "a field that is not the name of an attribute"),
        ("{job!r}.log", "a field that is not the name of an attribute"),
        ("{job.x}.log", "a field that is not the name of an attribute"),
        ("{job", "is not a pattern"),
        ("{message}.log", "a file for every record"),
        ("{created}.log", "a file for every record"),
        ("{job}{task}.log", "nothing between them"),
        ("{job}20{task}.log", "nothing between them"),
        (".{job}.log", "begins with a dot"),
        ("a\0{job}.log", "control characters"),
        ("{job}.2026-11-20.001.log", "looks like the name of a rotated file"),
        ("x" * 180 + "{job}", "no room for the values"),
    ],
)
def test_bad_pattern_is_refused(pattern: str, message: str) -> None:
    """What is no pattern, or not a safe one, raises in the program, and says why."""
    with pytest.raises(ValueError, match=message):
        FileNames(pattern, "none")
