"""The logging process: the one that opens, writes and closes the log.

The rule of this file: **it never runs what a worker sends.** The program tells it over the control connection what to
open and what to do; that connection is trusted, the queue is not. If the program is killed, the logging process keeps
writing until the last worker has exited.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing.process
import os
import pickle
import sys
import traceback

from mplog.errors import MplogError, SinkError, StartError
from mplog.files import lock
from mplog.files.notices import say_on_stderr
from mplog.files.outlet import complete
from mplog.logging_process.accounts import Accounts
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.loop import Loop
from mplog.logging_process.messages import Configuration, Opened, Report
from mplog.logging_process.program import Places, Program
from mplog.logging_process.recovery import recover
from mplog.logging_process.signals import Signals, ignore_signals
from mplog.logging_process.source import PlainSource
from mplog.logging_process.workers import Workers
from mplog.monitoring.deaths import Watch
from mplog.monitoring.server_notice import publish
from mplog.monitoring.tallies import Tallies
from mplog.record.decoding import constant_fields
from mplog.record.encoding import describe
from mplog.sinks.sink import to_formatter
from mplog.worker.state import add_level_names

#: The exit status of a logging process that could not open its sinks, and has said why.
NOT_STARTED = 3

#: New objects after which the garbage collector looks for cycles. A batch makes two for each record, and frees them;
#: with the usual threshold, the collector would take an eighth of the whole time.
_COLLECTED_AT = 100_000


def main(places: Places) -> int:
    """Run the logging process, from its configuration to its end; return its exit status."""
    ignore_signals()
    sys.stdout, sys.stderr = complete(sys.stdout), complete(sys.stderr)  # for everything that writes there
    lock.look_seconds = places.launch.look
    gc.set_threshold(_COLLECTED_AT)
    multiprocessing.process.current_process().name = "mplog"
    try:
        configuration = _load(places.launch.configuration)
        handlers = _open_sinks(configuration, restarted=bool(places.stories))
        dispatcher = Dispatcher(handlers)
    except BaseException as error:
        with contextlib.suppress(OSError):
            places.control.send(error if isinstance(error, MplogError) else StartError(describe(error)))
        if not places.stories:
            return NOT_STARTED
        say_on_stderr(f"mplog: {places.stories[-1]}; it cannot be restarted: {describe(error)}")
        return 1
    directory, program = places.launch.directory, places.launch.program
    if directory is not None:
        publish(directory, program, places.memory, configuration.overflow.policy, handlers)
    loop = _plain_loop(dispatcher, places) if places.fd < 0 else recover(dispatcher, places, configuration.overflow)
    if places.supervisor is not None:
        places.supervisor.send(Report.READY)
    with contextlib.suppress(OSError):  # the program has gone, but workers may log
        places.control.send(Opened(os.getpid(), dispatcher.needs_details))
    return loop.run()


def _plain_loop(dispatcher: Dispatcher, places: Places) -> Loop:
    tallies = Tallies(None)
    source, accounts = PlainSource(tallies, dispatcher.troubles), Accounts("", tallies, dispatcher, [], [], 0)
    workers = Workers(Watch(None, places.launch.program), tallies, dispatcher.say)
    return Loop(dispatcher, source, None, accounts, workers, Program(places.control, places.supervisor), Signals())


def _load(blob: bytes) -> Configuration:
    try:
        configuration: Configuration = pickle.loads(blob)
    except Exception as error:
        raise StartError(
            f"the sinks could not be loaded in the logging process: {describe(error)}. It is a fresh interpreter, "
            "which imports what they refer to: make those modules importable, or define the functions in the script."
        ) from None
    return configuration


def _open_sinks(configuration: Configuration, *, restarted: bool) -> list[logging.Handler]:
    add_level_names(configuration.level_names)
    for name, value in configuration.formatter_defaults.items():
        setattr(logging.Formatter, name, value)
    constant_fields.update(configuration.fields)  # first: formatters compile them in
    default = to_formatter(configuration.format)
    handlers: list[logging.Handler] = []
    for sink in configuration.sinks:
        sink.restarted = restarted
        try:
            handlers += sink.install(default)
        except BaseException as error:
            logging.shutdown()  # lets go of those that are open
            if isinstance(error, MplogError):
                raise
            reason = describe(error)
            raise SinkError(
                f"{sink} could not be opened: {reason}", sink=repr(sink), reason=reason, details=traceback.format_exc()
            ) from None
    return handlers
