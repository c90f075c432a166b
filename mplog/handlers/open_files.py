"""Keeps a bounded number of a directory's files open. Runs in the logging process."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable

from mplog.files import regular
from mplog.handlers.log_file import LogFileHandler

#: How many files are remembered that were closed before they were forced to the disk: a later `sync` does that.
_UNSYNCED = 10_000


class OpenFiles(OrderedDict[str, LogFileHandler]):
    """The open files, in the order of their last writes: at most `most`, or twice as many while some are compressed."""

    def __init__(self, directory: str, make: Callable[[str], LogFileHandler], most: int) -> None:
        super().__init__()
        self._directory = directory
        self._make = make
        self._most = most
        self._unsynced: dict[str, None] = {}
        self._notices: list[str] = []

    def open(self, name: str) -> LogFileHandler:
        """Return the file of that name; open it if needed, and close another one if there are too many."""
        file = self.get(name)
        if file is not None:
            self.move_to_end(name)
            return file
        while len(self) >= self._most:
            moving = {each: file for each, file in self.items() if not file.stuck_by}
            if not moving:
                raise OSError(errno.EMFILE, f"all {self._most} open files wait for their disk")
            idle = next((each for each, file in moving.items() if not file.is_tidying), None)
            if idle is None and len(self) < 2 * self._most:
                break  # to close one would wait for the compressor, which would have to start again
            self.close(idle or next(iter(moving)))
        file = self[name] = self._make(os.path.join(self._directory, name))
        return file

    def close(self, name: str) -> None:
        file = self.pop(name)
        try:
            self._notices += file.take_notices()
            self._unsynced[name] = None
        finally:
            file.close()
        if len(self._unsynced) > _UNSYNCED:
            self.sync()

    def sync(self) -> bool:
        """Force what was written to the disk, also in files closed since; return whether all of it is there."""
        are_there = [file.sync() for file in self.values()]
        closed, self._unsynced = self._unsynced, {}
        for name in closed.keys() - self.keys():
            path = os.path.join(self._directory, name)
            try:
                with regular.existing(path) as fd:
                    os.fsync(fd)
            except OSError as error:
                self.say(f"what was last written to {path} may not have reached the disk: {error}")
                are_there.append(False)
        return all(are_there)

    def say(self, notice: str) -> None:
        self._notices.append(f"mplog: {notice}")

    def take_notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        for file in self.values():
            taken += file.take_notices()
        return taken
