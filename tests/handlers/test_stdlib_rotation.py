"""Files that are rotated as the stdlib does it: the same names and bytes, through any kill (faults 5, 12, 13)."""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import logging.handlers
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripts import environment, lines, run_script

from mplog.config.handlers import Handlers
from mplog.handlers.log_file import LogFileHandler
from mplog.logging_process.dispatch import Dispatcher
from mplog.record.decoding import decode_entry
from mplog.record.encoding import encode

ROTATING = logging.handlers.RotatingFileHandler
TIMED = logging.handlers.TimedRotatingFileHandler
WATCHED = logging.handlers.WatchedFileHandler

Contents = dict[str, bytes]


def contents(directory: Path) -> Contents:
    """Return what is in a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Clock:
    """What time.time() says."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """As time.time()."""
        return self.now


@contextlib.contextmanager
def clock_at(now: float, zone: str = "UTC") -> Iterator[Clock]:
    """Have the time stand still, in a time zone."""
    clock = Clock(now)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(time, "time", clock)
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            yield clock
        finally:
            monkeypatch.undo()
            time.tzset()


def make_stdlib(kind: Any, terminator: str, **arguments: Any) -> logging.Handler:
    """Return the stdlib's own handler."""
    handler: logging.Handler = kind(**arguments)
    handler.terminator = terminator  # type: ignore[attr-defined]
    return handler


def make_ours(kind: Any, terminator: str, **arguments: Any) -> logging.Handler:
    """Return what serves it."""
    handler = Handlers(restarted=False).make(kind, {"terminator": terminator}, **arguments)
    assert isinstance(handler, LogFileHandler)
    handler.terminator = terminator
    return handler


#: Texts of a batch; seconds that go by before it; and whether the program starts again before it.
Batch = tuple[list[str], int, bool]


def run(
    make: Any, kind: Any, batches: list[Batch], before: Contents, clock: Clock, terminator: str, arguments: Any
) -> Contents:
    """Return what is in the log's directory in the end."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "app.log"
        for name, data in before.items():
            (Path(directory) / name).write_bytes(data)
        log.touch()
        # Its time is on the disk's clock, which does not stand still.
        os.utime(log, (clock.now, clock.now))
        handler = make(kind, terminator, filename=str(log), **arguments)
        for texts, seconds, is_restart in batches:
            if is_restart:
                handler.close()
                os.utime(log, (clock.now, clock.now))
                handler = make(kind, terminator, filename=str(log), **arguments)
            clock.now += seconds
            for text in texts:
                handler.handle(logging.makeLogRecord({"msg": text}))
            handler.flush()
        handler.close()
        return contents(Path(directory))


TEXTS = st.lists(st.text(st.sampled_from("aé€😀"), max_size=12), min_size=1, max_size=6)
OTHERS = st.dictionaries(
    st.sampled_from(["app.log.1", "app.log.2", "app.log.3", "app.log.5", "app.log.2026-03-28", "app.log.1.gz", "x"]),
    st.sampled_from([b"", b"old\n"]),
)


@settings(max_examples=60)
@given(
    batches=st.lists(st.tuples(TEXTS, st.just(0), st.booleans()), max_size=6),
    before=OTHERS,
    size=st.integers(0, 40),
    count=st.integers(0, 4),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
    terminator=st.sampled_from(["\n", "\r\n", ""]),
)
@example(batches=[(["a" * 50], 0, False)], before={}, size=10, count=1, encoding="utf-8", terminator="\n")
def test_size(batches: list[Batch], before: Contents, size: int, count: int, encoding: str, terminator: str) -> None:
    """RotatingFileHandler: whatever is logged, the files have the stdlib's names and bytes."""
    arguments = {"maxBytes": size, "backupCount": count, "encoding": encoding}
    with clock_at(0) as clock:
        expected = run(make_stdlib, ROTATING, batches, before, clock, terminator, arguments)
        assert run(make_ours, ROTATING, batches, before, clock, terminator, arguments) == expected


#: The nights before summer time begins and ends in Berlin, and one in between.
NIGHTS = [
    datetime.datetime(2026, month, day, 20, tzinfo=datetime.timezone.utc).timestamp()
    for month, day in ((3, 28), (6, 30), (10, 24))
]


