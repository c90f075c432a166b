"""A hostile neighbour: another user, planted files, and forged frames (faults 20, 22, 27)."""

from __future__ import annotations

import decimal
import logging
import os
import pickle
import random
import select
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import wait_until
from scripts import drop_privileges, lines, run_script

import mplog
from mplog.files.open_file import FileOptions
from mplog.formats.text import renderer
from mplog.handlers import text as sinks
from mplog.handlers.log_file import LogFileHandler
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.troubles import Troubles
from mplog.queue import fifo
from mplog.queue.payloads import check_object
from mplog.queue.sender import Sender
from mplog.record import frame
from mplog.record.decoding import Decoder, decode_entry
from mplog.record.encoding import encode
from mplog.record.frame import OBJECT, RECORD
from mplog.record.frame_reader import UNFINISHED_LIMIT, FrameReader
from mplog.record.layout import Entry

pytestmark = pytest.mark.processes

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(function: Callable[[], object]) -> str:
    """Run a function in a child that is another user; return what it returned or raised, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = repr(function())
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def sticky() -> Any:
    """A directory like /tmp: all users may make files there, and remove their own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


def serve(log: Path | mplog.Sink) -> None:
    """Write one record."""
    with mplog.LogServer(log, format="%(message)s"):
        logging.warning("x")


# --- another user ---


@needs_root
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_another_user_cannot_open_the_queue(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, no other user can write, read, list, join or replace the queue."""
    before = os.umask(umask)
    try:
        server = mplog.LogServer(tmp_path / "app.log").start()
    finally:
        os.umask(before)
    with server:
        directory, path = server.queue.directory, server.queue.path
        os.chmod(os.path.dirname(directory), 0o755)  # where it is, others may look
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        attempts: list[Callable[[], object]] = [
            lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK),
            lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK),
            lambda: os.listdir(directory),
            lambda: os.unlink(path),
            lambda: os.rename(directory, f"{directory}x"),
        ]
        assert [as_nobody(attempt) for attempt in attempts] == ["PermissionError"] * len(attempts)
        assert as_nobody(lambda: mplog.attach(directory)) == "QueueNotFoundError"
        logging.warning("still there")
    assert lines(tmp_path / "app.log")[0].endswith("| still there")


@needs_root
@pytest.mark.parametrize("umask", [0, 0o077])
def test_modes_whatever_the_umask(sticky: Path, umask: int) -> None:
    """The log has its given mode, other users have no access to its lock, and only permitted users can read."""
    before = os.umask(umask)
    try:
        server = mplog.LogServer(mplog.FileSink(sticky / "app.log", mode=0o600)).start()
    finally:
        os.umask(before)
    with server:
        modes = {name: stat.S_IMODE((sticky / name).stat().st_mode) for name in os.listdir(sticky)}
        assert modes == {"app.log": 0o600, ".app.log.lock": 0o600}
        assert as_nobody(lambda: (sticky / "app.log").read_text()) == "PermissionError"
        # A user who can open a lock can hold it, and so keep the next server from starting.
        assert as_nobody(lambda: (sticky / ".app.log.lock").read_text()) == "PermissionError"
        assert as_nobody(lambda: os.unlink(sticky / "app.log").read_text()) == "PermissionError"


# --- what is planted ---


def plant_symlink(path: Path, target: Path) -> None:
    """Plant a symbolic link."""
    path.symlink_to(target)


def plant_hard_link(path: Path, target: Path) -> None:
    """Plant a hard link."""
    path.hardlink_to(target)


def plant_fifo(path: Path, target: Path) -> None:
    """Plant a FIFO."""
    os.mkfifo(path)


def plant_device(path: Path, target: Path) -> None:
    """Plant what looks like the null device."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


PLANTS = [plant_symlink, plant_hard_link, plant_fifo, plant_device]


@pytest.mark.parametrize("name", ["app.log", ".app.log.lock"])
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__[6:])
def test_planted_file_is_refused(sticky: Path, plant: Callable[[Path, Path], None], name: str) -> None:
    """A link, FIFO or device in place of the log or its lock is refused at once, and its target unchanged."""
    target = sticky / "precious"
    target.write_text("precious\n")
    plant(sticky / name, target)
    with pytest.raises(mplog.StartError):
        serve(sticky / "app.log")
    assert target.read_text() == "precious\n"
    (sticky / name).unlink()
    serve(sticky / "app.log")
    assert lines(sticky / "app.log") == ["x"]


