"""The pair of buffers: what a kill leaves, at every byte and at every point."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from buffer_use import PIPE_BUF, SIZE, Camera, Pipe, copy_of, rest_of, seen, take_in
from hypothesis import given, settings
from hypothesis import strategies as st

from mplog.queue import buffer_memory
from mplog.queue import kill_points as faults
from mplog.queue.buffers import NO_ROOM, BufferPair

PROGRAM = str(Path(__file__).parents[1] / "buffer_kills.py")


# --- killed ---


def test_a_read_that_was_made_counts_and_one_that_was_not_does_not(
    pair: BufferPair, camera: Camera, pipe: Pipe
) -> None:
    """Killed before the read, the bytes are still in the FIFO; killed after it, they are in the buffer."""
    take_in(pair, pipe, b"old")
    camera.forget()
    take_in(pair, pipe, b"new")
    before, after = (b"", b"old", 3, 0), (b"", b"oldnew", 6, 0)
    assert camera.develop() == [
        ("in state", before),  # the announcement
        ("before read", before),
        ("after read", after),
        ("in state", after),
    ]


@pytest.mark.parametrize("position", [0, 1, 3, mmap.PAGESIZE - 3, mmap.PAGESIZE, 3 * mmap.PAGESIZE - 8])
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
@pytest.mark.parametrize("length", [8, 9, 4095, 4096, 4097, 100_000])
def test_a_read_is_noticed_wherever_it_is_and_whatever_it_brings(
    pair: BufferPair, camera: Camera, pipe: Pipe, position: int, byte: bytes, length: int
) -> None:
    """Of any length, at any place of a page, also nothing but zeros, also where the same bytes were before."""
    for _ in range(2):
        # Both buffers hold these bytes at this place from before.
        take_in(pair, pipe, byte * 200_000)
        rest_of(pair)
    old = pipe.write(b"o" * position)
    pair.intake(pipe.reader)
    camera.forget()
    new = pipe.write(byte * length)
    pair.intake(pipe.reader)
    pictures = {point: (rest, taken) for point, (_, rest, taken, _) in camera.develop() if point != "in state"}
    taken = 400_000 + position
    assert pictures == {"before read": (old, taken), "after read": (old + new, taken + length)}


def test_a_kill_in_the_recovery_changes_nothing(pair: BufferPair, camera: Camera, pipe: Pipe) -> None:
    """A process that is killed while it finds out whether a read was made leaves the same answer to the next."""
    take_in(pair, pipe, b"data")
    answers = {"before read": (b"", b"", 0, 0), "after read": (b"", b"data", 4, 0)}
    for point, copy in camera.pictures[1:3]:
        memory = os.dup(copy)
        with pytest.MonkeyPatch.context() as monkeypatch:
            recovery = Camera(memory, monkeypatch)
            BufferPair(memory).close()
            reached = recovery.develop()
        assert [name for name, _ in reached] == ["in recovery", "in state"]
        assert {answer for _, answer in reached} == {answers[point]}
        os.close(memory)


def test_a_swap_and_a_commit_happen_at_one_instant(pair: BufferPair, camera: Camera, pipe: Pipe) -> None:
    """Before its point a kill leaves the old state, after it the new one, with the note that belongs to it."""
    take_in(pair, pipe, b"data")
    pair.commit(0, b"old")
    camera.forget()
    pair.swap()
    pair.commit(3, b"new")
    pair.commit(1)
    first, second, third = (b"old", b"data", 4, 0), (b"new", b"a", 4, 3), (b"new", b"", 4, 4)
    assert camera.develop() == [
        ("before swap", first),
        ("in state", first),
        ("after swap", first),
        ("before commit", first),
        ("in state", first),
        ("after commit", second),
        ("before commit", second),
        ("in state", second),
        ("after commit", third),
    ]


def test_what_stays_of_the_intake_buffer_takes_its_place_at_one_instant(
    pair: BufferPair, camera: Camera, pipe: Pipe
) -> None:
    """A kill leaves all that was there or what stays of it, in its place after what is just being written."""
    take_in(pair, pipe, b"first")
    pair.swap()
    take_in(pair, pipe, b"second")
    pair.commit(1)
    camera.forget()
    before, after = (b"", b"irstsecond", 11, 1), (b"", b"irstond", 11, 1)
    assert pair.replace(lambda content: bytes(content[3:])) == 3
    assert camera.develop() == [("before replace", before), ("in state", before), ("after replace", after)]
    assert bytes(pair.unwritten()) == b"irst"
    take_in(pair, pipe, b"third")
    assert pair.replace(lambda content: None) == 0
    with pytest.raises(ValueError, match="9 bytes in the place of 8: what stays must not be longer"):
        pair.replace(lambda content: bytes(content) + b"!")
    assert pair.replace(lambda content: b"") == 8
    take_in(pair, pipe, b"fourth")
    assert rest_of(pair) == b"irstfourth"
    assert (pair.state.taken, pair.committed) == (22, 22)


def test_a_replacement_moves_nothing_of_the_writing_buffer(pair: BufferPair, memory: int, pipe: Pipe) -> None:
    """Whichever places the buffers are in, the next process finds what of one is written, and where that begins."""
    for number in range(7):
        data = b"%d123456789" % number
        take_in(pair, pipe, data)
        assert pair.replace(lambda content: bytes(content[4:])) == 4
        assert pair.swap()
        pair.commit(2)
        take_in(pair, pipe, b"and later")
        assert pair.replace(lambda content: bytes(content[3:])) == 3
        after = BufferPair(memory)
        assert (bytes(after.written()), bytes(after.unwritten())) == (data[4:6], data[6:])
        assert after.state.base == pair.state.base == 19 * number
        assert pair.committed == 19 * number + 2
        after.close()
        pair.commit(4)
        assert pair.committed == 19 * number + 10
        assert rest_of(pair) == b" later"
        assert pair.committed == pair.state.taken == 19 * number + 19


def test_what_is_dropped_is_not_over_before_the_rest_of_its_buffer(pair: BufferPair, pipe: Pipe) -> None:
    """Waiting until everything is written includes what stays of a buffer, however much after it was dropped."""
    take_in(pair, pipe, b"writing")
    pair.swap()
    take_in(pair, pipe, b"kept")
    due = pair.due(pipe.reader)
    take_in(pair, pipe, b"dropped")
    pair.replace(lambda content: bytes(content[:4]))
    pair.commit(7)
    assert pair.committed < due
    pair.swap()
    pair.commit(4)
    assert pair.committed == pair.state.taken > due


def test_room_made_by_a_replacement_is_used(pair: BufferPair, pipe: Pipe) -> None:
    """Where a full FIFO does not fit any more, it does when something has been taken out, and no swap was needed."""
    pipe.fill()
    while pair.intake(pipe.reader) > 0:
        pipe.fill()
    assert pair.intake(pipe.reader) == NO_ROOM
    assert pair.replace(lambda content: bytes(content[pipe.size :])) == pipe.size
    assert pair.intake(pipe.reader) > 0


class Recorder:
    """Stands for the memory of a pair, and keeps the addresses and the bytes of every store into it."""

    def __init__(self, memory: memoryview, stores: list[tuple[list[int], bytes]]) -> None:
        self.memory, self.stores = memory, stores
        self.looked_at: list[int] = []

    def __getitem__(self, key: slice) -> memoryview:
        self.looked_at = list(range(len(self.memory))[key])
        return self.memory[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.memory[key] = value
        if isinstance(key, int):
            width = self.memory.itemsize
            key, value = slice(key * width, (key + 1) * width), self.memory[key : key + 1].tobytes()
        self.stores.append((list(range(self.memory.nbytes)[key]), bytes(value)))


def torn(image: bytearray, stores: list[tuple[list[int], bytes]], whole: int) -> Iterator[None]:
    """Replay stores into an image, and stop after every byte, first to last and last to first.

    Store number `whole` is one of the kernel, which is made in one step.
    """
    for number, (addresses, data) in enumerate(stores):
        pairs = list(zip(addresses, data, strict=True))
        for order in (pairs, pairs[::-1]):
            before = bytes(image[address] for address in addresses)
            for address, byte in order:
                image[address] = byte
                if number != whole:
                    yield
            if order is pairs and number != whole:
                for address, byte in zip(addresses, before):
                    image[address] = byte
        yield


def test_killed_after_any_byte_the_state_is_the_old_or_the_new_one(
    memory: int, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after every single byte, in either order, each change has happened as a whole or not at all."""
    pair = BufferPair(memory)
    stores: list[tuple[list[int], bytes]] = []
    reads: list[int] = []
    scratch = copy_of(memory)
    readv = os.readv

    def record_readv(fd: int, views: list[memoryview]) -> int:
        count = readv(fd, views)
        reads.append(len(stores))
        stores.append((recorder.looked_at, bytes(views[0])))
        return count

    def look(image: bytearray) -> tuple[Any, ...]:
        view = memoryview(image)
        for start in (0, *(buffer_memory.START + place * SIZE for place in range(3))):
            os.pwrite(scratch, view[start : start + buffer_memory.START], start)
        return seen(scratch)

    def check(operation: Any) -> None:
        image = bytearray(os.pread(memory, buffer_memory.START + 3 * SIZE, 0))
        old = look(image)
        stores.clear()
        reads.clear()
        operation()
        new = look(bytearray(os.pread(memory, buffer_memory.START + 3 * SIZE, 0)))
        last, _ = stores[-1]
        assert last in [list(range(slot, slot + 8)) for slot in buffer_memory.SLOTS], "the number is not the last store"
        looks = [look(image) for _ in torn(image, stores, reads[0] if reads else -1)]
        assert looks[-1] == new
        assert set(looks) == {old, new}
        assert looks[0] == old
        assert len(looks) > 200

    recorder = Recorder(pair.memory.view, stores)
    monkeypatch.setattr(pair.memory, "view", recorder)
    monkeypatch.setattr(pair.memory, "words", Recorder(pair.memory.words, stores))
    monkeypatch.setattr(os, "readv", record_readv)
    while pair.memory.sequence < 250:  # the numbers pass 256, so that more than one of their bytes changes
        pair.commit(0)
    pair.commit(0, b"first note")
    pipe.write(b"a" * 100)
    check(lambda: pair.intake(pipe.reader))
    pipe.write(b"b" * 5000)
    check(lambda: pair.intake(pipe.reader))
    check(pair.swap)
    check(lambda: pair.commit(700))
    check(lambda: pair.commit(400, b"a second note"))
    check(lambda: pair.commit(0, b"a third one"))
    pipe.write(b"c" * 600)
    check(lambda: pair.intake(pipe.reader))
    check(lambda: pair.replace(lambda content: b"C" * (len(content) - 100)))
    check(lambda: pair.commit(4000, b""))
    check(lambda: pair.replace(lambda content: b"d" + bytes(content[1:300])))
    check(pair.swap)
    pipe.write(b"e" * 600)
    check(lambda: pair.intake(pipe.reader))
    check(lambda: pair.replace(lambda content: b"f" * 10))
    check(lambda: pair.commit(300))
    check(pair.swap)
    assert pair.memory.sequence > 260
    monkeypatch.undo()
    assert rest_of(pair) == b"f" * 10
    pair.close()
    os.close(scratch)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 3 * PIPE_BUF)),
        st.tuples(st.just("fill"), st.just(0)),
        st.tuples(st.just("intake"), st.just(0)),
        st.tuples(st.just("swap"), st.just(0)),
        st.tuples(st.just("commit"), st.integers(0, 100)),
        st.tuples(st.just("replace"), st.integers(0, 100)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=60,
)


