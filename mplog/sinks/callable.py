"""The sink that is a function."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from mplog.handlers.callable import CallableHandler, Delivery
from mplog.sinks.sink import Sink


@dataclass(frozen=True)
class Retry:
    """How a batch is tried again.

    Attributes:
        first: seconds before the second attempt. Each pause is twice as long as the one before, less a random part of
            up to a half, so that many clients of one service do not all come back at once.
        longest: seconds of the longest pause.
        limit: seconds from the first attempt after which a batch is given up, and its records are counted as failed.
        at_end: seconds for which batches are tried again while the server stops; then each that is left has one more
            attempt. The default is less than `LogServer.stop` waits.
    """

    first: float = 0.1
    longest: float = 30.0
    limit: float = 300.0
    at_end: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{name} of a Retry is a number of seconds, not {value!r}")
        if not (0 < self.first <= self.longest <= threading.TIMEOUT_MAX and self.limit >= 0 and self.at_end >= 0):
            raise ValueError(
                f"{self}: give 0 < first <= longest <= {threading.TIMEOUT_MAX:g}, and 0 or more for limit and at_end"
            )

    @classmethod
    def of(cls, retry: Retry | Mapping[str, float] | None) -> Retry | None:
        """Return the argument of a `CallableSink` as a `Retry`, and None as None."""
        if retry is None or isinstance(retry, Retry):
            return retry
        names = [field.name for field in fields(cls)]
        if not isinstance(retry, Mapping) or not set(names).issuperset(retry):
            raise TypeError(f"retry is a Retry, or a dictionary with {', '.join(names)}, not {retry!r}")
        return cls(**retry)

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each further attempt."""
        began, pause = time.monotonic(), self.first
        while time.monotonic() - began + pause <= self.limit:
            yield pause * random.uniform(0.5, 1)
            pause = min(2 * pause, self.longest)


class CallableSink(Sink):
    """Any function that takes batches.

    >>> CallableSink(lambda records: post([vars(each) for each in records]))                   # doctest: +SKIP

    The function runs in a thread of the logging process, and gets a list: of ``logging.LogRecord``, with all their
    fields, or of texts if a `format` is given or `escape` is set. It may change the records. If it raises, it is called
    again with the same batch. What it logs itself goes to the other sinks.

    Each record is delivered at least once, even if the logging process is killed: records that wait are also in files
    of the queue's directory. A record is delivered again if the process is killed before the function has returned.
    Records that `retry` gives up and those for which ``full="drop"`` finds no room are not delivered; they are counted
    in ``stats().failed``, and the log says so. `LogServer.flush` and `LogServer.stop` wait until everything that was
    logged before is delivered or given up.

    Args:
        function: called with a list of 1 to `batch` records or texts. What it returns is ignored.
        batch: how many it gets at most: 200 by default.
        timeout: for how many seconds a record waits at most for others to fill its batch: 0.1 by default.
        retry: a `Retry`, or a dictionary of its attributes, such as ``{"limit": 60}``; None gives a batch up when the
            function raises.
        threads: how many call it at a time. With more than one, the order is that of the log within a batch only.
        waiting: how many records wait at most, including those that are being delivered: 10,000 by default.
        full: what becomes of one more: ``"block"`` (the default) holds up the logging process, as a slow handler does,
            and, when the buffers are full, the workers; ``"drop"`` counts it as failed.
        level, format, filters, logger, propagate, escape: see `Sink`.
    """

    def __init__(
        self,
        function: Callable[[list[Any]], object],
        *,
        batch: int = 200,
        timeout: float = 0.1,
        retry: Retry | Mapping[str, float] | None = Retry(),
        threads: int = 1,
        waiting: int = 10_000,
        full: Literal["block", "drop"] = "block",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not callable(function):
            raise TypeError(f"CallableSink needs a function that takes a list, not {function!r}")
        for name, value in {"batch": batch, "threads": threads, "waiting": waiting}.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} is a whole number, not {value!r}")
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
            raise TypeError(f"timeout is a number of seconds, not {timeout!r}")
        if not timeout <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"timeout={timeout!r} is longer than a thread can wait: at most {threading.TIMEOUT_MAX:g} seconds"
            )
        if min(batch, threads) < 1 or waiting < batch or timeout < 0:
            raise ValueError(
                f"batch={batch!r}, threads={threads!r}, waiting={waiting!r}, timeout={timeout!r}: batch and threads "
                "must be at least 1, waiting at least as large as batch, and timeout 0 or more"
            )
        if full not in ("block", "drop"):
            raise ValueError(f"full is 'block' or 'drop', not {full!r}")
        retry = Retry.of(retry)
        self.delivery = Delivery(
            function,
            getattr(function, "__qualname__", repr(function)),
            takes_texts=self.format is not None or self.escape,
            batch=batch,
            timeout=timeout,
            threads=threads,
            waiting=waiting,
            drops=full == "drop",
            pauses=tuple if retry is None else retry.pauses,
            at_end=0.0 if retry is None else retry.at_end,
        )

    def describe(self) -> str:
        return self.delivery.name

    def make_handler(self) -> logging.Handler:
        return CallableHandler(self.delivery)
