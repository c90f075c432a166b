"""The handler that writes a file per worker, per task, or per any other field. It runs in the logging process.

Each file has a `LogFileHandler`. The number of open files is bounded: the one whose last write is longest ago is
closed, and reopened for its next write.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from mplog.files import regular
from mplog.files.lock import LogLock
from mplog.files.names import FileNames
from mplog.files.notices import changed_meanwhile, gone_meanwhile, say_on_stderr
from mplog.files.open_file import DEAD
from mplog.files.portion import Position
from mplog.handlers.log_file import LogFileHandler
from mplog.handlers.open_files import OpenFiles
from mplog.handlers.routes import Routes
from mplog.handlers.text import TextHandler
from mplog.record.layout import EXTRA, Entry

#: Why a file cannot be opened at the moment, but may be later.
_PASSING = DEAD | {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}

_Waiting = defaultdict[str, tuple[list[Entry | logging.LogRecord], list[str]]]


class RoutedFileHandler(TextHandler):
    """Writes each record into the file that its values name. No other logging process writes to the same pattern."""

    can_wait = True

    def __init__(self, path: str, names: FileNames, make: Callable[[str], LogFileHandler], *, max_open: int) -> None:
        super().__init__()
        self._path = path
        self._names = names
        self._routes = Routes(names)
        self._make = make
        self._files = OpenFiles(os.path.dirname(path), self._make_file, max_open)
        #: What is to be written, by name.
        self._waiting = _Waiting(lambda: ([], []))
        self._lock: LogLock | None = None  # for `close`, if the lock cannot be taken
        self._lock = LogLock(path)

    def __repr__(self) -> str:
        return f"<RoutedFileHandler {self._path}>"

    @property
    def glob(self) -> str:
        directory = glob.escape(os.path.dirname(self._path))
        return os.path.join(directory, "*".join(map(glob.escape, self._names.texts)))

    @property
    def needs_details(self) -> bool:
        return super().needs_details or self._names.needs_details

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + self.terminator
            name = self._routes.name_of(record)
        except Exception:
            self.handleError(record)
        else:
            with self._adding:
                place = self._waiting[name]
                place[0].append(record)
                place[1].append(text)

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        by_origin, name_with = self._routes.by_origin, self._routes.name_with
        texts = self._renderer.render(batch, self._fail)
        with self._adding:
            waiting = self._waiting
            for entry, text in zip(batch, texts):
                extra = entry[0][EXTRA]
                name = by_origin[entry[1]] if extra is None else name_with(entry[1], extra)
                place = waiting[name]
                place[0].append(entry)
                place[1].append(text)

    def flush(self) -> None:
        if not self._waiting and self.stuck_by is None:
            return
        with self._adding:
            waiting, self._waiting = self._waiting, _Waiting(lambda: ([], []))
        self.stuck_by = None
        for file in [file for file in self._files.values() if file.stuck_by]:
            self._flush_file(file)
        for name, (sources, texts) in waiting.items():
            try:
                file = self._files.open(name)
            except OSError as error:
                if self.keeps_trying and error.errno in _PASSING:
                    with self._adding:
                        place = self._waiting[name]
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
        file.announce = self.announce
        file.keeps_trying = self.keeps_trying
        file.flush()
        self.stuck_by = file.stuck_by or self.stuck_by

    def _make_file(self, path: str) -> LogFileHandler:
        file = self._make(path)
        file.handleError = self.handleError  # type: ignore[method-assign]
        return file

    def resume(self, committed: Position, announced: int) -> int:
        if announced <= committed.length:
            return 0
        # By its inode: it may have been renamed.
        directory, begin = os.path.dirname(self._path), self._names.texts[0]
        path = regular.find(directory, committed.inode, lambda name: name.startswith(begin))
        if path is None:
            self._files.say(gone_meanwhile(self._path))
            return 0
        with contextlib.ExitStack() as lock:
            lock.callback(LogLock(path).release)  # another logging process may have the file now
            count = regular.cut_back(lock.enter_context(regular.existing(path)), committed.length, announced)
        if count is None:
            self._files.say(changed_meanwhile(path))
        return count or 0

    def settle(self) -> None:
        for file in self._files.values():
            file.settle()

    def reopen(self) -> None:
        self.flush()
        for name in [name for name, file in self._files.items() if not file.stuck_by]:
            self._files.close(name)

    def due(self) -> float | None:
        times = [file.due() for file in self._files.values()]
        times.append(self._lock.due if self._lock is not None else None)
        return min((each for each in times if each is not None), default=None)

    def work(self) -> None:
        if self._lock is not None and time.monotonic() >= self._lock.due:
            notice = self._lock.look()
            if notice:
                self._files.say(notice)
        for file in self._files.values():
            file.work()

    def sync(self) -> bool:
        return self._files.sync()

    def take_notices(self) -> list[str]:
        return self._files.take_notices()

    def _release(self) -> None:
        for name in list(self._files):
            with contextlib.suppress(OSError):
                self._files.close(name)
        if self._lock is not None:
            self._lock.release()
        for notice in self.take_notices():
            say_on_stderr(notice)