def test_hard_link_in_a_directory_of_ones_own(tmp_path: Path, log: Path) -> None:
    """A hard link is accepted in a directory where only the user can write, and elsewhere on request."""
    log.write_text("before\n")
    (tmp_path / "backup").hardlink_to(log)
    serve(log)
    tmp_path.chmod(0o777)
    with pytest.raises(mplog.SinkError, match=r"hard link.*follow_symlinks=True"):
        serve(log)
    serve(mplog.FileSink(log, follow_symlinks=True))
    assert lines(tmp_path / "backup") == ["before", "x", "x"]


@needs_root
def test_log_of_another_user_in_a_sticky_directory(sticky: Path) -> None:
    """A log in /tmp that another user has made is refused, unless that user owns the directory."""
    log = sticky / "app.log"
    log.touch()
    os.chown(log, NOBODY, NOBODY)
    with pytest.raises(mplog.SinkError, match=f"uid {NOBODY}"):
        serve(log)
    assert log.read_text() == ""
    os.chown(sticky, NOBODY, NOBODY)
    serve(log)
    assert lines(log) == ["x"]


def test_link_that_comes_between(sticky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link planted between check and opening is not followed, for the log and for its lock."""
    target = sticky / "precious"
    target.write_text("precious\n")
    really = os.open
    log, lock = str(sticky / "app.log"), str(sticky / ".app.log.lock")

    for victim in (log, lock):

        def race(path: Any, flags: int, *rest: Any, victim: str = victim) -> int:
            # Not when it is made: that one finds nothing there, and the next finds the link.
            if path == victim and not flags & os.O_CREAT:
                Path(victim).unlink(missing_ok=True)
                os.symlink(target, victim)
            elif path == victim and victim == log:
                os.symlink(target, victim)
            return really(path, flags, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", race)
            with pytest.raises(OSError):
                handler = LogFileHandler(log, FileOptions())
                handler.close()
        assert target.read_text() == "precious\n"
        for path in (log, lock):
            Path(path).unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["symlink", "open", "file"])
def test_planted_directory_for_locks_is_refused(tmp_path: Path, kind: str) -> None:
    """If the log's directory is not writable, its lock is in the user's own directory in /tmp, or nowhere."""
    result = run_script(
        tmp_path,
        f"""
        import logging, os, tempfile
        import mplog
        os.mkdir("logs"); open("logs/app.log", "w").close(); os.chmod("logs", 0o555)
        os.mkdir("temporary"); os.mkdir("elsewhere")
        tempfile.tempdir = os.environ["TMPDIR"] = os.path.abspath("temporary")
        place = f"temporary/mplog.{{os.geteuid()}}.locks"
        if {kind!r} == "symlink":
            os.symlink(os.path.abspath("elsewhere"), place)
        elif {kind!r} == "open":
            os.mkdir(place); os.chmod(place, 0o777)
        else:
            open(place, "w").close()
        try:
            mplog.LogServer("logs/app.log").start()
        except mplog.SinkError as error:
            print("is not of this program's making" in str(error))
        print(os.listdir("elsewhere"), os.listdir("temporary") == [os.path.basename(place)])
        os.rmdir(place) if {kind!r} == "open" else os.unlink(place)
        with mplog.LogServer("logs/app.log", format="%(message)s"):
            logging.warning("x")
        print(open("logs/app.log").read(), os.listdir("temporary"))
        """,
        preexec_fn=drop_privileges,
    )
    assert result.stdout == "True\n[] True\nx\n []\n", result
    assert result.stderr == ""


def test_note_in_a_planted_lock_is_not_shown(sticky: Path) -> None:
    """An error names the owner of a lock, but does not quote text that another user has planted."""
    log = sticky / "app.log"
    with mplog.LogServer(log):
        (sticky / ".app.log.lock").write_text("711 \x1b[2Jnow\n")
        with pytest.raises(mplog.LogFileLockedError, match=r"\(of unknown pid\)"):
            serve(log)


@pytest.mark.parametrize("plant", [plant_symlink, plant_hard_link], ids=["symlink", "hard link"])
def test_queue_that_another_user_has_made_again(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    """A worker does not write into a file in the place of its queue."""
    directory = tmp_path / "mplog-abc"
    directory.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious\n")
    plant(directory / "queue", target)
    with pytest.raises(mplog.QueueNotFoundError):
        mplog.LogQueue.open(str(directory))
    with pytest.raises(OSError):
        fifo.open_reader(str(directory / "queue"))
    sender = Sender(str(directory))
    with pytest.raises(OSError):
        sender.put("x")
    sender.close_end()
    assert target.read_text() == "precious\n"


@needs_root
def test_queue_of_another_user_is_not_used(tmp_path: Path) -> None:
    """A FIFO of another user, who could read the records, is refused as a queue, even by root."""
    path = str(tmp_path / "queue")
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(fifo.open_writer(path))
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="not a queue of this user"):
        fifo.open_writer(path)
    with pytest.raises(mplog.QueueNotFoundError):
        mplog.attach(tmp_path)
    os.close(reading)


# --- frames: no code ---


class Exploit:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_frame_runs_no_code(tmp_path: Path, log: Path) -> None:
    """To the logging process, pickles as objects, records, extras and msgpack extensions are data, and counted."""
    import msgspec

    trace = tmp_path / "ran"
    attack = pickle.dumps(Exploit(trace))
    with mplog.LogServer(log, format="%(message)s") as server:
        server.queue.put(Exploit(trace))
        server.queue.sender.put_record(attack)
        for code in range(128):
            record = logging.LogRecord("a", 40, "/x", 1, "extension", None, None)
            values = msgspec.msgpack.decode(encode(record))
            values[2] = {"x": msgspec.msgpack.Ext(code, attack)}
            server.queue.sender.put_record(msgspec.msgpack.encode(values))
        logging.warning("the end")
    assert "the end" in lines(log) and "extension" not in lines(log)
    assert not trace.exists()
    stats = server.stats()
    assert (stats.objects, stats.received) == (1, 1)
    assert stats.broken >= 1
    assert stats.skipped > 128 * len(attack), "all of them count as garbage"


def test_worker_text_is_no_template(log: Path) -> None:
    """Text that looks like a format is written unchanged, wherever it stands."""
    text = "%(process)d %s {0.__class__} $message ${jndi:ldap://x}"
    format = "%(message)s|%(name)s|%(user)s|%(processName)s"
    with mplog.LogServer(log, format=format):
        record = logging.LogRecord(text, 40, "/x", 1, text, None, None)
        record.user = text
        record.processName = text
        logging.getLogger().handle(record)
    assert lines(log) == ["|".join([text] * 4)]


# --- frames: no memory without bound ---


@pytest.mark.parametrize("attribute", ["name", "processName", "levelname"])
def test_names_take_no_memory_without_bound(attribute: str) -> None:
    """Ever new names of loggers, processes and levels, of any length, use little memory."""

    class Nowhere(sinks.TextHandler):
        def write(self, texts: list[str]) -> None:
            pass

    handler = Nowhere()
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(processName)s %(message)s"))
    logging.getLogger().handlers = [handler]
    dispatcher = Dispatcher([handler])
    decoder = Decoder()
    handled = 0
    tracemalloc.start()
    try:
        for number in range(200):
            record = logging.LogRecord("a", 40, "/x", 1, "m", None, None)
            record.__dict__[attribute] = f"{number}-" + "x" * 100_000
            record.process = number
            handled += sum(dispatcher.handle([decoder.decode(encode(record, details=False))]).values())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3_000_000, f"{held} bytes are held of 20 MB"
    assert handled == 200


def test_troubles_take_no_memory_without_bound() -> None:
    """Messages about bad frames name their writers, real or forged, and use no memory once they are written."""
    now = [0.0]
    said: list[str] = []
    troubles = Troubles(lambda message, *_: said.append(message), lambda: now[0])
    for number in range(5000):
        troubles.warn("long record", f"lost: pid {number} ended")
    assert len(troubles) <= 1001
    troubles.report()
    assert len(said) == 1001
    assert said[-1] == "mplog: 4000 troubles of other kinds"
    now[0] = 1000.0
    for number in range(5000, 5500):
        troubles.warn("long record", f"lost: pid {number} ended")
    assert len(troubles) <= 501


def test_error_of_a_sink_forges_no_line() -> None:
    """A line of mplog's own stays one line of limited length, whatever the error of a sink quotes."""
    said: list[str] = []
    troubles = Troubles(lambda message, *_: said.append(message), time.monotonic)
    troubles.warn("record", "failed", ValueError("bad: ok\n2026-11-20 CRITICAL root | \x1b[2J" + "x" * 10_000))
    troubles.report()
    assert said[0].startswith(r"mplog: 1 record failed: ValueError: bad: ok\n2026-11-20 CRITICAL root | \x1b[2Jx")
    assert len(said[0]) < 1100


def test_huge_decimal_is_not_written_out() -> None:
    """A float of eleven characters that %d would expand to a gigabyte is shown unchanged, at no cost."""
    record = logging.LogRecord("a", 40, "/x", 1, "m", None, None)
    failed: list[object] = []

    def fail(entry: Entry, error: Exception) -> None:
        failed.append(error)

    for number in (decimal.Decimal("1E+999999999"), decimal.Decimal("1E-999999999")):
        record.__dict__["n"] = number
        entry = decode_entry(encode(record))
        for format in ("%(n)d", "{n:f}"):
            style: Any = format[0]
            assert renderer(logging.Formatter(format, style=style), "").render([entry], fail) == [""]
        assert renderer(logging.Formatter("%(n)s"), "").render([entry], lambda *about: None) == [str(number)]
    assert len(failed) == 4
    record.__dict__["n"] = decimal.Decimal("1E+6144")
    assert decode_entry(encode(record))[0][2] == {"n": decimal.Decimal("1E+6144")}


def flood(directory: str, seconds: float, seed: int) -> None:
    """Write hostile frames into a queue for so many seconds."""
    dice = random.Random(seed)
    fd = fifo.open_writer(os.path.join(directory, "queue"))
    end = os.times().elapsed + seconds
    while os.times().elapsed < end:
        batch = [hostile_frame(dice) for _ in range(50)]
        for data in batch:
            for start in range(0, len(data), select.PIPE_BUF):
                fifo.wait(fd, select.POLLOUT, None)
                try:
                    os.write(fd, data[start : start + select.PIPE_BUF])
                except BlockingIOError:
                    continue


def hostile_frame(dice: random.Random) -> bytes:
    """Return a frame that takes memory unless there is a bound."""
    kind = dice.randrange(4)
    if kind == 0:  # the beginning of a long message that never ends
        return frame.encode_part(
            dice.randbytes(16), dice.randrange(2**31), 0, 10**6, RECORD, b"x" * dice.choice([0, 4000])
        )
    if kind == 1:
        return dice.randbytes(2000)
    record = logging.LogRecord(f"logger-{dice.random()}", 40, "/x", 1, "m", None, None)
    record.processName = f"{dice.random()}" + "x" * 3000 * (kind == 2)
    record.process = dice.randrange(2**31)
    whole = frame.frame(RECORD, encode(record, details=False))
    assert whole is not None
    return whole


@pytest.mark.long
@pytest.mark.timeout(300)
def test_flood_of_hostile_frames_takes_bounded_memory(log: Path) -> None:
    """The memory of the logging process stays within its bounds over time; honest records all arrive."""
    with mplog.LogServer(log, level="INFO", format="%(name)s %(message)s") as server:
        process = psutil.Process(server.pid)
        sizes = []
        for number in range(6):
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"import test_neighbour as t; t.flood({server.queue.directory!r}, 10, {number})",
                ],
                env=jobs.environment(),
                timeout=120,
                check=True,
            )
            logging.info("honest %d", number)
            server.flush(60)
            sizes.append(process.memory_info().rss)
        # Unfinished messages, names of origins and of processes, and what the allocator keeps of them.
        assert max(sizes) < UNFINISHED_LIMIT * 1.5 + 300 * 2**20, sizes
        print([size >> 20 for size in sizes])
    assert sum(line.startswith("root honest ") for line in lines(log)) == 6