@settings(max_examples=100)
@given(
    batches=st.lists(
        st.tuples(TEXTS, st.sampled_from([0, 1, 59, 1800, 3600, 9000, 43_200, 86_400, 500_000]), st.booleans()),
        max_size=8,
    ),
    before=OTHERS,
    when=st.sampled_from(["S", "m", "H", "D", "midnight", "W0", "W5", "W6"]),
    interval=st.integers(1, 3),
    count=st.integers(0, 3),
    at=st.sampled_from([None, datetime.time(2, 30), datetime.time(23, 59, 59)]),
    utc=st.booleans(),
    now=st.sampled_from(NIGHTS),
)
@example(  # a name that is taken: some Pythons wait for the next time, some for ever, and some remove the file
    batches=[(["a"], 43_200, False), (["b"], 86_400, False), (["c"], 86_400, False)],
    before={"app.log.2026-06-30": b"old\n"},
    when="midnight",
    interval=1,
    count=0,
    at=None,
    utc=True,
    now=NIGHTS[1],
)
def test_time(
    batches: list[Batch],
    before: Contents,
    when: str,
    interval: int,
    count: int,
    at: datetime.time | None,
    utc: bool,
    now: float,
) -> None:
    """TimedRotatingFileHandler: by any schedule, also when summer time begins or ends, names and bytes are the same."""
    arguments = {"when": when, "interval": interval, "backupCount": count, "atTime": at, "utc": utc}
    arguments["encoding"] = "utf-8"
    with clock_at(now, "Europe/Berlin") as clock:
        expected = run(make_stdlib, TIMED, batches, before, clock, "\n", arguments)
    with clock_at(now, "Europe/Berlin") as clock:
        assert run(make_ours, TIMED, batches, before, clock, "\n", arguments) == expected


ENCODINGS = """
import logging
from mplog.config.handlers import Handlers

for number, encoding in enumerate([None, "locale", "utf-8"]):
    words = {"encoding": encoding, "errors": "backslashreplace"}
    for handler in (
        logging.FileHandler(f"stdlib{number}", **words),
        Handlers(restarted=False).make(logging.FileHandler, {}, filename=f"ours{number}", **words),
    ):
        handler.handle(logging.makeLogRecord({"msg": "\xe9"}))
        handler.close()
"""


@pytest.mark.processes
@pytest.mark.parametrize("utf8", [None, "0", "1"])
def test_encoding_is_the_stdlib_s(tmp_path: Path, utf8: str | None) -> None:
    """None and "locale" are what they are to open(), with and without the UTF-8 mode, in a locale without UTF-8."""
    changes = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    done = run_script(tmp_path, ENCODINGS, env=environment(**changes))
    assert (done.returncode, done.stderr) == (0, "")
    for number in range(3):
        assert (tmp_path / f"ours{number}").read_bytes() == (tmp_path / f"stdlib{number}").read_bytes()
    assert (tmp_path / "ours2").read_bytes() == "\xe9\n".encode()


