"""When files are rotated and what they are called: words, schedules, clocks that jump (fault 26), names."""

from __future__ import annotations

import datetime
import math
import os
import pickle
import sys
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import mplog
from mplog.files.rotation_rules import ArchiveName, Interval, Keep, Rotation, Schedule, TimeOfDay, Timer, make_rotation

DAY = 86_400
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [None, datetime.timezone.utc, BERLIN, *map(ZoneInfo, ("America/St_Johns", "Australia/Lord_Howe"))]


def read(**words: Any) -> Rotation:
    """Return what the words of a FileSink mean."""
    rotation = make_rotation("app.log", **words)
    assert rotation is not None
    return rotation


# --- words ---


@pytest.mark.parametrize(
    ("words", "size", "schedules"),
    [
        (1000, 1000, ()),
        ("1000", None, None),
        ("100 MB", 100_000_000, ()),
        ("100mb", 100_000_000, ()),
        ("1.5 GiB", 3 * 2**29, ()),
        ("500 kB", 500_000, ()),
        ("1 byte", 1, ()),
        ("hourly", None, (Interval(3600),)),
        ("1 hour", None, (Interval(3600),)),
        ("30 minutes", None, (Interval(1800),)),
        ("1.5 hours", None, (Interval(5400),)),
        ("2 weeks", None, (Interval(14 * DAY),)),
        ("midnight", None, (TimeOfDay(datetime.time()),)),
        ("Daily", None, (TimeOfDay(datetime.time()),)),
        ("at 4:30", None, (TimeOfDay(datetime.time(4, 30)),)),
        ("04:30:15", None, (TimeOfDay(datetime.time(4, 30, 15)),)),
        ("daily at 23:59", None, (TimeOfDay(datetime.time(23, 59)),)),
        ("weekly", None, (TimeOfDay(datetime.time(), weekday=0),)),
        ("sunday", None, (TimeOfDay(datetime.time(), weekday=6),)),
        ("Sunday at 04:30", None, (TimeOfDay(datetime.time(4, 30), weekday=6),)),
        ("monthly", None, (TimeOfDay(datetime.time(), first_of_month=True),)),
        ("monthly at 12:00", None, (TimeOfDay(datetime.time(12), first_of_month=True),)),
        ("100 MB or midnight", 10**8, (TimeOfDay(datetime.time()),)),
        ("  midnight  OR  1 KiB or 1 hour", 1024, (TimeOfDay(datetime.time()), Interval(3600))),
    ],
)
def test_words_of_rotate(words: Any, size: int | None, schedules: tuple[Schedule, ...] | None) -> None:
    """A size, an interval, a time of day, a day, or several of them; a number without a unit is one in code alone."""
    if schedules is None:
        with pytest.raises(ValueError, match="not understood"):
            read(rotate=words)
        return
    rotation = read(rotate=words)
    assert (rotation.size, rotation.schedules) == (size, schedules)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (10, Keep(files=10)),
        ("10 files", Keep(files=10)),
        ("1 file", Keep(files=1)),
        ("14 days", Keep(seconds=14 * DAY)),
        ("2 GB", Keep(size=2 * 10**9)),
        ("14 days and 2 GB", Keep(seconds=14 * DAY, size=2 * 10**9)),
        ("2 GB and 8 weeks AND 100 files", Keep(files=100, seconds=56 * DAY, size=2 * 10**9)),
        (None, Keep()),
    ],
)
def test_words_of_keep(words: Any, expected: Keep) -> None:
    """A number of files, an age, a size of all together, or several of them."""
    assert read(rotate="midnight", keep=words).keep == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rotate": ""}, "'100 MB or midnight'"),
        ({"rotate": "sometimes"}, "'sometimes'.*'100 MB or midnight'"),
        ({"rotate": "100 M"}, "'100 m'.*a number of bytes"),
        ({"rotate": "100 MB and midnight"}, "not understood"),
        ({"rotate": "100 MB, midnight"}, "not understood"),
        ({"rotate": "-1 MB"}, "not understood"),
        ({"rotate": "1e3 MB"}, "not understood"),
        ({"rotate": "\u0661 MB"}, "not understood"),
        ({"rotate": "0 MB"}, "less than one byte"),
        ({"rotate": 0}, "less than one byte"),
        ({"rotate": -1}, "not understood"),
        ({"rotate": "1 MB or 2 MB"}, "two sizes"),
        ({"rotate": "0.5 seconds"}, "more often than once a second"),
        ({"rotate": "25:00"}, "no such time of day"),
        ({"rotate": "midnight at 04:30"}, "not understood"),
        ({"rotate": "at at 04:30"}, "not understood"),
        ({"rotate": "funday at 04:30"}, "not understood"),
        ({"rotate": "hourly", "keep": "some"}, "'some'.*'14 days and 2 GB'"),
        ({"rotate": "hourly", "keep": "14 days or 2 GB"}, "not understood"),
        ({"rotate": "hourly", "keep": 0}, "keep nothing"),
        ({"rotate": "hourly", "keep": "0 days"}, "keep nothing"),
        ({"rotate": "hourly", "keep": "1 day and 2 days"}, "twice"),
        ({"rotate": "hourly", "compress": "zip"}, "'gz' or 'zst', not 'zip'"),
        ({"rotate": "hourly", "timezone": "Mars/Base"}, "Mars/Base.*Europe/Berlin"),
        ({"rotate": "hourly", "timezone": "../etc/passwd"}, "not known"),
        ({"rotate": "hourly", "timezone": ""}, "not known"),
        ({"keep": 5}, "keep=5.*rotate="),
        ({"archive": "x.{index}"}, "archive=.*rotate="),
        ({"compress": "gz"}, "compress='gz'.*rotate="),
        ({"fsync": "always"}, "'batch'.*'always'"),
        ({"fsync": 0}, "above 0"),
        ({"fsync": True}, "True"),
        ({"fsync": math.inf}, "inf"),
        ({"owner": "no such user"}, "no such user"),
        ({"owner": ":no such group"}, "no such group"),
        ({"owner": ":"}, "'user:group'"),
    ],
    ids=str,
)
def test_wrong_words_are_refused_where_they_are_given(words: dict[str, Any], message: str) -> None:
    """A wrong word raises in the constructor of the sink, and the message shows it, and what is understood."""
    with pytest.raises(ValueError, match=message):
        mplog.FileSink("app.log", **words)


