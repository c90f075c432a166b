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
import itertools
import logging
import math
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.util
import os
import queue
import select
import shutil
import sys
import tempfile
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from mplog.errors import MessageTooLongError, MplogError, NoReaderError, QueueNotFoundError, ServerStateError
from mplog.queue import losses
from mplog.queue.emergency import EmergencyFile
from mplog.queue.losses import Reason
from mplog.queue.overflow import PATIENCE, Fill, Overflow, is_in_event_loop, open_fill
from mplog.queue.sync import TOKEN_SIZE, Sync, Waiter
from mplog.record import frame
from mplog.record.cache import Cache
from mplog.record.decoding import decode, origin_of
from mplog.record.encoding import Cut, encode
from mplog.record.layout import Record

if sys.platform != "win32":
    import fcntl

    from mplog.queue import fifo

__all__ = ["LogQueue"]

_write = os.write


#: The headers of records, by the length of what follows.
_headers: Cache[int, bytes] = Cache(lambda length: frame.header(frame.RECORD, length), frame.PAYLOAD_SIZE + 1)

if TYPE_CHECKING:
    _Base = multiprocessing.queues.Queue[Any]
else:
    _Base = multiprocessing.queues.Queue

#: What Linux grants every user (/proc/sys/fs/pipe-max-size): some 5,000 records of usual length.
DEFAULT_SIZE = 2**20

#: Bytes of a pickled object that a queue carries at most, so that a reader has room for it (`frame.UNFINISHED_LIMIT`);
#: a log record above `mplog.record.layout.MAX_RECORD_SIZE` is cut.
MAX_OBJECT_SIZE = 2**28

_CHECKSUM_SIZE = 4
_FIFO_NAME = "queue"
_LOCK_NAME = "readers"
_EMERGENCY_NAME = "emergency"
_BLOCK = Overflow.block()


