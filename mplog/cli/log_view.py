"""What is shown of a log: of the records that pass a filter, the last ones, then those that come."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator

from mplog.cli.file_reader import CHUNK, COMPRESSED, LONGEST_LINE, open_compressed, open_log, read_lines
from mplog.cli.following import Follower
from mplog.cli.lines import Filter, LineParser
from mplog.errors import MplogError

#: Bytes at the end of a log in which the last records are looked for first.
_WINDOW = 2**16


class View:
    """Decides which lines are shown.

    Attributes:
        is_known: whether the parser has recognized a line.
        level: of the record that the last line belongs to; None if unknown.
        begun: bytes of a very long line that have been taken, if more of it will come; otherwise 0.
    """

    def __init__(self, parser: LineParser, wanted: Filter) -> None:
        self.parser = parser
        self.wanted = wanted
        self._is_shown = wanted.is_empty
        self.is_known = False
        self.level: int | None = None
        self.begun = 0
        self._is_text = False
        self._has_looked = False

    def check(self, path: str) -> None:
        """Raise MplogError if there is a filter, and the parser has recognized no line."""
        if self._has_looked and not self.is_known and not self.wanted.is_empty:
            raise MplogError(
                f"no line of {path} is JSON or text in the expected format, so it cannot be filtered. "
                "Give the format of its lines: --format '%(asctime)s %(levelname)s %(name)s %(message)s'"
            )

    def begins(self, line: bytes) -> bool:
        """Take the next line, and return whether it begins a record."""
        self._has_looked = True
        record = self.parser.parse(line)
        # In a text log, an object on a line of its own is part of a message.
        if record is None or (record.is_json and self._is_text):
            return False
        self.is_known = True
        self._is_text |= not record.is_json
        self.level = record.level
        self._is_shown = self.wanted.takes(record)
        return True

    def shows(self, line: bytes) -> bool:
        """Take the next line, or a piece of one; return whether the record that it belongs to is shown."""
        if not self.begun:
            self.begins(line)
        return self._is_shown

    def go_on(self, line: bytes) -> None:
        """Note what was taken."""
        is_piece = len(line) >= LONGEST_LINE and not line.endswith(b"\n")
        self.begun = self.begun + len(line) if is_piece else 0

    def last(self, fd: int, end: int, count: int | None) -> int:
        """Return where the last `count` records that are shown, or all, begin in the first `end` bytes."""
        if count is None or not end:
            return 0
        if not count:
            return end
        window = _WINDOW
        while True:
            # From the end backwards, further each time, until there are enough.
            begin = max(0, end - window)
            found = self._last_of(_lines(fd, begin, end), begin > 0, count)
            if len(found) == count or not begin:
                return found[0] if found else end
            window *= 8

    def _last_of(self, lines: Iterable[tuple[int, bytes]], is_cut: bool, count: int) -> deque[int]:
        view = View(self.parser, self.wanted)
        records: deque[int] = deque(maxlen=count)
        any_lines: deque[int] = deque(maxlen=count)
        for number, (place, line) in enumerate(lines):
            was_text = view._is_text
            if view.begins(line):
                if is_cut and view._is_text and not was_text:
                    records.clear()  # objects in the message of a record that begins earlier
                if view._is_shown:
                    records.append(place)
            elif number or not is_cut:
                any_lines.append(place)
        self.is_known |= view.is_known
        self._has_looked |= view._has_looked
        # In an unknown format, each line is a record.
        return records if view.is_known else any_lines if self.wanted.is_empty else deque()


def _lines(fd: int, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its place; only the beginning of a very long line."""
    place, line = begin, b""
    while begin < end:
        data = os.pread(fd, min(CHUNK, end - begin), begin)
        if not data:
            break
        for piece in io.BytesIO(data):
            begin += len(piece)
            line += piece[: LONGEST_LINE - len(line)]
            if piece.endswith(b"\n"):
                yield place, line
                place, line = begin, b""
    if line:
        yield place, line


class Source:
    """One log that is shown; raises MplogError if it cannot be read."""

    def __init__(self, path: str, view: View) -> None:
        self.path = path
        self.view = view
        self._fd = open_log(path)
        self._follower: Follower | None = None
        if path.endswith(COMPRESSED):
            self._unpack()
        self._end = os.fstat(self._fd).st_size

    def _unpack(self) -> None:
        """Unpack it into a file without a name, so that its end can be found."""
        with tempfile.TemporaryFile() as file:
            try:
                with open_compressed(self.path) as source:
                    shutil.copyfileobj(source, file, CHUNK)
            except Exception as error:  # each format raises errors of its own
                raise MplogError(f"{self.path} cannot be unpacked: {error}") from None
            file.flush()
            os.dup2(file.fileno(), self._fd, inheritable=False)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        else:
            os.close(self._fd)

    def last(self, count: int | None, *, is_followed: bool) -> Iterator[bytes]:
        """Yield the last records, in pieces of whole lines; if the log is followed, leave them to `new`."""
        place = self.view.last(self._fd, self._end, count)
        if is_followed and not self.path.endswith(COMPRESSED):
            self._follower = Follower(self.path, self._fd, place)
            return
        while place < self._end:
            data = read_lines(self._fd, place)[: self._end - place]
            if place + len(data) < self._end:
                data = data[: data.rfind(b"\n") + 1] or data
            if not data:
                return  # it has been cut meanwhile
            place += len(data)
            yield data

    def new(self) -> bytes:
        """Return whole lines that have come since."""
        return b"" if self._follower is None else self._follower.read()
