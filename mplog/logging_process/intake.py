"""The intake: takes what workers send out of the FIFO, whatever the sinks are doing. Runs in the logging process.

Its thread reads the FIFO into one of the two buffers while the other is written out, and never waits for a sink: a slow
disk holds workers up only when the buffers, too, are full.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable

from mplog.logging_process.drop_oldest import without_oldest
from mplog.queue.buffer_memory import FIFO_SIZE
from mplog.queue.buffers import END, NO_ROOM, BufferPair
from mplog.queue.fill import Fill

#: Milliseconds that the intake sleeps after a read, so that many records cost one wake-up.
_LONGEST_NAP = 3
#: But no longer than workers take to fill this part of the FIFO. Records of just over half a page fill all of it with
#: half of its bytes, since each has a page to itself.
_NAP_PART = 0.25

#: Milliseconds between two looks for a writer while processes live that may write later.
_DESERTED_PAUSE = 1000

#: Seconds that the intake waits for the sinks before it drops the oldest records.
_SWAP_SECONDS = 0.05


class Intake(threading.Thread):
    """Calls `notify` when there is something to write, when there is no room for more, and when no writer is left.

    `has_silent_writers` tells whether a process that has closed its writing end may open it again.
    """

    def __init__(
        self,
        pair: BufferPair,
        fd: int,
        notify: Callable[[], None],
        has_silent_writers: Callable[[], bool],
        *,
        drops_oldest: bool = False,
        fill: Fill | None = None,
    ) -> None:
        super().__init__(name="mplog-intake", daemon=True)
        self._pair = pair
        self._fd = fd
        self._fifo_size = pair.state.fifo_size
        self._notify = notify
        self._has_silent_writers = has_silent_writers
        self._drops_oldest = drops_oldest
        self._fill = fill
        self._has_room = threading.Event()
        self._stop_fd, self._stopping_fd = os.pipe()
        self.is_over = False
        self.peak = pair.fraction

    def run(self) -> None:
        try:
            self._run()
        except BaseException:
            # Without the intake, no record would come in. Another process takes over from the state in the buffers.
            try:
                traceback.print_exc()
                sys.stderr.flush()
            finally:  # also if stderr cannot be written
                os._exit(os.EX_SOFTWARE)

    def _run(self) -> None:
        waiting, napping = select.poll(), select.poll()
        waiting.register(self._fd, select.POLLIN)
        waiting.register(self._stop_fd, select.POLLIN)
        napping.register(self._stop_fd, select.POLLIN)
        read_at = time.monotonic()
        while all(fd != self._stop_fd for fd, _ in waiting.poll()):
            count = self._pair.intake(self._fd)
            self.tell_fill()
            if count == END:
                if self._has_silent_writers():
                    napping.poll(_DESERTED_PAUSE)
                    continue
                self.is_over = True
                self._notify()
                return
            if count == NO_ROOM:
                self.peak = 1.0
                if (
                    self._drops_oldest
                    and not self._has_room.wait(_SWAP_SECONDS)
                    and self._pair.replace(_without_oldest)
                ):
                    continue
                self._notify()
                self._has_room.wait()
                self._has_room.clear()
            elif count:
                self._notify()
                before, read_at = read_at, time.monotonic()
                nap = min(_LONGEST_NAP, int(1000 * (read_at - before) * _NAP_PART * self._fifo_size / count))
                if nap:
                    # While the intake does not wait, a writer need not wake it, and the next read brings more.
                    napping.poll(nap)

    def tell_fill(self) -> None:
        """Say how full the buffers are. Runs in both threads."""
        fraction = self._pair.fraction
        self.peak = max(self.peak, fraction)
        if self._fill is not None:
            self._fill.set(fraction)

    def has_swapped(self) -> None:
        self.tell_fill()
        self._has_room.set()

    def stop(self) -> None:
        """End the thread; what it has not taken in stays in the FIFO."""
        with contextlib.suppress(OSError):
            os.write(self._stopping_fd, b"\0")
        self._has_room.set()
        self.join()
        os.close(self._stop_fd)
        os.close(self._stopping_fd)


def _without_oldest(content: memoryview) -> bytes | None:
    """Return what stays of the intake buffer so that a full FIFO has room; None if all of it stays."""
    kept, dropped = without_oldest(content, FIFO_SIZE)
    return kept if dropped else None
