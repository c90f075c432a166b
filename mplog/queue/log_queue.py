"""`LogQueue`: a queue between processes that no death of a process can break.

::

    put() in any process, any thread,          |          get() in one process (or the logging process,
    a signal handler, a fork of a fork         |          which reads in bulk)
                                               |
    Sender: object -> payload -> frame(s) -- write, atomic --> FIFO --> frames -> payload -> object: Reader

Nothing but the kernel holds what is between the two. `LogQueue` gives both the methods of ``multiprocessing.Queue``.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing.queues
import multiprocessing.util
import os
import select
import sys
import tempfile
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mplog.errors import MplogError, QueueNotFoundError
from mplog.queue import directory as queue_directory
from mplog.queue import fifo
from mplog.queue.descriptor import NONE
from mplog.queue.fifo import monotonic
from mplog.queue.losses import Losses
from mplog.queue.overflow import Overflow
from mplog.queue.sender import Sender
from mplog.queue.sync import Sync

if TYPE_CHECKING:
    from mplog.queue.reader import Reader

    _Base = multiprocessing.queues.Queue[Any]
else:
    _Base = multiprocessing.queues.Queue

#: What Linux grants every user (/proc/sys/fs/pipe-max-size): some 5,000 records of usual length.
DEFAULT_SIZE = 2**20


def _of_sender(name: str) -> Any:
    """Return an attribute that the `Sender` of a queue has, where workers find it without a detour."""
    return property(lambda queue: getattr(queue.sender, name), lambda queue, value: setattr(queue.sender, name, value))


class _LazyReader:
    """The `Reader` of a queue, loaded and made at its first use: no worker reads."""

    def __get__(self, queue: LogQueue | None, owner: object = None) -> Reader:
        if queue is None:
            return self  # type: ignore[return-value]  # as every descriptor, when it is looked up on the class
        from mplog.queue.reader import Reader

        reader: Reader = queue.__dict__.setdefault("reader", Reader(queue.sender))  # in one step: one for all threads
        return reader


class LogQueue(_Base):
    """A ``multiprocessing.Queue`` whose transport is a FIFO of atomic frames.

    It has the methods of ``multiprocessing.queues.Queue`` with their meaning, and these differences:

    - ``maxsize`` is in bytes of frames, not in objects, and the kernel rounds it to what it grants. `full` says that
      the next frame would have to wait.
    - ``put`` writes at once: there is no feeder thread, so `join_thread` and `cancel_join_thread` have nothing to do,
      an object that does not pickle raises in the call, and what was put survives the death of the process.
    - A ``logging.LogRecord`` travels as plain data and arrives as one, whatever its arguments are.
    - It pickles at any time, into any process of the machine, of ``multiprocessing`` and ``multiprocess``. However
      often it arrives in one, it is one object there, until that is closed.
    - An object that does not unpickle raises in `get`, and the next `get` goes on with the next one. A signal handler
      must not call `get`.
    - Several processes may take turns with `get`, as long as the objects fit into a frame (4,096 bytes on Linux): the
      parts of a longer one must all reach the same process.
    - ``put`` raises `NoReaderError` once no process is left that could read.

    The process that makes the queue keeps it readable, and removes its directory when the queue is collected or the
    process ends.

    Attributes:
        directory: where the FIFO is.
        path: of the FIFO.
        sequence: counts the records of this process, from 1.
        details: whether the thread and the place of a call are sent; the server sets it to False where no sink looks at
            them.
        overflow: what becomes of a record for which there is no room.
        sync: which records are written through; None for none.
        preparation: what adds fields to records and redacts them before they leave a process, as the server notes it
            from `Fields`; ``b""`` for nothing.
        losses: what this process has lost.

    Args:
        maxsize: room in bytes; 0 (the default) means 1 MiB.
        ctx: taken for the sake of the base class's signature, and not needed.

    Raises:
        MplogError: this platform has no FIFOs (Windows).
    """

    sequence: itertools.count[int] = _of_sender("sequence")
    details: bool = _of_sender("details")
    overflow: Overflow = _of_sender("overflow")
    sync: Sync | None = _of_sender("sync")
    preparation: bytes = _of_sender("preparation")
    losses: Losses = _of_sender("losses")
    reader = _LazyReader()

    def __init__(self, maxsize: int = 0, *, ctx: object = None) -> None:
        if not hasattr(os, "mkfifo"):
            raise MplogError(
                "LogQueue needs FIFOs, which this platform does not have. "
                "Give the server a plain queue: LogServer(..., queue=multiprocessing.Queue(10_000))."
            )
        # 0700: no other user gets at the queue. Not XDG_RUNTIME_DIR, which vanishes at logout while batch jobs go on.
        self._setup(tempfile.mkdtemp(prefix="mplog-"), is_owner=True)
        os.chmod(self.directory, 0o700)  # whatever the umask is
        fifo.create(self.path)
        self.reader.open()
        self._maxsize = fifo.set_size(self.sender.open(), maxsize if maxsize > 0 else DEFAULT_SIZE)

    def _setup(self, directory: str, *, is_owner: bool) -> None:
        fifo.forget_closed()  # before their numbers come into use again for this queue
        self.directory = directory
        self.sender = Sender(directory)
        self.path = self.sender.path
        self._maxsize = 0
        self._finalizers = _finalizers(self, directory) if is_owner else []
        _queues[directory] = self

    # The base class pickles only while a process is being started; a path may travel at any time.
    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory, self.details, self.overflow, self.sync, self.preparation)

    def __getstate__(self) -> Any:
        return self.directory

    def __repr__(self) -> str:
        return repr(self.sender)

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue; when the call returns, it is out of this process.

        Args:
            obj: a ``logging.LogRecord``, or any picklable object.
            block: wait while the queue is full.
            timeout: for how many seconds at most; None waits for ever.

        Raises:
            queue.Full: no room, within `timeout` or at once.
            ValueError: the queue is closed in this process.
            NoReaderError: no process reads the queue any more.
            MessageTooLongError: the object is over 256 MiB.
        """
        self.sender.put(obj, block, timeout)

    def put_nowait(self, obj: Any) -> None:
        """Put an object into the queue, or raise ``queue.Full`` at once."""
        self.sender.put(obj, False)

    def write(self, data: bytes | bytearray | memoryview, *, to: str = "", timeout: float | None = None) -> None:
        """Send bytes to a sink for them; when the call returns, they are out of this process.

        No overflow policy drops them: while the queue is full, the call waits. Once the logging process is given up,
        they go into the emergency file.

        Args:
            data: up to 256 MiB.
            to: the name of the sink.
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            queue.Full: no room within `timeout`; nothing was sent.
            TypeError: the data is not bytes.
            ValueError: the queue is closed in this process, or the name is over 255 bytes long.
            NoReaderError: no process reads the queue any more.
            MessageTooLongError: over 256 MiB.
        """
        self.sender.write(data, to, timeout)

    @property
    def record_putter(self) -> Callable[[bytes], None]:
        """The function that puts encoded records; with `drop_below`, it drops some before the queue is full."""
        if self.overflow.policy == "drop_below":
            from mplog.queue.fill import Shedding

            return Shedding(self.sender).put_record
        return self.sender.put_record

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object out of the queue; a log record arrives as a ``logging.LogRecord``.

        Args:
            block: wait while the queue is empty.
            timeout: for how many seconds at most; None waits for ever.

        Raises:
            queue.Empty: nothing came, within `timeout` or at once.
            ValueError: the queue is closed in this process.
        """
        return self.reader.get(block, timeout)

    def get_nowait(self) -> Any:
        """Take the next object out of the queue, or raise ``queue.Empty`` at once."""
        return self.reader.get(False, None)

    def empty(self) -> bool:
        """Return whether nothing is in the queue at this moment."""
        return not self.pending() and not self.reader.received.ready

    @property
    def fill(self) -> float:
        """How full the queue is at this moment, from 0 to 1."""
        return min(1.0, self.pending() / fifo.size(self.sender.open()))

    def pending(self) -> int:
        """Return how many bytes are in the queue at this moment."""
        return self.sender.pending()

    def full(self) -> bool:
        """Return whether the next frame would have to wait at this moment."""
        self.pending()
        return not fifo.wait(self.sender.open(), select.POLLOUT, monotonic())

    def qsize(self) -> int:
        """Return the number of objects in the queue at this moment. A look at the whole queue, not for a hot path.

        Raises:
            NotImplementedError: not on Linux (the base class raises it on macOS, too).
        """
        return self.reader.size()

    @property
    def broken(self) -> int:
        """Runs of garbage that `get` has skipped in this process, and long objects that it could not complete."""
        return self.reader.received.broken

    def close(self) -> None:
        """Close the queue in this process: neither `put` nor `get` works here any more."""
        self.sender.close()
        if "reader" in self.__dict__:
            self.reader.close_ends()

    def join_thread(self) -> None:
        """Do nothing: there is no thread, and what was put is out of the process.

        Raises:
            ValueError: the queue is not closed yet, as the base class asserts.
        """
        if not self.sender.is_closed:
            raise ValueError(f"Queue {self!r} is not closed; call close() first")

    def cancel_join_thread(self) -> None:
        """Do nothing: there is no thread to join."""

    # --- for the server ---

    def release_reader(self) -> int:
        """Return the reading end, which this object then neither has nor closes, and leave the directory to its reader.

        From then on the queue is readable for as long as the new owner of the reading end lives.
        """
        fd = self.reader.release()
        for finalizer in self._finalizers:
            finalizer.cancel()
        return fd

    def remove(self) -> None:
        """Remove the directory of the queue; processes that have it open keep it."""
        queue_directory.remove(self.directory)

    @classmethod
    def open(cls, directory: str) -> LogQueue:
        """Open the queue that another process made, by its directory.

        Raises:
            QueueNotFoundError: there is none, or no process reads it.
        """
        opened = _reopen(directory)
        try:
            if opened.sender.end is NONE:
                opened.sender.open()
            else:
                os.close(fifo.open_writer(opened.path))
        except OSError as error:  # NoReaderError, too
            is_over = isinstance(error, (BrokenPipeError, FileNotFoundError))
            reason = "its server has ended, its directory was removed, or the path is wrong" if is_over else error
            if error.errno == errno.EACCES:
                raise QueueNotFoundError(
                    f"this process (uid {os.geteuid()}) may not open the log queue in {directory!r}: {error.strerror}. "
                    "It is another user's: start its server anew, with LogServer(group=...), a group of this process."
                ) from None
            raise QueueNotFoundError(
                f"there is no log queue in {directory!r}: {reason}. Start a server: LogServer(...), or "
                "export MPLOG_QUEUE=$(mplog serve start --log app.log). Or name one that runs, by the directory of its "
                "queue or by its log: attach(...), or --queue. mplog top shows them."
            ) from None
        return opened


#: The queues of this process, by directory: two objects that read the same FIFO would tear its frames.
_queues: weakref.WeakValueDictionary[str, LogQueue] = weakref.WeakValueDictionary()


def _reopen(
    directory: str,
    details: bool = True,
    overflow: Overflow | None = None,
    sync: Sync | None = None,
    preparation: bytes = b"",
) -> LogQueue:
    opened = _queues.get(directory)
    if opened is None or opened.sender.is_closed:
        opened = LogQueue.__new__(LogQueue)
        opened._setup(directory, is_owner=False)
    opened.details = details
    opened.overflow, opened.sync = overflow or Overflow.block(), sync
    opened.preparation = preparation or opened.preparation
    return opened


def _begin_in_fork() -> None:
    """Runs in a process that has just been forked."""
    for known in list(_queues.values()):
        known.sender.begin_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_fork)


def _finalizers(owner: LogQueue, directory: str) -> list[Any]:
    """Have the directory removed when the queue is collected, and at the end of the process.

    With ``Finalize``, since a child of multiprocessing or multiprocess runs no atexit functions. At the end, since
    children for which this process still waits may not have opened the queue yet.
    """
    libraries = [multiprocessing.util, sys.modules.get("multiprocess.util")]
    return [
        library.Finalize(owner, queue_directory.remove, (directory,), exitpriority=-100)
        for library in libraries
        if library is not None
    ]
