"""`RunLog`: one log of a whole run of pytest, from all of its processes.

The process that starts the run, the controller of xdist, starts the logging process; xdist workers and the children of
tests send to its queue. The rule of this file: **the process that knows something first logs it.** The process that
runs a test logs how it ends; the controller logs a crash.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

from mplog.pytest_plugin.children import TestHandler, add_everywhere, followed, start_beside
from mplog.queue.log_queue import LogQueue
from mplog.server.log_server import LogServer

#: The time, the xdist worker and the test, and then as in any other log.
DEFAULT_FORMAT = "%(asctime)s %(worker)s %(nodeid)s %(levelname)s %(processName)s %(name)s | %(message)s"

#: The key under which an xdist worker is told the directory of the queue.
QUEUE = "mplog_queue"

_NO_TEST = "-"


def _start_server(path: str, format: str) -> LogServer:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"run": {"format": format}},
        # Each run starts an empty file, as pytest's own log file does.
        "handlers": {
            "run": {
                "class": "logging.FileHandler",
                "filename": path,
                "mode": "w",
                "encoding": "utf-8",
                "formatter": "run",
            }
        },
        "root": {"handlers": ["run"]},
    }
    return start_beside(LogServer(config=config, fields={"worker": "-", "nodeid": _NO_TEST}))


class RunLog:
    """A log of the run, and the hooks that write to it. A plugin of its own.

    Args:
        target: the path of the log; in an xdist worker, the directory of the queue.
        worker: the name of this xdist worker; "" in the process that starts the run.
        level: for the root logger, if its own is higher; None keeps that of pytest and the program.
        output: also log what tests write to stdout and stderr, after each of their phases.
    """

    def __init__(
        self, config: pytest.Config, target: str, *, worker: str, level: int | None, format: str, output: bool
    ) -> None:
        self._config = config
        self._level = level
        self._output = output
        self._server = None if worker else _start_server(target, format)
        queue = LogQueue.open(target) if self._server is None else self._server.queue
        self._handler = TestHandler(queue, {"worker": worker or "main", "nodeid": _NO_TEST}, worker)
        self._exit = contextlib.ExitStack()

    def start(self) -> None:
        self._exit.enter_context(followed(self._handler))
        root = logging.getLogger()
        if self._level is not None and root.level > self._level:
            self._exit.callback(root.setLevel, root.level)
            root.setLevel(self._level)
        if self._server is not None:
            self._log(logging.INFO, "pytest %s started", " ".join(map(str, self._config.invocation_params.args)))

    def stop(self) -> None:
        self._exit.close()
        if self._server is not None:
            self._server.stop()

    def _log(self, level: int, message: str, *args: object, logger: str = "pytest", **fields: str) -> None:
        """Log a line to this log only, whatever the levels are."""
        record = logging.LogRecord(logger, level, __file__, 0, message, args, None)
        record.__dict__.update(fields)
        self._handler.handle(record)

    def _runs_tests(self) -> bool:
        """Return whether this process runs tests. The same hooks tell the controller of xdist what its workers do."""
        return not self._config.pluginmanager.hasplugin("dsession")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self._runs_tests():
            self._handler.fields["nodeid"] = nodeid
            self._log(logging.INFO, "started")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        add_everywhere(self._handler)  # also where a program has set up its loggers again

    pytest_runtest_call = pytest_runtest_teardown = pytest_runtest_setup

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._runs_tests():
            return
        if self._output:
            self._log_output(report)
        if report.when == "call" or report.outcome != "passed":
            what, why = _describe(report)
            level = logging.ERROR if report.failed else logging.INFO
            self._log(level, "%s in %.3f s%s", what, report.duration, why and f": {why}")

    def _log_output(self, report: pytest.TestReport) -> None:
        for title, text in report.sections:
            for stream in ("stdout", "stderr"):
                if title == f"Captured {stream} {report.when}":
                    for line in text.splitlines():
                        self._log(logging.INFO, "%s", line, logger=stream)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        if self._runs_tests():
            self._handler.fields["nodeid"] = _NO_TEST

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._server is not None:
            self._log(logging.INFO, "pytest ends with exit status %d", exitstatus)

    # --- the controller of xdist ---

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[QUEUE] = self._handler.queue.directory  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        if error is not None:
            self._log(logging.ERROR, "xdist worker %s is down: %s", node.gateway.id, error)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any) -> None:
        worker = report.node.gateway.id if hasattr(report, "node") else "-"
        self._log(logging.ERROR, "crashed: its xdist worker has ended", nodeid=crashitem, worker=worker)


def _describe(report: pytest.TestReport) -> tuple[str, str]:
    """Return how a phase of a test has ended, and why, if there is a reason."""
    if hasattr(report, "wasxfail"):
        return ("xfailed" if report.skipped else "xpassed"), str(report.wasxfail)
    what = report.outcome if report.when == "call" or report.skipped else f"{report.outcome} in its {report.when}"
    if report.skipped and isinstance(report.longrepr, tuple):
        return what, report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return what, str(crash.message).partition("\n")[0]
    return what, report.longreprtext.partition("\n")[0] if report.failed else ""
