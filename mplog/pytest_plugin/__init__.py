"""The plugin of pytest: the fixture ``mplog_records``, and one log of a whole run (``--mplog=run.log``).

The rule of this file: **a run that does not use the plugin pays nothing.** It imports nothing else of mplog before the
fixture or the option is used, and has no hook that runs for each test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mplog.pytest_plugin.records import Records

#: The format of pytest's own logging plugin, where that plugin is switched off.
_TEXT_FORMAT = "%(levelname)-8s %(name)s:%(filename)s:%(lineno)d %(message)s"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mplog", "logging from all processes (mplog)")
    group.addoption(
        "--mplog",
        metavar="PATH",
        help="write one log of the whole run, from all processes: those of pytest-xdist, and those that tests start",
    )
    group.addoption(
        "--mplog-level",
        metavar="LEVEL",
        help="with --mplog: the level of the root logger, if its own is higher; by default, its own is kept",
    )
    group.addoption(
        "--mplog-output", action="store_true", help="with --mplog: also log what tests write to stdout and stderr"
    )
    parser.addini("mplog", "as --mplog; a relative path is taken from the directory of the configuration file")
    parser.addini("mplog_level", "as --mplog-level")
    parser.addini("mplog_output", "as --mplog-output", type="bool", default=False)
    parser.addini("mplog_format", "with --mplog: the format of a line; %(worker)s and %(nodeid)s are fields")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts its workers
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    told: dict[str, Any] | None = getattr(config, "workerinput", None)  # in a worker of pytest-xdist
    target = _path(config) if told is None else told.get("mplog_queue", "")
    if not target:
        return
    from mplog.errors import MplogError
    from mplog.pytest_plugin.run_log import DEFAULT_FORMAT, RunLog

    try:
        run_log = RunLog(
            config,
            target,
            worker=told["workerid"] if told is not None else "",
            level=_level(config),
            format=config.getini("mplog_format") or DEFAULT_FORMAT,
            output=config.getoption("mplog_output") or config.getini("mplog_output"),
        )
    except MplogError as error:
        raise pytest.UsageError(f"--mplog: {str(error).removeprefix('handlers.run.filename: ')}") from error
    config.pluginmanager.register(run_log, "mplog-run-log")
    config.add_cleanup(run_log.stop)
    run_log.start()


def _path(config: pytest.Config) -> str:
    path: str = config.getoption("mplog")
    if path:
        return str(config.invocation_params.dir / path)
    path = config.getini("mplog")
    return os.path.join(config.inipath.parent if config.inipath else config.rootpath, path) if path else ""


def _level(config: pytest.Config) -> int | None:
    from mplog.record.level import read_level

    level = config.getoption("mplog_level") or config.getini("mplog_level")
    try:
        return read_level(level) if level else None
    except ValueError as error:
        raise pytest.UsageError(f"--mplog-level: {error}") from None


@pytest.fixture
def mplog_records(request: pytest.FixtureRequest) -> Iterator[Records]:
    """The records of this test and of the processes that it starts.

    As with caplog, there are

    * mplog_records.records         -> list of logging.LogRecord instances
    * mplog_records.messages        -> list of formatted messages
    * mplog_records.record_tuples   -> list of (logger_name, level, message) tuples
    * mplog_records.text            -> string containing formatted log output
    * mplog_records.clear(), set_level(), at_level()
    """
    import logging
    import tempfile

    from mplog.pytest_plugin.records import Records

    formatter = logging.Formatter(*_text_format(request.config))
    plugins = request.config.pluginmanager
    with tempfile.TemporaryDirectory(prefix="mplog-pytest-") as directory:
        os.chmod(directory, 0o700)  # whatever the umask is
        records = Records(os.path.join(directory, "records"), formatter)
        with records.following():
            section = _Section(request.node, records)
            plugins.register(section)
            try:
                yield records
            finally:
                plugins.unregister(section)


def _text_format(config: pytest.Config) -> tuple[str, str | None]:
    if not config.pluginmanager.hasplugin("logging"):
        return _TEXT_FORMAT, None
    format, date_format = (config.getoption(name) or config.getini(name) for name in ("log_format", "log_date_format"))
    return format, date_format


class _Section:
    """Shows the records of a test that fails, as pytest does for caplog's."""

    def __init__(self, item: pytest.Item, records: Records) -> None:
        self._item = item
        self._records = records

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if item is self._item and call.when == "call" and call.excinfo is not None:
            from mplog.errors import MplogError

            try:
                text = self._records.text
            except MplogError as error:
                text = str(error)
            item.add_report_section("call", "mplog_records", text)