def test_unfinished_messages_take_what_is_counted() -> None:
    """Unfinished messages take no more memory than the limit says, with tiny parts and with large ones."""
    for size in (0, 100, 4000):
        reader: FrameReader[Entry] = FrameReader({RECORD: decode_entry})
        parts = [frame.encode_part(os.urandom(16), 1, 0, 1000, RECORD, bytes(size)) for _ in range(2000)]
        tracemalloc.start()
        try:
            for part in parts:
                reader.feed(part, drained=True)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < reader.incomplete_size * 1.2 + 200_000, (size, held, reader.incomplete_size)


# --- frames: the fast way and the slow one ---


def honest_frames(dice: random.Random) -> bytes:
    """Return the frames of one record or object."""
    kind = dice.randrange(10)
    record = logging.LogRecord(f"l{dice.randrange(3)}", 40, "/x", 1, f"m{dice.randrange(10**6)}", None, None)
    if kind == 0:
        record.__dict__["blob"] = dice.choice([b"\xffmp", b"\xffmp\x01", b"\xffmp\x01\x92\xcd\x00\x05", b"\xff" * 9])
    if kind == 1:
        record.msg = "x" * dice.choice([3500, 3900, 4000, 4050, 9000])
    if kind == 2:
        record.lineno = "a text"  # type: ignore[assignment]
    payload = encode(record, dice.randrange(2**31), dice.random() < 0.3)
    if kind == 3:
        data = pickle.dumps(dice.random())
        return b"".join(frame.frames(OBJECT, len(data).to_bytes(4, "little") + data, dice.randbytes(16)))
    whole = frame.frame(RECORD, payload)
    return whole if whole is not None else b"".join(frame.frames(RECORD, payload, dice.randbytes(16)))


