"""Fields that are bound: on every record logged inside, in this thread or task, and in tasks that carry them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import logging
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mplog
from mplog.record import context as bound
from mplog.record.layout import Record

Collect = Callable[[], list[Record]]


@pytest.fixture(params=["logging", "mplog"])
def log(request: pytest.FixtureRequest) -> Iterator[tuple[logging.Logger, Collect]]:
    """A logger of either class that writes into a queue, and what takes out what has arrived."""
    name = f"bound-{request.param}"
    logger = logging.getLogger(name) if request.param == "logging" else mplog.getLogger(name)
    queue = mplog.LogQueue()
    logger.handlers, logger.propagate = [mplog.QueueHandler(queue)], False
    logger.setLevel(logging.DEBUG)

    def collect() -> list[Record]:
        return [queue.get(timeout=10) for _ in iter(queue.empty, True)]

    yield logger, collect
    logger.handlers = []
    queue.close()
    queue.remove()


@pytest.fixture(autouse=True)
def nothing_bound() -> Iterator[None]:
    """Begin and end with nothing bound."""
    forget_all()
    yield
    forget_all()


def forget_all() -> None:
    """Do what a fork of a process that has bound fields does."""
    bound.in_use.pid = -1
    bound.forget_inherited()


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record has beside the usual."""
    return {name: value for name, value in record.__dict__.items() if name not in bound.RESERVED}


def test_records_inside_have_the_fields(log: tuple[logging.Logger, Collect]) -> None:
    """All records that are logged inside a context carry its fields, with their types, and none outside do."""
    logger, collect = log
    logger.info("before")
    with mplog.context(job=42, tags=("a", "b")):
        logger.info("inside")
        with mplog.context(step=1.5, job=43):
            logger.info("deeper")
        logger.info("back")
    logger.info("after")
    assert [(record.getMessage(), fields(record)) for record in collect()] == [
        ("before", {}),
        ("inside", {"job": 42, "tags": ("a", "b")}),
        ("deeper", {"job": 43, "tags": ("a", "b"), "step": 1.5}),
        ("back", {"job": 42, "tags": ("a", "b")}),
        ("after", {}),
    ]


def test_every_kind_of_call_carries_them(log: tuple[logging.Logger, Collect]) -> None:
    """An exception, a stack, an adapter, a message that does not format, and one that is no text carry them, too."""
    logger, collect = log
    with mplog.context(job=1):
        try:
            raise ValueError("x")
        except ValueError:
            logger.exception("exception")
        logger.info("stack", stack_info=True)
        logging.LoggerAdapter(logger, {"task": 2}).info("adapter")
        logger.info("%d", "no number")
        logger.info("surrogate \udc80")
        logger.info(("no", "text"))
    found = collect()
    assert [record.job for record in found] == [1] * 6  # type: ignore[attr-defined]
    assert found[2].task == 2  # type: ignore[attr-defined]
    assert found[4].getMessage() == "surrogate \udc80"


def test_a_context_that_is_left_by_an_exception_is_left(log: tuple[logging.Logger, Collect]) -> None:
    """Fields are gone after a block that raised."""
    logger, collect = log
    with pytest.raises(ZeroDivisionError), mplog.context(job=1):
        logger.info("inside")
        raise ZeroDivisionError
    logger.info("after")
    assert [fields(record) for record in collect()] == [{"job": 1}, {}]


def test_bind_and_unbind(log: tuple[logging.Logger, Collect]) -> None:
    """What is bound stays until it is unbound, or until the context around it ends."""
    logger, collect = log
    mplog.bind(request="r1", user="u")
    logger.info("")
    mplog.unbind("user", "unknown")
    logger.info("")
    with mplog.context():
        mplog.bind(inner=1)
        logger.info("")
    logger.info("")
    assert [fields(record) for record in collect()] == [
        {"request": "r1", "user": "u"},
        {"request": "r1"},
        {"request": "r1", "inner": 1},
        {"request": "r1"},
    ]


def test_a_field_of_the_record_itself_takes_precedence(log: tuple[logging.Logger, Collect]) -> None:
    """`extra` and keywords say more about a record than what is bound around it."""
    logger, collect = log
    with mplog.context(job="outer", other=1):
        logger.info("", extra={"job": "own"})
        if type(logger) is mplog.Logger:
            logger.info("", job="own")
    assert {tuple(sorted(fields(record).items())) for record in collect()} == {(("job", "own"), ("other", 1))}


