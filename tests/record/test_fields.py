"""Enrichers, and redactors that nothing gets past."""

from __future__ import annotations

import collections
import datetime
import enum
import io
import json
import logging
import logging.handlers
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from field_records import make, own_fields
from hypothesis import given
from hypothesis import strategies as st
from scripts import run_script

import mplog
from mplog.record import encoding
from mplog.record.decoding import decode
from mplog.record.encoding import Cut, encode
from mplog.record.foreign import ForeignValue
from mplog.record.layout import Record
from mplog.record.preparation import Preparation, load_preparation, note_preparation

SECRET = "hunter2"


# --- enrichers and redactors, in one process ---


class Prepared:
    """A queue with enrichers and redactors, and loggers that write into it."""

    def __init__(self) -> None:
        self.queue = mplog.LogQueue()
        self.loggers: list[logging.Logger] = [logging.getLogger("fields-stdlib"), mplog.getLogger("fields-mplog")]

    def use(self, enrichers: Any = (), redactors: Any = ()) -> None:
        """Have records go through these."""
        self.queue.preparation = note_preparation(Preparation(tuple(enrichers), tuple(redactors)))
        for logger in self.loggers:
            logger.handlers, logger.propagate = [mplog.QueueHandler(self.queue)], False
            logger.setLevel(logging.DEBUG)

    def collect(self) -> list[Record]:
        """Return what has arrived."""
        return [self.queue.get(timeout=10) for _ in iter(self.queue.empty, True)]

    def close(self) -> None:
        for logger in self.loggers:
            logger.handlers = []
        self.queue.close()
        self.queue.remove()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    """A queue with enrichers and redactors. They need not pickle: nothing travels."""
    monkeypatch.setattr("mplog.record.preparation.dump", lambda parts, by_value: repr(parts).encode())
    made = Prepared()
    yield made
    made.close()


def test_enrichers_add_fields(prepared: Prepared) -> None:
    """What they return is on each record; what a record brings, and what is bound, takes precedence; of two, the
    first. Names that records have already get an underscore."""
    numbers = iter(range(100))
    prepared.use([lambda: {"number": next(numbers), "a": 1, "b": 1, "name": "n"}, lambda: {"a": 2, "c": 2}])
    for logger in prepared.loggers:
        with mplog.context(b="bound", c="bound"):
            logger.info("text", extra={"c": "own"})
    expected = {"a": 1, "b": "bound", "c": "own", "name_": "n"}
    assert [own_fields(record) for record in prepared.collect()] == [{"number": n, **expected} for n in (0, 1)]


def test_redactors_see_everything_that_is_sent(prepared: Prepared) -> None:
    """The message, the traceback, the exception's message, the stack, all fields, enriched and bound ones, and what is
    in dictionaries and lists; one after the other."""
    seen: list[tuple[str, Any]] = []

    def note(name: str, value: Any) -> Any:
        seen.append((name, value))
        return value

    prepared.use(
        [lambda: {"enriched": SECRET}],
        [note, lambda name, value: value.replace(SECRET, "*") if isinstance(value, str) else value],
    )
    try:
        raise ValueError(SECRET)
    except ValueError:
        with mplog.context(bound=SECRET):
            prepared.loggers[0].exception(
                "message %s", SECRET, stack_info=True, extra={"deep": {"a": [1, (SECRET,)], 5: {SECRET}}}
            )
    record = prepared.collect()[0]
    assert record.getMessage() == "message *"
    assert record.exc_message == "*"
    assert "ValueError: *" in record.exc_text
    assert own_fields(record) == {"deep": {"a": [1, ("*",)], 5: {"*"}}, "bound": "*", "enriched": "*"}
    names = [name for name, _ in seen]
    assert set(names) == {"message", "exc_text", "stack_info", "deep", "a", "5", "bound", "enriched"}
    assert ("message", f"message {SECRET}") in seen