@given(OPERATIONS)
@settings(max_examples=60)
def test_whatever_is_done_the_bytes_come_out_as_they_went_in(operations: list[tuple[str, int]]) -> None:
    """Any order of writes, intakes, swaps, commits of a part, and reopenings keeps every byte, once, in order."""
    memory, pipe = buffer_memory.create(SIZE), Pipe()
    pair = BufferPair(memory)
    sent, received, note, dropped = bytearray(), bytearray(), b"", 0
    # Of what was dropped: in the intake buffer, in the writing buffer, and with everything before it written.
    in_intake = in_writing = passed = 0
    try:
        for number, (what, amount) in enumerate([*operations, ("rest", 0)]):
            if what in ("write", "fill"):
                piece = bytes([number % 251]) * (amount or pipe.size)
                try:
                    for start in range(0, len(piece), PIPE_BUF):
                        sent += piece[start : start + os.write(pipe.writer, piece[start : start + PIPE_BUF])]
                except BlockingIOError:
                    pass
            elif what == "intake":
                pair.intake(pipe.reader)
            elif what == "swap":
                if pair.swap():
                    in_writing, in_intake = in_intake, 0
            elif what == "commit":
                content = bytes(pair.unwritten())
                count, note = len(content) * amount // 100, b"%d" % number
                received += content[:count]
                pair.commit(count, note)
            elif what == "replace":
                # The intake buffer holds the last bytes that were taken in.
                state = pair.state
                kept = state.fill * amount // 100
                assert pair.replace(lambda content, kept=kept: bytes(content[:kept])) == state.fill - kept  # type: ignore[misc]
                del sent[state.taken - dropped - (state.fill - kept) : state.taken - dropped]
                dropped += state.fill - kept
                in_intake += state.fill - kept
                if not kept:
                    in_writing, in_intake = in_writing + in_intake, 0
            elif what == "reopen":
                pair.close()
                pair = BufferPair(memory)
            else:
                received += rest_of(pair)
                while pair.intake(pipe.reader) > 0:
                    received += rest_of(pair)
                passed = dropped
            if not len(pair.unwritten()):
                passed, in_writing = passed + in_writing * (what != "rest"), 0
            assert pair.note == note
            assert (pair.state.committed, pair.state) == (len(received) + passed, buffer_memory.read_state(memory))
        assert received == sent
    finally:
        pair.close()
        pipe.close()
        os.close(memory)


