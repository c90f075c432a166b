"""The loop of the logging process: take a batch, hand it to the handlers, commit it, and see what else there is.

::

    Source -- batch --> Dispatcher -> handlers -> files          then Commit, and the source learns of it
    program -- Question --> Answer
    deaths of workers, signals, what is due --> lines of our own, and a commit of them

The rule of this file: **it waits for everything at once, and for nothing alone**, except for a file that cannot be
written, while it still listens to the program and to signals.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import msgspec

from mplog.logging_process.accounts import Accounts
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.messages import ChildEnded, Records, Report
from mplog.logging_process.program import Program
from mplog.logging_process.signals import TERMINATION_SECONDS, Signals
from mplog.logging_process.source import Batch, Source
from mplog.logging_process.workers import Workers
from mplog.monitoring.statistics import Stats
from mplog.queue.kill_points import reach

if TYPE_CHECKING:
    from mplog.logging_process.commit import Commit

#: Seconds between two lines about the same thing.
_REPORT_SECONDS = 1.0

#: While one batch follows another, seconds between two looks at the program and at signals.
_LISTEN_SECONDS = 0.005

#: Seconds between two looks whether functions have taken all that a `flush` waits for.
_DELIVERY_SECONDS = 0.05

#: Seconds between two attempts to write into a file that cannot be written: the first, and the longest.
_FIRST_RETRY = 0.05
_LONGEST_RETRY = 1.0
#: Records of a plain queue that are taken meanwhile.
_MOST_UNWRITTEN = 10_000
#: Seconds for which the loop goes on trying when it is to end, as `DrainTimeoutError` says.
LAST_RETRIES_SECONDS = 60.0


class _Flush(msgspec.Struct):
    """A flush, answered when `done` has reached `due`, `files_due` emergency files are read, and `marks` delivered."""

    number: int
    due: int
    files_due: int
    marks: list[int] | None = None


@dataclass(eq=False)
class Loop:
    """The loop. `commit` is None for a plain queue: nothing of it outlives this process."""

    dispatcher: Dispatcher
    source: Source
    commit: Commit | None
    accounts: Accounts
    workers: Workers
    program: Program
    signals: Signals

    def __post_init__(self) -> None:
        self._flushes: list[_Flush] = []
        self._stop_request: int | None = None
        self._is_over = False
        #: Records that were taken while a file could not be written; None if all can.
        self._unwritten: int | None = None
        self.dispatcher.keep_trying()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        """Runs in a process that a handler has forked: close what tells others that the logging process lives."""
        self.signals.let_go()
        self.program.let_go()
        self.workers.close()
        self.source.let_go()

    # --- the pass ---

    def run(self) -> int:
        """Handle records until told to stop, or until no writer is left; return the exit status."""
        self.source.start()
        listened_at = 0.0
        while not self._is_over:
            has_worked = self._work()
            if has_worked and time.monotonic() - listened_at < _LISTEN_SECONDS:
                continue
            if not self._is_over:
                self._attend(0 if has_worked else self._timeout())
                self._check()
                listened_at = time.monotonic()
                if self.signals.has_waited and self.program.supervisor is not None and not self._is_over:
                    self._leave()
                    return 0
        self._finish()
        return 0

    def _work(self) -> bool:
        batch = self.source.take()
        if batch is None:
            self._is_over |= self.source.is_over()
            return False
        self._handle(batch)
        self._answer_flushes()
        return True

    def _handle(self, batch: Batch) -> None:
        self._write(batch)
        is_on_disk = not batch.is_awaited or self.dispatcher.sync()
        reach("after write")
        self.accounts.gather()
        if self.commit is not None:
            self.commit.commit(batch.taken, batch.rescued, is_set_aside=batch.is_set_aside)
        self.source.settle(batch, is_on_disk)

    def _write(self, batch: Batch) -> None:
        if batch.pieces:
            self.dispatcher.handle_bytes(batch.pieces)
            self._retry()
        counts = self.dispatcher.handle(batch.entries) if batch.entries else {}
        self.accounts.count(batch, counts)  # of bytes alone, too: there may be losses to say
        if batch.entries:
            self.workers.hear(counts)
            if self._unwritten is not None:
                self._unwritten += len(batch.entries)
            self._retry()

    def _retry(self) -> None:
        """Wait until everything is in its file, however long that takes, and say so."""
        if self._unwritten is not None or not self.dispatcher.stuck:
            return
        self._unwritten = 0
        since, pause = time.monotonic(), _FIRST_RETRY
        while self.dispatcher.stuck and (not self._is_over or time.monotonic() - since < LAST_RETRIES_SECONDS):
            # Records of a plain queue come meanwhile. Once many wait, the loop leaves further ones in the queue.
            self._attend(pause, hears_program=self._unwritten < _MOST_UNWRITTEN)
            pause = min(2 * pause, _LONGEST_RETRY)
            self.dispatcher.say_stuck()
            self.dispatcher.flush()
        self._unwritten = None
        self.dispatcher.say_unstuck(time.monotonic() - since)

    # --- what else there is ---

    def _attend(self, timeout: float | None, *, hears_program: bool = True) -> None:
        """Wait at most `timeout` seconds for a question of the program, a death or a signal, and act on it."""
        control = self.program.control if hears_program else None
        awake, ended, supervisor = self.signals.awake, self.workers.fileno(), self.program.supervisor
        ready = wait([one for one in (control, awake, ended, supervisor) if one is not None], timeout)
        if awake in ready:
            self.signals.clear()
        if self.signals.shall_reopen:
            self.signals.shall_reopen = False
            self.dispatcher.reopen()
        if ended in ready:
            self.accounts.see_ended(self.workers.look(self.source.due))
        if supervisor in ready:
            self.program.hear()
        if control in ready:
            self._answer()

    def _check(self) -> None:
        self.workers.say_deaths(self.source.done())
        self._say_lines()
        self.dispatcher.work()
        self.dispatcher.troubles.report()
        self.dispatcher.flush()  # what functions have logged in their own threads
        self._retry()
        self.source.check()
        self.accounts.check(self.source.done(), self.source.due, self.workers)
        reach("after say")
        self._keep_said()
        self._answer_flushes()

    def _timeout(self) -> float | None:
        """Return the seconds until something is due; None if nothing is: an idle logging process never wakes up."""
        if self.signals.terminated_at is not None and self.program.supervisor is not None:
            return TERMINATION_SECONDS / 5
        if any(flush.marks is not None for flush in self._flushes):
            return _DELIVERY_SECONDS
        dispatcher = self.dispatcher
        times = [
            _REPORT_SECONDS if dispatcher.troubles.has_unsaid else dispatcher.seconds_until_due(),
            self.source.timeout(),
            self.accounts.timeout(),
        ]
        return min((each for each in times if each is not None), default=None)

    def _say_lines(self) -> None:
        """Say what the supervisor has for the log."""
        while self.program.lines:
            self.dispatcher.say(self.program.lines.pop(0))

    def _keep_said(self) -> None:
        """Commit lines and counts that belong to no batch, so that a restart does not take them back."""
        self._retry()
        self.accounts.gather()
        if self.commit is not None and self.commit.is_due:
            self.commit.commit()
        self.accounts.remove_files()

    # --- the program ---

    def _answer(self) -> None:
        message = self.program.receive()
        if message is None:
            self._desert()
        elif isinstance(message, Records):
            self.source.put(message.payloads)
            self._work()
        elif isinstance(message, ChildEnded):
            ended = self.workers.told(message.pid, message.name, message.exitcode, self.source.due)
            self.accounts.see_ended(ended)
        elif message.command == "flush":
            # Also the records in the emergency files: they were logged before the flush.
            self._flushes.append(_Flush(message.number, self.source.due(), self.source.files_due()))
            self._answer_flushes()
        elif message.command == "stats":
            self._reply(message.number)
        elif message.command == "stop":
            self._stop_request = message.number
            self._is_over = True

    def _reply(self, number: int, stats: Stats | None = None) -> None:
        if self.program.control is not None:
            self.program.answer(number, stats or self.accounts.stats())
            if self.program.control is None:
                self._desert()

    def _desert(self) -> None:
        self._is_over |= self.source.desert()

    def _answer_flushes(self) -> None:
        """Answer the flushes for which everything is written and delivered."""
        for flush in self._flushes:
            if flush.marks is None and self._is_written(flush):
                flush.marks = self.dispatcher.send_now()
        self._answer_delivered()

    def _is_written(self, flush: _Flush) -> bool:
        if self.source.done() < flush.due:
            return False
        while not self.dispatcher.stuck:
            rescued = self.source.take_rescued(flush.files_due)
            if rescued is None:
                return not self.source.waits_for_queue()
            self._handle(rescued)
        return False

    def _answer_delivered(self) -> None:
        """Answer, in order, the flushes for which functions have taken all that is written."""
        # Not in the middle of a batch that waits for its file: the commit would not match what is written.
        while self._flushes and not self.dispatcher.stuck:
            flush = self._flushes[0]
            if flush.marks is None or not self.dispatcher.is_delivered(flush.marks):
                return
            del self._flushes[0]
            self.dispatcher.work()  # counts what has failed
            self._keep_said()
            self._reply(flush.number)

    # --- the end ---

    def _leave(self) -> None:
        """Close the log, and have another logging process go on with what is not written."""
        self.source.halt()
        self.dispatcher.close()
        self._keep_said()
        self.program.report(Report.REPLACE)

    def _finish(self) -> None:
        """Take out what is left, close the log, and report."""
        self.source.end(self._work, self.program.release)
        self._say_lines()
        self.accounts.check_all(self.source.done())
        self._keep_said()
        self.workers.say_last_deaths(waits=self.program.control is None)
        self.dispatcher.close()
        self._answer_delivered()
        stats = self.accounts.stats()
        self.source.remove()
        self.program.report(Report.DONE)
        if self._stop_request is not None:
            self._reply(self._stop_request, stats)
        self.signals.close()
        self.workers.close()