class Spells(dict):  # type: ignore[type-arg]
    """A dictionary that shows what is not in it."""

    def __repr__(self) -> str:
        return f"Spells({SECRET})"


def test_redactors_see_what_is_in_values_of_other_classes(prepared: Prepared) -> None:
    """In a value of a class that is made from a plain type, they see the plain data as well as the looks."""
    prepared.use(redactors=[mplog.Redactor("password", pattern=SECRET)])
    secret = enum.Enum("Secret", {"HERE": SECRET}, type=str)["HERE"]
    values = {
        "by name": collections.OrderedDict(password=5, user="ann"),
        "in it": collections.namedtuple("Pair", "a b")(1, [f"<{SECRET}>"]),
        "content": secret,
        "looks": Spells(a=1),
        "harmless": collections.Counter("aab"),
    }
    for logger in prepared.loggers:
        logger.info("text", extra=values)
    for record in prepared.collect():
        fields = own_fields(record)
        assert fields["by name"] == {"password": "***", "user": "ann"}
        assert fields["in it"] == (1, ["<***>"])
        assert repr(fields["harmless"]) == "Counter({'a': 2, 'b': 1})" and fields["harmless"] == {"a": 2, "b": 1}
        assert str(fields["content"]) == str(secret) and fields["content"] == "***"
        assert repr(fields["looks"]) == "Spells(***)"
        assert SECRET not in mplog.JSONFormatter().format(record) + repr(record.__dict__) + str(record.__dict__)


def test_redactors_by_name_and_pattern(prepared: Prepared) -> None:
    """A `Redactor` masks fields and keys by their names, and a pattern in texts and in what an object looks like."""

    class User:
        def __repr__(self) -> str:
            return f"User(card=1234-{SECRET})"

    prepared.use(redactors=[mplog.Redactor("password", "Token", pattern=rf"(?<=card=)\S*{SECRET}", mask=r"#\1")])
    for logger in prepared.loggers:
        logger.info(
            "card=1234-%s %d",
            SECRET,
            1,
            extra={"user": User(), "PASSWORD": 5, "data": [{"token": SECRET, "other": "card=1"}], "number": 1.5},
        )
    for record in prepared.collect():
        assert record.getMessage() == r"card=#\1 1"
        user = own_fields(record).pop("user")
        assert (str(user), repr(user), f"{user:>17}") == (r"User(card=#\1)", r"User(card=#\1)", r"   User(card=#\1)")
        assert own_fields(record) == {
            "user": user,
            "PASSWORD": r"#\1",
            "data": [{"token": r"#\1", "other": "card=1"}],
            "number": 1.5,
        }


def test_arguments_that_travel_are_redacted(prepared: Prepared) -> None:
    """Where the arguments of messages travel, too, redactors see them: each, or by the names in a dictionary."""
    preparation = Preparation((), (mplog.Redactor("password", pattern=SECRET),))
    for args in ((SECRET, 1, [SECRET]), ({"password": 5, "user": SECRET},)):
        record = logging.LogRecord("a", 20, "", 0, "%s" * len(args), args, None)
        arrived = decode(preparation(encode(record, with_args=True)))
        assert arrived.args in (("***", 1, ["***"]), {"password": "***", "user": "***"})
        assert SECRET not in arrived.getMessage()


_values = st.recursive(
    st.just(SECRET) | st.text() | st.integers() | st.binary() | st.datetimes() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(lambda value: {"password": value}, inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _values, max_size=4), st.text(), st.booleans())
def test_no_secret_gets_past(fields: dict[str, Any], text: str, details: bool) -> None:
    """Wherever it stands, it is not in what is sent; and what is not secret arrives as without redactors."""
    record = make(f"{text}{SECRET}{text}", **{f"x{name}": value for name, value in fields.items()})
    payload = Preparation((), (mplog.Redactor(pattern=SECRET),))(encode(record, 5, details))
    assert SECRET.encode() not in payload
    untouched = Preparation((), (lambda name, value: value,))(encode(record, 5, details))
    expected = decode(encode(record, 5, details))
    assert repr(decode(untouched).__dict__) == repr(expected.__dict__)
    assert repr(decode(payload).__dict__) == repr(expected.__dict__).replace(SECRET, "***")


