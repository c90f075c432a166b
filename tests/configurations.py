"""Logging configurations as real projects have them, and a program that runs under one.

As a script: ``configurations.py NAME HOW`` logs the same records under the configuration of that name, through the
stdlib alone (``HOW`` is ``stdlib``) or through mplog, in a worker of that start method. The clock and the ids of
processes stand still, so that all ways must write the same bytes.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import logging.config
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import mplog

Config = dict[str, Any]


class OneLine(logging.Formatter):
    """A formatter of a program's own, which looks at everything."""

    def __init__(self, fmt: str, prefix: str = "") -> None:
        super().__init__(fmt)
        self.prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """Put it on one line, with the arguments of the message."""
        arguments = record.args if record.args else ()
        return f"{self.prefix}{super().format(record)} {arguments!r}".replace("\n", "|")


class Mask(logging.Filter):
    """A filter of a logger that changes the record."""

    def __init__(self, word: str = "secret") -> None:
        super().__init__()
        self.word = word

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide the word."""
        record.msg = str(record.msg).replace(self.word, "***")
        record.masked = "yes"
        return True


class TaskHandler(logging.FileHandler):
    """A handler of a program's own."""

    def __init__(self, base: str, filename: str) -> None:
        super().__init__(os.path.join(base, filename), encoding="utf-8")


def too_loud(record: logging.LogRecord) -> bool:
    """A filter that is a function."""
    return record.levelno < logging.CRITICAL


def make_too_loud() -> Callable[[logging.LogRecord], bool]:
    """Return it."""
    return too_loud


def web() -> Config:
    """A web framework's, in the shape that its documentation recommends (Django)."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "verbose": {
                "format": "{levelname} {asctime} {module} {process:d} {thread:d} {message}",
                "style": "{",
            },
            "simple": {"format": "{levelname} {message}", "style": "{"},
        },
        "filters": {"special": {"()": "configurations.Mask", "word": "foo"}, "quiet": {"()": make_too_loud}},
        "handlers": {
            "console": {"level": "INFO", "class": "logging.StreamHandler", "formatter": "simple"},
            "file": {"level": "DEBUG", "class": "logging.FileHandler", "filename": "debug.log", "formatter": "verbose"},
            "null": {"class": "logging.NullHandler"},
            "errors": {
                "level": "ERROR",
                "class": "logging.FileHandler",
                "filename": "errors.log",
                "filters": ["special", "quiet"],
            },
        },
        "loggers": {
            "app": {"handlers": ["console"], "propagate": True},
            "app.db": {"handlers": ["errors"], "level": "ERROR", "propagate": False},
            "app.server": {"handlers": ["console", "errors"], "level": "INFO", "filters": ["special"]},
            "silent": {"handlers": ["null"], "propagate": False},
        },
        "root": {"handlers": ["file"], "level": "DEBUG"},
    }


def no_root() -> Config:
    """A server's, whose root logger has no handlers (uvicorn, gunicorn): what no handler takes goes to stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "generic": {
                "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
                "datefmt": "[%Y-%m-%d %H:%M:%S]",
                "class": "logging.Formatter",
            },
            "access": {"()": "configurations.OneLine", "fmt": "%(name)s %(message)s", "prefix": "> "},
        },
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stdout"},
            "error_console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stderr"},
            "access": {"formatter": "access", "class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
        },
        "loggers": {
            "app": {"handlers": ["error_console"], "level": "INFO"},
            "app.server": {"level": "INFO", "handlers": ["console"]},
            "app.db": {"handlers": ["access"], "level": "INFO", "propagate": False},
        },
    }


