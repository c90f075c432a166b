"""`Pool`, `ProcessPoolExecutor`, `Process`: the stdlib's, logging to a server.

The rule of this file: **the signature is the stdlib's.** The initializer of the server runs first, then the user's own;
what a worker is to run may be a lambda, a closure or a function of a notebook, under any start method.
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
    """Which server to log to, and whether it is ours to stop.

    Args:
        server: a running server.
        log: a path; a server of its own is started for it.

    Raises:
        TypeError: neither is given, or both.
    """

    def __init__(self, server: LogServer | None, log: str | os.PathLike[str] | None) -> None:
        if (server is None) == (log is None):
            raise TypeError("give either server=, a running LogServer, or log=, a path to log to")
        self.own = LogServer(log).start() if log is not None else None
        self._server = server or self.own

    def initializer(self, function: Callable[..., object] | None, arguments: Iterable[Any]) -> Initializer:
        """Return the server's initializer, followed by the user's."""
        assert self._server is not None
        initializer = self._server.initializer
        return initializer if function is None else initializer.then(function, *arguments)

    def note_end(self, process: Any) -> None:
        """Have it said in the log how a process has ended that this one has waited for."""
        assert self._server is not None
        if process.exitcode:
            self._server.note_end(process.pid, process.name, process.exitcode)

    def stop(self) -> None:
        """Stop the server if it is ours."""
        if self.own is not None:
            self.own.stop()


class _PoolProcesses:
    """Make the processes of a Pool. Each but the first ones replaces one that has ended, which so is noted.

    Not a method of the Pool: its thread, which holds this, would keep it from being collected.
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
        log: or a path: the pool has a server of its own, which stops with it.
    """

    # What __del__ of the base class looks at, also where __init__ has failed.
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

    def _portable(self, func: Callable[..., T]) -> Callable[..., T]:
        return Portable(func, forked=self._forked)

    # Each as in the base class, with a function that may be anything callable. apply() calls apply_async().

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> multiprocessing.pool.AsyncResult[T]:
        return super().apply_async(self._portable(func), args, kwds, callback, error_callback)

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        return super().map(self._portable(func), iterable, chunksize)

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> multiprocessing.pool.MapResult[T]:
        return super().map_async(self._portable(func), iterable, chunksize, callback, error_callback)

    def imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> multiprocessing.pool.IMapIterator[T]:
        return super().imap(self._portable(func), iterable, chunksize)

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> multiprocessing.pool.IMapIterator[T]:
        return super().imap_unordered(self._portable(func), iterable, chunksize)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        return super().starmap(self._portable(func), iterable, chunksize)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> multiprocessing.pool.AsyncResult[list[T]]:
        return super().starmap_async(self._portable(func), iterable, chunksize, callback, error_callback)


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
    """A ``concurrent.futures.ProcessPoolExecutor`` whose workers log to a server.

    Args:
        max_workers, mp_context, initializer, initargs: as in the base class. ``multiprocess`` has no executor, so the
            context is one of ``multiprocessing``.
        max_tasks_per_child: as in the base class, from Python 3.11 on.
        server: the `LogServer` to log to.
        log: or a path: the executor has a server of its own, which stops with it.

    Raises:
        TypeError: the context is not one of ``multiprocessing``.
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
        self._left_to_itself = False
        options: dict[str, Any] = {}
        if max_tasks_per_child is not None:
            options["max_tasks_per_child"] = max_tasks_per_child
        self._logging = _Logging(server, log)
        try:
            super().__init__(max_workers, mp_context, self._logging.initializer(initializer, initargs), (), **options)
        except BaseException:
            self._logging.stop()
            raise
        # Where tasks per child are limited, the base class chooses the context.
        context: Any = self._mp_context
        self._forked = context.get_start_method() == "fork"

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """As in the base class, with a function that may be anything callable."""
        return super().submit(Portable(fn, forked=self._forked), *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in the base class. A server of its own stops, too, unless `wait` is off: then it ends with the program."""
        processes = list((self._processes or {}).values())
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            for process in processes:
                self._logging.note_end(process)
        # Behind shutdown(wait=False), the base class never waits, and the workers may still log.
        self._left_to_itself |= not wait
        if not self._left_to_itself:
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
        # Last, so that a server of its own is not left running where an argument is wrong.
        self._logging = _Logging(server, log)
        self._initializer = self._logging.initializer(None, ())

    def _take_context(self, context: Any) -> None:
        if not isinstance(context, self._library.context.BaseContext):
            if type(self) is not Process:
                raise TypeError(
                    f"{type(self).__name__} is a process of another library than {context!r}. For multiprocessing, "
                    "derive it from mplog.Process; for multiprocess, from mplog.MultiprocessProcess."
                )
            # Not a __new__, which would hide the signature.
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
        """Start the process."""
        try:
            super().start()  # type: ignore[misc]
        except BaseException:
            self._stop_own_server()
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait for the process to end; a server of its own then stops."""
        super().join(timeout)  # type: ignore[misc]
        if self.exitcode is not None:  # type: ignore[attr-defined]
            self._note_end()
            self._stop_own_server()

    def _note_end(self) -> None:
        if self._logging is not None and not self._end_is_noted:
            self._end_is_noted = True
            self._logging.note_end(self)

    def close(self) -> None:
        """Release what the object holds of a process that has ended; a server of its own stops."""
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
        log: or a path: the process has a server of its own, which stops when it is joined.
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
