"""Only mypy reads this: the public API, used as users use it."""

from __future__ import annotations

import concurrent.futures
import datetime
import gzip
import logging
import logging.handlers
import multiprocessing
import multiprocessing.pool
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

import mplog


def square(number: int) -> int:
    return number * number


def connect(url: str, *, retry: bool = False) -> None: ...


# --- the server ---

with mplog.LogServer(config={"version": 1}) as configured, mplog.LogServer.from_logging() as adopting:
    assert_type(configured.set_level("app", "DEBUG"), None)
    assert_type(configured.set_level("", 10), None)
    assert_type(adopting, mplog.LogServer)
mplog.LogServer(config="logging.toml")
mplog.LogServer(config=Path("logging.json"))

with mplog.LogServer("app.log", level="INFO") as server:
    assert_type(server, mplog.LogServer)
    assert_type(server.pid, int)
    assert_type(server.initializer, mplog.Initializer)
    assert_type(server.initializer.then(connect, "db://"), mplog.Initializer)
    assert_type(server.flush(), None)
    assert_type(server.flush(timeout=5), None)
    assert_type(server.stats(), mplog.Stats)
    assert_type(server.stats().by_process, dict[tuple[str, int], int])
    assert_type(server.stats().failed, dict[str, int])
    assert_type(server.stats().received, int)
    assert_type(server.stop(timeout=5), mplog.Stats)

assert_type(mplog.LogServer(Path("app.log")).start(), mplog.LogServer)
mplog.LogServer(
    "app.log",
    mplog.FileSink("errors.log", level="ERROR", mode=0o600, encoding="latin-1", follow_symlinks=True),
    mplog.ConsoleSink("stdout", color=False, escape=None),
    mplog.ConsoleSink(level=logging.INFO, format="%(message)s", filters=[lambda record: True]),
    mplog.HandlerSink(lambda: logging.handlers.SysLogHandler("/dev/log"), format=logging.Formatter("{msg}", style="{")),
    level=logging.DEBUG,
    format="%(asctime)s %(message)s",
    queue=mplog.LogQueue(2**20),
)
mplog.FileSink("app.log", rotate="100 MB or midnight", keep=10, compress="gz", archive="app.%Y.{index}.log")
mplog.FileSink("app.log", rotate=10**6, keep="14 days", compress="zst", timezone=datetime.timezone.utc)
mplog.FileSink("app.log", timezone="UTC", rotate="hourly", owner="app:adm", fsync="batch")
mplog.FileSink("app.log", fsync=0.5)
mplog.FileSink("app.log", compress="zip")  # type: ignore[arg-type]
mplog.FileSink("app.log", fsync="always")  # type: ignore[arg-type]
mplog.LogServer("app.log", queue=multiprocessing.Queue(1000))
mplog.LogServer(5)  # type: ignore[arg-type]
mplog.LogServer("app.log", level=1.5)  # type: ignore[arg-type]
mplog.HandlerSink(lambda: "not a handler")  # type: ignore[arg-type,return-value]