@pytest.mark.parametrize("make", [make_stdlib, make_ours])
def test_watched_file_is_opened_again_for_the_next_record(log: Path, make: Any) -> None:
    """WatchedFileHandler: a file that was moved or removed is gone on with at once in a new one, without a word."""
    handler = make(WATCHED, "\n", filename=str(log), encoding="utf-8")

    def write(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": text}))
        handler.flush()

    write("1")
    log.rename(f"{log}.old")
    write("2")
    log.rename(f"{log}.older")
    log.write_text("another's\n")
    write("3")
    log.unlink()
    write("4")
    assert make is make_stdlib or (isinstance(handler, LogFileHandler) and handler.take_notices() == [])
    handler.close()
    assert contents(log.parent) == {"app.log": b"4\n", "app.log.old": b"1\n", "app.log.older": b"2\n"}


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("make", [make_stdlib, make_ours])
def test_delayed_file_is_there_only_with_a_record(log: Path, make: Any, existed: bool) -> None:
    """With delay, nothing is left of a file that nobody wrote to; one that was there stays."""
    if existed:
        log.touch()
    make(logging.FileHandler, "\n", filename=str(log), delay=True).close()
    assert log.exists() is existed
    handler = make(logging.FileHandler, "\n", filename=str(log), delay=True, encoding="utf-8")
    handler.handle(logging.makeLogRecord({"msg": "1"}))
    handler.close()
    assert contents(log.parent) == {"app.log": b"1\n"}


@pytest.mark.parametrize(
    ("kind", "attributes", "arguments"),
    [
        (ROTATING, {"namer": str.upper}, {"maxBytes": 99, "backupCount": 1}),
        (TIMED, {"rotator": os.rename}, {}),
        (logging.FileHandler, {}, {"errors": "ignore"}),
        (logging.FileHandler, {}, {"mode": "x"}),
        (logging.FileHandler, {}, {"mode": "w", "delay": True}),
    ],
)
def test_what_cannot_be_served_is_left_to_the_stdlib(log: Path, kind: Any, attributes: Any, arguments: Any) -> None:
    """A name of the program's own making, or another way to open the file, is the stdlib handler's business, and stays
    it when the logging process is restarted, which empties nothing."""
    for restarted in (False, True):
        handler = Handlers(restarted=restarted).make(kind, attributes, filename=str(log), **arguments)
        assert type(handler) is kind
        handler.handle(logging.makeLogRecord({"msg": str(restarted)}))
        handler.close()
    assert lines(log) == ["False", "True"]


def test_link_that_would_be_renamed_is_left_to_the_stdlib(log: Path) -> None:
    """Rotation renames the link, as the stdlib does, and not the file that it leads to."""
    log.symlink_to("real")
    handler = Handlers(restarted=False).make(ROTATING, {}, filename=str(log), maxBytes=9, backupCount=1)
    assert type(handler) is ROTATING
    handler.close()


def test_fifo_is_left_to_the_stdlib(log: Path) -> None:
    """Whether it can be written to, Python's own handler decides; it is not renamed."""
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    handler = Handlers(restarted=False).make(ROTATING, {}, filename=str(log), maxBytes=2, backupCount=1)
    assert type(handler) is ROTATING
    if sys.version_info >= (3, 14):
        for number in range(2):
            handler.handle(logging.makeLogRecord({"msg": str(number)}))
        assert os.read(reader, 10) == b"0\n1\n"
    handler.close()
    os.close(reader)
    assert os.listdir(log.parent) == ["app.log"]


def test_handlers_of_one_file_share_it_where_they_are_alike(log: Path) -> None:
    """Two handlers that rotate a file in the same way are one; another one is left to the stdlib."""
    handlers = Handlers(restarted=False)
    arguments = {"filename": str(log), "maxBytes": 9, "backupCount": 1, "encoding": "utf-8"}
    one, two = (handlers.make(ROTATING, {}, **arguments) for _ in range(2))
    other = handlers.make(logging.FileHandler, {}, filename=str(log), encoding="utf-8")
    assert [type(one), type(other)] == [LogFileHandler, logging.FileHandler]
    for handler in (one, two, one):
        handler.handle(logging.makeLogRecord({"msg": "12345"}))
        handler.flush()
    for handler in (other, two, one):
        handler.close()
    assert contents(log.parent) == {"app.log": b"12345\n", "app.log.1": b"12345\n"}


def test_handlers_of_one_file_wait_for_its_disk(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk has no room for is written when there is room, whichever of them it comes from."""
    handlers = Handlers(restarted=False)
    both = [handlers.make(logging.FileHandler, {}, filename=str(log), encoding="utf-8") for _ in range(2)]
    monkeypatch.setattr(logging.getLogger(), "handlers", both)
    dispatcher = Dispatcher(both)
    dispatcher.keep_trying()
    entry = decode_entry(encode(logging.makeLogRecord({"msg": "text", "levelno": logging.INFO})))
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        dispatcher.handle([entry])
        assert dispatcher.stuck == both
    dispatcher.flush()
    assert dispatcher.stuck == []
    dispatcher.close()
    assert (log.read_text(), dispatcher.failed) == ("text\ntext\n", {})


@pytest.mark.parametrize("restarted", [False, True])
def test_file_is_emptied_by_the_first_process_alone(log: Path, restarted: bool) -> None:
    """What a killed logging process has written under ``mode: "w"`` stays there for the next one."""
    log.write_text("before\n")
    handlers = Handlers(restarted=restarted)
    for kind, path in ((logging.FileHandler, log), (WATCHED, log.with_name("watched.log"))):
        path.write_text("before\n")
        handlers.make(kind, {}, filename=str(path), mode="w").close()
        assert path.read_text() == ("before\n" if restarted else "")


def test_rotation_that_fails_goes_on_in_the_old_file(log: Path) -> None:
    """If a name cannot be taken, everything stays as it is, and nothing is lost."""
    handler = make_ours(ROTATING, "\n", filename=str(log), maxBytes=5, backupCount=2, encoding="utf-8")
    assert isinstance(handler, LogFileHandler)
    for name in ("app.log.1", "app.log.2"):
        (log.parent / name).mkdir()
        (log.parent / name / "file").touch()
    os.chmod(log.parent, 0o755)
    real_rename = os.rename

    def rename(source: Any, target: Any) -> None:
        if str(source).endswith("app.log"):
            raise PermissionError("no")
        real_rename(source, target)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "rename", rename)
        for number in range(3):
            handler.handle(logging.makeLogRecord({"msg": f"{number}"}))
            handler.flush()
    (notice,) = handler.take_notices()
    assert "could not be rotated, so writing goes on in the same file" in notice
    handler.close()
    assert log.read_text() == "0\n1\n2\n"
    assert sorted(os.listdir(log.parent)) == ["app.log", "app.log.1", "app.log.2"]


def test_journal_of_others_is_not_read(log: Path) -> None:
    """A link in its place is neither followed nor written: the log is written on, and says why it is not rotated."""
    target = log.with_name("target")
    target.write_text("precious")
    (log.parent / ".app.log.renames").symlink_to(target)
    handler = make_ours(ROTATING, "\n", filename=str(log), maxBytes=5, backupCount=2, encoding="utf-8")
    assert isinstance(handler, LogFileHandler)
    for number in range(3):
        handler.handle(logging.makeLogRecord({"msg": f"{number}"}))
        handler.flush()
    (notice,) = handler.take_notices()
    assert "could not be rotated" in notice
    handler.close()
    assert (target.read_text(), log.read_text()) == ("precious", "0\n1\n2\n")


@pytest.mark.parametrize("journal", [b"[[", b"7\n", b'[[["app.log", "stolen", 1]], null]\n', b"\xff"])
def test_broken_journal_does_no_harm(log: Path, journal: bytes) -> None:
    """What was written in part, or is about other files, renames nothing."""
    log.write_text("1\n")
    (log.parent / ".app.log.renames").write_bytes(journal)
    handler = make_ours(ROTATING, "\n", filename=str(log), maxBytes=5, backupCount=2, encoding="utf-8")
    handler.handle(logging.makeLogRecord({"msg": "2"}))
    handler.close()
    assert contents(log.parent) == {"app.log": b"1\n2\n"}


# --- killed at every step ---

KILLS = """
import filelock, logging, logging.handlers, os, shutil, signal, sys, time
from pathlib import Path
from mplog.files.portion import Position
from mplog.config.handlers import Handlers
from readers import status_of

CALLS = ["open", "close", "write", "rename", "unlink", "ftruncate", "fstat", "lstat", "truncate", "fchmod"]
kind = getattr(logging.handlers, sys.argv[2])
#: Some batches of records, a day apart.
BATCHES = [[f"{batch}-{number}\\n" for number in range(count)] for batch, count in enumerate([3, 9, 1, 5])]
NOON = 1_800_000_000 // 86400 * 86400 + 43200
OPTIONS = {"RotatingFileHandler": {"maxBytes": 13, "backupCount": 4},
           "TimedRotatingFileHandler": {"when": "midnight", "backupCount": 2, "utc": True}}[sys.argv[2]]
now = NOON
time.time = lambda: now

def prepare(directory):
    directory.mkdir()
    for name in ("app.log", "app.log.1", "app.log.3", "app.log.2026-01-01"):
        (directory / name).write_text(f"old {name}\\n")
        os.utime(directory / name, (NOON, NOON))

def by_stdlib(directory):
    global now
    prepare(directory)
    handler = kind(directory / "app.log", encoding="utf-8", **OPTIONS)
    for number, batch in enumerate(BATCHES):
        now = NOON + 86400 * number
        for text in batch:
            handler.emit(logging.makeLogRecord({"msg": text[:-1]}))
    handler.close()

def work(directory, kill_at, after):
    '''Write what is not noted in the journal, and note it; be killed at a call to the system, before or after it.'''
    global now
    fd = os.open(directory.with_suffix(".journal"), os.O_RDWR | os.O_CREAT)
    pread, pwrite, utime = os.pread, os.pwrite, os.utime
    note = [int(word) for word in pread(fd, 1000, 0).split()] or [0]
    done = note[0]
    calls = 0
    def wrap(name):
        function = getattr(os, name)
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == kill_at and not after:
                if name == "write":
                    function(arguments[0], bytes(arguments[1][:3]))
                os.kill(os.getpid(), signal.SIGKILL)
            makes = name == "open" and not os.path.exists(arguments[0])
            result = function(*arguments, **options)
            if name in ("write", "ftruncate"):
                utime(arguments[0], (now, now))
            elif makes:
                utime(result, (now, now))
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(os, name, call)
    for name in CALLS:
        wrap(name)
    now = NOON + 86400 * done
    path = str(directory / "app.log")
    handler = Handlers(restarted=True).make(kind, {}, filename=path, encoding="utf-8", **OPTIONS)
    announced = note[1:]
    if announced:
        device, inode, start, end = announced
        handler.resume(Position(device, inode, start), end)
    announced = []
    def announce(portion):
        '''As the logging process does.'''
        if not announced:
            announced.extend([*portion.start, portion.end.length])
        elif announced[1] == portion.start.inode:
            announced[3] = portion.end.length
        pwrite(fd, b"%20d %20d %20d %20d %20d" % (done, *announced), 0)
    handler.announce = announce
    for batch in BATCHES[done:]:
        now = NOON + 86400 * done
        handler.write(batch)
        done += 1
        announced.clear()
        pwrite(fd, b"%-104d" % done, 0)
        handler.settle()
    handler.close()
    if handler.take_notices():
        os._exit(3)

def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}

root, thorough = Path(sys.argv[1]), sys.argv[3] == "True"
by_stdlib(root / "stdlib")
expected = contents(root / "stdlib")
assert len(expected) > 4, expected
kills = 0
for kill_at in range(1, 2000, 1 if thorough else 7):
    statuses = []
    for after in (False, True):
        # Some points once, or each with kills at many points of the recovery.
        for again_at in [kill_at * 7 % 59 + 1] if not thorough else range(1, 60, 6):
            directory = root / f"{kill_at}{after}{again_at}"
            prepare(directory)
            statuses.append(status_of(work, directory, kill_at, after))
            # Once more, and killed at an early step of the recovery itself.
            if statuses[-1]:
                assert statuses[-1] == -signal.SIGKILL, (kill_at, after, statuses)
                kills += 1
                again = status_of(work, directory, again_at, after)
                assert again in (0, -signal.SIGKILL), (kill_at, after, again_at, again)
            status = status_of(work, directory, 0, False)
            assert status == 0, (kill_at, after, again_at, status)
            found = contents(directory)
            assert found == expected, (kill_at, after, again_at, found)
            shutil.rmtree(directory)
            directory.with_suffix(".journal").unlink()
    if not any(statuses):
        break
else:
    raise AssertionError("no run was clean")
print(kills)
"""


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["RotatingFileHandler", "TimedRotatingFileHandler"])
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_killed_at_any_step_leaves_what_the_stdlib_would_have_written(
    tmp_path: Path, kind: str, thorough: bool
) -> None:
    """SIGKILL before and after each call to the system, and again in the recovery: the same names and bytes."""
    (tmp_path / "logs").mkdir()

    result = run_script(tmp_path, KILLS, tmp_path / "logs", kind, thorough, timeout=1700)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert int(result.stdout) > 20
