"""The supervisor: keeps a logging process running. A fresh interpreter, which forks the logging process and waits.

::

    program --- exec ---> supervisor --- fork ---> logging process, and another one when it has died
               Launch, NewProcess                  FIFO, buffers; Report

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
from multiprocessing import Pipe, connection
from multiprocessing.connection import Connection

from mplog.errors import MplogError
from mplog.files.notices import say_on_stderr
from mplog.handlers.backlog import count_undelivered
from mplog.logging_process import main as logging_process
from mplog.logging_process.caretaker import Caretaker
from mplog.logging_process.messages import GivenUp, Launch, NewProcess, Patience, Report
from mplog.logging_process.program import Places
from mplog.logging_process.signals import Wakeup
from mplog.monitoring.death_lines import describe_end
from mplog.monitoring.process import memory_kills, memory_kills_since
from mplog.queue import buffer_memory, buffers, fifo, kill_points
from mplog.queue.directory import fifo_path, given_up_path, open_file
from mplog.queue.emergency import EmergencyFile

if sys.platform != "win32":
    import resource


def main(link: Connection) -> int:
    """Run a logging process, and another one after each death; return the exit status of the last."""
    logging_process.ignore_signals()
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
        link.send(GivenUp(f"there is no memory for the buffers: {error}"))
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

    def pause(self, *, is_terminated: bool) -> float | None:
        """Return the seconds until another logging process is to start; None to give up."""
        now = time.monotonic()
        try:
            written = buffer_memory.read_state(self._memory).committed
        except ValueError as error:
            say_on_stderr(f"mplog: {error}")
            return None
        if written > self._written:
            self._written, self._written_at, self.failed = written, now, 0
            return 0.0
        self.failed += 1
        patience = self._patience
        is_long = is_terminated or now - self._written_at > patience.seconds
        if self.failed > patience.restarts and is_long:
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
        #: The logging process, when its sinks are open; 0 until then.
        self._ready_pid = 0
        self._was_ready = False
        self._is_done = False
        self._is_terminated = False
        #: How logging processes have ended, as long as no later one has noted it for the log.
        self._stories: list[str] = []
        # The end of its connection does not tell that a logging process has died: its children may hold it open.
        self.wakeup = Wakeup()
        self._caretaker = Caretaker(launch.directory, launch.fd, launch.look)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that a poll wakes up
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        self._is_terminated = True
        self._pass_on_sigterm()

    def _pass_on_sigterm(self) -> None:
        """Once the logging process is ready, tell it to end when everything is written."""
        if self._is_terminated and self._ready_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._ready_pid, signal.SIGTERM)

    def _pause(self, seconds: float, was_terminated: bool) -> None:
        """Wait, but no longer than until SIGTERM, unless it had come before the logging process ended."""
        deadline = time.monotonic() + seconds
        while self._is_terminated == was_terminated and (left := deadline - time.monotonic()) > 0:
            connection.wait([self.wakeup.awake], left)
            self.wakeup.clear()

    def run(self) -> int:
        """Return the exit status of the last logging process; in a logging process, its own."""
        while True:
            control, theirs = Pipe()
            requests, asking = Pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            kills = memory_kills()
            self._caretaker.look(at_once=True)  # the next logging process finds what the last one has left
            pid = os.fork()
            if not pid:
                self._link.close()
                control.close()
                requests.close()
                return self._become_logging_process(theirs, asking)
            theirs.close()
            asking.close()
            was_terminated = self._is_terminated
            status = self.attend(pid, requests, control)
            requests.close()
            if self._is_done:
                return 0  # however it has ended: a second SIGTERM may have come as the interpreter ended
            if not self._was_ready:
                return status
            self._stories.append(f"logging process {pid} {describe_end(status, memory_kills_since(kills))}")
            pause = self._attempts.pause(is_terminated=self._is_terminated)
            if pause is None:
                return self._give_up(self._stories[-1])
            self._pause(pause, was_terminated)

    def _become_logging_process(self, control: Connection, supervisor: Connection) -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.wakeup.close()
        if self._was_ready:
            kill_points.arm("")  # each is reached once
        if self._fd < 0:
            self._fd = fifo.open_reader(fifo_path(self._directory), of=self._caretaker.fifo)
        places = Places(control, self._launch, self._fd, self._memory, supervisor, tuple(self._stories))
        try:
            return logging_process.main(places)
        except BaseException:
            traceback.print_exc()
            return 1

    def _hand_over(self, pid: int, control: Connection) -> None:
        """Give the program its end of the control connection."""
        with control, contextlib.suppress(OSError):  # the program has gone
            self._link.send(NewProcess(pid))
            with socket.socket(fileno=os.dup(self._link.fileno())) as carrier:
                socket.send_fds(carrier, [b"\0"], [control.fileno()])

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
        with control, contextlib.suppress(EOFError, OSError):
            while status is None:
                self._caretaker.work()
                while self._ready_pid and self._caretaker.unsaid:
                    requests.send(self._caretaker.unsaid[0])
                    del self._caretaker.unsaid[0]
                    os.kill(pid, signal.SIGIO)  # no descriptor more to wait for: there may be a low limit to them
                ready = [fd for fd, _ in waiting.poll(self._caretaker.timeout())]
                if self._link.fileno() in ready:
                    waiting.unregister(self._link)
                    self._hand_over(pid, control)
                if self.wakeup.awake.fileno() in ready:
                    self.wakeup.clear()
                    ended, how = os.waitpid(pid, os.WNOHANG)
                    status = how if ended else None
                while requests.poll():  # also what it has said before it ended
                    self._answer(pid, requests)
        if status is None:
            status = os.waitpid(pid, 0)[1]
        self._ready_pid = 0
        return os.waitstatus_to_exitcode(status)

    def _answer(self, pid: int, requests: Connection) -> None:
        """Do what the logging process asks for; raise EOFError or OSError if it has ended."""
        report: Report = requests.recv()
        if report is Report.RELEASE:
            self._caretaker.rest()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            requests.send(None)
            return
        self._ready_pid, self._was_ready = pid, True
        self._stories.clear()  # it has noted them down
        self._is_done = report is Report.DONE
        self._pass_on_sigterm()

    def _rescue(self, emergency: EmergencyFile) -> bool:
        """Save what is in the buffers and in the FIFO; return whether there was room."""
        pair = buffers.BufferPair(self._memory)
        if self._fd < 0:
            # The last logging process was about to end, and had the FIFO closed. Workers may have written since.
            with contextlib.suppress(OSError):
                self._fd = fifo.open_reader(fifo_path(self._directory), of=self._caretaker.fifo)
        while _save(pair, emergency):
            if self._fd < 0:
                return True
            if pair.intake(self._fd) <= 0:
                os.close(self._fd)  # from here on, workers write there themselves
                self._fd = -1
        return False

    def _give_up(self, story: str) -> int:
        """Save what is left in the emergency file, into which workers write from now on, and say so loudly."""
        emergency = self._launch.emergency
        assert emergency is not None
        self._caretaker.look(at_once=True)
        with contextlib.suppress(OSError):
            os.close(open_file(given_up_path(self._directory), os.O_WRONLY | os.O_CREAT))
        story = f"{story}; it was restarted {self._attempts.failed} times without success, and is given up"
        try:
            where = f"what is left is in {emergency.path}" if self._rescue(emergency) else "the emergency file is full"
        except (OSError, ValueError) as error:
            where = f"what is left could not be saved: {error}"
        with contextlib.suppress(OSError):
            # Other sinks have written these records, so the next server must not.
            undelivered = count_undelivered(self._directory)
            where += f"; records lost that waited for a CallableSink: {undelivered}" if undelivered else ""
        say_on_stderr(f"mplog: {story}; {where}")
        with contextlib.suppress(OSError):
            self._link.send(GivenUp(story))
        return 1


def _save(pair: buffers.BufferPair, emergency: EmergencyFile) -> bool:
    """Append what a pair of buffers holds to the emergency file; return whether there was room."""
    while True:
        data = bytes(pair.unwritten())
        if data and not emergency.append(data):
            return False
        pair.commit(len(data))
        if not pair.swap():
            return True


def run(link: Connection) -> None:
    """Run `main` and end the interpreter."""
    try:
        status = main(link)
    except MplogError as error:
        say_on_stderr(f"mplog: {error}")
        status = 1
    if status < 0:
        # End as the logging process has ended.
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
