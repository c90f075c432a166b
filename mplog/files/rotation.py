"""Rotating a log file: never, or by size and time to archives that are compressed and removed."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable

from mplog.files.archives import Archives
from mplog.files.open_file import OpenFile
from mplog.files.portion import Portion, Position
from mplog.files.rotation_rules import Rotation, Timer
from mplog.record.encoding import describe

#: Seconds after which a rotation that has failed is tried again.
RETRY_SECONDS = 5.0


class Rotator:
    """Rotates a file. This class never does; subclasses say when, and where the old file goes."""

    #: Whether a thread works in the background: `close` would wait for it, or stop it.
    is_tidying = False

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        directory, name = os.path.split(file.path)
        self._new_path = os.path.join(directory, f".{name}.new")
        self._retry_at = -math.inf

    def recover(self) -> None:
        """Finish what a killed process has left half done. Called before the file is opened."""

    @property
    def is_ready(self) -> bool:
        """Whether no rotation has failed in the last seconds."""
        return self._file.clock.monotonic() >= self._retry_at

    def is_due(self, start: Position) -> bool:
        """Whether to rotate the file now, whatever comes next."""
        return False

    def fit(self, texts: list[str], start: Position, *, forced: int = 0) -> Portion:
        """Return as many texts as fit into the file, but at least `forced`; none if the file must be rotated first."""
        return self._file.encoder.encode(texts, start)

    def rotate(self) -> None:
        """Go on in a new file; if that fails, go on in the old one, and say so."""
        file = self._file
        try:
            if file.is_moved():
                file.follow_move()  # the path now names a file that is not ours to rotate
                return
            archive = self._swap()
        except (OSError, ValueError) as error:  # ValueError: a clock beyond what a date can say
            self._retry_at = file.clock.monotonic() + RETRY_SECONDS
            file.notices.say(
                "rotate",
                f"{file.path} could not be rotated, so writing goes on in the same file; trying again every "
                f"{RETRY_SECONDS:g} seconds: {describe(error)}",
            )
            return
        if file.notices.forget("rotate"):
            file.notices.add(f"{file.path} has been rotated to {archive}")
        file.fsync.sync_name()
        self.after_rotation()

    def _swap(self) -> str:
        """Put the old file away, and go on in a new one; return the new path of the old one.

        The new file is made first, under another name, so that errors come before anything changes. After a kill
        between the two renames, no file has the log's name, and the next start makes one.
        """
        file = self._file
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._new_path)
        fd = file.create(self._new_path)
        try:
            file.fsync.sync_before_close(file.fileno())
            archive = self.put_away()
            try:
                os.rename(self._new_path, file.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self.bring_back(archive)
                raise
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self._new_path)
            raise
        file.replace(fd, 0, 0.0)
        return archive

    def put_away(self) -> str:
        """Rename the file to its name as a rotated one; return that path. On an OSError, everything is as before."""
        raise NotImplementedError

    def bring_back(self, archive: str) -> None:
        os.rename(archive, self._file.path)

    def after_rotation(self) -> None:
        """Called after each rotation."""

    def settle(self) -> None:
        """Note that nothing written so far will be taken back."""

    def undo(self, inode: int) -> None:
        """Take back rotations of a killed process, until the log is the file with this inode again."""

    def takes_back(self, inode: int) -> bool:
        """Whether `undo` also removes what is in the file with this inode."""
        return False

    def is_name_of(self, name: str) -> bool:
        """Whether a file that was the log may have been given this name."""
        return name.startswith(os.path.basename(self._file.path))

    def remove_new(self) -> None:
        with contextlib.suppress(OSError):  # the next rotation will find it in the way, and say so
            os.unlink(self._new_path)

    def close(self) -> None:
        """End the work in the background."""


class ArchiveRotator(Rotator):
    """Rotates by size and time; rotated files get dated names, and are compressed and removed."""

    def __init__(self, file: OpenFile, rotation: Rotation) -> None:
        super().__init__(file)
        self._rotation = rotation
        self._archives = Archives(file.path, rotation, file.notices, file.clock)
        self._timer = Timer(rotation.schedules, rotation.zone, file.clock.time())
        #: The inode of the file for which the timer was started.
        self._timed = -1
        self._is_tidy = False

    def recover(self) -> None:
        self.remove_new()

    def is_due(self, start: Position) -> bool:
        now = self._file.clock.time()
        if not start.length or start.inode != self._timed:
            self._timed = start.inode
            # An empty file is not rotated: it begins now.
            self._timer.restart(self._file.written_at if start.length else now)
        return start.length > 0 and self._timer.is_due(now) and self.is_ready

    def fit(self, texts: list[str], start: Position, *, forced: int = 0) -> Portion:
        limit = self._rotation.size
        if limit is None or not self.is_ready:
            return super().fit(texts, start)

        def fits(length: int, text: str, size: int) -> bool:
            return not length or length + size <= limit

        return self._file.encoder.fit(texts, start, limit, fits, forced=forced)

    def put_away(self) -> str:
        return self._archives.take(self._file.path, self._file.written_at)

    def after_rotation(self) -> None:
        self._is_tidy = False

    def settle(self) -> None:
        """Have rotated files compressed and removed, after a rotation, or when the log was just opened.

        Not before the commit: until then, a restart finds them by their inodes, to cut off what is not committed.
        """
        if not self._is_tidy:
            self._is_tidy = True
            try:
                self._archives.tidy()
            except RuntimeError as error:  # no thread can be started
                self._file.notices.say("tidy", f"rotated files of {self._file.path} could not be tidied up: {error}")

    @property
    def is_tidying(self) -> bool:  # type: ignore[override]
        return self._archives.is_tidying

    def is_name_of(self, name: str) -> bool:
        return super().is_name_of(name) or self._rotation.name.index_of(name) is not None

    def close(self) -> None:
        self._archives.close()


def rotator_of(rotation: Rotation | None) -> Callable[[OpenFile], Rotator]:
    return Rotator if rotation is None else functools.partial(ArchiveRotator, rotation=rotation)
