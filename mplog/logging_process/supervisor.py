"""The supervisor: keeps a logging process running. A fresh interpreter, which forks the logging process and waits.

::

    program --- exec ---> supervisor --- fork ---> logging process, and another one when it has died
              configuration, control ends          FIFO, buffers

The rule of this file: **it holds what must outlive the logging process, and does nothing else.** The reading end of the
FIFO and the memory of the buffers stay open here, so a killed logging process leaves nothing behind but unfinished
work, which the next one finishes. It runs no code of the program's and no handlers, so there is nothing to crash it.

Not a thread in the program: Python 3.12 and later warn of forks in processes with threads, and the program may be busy
or gone when the logging process dies.
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
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from mplog.errors import MplogError
from mplog.logging_process import main as logging_process
from mplog.monitoring.deaths import describe_end, memory_kills

if sys.platform != "win32":
    import resource

    from mplog.handlers.callable import count_undelivered
    from mplog.queue import buffers, fifo
    from mplog.queue import kill_points as faults
    from mplog.queue import log_queue as queue
    from mplog.queue.emergency import EmergencyFile

__all__ = ["Patience", "main", "run"]


@dataclass(frozen=True)
class Patience:
    """How a supervisor answers logging processes that die one after the other, with nothing written in between.

    Attributes:
        at_once: so many are replaced at once; further ones after a pause.
        first_pause: the first such pause, in seconds; each is twice as long as the one before.
        longest_pause: but no longer than this.
        restarts: it gives up after so many in vain,
        seconds: but not before nothing has been written for so many seconds: what makes them die may pass.
    """

    at_once: int = 5
    first_pause: float = 0.1
    longest_pause: float = 5.0
    restarts: int = 12
    seconds: float = 60.0


def main(link: Connection) -> int:
    """Run a logging process, and others after it, to the end of the last one; return the exit status.

    Args:
        link: the connection to the program.
    """
    logging_process.ignore_signals()
    # All that is imported stays. The garbage collector need not look at it, here nor in the logging process: it writes
    # into what it looks at, so the kernel would have to copy that for each.
    gc.freeze()
    gc.enable()
    configuration, directory, fd, size, emergency, patience = link.recv()
    if directory is None:
        # A plain queue: nothing survives that another process could go on with.
        return logging_process.main(logging_process.Places(link, configuration, os.getppid()))
    try:
        memory = _make_memory(size, fifo.size(fd))
    except (OSError, ValueError) as error:
        link.send(("failed", f"there is no memory for the buffers: {error}"))
        return logging_process.NOT_STARTED
    return _Supervisor(link, configuration, directory, fd, memory, emergency, patience).run()


def _make_memory(size: int, fifo_size: int) -> int:
    """Return the memory of the buffers. The limit on the size of files, which it counts as one of, is for logs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        return buffers.create(size, fifo_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class _Supervisor:
    def __init__(
        self,
        link: Connection,
        configuration: bytes,
        directory: str,
        fd: int,
        memory: int,
        emergency: EmergencyFile,
        patience: Patience,
    ) -> None:
        self._link = link
        self._configuration = configuration
        self._owner = os.getppid()
        self._directory = directory
        self._fd = fd
        self._memory = memory
        self._emergency = emergency
        self._patience = patience
        self._pid = 0
        self._was_ready = False
        self._is_done = False
        self._deaths = 0
        self._fruitless = 0
        #: What became of those of which no other has come to say it.
        self._stories: list[str] = []
        self._written = 0
        self._written_at = time.monotonic()
        self._is_terminated = False
        self._is_ready = False
        # Not only the end of its connection tells that a logging process has died: what it has forked may hold that.
        self._wakeup, self._signals = socket.socketpair()
        self._wakeup.setblocking(False)
        self._signals.setblocking(False)
        signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake_up)
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        """Have it passed on: it is the logging process that ends, when everything is written."""
        self._is_terminated = True
        self._pass_on()

    def _pass_on(self) -> None:
        """Tell the logging process to end. One that is just being started is told when it is ready."""
        if self._is_terminated and self._is_ready and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until SIGTERM."""
        deadline = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(self._wakeup, select.POLLIN)
        was_terminated = self._is_terminated
        while self._is_terminated == was_terminated and (left := deadline - time.monotonic()) > 0:
            waiting.poll(left * 1000)
            self._take_signals()

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)

    def run(self) -> int:
        """Return the exit status: of the last logging process; in a logging process, its own."""
        try:
            return self._run()
        finally:
            signal.set_wakeup_fd(-1)
            self._wakeup.close()
            self._signals.close()

    def _run(self) -> int:
        while True:
            control, theirs = Pipe()
            requests, asking = Pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            self._pid, self._is_ready = 0, False
            kills = memory_kills()
            pid = os.fork()
            if not pid:
                self._link.close()
                control.close()
                requests.close()
                return self._become_logging_process(theirs, asking)
            self._pid = pid
            theirs.close()
            asking.close()
            status = self._attend(pid, requests, control)
            requests.close()
            if self._is_done:
                return 0  # whatever has come after: a second SIGTERM, for instance, as the interpreter ends
            if not self._was_ready:
                return status
            self._deaths += 1
            self._stories.append(f"logging process {pid} {describe_end(status, _since(kills))}")
            if not self._may_go_on():
                return self._give_up(self._stories[-1])

    def _become_logging_process(self, control: Connection, supervisor: Connection) -> int:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._wakeup.close()
        self._signals.close()
        if self._deaths:
            faults.arm("")  # a point of death is reached once
        if self._fd < 0:
            self._fd = fifo.open_reader(queue.fifo_path(self._directory))
        places = logging_process.Places(
            control,
            self._configuration,
            self._owner,
            self._directory,
            self._fd,
            self._memory,
            supervisor,
            tuple(self._stories),
        )
        try:
            return logging_process.main(places)
        except BaseException:
            traceback.print_exc()
            return 1

    def _hand_over(self, pid: int, control: Connection) -> None:
        """Give the program its end of the control connection."""
        with control, contextlib.suppress(OSError):  # it has gone
            self._link.send(("process", pid))
            with socket.socket(fileno=os.dup(self._link.fileno())) as carrier:
                socket.send_fds(carrier, [b"\0"], [control.fileno()])

    def _attend(self, pid: int, requests: Connection, control: Connection) -> int:
        """Do what the logging process asks for, until it has ended; return its exit status, negative for a signal.

        The program gets its end of the control connection when the link has room: one that asks nothing takes none of
        them, and must not hold up the restarts to come.
        """
        waiting = select.poll()
        waiting.register(self._wakeup, select.POLLIN)
        waiting.register(requests, select.POLLIN)
        waiting.register(self._link, select.POLLOUT)
        status = None
        with control, contextlib.suppress(EOFError, OSError):
            while status is None:
                ready = [fd for fd, _ in waiting.poll()]
                if self._link.fileno() in ready:
                    waiting.unregister(self._link)
                    self._hand_over(pid, control)
                if self._wakeup.fileno() in ready:
                    self._take_signals()
                    ended, how = os.waitpid(pid, os.WNOHANG)
                    status = how if ended else None
                while requests.poll():  # what it has said before it ended, too
                    self._answer(requests)
        if status is None:
            status = os.waitpid(pid, 0)[1]
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _answer(self, requests: Connection) -> None:
        """Do what the logging process asks for.

        Raises:
            EOFError, OSError: it has ended.
        """
        request = requests.recv()
        if request in ("ready", "done"):
            self._was_ready = self._is_ready = True
            self._stories.clear()  # it has noted them down
            self._is_done = request == "done"
            self._pass_on()
            return
        # It ends: writers are to learn that nobody reads any more.
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        requests.send(None)

    def _may_go_on(self) -> bool:
        """Whether to start another one, having waited where that seems wise."""
        now = time.monotonic()
        try:
            written = buffers.read_state(self._memory).committed
        except ValueError as error:
            print(f"mplog: {error}", file=sys.stderr, flush=True)
            return False
        if written > self._written:
            self._written, self._written_at, self._fruitless = written, now, 0
            return True
        self._fruitless += 1
        patience = self._patience
        is_long = self._is_terminated or now - self._written_at > patience.seconds
        if self._fruitless > patience.restarts and is_long:
            return False
        if self._fruitless > patience.at_once:
            pause = patience.first_pause * 2 ** (self._fruitless - patience.at_once - 1)
            self._pause(min(pause, patience.longest_pause))
        return True

    def _rescue(self) -> bool:
        """Save what is in the buffers and in the FIFO; return whether there was room for it."""
        pair = buffers.BufferPair(self._memory)
        if self._fd < 0:
            # The last one was about to end, and had this closed. Somebody may have come since.
            with contextlib.suppress(OSError):
                self._fd = fifo.open_reader(queue.fifo_path(self._directory))
        while _save(pair, self._emergency):
            if self._fd < 0:
                return True
            if pair.intake(self._fd) <= 0:
                os.close(self._fd)  # from here on, workers write there themselves
                self._fd = -1
        return False

    def _give_up(self, story: str) -> int:
        """End loudly, with what is left in the emergency file, where workers write from now on."""
        with contextlib.suppress(OSError), open(queue.given_up_path(self._directory), "w", encoding="ascii"):
            pass
        story = f"{story}; it was restarted {self._fruitless} times in vain, and is given up"
        try:
            where = f"what is left is in {self._emergency.path}" if self._rescue() else "the emergency file is full"
        except (OSError, ValueError) as error:
            where = f"what is left could not be saved: {error}"
        with contextlib.suppress(OSError):
            # Other sinks have them, so they are not for the next server.
            undelivered = count_undelivered(self._directory)
            where += f"; {undelivered} records that waited for a function are lost to it" if undelivered else ""
        with contextlib.suppress(OSError):  # nobody reads it any more
            print(f"mplog: {story}; {where}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            self._link.send(("failed", story))
        return 1


def _wake_up(*_: object) -> None:
    """Take a signal, so that who waits wakes up."""


def _save(pair: buffers.BufferPair, emergency: EmergencyFile) -> bool:
    """Append what a pair of buffers holds to the emergency file; return whether there was room."""
    while True:
        data = bytes(pair.unwritten())
        if data and not emergency.append(data):
            return False
        pair.commit(len(data))
        if not pair.swap():
            return True


def _since(kills: int | None) -> int | None:
    """Return how many processes the kernel has killed for lack of memory since it had killed so many."""
    now = memory_kills()
    return None if kills is None or now is None else max(0, now - kills)


def run(link: Connection) -> None:
    """Run `main` as what the interpreter does, and end it."""
    try:
        status = main(link)
    except MplogError as error:
        print(f"mplog: {error}", file=sys.stderr, flush=True)
        status = 1
    if status < 0:
        # End as the logging process has.
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