def test_what_redactors_leave_alone_stays_as_it_is() -> None:
    """Values of every type, and objects that look like numbers, come through a redactor unchanged."""

    class Number:
        def __float__(self) -> float:
            return 2.5

    value = decode(encode(make(x=Number(), y=[2**90, datetime.timedelta(1), frozenset([1])])))
    again = decode(Preparation((), (lambda name, value: value,))(encode(make(x=Number(), y=value.y))))  # type: ignore[attr-defined]
    assert ("%.1f" % again.x, again.y) == ("2.5", value.y)  # type: ignore[attr-defined]  # noqa: UP031


# --- what fails ---


def fail(*_: Any) -> Any:
    """An enricher or redactor that fails with an error that contains the secret."""
    raise ValueError(SECRET)


def leave(*_: Any) -> Any:
    """One that wants to end the program."""
    sys.exit(SECRET)


def endless(*_: Any) -> Any:
    """A redactor that returns a list in itself."""
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "function", [fail, leave, endless, lambda: None], ids=["fail", "leave", "endless", "takes nothing"]
)
def test_a_redactor_that_fails_costs_the_value(
    prepared: Prepared, function: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A marker is written in place of what it was to look at, and the record goes; the log says so once."""
    prepared.use(redactors=[function])
    for _ in range(2):
        prepared.loggers[1].info("message %s", SECRET, password=SECRET)
    found = [record for record in prepared.collect() if record.name != "mplog"]
    assert len(found) == 2
    for record in found:
        assert SECRET not in repr(record.__dict__)
        if function is not endless:
            assert record.getMessage().startswith("<mplog: redactor raised ")
        assert "password" in record.__dict__
    assert capsys.readouterr() == ("", "")


def test_it_is_said_once_which_one_fails(prepared: Prepared) -> None:
    """A line in the log names the enricher or redactor, and not what it has said, once per process."""

    def picky(name: str, value: Any) -> Any:
        if name == "password":
            raise ValueError(SECRET)
        return value

    prepared.use([fail], [picky])
    for logger in prepared.loggers * 2:
        logger.info("message", extra={"password": SECRET})
    found = prepared.collect()
    consequence = "a marker is written in place of the value that it failed on"
    assert [record.getMessage() for record in found if record.name == "mplog"] == [
        "mplog: the enricher fail raised ValueError; its fields are missing (said once per process)",
        f"mplog: the redactor {picky.__qualname__} raised ValueError; {consequence} (said once per process)",
    ]
    assert [own_fields(record) for record in found if record.name != "mplog"] == [
        {"password": "<mplog: redactor raised ValueError>"}
    ] * 4


@pytest.mark.parametrize("returned", [None, 5, "text", [1]], ids=repr)
def test_an_enricher_that_returns_no_mapping_adds_nothing(prepared: Prepared, returned: Any) -> None:
    """The record goes without its fields."""
    prepared.use([lambda: returned, lambda: {"b": 2}, leave])
    prepared.loggers[0].info("text")
    assert own_fields(prepared.collect()[0]) == {"b": 2}


def test_hostile_fields_of_enrichers_travel(prepared: Prepared) -> None:
    """Names that are no texts or no UTF-8, and values that do not pickle, arrive as they look."""
    prepared.use([lambda: {5: 1, "\udc80": 2, "lock": threading.Lock(), "msg": "m", "levelno": 99, "args": 3}])
    prepared.loggers[0].info("text")
    record = prepared.collect()[0]
    assert (record.getMessage(), record.levelno) == ("text", logging.INFO)
    lock = own_fields(record).pop("lock")
    assert type(lock) is ForeignValue
    assert own_fields(record) == {"5": 1, "\\udc80": 2, "lock": lock, "msg_": "m", "levelno_": 99, "args_": 3}


def test_enrichers_and_redactors_may_log(prepared: Prepared) -> None:
    """One that logs in turn ends at some depth, and what it logs is redacted, too."""

    def enrich() -> Mapping[str, Any]:
        prepared.loggers[0].info("enriching %s", SECRET)
        return {"a": 1}

    def redact(name: str, value: Any) -> Any:
        prepared.loggers[1].info("redacting %s", SECRET)
        return value.replace(SECRET, "*") if isinstance(value, str) else value

    prepared.use([enrich], [redact])
    prepared.loggers[0].info("text %s", SECRET)
    found = prepared.collect()
    assert found[-1].getMessage() == "text *"
    assert 1 < len(found) < 30
    assert all(SECRET not in repr(record.__dict__) for record in found)


@pytest.fixture
def in_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Returns a function that has something done when SIGUSR1 comes."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda function: void(signal.signal(signal.SIGUSR1, lambda *_: void(function())))
    signal.signal(signal.SIGUSR1, before)


def void(_: object) -> None:
    """Return nothing."""


def interrupted(name: str, value: Any) -> Any:
    """A redactor during which a signal comes, once."""
    if value == "outer":
        signal.raise_signal(signal.SIGUSR1)
    return value.replace(SECRET, "***")


def test_a_signal_handler_may_log_meanwhile(prepared: Prepared, in_signal: Any) -> None:
    """A record of a signal handler that has interrupted a redactor is redacted like any other, and both arrive."""
    prepared.use([lambda: {"a": SECRET}], [interrupted])
    in_signal(lambda: prepared.loggers[1].info("inner %s", SECRET))
    prepared.loggers[0].info("outer")
    assert [(record.getMessage(), own_fields(record)) for record in prepared.collect()] == [
        ("inner ***", {"a": "***"}),
        ("outer", {"a": "***"}),
    ]


def test_a_signal_handler_may_end_the_program_meanwhile(prepared: Prepared, in_signal: Any) -> None:
    """What a signal handler raises is no failure of the redactor that it has interrupted."""
    prepared.use(redactors=[interrupted])
    in_signal(lambda: sys.exit(3))
    with pytest.raises(SystemExit):
        prepared.loggers[0].info("outer")
    in_signal(lambda: None)
    prepared.loggers[0].info("outer")
    assert [record.getMessage() for record in prepared.collect()] == ["outer"]


def test_a_text_that_is_no_utf8_is_redacted(prepared: Prepared) -> None:
    """Neither a surrogate in a message nor one in another attribute takes a text past a redactor."""
    prepared.use(redactors=[mplog.Redactor(pattern=SECRET)])
    prepared.loggers[0].info(f"a\udc80{SECRET}", extra={"x": f"b\udc80{SECRET}"})
    record = prepared.collect()[0]
    assert (record.getMessage(), record.x) == ("a\udc80***", "b\udc80***")  # type: ignore[attr-defined]


@pytest.mark.parametrize("details", [True, False])
def test_a_record_that_becomes_too_long_is_cut(monkeypatch: pytest.MonkeyPatch, details: bool) -> None:
    """A field of an enricher that is longer than a record may be is cut like any other, and so counted."""
    monkeypatch.setattr(encoding, "MAX_RECORD_SIZE", 10_000)
    monkeypatch.setattr(encoding, "CUT_TEXT", 1000)
    payload = Preparation((lambda: {"huge": "x" * 20_000},), (lambda name, value: value,))(encode(make(), 1, details))
    assert type(payload) is Cut
    assert decode(payload).huge == "[cut by mplog: 20007 bytes]"  # type: ignore[attr-defined]


def test_a_cut_record_stays_one() -> None:
    """What was cut before is counted as such after enrichers and redactors."""
    assert type(Preparation((dict,), ())(Cut(encode(make())))) is Cut


@pytest.mark.processes
def test_nothing_gets_to_stderr_past_a_redactor(tmp_path: Path) -> None:
    """What the logging process can no longer write, and what logging itself complains about, is redacted, too."""
    done = run_script(
        tmp_path,
        """
        import logging, mplog, os, signal

        class Broken(logging.Filter):
            def filter(self, record):
                raise ValueError("broken filter")

        if __name__ == "__main__":
            fields = mplog.Fields(redactors=[mplog.Redactor(pattern="hunter2")])
            server = mplog.LogServer("app.log", fields=fields, level="INFO").start()
            handler = logging.getLogger().handlers[0]
            handler.addFilter(Broken())
            logging.warning("in a filter: hunter2")
            handler.filters = []
            server.stop()
            handler.handle(logging.makeLogRecord({"msg": "too late: %s", "args": ("hunter2",), "levelno": 40}))
        """,
    )
    assert done.returncode == 0
    assert "in a filter: ***" in done.stderr
    assert "too late: ***" in done.stderr
    # The traceback that logging writes shows the line of the program.
    assert [line for line in done.stderr.splitlines() if "hunter2" in line and "logging.warning(" not in line] == []


# --- on the way to workers ---


def enrich_by_module() -> Mapping[str, Any]:
    """Runs in a worker."""
    return {"pid_seen": os.getpid()}


def log_secrets(_: object) -> int:
    """Runs in a worker: log by both kinds of logger, and by handlers of the worker's own; return the pid."""
    logging.getLogger("job").info("password=%s", SECRET, extra={"token": SECRET})
    mplog.getLogger("fast").info("password=%s", SECRET, token=SECRET)
    queue = logging.getLogger().handlers[0].queue  # type: ignore[attr-defined]
    own = [mplog.QueueHandler(queue)]
    if isinstance(queue, mplog.LogQueue):
        own += [logging.handlers.QueueHandler(queue)]  # type: ignore[list-item]
    for handler in own:
        handler.handle(logging.makeLogRecord({"msg": f"password={SECRET}", "token": SECRET, "levelno": 20}))
    return os.getpid()


def check_secrets(path: Path, pids: list[int], per_process: int) -> None:
    """Hold a JSON log to what `log_secrets` must have left there."""
    text = path.read_text()
    assert SECRET not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == per_process * len(pids)
    for line in lines:
        assert (line["message"], line["token"], line["made"]) == ("password=***", "***", "by a lambda")
        assert line["pid_seen"] in pids


def secret_fields() -> mplog.Fields:
    """Return fields that travel by reference and by value."""
    made = "by a lambda"
    return mplog.Fields(
        {"service": "shop"},
        enrichers=[enrich_by_module, lambda: {"made": made}],
        redactors=[mplog.Redactor("token", pattern=r"(?<=password=)\S+")],
    )


def test_workers_and_the_parent_enrich_and_redact(context: Any, tmp_path: Path) -> None:
    """Under every start method of both libraries, and in the parent, whichever logger or handler is used."""
    path = tmp_path / "app.jsonl"
    sink = mplog.FileSink(path, format=mplog.JSONFormatter())
    with mplog.LogServer(sink, level="INFO", fields=secret_fields()) as server:
        with context.Pool(1, initializer=server.initializer) as pool:
            pids = pool.map(log_secrets, [1])
        pids.append(log_secrets(1))
    check_secrets(path, pids, 4)


def log_through(queue: Any) -> None:
    """Runs in a worker that has not called an initializer: log by a handler of its own."""
    handler = mplog.QueueHandler(queue)
    handler.handle(logging.makeLogRecord({"msg": f"password={SECRET}", "token": SECRET, "levelno": 20}))


def test_a_queue_that_travels_by_itself_redacts(stdlib_context: Any, tmp_path: Path) -> None:
    """A worker that was given no more than the queue sends no secrets."""
    path = tmp_path / "app.jsonl"
    sink = mplog.FileSink(path, format=mplog.JSONFormatter())
    with mplog.LogServer(sink, level="INFO", fields=secret_fields()) as server:
        process = stdlib_context.Process(target=log_through, args=(server.queue,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        pid = process.pid
    check_secrets(path, [pid], 1)


@pytest.mark.processes
def test_workers_of_a_plain_queue_redact(tmp_path: Path) -> None:
    """So do those whose records go through a queue of multiprocessing."""
    path = tmp_path / "app.jsonl"
    sink = mplog.FileSink(path, format=mplog.JSONFormatter())
    queue = multiprocessing.get_context("spawn").Queue(1000)
    with mplog.LogServer(sink, level="INFO", fields=secret_fields(), queue=queue) as server:
        process = multiprocessing.get_context("spawn").Process(target=use_and_log, args=(server.initializer,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert SECRET not in "".join(lines)


def use_and_log(initializer: Any) -> None:
    """Runs in a worker."""
    initializer()
    logging.getLogger("job").info("password=%s", SECRET, extra={"token": SECRET})
    mplog.getLogger("fast").info("password=%s", SECRET, token=SECRET)


@pytest.mark.processes
def test_attached_programs_redact(tmp_path: Path) -> None:
    """A program that joins a server sends no secrets either, though it cannot import the server's script."""
    done = run_script(
        tmp_path,
        """
        import logging, mplog, os, subprocess, sys

        def mask(name, value):
            return "***" if name == "token" else value

        CHILD = "import logging, mplog; mplog.attach(); logging.info('child', extra={'token': 'hunter2'})"

        if __name__ == "__main__":
            sink = mplog.FileSink("app.jsonl", format=mplog.JSONFormatter({"message": "message"}))
            with mplog.LogServer(sink, level="INFO", fields=mplog.Fields(redactors=[mask])):
                subprocess.run([sys.executable, "-c", CHILD], check=True)
        """,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "app.jsonl").read_text() == '{"message":"child","token":"***"}\n'


@pytest.mark.processes
def test_records_that_are_written_through_are_redacted(tmp_path: Path) -> None:
    """`sync_level` takes nothing past the redactors."""
    path = tmp_path / "app.jsonl"
    sink = mplog.FileSink(path, format=mplog.JSONFormatter())
    with mplog.LogServer(sink, level="INFO", fields=secret_fields(), sync_level="INFO"):
        log_secrets(1)
    check_secrets(path, [os.getpid()], 4)


def test_what_does_not_pickle_is_refused_at_start(tmp_path: Path) -> None:
    """An enricher that cannot travel is an error of start(), which says what to do, and no process is started."""
    lock = threading.Lock()
    server = mplog.LogServer(tmp_path / "app.log", fields=mplog.Fields(enrichers=[lambda: {"lock": lock}]))
    with pytest.raises(mplog.StartError, match=r"do not pickle.*functions of a module"):
        server.start()
    assert not (tmp_path / "app.log").exists()


@pytest.mark.processes
def test_where_they_were_made_they_are_the_same_objects(tmp_path: Path) -> None:
    """In the parent an enricher is not a copy: it sees what the program changes."""
    state = {"request": "r1"}
    path = tmp_path / "app.log"
    fields = mplog.Fields(enrichers=[lambda: state])
    with mplog.LogServer(path, level="INFO", format="%(request)s", fields=fields):
        logging.info("")
        state["request"] = "r2"
        logging.info("")
    assert path.read_text() == "r1\nr2\n"


def test_a_server_without_them_leaves_handlers_as_they_are(server: mplog.LogServer) -> None:
    """Without enrichers and redactors nothing stands between a record and the queue."""
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, mplog.QueueHandler)
    assert handler.is_direct
    assert server.queue.preparation == b""


def test_what_is_loaded_is_kept() -> None:
    """The same data gives the same objects, so that a process says once what fails."""
    data = note_preparation(Preparation((enrich_by_module,), ()))
    assert load_preparation(data) is load_preparation(data)
    assert io.BytesIO(data).read() == data