def scheduler() -> Config:
    """A scheduler's, with classes, filters and settings of its own (Airflow)."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "paths": {"base": os.getcwd(), "names": ["task.log", "processor.log"]},
        "formatters": {
            "airflow": {"format": "[%(asctime)s] {%(filename)s:%(lineno)d} %(levelname)s - %(message)s"},
            "coloured": {"format": "\x1b[34m%(message)s\x1b[0m %(masked)s", "defaults": {"masked": "no"}},
            "one_line": {"class": "configurations.OneLine", "format": "%(levelname)s %(message)s"},
        }
        | ({"one_line": {"()": "configurations.OneLine", "format": "%(levelname)s %(message)s"}}),
        "filters": {"mask_secrets": {"()": "configurations.Mask"}, "only_app": {"name": "app"}},
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "formatter": "coloured",
                "stream": "ext://sys.__stdout__",
                "filters": ["mask_secrets"],
            },
            "task": {
                "()": "configurations.TaskHandler",
                "formatter": "airflow",
                "base": "cfg://paths.base",
                "filename": "cfg://paths.names[0]",
                "filters": ["mask_secrets", "only_app"],
            },
            "processor": {
                "class": "logging.handlers.RotatingFileHandler",
                "formatter": "one_line",
                "filename": "cfg://paths.names[1]",
                "mode": "a",
                "maxBytes": 1000,
                "backupCount": 3,
                ".": {"terminator": "\r\n"},
            },
        },
        "loggers": {
            "app.db": {"handlers": ["processor"], "level": "DEBUG", "propagate": False},
            "app": {"handlers": ["task"], "level": "INFO", "propagate": True, "filters": ["mask_secrets"]},
        },
        "root": {"handlers": ["console"], "level": "WARNING", "filters": ["mask_secrets"]},
    }


def task_queue() -> Config:
    """A task queue's, which sends two levels to one file, buffers, and rotates at midnight (Celery)."""
    return {
        "version": 1,
        "formatters": {
            "task": {"format": "[$asctime: $levelname/$processName] $name: $message", "style": "$"},
            "json": {"()": "mplog.JSONFormatter"},
        },
        "handlers": {
            "worker": {
                "class": "logging.FileHandler",
                "filename": "worker.log",
                "formatter": "task",
                "encoding": "utf-8",
            },
            "again": {"class": "logging.FileHandler", "filename": "worker.log", "level": "ERROR", "encoding": "utf-8"},
            "wide": {"class": "logging.FileHandler", "filename": "wide.log", "encoding": "utf-16"},
            "late": {"class": "logging.handlers.MemoryHandler", "capacity": 3, "target": "watched"},
            "watched": {"class": "logging.handlers.WatchedFileHandler", "filename": "watched.log"},
            "beat": {
                "class": "logging.handlers.TimedRotatingFileHandler",
                "filename": "beat.log",
                "when": "midnight",
                "formatter": "json",
            },
            "fresh": {"class": "logging.FileHandler", "filename": "old.log", "mode": "w", "encoding": "latin-1"},
            "unused": {"class": "logging.FileHandler", "filename": "unused.log"},
        },
        "loggers": {
            "": {"handlers": ["worker", "again", "late", "fresh", "wide"], "level": "INFO"},
            "app.server": {"handlers": ["beat", "worker"], "level": "DEBUG", "propagate": 0},
        },
    }


def django() -> Config:
    """Django's own default."""
    from django.utils.log import DEFAULT_LOGGING

    os.environ["DJANGO_SETTINGS_MODULE"] = "web_settings"
    config: Config = DEFAULT_LOGGING
    return config


def django_documented() -> Config:
    """What Django's documentation gives as an example of all there is, with files in place of its mails' recipients."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "web_settings"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "verbose": {"format": "{levelname} {asctime} {module} {process:d} {thread:d} {message}", "style": "{"},
            "simple": {"format": "{levelname} {message}", "style": "{"},
            "django.server": {
                "()": "django.utils.log.ServerFormatter",
                "format": "[{server_time}] {message}",
                "style": "{",
            },
        },
        "filters": {
            "special": {"()": "configurations.Mask", "word": "foo"},
            "require_debug_true": {"()": "django.utils.log.RequireDebugTrue"},
            "require_debug_false": {"()": "django.utils.log.RequireDebugFalse"},
            "not_loud": {"()": "django.utils.log.CallbackFilter", "callback": too_loud},
        },
        "handlers": {
            "console": {
                "level": "INFO",
                "filters": ["require_debug_true"],
                "class": "logging.StreamHandler",
                "formatter": "simple",
            },
            "production": {
                "level": "INFO",
                "filters": ["require_debug_false"],
                "class": "logging.FileHandler",
                "filename": "production.log",
                "delay": True,
            },
            "mail_admins": {
                "level": "ERROR",
                "class": "django.utils.log.AdminEmailHandler",
                "filters": ["special"],
                "include_html": True,
            },
            "file": {
                "level": "DEBUG",
                "class": "logging.handlers.RotatingFileHandler",
                "filename": "debug.log",
                "formatter": "verbose",
                "maxBytes": 2000,
                "backupCount": 2,
                "filters": ["not_loud"],
            },
            "server": {
                "class": "logging.handlers.TimedRotatingFileHandler",
                "filename": "server.log",
                "when": "midnight",
                "backupCount": 30,
                "utc": True,
                "formatter": "django.server",
            },
        },
        "loggers": {
            "django": {"handlers": ["console", "file"], "propagate": True},
            "django.request": {"handlers": ["mail_admins", "production"], "level": "ERROR", "propagate": False},
            "django.server": {"handlers": ["server"], "level": "INFO", "propagate": False},
            "app": {"handlers": ["console", "mail_admins", "file"], "level": "INFO", "filters": ["special"]},
        },
    }


def uvicorn() -> Config:
    """uvicorn's own default."""
    from uvicorn.config import LOGGING_CONFIG

    config: Config = LOGGING_CONFIG
    return config


