"""The handlers of a configuration, for the logging process."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

from mplog.config.configurator import Configurator
from mplog.config.mistakes import first_cause, stdlib_mistake, texts
from mplog.errors import MplogError
from mplog.sinks.file import FileSink
from mplog.sinks.sink import Sink

#: A name of the program's own script, as ``class``, ``()`` and ``ext://`` give it.
_OF_MAIN = re.compile(r"(?:ext://)?__main__\.(\w+)")


class ConfigSink(Sink):
    """The handlers of a configuration, each on its logger; `of_main` is what `find_of_main` has found."""

    def __init__(self, config: dict[str, Any], of_main: dict[str, Any], files: Sequence[FileSink]) -> None:
        super().__init__()
        self.config = config
        self.of_main = of_main
        self.files = files

    def describe(self) -> str:
        return ", ".join(self.config["handlers"])

    def clear_up(self) -> None:
        """Remove the lock files of a logging process that has died."""
        for file in self.files:
            file.clear_up()

    def install(self, default: logging.Formatter) -> list[logging.Handler]:
        """Build the handlers and give them to their loggers; return them in the order in which to close them."""
        vars(sys.modules["__main__"]).update(self.of_main)
        configurator = Configurator(dict(self.config), restarted=self.restarted)
        try:
            configurator.configure()
        except Exception as error:
            cause = first_cause(error)
            raise cause if isinstance(cause, MplogError) else stdlib_mistake(error) from None
        _make_django_ready(configurator.built)
        # A handler that writes to others is built after them, and closed before.
        return list(reversed(configurator.built))


def _make_django_ready(handlers: list[logging.Handler]) -> None:
    """Do what Django's mail handler needs of ``django.setup()``, which would set up logging. Mails need no apps."""
    module = sys.modules.get("django.utils.log")
    if module is not None and any(isinstance(handler, module.AdminEmailHandler) for handler in handlers):
        importlib.import_module("django.apps").apps.populate(())


def find_of_main(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the configuration names of this program's ``__main__``, which the logging process does not import."""
    main = vars(sys.modules["__main__"])
    names = {found[1] for text in texts(config) if (found := _OF_MAIN.match(text))}
    return {name: main[name] for name in names if name in main}
