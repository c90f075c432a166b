"""The pair of buffers between the FIFO and the sinks, in memory that outlives the logging process. POSIX only.

The rule of this file: **at every instant the memory tells what is left to do.** The logging process may be killed
between any two instructions; the next one maps the same memory, loses nothing and doubles nothing.

::

    FIFO --intake()--> | intake buffer  |             one thread
                            | swap() |
                       | writing buffer | --commit()--> files      another thread

Two buffers of a fixed size change roles: one takes in what comes while the other is written out. Each is filled from
its start, so that under a light load the same few pages are used over and over, and most of the memory never is.

A third place of the same size is used only by a policy that drops records: what stays of the intake buffer is written
there, and that place becomes the intake buffer (`BufferPair.replace`).

What makes it hold:

- **The state changes at one instant**: what the buffers hold, what of it is written, and the note of the caller
  (`mplog.queue.buffer_memory`).
- **A read is announced before it is made**: so many bytes as are pending, and never more are asked for. Its place is
  marked before that. After a kill, a mark that is gone shows that the read was made: then it counts, else the bytes are
  still in the FIFO. A read that does not block is all or nothing: a SIGKILL cannot end it (Linux looks for signals only
  while it waits), except at a page fault, so all pages of the place are touched before.
- **Frames are never cut**: writes into the FIFO are atomic, so what is pending is whole frames, and it all goes into
  one buffer or, until the next swap, stays where it is.

The order of stores matters to no other process: the next one starts only after this one is dead with all its threads,
and what a thread has stored before it dies is in memory, in the order of the program.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable

import msgspec

from mplog.queue import fifo
from mplog.queue.buffer_memory import MARK_SIZE, PLACES, Memory, State
from mplog.queue.kill_points import reach

#: `BufferPair.intake`: nothing is in the FIFO yet.
NOTHING = 0
#: `BufferPair.intake`: nothing is in the FIFO, and the last writer has closed it.
END = -1
#: `BufferPair.intake`: the intake buffer has no room for what is in the FIFO; after a swap, the other has.
NO_ROOM = -2


class BufferPair:
    """The two buffers, as the logging process uses them: one thread takes in, another writes.

    Opening them after a kill finds out whether an announced read was made. Then `unwritten` has the rest of the writing
    buffer, `note` the note, and a `swap` brings the other buffer, as always.

    Only one process at a time may have a pair, and only it may read the FIFO.

    Args:
        fd: the descriptor that `create` returned; it may be closed afterwards.

    Raises:
        ValueError: this is not the memory of a pair, or it is damaged.
    """

    def __init__(self, fd: int) -> None:
        self.memory = Memory(fd)
        self.size = self.memory.size
        self._state = self.memory.state
        self._lock = threading.Lock()
        self._recover()

    def close(self) -> None:
        """Unmap the memory, which stays as it is; raise BufferError if a view of it is still in use."""
        self.memory.close()

    # --- the thread that takes in ---

    def intake(self, read_fd: int) -> int:
        """Read all that is pending in the FIFO into the intake buffer; never wait for more.

        Args:
            read_fd: the reading end, which does not block.

        Returns:
            How many bytes; without any, `NOTHING`, `END` or `NO_ROOM`, which are not above 0. `END` comes only after a
            writer has opened the FIFO.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            state = self._state
            pending = fifo.pending(read_fd)
            if not pending:
                is_deserted = fifo.is_deserted(read_fd)
                pending = fifo.pending(read_fd)  # the last writer may have come and gone in between
                if not pending:
                    return END if is_deserted else NOTHING
            room = self.size - state.fill
            if pending > room:
                if state.fill:
                    return NO_ROOM
                pending = room  # the FIFO was made larger than any buffer; better a frame cut than none read
            start = self.memory.start(state.intake) + state.fill
            self._mark_place(start, pending)
            state.announced = pending
            self.memory.save()
            count = 0
            try:
                reach("before read")
                with self.memory.view[start : start + pending] as place:
                    count = os.readv(read_fd, [place])
                reach("after read")
            except BlockingIOError:
                pass  # another process has read it
            finally:
                self._settle(count)
            return count

    def replace(self, choose: Callable[[memoryview], bytes | None]) -> int:
        """Replace the content of the intake buffer with something shorter, at one instant.

        No swap and no commit can come in between.

        Args:
            choose: is called with the content, and returns what of it stays; None for all of it.

        Returns:
            How many bytes have become free.

        Raises:
            ValueError: what stays is longer than what was there.
        """
        with self._lock:
            state = self._state
            start = self.memory.start(state.intake)
            with self.memory.view[start : start + state.fill] as content:
                kept = choose(content)
            if kept is None:
                return 0
            freed = state.fill - len(kept)
            if freed < 0:
                raise ValueError(f"{len(kept)} bytes in the place of {state.fill}: what stays must not be longer.")
            spare = PLACES - state.intake - state.writing
            start = self.memory.start(spare)
            self.memory.view[start : start + len(kept)] = kept
            reach("before replace")
            state.intake, state.fill = spare, len(kept)
            state.dropped += freed
            if not kept:  # it will not be swapped
                state.dropped_before, state.dropped = state.dropped_before + state.dropped, 0
            self.memory.save()
            reach("after replace")
            return freed

    def due(self, read_fd: int) -> int:
        """Return how many bytes will have been taken in, in all, after the last byte that is now in the FIFO.

        Once `committed` has reached that, all that was logged before this call is written or dropped.
        """
        with self._lock:
            return self._state.taken + fifo.pending(read_fd)

    def _mark_place(self, start: int, length: int) -> None:
        end = start + length
        page = start + -start % mmap.PAGESIZE
        self.memory.view[page : end : mmap.PAGESIZE] = bytes(len(range(page, end, mmap.PAGESIZE)))
        self.memory.view[start : min(start + MARK_SIZE, end)] = self.memory.mark[:length]

    def _settle(self, count: int) -> None:
        self._state.fill += count
        self._state.taken += count
        self._state.announced = 0
        self.memory.save()

    # --- the thread that writes ---

    def unwritten(self) -> memoryview:
        """Return the unwritten rest of the writing buffer, to be read in place; valid until the next `swap`."""
        state = self._state
        start = self.memory.start(state.writing)
        return self.memory.view[start + state.done : start + state.length].toreadonly()

    def written(self) -> memoryview:
        """Return the written part of the writing buffer; valid until the next `swap`."""
        state = self._state
        start = self.memory.start(state.writing)
        return self.memory.view[start : start + state.done].toreadonly()

    def swap(self) -> bool:
        """Change the roles of the buffers, if one is all written and the other holds something; return whether."""
        with self._lock:
            state = self._state
            if state.done < state.length or not state.fill:
                return False
            reach("before swap")
            state.intake, state.writing = state.writing, state.intake
            state.length, state.done, state.fill = state.fill, 0, 0
            state.dropped_before, state.dropped = state.dropped, 0
            self.memory.save()
            reach("after swap")
            return True

    def mark(self, offset: int, value: int) -> None:
        """Change one byte of `unwritten`, at one instant."""
        state = self._state
        self.memory.view[self.memory.start(state.writing) + state.done + offset] = value

    def commit(self, count: int, note: bytes | None = None) -> None:
        """Count more of the writing buffer as written, and replace the note, at one instant.

        Args:
            count: how many bytes of `unwritten`; with 0 only the note changes.
            note: at most `NOTE_SIZE` bytes that the next process must know; by default it stays.

        Raises:
            ValueError: there are not so many bytes, or the note is too long.
        """
        with self._lock:
            state = self._state
            if not 0 <= count <= state.length - state.done:
                raise ValueError(f"{count} bytes cannot be committed of {state.length - state.done} in the buffer.")
            reach("before commit")
            if note is not None:
                self.memory.note = note
            state.done += count
            self.memory.save()
            reach("after commit")

    @property
    def note(self) -> bytes:
        """The note of the last commit that had one; empty before."""
        return self.memory.note

    @property
    def state(self) -> State:
        """A copy of the state."""
        with self._lock:
            return msgspec.structs.replace(self._state)

    @property
    def position(self) -> int:
        """Where in all that was ever taken in `unwritten` begins; see `State.position`."""
        with self._lock:
            return self._state.position

    @property
    def fraction(self) -> float:
        """How full the intake buffer is; see `State.fraction`."""
        return self._state.fraction

    @property
    def swapped_fraction(self) -> float:
        """How full the writing buffer was; see `State.swapped_fraction`."""
        return self._state.swapped_fraction

    @property
    def committed(self) -> int:
        """Bytes ever written, or dropped; see `State.committed`."""
        with self._lock:
            return self._state.committed

    def _recover(self) -> None:
        state = self._state
        if state.announced:
            start = self.memory.start(state.intake) + state.fill
            marked = min(state.announced, MARK_SIZE)
            was_made = self.memory.view[start : start + marked] != self.memory.mark[:marked]
            reach("in recovery")
            self._settle(state.announced if was_made else 0)