def hostile_headers(dice: random.Random) -> bytes:
    """Return frames with false headers: lengths whose sum is right, or numbers of other sizes."""
    payload = encode(logging.LogRecord("a", 40, "/x", 1, "lie", None, None), 1, False)
    lie = dice.randrange(1, 30)
    size = len(payload)
    tag = b"\xffmp\x01"
    return dice.choice(
        [
            frame.header(RECORD, size + lie) + payload + frame.header(RECORD, size - lie) + payload,
            tag + b"\x92" + bytes([max(0, size - 2) & 0x7F]) + payload,
            tag + b"\x92\xcc" + bytes([max(0, size - 1) & 0xFF]) + payload,
            tag + b"\x92\xd1" + size.to_bytes(2, "big") + payload,
            tag + b"\x92\xce" + (size + 2).to_bytes(4, "big") + payload,
            tag + b"\x93\xcd" + size.to_bytes(2, "big") + payload,
            frame.header(RECORD, 5000) + b"\xc0" * 5000,
            tag,
            b"",
        ]
    )


def mutated(stream: bytes, dice: random.Random) -> bytes:
    """Return the stream with a few bytes changed, removed, doubled or moved."""
    changed = bytearray(stream)
    for _ in range(dice.randrange(4)):
        if not changed:
            break
        place, size = dice.randrange(len(changed)), dice.randrange(1, 40)
        what = dice.randrange(5)
        if what == 0:
            changed[place] = dice.randrange(256)
        elif what == 1:
            changed[place] ^= 1 << dice.randrange(8)
        elif what == 2:
            del changed[place : place + size]
        elif what == 3:
            changed[place:place] = changed[max(0, place - size) : place]
        else:
            changed[place:place] = dice.choice([b"\xffmp", b"\xffmp\x01\x92\xcd", b"\x92\xcd", dice.randbytes(size)])
    return bytes(changed)


