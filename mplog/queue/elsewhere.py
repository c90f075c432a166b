"""`Elsewhere`: where a record goes for which the queue has no room, or which no process reads.

::

    Sender --- the policy keeps it ------> emergency file --> the logging process, or that of the next server
          `--- it does not, or no room --> dropped, and counted

The rule of this file: **a record is in one place, and counted once**, whatever interrupts the call.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable

from mplog.errors import NoReaderError
from mplog.queue.directory import emergency_path, fifo_path, is_given_up
from mplog.queue.emergency import EmergencyFile
from mplog.queue.fifo import monotonic
from mplog.queue.losses import Reason
from mplog.queue.overflow import PATIENCE, Overflow
from mplog.record import frame
from mplog.record.decoding import origin_of

#: Counts a record, `Sender.count`.
Count = Callable[[bytes, Reason], object]


class Elsewhere:
    """What one process does with the records that its queue does not take.

    The methods get the `Overflow` of the queue with each call, since the program may set another.

    Args:
        directory: of the queue.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._gave_up_at = -math.inf
        self._told_in_pid = 0
        #: Records that wait in an interrupted call, by process and thread: see `put`.
        self._held: dict[tuple[int, int], list[tuple[bytes, Reason, bool]]] = {}

    @property
    def has_given_up(self) -> bool:
        """Whether a record has waited in vain a short time ago."""
        return monotonic() - self._gave_up_at < PATIENCE

    def give_up(self) -> None:
        """Note that a record has waited in vain."""
        self._gave_up_at = monotonic()

    def put(self, payload: bytes, reason: Reason, is_synced: bool, overflow: Overflow, count: Count) -> bool | None:
        """Put a record for which the queue has no room into the emergency file, or drop it.

        This takes some system calls. A signal handler that has interrupted it leaves its own record to the interrupted
        call: it could itself be interrupted here, and so on, without end.

        Args:
            payload: the record.
            reason: why it is not in the queue.
            is_synced: whether it is to be kept whatever the policy, and on disk.
            overflow: the policy.
            count: called with what is dropped or kept here.

        Returns:
            True where it is in the file, None where it is on disk, too, or left to another call, False where it is
            dropped.
        """
        # The pid, since a signal handler may fork: in the child, the interrupted call may never go on.
        key = os.getpid(), threading.get_ident()
        held = self._held.get(key)
        if held is not None:
            held.append((payload, reason, is_synced))
            return None
        results: list[bool | None] = []
        raised: BaseException | None = None
        held = [(payload, reason, is_synced)]
        while held:
            self._held[key] = held
            try:
                results.append(self._keep_or_drop(*held[0], overflow, count))
            except BaseException as error:
                raised = raised or error
            finally:
                del held[0], self._held[key]  # only then is the list looked at again
        if raised is not None:
            raise raised
        return results[0]

    def _keep_or_drop(
        self, payload: bytes, reason: Reason, is_synced: bool, overflow: Overflow, count: Count
    ) -> bool | None:
        level = level_of(payload)
        if not is_synced and not overflow.keeps(level):
            count(payload, reason)
            return False
        file = self.file(level, overflow)
        is_on_disk = False
        try:
            is_on_disk = file.append(frame.whole(frame.RECORD, payload), sync=is_synced)
        except OSError:
            pass
        except BaseException as error:
            count(payload, Reason.EMERGENCY if file.has_appended else reason_of(error))
            raise
        count(payload, Reason.EMERGENCY if file.has_appended else Reason.NO_EMERGENCY)
        return None if is_on_disk else file.has_appended

    def has_next_server(self, overflow: Overflow) -> bool:
        """Whether the next server of the log is to write what no process reads now.

        The FIFO is still in its place if the logging process and its supervisor were killed, and gone if they have
        ended in order.
        """
        if is_given_up(self._directory):
            return True  # the supervisor has said so
        path = overflow.emergency
        if path is None or not os.path.exists(fifo_path(self._directory)):
            return False
        if self._told_in_pid != os.getpid() and sys.stderr is not None:
            self._told_in_pid = os.getpid()
            with contextlib.suppress(Exception):
                sys.stderr.write(
                    f"mplog: the logging process and its supervisor were killed. Records of pid {os.getpid()} go into "
                    f"{path}, and the next server of the log writes them.\n"
                )
        return True

    def file(self, level: int, overflow: Overflow) -> EmergencyFile:
        """Return the emergency file, with the room that there is for records of a level."""
        return EmergencyFile(overflow.emergency or emergency_path(self._directory), overflow.room(level))


def level_of(payload: bytes) -> int:
    """Return the level of an encoded record."""
    try:
        return origin_of(payload).levelno
    except (ValueError, RecursionError):
        return logging.NOTSET


def reason_of(error: BaseException) -> Reason:
    """Return why a record is lost that an exception has kept out of the queue."""
    return Reason.REJECTED if isinstance(error, NoReaderError) else Reason.INTERRUPTED
