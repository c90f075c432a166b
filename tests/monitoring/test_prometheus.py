"""The metrics of a server, with the real client of Prometheus."""

from __future__ import annotations

import logging
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from oracle import wait_until
from prometheus_client.parser import text_string_to_metric_families
from scripts import kill_for_good, stop_all_threads

import mplog
from mplog.logging_process.messages import Patience
from mplog.prometheus import MplogCollector

pytestmark = pytest.mark.processes


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    """A registry of one's own."""
    return prometheus_client.CollectorRegistry()


def samples(text: str) -> dict[Any, float]:
    """Return the samples by their names and labels."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def scrape(registry: prometheus_client.CollectorRegistry) -> dict[Any, float]:
    """Return what a scrape sees."""
    return samples(prometheus_client.generate_latest(registry).decode())


def _log(initializer: Any) -> None:
    """Runs in a worker."""
    initializer()
    logging.info("one")
    logging.error("two")


def test_metrics_are_what_was_counted(
    tmp_path: Path, registry: prometheus_client.CollectorRegistry, stdlib_context: Any
) -> None:
    """Records by level and process, losses by reason and level, failures, restarts and fill, under their names."""

    def make() -> logging.Handler:
        handler = logging.StreamHandler()
        handler.stream = None  # type: ignore[assignment]
        return handler

    server = mplog.LogServer(tmp_path / "app.log", mplog.HandlerSink(make), level="INFO")
    registry.register(MplogCollector(server))
    assert scrape(registry)["mplog_up",] == 0
    with server:
        worker = stdlib_context.Process(target=_log, args=(server.initializer,), name="worker")
        worker.start()
        worker.join(60)
        logging.info("here")
        server.queue.losses.count(logging.INFO, mplog.Reason.SHED, "MainProcess")
        server.queue.losses.count(logging.INFO, mplog.Reason.TRUNCATED, "MainProcess")
        server.flush()
        first = server.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.pid != first, "it is restarted")
        server.flush()
        seen = scrape(registry)
        sent = 0
        stop_all_threads(server.pid)
        try:
            while not (fill := scrape(registry)["mplog_queue_fill_ratio",]):  # a scrape asks no process
                logging.info("x" * 1000)
                sent += 1
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert 0 < fill < 1
    received = {key[1:]: value for key, value in seen.items() if key[0] == "mplog_records_received_total"}
    assert received == {
        (("level", "INFO"), ("process", "worker")): 1,
        (("level", "ERROR"), ("process", "worker")): 1,
        (("level", "INFO"), ("process", "MainProcess")): 1,
    }
    assert seen["mplog_records_dropped_total", ("level", "INFO"), ("reason", "shed")] == 1
    ((failed, count),) = [item for item in seen.items() if item[0][0] == "mplog_records_failed_total"]
    assert (failed[1][0], count) == ("handler", 3)
    assert seen["mplog_records_truncated_total",] == seen["mplog_restarts_total",] == seen["mplog_up",] == 1
    assert seen["mplog_records_broken_total",] == 0
    assert 0 < seen["mplog_buffer_peak_fill_ratio",] < 1
    ended = scrape(registry)
    assert (ended["mplog_up",], ended["mplog_queue_fill_ratio",], ended["mplog_restarts_total",]) == (0, 0, 1)
    assert sum(value for key, value in ended.items() if key[0] == "mplog_records_received_total") == 3 + sent


@pytest.fixture
def http(registry: prometheus_client.CollectorRegistry) -> Iterator[str]:
    """The address of a real exporter."""
    exporter, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    yield f"http://127.0.0.1:{exporter.server_port}/metrics"
    exporter.shutdown()
    exporter.server_close()
    thread.join(10)


def test_metrics_over_http(tmp_path: Path, registry: prometheus_client.CollectorRegistry, http: str) -> None:
    """Two servers in one registry are told apart by their prefixes, and scraped over HTTP."""
    with mplog.LogServer(tmp_path / "one.log", level="INFO") as server:
        registry.register(MplogCollector(server))
        registry.register(MplogCollector(mplog.LogServer(tmp_path / "two.log"), prefix="other"))
        logging.warning("here")
        server.flush()
        with urllib.request.urlopen(http, timeout=10) as response:
            seen = samples(response.read().decode())
    assert seen["mplog_records_received_total", ("level", "WARNING"), ("process", "MainProcess")] == 1
    assert (seen["mplog_up",], seen["other_up",]) == (1, 0)


def test_metrics_of_a_logging_process_that_is_given_up(
    tmp_path: Path, registry: prometheus_client.CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrape works when the logging process has died for good, says so, and has what was counted; so has stats()."""

    class Poisoned(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "poison":
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("mplog.server.log_server.PATIENCE", Patience(1, 0.01, 0.01, restarts=1, seconds=0.1))
    server = mplog.LogServer(tmp_path / "app.log", mplog.HandlerSink(Poisoned), level="INFO").start()
    registry.register(MplogCollector(server))
    logging.info("one")
    server.flush()
    logging.info("poison")
    wait_until(lambda: not server.is_running, "it is given up")
    seen = scrape(registry)
    assert seen["mplog_up",] == 0
    assert seen["mplog_records_received_total", ("level", "INFO"), ("process", "MainProcess")] == 1
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert server.stats().received == 1
    assert server.stats().restarts >= 1


def test_metrics_of_a_logging_process_that_has_ended(
    tmp_path: Path, registry: prometheus_client.CollectorRegistry
) -> None:
    """A scrape works when the logging process and its supervisor have been killed."""
    server = mplog.LogServer(tmp_path / "app.log", level="INFO").start()
    registry.register(MplogCollector(server))
    kill_for_good(server)
    assert scrape(registry)["mplog_up",] == 0
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
