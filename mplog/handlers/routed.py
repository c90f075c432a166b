"""The handler that writes a file per worker, per task, per whatever a record says. It runs in the logging process.

::

    batch -> one rendering -> texts by file name -> one write per file     (each a `LogFileHandler`)

The rule of this file: **every file is a log file like any other**: one process writes it, under its lock; it is rotated
like any other, and what a logging process that is killed has written in part is taken back. There is a bound on how
many are open: the one that was not written for the longest time is closed, and opened again when it is.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import math
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mplog.files import lock as file_lock
from mplog.files import regular as regular_file
from mplog.files.names import FileNames
from mplog.handlers.log_file import FileWriter, LogFileHandler, Portion, Position
from mplog.record.cache import Bounded
from mplog.record.decoding import constant_fields
from mplog.record.layout import DETAILS, EXTRA, NO_DETAILS, ORIGIN, ByOrigin, Entry, Origin

if TYPE_CHECKING:
    import filelock

#: Names that are remembered, by what they are made of, and characters of that.
_KEPT_NAMES = 10_000
_LONGEST_KEPT = 1000

#: Names of files that were closed without being forced to the disk, of which somebody may want that.
_UNSYNCED = 10_000

#: Why a file cannot be opened at the moment, but may be later.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR}

_STANDARD = {*ORIGIN, *DETAILS}
_DETAIL_PLACES = {name: place for place, name in enumerate(DETAILS)}


class RoutedFileHandler(FileWriter):
    """Writes each record into the file that its values name. Runs in the logging process.

    Args:
        path: the directory and the pattern.
        names: the pattern.
        make: called with a path, opens a file.
        max_open: how many are open at most.
        permissions: of files.

    Raises:
        LogFileLockedError: another logging process writes files of the same pattern.
        OSError: there is no such directory.
    """

    def __init__(
        self,
        path: str,
        names: FileNames,
        make: Callable[[str], LogFileHandler],
        *,
        max_open: int,
        permissions: int,
    ) -> None:
        super().__init__()
        self._path = path
        self._directory = os.path.dirname(path)
        self._names = names
        self._make = make
        self._max_open = max_open
        self._permissions = permissions
        #: The names for records without extra attributes.
        self._by_origin = ByOrigin(self._file_name)
        self._by_values: Bounded[tuple[Any, ...], str] = Bounded(_KEPT_NAMES)
        #: The one field, where that is an extra attribute, and names by its values that are texts or integers.
        self._field = names.fields[0] if names.fields[0] not in _STANDARD and len(names.fields) == 1 else None
        self._by_value: Bounded[str | int, str] = Bounded(_KEPT_NAMES)
        #: Names that say where a record comes from, and so are the same with extra attributes.
        self._has_extra = not _STANDARD.issuperset(names.fields)
        #: Open files, the one that was written last at the end.
        self._files: OrderedDict[str, LogFileHandler] = OrderedDict()
        #: What is to be written, by name.
        self._waiting: dict[str, tuple[list[Entry | logging.LogRecord], list[str]]] = {}
        self._unsynced: dict[str, None] = {}
        self._notices: list[str] = []
        self._pattern_lock: filelock.BaseFileLock | None = None
        self._pattern_lock = file_lock.acquire(path)

    def __repr__(self) -> str:
        return f"<RoutedFileHandler {self._path}>"

    @property
    def glob(self) -> str:
        """What finds all of its files, for the module of that name."""
        return os.path.join(glob.escape(self._directory), "*".join(map(glob.escape, self._names.texts)))

    @property
    def needs_no_details(self) -> bool:
        """Whether nothing here looks at the thread or the place of a call."""
        return super().needs_no_details and not self._names.needs_details

    # --- where to ---

    def _file_name(self, origin: Origin, extra: dict[str, Any] | None = None) -> str:
        """Return the name of the file."""
        values = []
        for field in self._names.fields:
            if field in ORIGIN:
                value = getattr(origin, field)
            elif field in _DETAIL_PLACES:
                value = (origin.details or NO_DETAILS)[_DETAIL_PLACES[field]]
            else:
                value = None
            if value is None:
                # What UTF-8 does not take is among the extra ones (`mplog.record.encoding`).
                value = (extra or {}).get(field, constant_fields.get(field))
            values.append(value)
        return self._name_of(values)

    def _name_of(self, values: list[Any]) -> str:
        # 1, 1.0 and True are equal, and make other names.
        key = tuple([value if type(value) is str or value is None else str(value) for value in values])
        name = self._by_values.get(key)
        if name is None:
            name = self._names.name(values)
            if sum(map(len, filter(None, key))) <= _LONGEST_KEPT:
                self._by_values.keep(key, name)
        return name

    def _name_with(self, origin: Origin, extra: dict[str, Any]) -> str:
        """Return the name for a record with extra attributes."""
        if self._field is not None:
            value = extra.get(self._field)
            # Not True, which is equal to 1.
            if type(value) is str or type(value) is int:
                name = self._by_value.get(value)
                if name is None:
                    name = self._file_name(origin, extra)
                    if isinstance(value, int) or len(value) <= _LONGEST_KEPT:
                        self._by_value.keep(value, name)
                return name
        elif not self._has_extra and _STANDARD.isdisjoint(extra):
            return self._by_origin[origin]
        return self._file_name(origin, extra)

    def _place(self, name: str) -> tuple[list[Entry | logging.LogRecord], list[str]]:
        place = self._waiting.get(name)
        if place is None:
            place = self._waiting[name] = ([], [])
        return place

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + self.terminator
            name = self._name_of([record.__dict__.get(field) for field in self._names.fields])
        except Exception:
            self.handleError(record)
        else:
            with self._adding:
                sources, texts = self._place(name)
                sources.append(record)
                texts.append(text)

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        by_origin, waiting = self._by_origin, self._waiting
        texts = self._renderer(batch, self._fail)
        with self._adding:
            for entry, text in zip(batch, texts):
                extra = entry[0][EXTRA]
                name = by_origin[entry[1]] if extra is None else self._name_with(entry[1], extra)
                place = waiting.get(name) or self._place(name)
                place[0].append(entry)
                place[1].append(text)

    # --- writing ---

    def flush(self) -> None:
        """Write what has been rendered, each file's part at once."""
        if not self._waiting and self.stuck_by is None:
            return
        with self._adding:
            waiting, self._waiting = self._waiting, {}
        self.stuck_by = None
        for file in [file for file in self._files.values() if file.stuck_by]:
            self._flush_file(file)
        for name, (sources, texts) in waiting.items():
            try:
                file = self._open(name)
            except OSError as error:
                if self.keeps_trying and error.errno in _PASSING:
                    with self._adding:
                        place = self._place(name)
                        place[0][:0], place[1][:0] = sources, texts
                    self.stuck_by = error
                else:
                    self.fail(sources)
            except Exception:
                self.fail(sources)
            else:
                file.take(sources, texts)
                self._flush_file(file)

    def _flush_file(self, file: LogFileHandler) -> None:
        file.keeps_trying = self.keeps_trying
        file.flush()
        self.stuck_by = file.stuck_by or self.stuck_by

    def _open(self, name: str) -> LogFileHandler:
        """Return the open file of that name.

        Raises:
            OSError: it cannot be opened.
        """
        file = self._files.get(name)
        if file is not None:
            self._files.move_to_end(name)
            return file
        while len(self._files) >= self._max_open:
            moving = {each: file for each, file in self._files.items() if not file.stuck_by}
            if not moving:
                raise OSError(errno.EMFILE, f"all {self._max_open} open files wait for their disk")
            idle = next((each for each, file in moving.items() if not file.is_tidying), None)
            if idle is None and len(self._files) < 2 * self._max_open:
                break  # to close one would wait for the compressor, and have it begin anew
            self._close_file(idle or next(iter(moving)))
        file = self._make(os.path.join(self._directory, name))
        file.handleError = self.handleError  # type: ignore[method-assign]
        file.announce = self._announce
        self._files[name] = file
        return file

    def _announce(self, portion: Portion) -> None:
        if self.announce is not None:
            self.announce(portion)

    def settle(self) -> None:
        for file in self._files.values():
            file.settle()

    def _close_file(self, name: str) -> None:
        file = self._files.pop(name)
        try:
            self._notices += file.take_notices()
            self._unsynced[name] = None
        finally:
            file.close()
        if len(self._unsynced) > _UNSYNCED:
            self.sync()

    def reopen(self) -> None:
        """Close the files; each is opened anew when it is written."""
        self.flush()
        for name in [name for name, file in self._files.items() if not file.stuck_by]:
            self._close_file(name)

    # --- restart ---

    def resume(self, committed: Position, announced: int) -> int:
        """Take back what the logging process that was killed had written without noting it; return how many bytes.

        Args:
            committed, announced: see `LogFileHandler.resume`. The file is found by its inode, whatever it is called.
        """
        path = self._find(committed) if announced > committed.length else None
        if path is None:
            return 0
        lock = file_lock.acquire(path)  # somebody else may have taken the file meanwhile
        try:
            fd, _ = regular_file.open_for_appending(path, self._permissions, make=False)
            try:
                length = os.fstat(fd).st_size
                if committed.length < length <= announced:
                    os.ftruncate(fd, committed.length)
                    return length - committed.length
                if length != committed.length:
                    self._notices.append(
                        f"mplog: {path} was changed by somebody else while nobody wrote it, and stays so"
                    )
                return 0
            finally:
                os.close(fd)
        finally:
            file_lock.release(lock)

    def _find(self, committed: Position) -> str | None:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.inode() == committed.inode and entry.name.startswith(self._names.texts[0]):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_dev == committed.device:
                        return entry.path
        return None

    # --- what the logging process asks for ---

    def due(self) -> float | None:
        """Return the time of the monotonic clock at which `work` has something to do, None for no such time."""
        due = min((time for file in self._files.values() if (time := file.due()) is not None), default=math.inf)
        return None if due == math.inf else due

    def work(self) -> None:
        """Do what is due."""
        for file in self._files.values():
            file.work()

    def sync(self) -> bool:
        """Force what was written to the disk, also what has been closed since; return whether it is there."""
        are_there = [file.sync() for file in self._files.values()]
        closed, self._unsynced = self._unsynced, {}
        for name in closed.keys() - self._files.keys():
            path = os.path.join(self._directory, name)
            try:
                fd, _ = regular_file.open_for_appending(path, self._permissions, make=False)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                self._notices.append(f"mplog: what was last written to {path} may not have reached the disk: {error}")
                are_there.append(False)
        return all(are_there)

    def take_notices(self) -> list[str]:
        """Return what there is to say in the log, each time with what is new."""
        taken, self._notices = self._notices, []
        for file in self._files.values():
            taken += file.take_notices()
        return taken

    def close(self) -> None:
        """Write the rest, and let go of the files."""
        try:
            self.flush()
        finally:
            for name in list(self._files):
                with contextlib.suppress(OSError):
                    self._close_file(name)
            if self._pattern_lock is not None:
                file_lock.release(self._pattern_lock)
                self._pattern_lock = None
            super().close()
            for notice in self.take_notices():
                if sys.stderr is not None:
                    print(notice, file=sys.stderr, flush=True)
