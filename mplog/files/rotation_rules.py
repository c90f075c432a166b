"""When to rotate a file, what to call rotated files, and which to keep: the words for it, and what they mean.

The rule of this file: **no clock and no file.** Words become plain values in the program, and a wrong one raises there;
the logging process asks the values with the time that it has.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import string
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from mplog.files.compression import SUFFIXES, find_zstd

# kB and KB are the same: nobody who writes "100 KB" means kelvin. There is no "100 M", which is 2**20 to some
# (logrotate) and 10**6 to others.
_SIZES = {"b": 1, "byte": 1, "bytes": 1}
_SIZES |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)")
_TIME_OF_DAY = re.compile(r"(?:([a-z]+)\s+)??(?:at\s+)?([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")

_ROTATE_WORDS = (
    "a size ('100 MB', '1.5 GiB', a number of bytes), an interval ('30 minutes', '1 hour', '2 days', 'hourly'), a time "
    "of day ('midnight', 'daily', 'at 04:30'), a day ('weekly', 'monday', 'sunday at 04:30', 'monthly'), or several of "
    "them ('100 MB or midnight')"
)
_KEEP_WORDS = (
    "a number of files (10, '10 files'), an age ('14 days', '8 weeks'), a size of all together ('2 GB'), or several of "
    "them ('14 days and 2 GB')"
)

#: A Monday, so that weeks begin on one.
_ANCHOR = datetime.datetime(1970, 1, 5)
_EPOCH = datetime.datetime(1970, 1, 1)


# --- when ---


class Interval(msgspec.Struct, frozen=True):
    """Every `seconds`, counted from midnight between a Sunday and a Monday, so that "1 hour" is each full hour.

    Nothing needs to store when a file was begun: if its last write was in an earlier interval, it is due.
    """

    seconds: float

    def next_time(self, after: float, zone: datetime.tzinfo | None) -> float:
        """Return the first such time after `after`, in seconds since the epoch. `zone`: None for the local one."""
        now = _wall_clock(after, zone)
        if self.seconds <= 3600:
            # With the offset of this moment: an hour that the end of summer time repeats counts both times.
            offset = (now - _EPOCH).total_seconds() - after
            anchor = (_ANCHOR - _EPOCH).total_seconds() - offset
            return anchor + (math.floor((after - anchor) / self.seconds) + 1) * self.seconds
        count = math.floor((now - _ANCHOR).total_seconds() / self.seconds)
        found = after
        while found <= after:
            count += 1
            found = _instant(_ANCHOR + datetime.timedelta(seconds=count * self.seconds), zone)
        return found


class TimeOfDay(msgspec.Struct, frozen=True):
    """A time of day: of every day, of a day of the week, or of the first day of the month."""

    time: datetime.time
    weekday: int | None = None
    first_of_month: bool = False

    def next_time(self, after: float, zone: datetime.tzinfo | None) -> float:
        day = _wall_clock(after, zone).date()
        while True:
            if self.weekday in (None, day.weekday()) and (day.day == 1 or not self.first_of_month):
                found = _instant(datetime.datetime.combine(day, self.time), zone)
                if found > after:
                    return found
            day += datetime.timedelta(days=1)


Schedule = Interval | TimeOfDay


def _wall_clock(instant: float, zone: datetime.tzinfo | None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(instant, zone).replace(tzinfo=None)


def _instant(wall_clock: datetime.datetime, zone: datetime.tzinfo | None) -> float:
    return wall_clock.replace(tzinfo=zone).timestamp()


class Timer:
    """Says when a file is due that was begun, or last written, at the time `since`, even if the clock is set."""

    def __init__(self, schedules: Sequence[Schedule], zone: datetime.tzinfo | None, since: float) -> None:
        self._schedules = schedules
        self._zone = zone
        self.restart(since)

    def restart(self, since: float) -> None:
        self._since = since
        try:
            self._next = min((schedule.next_time(since, self._zone) for schedule in self._schedules), default=math.inf)
        except (OverflowError, ValueError, OSError):  # a clock beyond the year 9999, or before the year 1
            self._next = math.inf

    def is_due(self, now: float) -> bool:
        """Whether the time has come.

        If the clock is set forward, the file is due once. If it is set back, the file is due when the clock has caught
        up, but after two periods at the latest.
        """
        if now < self._since - (self._next - self._since):
            self.restart(now)
        return now >= self._next


# --- words ---


class Keep(msgspec.Struct, frozen=True):
    """Limits on the rotated files that are kept, always the newest: number, age and bytes in all. None: no limit."""

    files: int | None = None
    seconds: float | None = None
    size: int | None = None


def _read_rotate(words: str | int) -> tuple[int | None, tuple[Schedule, ...]]:
    size = None
    schedules = []
    for part in _parts("rotate", words, "bytes", "or", _ROTATE_WORDS):
        found = _read_size(part)
        if found is None:
            schedules.append(_read_schedule(part, str(words)))
        elif size is not None:
            raise ValueError(f"rotate={words!r} names two sizes, and one is enough")
        else:
            size = found
    return size, tuple(schedules)


def _read_schedule(part: str, words: str) -> Schedule:
    seconds = 3600 if part == "hourly" else _read_seconds(part)
    if seconds is not None:
        if seconds < 1:
            raise ValueError(f"rotate={words!r} is more often than once a second")
        return Interval(seconds)
    day, time = part, datetime.time()
    match = _TIME_OF_DAY.fullmatch(part)
    if match is not None:
        day = match[1] or "daily"
        hour, minute, second = (int(group or 0) for group in match.groups()[1:])
        if hour > 23 or minute > 59 or second > 59:
            raise ValueError(f"rotate={words!r}: there is no such time of day. Times are 00:00 to 23:59")
        time = datetime.time(hour, minute, second)
    if day == "daily" or part == "midnight":
        return TimeOfDay(time)
    if day == "weekly":
        return TimeOfDay(time, weekday=0)
    if day == "monthly":
        return TimeOfDay(time, first_of_month=True)
    if day in _WEEKDAYS:
        return TimeOfDay(time, weekday=_WEEKDAYS.index(day))
    raise ValueError(f"rotate={words!r} is not understood: {part!r}. It is {_ROTATE_WORDS}")


def _read_keep(words: str | int) -> Keep:
    found: dict[str, Any] = {}
    for part in _parts("keep", words, "files", "and", _KEEP_WORDS):
        match = re.fullmatch(r"([0-9]+)\s*files?", part)
        meanings = ("files", match and int(match[1])), ("seconds", _read_seconds(part)), ("size", _read_size(part))
        what, value = next((one for one in meanings if one[1] is not None), ("", None))
        if value is None:
            raise ValueError(f"keep={words!r} is not understood: {part!r}. It is {_KEEP_WORDS}")
        if value <= 0:
            raise ValueError(f"keep={words!r} would keep nothing. Leave rotate= out, or keep at least 1 file")
        if what in found:
            raise ValueError(f"keep={words!r} names the same thing twice: {part!r}")
        found[what] = value
    return Keep(**found)


def _parts(argument: str, words: str | int, unit: str, conjunction: str, meaning: str) -> list[str]:
    if isinstance(words, int) and not isinstance(words, bool):
        words = f"{words} {unit}"
    if not isinstance(words, str):
        raise TypeError(f"{argument} is {meaning}, not {words!r}")
    return re.split(rf"\s+{conjunction}\s+", words.strip().lower())


def _read_size(part: str) -> int | None:
    match = _AMOUNT.fullmatch(part)
    if match is None or match[2] not in _SIZES:
        return None
    size = int(Decimal(match[1]) * _SIZES[match[2]])
    if size < 1:
        raise ValueError(f"{part!r} is less than one byte")
    return size


def _read_seconds(part: str) -> float | None:
    match = _AMOUNT.fullmatch(part)
    unit = match and _SECONDS.get(match[2].removesuffix("s"))
    return float(Decimal(match[1]) * unit) if match and unit else None


# --- names ---

#: The directives that a pattern may have, and their numbers of digits: digits are the same in every locale.
_DIRECTIVES = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "y": 2, "j": 3, "G": 4, "V": 2, "U": 2, "W": 2, "u": 1}

#: Bytes that a file name may have, and how many of them temporary names need.
_NAME_MAX, _EXTRA = 255, len("..zst.part")


class ArchiveName:
    """The names of the rotated files of a log, by the pattern that `FileSink` calls `archive`.

    By default they sort as the records do, end as the log's, and no file is renamed twice.
    """

    def __init__(self, pattern: str | None, log: str) -> None:
        if pattern is None:
            stem, suffix = os.path.splitext(log.replace("%", "%%").replace("{", "{{").replace("}", "}}"))
            pattern = f"{stem}.%Y-%m-%d.{{index:03}}{suffix}"
        self.pattern = pattern
        #: The texts and directives before the index, and those after it.
        self._parts: list[list[str]] = [[]]
        self.width = 1
        self._read()
        before, after = ("".join(map(_expression, part)) for part in self._parts)
        suffixes = "|".join(map(re.escape, SUFFIXES.values()))
        self._name = re.compile(f"({before})([0-9]{{{self.width},}})({after})(?:{suffixes})?", re.DOTALL)
        self._check(log)

    def _read(self) -> None:
        try:
            fields = list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise self._error(f"is not a pattern: {error}") from None
        for text, name, spec, conversion in fields:
            self._parts[-1] += self._read_directives(text)
            if name is None:
                continue
            width = re.fullmatch(r"(?:0([1-9]))?", spec or "")
            if name != "index" or conversion or width is None:
                raise self._error("may have {index} or {index:03}, and no other {...}")
            self.width = int(width[1] or 1)
            self._parts.append([])
        if len(self._parts) != 2:
            raise self._error("needs {index}, once, by which the files of one date differ: 'app.%Y-%m-%d.{index}.log'")

    def _read_directives(self, text: str) -> list[str]:
        if re.search(r"[/\\\0]", text):
            raise self._error("is the name of a file in the directory of the log, without a path")
        parts = re.findall(r"%.?|[^%]+", text, re.DOTALL)
        for part in parts:
            if part.startswith("%") and part != "%%" and part[1:] not in _DIRECTIVES:
                known = " ".join(f"%{letter}" for letter in _DIRECTIVES)
                raise self._error(f"has {part!r}; what is understood is {known} and %%")
        return parts

    def _check(self, log: str) -> None:
        if self.pattern.endswith(tuple(SUFFIXES.values())):
            raise self._error("ends as a compressed file; compress= adds that by itself")
        if any(self.index_of(name) is not None for name in (log, f".{log}.new", f".{log}.lock")):
            raise self._error(f"could be the name of the log itself, {log!r}")
        if len(os.fsencode(self.name(0, None, 1))) > _NAME_MAX - _EXTRA:
            raise self._error("is too long for the name of a file")

    def _error(self, what: str) -> ValueError:
        return ValueError(f"archive={self.pattern!r} {what}")

    def name(self, written_at: float, zone: datetime.tzinfo | None, index: int) -> str:
        """Return the name of a rotated file by its last write: after midnight, with the date of the day before."""
        before, after = self.around_index(written_at, zone)
        return f"{before}{index:0{self.width}}{after}"

    def around_index(self, written_at: float, zone: datetime.tzinfo | None) -> tuple[str, str]:
        time = datetime.datetime.fromtimestamp(written_at, zone)
        before, after = (
            "".join(
                "%" if part == "%%" else time.strftime(part).zfill(_DIRECTIVES[part[1]]) if part[0] == "%" else part
                for part in parts
            )
            for parts in self._parts
        )
        return before, after

    def pieces(self, digits: str) -> list[str]:
        """Return the name in characters, with `digits` in the place of each directive and of the index."""
        before, after = (
            [piece for part in parts for piece in (["%"] if part == "%%" else [digits] if part[0] == "%" else part)]
            for parts in self._parts
        )
        return [*before, digits, *after]

    def index_of(self, name: str) -> tuple[tuple[str, str], int] | None:
        """Split the name of a rotated file into the texts around its index, and the index; None for any other name."""
        match = self._name.fullmatch(name)
        return match and ((match[1], match[3]), int(match[2]))


def _expression(part: str) -> str:
    if part == "%%":
        return "%"
    return f"[0-9]{{{_DIRECTIVES[part[1]]}}}" if part[0] == "%" else re.escape(part)


class Rotation(msgspec.Struct, frozen=True):
    """How a file is rotated: above `size` bytes, and at the times of `schedules` in `zone`, None for the local one."""

    size: int | None
    schedules: tuple[Schedule, ...]
    zone: datetime.tzinfo | None
    name: ArchiveName
    keep: Keep
    compress: str | None


def make_rotation(
    log: str,
    rotate: str | int | None,
    archive: str | None = None,
    keep: str | int | None = None,
    compress: str | None = None,
    timezone: str | datetime.tzinfo | None = None,
) -> Rotation | None:
    """Return the rotation that the words of a `FileSink` mean; None without any. `log` is the file name of the log."""
    if rotate is None:
        for word, value in {"archive": archive, "keep": keep, "compress": compress, "timezone": timezone}.items():
            if value is not None:
                raise ValueError(f"{word}={value!r} is about rotated files: say when with rotate=, {_ROTATE_WORDS}")
        return None
    if archive is not None and not isinstance(archive, str):
        raise TypeError(f"archive is the pattern of a file name, 'app.%Y-%m-%d.{{index}}.log', not {archive!r}")
    if compress is not None and (not isinstance(compress, str) or compress not in SUFFIXES):
        raise ValueError(f"compress is 'gz' or 'zst', not {compress!r}")
    if compress == "zst":
        find_zstd()
    size, schedules = _read_rotate(rotate)
    kept = Keep() if keep is None else _read_keep(keep)
    return Rotation(size, schedules, _read_zone(timezone), ArchiveName(archive, log), kept, compress)


def _read_zone(zone: str | datetime.tzinfo | None) -> datetime.tzinfo | None:
    if not isinstance(zone, str):
        if zone is None or isinstance(zone, datetime.tzinfo):
            return zone
        raise TypeError(f"timezone is a name such as 'UTC' or 'Europe/Berlin', or a tzinfo, not {zone!r}")
    if zone.upper() == "UTC":
        return datetime.timezone.utc  # even if no time zones are installed
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"timezone={zone!r} is not known on this machine. It is a name such as 'UTC' or 'Europe/Berlin'"
        ) from None
