"""`Pool`, `ProcessPoolExecutor`, `Process`: the stdlib's, with the stdlib's signatures, logging to a server.

The initializer of the server runs first, then the user's own. What a worker is to run may be a lambda, a closure or a
function of a notebook, under any start method.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mplog.record.portable import Portable
from mplog.server.log_server import LogServer
from mplog.worker.initializer import Initializer

T = TypeVar("T")

#: The default of multiprocessing.Process.
_NO_KWARGS: Mapping[str, Any] | None = None if sys.version_info >= (3, 14) else {}


class _Logging:
    """The server to log to: `server`, or one that is started for this object alone and writes the file `log`."""

    def __init__(self, server: LogServer | None, log: str | os.PathLike[str] | None) -> None:
        if (server is None) == (log is None):
            raise TypeError("give either server=, a running LogServer, or log=, a path to log to")
        self._own = LogServer(log).start() if log is not None else None
        self._server: Any = server or self._own

    def initializer(self, function: Callable[..., object] | None, arguments: Iterable[Any]) -> Initializer:
        """Return the server's initializer, followed by the user's."""
        initializer: Initializer = self._server.initializer
        return initializer if function is None else initializer.then(function, *arguments)

    def note_end(self, process: Any) -> None:
        """Have the log say how a process that this one has waited for has ended."""
        if process.exitcode:
            self._server.note_end(process.pid, process.name, process.exitcode)

    def stop(self) -> None:
        """Stop the server if it was started here."""
        if self._own is not None:
            self._own.stop()


class _PoolProcesses:
    """Makes the processes of a Pool, and notes the ends of the processes that they replace.

    Not a method of the Pool: its thread would then hold the Pool, which could not be collected.
    """

    def __init__(self, logging: _Logging) -> None:
        self._logging = logging
        self._made: list[Any] = []

    def __call__(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        for process in [process for process in self._made if process.exitcode is not None]:
            self._made.remove(process)
            self._logging.note_end(process)
        process = context.Process(*args, **kwargs)
        self._made.append(process)
        return process


class Pool(multiprocessing.pool.Pool):
    """A ``multiprocessing.Pool`` whose workers log to a server.

    Args:
        processes, initializer, initargs, maxtasksperchild: as in ``multiprocessing.Pool``.
        context: a context of ``multiprocessing`` or ``multiprocess``; None (the default) takes the default one.
        server: the `LogServer` to log to.
        log: a path, in place of `server`: the pool has a server of its own, which stops with it.
    """

    # __del__ of the base class looks at this, also after __init__ has failed.
    _state = multiprocessing.pool.INIT

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        server: LogServer | None = None,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        context = context or multiprocessing.get_context()
        self._forked = context.get_start_method() == "fork"
        self._logging = _Logging(server, log)
        self.Process = _PoolProcesses(self._logging)  # type: ignore[method-assign, assignment]
        try:
            super().__init__(processes, self._logging.initializer(initializer, initargs), (), maxtasksperchild, context)
        except BaseException:
            self._logging.stop()
            raise

    def terminate(self) -> None:
        """End the workers at once; nothing that they have logged is lost."""
        super().terminate()
        self._logging.stop()

    def join(self) -> None:
        """Wait for the workers to end."""
        super().join()
        self._logging.stop()


def _for_any_callable(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the stdlib's Pool that also takes a lambda or a closure as its function."""

    @functools.wraps(method)
    def call(self: Pool, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(self, Portable(func, forked=self._forked), *args, **kwargs)

    return call


# apply() calls apply_async().
for _name in ("apply_async", "map", "map_async", "imap", "imap_unordered", "starmap", "starmap_async"):
    setattr(Pool, _name, _for_any_callable(getattr(multiprocessing.pool.Pool, _name)))


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
    """A ``concurrent.futures.ProcessPoolExecutor`` whose workers log to a server.

    Args:
        max_workers, mp_context, initializer, initargs: as in the base class. ``multiprocess`` has no executor, so the
            context is one of ``multiprocessing``, or TypeError is raised.
        max_tasks_per_child: as in the base class, from Python 3.11 on.
        server: the `LogServer` to log to.
        log: a path, in place of `server`: the executor has a server of its own, which stops with it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        server: LogServer | None = None,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        if mp_context is not None and not isinstance(mp_context, multiprocessing.context.BaseContext):
            raise TypeError(
                f"ProcessPoolExecutor works with a context of multiprocessing, not with {mp_context!r}. "
                "For multiprocess there is mplog.Pool(context=...)."
            )
        options: dict[str, Any] = {}
        if max_tasks_per_child is not None:
            options["max_tasks_per_child"] = max_tasks_per_child
        self._logging = _Logging(server, log)
        try:
            super().__init__(max_workers, mp_context, self._logging.initializer(initializer, initargs), (), **options)
        except BaseException:
            self._logging.stop()
            raise
        self._is_left_alone = False
        # With max_tasks_per_child, the base class chooses the context.
        context: Any = self._mp_context
        self._forked = context.get_start_method() == "fork"

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """As in the base class; `fn` may be any callable."""
        return super().submit(Portable(fn, forked=self._forked), *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in the base class. A server of its own stops, too; with ``wait=False``, it ends with the program."""
        processes = list((self._processes or {}).values())
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            for process in processes:
                self._logging.note_end(process)
        # After shutdown(wait=False), the base class never waits, and the workers may still log.
        self._is_left_alone |= not wait
        if not self._is_left_alone:
            self._logging.stop()


class _ProcessMixin:
    """What `Process` adds to the class of either library."""

    _library: Any = multiprocessing
    _logging: _Logging | None = None
    _end_is_noted = False
    _Popen: Any
    _start_method: Any

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = _NO_KWARGS,
        *,
        daemon: bool | None = None,
        context: Any = None,
        server: LogServer | None = None,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        if context is not None:
            self._take_context(context)
        forked = (context or self._library).get_start_method() == "fork"
        portable = None if target is None else Portable(target, forked=forked)
        super().__init__(group, portable, name, args, kwargs or {}, daemon=daemon)  # type: ignore[call-arg]
        # Last, so that a wrong argument leaves no server running.
        self._logging = _Logging(server, log)
        self._initializer = self._logging.initializer(None, ())

    def _take_context(self, context: Any) -> None:
        if not isinstance(context, self._library.context.BaseContext):
            if type(self) is not Process:
                raise TypeError(
                    f"{type(self).__name__} is a process of another library than {context!r}. For multiprocessing, "
                    "derive it from mplog.Process; for multiprocess, from mplog.MultiprocessProcess."
                )
            # Not by __new__, which would hide the signature.
            self.__class__ = _multiprocess_class()
        self._start_method = context.Process._start_method
        self._Popen = context.Process._Popen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_logging": None}

    # Not run(), which subclasses override.
    def _bootstrap(self, *args: Any, **kwargs: Any) -> Any:
        """Runs in the worker."""
        self._initializer()
        return super()._bootstrap(*args, **kwargs)  # type: ignore[misc]

    def start(self) -> None:
        try:
            super().start()  # type: ignore[misc]
        except BaseException:
            self._stop_own_server()
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the process; a server of its own then stops."""
        super().join(timeout)  # type: ignore[misc]
        if self.exitcode is not None and self._logging is not None:  # type: ignore[attr-defined]
            if not self._end_is_noted:
                self._end_is_noted = True
                self._logging.note_end(self)
            self._logging.stop()

    def close(self) -> None:
        """Release the resources of a process that has ended; a server of its own stops."""
        super().close()  # type: ignore[misc]
        self._stop_own_server()

    def _stop_own_server(self) -> None:
        if self._logging is not None:
            self._logging.stop()


class Process(_ProcessMixin, multiprocessing.Process):
    """A ``multiprocessing.Process`` that logs to a server; also as a base class, with a ``run()`` of your own.

    Args:
        group, target, name, args, kwargs, daemon: as in ``multiprocessing.Process``.
        context: a context of ``multiprocessing`` or ``multiprocess``; None (the default) takes the default one. With
            one of ``multiprocess``, the object is a ``multiprocess.Process``.
        server: the `LogServer` to log to.
        log: a path, in place of `server`: the process has a server of its own, which stops when it is joined.
    """


if TYPE_CHECKING:
    # multiprocess has no types: its processes have the methods of multiprocessing's.
    class MultiprocessProcess(Process): ...


@functools.lru_cache(maxsize=1)
def _multiprocess_class() -> type[Any]:
    import multiprocess

    members = {
        "__doc__": "A `Process` that is a ``multiprocess.Process``: a base class for processes of that library.",
        "__module__": __name__,
        # A spawned process finds it by its __qualname__; processes are named after its __name__.
        "__qualname__": "MultiprocessProcess",
        "_library": multiprocess,
    }
    return type("Process", (_ProcessMixin, multiprocess.Process), members)


def __getattr__(name: str) -> Any:
    if name == "MultiprocessProcess":
        return _multiprocess_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