@pytest.mark.parametrize(
    "words", [{"rotate": True}, {"rotate": 1.5}, {"rotate": "hourly", "keep": 1.5}, {"rotate": "hourly", "timezone": 1}]
)
def test_words_of_wrong_types_are_refused(words: dict[str, Any]) -> None:
    """What is neither text nor number raises TypeError."""
    with pytest.raises(TypeError, match=r"not (True|1)"):
        mplog.FileSink("app.log", **words)


@given(st.text(max_size=30) | st.text(alphabet="0123456789.: abdehimorstuwyGKMB", max_size=20))
def test_any_text_is_understood_or_refused(text: str) -> None:
    """Any text is either understood or raises ValueError, in each place."""
    for words in ({"rotate": text}, {"rotate": 1, "keep": text}, {"rotate": 1, "archive": text}):
        try:
            mplog.FileSink("app.log", **words)  # type: ignore[arg-type]
        except ValueError as error:
            assert str(error)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """compress="zst" without its package says which one, and how to get it."""
    for name in ("compression", "backports"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"backports\.zstd.*pip install 'mplog\[zstd\]'"):
        mplog.FileSink("app.log", rotate=1, compress="zst")


def test_sink_travels() -> None:
    """A sink with all the words pickles, and means the same in the logging process."""
    words: Any = {"rotate": "1 MB or 04:30", "keep": 3, "compress": "gz", "timezone": "Europe/Berlin", "fsync": 0.5}
    sink = pickle.loads(pickle.dumps(mplog.FileSink("app.log", **words, archive="x%Y.{index}")))
    expected = read(**{name: word for name, word in words.items() if name != "fsync"}, archive="x%Y.{index}")
    assert sink.file_options.fsync == 0.5
    assert sink.rotation.name.name(0, None, 7) == expected.name.name(0, None, 7)
    assert [getattr(sink.rotation, name) for name in ("size", "schedules", "zone", "keep", "compress")] == [
        getattr(expected, name) for name in ("size", "schedules", "zone", "keep", "compress")
    ]


# --- schedules ---


def at(*date: int, zone: datetime.tzinfo = BERLIN, fold: int = 0) -> float:
    """Return a date as seconds since the epoch."""
    return datetime.datetime(*date, tzinfo=zone, fold=fold).timestamp()  # type: ignore[arg-type,misc]


def times(words: str, after: float, count: int) -> list[float]:
    """Return the next times of a schedule in Berlin."""
    (schedule,) = read(rotate=words).schedules
    found = [after]
    for _ in range(count):
        found.append(schedule.next_time(found[-1], BERLIN))
    return found[1:]