def test_reserved_names_get_an_underscore(log: tuple[logging.Logger, Collect]) -> None:
    """A field called like something that a record has leaves that alone; unbinding takes it by its own name."""
    logger, collect = log
    mplog.bind(name="n", process="p", message="m", args=1)
    logger.info("text")
    mplog.unbind("name", "process", "message", "args")
    logger.info("text")
    first, second = collect()
    assert fields(first) == {"name_": "n", "process_": "p", "message_": "m", "args_": 1}
    assert (first.name, first.getMessage(), fields(second)) == (logger.name, "text", {})


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _values, max_size=4), st.dictionaries(st.sampled_from("ab"), _values))
def test_bound_fields_arrive_as_extra_does(
    log: tuple[logging.Logger, Collect], around: dict[str, Any], own: dict[str, Any]
) -> None:
    """A record in a context is the record that `extra` with the same fields would have made."""
    logger, collect = log
    with mplog.context(**around):
        logger.info("text", extra=own)
    logger.info("text", extra={**dict(bound.named(around.items())), **own})
    inside, reference = collect()
    assert repr(sorted(fields(inside).items())) == repr(sorted(fields(reference).items()))


def test_the_straight_way_stays_straight(log: tuple[logging.Logger, Collect], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of `mplog.Logger` is encoded as it stands inside a context, too, without a LogRecord."""
    logger, collect = log
    if type(logger) is mplog.Logger:
        monkeypatch.setattr("mplog.worker.queue_handler.encode", lambda *_: pytest.fail("a LogRecord was encoded"))
    with mplog.context(job=1):
        logger.info("")
    assert [fields(record) for record in collect()] == [{"job": 1}]


class Hostile:
    """Has a repr that logs, and raises."""

    def __repr__(self) -> str:
        logging.getLogger("bound-logging").info("from __repr__")
        raise RuntimeError("no repr")


def test_values_of_any_kind_can_be_bound(log: tuple[logging.Logger, Collect]) -> None:
    """A lock, a list in itself, a huge text and an object that raises when it is shown travel, and look like that."""
    logger, collect = log
    endless: list[Any] = []
    endless.append(endless)
    with mplog.context(lock=threading.Lock(), endless=endless, huge="x" * 300_000, hostile=Hostile()):
        endless.append("later")
        logger.info("inside")
    record = collect()[-1]
    assert str(record.lock).startswith("<unlocked")  # type: ignore[attr-defined]
    assert "later" not in repr(record.endless)  # type: ignore[attr-defined]
    assert len(record.huge) == 300_000  # type: ignore[attr-defined]
    assert str(record.hostile) == "<Hostile object; its str() raised RuntimeError>"  # type: ignore[attr-defined]


# --- threads and tasks ---


def test_a_thread_begins_with_nothing_bound(log: tuple[logging.Logger, Collect]) -> None:
    """Fields hold in the thread that bound them; what others bind stays theirs."""
    logger, collect = log

    def work() -> None:
        logger.info("thread")
        mplog.bind(own=1)
        logger.info("thread")

    with mplog.context(job=1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        logger.info("main")
    assert [fields(record) for record in collect()] == [{}, {"own": 1}, {"job": 1}]


def test_tasks_have_contexts_of_their_own(log: tuple[logging.Logger, Collect]) -> None:
    """Of many interleaved asyncio tasks, nested some levels deep, each logs its own fields and those around it."""
    logger, collect = log
    depth, width = 4, 3

    async def work(path: tuple[int, ...]) -> None:
        mplog.bind(last=path)
        with mplog.context(**{f"level{len(path)}": path[-1]}):
            await asyncio.sleep(0)
            logger.info("%s", path)
            if len(path) < depth:
                await asyncio.gather(*(work((*path, number)) for number in range(width)))
            logger.info("%s", path)

    async def main() -> None:
        with mplog.context(run=7):
            await asyncio.gather(*(work((number,)) for number in range(width)))
            logger.info("()")

    asyncio.run(main())
    found = collect()
    assert len(found) == 1 + 2 * sum(width**level for level in range(1, depth + 1))
    for record in found:
        path = tuple(int(part) for part in record.getMessage().strip("(),").split(",") if part)
        expected: dict[str, Any] = {"run": 7, **{f"level{level}": part for level, part in enumerate(path, 1)}}
        if path:
            expected["last"] = path
        assert fields(record) == expected


def test_an_async_generator_that_is_collected_elsewhere(log: tuple[logging.Logger, Collect]) -> None:
    """A context in a generator that is never ended raises nothing and leaves others alone."""
    logger, collect = log

    async def numbers() -> AsyncIterator[int]:
        with mplog.context(generator=1):
            yield 1

    async def main() -> None:
        generator = numbers()
        await asyncio.create_task(generator.__anext__())  # type: ignore[arg-type]
        with mplog.context(own=1):
            del generator
            gc.collect()
            await asyncio.sleep(0)
            logger.info("")

    asyncio.run(main())
    assert [fields(record) for record in collect()] == [{"own": 1}]


@pytest.mark.processes
def test_a_process_that_binds_nothing_does_nothing() -> None:
    """Without a context, the encoder does not look for one."""
    program = """
import logging, mplog
queue = mplog.LogQueue()
logging.getLogger().addHandler(mplog.QueueHandler(queue))
logging.warning("x")
from mplog.record import context as bound
print(bound.in_use.pid, queue.get(timeout=10).getMessage())
"""
    done = jobs.run_python(["-c", program])
    assert done.stdout == "0 x\n"


# --- processes ---


def note(task: object) -> None:
    """Runs in a worker: log, and log once more with a field of its own."""
    logging.getLogger("job").info("task %s", task)
    with mplog.context(own=task):
        logging.getLogger("job").info("own %s", task)


def noted(path: Path) -> list[tuple[Any, ...]]:
    """Return what `note` has logged: the message, and the fields ``job`` and ``own``."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((line["message"], line.get("job"), line.get("own")) for line in lines)


@pytest.fixture
def json_log(tmp_path: Path) -> Path:
    """The path of a log of JSON lines."""
    return tmp_path / "app.jsonl"


@pytest.fixture
def json_server(json_log: Path) -> Iterator[mplog.LogServer]:
    """A server that writes it."""
    with mplog.LogServer(mplog.FileSink(json_log, format=mplog.JSONFormatter()), level="INFO") as server:
        yield server


CARRIED = [("own 1", 42, 1), ("own 2", 42, 2), ("own 3", None, 3), ("task 1", 42, None), ("task 2", 42, None)]


def test_tasks_carry_the_context(context: Any, json_server: mplog.LogServer, json_log: Path) -> None:
    """What is bound where a task is handed to a plain pool is bound while it runs, and no longer; a pool that is made
    inside a context does not keep it."""
    with mplog.context(job=41):
        pool = context.Pool(1, initializer=json_server.initializer)
    with pool, mplog.context(job=42):
        pool.map(mplog.carry_context(note), [1])
        pool.map(mplog.carry_context(lambda task: note(task)), [2])
        pool.map(note, [3])
    json_server.flush()
    assert noted(json_log) == [*CARRIED, ("task 3", None, None)]


def test_the_pools_of_mplog_carry_it_too(stdlib_context: Any, json_server: mplog.LogServer, json_log: Path) -> None:
    """So do its Pool, its executor and its Process."""
    with mplog.context(job=42, lock=threading.Lock()):
        carried = mplog.carry_context(note)
        assert carried.__name__ == "note"
        with mplog.Pool(1, server=json_server, context=stdlib_context) as pool:
            pool.map(carried, [1])
        with mplog.ProcessPoolExecutor(1, server=json_server, mp_context=stdlib_context) as executor:
            assert executor.submit(carried, 2).result(60) is None
            executor.submit(note, 3).result(60)
    json_server.flush()
    assert noted(json_log) == [*CARRIED, ("task 3", None, None)]


@pytest.mark.processes
def test_an_event_loop_hands_its_context_to_an_executor(json_server: mplog.LogServer, json_log: Path) -> None:
    """`run_in_executor` with `carry_context` logs under the fields of the task that has called it."""

    async def one(executor: concurrent.futures.Executor, number: int) -> None:
        with mplog.context(job=number * 10):
            await asyncio.get_running_loop().run_in_executor(executor, mplog.carry_context(note), number)

    async def main() -> None:
        with concurrent.futures.ProcessPoolExecutor(
            2, multiprocessing.get_context("spawn"), initializer=json_server.initializer
        ) as executor:
            await asyncio.gather(*(one(executor, number) for number in (1, 2)))

    asyncio.run(main())
    json_server.flush()
    assert noted(json_log) == [("own 1", 10, 1), ("own 2", 20, 2), ("task 1", 10, None), ("task 2", 20, None)]


@pytest.mark.processes
def test_a_format_shows_a_bound_field(log: tuple[logging.Logger, Collect], tmp_path: Path) -> None:
    """`%(job)s` stands in a text log as well; where nothing is bound, the formatter's default does."""
    format = logging.Formatter("%(job)s %(message)s", defaults={"job": "-"})
    path = tmp_path / "app.log"
    with mplog.LogServer(path, level="INFO", format=format):
        logging.info("without")
        with mplog.context(job=42):
            logging.info("with")
    assert path.read_text() == "- without\n42 with\n"
