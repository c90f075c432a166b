"""The sink that is a file. Wrong arguments raise here, in the program."""

from __future__ import annotations

import datetime
import errno
import logging
import math
import os
import re
from collections.abc import Callable
from typing import Any, Literal

from mplog.errors import SinkError
from mplog.files import lock as file_lock
from mplog.files import regular
from mplog.files.fsync import FsyncPolicy
from mplog.files.open_file import FileOptions
from mplog.files.rotation import rotator_of
from mplog.files.rotation_rules import make_rotation
from mplog.handlers.log_file import LogFileHandler
from mplog.record.encoding import describe
from mplog.sinks.sink import Sink


class FileSink(Sink):
    """A file, which one logging process at a time writes.

    >>> FileSink("app.log", rotate="100 MB or midnight", keep="14 days", compress="gz")            # doctest: +SKIP

    Args:
        path: the file; a relative path is taken from the current directory of this moment.
        encoding: its encoding. A character that it does not have is written as an escape.
        mode: the permissions of a file that is created: ``0o640``, or ``"640"`` as in JSON, which has no octal numbers.
        owner: of a file that is created: ``"user"``, ``"user:group"`` or ``":group"``, names or numbers; None (the
            default) leaves that to the system. Only root may give a file to another user.
        follow_symlinks: open the file even if `path` is a symbolic link. Off by default, since any user who may write
            to the log's directory could then make the program write anywhere.
        rotate: when to go on in a new file: a size (``"100 MB"``, or a number of bytes), which only a file with a
            single, longer record exceeds; an interval (``"1 hour"``, counted from midnight); a time of day or a day
            (``"midnight"``, ``"at 04:30"``, ``"monday"``, ``"monthly"``); several (``"100 MB or midnight"``). An idle
            log is rotated at its next record. None (the default) is never.
        archive: the names of rotated files, in the directory of the log: directives of strftime, for the time of the
            file's last record, and an index. By default ``app.%Y-%m-%d.{index:03}.log`` for ``app.log``: those names
            sort as the records do, and a file that is rotated once is never renamed again.
        keep: how many rotated files to keep (``10``), for how long (``"14 days"``) or up to which size of all together
            (``"2 GB"``), or several (``"14 days and 2 GB"``). None (the default) keeps all. Files are removed when the
            log is opened, and after each rotation.
        compress: ``"gz"``, or ``"zst"`` (before Python 3.14 with the extra ``mplog[zstd]``): rotated files are
            compressed in the background.
        timezone: of `rotate` and `archive`: ``"UTC"``, ``"Europe/Berlin"``, or a tzinfo; None (the default) is local
            time.
        fsync: when to force what was written to the disk, so that it survives a power loss: ``"never"`` (the
            default, since it costs a disk's latency), after every ``"batch"``, or at most so many seconds later.
        level, format, filters, logger, propagate, escape: see `Sink`.

    Raises:
        ValueError: an argument is not understood; the message says what is.
        ModuleNotFoundError: ``"zst"`` without that extra, before Python 3.14.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encoding: str = "utf-8",
        mode: int | str = 0o640,
        owner: str | None = None,
        follow_symlinks: bool = False,
        rotate: str | int | None = None,
        archive: str | None = None,
        keep: str | int | None = None,
        compress: Literal["gz", "zst"] | None = None,
        timezone: str | datetime.tzinfo | None = None,
        fsync: FsyncPolicy = "never",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not isinstance(encoding, str):
            raise TypeError(f"encoding is the name of one, 'utf-8', not {encoding!r}")
        "".encode(encoding)
        if not isinstance(follow_symlinks, bool):
            raise TypeError(f"follow_symlinks is True or False, not {follow_symlinks!r}")
        self.path = _to_path(path)
        self.file_options = FileOptions(
            encoding, _check_mode(mode), regular.read_owner(owner), follow_symlinks, _check_fsync(fsync)
        )
        self.rotation = make_rotation(os.path.basename(self.path), rotate, archive, keep, compress, timezone)

    def describe(self) -> str:
        return repr(self.path)

    def check(self) -> None:
        """Raise a SinkError if it can be seen, without opening the file, that it could not be written."""
        try:
            self.check_path()
        except OSError as error:
            reason = describe(error)
            raise SinkError(f"{self} could not be opened: {reason}", sink=repr(self), reason=reason) from None

    def check_path(self) -> None:
        """Raise an OSError, as `check` does."""
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            raise FileNotFoundError(errno.ENOENT, f"its directory {directory} does not exist. Create it first")
        length = len(os.fsencode(os.path.basename(self.path)))
        most = (os.pathconf(directory, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255) - DERIVED
        if length > most:
            raise OSError(
                errno.ENAMETOOLONG,
                f"its name has {length} bytes, and may have {most}: its lock, for one, has a longer name. "
                "Choose a shorter one",
            )
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, "Is a directory. Name a file in it")
        try:
            os.lstat(self.path)
        except (FileNotFoundError, PermissionError):
            pass  # the next checks say more
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}. Correct the path") from None
        place = self.path if os.path.exists(self.path) else directory
        if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, f"{place} may not be written. Correct its permissions, or the path")

    def clear_up(self) -> None:
        """Remove the lock file of a logging process that has died."""
        file_lock.clear_up(os.path.realpath(self.path) if self.file_options.follow_symlinks else self.path)

    def make_handler(self) -> logging.Handler:
        return self.open_file()

    def open_file(self, kind: Callable[..., LogFileHandler] = LogFileHandler, **options: Any) -> LogFileHandler:
        """Return a handler of this kind, with options of its own. Runs in the logging process."""
        return kind(self.path, self.file_options, rotator=rotator_of(self.rotation), **options)


#: Bytes by which the longest name that is made from the name of a log is longer.
DERIVED = max(
    map(len, ("..emergency.reading.2", "..emergency.set-aside", ".2026-11-29_18-30-00", "..renames.1234567890"))
)


def _to_path(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is that of a file, 'app.log', not {path!r}")
    if "\0" in os.fspath(path):
        raise ValueError(f"path={path!r} has a NUL character, which no path may have")
    return os.path.abspath(path)


def _check_mode(mode: object) -> int:
    if isinstance(mode, str) and re.fullmatch("(0o?)?[0-7]{3}", mode):
        return int(mode, 8)
    # 640, as it is given to chmod(1), is 0o1200.
    if isinstance(mode, int) and not isinstance(mode, bool) and 0 <= mode <= 0o777:
        return mode
    raise ValueError(f"mode={mode!r} is not a file mode. Write it in octal: mode=0o640, or '640'")


def _check_fsync(fsync: object) -> FsyncPolicy:
    if fsync in ("never", "batch"):
        return fsync
    if isinstance(fsync, (int, float)) and not isinstance(fsync, bool) and 0 < fsync < math.inf:
        return float(fsync)
    raise ValueError(f"fsync is 'never', 'batch', or a number of seconds above 0, not {fsync!r}")