class OwnWriter:
    def write(self, batch: list[bytes]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def take(records: list[logging.LogRecord]) -> None: ...


mplog.LogServer(
    mplog.RoutedFileSink("logs/{processName}.log", missing="other", max_open=5, rotate="1 MB"),
    mplog.CallableSink(take, batch=5, timeout=1, retry=mplog.Retry(limit=5), threads=2, full="drop"),
    mplog.RawSink("raw.bin", name="raw", fsync=1),
    mplog.WriterSink(OwnWriter, name="own"),
)
mplog.CallableSink(take, full="wait")  # type: ignore[arg-type]
mplog.WriterSink(lambda: gzip.GzipFile("raw.gz", "ab"))  # type: ignore[arg-type,return-value]
assert_type(mplog.write(b"x", to="raw", timeout=1), None)
mplog.write("x")  # type: ignore[arg-type]


class OwnSink(mplog.Sink):
    def make_handler(self) -> logging.Handler:
        return logging.NullHandler()


mplog.LogServer(OwnSink(level="INFO"))

# --- fields ---


def mask(name: str, value: Any) -> Any:
    return "***" if name == "password" else value


mplog.LogServer("app.log", fields={"service": "shop", "version": 2})
mplog.LogServer("app.log", fields=mplog.Fields({"service": "shop"}, enrichers=[dict], redactors=[mask]))
mplog.LogServer(
    config={"version": 1}, fields=mplog.Fields(redactors=[mplog.Redactor("password", pattern="x", mask="?")])
)
mplog.LogServer.from_logging(fields={"service": "shop"}, overflow="fallback", sync_level="ERROR", buffer_size=2**22)
mplog.Fields(enrichers=[5])  # type: ignore[list-item]
with mplog.context(job=42, anything=object()):
    assert_type(mplog.bind(part=1), None)
    assert_type(mplog.unbind("part", "other"), None)
    assert_type(mplog.carry_context(square)(5), int)

# --- workers ---

server = mplog.LogServer("app.log")

with multiprocessing.Pool(4, initializer=server.initializer) as stdlib_pool:
    assert_type(stdlib_pool.map(square, range(10)), list[int])

with concurrent.futures.ProcessPoolExecutor(4, initializer=server.initializer) as stdlib_executor:
    assert_type(stdlib_executor.submit(square, 1), concurrent.futures.Future[int])

with mplog.Pool(4, connect, ("db://",), server=server, context=multiprocessing.get_context("spawn")) as pool:
    assert_type(pool, mplog.Pool)
    assert_type(pool.map(square, range(10)), list[int])
    assert_type(pool.map(lambda number: str(number), range(10), chunksize=5), list[str])
    assert_type(pool.starmap(square, [(1,)]), list[int])
    assert_type(pool.apply(square, (1,)), int)
    assert_type(pool.apply_async(square, (1,)).get(timeout=5), int)
    assert_type(pool.map_async(square, [1], callback=print).get(), list[int])
    assert_type(pool.starmap_async(square, [(1,)]).get(), list[int])
    for number in pool.imap(square, [1], 10):
        assert_type(number, int)
    for number in pool.imap_unordered(square, [1]):
        assert_type(number, int)
    plain: multiprocessing.pool.Pool = pool

with mplog.ProcessPoolExecutor(4, log="app.log", initializer=connect, initargs=("db://",)) as executor:
    assert_type(executor, mplog.ProcessPoolExecutor)
    assert_type(executor.submit(square, 1).result(), int)
    assert_type(list(executor.map(square, [1, 2], chunksize=2)), list[int])
    plain_executor: concurrent.futures.Executor = executor

process = mplog.Process(target=square, args=(1,), kwargs={}, name="worker", daemon=True, server=server)
assert_type(process, mplog.Process)
assert_type(process.start(), None)
assert_type(process.join(5), None)
assert_type(process.exitcode, int | None)
plain_process: multiprocessing.Process = process


class OwnProcess(mplog.Process):
    def run(self) -> None:
        logging.info("here")


class OwnMultiprocessProcess(mplog.MultiprocessProcess):
    def run(self) -> None:
        logging.info("here")


OwnProcess(log=Path("app.log")).start()
assert_type(OwnMultiprocessProcess(log="app.log").exitcode, int | None)

mplog.Pool(4, sever=server)  # type: ignore[call-arg]
mplog.Process(square, server=server)  # type: ignore[arg-type]

# --- handler, queue, attach ---

queue = mplog.LogQueue()
stdlib_queue: Queue[Any] = queue
handler: logging.handlers.QueueHandler = mplog.QueueHandler(queue)
assert_type(mplog.attach(), mplog.QueueHandler)
assert_type(mplog.attach(Path("/tmp/queue"), level="INFO"), mplog.QueueHandler)
assert_type(queue.directory, str)
assert_type(queue.full(), bool)
logging.handlers.QueueListener(queue, logging.StreamHandler())
mplog.attach(5)  # type: ignore[arg-type]

# --- errors ---

try:
    server.stop()
except mplog.DrainTimeoutError as error:
    assert_type(error.pending, int)
except mplog.LoggingProcessDiedError as error:
    assert_type(error.exitcode, int | None)

try:
    server.start()
except mplog.LogFileLockedError as error:
    assert_type(error.pid, int | None)
    as_os_error: OSError = error
except mplog.SinkError as error:
    assert_type(error.details, str)
except mplog.StartError as error:
    as_runtime_error: RuntimeError = error
except mplog.MplogError:
    pass
