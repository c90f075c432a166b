"""Reading a log that grows, whatever happens to its file.

The rule of this file: **nothing is missed, and nothing comes twice.** A file that is renamed is read to its end before
the next one. Files that were rotated between two looks are found by their names and times (`RotatedFiles`). After a
file was copied and emptied, reading goes on in its copy. After a logging process was killed, the next one cuts the file
back, or undoes a rotation, and writes the rest again: those lines are known, and left out (`_Repeats`). Therefore,
lines come whole; only very long lines come in pieces.
"""

from __future__ import annotations

import io
import os
import time
from collections import Counter, deque

from mplog.cli.file_reader import FileReader, open_log
from mplog.cli.rotated_files import RotatedFiles
from mplog.errors import MplogError
from mplog.files.lock import taken_at

#: Seconds after a cut in which lines that were there before are expected again: a restart takes less.
_AGAIN_SECONDS = 10.0
#: How often the next file is looked for, while files are being renamed, before waiting for a moment.
_ATTEMPTS = 10
#: How many files are kept open after they were read, in case their rotation is undone.
_KEPT = 4


class Follower:
    """Follows one log, whose descriptor it closes, from the start of a line on."""

    def __init__(self, path: str, fd: int, offset: int) -> None:
        self._path = os.path.abspath(path)
        self._rotated = RotatedFiles(os.path.realpath(path))
        self._file = FileReader.at(fd, offset)
        self._kept: deque[FileReader] = deque()
        self._repeats = _Repeats()
        #: The copy of an emptied file that is being read; and the place of the last one among the rotated files.
        self._copy: FileReader | None = None
        self._copied: tuple[str, int] | None = None
        self._seen = (-1, -1)
        self._is_locked = False

    def close(self) -> None:
        for file in (self._file, *self._kept, self._copy):
            if file is not None:
                file.close()

    def read(self) -> bytes:
        """Return new whole lines as they stand in the file, b"" if there are none at the moment.

        A line without an end comes once another file has taken the place of its file, which then grows no more.
        """
        try:
            while (data := self._read_on()) == b"":
                pass
        except OSError as error:
            raise MplogError(f"{self._path} cannot be read: {error}") from None
        return data or b""

    def _read_on(self) -> bytes | None:
        """Return some lines, b"" to be called again, None if there is nothing at the moment."""
        if self._copy is not None:
            return self._read_copy(self._copy)
        file = self._file
        if file.source is None:
            status = file.status()
            state = status.st_size, status.st_mtime_ns
            if state == self._seen and status.st_size <= file.offset:
                return self._go_on()
            if not self._has_only_grown(file):
                return b""
            self._seen = state
        data = file.read_whole_lines()
        return self._take(data) if data else self._go_on()

    def _take(self, data: bytes) -> bytes:
        """Note that this much of the file has been read, and return what is new."""
        self._file.note(data)
        self._is_locked = taken_at(os.path.realpath(self._path)) is not None
        return self._repeats.remove_from(data)

    # --- a file that is cut ---

    def _has_only_grown(self, file: FileReader) -> bool:
        """Return whether a file that has changed has only grown. If not, find out where to go on."""
        shorter = [kept for kept in self._kept if kept.status().st_size < kept.offset]
        for kept in shorter:
            # A batch that went into two files was undone in both. All of it comes again in the second.
            self._repeats.expect(kept.cut_back(kept.unchanged()))
        if not file.offset:
            self._open_later_copy()  # the file may have been emptied before anything of it was read
            return self._copy is None
        if file.go_to(*file.place):
            return True
        unchanged = file.unchanged()
        found = None if unchanged else self._rotated.copy_of(file)
        cut = file.cut_back(unchanged)
        if found is not None:
            self._copy, self._copied = found[0], found[1].place
        elif unchanged or shorter or self._was_restarted():
            self._repeats.expect(cut)
        return False

    def _was_restarted(self) -> bool:
        """Return whether another logging process has begun to write the log. It may have cut all of a new file."""
        taken = taken_at(os.path.realpath(self._path))
        # If nobody has the lock any more, that process has also ended since the last look.
        return self._is_locked if taken is None else time.time() - taken < _AGAIN_SECONDS

    def _read_copy(self, copy: FileReader) -> bytes:
        """Return what is new in a copy; at its end, go on in a copy that was made after it."""
        data = copy.read_whole_lines() or copy.read()
        copy.offset += len(data)
        if not data:
            copy.close()
            self._copy = None
            self._open_later_copy()
        return self._repeats.remove_from(data)

    def _open_later_copy(self) -> None:
        """Go on in the copy that was made after the one that was read last, if there is one."""
        if self._copied is not None:
            following = self._rotated.next_after(*self._copied, is_old_name=True)
            self._copy = None if following is None else self._rotated.open(following)
            if following is not None and self._copy is not None:
                self._copied = following.place

    # --- the next file ---

    def _go_on(self) -> bytes | None:
        """Go on with another file at the end of this one; return the rest of this one, None to wait."""
        try:
            now = os.stat(self._path)
        except OSError:
            return None  # between two names, or removed: the process that has it open may go on writing
        file = self._file
        if file.is_at(now):
            return None
        for kept in self._kept:
            if kept.is_at(now):
                return self._go_back(kept)
        if not now.st_size:
            return None  # the writer has not opened the new file yet
        rest = file.read()  # lines from before the new file was there
        if rest:
            return self._take(rest)
        if file.status().st_nlink == 0 and self._rotated.name_of(file) == self._rotated.log and self._kept:
            before = self._kept[-1]
            status = before.status()
            if status.st_nlink and status.st_ctime_ns != before.changed_at:
                return self._go_back(before)  # it was rotated again meanwhile
        following = self._open_next(file)
        if following is None:
            return None
        self._leave(file)
        self._start_with(following)
        return b""

    def _start_with(self, file: FileReader) -> None:
        self._file = file
        self._seen = (-1, -1)

    def _leave(self, file: FileReader) -> None:
        if file.source is not None:
            file.close()
            return
        file.changed_at = file.status().st_ctime_ns
        self._kept.append(file)
        if len(self._kept) > _KEPT:
            self._kept.popleft().close()

    def _go_back(self, before: FileReader) -> bytes:
        """Go on in a file whose rotation was undone: all lines that were written after it come again."""
        while self._file is not before:
            self._repeats.expect(self._file.recent)
            self._file.close()
            self._start_with(self._kept.pop())
        return b""

    def _open_next(self, file: FileReader) -> FileReader | None:
        """Open the file that was begun when this one was finished, which may have been rotated itself."""
        for _ in range(_ATTEMPTS):
            status = file.status()
            place = self._rotated.name_of(file), status.st_mtime_ns
            is_old_name = file.source is not None or not status.st_nlink
            known = {(kept.st_dev, kept.st_ino) for kept in (kept.status() for kept in self._kept)}
            following = self._rotated.next_after(*place, is_old_name=is_old_name, known=known)
            if following is not None:
                opened = self._rotated.open(following)
                if opened is not None:
                    return opened
                continue  # compressed or renamed in between
            try:
                fd = open_log(self._path)
            except MplogError:
                return None
            # This may be one file too late, if the log was rotated before it was opened.
            if self._rotated.next_after(*place, is_old_name=is_old_name, known=known) is None:
                return FileReader(fd)
            os.close(fd)
        return None


class _Repeats:
    """Lines that have been given out, and that the next logging process is expected to write again."""

    def __init__(self) -> None:
        self._lines: Counter[bytes] = Counter()
        self._until = 0.0

    def expect(self, data: bytes | bytearray) -> None:
        self._lines.update(io.BytesIO(data))
        self._until = time.monotonic() + _AGAIN_SECONDS

    def remove_from(self, data: bytes) -> bytes:
        """Return the lines that are not expected."""
        if self._lines and time.monotonic() > self._until:
            self._lines.clear()
        return b"".join(line for line in io.BytesIO(data) if self._is_new(line)) if self._lines else data

    def _is_new(self, line: bytes) -> bool:
        if self._lines[line] <= 0:
            del self._lines[line]
            return True
        self._lines[line] -= 1
        return False
