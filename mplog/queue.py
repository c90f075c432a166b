"""`LogQueue`: a queue between processes that no death of a process can break.

::

    put() in any process, any thread,          |          get() in one process (or the logging process,
    a signal handler, a fork of a fork         |          which reads in bulk)
                                               |
    object -> payload -> frame(s) ---- write, atomic ----> FIFO ----> frames -> payload -> object

The rule of this file: **when put() has returned, the object is out of the process**, and nothing but the kernel holds
it. There is no lock to die with, no thread to forget, no buffer to flush.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing.queues
import os
import queue
import select
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from mplog import frame, record
from mplog.errors import MessageTooLongError, MplogError, NoReaderError, QueueNotFoundError, ServerStateError

if sys.platform != "win32":
    from mplog import fifo

__all__ = ["LogQueue"]

_write = os.write
_pack_header = frame.HEADER.pack

if TYPE_CHECKING:
    _Base = multiprocessing.queues.Queue[Any]
else:
    _Base = multiprocessing.queues.Queue

#: What Linux grants every user (/proc/sys/fs/pipe-max-size): some 5,000 records of usual length.
DEFAULT_SIZE = 2**20

#: Bytes of a pickled object that a queue carries at most; a log record above it is cut (`record.MAX_RECORD_SIZE`).
MAX_OBJECT_SIZE = 2**30

_CHECKSUM_SIZE = 4
_FIFO_NAME = "queue"
_LOCK_NAME = "readers"


class LogQueue(_Base):
    """A ``multiprocessing.Queue`` whose transport is a FIFO of atomic frames.

    It has the methods of ``multiprocessing.queues.Queue`` with their meaning, and these differences:

    - ``maxsize`` is in bytes of frames, not in objects, and the kernel rounds it to what it grants. `full` says that
      the next frame would have to wait.
    - ``put`` writes at once: there is no feeder thread, so `join_thread` and `cancel_join_thread` have nothing to do,
      an object that does not pickle raises in the call, and nothing is lost when the process dies behind it.
    - A ``logging.LogRecord`` travels as data (`mplog.record`) and arrives as one, whatever its arguments are.
    - It pickles at any time, into any process of the machine, of ``multiprocessing`` and ``multiprocess``.
    - Several processes may take turns with `get`, as long as the objects fit into a frame (4,096 bytes on Linux): the
      parts of a longer one must all reach the same process.
    - ``put`` raises `NoReaderError` once no process is left that could read.

    The process that makes the queue keeps it readable, and removes its directory when the queue is collected or the
    process ends.

    Args:
        maxsize: room in bytes; 0 (the default) means 1 MiB.
        ctx: taken for the sake of the base class's signature, and not needed.

    Raises:
        MplogError: this platform has no FIFOs (Windows).
    """

    def __init__(self, maxsize: int = 0, *, ctx: object = None) -> None:
        if not hasattr(os, "mkfifo"):
            raise MplogError(
                "LogQueue needs FIFOs, which this platform does not have. "
                "Give the server a plain queue: LogServer(..., queue=multiprocessing.Queue(10_000))."
            )
        # 0700: nobody else gets at the queue. Not XDG_RUNTIME_DIR, which vanishes at logout while batch jobs go on.
        self._setup(tempfile.mkdtemp(prefix="mplog-"), is_owner=True)
        fifo.create(self.path)
        self._lock_fd = fifo.open_lock(os.path.join(self.directory, _LOCK_NAME))
        self._read_fd = fifo.open_reader(self.path)
        self._write_fd = fifo.open_writer(self.path)
        self._maxsize = fifo.set_size(self._write_fd, maxsize if maxsize > 0 else DEFAULT_SIZE)

    def _setup(self, directory: str, *, is_owner: bool) -> None:
        self.directory = directory
        self.path = fifo_path(directory)
        self._read_fd = -1
        self._write_fd = -1
        self._lock_fd = -1
        self._maxsize = 0
        self._closed = False
        self._abandoned: deque[bytes] = deque()
        # Runs when the queue is collected, and at the end of a multiprocessing child, too, which atexit misses.
        self._finalizer = Finalize(self, _remove, (directory,), exitpriority=0) if is_owner else None
        self._reset_reader()

    def _reset_reader(self) -> None:
        self._reader_pid = os.getpid()
        self._reader_lock = threading.Lock()
        self._frames: frame.FrameReader[Any] = frame.FrameReader(_DECODE)
        self._ready: deque[Any] = deque()

    # The base class pickles only while a process is being started; a path may travel at any time.
    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory,)

    def __getstate__(self) -> Any:
        return self.directory

    def __repr__(self) -> str:
        return f"<LogQueue {self.path}{', closed' if self._closed else ''}>"

    def __del__(self) -> None:
        with_modules = sys is not None and not sys.is_finalizing()
        if with_modules:  # otherwise the descriptors end with the process, and something may still log
            self._close_ends()

    # --- putting ---

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue; when the call returns, it is out of this process.

        Args:
            obj: a ``logging.LogRecord``, or any picklable object.
            block: wait while the queue is full.
            timeout: for how many seconds at most; None waits for ever.

        Raises:
            queue.Full: no room, within `timeout` or at once.
            ValueError: the queue is closed in this process.
            NoReaderError: nobody reads the queue any more.
            MessageTooLongError: the object is over 1 GiB.
        """
        if isinstance(obj, logging.LogRecord):
            self._send(frame.RECORD, record.encode(obj), block, timeout)
            return
        data = ForkingPickler.dumps(obj)
        if len(data) > MAX_OBJECT_SIZE:
            raise MessageTooLongError(
                f"an object of {len(data)} bytes does not go through the queue, which carries up to {MAX_OBJECT_SIZE}. "
                "Put it into a file or shared memory and send its name.",
                length=len(data),
            )
        checksum = zlib.crc32(data).to_bytes(_CHECKSUM_SIZE, "little")
        self._send(frame.OBJECT, b"".join((checksum, data)), block, timeout)

    def put_nowait(self, obj: Any) -> None:
        """Put an object into the queue, or raise ``queue.Full`` at once."""
        self.put(obj, False)

    def put_record(self, payload: bytes) -> None:
        """Put a record that `mplog.record.encode` has encoded, and wait while the queue is full.

        Raises:
            ValueError: the queue is closed in this process.
            NoReaderError: nobody reads the queue any more.
        """
        # The way of nearly every record: one frame, room for it, nothing to catch up on. All else is below.
        if len(payload) <= frame.PAYLOAD_SIZE and not self._abandoned:
            try:
                _write(self._write_fd, _pack_header(frame.RECORD_TAG, len(payload)) + payload)
            except OSError:
                pass
            else:
                return
        self._send(frame.RECORD, payload, True, None)

    def _send(self, kind: int, payload: bytes, block: bool, timeout: float | None) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._abandoned:
            self._write(self._abandoned[0], block, deadline)
            self._abandoned.popleft()
        whole = frame.frame(kind, payload)
        if whole is not None:
            self._write(whole, block, deadline)
        else:
            self._write_parts(kind, payload, block, deadline)

    def _write_parts(self, kind: int, payload: bytes, block: bool, deadline: float | None) -> None:
        message_id = os.urandom(16)
        try:
            for part in frame.frames(kind, payload, message_id):
                self._write(part, block, deadline)
        except BaseException:
            # Full, or Ctrl-C, between two parts: the reader must not wait for the rest.
            self._abandoned.append(frame.abandon(message_id))
            raise

    def _write(self, data: bytes, block: bool, deadline: float | None) -> None:
        while True:
            try:
                os.write(self._write_fd if self._write_fd >= 0 else self._open_writer(), data)
            except BlockingIOError:
                if not block or not fifo.wait(self._write_fd, select.POLLOUT, deadline):
                    raise queue.Full from None
            except NoReaderError:
                raise
            except BrokenPipeError:
                raise self._no_reader() from None
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                # Somebody closed all descriptors, as daemons do.
                self._write_fd = -1
            else:
                return

    def _open_writer(self) -> int:
        try:
            self._write_fd = fifo.open_writer(self.path)
        except FileNotFoundError:
            raise NoReaderError(
                f"{self.path} does not exist any more: its logging process has ended. Start a new LogServer."
            ) from None
        except BrokenPipeError:
            raise self._no_reader() from None
        return self._write_fd

    def _no_reader(self) -> NoReaderError:
        return NoReaderError(
            f"nobody reads {self.path} any more: its logging process has ended. Start a new LogServer."
        )

    # --- getting ---

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object out of the queue; a log record arrives as a `mplog.record.Record`.

        Args:
            block: wait while the queue is empty.
            timeout: for how many seconds at most; None waits for ever.

        Raises:
            queue.Empty: nothing came, within `timeout` or at once.
            ValueError: the queue is closed in this process.
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        deadline = None if block and timeout is None else time.monotonic() + (timeout or 0 if block else 0)
        if self._reader_pid != os.getpid():
            self._reset_reader()
        remaining = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._reader_lock.acquire(timeout=remaining):
            raise queue.Empty
        try:
            while not self._ready:
                if not self._read_frame() and not fifo.wait(self._read_fd, select.POLLIN, deadline):
                    raise queue.Empty
            return self._ready.popleft()
        finally:
            self._reader_lock.release()

    def get_nowait(self) -> Any:
        """Take the next object out of the queue, or raise ``queue.Empty`` at once."""
        return self.get(False)

    def _read_frame(self) -> bool:
        """Read one frame, never a byte more; return whether there was anything to read."""
        self._open_ends()
        if not fifo.pending(self._read_fd):
            return False
        if not fifo.try_lock(self._lock_fd):
            # Another process is taking a frame this moment; should it be stopped in there, a timeout still holds.
            time.sleep(0.001)
            return True
        try:
            while True:
                try:
                    data = os.read(self._read_fd, self._frames.wanted)
                except BlockingIOError:
                    return False
                self._ready.extend(self._frames.feed(data, drained=not fifo.pending(self._read_fd)))
                if self._frames.is_between_frames:
                    return True
        finally:
            fifo.unlock(self._lock_fd)

    def _open_ends(self) -> None:
        """Open what a reader needs: both ends, since the reading end of a FIFO without writers is always ready."""
        try:
            if self._read_fd < 0:
                self._read_fd = fifo.open_reader(self.path)
            if self._write_fd < 0:
                self._write_fd = fifo.open_writer(self.path)
            if self._lock_fd < 0:
                self._lock_fd = fifo.open_lock(os.path.join(self.directory, _LOCK_NAME))
        except FileNotFoundError:
            raise QueueNotFoundError(
                f"{self.path} does not exist any more: whoever made the queue has ended."
            ) from None

    # --- looking ---

    def empty(self) -> bool:
        """Return whether nothing is in the queue at this moment."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        return not self._ready and not fifo.pending(self._any_end())

    def full(self) -> bool:
        """Return whether the next frame would have to wait at this moment."""
        if self._write_fd < 0:
            self._open_writer()
        return not fifo.wait(self._write_fd, select.POLLOUT, time.monotonic())

    def qsize(self) -> int:
        """Return the number of objects in the queue at this moment. A look at the whole queue, not for a hot path.

        Raises:
            NotImplementedError: not on Linux (the base class raises it on macOS, too).
        """
        self._open_ends()
        waiting: frame.FrameReader[None] = frame.FrameReader(dict.fromkeys(_DECODE, _ignore))
        return len(self._ready) + len(waiting.feed(fifo.peek(self._read_fd), drained=True))

    def _any_end(self) -> int:
        if self._read_fd >= 0:
            return self._read_fd
        return self._write_fd if self._write_fd >= 0 else self._open_writer()

    # --- closing ---

    def close(self) -> None:
        """Close the queue in this process: neither `put` nor `get` works here any more."""
        self._closed = True
        self._close_ends()

    def join_thread(self) -> None:
        """Do nothing: there is no thread, and what was put is out of the process.

        Raises:
            ValueError: the queue is not closed yet, as the base class asserts.
        """
        if not self._closed:
            raise ValueError(f"Queue {self!r} is not closed; call close() first")

    def cancel_join_thread(self) -> None:
        """Do nothing: there is no thread to join."""

    def _close_ends(self) -> None:
        for fd in (self._read_fd, self._write_fd, self._lock_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._read_fd = self._write_fd = self._lock_fd = -1

    # --- for the server ---

    def release_reader(self) -> int:
        """Return the reading end, which this object then neither has nor closes, and leave the directory to its reader.

        From then on it is the new owner's life that keeps the queue readable.
        """
        if self._read_fd < 0:
            raise ServerStateError(f"{self!r} has no reading end here: another process made it, or it has a reader.")
        fd, self._read_fd = self._read_fd, -1
        if self._finalizer is not None:
            self._finalizer.cancel()
        return fd

    def connect(self) -> None:
        """Open the writing end: the reader then waits for this process, also before its first record.

        Raises:
            BrokenPipeError: nobody reads the queue any more.
        """
        if self._write_fd < 0:
            self._open_writer()

    def remove(self) -> None:
        """Remove the directory of the queue; processes that have it open keep it."""
        _remove(self.directory)

    @classmethod
    def open(cls, directory: str) -> LogQueue:
        """Open the queue that another process made, by its directory.

        Raises:
            QueueNotFoundError: there is none, or no process reads it.
        """
        opened = _reopen(directory)
        try:
            opened._open_writer()
        except (NoReaderError, OSError) as error:
            raise QueueNotFoundError(
                f"there is no log queue in {directory!r}: {error} "
                "Give the directory of a LogServer that runs (server.queue.directory, or MPLOG_QUEUE)."
            ) from None
        return opened


def fifo_path(directory: str) -> str:
    """Return the path of the FIFO in a queue's directory."""
    return os.path.join(directory, _FIFO_NAME)


def _decode_object(payload: bytes) -> Any:
    data = memoryview(payload)[_CHECKSUM_SIZE:]
    if zlib.crc32(data) != int.from_bytes(payload[:_CHECKSUM_SIZE], "little"):
        raise ValueError("an object whose checksum does not fit")
    return ForkingPickler.loads(data)


_DECODE = {frame.RECORD: record.decode, frame.OBJECT: _decode_object}


def _ignore(payload: bytes) -> None:
    pass


def _reopen(directory: str) -> LogQueue:
    opened = LogQueue.__new__(LogQueue)
    opened._setup(directory, is_owner=False)
    return opened


def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
