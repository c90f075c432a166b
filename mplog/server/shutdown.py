"""`GracefulShutdown`: end a program in the right order when it is told to by a signal.

::

    signal -> exception in the main thread -> the program's own with-blocks and finally-clauses
           -> producers stopped -> LogServer.stop() -> what was not written, said on stderr
           -> what the signal would have done
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

from mplog.errors import MplogError, ServerStateError
from mplog.files.notices import say_on_stderr
from mplog.monitoring.death_lines import signal_name
from mplog.monitoring.statistics import missing
from mplog.queue.fifo import monotonic
from mplog.record.encoding import describe
from mplog.server.log_server import LogServer

#: Seconds in all. Docker kills ten seconds after its SIGTERM, and others wait for longer.
TIMEOUT = 8.0

_Handler = Callable[[int, FrameType | None], Any] | int | None


class GracefulShutdown:
    """Stop what logs, write what was logged, and only then let a signal end the program. A context manager.

    >>> with LogServer("app.log") as server, GracefulShutdown(server):                 # doctest: +SKIP
    ...     with Pool(4, initializer=server.initializer) as pool:
    ...         pool.map(work, tasks)

    Without it, SIGTERM ends a Python program on the spot, and leaves its workers to themselves. With it, SIGTERM raises
    SystemExit in the main thread, and SIGINT KeyboardInterrupt as ever, so that the program leaves its ``with`` blocks.
    When the program leaves this block,

    1. `producers` are stopped, and all children of ``multiprocessing`` and ``multiprocess``: terminated, and killed
       after half of `timeout`. What they have logged is in the queue, and not lost.
    2. The server is stopped: everything in the queue is written. If something is not, stderr says so.
    3. The signal does what it would have done: the exit status tells that it has terminated the program, and a
       KeyboardInterrupt propagates.

    The signal counts once: more signals within `timeout` seconds, as when a user presses Ctrl-C three times, change
    nothing. If no signal came, leaving the block does nothing.

    A handler of the program's own is called as before. If it returns, the program goes on; if it raises, the program
    leaves the block as above. So frameworks that handle signals themselves (uvicorn, gunicorn, Celery, asyncio) need
    only ``with LogServer(...)`` around them. A signal that is ignored (nohup) stays ignored. Python runs handlers
    between two of its own instructions, so a call into C must return first; CPython also misses a signal that comes
    just before the main thread begins to wait for a lock. After a signal to the whole process group, which also ends
    the workers of a ``Pool``, the ``Pool`` may wait for ever on a busy machine, as with CPython alone: the program must
    then be killed, and what was logged is written all the same.

    Args:
        server: the server.
        producers: what logs and is neither a child of ``multiprocessing`` or ``multiprocess`` nor stopped by a ``with``
            block in this one: ``subprocess.Popen`` objects, and pools and executors, which would replace the children
            that are terminated. Anything with a ``terminate()`` or a ``shutdown()``; or else TypeError is raised.
        signals: which signals; SIGTERM and SIGINT by default.
        timeout: seconds that all of this may take; 8 by default, since Docker kills after 10.
    """

    def __init__(
        self,
        server: LogServer,
        *producers: Any,
        signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT),
        timeout: float = TIMEOUT,
    ) -> None:
        for producer in producers:
            if not callable(getattr(producer, "terminate", None)) and not callable(getattr(producer, "shutdown", None)):
                raise TypeError(f"a producer is a pool, an executor or a process, not {producer!r}")
        self._server = server
        self._producers = producers
        self._signals = tuple(signals)
        self._timeout = timeout
        self._previous: dict[int, _Handler] = {}
        self._owner = 0
        self._received: list[int] = []
        self._held: list[int] = []
        self._quiet_until = 0.0
        self._is_closing = False

    def __repr__(self) -> str:
        names = ", ".join(map(signal_name, self._signals))
        return f"<GracefulShutdown {self._server!r} on {names}>"

    def __enter__(self) -> GracefulShutdown:
        """Begin to wait for the signals.

        Raises:
            ServerStateError: this is not the main thread, where Python handles signals; or the object is in use.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ServerStateError(
                f"GracefulShutdown() was entered in {threading.current_thread().name}, but Python handles signals in "
                "the main thread alone. Enter it there, around what starts the threads."
            )
        if self._owner:
            raise ServerStateError(f"{self!r} is in use already. Make one for each with.")
        _restore_in_forks()
        self._owner = os.getpid()
        _active.append(self)
        for number in self._signals:
            before = signal.getsignal(number)
            # None: a handler that is not Python's, which can be neither called nor put back.
            if before is not None and before != signal.SIG_IGN:
                self._previous[number] = before
                signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number, signal.SIG_DFL)
        # Exceptions in a fork hook are swallowed, so the signal is sent again, to arrive after the hook.
        if frame is not None and frame.f_code in _FORK_HOOKS and self._owner == os.getpid():
            _thread.interrupt_main(number)  # type: ignore[arg-type]
        elif self._is_closing:
            self._held.append(number)
        elif callable(previous) and previous is not signal.default_int_handler:
            self._received.append(number)
            previous(number, frame)
        elif not self._received or monotonic() >= self._quiet_until:
            self._received.append(number)
            self._quiet_until = monotonic() + self._timeout
            if previous is signal.default_int_handler:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        elif previous == signal.SIG_DFL:
            self._received.append(number)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        """Do what the signal asked for, if there was one."""
        if self._owner != os.getpid():
            return
        self._is_closing = True
        deadly = [number for number in self._received if self._previous[number] == signal.SIG_DFL]
        is_told = bool(deadly or (self._received and kind is not None))
        if is_told:
            self._stop()
        self._restore()
        _active.remove(self)
        self._owner = 0
        if deadly:
            if kind is not None and not issubclass(kind, (SystemExit, KeyboardInterrupt)):
                sys.excepthook(kind, value, where)  # type: ignore[arg-type]
            _die(deadly[0])
        for number in self._held:
            # The same request as the first signal, unless there was none, or the program has a handler of its own.
            if not is_told or self._previous[number] not in (signal.SIG_DFL, signal.default_int_handler):
                signal.raise_signal(number)

    def _restore(self) -> None:
        for number, before in self._previous.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, before)

    def _stop(self) -> None:
        """Stop the producers, then the server, each in its time."""
        begun = monotonic()
        name = signal_name(self._received[0])
        _stop_producers(self._producers, begun + self._timeout / 2)
        try:
            lost = missing(self._server.stop(max(self._timeout / 2, begun + self._timeout - monotonic())))
        except MplogError as error:
            lost = str(error)
        if lost:
            say_on_stderr(f"mplog: at {name}, {lost}")


