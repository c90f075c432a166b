"""`mplog.QueueHandler` in a program's own dictConfig, on every Python."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import multiprocessing
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import lines

import mplog

#: What `make_queue` returns.
made: Any = None


def make_queue(which: str = "made") -> Any:
    """A factory, as dictionaries name it."""
    assert which == "made"
    return made


class Listener(logging.handlers.QueueListener):
    """A listener of a program's own."""


@pytest.fixture(params=["class", "()"])
def key(request: pytest.FixtureRequest) -> str:
    """Both ways to name the handler."""
    return str(request.param)


@pytest.fixture(params=[mplog.LogQueue, queue.Queue, queue.SimpleQueue])
def log_queue(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A queue between a handler and a listener."""
    global made
    made = request.param()
    yield made
    if isinstance(made, mplog.LogQueue):
        made.remove()
    made = None


def configure(path: Path, entry: dict[str, Any], *, before: str = "queue") -> Any:
    """Configure logging by the stdlib, and return the QueueHandler."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"no": {"name": "app"}},
        "formatters": {"f": {"format": "%(levelname)s %(message)s"}},
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "filename": str(path),
                "delay": True,  # nobody closes it where there is no listener to write to it
                "level": "WARNING",
                "formatter": "f",
            },
            before: {"level": "INFO", "filters": ["no"], **entry},
        },
        "root": {"handlers": [before], "level": "DEBUG"},
    }
    logging.config.dictConfig(config)
    (handler,) = logging.getLogger().handlers
    assert type(handler) is mplog.QueueHandler and handler.level == logging.INFO
    return handler


SPECS: dict[str, Any] = {
    "external": "ext://test_listener.made",
    "name": "test_listener.make_queue",
    "factory": {"()": "test_listener.make_queue", "which": "made"},
    "function": {"()": make_queue},
}
#: Python 3.12 refused queues of multiprocessing until 3.12.4, with the handler as ``class`` (cpython#119819).
OBJECTS_FAIL = (3, 12) <= sys.version_info < (3, 12, 5)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("listener", [None, "test_listener.Listener", Listener])
@pytest.mark.parametrize("name", ["queue", "a queue that is set up before its file"])
def test_listener_writes_what_is_logged(
    key: str, log_queue: Any, spec: str, listener: Any, name: str, tmp_path: Path
) -> None:
    """The keys queue, listener, handlers and respect_handler_level mean what they mean in the newest stdlib."""
    refused = {queue.Queue: False, queue.SimpleQueue: sys.version_info >= (3, 12)}.get(type(log_queue), OBJECTS_FAIL)
    if spec == "external" and key == "class" and refused:
        pytest.skip("the stdlib of this Python refuses it before any class is asked")
    entry = {key: "mplog.QueueHandler", "queue": SPECS[spec], "handlers": ["file"], "respect_handler_level": True}
    if listener is not None:
        entry["listener"] = listener
    handler = configure(tmp_path / "app.log", entry, before=name)
    assert handler.queue is log_queue
    assert type(handler.listener) is (Listener if listener is not None else logging.handlers.QueueListener)
    handler.listener.start()
    logging.getLogger("app").warning("here %d", 1)
    logging.getLogger("app").info("below the level of the file")
    logging.getLogger("other").warning("not for the filter")
    handler.listener.stop()
    (file,) = handler.listener.handlers
    file.close()
    assert lines(tmp_path / "app.log") == ["WARNING here 1"]


@pytest.mark.processes
def test_without_a_listener_the_queue_is_not_ours(key: str, log: Path) -> None:
    """A queue object alone is enough (cpython#111615): here, a server's (cpython#118868, cpython#119819)."""
    if key == "class" and OBJECTS_FAIL:
        pytest.skip("the stdlib of this Python refuses it before any class is asked")
    with mplog.LogServer(log, format="%(message)s") as server:
        before = logging.getLogger().handlers
        configure(log.with_name("other.log"), {key: "mplog.QueueHandler", "queue": server.queue})
        logging.getLogger("app").warning("here")
        logging.getLogger().handlers = before
    assert lines(log) == ["here"]


def test_queues_of_any_context_are_taken(stdlib_context: Any, tmp_path: Path) -> None:
    """multiprocessing's own queues are taken by every start method (cpython#119819)."""
    plain = stdlib_context.Queue()
    handler = configure(tmp_path / "app.log", {"()": "mplog.QueueHandler", "queue": plain})
    logging.getLogger("app").warning("here")
    assert isinstance(plain.get(timeout=60), bytes)
    assert handler.queue is plain
    plain.close()
    plain.join_thread()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"queue": "logging.INFO"}, "'logging.INFO' is not a function"),
        ({"queue": {"which": "made"}}, "has no '[(][)]'"),
        ({"handlers": ["fil"]}, "there is no handler 'fil'"),
        ({"listener": "logging.INFO", "handlers": ["file"]}, "a listener is a QueueListener"),
    ],
)
def test_mistakes_are_named(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A wrong queue, handler or listener raises, and dictConfig() reports it as the cause."""
    with pytest.raises(ValueError, match="Unable to configure handler 'queue'") as caught:
        configure(tmp_path / "app.log", {"()": "mplog.QueueHandler", **entry})
    with pytest.raises((TypeError, ValueError), match=message):
        assert caught.value.__cause__ is not None
        raise caught.value.__cause__


def test_spawn_contexts_queue_needs_no_manager() -> None:
    """Taking a queue starts no process (cpython#120868, where a manager was started to know its class)."""
    before = multiprocessing.active_children()
    mplog.QueueHandler(queue.Queue())
    assert multiprocessing.active_children() == before