def test_times_across_the_ends_of_summer_time() -> None:
    """Midnight is midnight when clocks change; the hour that comes twice is two hours, the one left out none."""
    assert times("midnight", at(2026, 3, 28, 12), 3) == [at(2026, 3, day) for day in (29, 30, 31)]
    assert times("1 day", at(2026, 10, 24, 12), 3) == [at(2026, 10, day) for day in (25, 26, 27)]
    spring, autumn = at(2026, 3, 29), at(2026, 10, 25)
    assert times("1 hour", spring, 24)[-2:] == [spring + 23 * 3600, spring + 24 * 3600]
    assert times("hourly", autumn, 25) == [autumn + hour * 3600 for hour in range(1, 26)]
    assert times("6 hours", autumn, 4) == [at(2026, 10, 25, hour) for hour in (6, 12, 18)] + [at(2026, 10, 26)]
    assert times("at 02:30", at(2026, 3, 28, 12), 2) == [at(2026, 3, 29, 3, 30), at(2026, 3, 30, 2, 30)]


def test_times_of_days_and_months() -> None:
    """Days of the week and first days of months are found, across the ends of months and years."""
    assert times("monday", at(2026, 12, 26, 12), 2) == [at(2026, 12, 28), at(2027, 1, 4)]
    assert times("1 week", at(2026, 12, 26, 12), 2) == [at(2026, 12, 28), at(2027, 1, 4)]
    assert times("sunday at 04:30", at(2026, 12, 27, 4, 30), 1) == [at(2027, 1, 3, 4, 30)]
    assert times("monthly", at(2026, 11, 1), 3) == [at(2026, 12, 1), at(2027, 1, 1), at(2027, 2, 1)]


SCHEDULES: list[tuple[Schedule, float]] = [
    *((Interval(seconds), seconds) for seconds in (1.0, 7.0, 1800.0, 3600.0, 5400.0, 21_600.0, DAY, 7.0 * DAY)),
    (TimeOfDay(datetime.time(2, 30)), DAY),
    (TimeOfDay(datetime.time(), weekday=6), 7 * DAY),
    (TimeOfDay(datetime.time(), first_of_month=True), 31 * DAY),
]
INSTANTS = st.floats(0, 2**33, allow_nan=False)


@given(st.sampled_from(SCHEDULES), st.sampled_from(ZONES), INSTANTS)
@example(SCHEDULES[4], BERLIN, at(2026, 10, 25, 2, 30, fold=1))
def test_next_time_is_ahead_and_not_far(case: tuple[Schedule, float], zone: Any, after: float) -> None:
    """The next time is ahead, no further than a period and what clocks are changed by, and none is passed over."""
    schedule, period = case
    found = schedule.next_time(after, zone)
    assert after < found <= after + period + 2 * 3600
    between = (after + found) / 2
    if found - between > 2 * 3600 or period <= 3600:
        assume(between < found)
        assert schedule.next_time(between, zone) == pytest.approx(found, abs=1e-3)


# --- clocks ---


@given(st.sampled_from(SCHEDULES), st.sampled_from(ZONES), st.lists(st.floats(-(10**9), 10**9), max_size=30), INSTANTS)
def test_no_clock_makes_a_storm(case: tuple[Schedule, float], zone: Any, jumps: list[float], start: float) -> None:
    """However the clock jumps, a file that has just been begun is not due, and none waits for over two periods."""
    schedule, period = case
    timer, now = Timer([schedule], zone, start), start
    for jump in jumps:
        now = max(0.0, now + jump)
        if timer.is_due(now):
            timer.restart(now)
            assert not timer.is_due(now)
        assert timer.is_due(now + 2 * period + 4 * 3600)


def test_clock_that_is_set() -> None:
    """Forward is one rotation, back a little none, back a lot starts again; nonsense does not raise."""
    timer = Timer(read(rotate="midnight").schedules, BERLIN, at(2026, 11, 20, 12))
    assert not timer.is_due(at(2026, 11, 20, 23, 59, 59))
    assert timer.is_due(at(2026, 11, 21))
    assert timer.is_due(at(2036, 1, 1, 12))
    timer.restart(at(2036, 1, 1, 12))
    assert not timer.is_due(at(2036, 1, 1, 23))
    assert not timer.is_due(at(2036, 1, 1, 1))
    assert not timer.is_due(at(2026, 11, 20, 12))
    assert timer.is_due(at(2026, 11, 21))
    for nonsense in (1e18, -1e18, 0.0):
        timer.restart(nonsense)
        assert not timer.is_due(nonsense)
    assert not Timer((), None, 0).is_due(1e18)


# --- names ---


