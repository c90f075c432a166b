"""The sink that is a file per worker, per task, per whatever a record says."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import msgspec

from mplog.files import lock as file_lock
from mplog.files.names import FileNames
from mplog.files.rotation import rotator_of
from mplog.files.rotation_rules import ArchiveName
from mplog.handlers.log_file import LogFileHandler
from mplog.handlers.routed import RoutedFileHandler
from mplog.sinks.file import FileSink


class RoutedFileSink(FileSink):
    """Files whose names tell what is in them: one per worker, per task, per logger.

    >>> RoutedFileSink("logs/{processName}.log", rotate="100 MB", keep=5)                      # doctest: +SKIP
    >>> RoutedFileSink("jobs/{job}.log")       # logging.info("started", extra={"job": 42})    # doctest: +SKIP

    In a value, anything except ASCII letters, digits and ``-_.+@=,`` is escaped as in a URL, so that no value leaves
    the directory and no two share a file. On a file system that does not tell upper case from lower, the second of two
    values that differ in nothing else is refused and counted.

    Args:
        path: an existing directory, and the pattern of a file name. Its fields are attributes of a record that say
            where it comes from (``{processName}``, ``{process}``, ``{name}``, ``{levelname}``, ``{threadName}``,
            ``{taskName}``, ...) or names of fields in ``extra``, `mplog.context` or the server's ``fields``. ``{{`` and
            ``}}`` are braces.
        missing: the value of a field that a record does not have: ``"none"`` by default.
        max_open: how many files are open at most, each with its lock: 64 by default, and up to twice as many while
            rotated files are being compressed. A file that is closed is opened again when it is written, which costs
            some 0.3 ms. While it is closed, another server may take it.
        encoding, mode, owner, follow_symlinks, rotate, keep, compress, timezone, fsync: of each file, see `FileSink`,
            also for what is raised. `keep` counts the rotated files of each.
        level, format, filters, logger, propagate, escape: see `Sink`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, missing: str = "none", max_open: int = 64, **options: Any
    ) -> None:
        if options.get("archive") is not None:
            raise ValueError(
                "archive= is for a single file: each routed file names its own rotated files. Leave archive= out"
            )
        directory, pattern = os.path.split(os.fspath(path))
        if "{" in directory and not os.path.isdir(directory):
            raise ValueError(
                f"{os.fspath(path)!r} has a field in its directory: only the name of the file may have fields, so that "
                "all files are in one directory. Write 'logs/{processName}.log'"
            )
        if not isinstance(max_open, int) or isinstance(max_open, bool) or max_open < 1:
            raise ValueError(f"max_open is a number of files, at least 1, not {max_open!r}")
        if not isinstance(missing, str):
            raise TypeError(f"missing is a text, not {missing!r}")
        self.names = FileNames(pattern, missing)
        super().__init__(path, **options)
        self.max_open = max_open

    def clear_up(self) -> None:
        directory = os.path.dirname(self.path)
        super().clear_up()
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                if name.startswith(f".{self.names.texts[0]}") and name.endswith(f"{self.names.texts[-1]}.lock"):
                    file_lock.clear_up(os.path.join(directory, name[1:].removesuffix(".lock")))

    def make_handler(self) -> logging.Handler:
        return RoutedFileHandler(self.path, self.names, self._make_file, max_open=self.max_open)

    def _make_file(self, path: str) -> LogFileHandler:
        rotation = self.rotation
        if rotation is not None:
            rotation = msgspec.structs.replace(rotation, name=ArchiveName(None, os.path.basename(path)))
        return LogFileHandler(path, self.file_options, rotator=rotator_of(rotation))
