"""The handler that writes a log file. Runs in the logging process.

The rule of this file: **a record is in one file, whole, or in none**, and the file is the regular file that was asked
for, which this process alone writes. A batch is written in portions, none of which crosses the end of a file::

    texts -> prepare() -> Portion -> write_portion() -> the file
             looks whether the file is still there,     completes short writes; takes back
             rotates if that is due, encodes            a record of which there is no room for the rest
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import errno
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mplog.files import lock as file_lock
from mplog.files import regular as regular_file
from mplog.files.archives import Archives, find_moved
from mplog.files.rotation import Rotation, Timer
from mplog.handlers.text import TextHandler
from mplog.record.layout import Entry

if TYPE_CHECKING:
    import filelock

__all__ = ["FileWriter", "Fsync", "LogFileHandler", "Portion", "Position"]

#: Seconds between two looks whether the path still leads to the open file, while it is written.
_LOOK_SECONDS = 1.0

#: Seconds after which a rotation that has failed is tried again.
_RETRY_SECONDS = 5.0

#: Seconds in which the same notice is not given again.
_NOTICE_SECONDS = 600.0

#: "never", "batch" or seconds.
Fsync = Literal["never", "batch"] | float


class Position(NamedTuple):
    """How far a file is written.

    Attributes:
        device, inode: which file, whatever its name is meanwhile.
        length: its bytes.
    """

    device: int
    inode: int
    length: int


@dataclass(frozen=True)
class Portion:
    """What of a batch goes into one file.

    Attributes:
        texts: the first texts of the batch.
        data: those, encoded.
        start: where they are going to stand.
        state: of the encoder before them.
    """

    texts: list[str]
    data: bytes
    start: Position
    state: Any

    @property
    def end(self) -> Position:
        """How far the file is written behind them."""
        return self.start._replace(length=self.start.length + len(self.data))


class FileWriter(TextHandler):
    """A handler that writes files, and whose writing can be taken back. Runs in the logging process.

    Attributes:
        announce: called with each portion before it is written.
    """

    announce: Callable[[Portion], object] | None = None
    can_wait = True

    def resume(self, committed: Position, announced: int) -> int:
        """Take back what the logging process that was killed had written without noting it."""
        raise NotImplementedError

    def takes_back(self, inode: int) -> bool:
        """Whether that file goes when `resume` is called for the one that was the log before."""
        return False

    def settle(self) -> None:
        """Forget how to take back what was written: it is noted that all of it is there."""

    def reopen(self) -> None:
        """Open the files anew: somebody may have moved them."""
        raise NotImplementedError

    def due(self) -> float | None:
        """Return the time of the monotonic clock at which `work` has something to do, None for no such time."""
        raise NotImplementedError

    def work(self) -> None:
        """Do what is due."""
        raise NotImplementedError

    def sync(self) -> bool:
        """Force what was written to the disk; return whether it is there."""
        raise NotImplementedError

    def take_notices(self) -> list[str]:
        """Return what there is to say in the log, each time with what is new."""
        raise NotImplementedError


class LogFileHandler(FileWriter):
    """Writes to a file, holds its lock, and rotates it. Runs in the logging process.

    `write` is all that a batch needs. Whoever wants to be able to take a batch back, because it has been killed in the
    middle of it, does what `write` does: `prepare` the first portion of the texts, note its `start` and `end`,
    `write_portion`, note that it is written, and go on with the texts that are left. Files are rotated in `prepare`
    alone, so when everything before has been noted. After a restart, `resume` takes back what was not.

    What it has to say (the file was moved, rotation fails) waits in `take_notices`.

    Args:
        path: the file.
        encoding: its encoding.
        permissions: of files that are created.
        owner: user and group of files that are created, as os.chown takes them.
        follow_symlinks: whether the path may be a symbolic link.
        rotation: when the file is rotated, if ever.
        fsync: "never", "batch", or the seconds after which what was written is forced to the disk.
        delay: whether a file that was not there is removed at the end if nothing was written to it.
        clock: returns the seconds since the epoch.
        monotonic: returns seconds that never go back.

    Attributes:
        written: how many texts of the batch are wholly in the file, behind an error.
        announce: called with each portion before it is written.

    Raises:
        LogFileLockedError: another logging process writes the file.
        OSError: the file cannot be opened, or is not a regular file.
    """

    def __init__(
        self,
        path: str,
        *,
        encoding: str,
        permissions: int,
        follow_symlinks: bool,
        owner: tuple[int, int] | None = None,
        rotation: Rotation | None = None,
        fsync: Fsync = "never",
        delay: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        # What is rotated is the file, and not a link to it.
        self._path = os.path.realpath(path) if follow_symlinks else path
        self._new_path = os.path.join(os.path.dirname(self._path), f".{os.path.basename(self._path)}.new")
        self._permissions = permissions
        self._owner = owner
        self._follow_symlinks = follow_symlinks
        self._fsync = fsync
        self._removes_empty = delay and not os.path.lexists(self._path)
        self._clock = clock
        self._monotonic = monotonic
        self._notices: collections.deque[str] = collections.deque()
        self._noticed_at: dict[str, float] = {}
        self._fd = -1
        self._owner_lock: filelock.BaseFileLock | None = None
        self._archives: Archives | None = None
        self._rotation = rotation
        self._size_limit = rotation.size if rotation else None
        self._schedules = rotation.schedules if rotation else ()
        self._zone = rotation.zone if rotation else None
        self._retry_at = -math.inf
        self._sync_at: float | None = None
        self._is_tidy = rotation is None
        self.written = 0
        try:
            self._owner_lock = file_lock.acquire(self._path)
            self._encoder = codecs.getincrementalencoder(encoding)("backslashreplace")
            self._finish_rotation()
            self._open()
            if rotation is not None:
                with contextlib.suppress(OSError):  # what cannot be removed is in the way of a rotation, which says so
                    os.unlink(self._new_path)
                self._archives = Archives(self._path, rotation, clock=clock, say=self._say)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LogFileHandler {self._path}>"

    @property
    def path(self) -> str:
        """The path of the log."""
        return self._path

    # --- the open file ---

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._fd

    def _open(self) -> None:
        fd, is_new = regular_file.open_for_appending(
            self._path, self._permissions, owner=self._owner, follow_symlinks=self._follow_symlinks
        )
        try:
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self._sync_now()
        self._adopt(fd, status.st_size, status.st_mtime)
        if is_new:
            self._sync_directory()

    def _finish_rotation(self) -> None:
        """Finish what another logging process was doing when it died, before the file is opened."""

    def _adopt(self, fd: int, length: int, written_at: float) -> None:
        """Go on in another file, of that length, which was last written at that time."""
        before, self._fd = self._fd, fd
        if before >= 0:
            with contextlib.suppress(OSError):
                os.close(before)
        self._length = length
        #: Where the file is to be cut because the last record could not be taken back.
        self._cut_at: int | None = None
        self._looked_at = self._monotonic()
        self._written_at = written_at if length else self._clock()
        self._timer = Timer(self._schedules, self._zone, self._written_at)
        self._set_encoder()

    def _set_encoder(self) -> None:
        if self._length:
            self._encoder.setstate(0)  # no byte order mark but at the beginning of the file
        else:
            self._encoder.reset()

    def position(self) -> Position:
        """Return how far the file is written, without what is to be taken back."""
        status = os.fstat(self._fd)
        length = status.st_size if self._cut_at is None else self._cut_at
        return Position(status.st_dev, status.st_ino, length)

    def reopen(self) -> None:
        """Write what is there, and open the path anew, as for SIGHUP: somebody may have moved the file.

        Raises:
            OSError: it cannot be opened; the file that is open is gone on with.
        """
        self.flush()
        self._take_back()
        self._open()

    def _look(self) -> Position:
        """Notice what others have done to the file, and return how far it is written.

        Raises:
            OSError: it was deleted, and cannot be opened anew.
        """
        status = os.fstat(self._fd)
        if not status.st_nlink:
            self._open()
            self._say("deleted", f"{self._path} was deleted; the log goes on in a new file")
            status = os.fstat(self._fd)
        elif status.st_size < self._length:
            self._say(
                "truncated",
                f"{self._path} was truncated from {self._length} bytes to {status.st_size}; the log goes on",
            )
            self._length = status.st_size
            self._set_encoder()
        now = self._monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            with contextlib.suppress(OSError):  # nobody can say at the moment
                if self._is_moved(status):
                    self._follow_move()
                    status = os.fstat(self._fd)
        self._length = status.st_size
        return Position(status.st_dev, status.st_ino, status.st_size)

    def _is_moved(self, status: os.stat_result) -> bool:
        """Whether the path does not lead to the open file any more."""
        try:
            return not os.path.samestat(os.stat(self._path, follow_symlinks=self._follow_symlinks), status)
        except FileNotFoundError:
            return True

    def _follow_move(self) -> None:
        """Open the path anew."""
        try:
            self._open()
        except OSError as error:
            self._say(
                "not moved",
                f"{self._path} was moved, and cannot be opened anew; the log goes on in the file that was moved: "
                f"{_reason(error)}",
            )
        else:
            self._say("moved", f"{self._path} was moved; the log goes on in a new file")

    # --- writing ---

    def take(self, sources: Sequence[Entry | logging.LogRecord], texts: Sequence[str]) -> None:
        """Take what somebody else has rendered, for the next `flush`."""
        with self._adding:
            self._sources += sources
            self._texts += texts

    def write(self, texts: list[str]) -> None:
        """Write the texts; on an error, set `written` to the number of those that are wholly in files, and raise."""
        self.written = 0
        rest = texts
        while rest:
            portion = self.prepare(rest)
            if self.announce is not None:
                self.announce(portion)
            self.write_portion(portion)
            rest = rest[len(portion.texts) :]

    def prepare(self, texts: list[str]) -> Portion:
        """Return what of the texts comes next into the file, having rotated that first if it was due.

        Nothing is written. What has been prepared must be written before anything else is prepared, or never.

        Args:
            texts: at least one.

        Raises:
            OSError: nothing can be written at the moment.
        """
        self._take_back()
        start = self._look()
        portion = self._fit(texts, start)
        if not start.length:
            self._timer.restart(self._clock())  # an empty file is not rotated, but begun
        elif self._may_rotate() and (not portion.texts or self._timer.is_due(self._clock())):
            self._encoder.setstate(portion.state)
            self._rotate()
            start = self.position()
            portion = self._fit(texts, start)
            if not portion.texts:
                portion = self._encode(texts, start)
        return portion

    def _may_rotate(self) -> bool:
        return self._archives is not None and self._monotonic() >= self._retry_at

    def _fit(self, texts: list[str], start: Position) -> Portion:
        """Return as many of the texts as fit into the file; none where that is to be rotated first."""
        # No text has fewer bytes than characters, so what is too long as it is need not be encoded to know.
        if self._size_limit is None or not self._may_rotate():
            return self._encode(texts, start)
        room = self._size_limit - start.length
        state = self._encoder.getstate()
        if sum(map(len, texts)) <= room:
            portion = self._encode(texts, start)
            if len(portion.data) <= room:
                return portion
            self._encoder.setstate(state)
        pieces: list[bytes] = []
        size = 0
        for text in texts:
            before = self._encoder.getstate()
            piece = self._encoder.encode(text)
            if size + len(piece) > room and (pieces or start.length):
                self._encoder.setstate(before)
                break
            pieces.append(piece)
            size += len(piece)
        return Portion(texts[: len(pieces)], b"".join(pieces), start, state)

    def _encode(self, texts: list[str], start: Position) -> Portion:
        state = self._encoder.getstate()
        return Portion(texts, self._encoder.encode("".join(texts)), start, state)

    def write_portion(self, portion: Portion) -> None:
        """Write what `prepare` has returned, and add the number of its texts to `written`.

        Raises:
            OSError: some texts are not in the file. Those that are wholly in it have been added to `written`; what was
                written of another one is taken back, at the latest before anything else is written.
        """
        data = memoryview(portion.data)
        done = 0
        try:
            while done < len(data):
                count = os.write(self._fd, data[done:])
                if not count:
                    raise OSError(errno.EIO, "nothing was written")
                done += count
        except OSError:
            self._encoder.setstate(portion.state)
            whole, count = self._count_whole(portion.texts, done)
            self._length = portion.start.length + whole
            self.written += count
            # Also where nothing seems to have been written: what a failed write has left is not defined.
            self._cut_at = self._length
            with contextlib.suppress(OSError):
                self._take_back()
            raise
        self._length = portion.start.length + done
        self._written_at = self._clock()
        self.written += len(portion.texts)
        self._sync_after_write()
        if self.announce is None:
            self._tidy()

    def _count_whole(self, texts: list[str], done: int) -> tuple[int, int]:
        """Return how many of the first `done` bytes belong to whole texts, and how many texts; encode up to there."""
        whole = 0
        for count, text in enumerate(texts):
            state = self._encoder.getstate()
            size = len(self._encoder.encode(text))
            if whole + size > done:
                self._encoder.setstate(state)
                return whole, count
            whole += size
        return whole, len(texts)

    def _take_back(self) -> None:
        """Cut off the record that was written in part."""
        if self._cut_at is not None:
            if os.fstat(self._fd).st_size > self._cut_at:
                os.ftruncate(self._fd, self._cut_at)
            self._cut_at = None

    # --- rotation ---

    def _rotate(self) -> None:
        """Go on in a new file; where that fails, go on in the old one, and say so."""
        try:
            if self._is_moved(os.fstat(self._fd)):
                # What is there now is not ours to rotate.
                self._follow_move()
                return
            archive = self._swap_files()
        except (OSError, ValueError) as error:  # ValueError: a clock beyond what a date can say
            self._retry_at = self._monotonic() + _RETRY_SECONDS
            self._say(
                "rotate",
                f"{self._path} could not be rotated, and is written on; trying again every {_RETRY_SECONDS:g} seconds: "
                f"{_reason(error)}",
            )
            return
        if self._noticed_at.pop("rotate", None) is not None:
            self._notice(f"{self._path} has been rotated to {archive}")
        self._sync_directory()
        self._is_tidy = False

    def _swap_files(self) -> str:
        """Give the file its name as a rotated one, and open a new one.

        The new one is made under another name first: what can fail, has failed before anything changes. Killed between
        the two renames, there is no file of the log's name, and the next start makes one.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._new_path)
        fd = regular_file.create(self._new_path, self._permissions, owner=self._owner)
        try:
            self._sync_now()
            archive = self._put_away()
            try:
                os.rename(self._new_path, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._bring_back(archive)
                raise
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self._new_path)
            raise
        self._adopt(fd, 0, self._clock())
        return archive

    def _put_away(self) -> str:
        """Give the file its name as a rotated one, and return that."""
        assert self._archives is not None
        return self._archives.take(self._path, self._written_at)

    def _bring_back(self, archive: str) -> None:
        """Undo `_put_away`."""
        os.rename(archive, self._path)

    def settle(self) -> None:
        self._tidy()

    def _tidy(self) -> None:
        """Have rotated files compressed and removed, if there was a rotation.

        Not before everything that is in them is noted, or where nobody notes, before a portion behind them is written:
        until then, a restart looks for them by their inodes, to take back what is not.
        """
        if not self._is_tidy and self._archives is not None:
            self._is_tidy = True
            try:
                self._archives.tidy()
            except RuntimeError as error:  # no thread can be started
                self._say("tidy", f"rotated files of {self._path} could not be tidied up: {error}")

    @property
    def is_tidying(self) -> bool:
        """Whether rotated files are being compressed or removed, which `close` would hold up or abandon."""
        return self._archives is not None and self._archives.is_tidying

    # --- the disk ---

    def due(self) -> float | None:
        """Return the time of the monotonic clock at which `work` has something to do, None for no such time."""
        return self._sync_at

    def work(self) -> None:
        """Do what is due."""
        if self._sync_at is not None and self._monotonic() >= self._sync_at:
            self.sync()

    def sync(self) -> bool:
        """Force what was written to the disk, whatever the policy is; where that fails, say so, and return False."""
        try:
            self._sync_at = None
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError as error:
            # To write it again would double it, and not help: the system has forgotten what it could not write.
            self._say("sync", f"what was last written to {self._path} may not have reached the disk: {_reason(error)}")
            return False
        return True

    def _sync_now(self) -> None:
        if self._fsync != "never" and self._fd >= 0:
            self.sync()

    def _sync_after_write(self) -> None:
        if self._fsync == "batch":
            self.sync()
        elif self._fsync != "never" and self._sync_at is None:
            self._sync_at = self._monotonic() + self._fsync

    def _sync_directory(self) -> None:
        if self._fsync != "never":
            try:
                regular_file.sync_directory(os.path.dirname(self._path))
            except OSError as error:
                self._say("sync", f"the name of {self._path} may not have reached the disk: {_reason(error)}")

    # --- restart ---

    def resume(self, committed: Position, announced: int) -> int:
        """Take back what the logging process that was killed had written without noting it; return how many bytes.

        Call it before anything is written, and as often as you like.

        Args:
            committed: where the file was written up to, as noted last: the `start` of the portion that had been
                prepared, or, where none had, the `end` of the one before.
            announced: the length up to which it may have been written since: of the `end`.
        """
        if announced <= committed.length:
            return 0
        fd, is_other = self._fd, False
        try:
            if self.position()[:2] != committed[:2]:
                fd, is_other = self._find(committed), True
            status = os.fstat(fd) if fd >= 0 else None
            length = committed.length if status is None else status.st_size
            if status is None or length == committed.length:
                return 0
            if not committed.length < length <= announced:
                self._say("resume", f"{self._path} was changed by somebody else while nobody wrote it, and stays so")
                return 0
            os.ftruncate(fd, committed.length)
            # By which the next start knows when the file is due.
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            if not is_other:
                self._length = committed.length
                self._set_encoder()
            return length - committed.length
        finally:
            if is_other and fd >= 0:
                os.close(fd)

    def _find(self, committed: Position) -> int:
        """Open the file of that inode, which has been rotated or moved; return -1 where there is none."""
        path = find_moved(self._path, self._rotation, committed.device, committed.inode)
        if path is None:
            return -1
        fd, _ = regular_file.open_for_appending(path, self._permissions, make=False)
        return fd

    # --- notices ---

    def take_notices(self) -> list[str]:
        """Return what there is to say in the log, each time with what is new."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._notices.popleft())
        return taken

    def _say(self, what: str, notice: str) -> None:
        """Have something said, but the same thing once an interval only. Called from any thread."""
        now = self._monotonic()
        if now - self._noticed_at.get(what, -math.inf) >= _NOTICE_SECONDS:
            self._noticed_at[what] = now
            self._notice(notice)

    def _notice(self, notice: str) -> None:
        self._notices.append(f"mplog: {notice}")

    # --- the end ---

    def close(self) -> None:
        """Write the rest, and let go of the file."""
        try:
            self.flush()
        finally:
            self._release()
            super().close()
            for notice in self.take_notices():
                if sys.stderr is not None:
                    print(notice, file=sys.stderr, flush=True)

    def _release(self) -> None:
        if self._archives is not None:
            self._archives.close()
        if self._fd >= 0:
            self._sync_now()
            with contextlib.suppress(OSError):
                status = os.fstat(self._fd)
                if self._removes_empty and not status.st_size and not self._is_moved(status):
                    os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1
        if self._owner_lock is not None:
            file_lock.release(self._owner_lock)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