#: Those that are in use in this process, the innermost last.
_active: list[GracefulShutdown] = []
_masks = threading.local()


def _before_fork() -> None:
    # CPython forgets a signal to a child that has not run yet (_PySignal_AfterFork), unless the signal is blocked.
    numbers = {number for hook in _active for number in hook._previous}
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if numbers else None


def _after_fork_in_parent() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child() -> None:
    while _active:
        with contextlib.suppress(ValueError, OSError):
            _active.pop()._restore()
    _after_fork_in_parent()


_FORK_HOOKS = frozenset(hook.__code__ for hook in (_before_fork, _after_fork_in_parent, _after_fork_in_child))


@functools.lru_cache(maxsize=1)
def _restore_in_forks() -> None:
    """Have forked children begin with the signal handlers that there were before."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )


def _stop_producers(producers: tuple[Any, ...], deadline: float) -> None:
    """Stop the producers and all children, killing the children that live at the deadline."""
    # In threads: Pool.terminate() waits for its workers without a limit.
    threads = [threading.Thread(target=_stop_one, args=(producer,), daemon=True) for producer in producers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    children = _children()
    for child in children:
        with contextlib.suppress(Exception):
            child.terminate()
    for child in children:
        with contextlib.suppress(Exception):
            child.join(max(0.0, deadline - monotonic()))
    for child in _children():
        with contextlib.suppress(Exception):
            child.kill()
            child.join(1.0)


def _stop_one(producer: Any) -> None:
    try:
        if hasattr(producer, "terminate"):
            producer.terminate()
        else:
            producer.shutdown(wait=False, cancel_futures=True)  # its processes are children, and terminated as those
    except Exception as error:
        say_on_stderr(f"mplog: {producer!r} could not be stopped: {describe(error)}")


def _children() -> list[Any]:
    libraries = [sys.modules.get(name) for name in ("multiprocessing.process", "multiprocess.process")]
    return [child for library in libraries if library is not None for child in library.active_children()]


def _die(number: int) -> None:
    """End this process by the signal. In process 1 of a container, which no signal ends, return."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(Exception):
            handler.flush()
    _remove_semaphores()
    signal.raise_signal(number)


def _remove_semaphores() -> None:
    """Remove multiprocessing's named semaphores, as a normal exit does: its resource tracker would say they leaked."""
    for library in ("multiprocessing", "multiprocess"):
        util, synchronize = (sys.modules.get(f"{library}.{name}") for name in ("util", "synchronize"))
        if util is not None and synchronize is not None:
            for finalizer in list(util._finalizer_registry.values()):
                if finalizer._callback == synchronize.SemLock._cleanup:
                    finalizer()