def gunicorn() -> Config:
    """gunicorn's own default."""
    from gunicorn.glogging import CONFIG_DEFAULTS

    config: Config = CONFIG_DEFAULTS
    return config


def celery() -> Config:
    """What Celery sets up by itself for a worker with a log file, with its own formatters and formats."""
    from celery.app import defaults

    watched = {"class": "logging.handlers.WatchedFileHandler", "encoding": "utf-8"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "process": {
                "()": "celery.utils.log.ColorFormatter",
                "fmt": defaults.DEFAULT_PROCESS_LOG_FMT,
                "use_color": False,
            },
            "task": {"()": "celery.app.log.TaskFormatter", "fmt": defaults.DEFAULT_TASK_LOG_FMT, "use_color": True},
        },
        "handlers": {
            "process": {**watched, "filename": "celery.log", "formatter": "process"},
            "task": {**watched, "filename": "celery.log", "formatter": "task"},
            "errors": {**watched, "filename": "errors.log", "formatter": "process", "level": "ERROR", "delay": True},
        },
        "loggers": {
            "celery.task": {"handlers": ["task"], "level": "INFO", "propagate": False},
            "celery": {"level": "INFO"},
            "app": {"handlers": ["errors"], "propagate": True},
        },
        "root": {"handlers": ["process"], "level": "WARNING"},
    }


CONFIGS = {make.__name__: make for make in (web, no_root, scheduler, task_queue)}
#: Those that need the package of that name.
INSTALLED = {make.__name__: make for make in (django, django_documented, uvicorn, gunicorn, celery)}

LOGGERS = [
    *("root", "app", "app.db", "app.db.queries", "app.server", "other", "silent", "silent.child"),
    *("django", "django.request", "django.server", "uvicorn", "uvicorn.error", "gunicorn.error", "gunicorn.access"),
]


class StillRecord(logging.LogRecord):
    """A record whose clock, thread and process stand still."""

    _numbers = itertools.count()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.created = 1_700_000_000.25 + next(self._numbers)
        self.msecs, self.relativeCreated = 250.0, 1000.0
        self.process, self.processName, self.thread, self.threadName = 711, "Main", 1, "MainThread"
        self.taskName = None


def log_everything(_: object = None) -> None:
    """Log at every level in every logger, in a process whose clock stands still."""
    logging.setLogRecordFactory(StillRecord)
    # What no handler is there for: in one file, since on stderr it stands in between what another process writes.
    last_resort = logging.FileHandler("last_resort.log", encoding="utf-8", delay=True)
    last_resort.setLevel(logging.WARNING)
    logging.lastResort = last_resort  # type: ignore[assignment]
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logger.log(level, "%s of the secret foo, %d: grüß dich", name, level)
    logging.getLogger("app").info("with %(this)s", {"this": "mapping"})
    logging.getLogger("app.server").warning("with a field", extra={"masked": "extra"})
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:9", "GET", "/path?a=b%20c", "1.1", 200
    )
    logging.getLogger("django.server").info('"%s" %s %s', "GET / HTTP/1.1", "200", "9", extra={"status_code": 200})
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("app.db").exception("failed")
        logging.getLogger("other").error("failed as well", exc_info=True)


def main(name: str, how: str) -> None:
    """Run under a configuration."""
    config = (CONFIGS | INSTALLED)[name]()
    # Loggers that are there before are part of what a configuration acts on.
    logging.getLogger("app.server.old").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("silent").setLevel("CRITICAL")
    if how == "stdlib":
        logging.config.dictConfig(config)
        log_everything()
        return
    context = multiprocessing.get_context(how)
    with mplog.LogServer(config=config) as server, context.Pool(1, initializer=server.initializer) as pool:
        pool.map(log_everything, [None])


if __name__ == "__main__":
    # Under the name by which the configurations refer to it.
    importlib.import_module("configurations").main(*sys.argv[1:])
