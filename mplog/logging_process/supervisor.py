"""The supervisor: keeps a logging process running. A fresh interpreter, which forks the logging process and waits.

::

    program --- exec ---> supervisor --- fork ---> logging process, and another one when it has died
               Launch, NewProcess, Ended           FIFO, buffers; Report

The reading end of the FIFO and the memory of the buffers stay open here, so a killed logging process leaves only
unfinished work, which the next one finishes. No code of the program's and no handler runs here that could crash.

It is not a thread in the program: Python 3.12 and later warn of forks in processes with threads, and the program may be
busy or gone when the logging process dies.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from mplog.errors import MplogError
from mplog.files.notices import say_on_stderr
from mplog.handlers.backlog import count_undelivered
from mplog.logging_process import main as logging_process
from mplog.logging_process.caretaker import Caretaker
from mplog.logging_process.messages import Ended, Launch, NewProcess, Patience, Report
from mplog.logging_process.program import Places
from mplog.logging_process.rescue import Rescue
from mplog.logging_process.signals import Wakeup, ignore_signals
from mplog.monitoring.death_lines import describe_end
from mplog.monitoring.process import memory_kills, memory_kills_since
from mplog.queue import buffer_memory, fifo, kill_points
from mplog.queue.directory import current_fifo_path, given_up_path, open_file
from mplog.record.encoding import describe

if sys.platform != "win32":
    import resource


def main(link: Connection) -> int:
    """Run a logging process, and another one after each death; return the exit status of the last."""
    ignore_signals()
    # All that is imported stays, so the garbage collector need not look at it, here nor in the logging process. It
    # would write into what it looks at, and the kernel would have to copy those pages for each process.
    gc.freeze()
    gc.enable()
    launch: Launch = link.recv()
    if launch.directory is None:
        # A plain queue: nothing survives that another process could go on with.
        return logging_process.main(Places(link, launch))
    try:
        memory = _make_memory(launch.buffer_size, fifo.size(launch.fd))
    except (OSError, ValueError) as error:
        link.send(Ended(logging_process.NOT_STARTED, f"there is no memory for the buffers: {error}"))
        return logging_process.NOT_STARTED
    supervisor = Supervisor(link, launch, memory)
    with contextlib.closing(supervisor.wakeup):
        return supervisor.run()


def _make_memory(size: int, fifo_size: int) -> int:
    """Return the memory of the buffers. The limit on the size of files applies to it, too, but is meant for logs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        return buffer_memory.create(size, fifo_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class _Attempts:
    """Counts the deaths since something was last written, and says when to give up."""

    def __init__(self, memory: int, patience: Patience) -> None:
        self._memory = memory
        self._patience = patience
        self.failed = 0
        self._written = 0
        self._written_at = time.monotonic()

    def pause(self, lived: float) -> float | None:
        """Return the seconds until another logging process is to start; None to give up.

        `lived`: for how many seconds the last one has lived. The death of one that had nothing to do for long is none
        of a series.
        """
        now = time.monotonic()
        try:
            state = buffer_memory.read_state(self._memory)
        except ValueError as error:
            say_on_stderr(f"mplog: {error}")
            return None
        if state.committed > self._written:
            self._written, self._written_at, self.failed = state.committed, now, 0
            return 0.0
        patience = self._patience
        self.failed = 1 if lived > patience.seconds and not state.unwritten else self.failed + 1
        if self.failed > patience.restarts and now - self._written_at > patience.seconds:
            return None
        pauses = self.failed - patience.at_once
        return min(patience.first_pause * 2 ** (pauses - 1), patience.longest_pause) if pauses > 0 else 0.0


class Supervisor:
    """Runs one logging process after the other, all with the same memory of the buffers."""

    def __init__(self, link: Connection, launch: Launch, memory: int) -> None:
        assert launch.directory is not None
        self._link = link
        self._launch = launch
        self._directory = launch.directory
        self._memory = memory
        self._fd = launch.fd
        self._attempts = _Attempts(memory, launch.patience)
        #: Whether a logging process has ever opened its sinks, and whether this one has.
        self._was_ready = self._is_ready = False
        #: How the logging process ends, if it has said so.
        self._ending: Report | None = None
        #: How logging processes have ended, as long as no later one has noted it for the log.
        self._stories: list[str] = []
        self._has_crashed = False
        # The end of its connection does not tell that a logging process has died: its children may hold it open.
        self.wakeup = Wakeup()
        self._caretaker = Caretaker(launch.directory, launch.fd, launch.look)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that a poll wakes up
        # Meant for the program and the workers, whose records are still to be written. The log ends after them.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def run(self) -> int:
        """Return the exit status of the last logging process; in a logging process, its own."""
        while True:
            kills, began, reason = memory_kills(), time.monotonic(), ""
            self._caretaker.look(at_once=True)  # the next logging process finds what the last one has left
            try:
                pid, control, requests = self._fork()
            except OSError as error:
                status = 1
                story = reason = f"no logging process could be started: {error}"
            else:
                if not pid:
                    return self._become_logging_process(control, requests)
                status = self.attend(pid, requests, control)
                memory_kills_meanwhile = memory_kills_since(kills)
                story = f"logging process {pid} {describe_end(status, memory_kills_meanwhile)}"
                self._has_crashed = status != -signal.SIGKILL or memory_kills_meanwhile != 0
                if self._ending is Report.REPLACE:
                    story = f"logging process {pid} was ended by SIGTERM"
                    self._has_crashed = False
                if self._ending is Report.DONE:
                    return self._end(0)  # however it has ended: the interpreter may fail as it ends
                if self._was_ready:
                    self._stories.append(story)
            if not self._was_ready:
                return self._end(status, reason)
            pause = 0.0 if self._ending is Report.REPLACE else self._attempts.pause(time.monotonic() - began)
            if pause is None:
                return self._give_up(story)
            time.sleep(pause)

    def _fork(self) -> tuple[int, Connection, Connection]:
        """Fork; return the pid, 0 in the child, and the ends of the connections to the program and between the two."""
        self._ending, self._is_ready = None, False
        control, theirs = Pipe()
        requests, asking = Pipe()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        pid = os.fork()
        for end in (theirs, asking) if pid else (self._link, control, requests):
            end.close()
        return (pid, control, requests) if pid else (0, theirs, asking)

    def _end(self, status: int, reason: str = "") -> int:
        with contextlib.suppress(OSError):  # the program has gone
            if fifo.wait(self._link.fileno(), select.POLLOUT, 0.0):  # a program that asks nothing may leave no room
                self._link.send(Ended(status, reason))
        return status

    def _become_logging_process(self, control: Connection, supervisor: Connection) -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.wakeup.close()
        self._caretaker.rest()
        if self._was_ready:
            kill_points.arm("")  # each is reached once
        if self._fd < 0:
            self._fd = fifo.open_reader(current_fifo_path(self._directory), of=self._caretaker.fifo)
        stories = tuple(self._stories)
        places = Places(control, self._launch, self._fd, self._memory, supervisor, stories, self._has_crashed)
        try:
            return logging_process.main(places)
        except BaseException:
            traceback.print_exc()
            return 1

    def _hand_over(self, pid: int, control: Connection) -> None:
        """Give the program its end of the control connection."""
        with control, contextlib.suppress(OSError):  # the program has gone
            self._link.send(NewProcess(pid))
            carrier = socket.socket(fileno=self._link.fileno())
            try:
                socket.send_fds(carrier, [b"\0"], [control.fileno()])
            finally:
                carrier.detach()

    def attend(self, pid: int, requests: Connection, control: Connection) -> int:
        """Do what the logging process asks for, until it has ended; return its exit status, negative for a signal.

        The program gets its end of the control connection when the link has room: a program that never asks anything
        never takes one out of the link, and must not hold up later restarts.
        """
        waiting = select.poll()
        waiting.register(self.wakeup.awake, select.POLLIN)
        waiting.register(requests, select.POLLIN)
        waiting.register(self._link, select.POLLOUT)
        status = None
        with control, requests, contextlib.suppress(EOFError, OSError):
            while status is None:
                self._caretaker.work()
                while self._is_ready and self._caretaker.unsaid:
                    requests.send(self._caretaker.unsaid[0])
                    del self._caretaker.unsaid[0]
                ready = [fd for fd, _ in waiting.poll(self._caretaker.timeout())]
                if self._link.fileno() in ready:
                    waiting.unregister(self._link)
                    self._hand_over(pid, control)
                if self.wakeup.awake.fileno() in ready:
                    self.wakeup.clear()
                    ended, how = os.waitpid(pid, os.WNOHANG)
                    status = how if ended else None
                while requests.poll():  # also what it has said before it ended
                    self._answer(requests)
        if status is None:
            status = os.waitpid(pid, 0)[1]
        return os.waitstatus_to_exitcode(status)

    def _answer(self, requests: Connection) -> None:
        """Do what the logging process asks for; raise EOFError or OSError if it has ended."""
        report: Report = requests.recv()
        if report is Report.RELEASE:
            self._caretaker.rest()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            requests.send(None)
        elif report is Report.READY:
            self._was_ready = self._is_ready = True
            self._stories.clear()  # it has noted them down
        else:
            self._ending = report

    def _give_up(self, story: str) -> int:
        """Save what is left in the emergency file, into which workers write from now on, and say so loudly."""
        overflow = self._launch.overflow
        assert overflow is not None
        self._caretaker.look(at_once=True)
        self._caretaker.close()  # what follows needs some descriptors, which may be what there was none of
        self.wakeup.close()
        with contextlib.suppress(OSError):
            os.close(open_file(given_up_path(self._directory), os.O_WRONLY | os.O_CREAT))
        story = f"{story}; it was restarted {self._attempts.failed} times without success, and is given up"
        left = 0
        try:
            left = buffer_memory.read_state(self._memory).unwritten
            rescue = Rescue(self._directory, self._memory, overflow)
            os.close(self._memory)  # which is mapped
            where = rescue.save(self._fd, self._caretaker.fifo)
        except (OSError, ValueError, MemoryError) as error:
            where = f"what is left, some {left:,} bytes of records, could not be saved: {describe(error)}"
        with contextlib.suppress(OSError):
            # Other sinks have written these records, so the next server must not.
            undelivered = count_undelivered(self._directory)
            where += f"; records lost that waited for a CallableSink: {undelivered}" if undelivered else ""
        say_on_stderr(f"mplog: {story}; {where}")
        return self._end(1, story)


def run(link: Connection) -> None:
    """Run `main` and end the interpreter."""
    try:
        status = main(link)
    except MplogError as error:
        say_on_stderr(f"mplog: {error}")
        status = 1
    sys.exit(status)