class LogQueue(_Base):
    """A ``multiprocessing.Queue`` whose transport is a FIFO of atomic frames.

    It has the methods of ``multiprocessing.queues.Queue`` with their meaning, and these differences:

    - ``maxsize`` is in bytes of frames, not in objects, and the kernel rounds it to what it grants. `full` says that
      the next frame would have to wait.
    - ``put`` writes at once: there is no feeder thread, so `join_thread` and `cancel_join_thread` have nothing to do,
      an object that does not pickle raises in the call, and nothing is lost when the process dies behind it.
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
        sequence: counts the records of this process, from 1.
        details: whether whoever reads looks at the thread and the place of a call; False saves sending them.
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

    # As long as there are none: __del__ runs on what __init__ has left, too.
    _read_fd = -1
    _write_fd = -1
    _lock_fd = -1

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
        self._maxsize = 0
        self._closed = False
        self.sequence = itertools.count(1)
        self.details = True
        self.overflow = _BLOCK
        self.sync: Sync | None = None
        self.preparation = b""
        self.losses = losses.Losses(directory)
        self._gave_up_at = -math.inf
        self._fill: Fill | None = None
        self._abandoned: list[bytes] = []
        self._finalizers = _finalizers(self, directory) if is_owner else []
        self._readers: dict[int, _Reader] = {}
        _forget_closed_ends()
        _queues[directory] = self

    # The base class pickles only while a process is being started; a path may travel at any time.
    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory, self.details, self.overflow, self.sync, self.preparation)

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
            MessageTooLongError: the object is over 256 MiB.
        """
        if isinstance(obj, logging.LogRecord):
            payload = encode(obj, next(self.sequence), self.details)
            if self.preparation:
                from mplog.record.fields import load_preparation

                payload = load_preparation(self.preparation)(payload)
            try:
                self._send(frame.RECORD, payload, block, timeout)
            except BaseException as error:
                # Of a full queue, the caller knows, and may try again.
                self._count(payload, Reason.UNUSED if isinstance(error, queue.Full) else _reason(error))
                raise
            return
        # As bytes: dumps() returns a view of a BytesIO, and where an exception keeps that in a reference cycle, the
        # garbage collector of CPython raises BufferError or crashes (seen in 3.12.1 and 3.13.0).
        data = bytes(ForkingPickler.dumps(obj))
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
        """Put a record that `mplog.record.encoding.encode` has encoded; while the queue is full, do as `overflow` says.

        Raises:
            ValueError: the queue is closed in this process.
            NoReaderError: nobody reads the queue any more.
        """
        # The way of nearly every record: one frame, room for it, nothing to catch up on. All else is below.
        if len(payload) <= frame.PAYLOAD_SIZE and not self._abandoned:
            try:
                _write(self._write_fd, _headers[len(payload)] + payload)
            except OSError:
                pass
            else:
                return
        self._put_slowly(payload)

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
            TypeError: the data are no bytes.
            ValueError: the queue is closed in this process, or the name is over 255 bytes long.
            NoReaderError: nobody reads the queue any more.
            MessageTooLongError: over 256 MiB.
        """
        try:
            name = to.encode("utf-8")
            rest = b"".join((len(name).to_bytes(1, "little"), name, data)) if len(name) < 256 else None
        except (AttributeError, TypeError):
            raise TypeError(
                f"write() sends bytes to a name, not {type(data).__name__} to {to!r}. Encode what is a text: "
                'text.encode("utf-8")'
            ) from None
        if rest is None:
            raise ValueError(f"the name of a sink has up to 255 bytes, not {len(name)}")
        if len(rest) > MAX_OBJECT_SIZE:
            raise MessageTooLongError(
                f"{len(rest)} bytes do not go through the queue, which carries up to {MAX_OBJECT_SIZE} at once. "
                "Send them in pieces.",
                length=len(rest),
            )
        payload = zlib.crc32(rest).to_bytes(_CHECKSUM_SIZE, "little") + rest
        if len(payload) <= frame.PAYLOAD_SIZE and not self._abandoned and not self._closed:
            try:
                _write(self._write_fd, frame.header(frame.BYTES, len(payload)) + payload)
            except OSError:
                pass
            else:
                return
        try:
            self._send(frame.BYTES, payload, timeout != 0, timeout)
        except NoReaderError:
            if not os.path.exists(given_up_path(self.directory)):
                raise
            file = EmergencyFile(
                self.overflow.emergency or emergency_path(self.directory), self.overflow.emergency_size
            )
            if file.append(_whole_frames(frame.BYTES, payload), sync=True) is False:
                raise

    @property
    def record_putter(self) -> Callable[[bytes], None]:
        """`put_record`, or what takes its place under a policy that drops before the queue is full."""
        return self._put_unless_shed if self.overflow.policy == "drop_below" else self.put_record

    def _put_unless_shed(self, payload: bytes) -> None:
        fill = self._fill
        if fill is None:
            fill = self._fill = open_fill(self.directory)  # the logging process makes it when it starts
        if fill is not None and fill.fraction >= self.overflow.at and self.overflow.sheds(_level(payload)):
            self._count(payload, Reason.SHED)
        else:
            self.put_record(payload)

    def put_synced(self, payload: bytes) -> bool:
        """Put a record like `put_record`, and wait until it is on disk, for as long as `sync` says.

        Where the queue has no room in that time, it goes into the emergency file, and that on disk.

        Returns:
            Whether it is on disk.

        Raises:
            ValueError: the queue is closed in this process.
            NoReaderError: nobody reads the queue any more.
        """
        seconds = 0.0 if self.sync is None else self.sync.timeout
        if self.overflow.never_block_loop and is_in_event_loop():
            seconds = 0.0
        deadline = time.monotonic() + seconds
        waiter = None
        is_there = False
        try:
            if seconds:
                with contextlib.suppress(OSError):  # no descriptor is left, or no room
                    waiter = Waiter(self.directory)
            is_sent = self._put_slowly(payload, token=waiter.token if waiter is not None else b"", limit=seconds)
            if waiter is not None and is_sent:
                is_there = waiter.wait(deadline)
        finally:
            if waiter is not None:
                waiter.close()
                self._leave_removed()
        if is_sent and not is_there:
            self._count(payload, Reason.UNSYNCED)
        return is_there or is_sent is None

    def _put_slowly(self, payload: bytes, *, token: bytes = b"", limit: float | None = None) -> bool | None:
        """Put a record for which there may be no room.

        Args:
            payload: the record.
            token: of whoever waits until it is on disk; b"" for nobody.
            limit: seconds that it may wait for room at most, whatever the policy says, for one to be written through.

        Returns:
            True where it is in the queue, None where it is in the emergency file, False where it is dropped.
        """
        overflow = self.overflow
        level = logging.NOTSET if overflow.policy == "block" else _level(payload)
        timeout = overflow.wait(level, time.monotonic() - self._gave_up_at < PATIENCE)
        if limit is not None:
            timeout = limit if timeout is None else min(limit, timeout)
        try:
            if token:
                self._send(frame.SYNC, token + payload, timeout != 0, timeout)
            else:
                self._send(frame.RECORD, payload, timeout != 0, timeout)
        except queue.Full:
            if timeout:
                self._gave_up_at = time.monotonic()
            return self._put_elsewhere(payload, Reason.TIMEOUT if timeout else Reason.QUEUE_FULL, limit is not None)
        except NoReaderError as error:
            if not os.path.exists(given_up_path(self.directory)):
                self._count(payload, _reason(error))
                raise
            is_kept = self._put_elsewhere(payload, Reason.REJECTED, is_synced=True)
            if is_kept is False:
                raise  # there is no room for it anywhere, and nobody left who would say so
            return is_kept
        except BaseException as error:
            self._count(payload, _reason(error))
            raise
        if type(payload) is Cut:
            self._count(payload, Reason.TRUNCATED)
        return True

    def _put_elsewhere(self, payload: bytes, reason: Reason, is_synced: bool) -> bool | None:
        """Put a record for which the queue has no room into the emergency file, or drop it."""
        overflow = self.overflow
        if is_synced or overflow.keeps(_level(payload)):
            whole = _whole_frames(frame.RECORD, payload)
            try:
                file = EmergencyFile(overflow.emergency or emergency_path(self.directory), overflow.emergency_size)

                def count(is_there: bool) -> None:
                    self._count(payload, Reason.EMERGENCY if is_there else Reason.NO_EMERGENCY)

                is_there = file.append(whole, sync=is_synced, later=count)
                if is_there:
                    count(is_there)
                if is_there is not False:
                    return None
            except OSError:
                pass
            except BaseException as error:
                self._count(payload, _reason(error))
                raise
            reason = Reason.NO_EMERGENCY
        self._count(payload, reason)
        return False

    def _count(self, payload: bytes, reason: Reason) -> None:
        try:
            origin = origin_of(payload)
        except (ValueError, RecursionError):
            self.losses.count(logging.NOTSET, reason, None)
        else:
            self.losses.count(origin.levelno, reason, origin.processName)
        if reason is Reason.REJECTED:
            self._leave_removed()

    def _leave_removed(self) -> None:
        """Remove the directory, where something of ours was in the way of whoever has removed the rest."""
        if not os.path.exists(self.path):
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)

    def count_unused(self) -> None:
        """Count a number of `sequence` that no record carries."""
        self.losses.count(logging.NOTSET, Reason.UNUSED, multiprocessing.process.current_process().name)

    def _send(self, kind: int, payload: bytes, block: bool, timeout: float | None) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        deadline = None if timeout is None else time.monotonic() + timeout
        for notice in self._abandoned[:]:
            self._write(notice, block, deadline)
            with contextlib.suppress(ValueError):  # another thread has sent it, too, which does no harm
                self._abandoned.remove(notice)
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
                _forget_closed_ends()
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
        """Take the next object out of the queue; a log record arrives as a ``logging.LogRecord``.

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
        item = self._take(self._reader_here(), deadline)
        # Behind the lock: it may run any code.
        return item.load() if isinstance(item, _Pickled) else item

    def get_nowait(self) -> Any:
        """Take the next object out of the queue, or raise ``queue.Empty`` at once."""
        return self.get(False)

    def _reader_here(self) -> _Reader:
        """Return what this process has read; a fork begins anew, and leaves the rest to the process it came from."""
        pid = os.getpid()
        reader = self._readers.get(pid)
        if reader is None:
            for other in self._readers.keys() - {pid}:
                self._readers.pop(other, None)
            reader = self._readers.setdefault(pid, _Reader())  # in one step: one for all threads
        return reader

    def _take(self, reader: _Reader, deadline: float | None) -> Any:
        try:
            if not reader.lock.acquire(timeout=_seconds_until(deadline)):
                raise queue.Empty
            if reader.is_reading:
                raise RuntimeError("get() was called in a signal handler that had interrupted a get()")
            try:
                reader.is_reading = True
                self._read(reader, deadline)
                return reader.ready.popleft()
            finally:
                reader.is_reading = False
        finally:
            # A Ctrl-C may come between taking a lock and the next step; a reentrant one knows whether it was taken. Nor
            # must any other call come before the release, since another Ctrl-C may come with it. Nor may there be a
            # loop in the try block: one that comes with its jump back skips the finally block (CPython 3.13).
            try:  # noqa: SIM105
                reader.lock.release()
            except RuntimeError:
                pass

    def _read(self, reader: _Reader, deadline: float | None) -> None:
        """Read what completes an object, or raise ``queue.Empty``. Past the deadline, only what was there already."""
        there = -1
        while not reader.ready:
            try:
                self._open_ends()
                pending = fifo.pending(self._read_fd)
                there = pending if there < 0 else there
                if pending and (there > 0 or not _is_past(deadline)):
                    count = self._read_frame(reader)
                    if count:
                        there = max(0, there - count)
                    elif _is_past(deadline):
                        raise queue.Empty
                    else:
                        time.sleep(0.001)  # another process is taking a frame this moment
                elif pending:
                    raise queue.Empty
                else:
                    reader.forget_dead()
                    if not fifo.wait(self._read_fd, select.POLLIN, deadline):
                        raise queue.Empty
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                _forget_closed_ends()

    def _read_frame(self, reader: _Reader) -> int:
        """Read one frame, never a byte more; return how many bytes, 0 where another process is reading."""
        try:
            return self._read_frame_alone(reader) if fifo.try_lock(self._lock_fd) else 0
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)

    def _read_frame_alone(self, reader: _Reader) -> int:
        count = 0
        while count == 0 or not reader.frames.is_between_frames:
            try:
                data = os.read(self._read_fd, reader.frames.wanted)
            except BlockingIOError:
                break
            count += len(data)
            reader.ready.extend(reader.frames.feed(data, drained=not fifo.pending(self._read_fd)))
        return count

    def _forget_closed_ends(self) -> None:
        for name in ("_read_fd", "_write_fd", "_lock_fd"):
            if not fifo.is_open(getattr(self, name)):
                setattr(self, name, -1)

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
        return not self._pending() and not self._reader_here().ready

    @property
    def fill(self) -> float:
        """How full the queue is at this moment, from 0 to 1."""
        if self._write_fd < 0:
            self._open_writer()
        return min(1.0, fifo.pending(self._write_fd) / fifo.size(self._write_fd))

    def pending(self) -> int:
        """Return how many bytes are in the queue at this moment."""
        return self._pending()

    def full(self) -> bool:
        """Return whether the next frame would have to wait at this moment."""
        self._pending()
        if self._write_fd < 0:
            self._open_writer()
        return not fifo.wait(self._write_fd, select.POLLOUT, time.monotonic())

    def qsize(self) -> int:
        """Return the number of objects in the queue at this moment. A look at the whole queue, not for a hot path.

        Raises:
            NotImplementedError: not on Linux (the base class raises it on macOS, too).
        """
        self._pending()
        self._open_ends()
        waiting: frame.FrameReader[None] = frame.FrameReader(dict.fromkeys(_DECODE, _ignore))
        return len(self._reader_here().ready) + len(waiting.feed(fifo.peek(self._read_fd), drained=True))

    @property
    def broken(self) -> int:
        """Runs of garbage that `get` has skipped in this process, and long objects that it could not complete."""
        reader = self._reader_here()
        return reader.frames.broken + reader.frames.given_up + reader.forgotten

    def _pending(self) -> int:
        """Return how many bytes are in the FIFO."""
        if self._closed:
            raise OSError(f"Queue {self!r} is closed")  # as the base class does, unlike in put() and get()
        try:
            return fifo.pending(self._any_end())
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            _forget_closed_ends()
            return fifo.pending(self._any_end())

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
        for finalizer in self._finalizers:
            finalizer.cancel()
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
        remove_directory(self.directory)

    @classmethod
    def open(cls, directory: str) -> LogQueue:
        """Open the queue that another process made, by its directory.

        Raises:
            QueueNotFoundError: there is none, or no process reads it.
        """
        opened = _reopen(directory)
        try:
            if opened._write_fd < 0:
                opened._open_writer()
            else:
                os.close(fifo.open_writer(opened.path))
        except (NoReaderError, OSError) as error:
            if type(error) is BrokenPipeError:
                error = opened._no_reader()
            raise QueueNotFoundError(
                f"there is no log queue in {directory!r}: {error} "
                "Give the directory of a LogServer that runs (server.queue.directory, or MPLOG_QUEUE)."
            ) from None
        return opened


