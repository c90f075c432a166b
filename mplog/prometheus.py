"""`MplogCollector`: what a server counts, for Prometheus. Needs the extra ``mplog[prometheus]``.

The rule of this file: **a scrape only reads.** It reads shared memory, by ``server.stats()``. Names and units follow
Prometheus's own conventions (https://prometheus.io/docs/practices/naming/).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mplog.errors import MplogError

if TYPE_CHECKING:
    from mplog.server.log_server import LogServer


class MplogCollector(Collector):
    """The metrics of a server.

    >>> from prometheus_client import REGISTRY, start_http_server       # doctest: +SKIP
    >>> REGISTRY.register(MplogCollector(server))                       # doctest: +SKIP
    >>> start_http_server(9000)                                         # doctest: +SKIP

    The label of a process is its name, not its pid: pids are many, and each value of a label is a time series.

    Args:
        server: may be started and stopped at any time.
        prefix: of all names (default "mplog"); choose another one for a second server in the same registry.
    """

    def __init__(self, server: LogServer, prefix: str = "mplog") -> None:
        self._server = server
        self._prefix = prefix

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that a registry does not collect when it only needs the names."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are at this moment."""
        yield self._gauge("up", "Whether the server is running.", float(self._server.is_running))
        try:
            stats = self._server.stats()
        except MplogError:  # it has ended, and nothing is left to read
            return
        received: Counter[tuple[str, str]] = Counter()
        for (process, _, level), count in stats.by_origin.items():
            received[logging.getLevelName(level), process] += count
        dropped: Counter[tuple[str, str]] = Counter()
        others: Counter[str] = Counter()
        for losses in stats.lost:
            for (level, reason), count in losses.counts.items():
                if reason.is_loss:
                    dropped[reason.name.lower(), logging.getLevelName(level)] += count
                else:
                    others[reason.name] += count
        failed = {(handler,): count for handler, count in stats.failed.items()}
        yield self._counter("records_received", "Records that arrived.", ("level", "process"), received)
        yield self._counter("records_dropped", "Records that are lost.", ("reason", "level"), dropped)
        yield self._counter("records_failed", "Records that a handler could not write.", ("handler",), failed)
        for name, what, value in (
            ("records_truncated", "Records whose long texts were cut.", others["TRUNCATED"]),
            ("records_emergency", "Records that went through the emergency file.", others["EMERGENCY"]),
            ("records_unsynced", "Records that were not known to be on disk in time.", others["UNSYNCED"]),
            ("records_incomplete", "Long records whose writer died before the last part.", stats.incomplete),
            ("records_broken", "Pieces of data in the queue that were not records.", stats.broken),
            ("restarts", "Logging processes that have died and were replaced.", stats.restarts),
        ):
            yield self._counter(name, what, (), {(): value})
        yield self._gauge("queue_fill_ratio", "How full the queue is, from 0 to 1.", self._server.queue_fill)
        yield self._gauge("buffer_peak_fill_ratio", "How full the buffers have been at most.", stats.peak_fill)

    def _counter(self, name: str, what: str, labels: Sequence[str], values: Mapping[Any, int]) -> CounterMetricFamily:
        family = CounterMetricFamily(f"{self._prefix}_{name}", what, labels=labels)
        for key, value in sorted(values.items()):
            family.add_metric(key, value)
        return family

    def _gauge(self, name: str, what: str, value: float) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", what, value)