@pytest.mark.parametrize(
    ("log", "pattern", "expected"),
    [
        ("app.log", None, "app.2026-11-20.007.log"),
        ("app", None, "app.2026-11-20.007"),
        (".hidden", None, ".hidden.2026-11-20.007"),
        ("a%Y{b}.tar.log", None, "a%Y{b}.tar.2026-11-20.007.log"),
        ("app.log", "app.%Y-%m-%d.{index}.log", "app.2026-11-20.7.log"),
        ("app.log", "{index:05}%H%M%S %j", "00007235807 324"),
        ("app.log", "100%% {{x}} {index}", "100% {x} 7"),
    ],
)
def test_names_of_rotated_files(log: str, pattern: str | None, expected: str) -> None:
    """The pattern is for the time of the last record, in its zone; by default, names sort, and end as the log's."""
    names = ArchiveName(pattern, log)
    written_at = at(2026, 11, 20, 23, 58, 7)
    assert names.name(written_at, BERLIN, 7) == expected
    for name in (expected, expected + ".gz", expected + ".zst"):
        assert names.index_of(name) == (names.around_index(written_at, BERLIN), 7)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("app.%Y.log", r"needs \{index\}"),
        ("", r"needs \{index\}"),
        ("{index}{index}", r"needs \{index\}, once"),
        ("../app.{index}.log", "in the directory of the log"),
        ("/tmp/app.{index}.log", "in the directory of the log"),
        ("sub/app.{index}.log", "in the directory of the log"),
        ("%D.{index}", "'%D'.*%Y"),
        ("%c{index}", "'%c'"),
        ("%B{index}", "'%B'"),
        ("%-d{index}", "'%-'"),
        ("%{index}", "'%'"),
        ("{index", "is not a pattern"),
        ("{index!r}", "no other"),
        ("{index:x}", "no other"),
        ("{name}.{index}", "no other"),
        ("{}.{index}", "no other"),
        ("app.{index}.log.gz", "compress="),
        ("\0{index}", "in the directory of the log"),
        ("x" * 250 + "{index}", "too long"),
    ],
)
def test_patterns_that_are_refused(pattern: str, message: str) -> None:
    """A pattern that leaves the directory, could give one name twice, or cannot be read back, is refused."""
    with pytest.raises(ValueError, match=message):
        mplog.FileSink("app.log", rotate="1 MB", archive=pattern)


def test_pattern_that_could_be_the_log_is_refused() -> None:
    """A log whose own name is that of one of its rotated files would be taken for one."""
    for log, pattern in (("app.1.log", "app.{index}.log"), ("2026.1", "%Y.{index}")):
        with pytest.raises(ValueError, match="could be the name of the log itself"):
            mplog.FileSink(log, rotate="1 MB", archive=pattern)


FILE_NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)
PATTERNS = st.lists(
    st.sampled_from(["%Y", "%m", "%d", "%H", "%j", "%%", ".", "-", "x", "7", "ü", "{{", "}}"]), max_size=6
).flatmap(lambda parts: st.integers(0, len(parts)).map(lambda place: _with_index(parts, place)))


def _with_index(parts: list[str], place: int) -> str:
    return "".join([*parts[:place], "{index}", *parts[place:]])


@given(FILE_NAMES, st.none() | PATTERNS, st.sampled_from(ZONES), INSTANTS, st.integers(1, 10**6))
def test_every_name_is_read_back(log: str, pattern: str | None, zone: Any, written_at: float, index: int) -> None:
    """For any log and pattern, a rotated file is in the directory, is known as one, and is not the log."""
    try:
        os.fsencode(log)
        names = ArchiveName(pattern, log)
    except (ValueError, UnicodeEncodeError):
        assume(False)
    name = names.name(written_at, zone, index)
    assert os.path.basename(name) == name != log
    assert name not in (".", "..")
    around = names.around_index(written_at, zone)
    found = names.index_of(name)
    assert found is not None
    assert f"{around[0]}{index:0{names.width}}{around[1]}" == name
    assert names.name(written_at, zone, index + 1) != name


@given(st.lists(st.tuples(INSTANTS, st.integers(1, 999)), min_size=2, max_size=5))
def test_default_names_sort_as_the_records_do(files: list[tuple[float, int]]) -> None:
    """By default, files sorted by name are sorted by day and index."""
    names = ArchiveName(None, "app.log")
    zone = datetime.timezone.utc
    by_name = sorted(files, key=lambda file: names.name(*_split(file, zone)))
    assert [(int(time // DAY), index) for time, index in by_name] == sorted(
        (int(time // DAY), index) for time, index in files
    )


def _split(file: tuple[float, int], zone: datetime.tzinfo) -> tuple[float, datetime.tzinfo, int]:
    return file[0], zone, file[1]
