"""How full the buffers are, as the logging process tells workers, and how `drop_below` uses it there."""

from __future__ import annotations

import contextlib
import os
import time

from mplog.queue.elsewhere import level_of
from mplog.queue.losses import Reason
from mplog.queue.sender import Sender
from mplog.queue.shared_file import PAUSE, make_file, map_file, write_file

_NAME = "fill"
_FULL = 255


class Fill:
    """How full the buffers are, in one byte of a file, which no system call is needed to read.

    The logging process makes the file (`writable`); a worker only looks, and gets an OSError while there is none.
    """

    def __init__(self, directory: str, *, writable: bool = False) -> None:
        self._path = os.path.join(directory, _NAME)
        if writable:
            make_file(self._path, 1)
        self._byte = map_file(self._path, 1)
        self._paused_until = 0.0

    def set(self, fraction: float) -> None:
        """Say how full they are, from 0 to 1. Runs in the logging process."""
        value = int(min(1.0, max(0.0, fraction)) * _FULL)
        if self._byte[0] != value and time.monotonic() >= self._paused_until:
            try:
                write_file(self._path, bytes((value,)))
            except OSError:  # the disk is full; a later call tries again
                self._paused_until = time.monotonic() + PAUSE

    @property
    def fraction(self) -> float:
        """How full they are, from 0 to 1, in steps of 1/255."""
        return self._byte[0] / _FULL


class Shedding:
    """Puts records, except those that `Overflow.drop_below` drops as the buffers fill. Runs in a worker."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._fill: Fill | None = None

    def put_record(self, payload: bytes) -> None:
        """Put a record, or drop it and count it."""
        if self._fill is None:
            with contextlib.suppress(OSError):  # no logging process has started yet, or no descriptor is left
                self._fill = Fill(self._sender.directory)
        overflow = self._sender.overflow
        if self._fill is not None and self._fill.fraction >= overflow.at and overflow.sheds(level_of(payload)):
            self._sender.count(payload, Reason.SHED)
        else:
            self._sender.put_record(payload)