def emergency_path(directory: str) -> str:
    """Return the path of the emergency file in a queue's directory, where the policy names no other."""
    return os.path.join(directory, _EMERGENCY_NAME)


def given_up_path(directory: str) -> str:
    """Return the path of the file that is there when nobody will read the queue any more."""
    return os.path.join(directory, "given-up")


def fifo_path(directory: str) -> str:
    """Return the path of the FIFO in a queue's directory."""
    return os.path.join(directory, _FIFO_NAME)


class _Reader:
    """What one process has read of a queue.

    Attributes:
        lock: held by the thread that reads.
        is_reading: whether one does.
        frames: puts the objects together.
        ready: those that nobody has taken yet.
        forgotten: long objects whose writers have died.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_reading = False
        self.frames: frame.FrameReader[Any] = frame.FrameReader(_DECODE)
        self.ready: deque[Any] = deque()
        self.forgotten = 0

    def forget_dead(self) -> None:
        """Forget the unfinished objects of writers that have died. The queue is empty, so no part is still to come."""
        if self.frames.incomplete():
            self.forgotten += len(self.frames.drop_incomplete(lambda message: not fifo.is_alive(message.pid)))


class _Pickled:
    """An object that has arrived whole, and is not unpickled yet."""

    def __init__(self, payload: bytes) -> None:
        check_object(payload)
        self._payload = payload

    def load(self) -> Any:
        return ForkingPickler.loads(memoryview(self._payload)[_CHECKSUM_SIZE:])


def decode_bytes(payload: bytes) -> tuple[str, bytes]:
    """Return the name of the sink, and the bytes, of a frame of kind `frame.BYTES`.

    Raises:
        ValueError: it is none.
    """
    if len(payload) <= _CHECKSUM_SIZE:
        raise ValueError("bytes without the name of their sink")
    if zlib.crc32(memoryview(payload)[_CHECKSUM_SIZE:]) != int.from_bytes(payload[:_CHECKSUM_SIZE], "little"):
        raise ValueError("bytes whose checksum does not fit")
    begin = _CHECKSUM_SIZE + 1
    end = begin + payload[_CHECKSUM_SIZE]
    if len(payload) < end:
        raise ValueError("bytes without the name of their sink")
    return payload[begin:end].decode("utf-8"), payload[end:]


def check_object(payload: bytes) -> None:
    """Raise ValueError where the payload is not that of an object, without looking inside."""
    if len(payload) <= _CHECKSUM_SIZE:
        raise ValueError("an object without content")  # of which the checksum would be 0, as garbage often is
    if zlib.crc32(memoryview(payload)[_CHECKSUM_SIZE:]) != int.from_bytes(payload[:_CHECKSUM_SIZE], "little"):
        raise ValueError("an object whose checksum does not fit")


def _seconds_until(deadline: float | None) -> float:
    """Return what ``Lock.acquire`` takes for it."""
    return -1 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


#: The queues of this process, by directory: two objects that read the same FIFO would tear its frames.
_queues: weakref.WeakValueDictionary[str, LogQueue] = weakref.WeakValueDictionary()


def _forget_closed_ends() -> None:
    """Look after the descriptors of all queues: somebody closes them all, as daemons do.

    All at once, before one of the numbers comes into use again for another queue.
    """
    for known in list(_queues.values()):
        known._forget_closed_ends()


def _decode_synced(payload: bytes) -> Record:
    """Return the record; whoever waits for it to be on disk waits in vain, since a reader of objects has none."""
    return decode(payload[TOKEN_SIZE:])


def _decode_bytes(payload: bytes) -> bytes:
    return decode_bytes(payload)[1]


_DECODE: dict[int, Callable[[bytes], Any]] = {
    frame.RECORD: decode,
    frame.OBJECT: _Pickled,
    frame.SYNC: _decode_synced,
    frame.BYTES: _decode_bytes,
}


def _whole_frames(kind: int, payload: bytes) -> bytes:
    return frame.frame(kind, payload) or b"".join(frame.frames(kind, payload, os.urandom(16)))


def _ignore(payload: bytes) -> None:
    pass


def _level(payload: bytes) -> int:
    try:
        return origin_of(payload).levelno
    except (ValueError, RecursionError):
        return logging.NOTSET


def _reason(error: BaseException) -> Reason:
    """Return why a record is lost that was not put into the queue."""
    return Reason.REJECTED if isinstance(error, NoReaderError) else Reason.INTERRUPTED


def _reopen(
    directory: str,
    details: bool = True,
    overflow: Overflow = _BLOCK,
    sync: Sync | None = None,
    preparation: bytes = b"",
) -> LogQueue:
    opened = _queues.get(directory)
    if opened is None or opened._closed:
        opened = LogQueue.__new__(LogQueue)
        opened._setup(directory, is_owner=False)
    opened.details = details
    opened.overflow, opened.sync = overflow, sync
    opened.preparation = preparation or opened.preparation
    return opened


def _count_anew() -> None:
    """Runs in a process that has just been forked."""
    for known in list(_queues.values()):
        known.sequence = itertools.count(1)
        known.losses = losses.Losses(known.directory)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_anew)


def _finalizers(owner: LogQueue, directory: str) -> list[Any]:
    """Have the directory removed when the queue is collected, and at the end of the process.

    A child of multiprocessing or multiprocess runs no atexit functions, but those of its library. At the end, since
    those children that this process waits for may not have opened the queue yet.
    """
    libraries = [multiprocessing.util, sys.modules.get("multiprocess.util")]
    return [
        library.Finalize(owner, remove_directory, (directory,), exitpriority=-100)
        for library in libraries
        if library is not None
    ]


def remove_directory(directory: str) -> None:
    """Remove the directory of a queue."""
    # Twice: a process that logs once more may make a file while the directory is emptied. Once the FIFO is gone, it
    # takes that away again itself.
    for _ in range(2):
        shutil.rmtree(directory, ignore_errors=True)
