"""What a process has lost, counted so that the counts survive the process.

::

    worker: Losses.count() --> a file in the queue's directory, mapped --> ProcessLosses: logging process, program

The rule of this file: **a count is in shared memory when the logging call returns.** No lock guards it, since a signal
handler may count while the thread that it has interrupted is counting.

Each process numbers its records, and a lost one has used its number up. So the numbers that are missing in the log add
up to what is counted here, except for the reasons that leave no gap (`Reason.leaves_gap`).
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import time
from collections import Counter

from mplog.queue.directory import fifo_path, open_file
from mplog.queue.shared_file import map_fd


class Reason(enum.IntEnum):
    """Why a record is not in the queue, or not as it should be."""

    #: The queue was full, and the policy drops at once.
    QUEUE_FULL = 1
    #: The queue was full for as long as the policy lets a call wait.
    TIMEOUT = 2
    #: Its level was below that of `Overflow.drop_below`, and the buffers were filling up.
    SHED = 3
    #: It was among the oldest in full buffers.
    OLDEST = 4
    #: No process reads the queue any more.
    REJECTED = 5
    #: The call raised, because of Ctrl-C while it waited, a closed queue, or no descriptor left to open the queue.
    INTERRUPTED = 6
    #: It was to be kept, and the emergency file had no room either.
    NO_EMERGENCY = 7
    #: It is in the emergency file, and the logging process takes it from there later.
    EMERGENCY = 8
    #: No record has this number, since the call was encoded again, or ``put()`` has raised ``queue.Full``.
    UNUSED = 9
    #: Its long texts were cut.
    TRUNCATED = 10
    #: It was to be written through, and was not on disk in time; it arrives like any other.
    UNSYNCED = 11

    @property
    def is_loss(self) -> bool:
        """Whether the record is not in the log and never will be."""
        return self <= Reason.NO_EMERGENCY

    @property
    def leaves_gap(self) -> bool:
        """Whether its number is missing among those that come through the queue."""
        return self <= Reason.UNUSED

    @property
    def text(self) -> str:
        """Why the record was dropped, in words; for a loss."""
        return _TEXTS[self]


_TEXTS = {
    Reason.QUEUE_FULL: "queue full",
    Reason.TIMEOUT: "queue full until the timeout",
    Reason.SHED: "buffers filling up",
    Reason.OLDEST: "oldest in full buffers",
    Reason.REJECTED: "nobody read the queue",
    Reason.INTERRUPTED: "interrupted by an exception",
    Reason.NO_EMERGENCY: "queue full, and the emergency file could not be written",
}


# --- the file ---

PREFIX = "losses-"
MAGIC = b"mplogls1"
_NAME_SIZE = 256
HEADER = struct.Struct(f"=8sqd{_NAME_SIZE}sQ")  # magic, pid, began, name, PID namespace
FIRST_ROW = 512
SIZE = 4096
# A row is four words: level, reason, count, and one that is not used.
_WORD = 8
ROW = 4
COUNT = 2
_ROWS = (SIZE - FIRST_ROW) // (ROW * _WORD)
# The first rows, by reason, are those of level 0, and of all levels for which no row is left.
_FIRST_OWN_ROW = len(Reason) + 1


class Losses:
    """What this process has lost. The file in the directory of the queue is made with the first loss.

    Without a descriptor to open the file with, or without room for it, the counts wait in the process, and go into the
    file with a later loss. If the process ends before that, only the gap in its numbers is left.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._counts: Counter[tuple[int, int]] = Counter()
        self._rows: dict[tuple[int, int], int] = {(0, int(reason)): int(reason) for reason in Reason}
        self._free_rows = iter(range(_FIRST_OWN_ROW, _ROWS))
        #: Of a file that another program has removed.
        self._path = ""

    def count(self, level: int, reason: Reason, name: str | None) -> None:
        """Count a record of a level; `name` is that of the process, as its records have it."""
        key = (max(-(2**62), min(level, 2**62)), int(reason))
        if key not in self._rows:
            row = next(self._free_rows, None)
            if row is None:
                key = (0, int(reason))
            else:
                self._rows.setdefault(key, row)
        self._counts.update((key,))  # in one step, whatever other threads and signal handlers do (one C function)
        file = self.__dict__.get("file")
        if file is not None:
            path, words = file
            if os.path.exists(path):
                self._store(words, key)
                return
            self._path = path  # the same name again: the log may have said some of the counts
            self.__dict__.pop("file", None)
        with contextlib.suppress(OSError):
            words = self._make(name or "")
            for key in list(self._counts):
                self._store(words, key)

    @property
    def counts(self) -> dict[tuple[int, Reason], int]:
        return {(level, Reason(reason)): count for (level, reason), count in self._counts.items()}

    def _store(self, words: memoryview, key: tuple[int, int]) -> None:
        start = self._rows[key] * ROW
        words[start], words[start + 1] = key
        # Another thread may count, and store, between any two steps. The last one stores the last count.
        while words[start + COUNT] != self._counts[key]:
            words[start + COUNT] = self._counts[key]

    def _make(self, name: str) -> memoryview:
        """Make the file, and return its rows. If two threads do at once, one file is kept."""
        encoded = name.encode("utf-8", "replace")[:_NAME_SIZE]
        began = time.time()
        path = self._path or os.path.join(self._directory, f"{PREFIX}{os.getpid()}-{os.urandom(8).hex()}")
        fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.write(fd, HEADER.pack(MAGIC, os.getpid(), began, encoded, pid_namespace()))
            made = memoryview(map_fd(fd, SIZE))[FIRST_ROW:].cast("q")
            os.stat(fifo_path(self._directory))  # if it is gone, the directory is just being removed
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        file: tuple[str, memoryview] = self.__dict__.setdefault("file", (path, made))
        if file[1] is not made:
            os.unlink(path)
        return file[1]


def pid_namespace() -> int:
    """Return the number of the PID namespace, in which the pids of this process are valid; 0 where there are none."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0