def read_by(stream: bytes, cuts: list[int], *, fast: bool) -> tuple[list[str], tuple[int, ...]]:
    """Read a stream in these pieces; return what came out, and what was counted."""
    decoder = Decoder()

    def check(payload: bytes) -> Any:
        check_object(payload)
        return (None, "object"), None

    reader: FrameReader[Any] = FrameReader(
        {RECORD: decoder.decode, OBJECT: check}, decoder.decode_framed if fast else None
    )
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)]):
        for values, origin in reader.feed(stream[start:stop], drained=stop == len(stream)):
            found.append(repr((values[:7], origin)))
    return found, (reader.skipped, reader.broken, reader.given_up, len(reader.incomplete()))


def check_both_ways(dice: random.Random) -> None:
    """Compare both ways for a stream, as a whole and in pieces."""
    units = [honest_frames(dice) if dice.random() < 0.9 else hostile_headers(dice) for _ in range(dice.randrange(1, 6))]
    stream = b"".join(units)
    if dice.random() < 0.8:
        stream = mutated(stream, dice)
    cuts = sorted(dice.randrange(len(stream) + 1) for _ in range(dice.randrange(4)))
    expected = read_by(stream, [], fast=False)
    assert read_by(stream, [], fast=True) == expected, stream
    in_pieces = read_by(stream, cuts, fast=True)
    assert in_pieces == read_by(stream, cuts, fast=False), (stream, cuts)
    assert in_pieces[0] == expected[0], (stream, cuts)