# --- killed for real ---


def kill(
    directory: Path, kills: list[str | None], seed: int, timeout: float = 60, replaces: bool = False
) -> dict[str, Any]:
    """Run writers, and logging processes that are killed; hold what must hold, and return what happened."""
    order = {"directory": str(directory), "writers": 3, "seed": seed, "kills": kills, "replaces": replaces}
    done = jobs.run_python([PROGRAM, json.dumps(order)], timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["ends"] == [-9] * len(kills) + [0] * 4
    assert {name: result[name] for name in ("lost", "doubled", "disordered", "torn")} == {
        "lost": 0, "doubled": 0, "disordered": 0, "torn": 0,
    }  # fmt: skip
    assert result["written"] == result["acknowledged"] > len(kills)
    return result


@pytest.mark.processes
def test_a_process_killed_at_random_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Sixty processes in a row are killed at random moments, and every frame is in the file, once, in order."""
    kill(tmp_path, [None] * 60, seed=1)


@pytest.mark.processes
def test_a_process_killed_while_it_replaces_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Frames that are shortened in the intake buffer are there once, as they were or shortened."""
    result = kill(tmp_path, [None] * 40, seed=4, replaces=True)
    assert result["shortened"] > 40


@pytest.mark.processes
@pytest.mark.parametrize(
    "point", [point for point in faults.POINTS if not point.endswith(("write", "say", "remove", "recovery"))]
)
def test_a_process_killed_at_a_point_loses_doubles_and_tears_nothing(tmp_path: Path, point: str) -> None:
    """Killed at the first, second, ... time that it gets there, each time by another process."""
    result = kill(tmp_path, [f"{point}:{number}" for number in range(1, 9)], seed=2, replaces=point.endswith("replace"))
    if point == "after read":
        assert (result["found_made"], result["found_not_made"]) == (8, 0)
    elif point == "before read":
        assert (result["found_made"], result["found_not_made"]) == (0, 8)


@pytest.mark.processes
@pytest.mark.parametrize("point", ["before read", "after read"])
def test_a_process_killed_in_its_recovery_loses_doubles_and_tears_nothing(tmp_path: Path, point: str) -> None:
    """Two more processes die while they find out whether the read was made, and the third goes on."""
    result = kill(tmp_path, [f"{point}:3", "in recovery", "in state", "in recovery"] * 5, seed=3)
    found = result["found_made"], result["found_not_made"]
    assert found == ((5, 0) if point == "after read" else (0, 5))


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_kills(tmp_path: Path, seed: int) -> None:
    """A hundred kills with each of ten seeds."""
    result = kill(tmp_path, [None] * 100, seed=100 + seed, timeout=300)
    result.pop("ends")
    print(json.dumps(result))
    (tmp_path / "log").unlink()
