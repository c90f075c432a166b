"""Forcing a file to the disk, so that it survives a power loss."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from mplog.files import regular
from mplog.files.notices import Clock, Notices
from mplog.record.encoding import describe

#: "never", after each "batch", or at the latest after this many seconds.
FsyncPolicy = Literal["never", "batch"] | float


class Fsync:
    """Forces a file to the disk as its policy says. `due`: when to call `sync`, by the monotonic clock, or None.

    `doubt` is called with an error of the file.
    """

    def __init__(
        self, path: str, policy: FsyncPolicy, notices: Notices, clock: Clock, doubt: Callable[[OSError], object]
    ) -> None:
        self._path = path
        self._policy = policy
        self._notices = notices
        self._clock = clock
        self._doubt = doubt
        self.due: float | None = None

    def sync(self, fd: int) -> bool:
        """Force what was written to the disk, whatever the policy is; if that fails, say so and return False."""
        try:
            self.due = None
            getattr(os, "fdatasync", os.fsync)(fd)
        except OSError as error:
            # Writing it again would double it and not help: the kernel has dropped the pages that it could not write.
            self.say(error)
            self._doubt(error)
            return False
        return True

    def say(self, error: OSError) -> None:
        self._notices.say(
            "sync", f"what was last written to {self._path} may not have reached the disk: {describe(error)}"
        )

    def sync_after_write(self, fd: int) -> None:
        if self._policy == "batch":
            self.sync(fd)
        elif self._policy != "never" and self.due is None:
            self.due = self._clock.monotonic() + self._policy

    def sync_before_close(self, fd: int) -> None:
        if self._policy != "never" and fd >= 0:
            self.sync(fd)

    def sync_name(self) -> None:
        """Do what the policy says for the name of a new or renamed file."""
        if self._policy != "never":
            try:
                regular.sync_directory(os.path.dirname(self._path))
            except OSError as error:
                self._notices.say("sync", f"the name of {self._path} may not have reached the disk: {describe(error)}")