@given(st.randoms(use_true_random=False))
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@example(random.Random(1))
def test_fast_way_is_the_slow_way(dice: random.Random) -> None:
    """However a stream of honest, hostile and broken frames is cut, both ways give the same messages and counts."""
    check_both_ways(dice)


@given(st.lists(st.one_of(st.sampled_from([b"\xffmp\x01", b"\x92\xcd", b"\0\5", b"\xff"]), st.binary(max_size=9))))
@settings(max_examples=300, deadline=None)
def test_any_bytes_by_both_ways(pieces: list[bytes]) -> None:
    """Arbitrary bytes with many pieces of frames give the same by both ways."""
    stream = b"".join(pieces)
    assert read_by(stream, [], fast=True) == read_by(stream, [], fast=False)


@pytest.mark.parametrize("kind", range(9))
def test_header_that_lies_is_no_frame(kind: int) -> None:
    """Frames that decode but have a wrong header are garbage by both ways; honest frames around them arrive."""

    class Dice(random.Random):
        def choice(self, seq: Any) -> Any:
            return seq[kind]

    honest = frame.frame(RECORD, encode(logging.LogRecord("a", 40, "/x", 1, "honest", None, None), 1, False))
    assert honest is not None
    lie = hostile_headers(Dice(kind))
    for stream, count in ((lie, 0), (honest + lie + honest, 2)):
        found, _ = read_by(stream, [], fast=True)
        assert (found, _) == read_by(stream, [], fast=False)
        assert len(found) == count
        assert all("honest" in one for one in found)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_million_mutations() -> None:
    """A million mutated streams give the same by both ways."""
    dice = random.Random(20261120)
    for _ in range(1_000_000):
        check_both_ways(dice)


# --- what a worker's text can do ---


def test_without_the_option_a_line_can_be_forged(log: Path, tmp_path: Path) -> None:
    """A line break in a message is one in the file, as in any text log; with escape=True it is not."""
    text = "ok\nCRITICAL root | all is lost"
    safe = tmp_path / "safe.log"
    with mplog.LogServer(log, mplog.FileSink(safe, escape=True), format="%(levelname)s %(name)s | %(message)s"):
        logging.warning(text)
    assert lines(log) == ["WARNING root | ok", "CRITICAL root | all is lost"]
    assert lines(safe) == [r"WARNING root | ok\nCRITICAL root | all is lost"]


class _Counted:
    """Runs in the logging process: notes each check whether a process has ended."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self) -> logging.Handler:
        """Begin to count, as a sink's factory."""
        from mplog.logging_process import inbox

        has_ended, path = inbox.has_ended, self.path

        def look(pid: int) -> bool:
            with open(path, "ab") as file:
                file.write(b".")
            return has_ended(pid)

        inbox.has_ended = look
        return logging.NullHandler()


def test_a_flood_of_first_parts_is_looked_at_once_in_a_while(log: Path, tmp_path: Path) -> None:
    """However many long records are unfinished, each writer is checked once in a while."""
    looks = tmp_path / "looks"
    sinks = mplog.FileSink(log, format="%(message)s"), mplog.HandlerSink(_Counted(looks))
    with mplog.LogServer(*sinks, level="INFO") as server:
        began = time.monotonic()
        fd = os.open(server.queue.path, os.O_WRONLY)
        for number in range(4000):
            begun = frame.encode_part(
                os.urandom(16), os.getpid() if number % 2 else os.getppid(), 0, 3, frame.RECORD, b"x"
            )
            os.write(fd, begun)
        os.close(fd)
        for number in range(100):
            logging.info("%d", number)
            server.flush()
        rounds = 2 + (time.monotonic() - began) / 1
        assert looks.stat().st_size <= 2 * rounds
        assert server.stats().incomplete == 0
    assert lines(log)[:100] == [str(number) for number in range(100)]


def test_unfinished_records_of_many_writers_are_given_up(log: Path) -> None:
    """All dead writers are found and counted in the end, even if there are more than one check covers."""
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        fd = os.open(server.queue.path, os.O_WRONLY)
        for number in range(1500):
            os.write(fd, frame.encode_part(os.urandom(16), 2**22 + 1 + number, 0, 3, frame.RECORD, b"x"))
        os.close(fd)
        wait_until(lambda: server.stats().incomplete == 1500, "all are given up")
