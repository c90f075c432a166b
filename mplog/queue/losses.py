"""What a process has lost, counted so that the counts survive the process.

::

    worker: Losses.count() --> a file in the queue's directory --> ProcessLosses: logging process, program
                      `- no file: a frame in the queue, with the next record (`Sender`) ---> logging process

The rule of this file: **a count is in the file when the logging call returns.** Nothing waits for a lock, since a
signal handler may count while the thread that it has interrupted is counting.

Each process numbers its records, and a lost one has used its number up. So the numbers that are missing in the log add
up to what is counted here, except for the reasons that leave no gap (`Reason.leaves_gap`).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from mplog.queue.descriptor import NONE, Descriptor, out_of_the_way
from mplog.queue.directory import current_fifo_path, open_file, workers_path
from mplog.queue.fifo import monotonic
from mplog.queue.shared_file import PAUSE, write_at


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
    #: The logging process died while it handled the record, several times, or had no memory for it.
    SET_ASIDE = 8
    #: It is in the emergency file, and the logging process takes it from there later.
    EMERGENCY = 9
    #: No record has this number, since the call was encoded again, or ``put()`` has raised ``queue.Full``.
    UNUSED = 10
    #: Its long texts were cut.
    TRUNCATED = 11
    #: It was to be written through, and was not on disk in time; it arrives like any other.
    UNSYNCED = 12

    @property
    def is_loss(self) -> bool:
        """Whether the record is not in the log, and will not come by itself."""
        return self <= Reason.SET_ASIDE

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
    Reason.NO_EMERGENCY: "the emergency file could not be written",
    Reason.SET_ASIDE: "the logging process could not handle it",
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
_ROW = struct.Struct("=qqq")
_ROWS = (SIZE - FIRST_ROW) // (ROW * _WORD)
# The first rows, by reason, are those of level 0, and of all levels for which no row is left.
_FIRST_OWN_ROW = len(Reason) + 1


class Losses:
    """What this process has lost. The file in the directory of the queue is made with the first loss.

    Where that fails, since the process has another user or root directory by now, or no descriptor, or the disk no
    room, the counts wait in the process (`are_waiting`). They go into the file with a later loss, or into the queue
    before a later record. If the process ends first, only the gap in its numbers is left.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._name = ""
        #: Held while the file is made, and while counts are sent, so that none is in both.
        self._placing = threading.Lock()
        self._sent: Counter[tuple[int, int]] = Counter()
        self._counts: Counter[tuple[int, int]] = Counter()
        self._rows: dict[tuple[int, int], int] = {(0, int(reason)): int(reason) for reason in Reason}
        self._free_rows = iter(range(_FIRST_OWN_ROW, _ROWS))
        #: The keys of counts that could not be written.
        self._waiting: set[tuple[int, int]] = set()
        #: The threads that are writing.
        self._writing: set[int] = set()
        self._paused_until = 0.0
        self._file: _OpenFile | None = None

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
        self._name = name or ""
        if monotonic() < self._paused_until:
            self._waiting.add(key)
            return
        me = threading.get_ident()
        if me in self._writing:
            # This is a signal handler, and the call that it has interrupted looks at what waits. One that wrote here
            # could itself be interrupted, and so on, without end.
            self._waiting.add(key)
            return
        self._writing.add(me)
        try:
            self._write(key)
            tried: set[tuple[int, int]] = set()
            while (waiting := self._waiting.copy()) != tried:
                for each in waiting:
                    self._write(each)
                tried = self._waiting.copy()  # what cannot be written now
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._paused_until = monotonic() + PAUSE
        finally:
            self._writing.discard(me)

    @property
    def are_waiting(self) -> bool:
        """Whether there are counts that are not in a file, and were not sent."""
        # Sums are taken in one step, too; a comparison would fail if another thread counted meanwhile.
        return self._file is None and self._sent.total() != self._counts.total()

    def send_waiting(self, send: Callable[[str, dict[tuple[int, Reason], int]], object]) -> None:
        """Send the counts that wait, with the name of the process, in portions that fit into a frame.

        If that raises, or another thread is doing it, they go on waiting.
        """
        if not self._placing.acquire(blocking=False):
            return
        try:
            while self.are_waiting:
                waiting = dict(itertools.islice((self._counts.copy() - self._sent).items(), 10))
                counts = {(level, Reason(reason)): count for (level, reason), count in waiting.items()}
                send(self._name, counts)
                self._sent.update(waiting)
        finally:
            self._placing.release()

    @property
    def counts(self) -> dict[tuple[int, Reason], int]:
        return {(level, Reason(reason)): count for (level, reason), count in self._counts.items()}

    def _write(self, key: tuple[int, int]) -> None:
        self._waiting.discard(key)  # first: another thread that fails meanwhile adds it again
        try:
            file = self._file
            if file is None or file.is_gone():
                if not self._placing.acquire(blocking=False):
                    self._waiting.add(key)
                    if self._placing.locked():
                        return None  # whoever has it looks afterwards at what waits
                    return self._write(key)
                try:
                    file = self._file = self._make(file)
                finally:
                    self._placing.release()
            written = -1
            # Another thread may count, and write, between any two steps. The last one writes the last count.
            while written != (count := self._counts[key] - self._sent[key]):
                file.write(_ROW.pack(*key, count), self._position(key))
                written = count
        except BaseException:
            self._waiting.add(key)
            raise

    def _position(self, key: tuple[int, int]) -> int:
        return FIRST_ROW + self._rows[key] * ROW * _WORD

    def _make(self, gone: _OpenFile | None) -> _OpenFile:
        name = f"{PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
        # A file that was removed gets its name again: the log may have said some of the counts.
        path = os.path.join(workers_path(self._directory), name) if gone is None else gone.path
        content = bytearray(SIZE)
        encoded = self._name.encode("utf-8", "replace")[:_NAME_SIZE]
        HEADER.pack_into(content, 0, MAGIC, os.getpid(), time.time(), encoded, pid_namespace())
        for key, count in list(self._counts.items()):
            _ROW.pack_into(content, self._position(key), *key, count - self._sent[key])
        made = _OpenFile(path)
        try:
            made.write(bytes(content), 0)
            os.stat(current_fifo_path(self._directory))  # if it is gone, the directory is just being removed
        except BaseException:
            os.unlink(path)
            raise
        return made


class _OpenFile:
    """A new file that stays open, in a program that may close its descriptor, and use the number for another file."""

    _end = NONE

    def __init__(self, path: str) -> None:
        self.path = path
        self._open(os.O_CREAT | os.O_EXCL)

    def _open(self, flags: int) -> None:
        fd = open_file(self.path, flags | os.O_WRONLY)
        self._end = Descriptor(out_of_the_way(fd))

    def is_gone(self) -> bool:
        """Return whether the file was removed; open it again if it was closed."""
        try:
            if not self._end.is_ours():
                self._open(0)
        except FileNotFoundError:
            return True
        return os.fstat(self._end.fd).st_nlink == 0

    def write(self, data: bytes, position: int) -> None:
        """Write all of the data at a position; to be called right after `is_gone`."""
        write_at(self._end.fd, data, position)

    def __del__(self) -> None:
        if sys is not None and not sys.is_finalizing():
            self._end.close()


def pid_namespace() -> int:
    """Return the number of the PID namespace, in which the pids of this process are valid; 0 where there are none."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0
