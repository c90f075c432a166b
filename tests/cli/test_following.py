"""Reading a log that grows, step by step: whatever happens to its file between two looks, each line comes once."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import wait_until

from mplog.cli.file_reader import CHUNK, open_log
from mplog.cli.following import Follower
from mplog.files.lock import LogLock


@pytest.fixture
def follower(log: Path) -> Iterator[Follower]:
    """A follower of `log`, in which two lines stand that it has read."""
    log.write_text("1\n2\n")
    follower = Follower(str(log), open_log(str(log)), 0)
    assert read(follower) == "1\n2\n"
    yield follower
    follower.close()


def read(follower: Follower) -> str:
    """Return everything that is new."""
    found = b""
    while data := follower.read():
        found += data
    return found.decode()


def append(path: Path, text: str) -> None:
    """Write more."""
    with open(path, "a") as file:
        file.write(text)


def wait_for_clock(path: Path) -> None:
    """Have the next write come at another time, as the file system counts it, than the last change of a file."""
    other = path.parent / "clock"

    def is_later() -> bool:
        other.write_text("x")
        return other.stat().st_mtime_ns > path.stat().st_ctime_ns

    wait_until(is_later, "the clock of the file system has gone on")


def test_follower_gives_whole_lines(log: Path, follower: Follower) -> None:
    """A line comes once its end is there."""
    append(log, "3")
    assert read(follower) == ""
    append(log, "3\n4\n5")
    assert read(follower) == "33\n4\n"


def test_follower_reads_a_renamed_file_to_its_end(log: Path, follower: Follower) -> None:
    """Lines under the old name come before those in the new file."""
    log.rename(log.with_name("other"))
    append(log.with_name("other"), "3\n")
    assert read(follower) == "3\n"
    log.touch()
    append(log.with_name("other"), "4\nhalf")  # the new file is there, and not written yet
    assert read(follower) == "4\n"
    append(log, "5\n")
    assert read(follower) == "half5\n"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("counts_back", [False, True])
def test_follower_finds_files_that_it_has_never_seen(
    log: Path, follower: Follower, counts_back: bool, compress: bool
) -> None:
    """Several rotations between two looks: each file is read, in order, also when it has been compressed."""
    append(log, "3\n")
    for number in range(4, 8):
        if counts_back:
            for index in range(9, 0, -1):
                for suffix in ("", ".gz"):
                    older = log.with_name(f"app.log.{index}{suffix}")
                    if older.exists():
                        older.rename(log.with_name(f"app.log.{index + 1}{suffix}"))
            target = log.with_name("app.log.1")
        else:
            target = log.with_name(f"app.2026-11-20.{number:03}.log")
        log.rename(target)
        log.write_text(f"{number}\n")
        # Of the same instant, as far as the clock tells. What counts back and is compressed has its time alone.
        at = 10**18 + (number if counts_back and compress else 0)
        os.utime(target, ns=(at, at))
        if compress:
            packed = target.with_name(f"{target.name}.gz")
            packed.write_bytes(gzip.compress(target.read_bytes()))
            shutil.copystat(target, packed)
            target.unlink()
    log.with_name("app.txt").write_text("another's\n")
    assert read(follower) == "3\n4\n5\n6\n7\n"
    append(log, "8\n")
    assert read(follower) == "8\n"


@pytest.mark.parametrize("compress", [False, True])
def test_follower_goes_on_in_the_copy_of_a_file_that_was_emptied(log: Path, follower: Follower, compress: bool) -> None:
    """copytruncate: what came between the last look and the copy is read from the copy, also if the log is longer."""
    for round in range(2):
        append(log, f"{round}a\n")
        copy = log.with_name(f"app.log.{round}")
        if compress:
            log.with_name(f"{copy.name}.gz").write_bytes(gzip.compress(log.read_bytes()))
        else:
            shutil.copy(log, copy)
        os.truncate(log, 0)
        append(log, f"{round}b\n" * (1 + 99 * round))
        assert read(follower) == f"{round}a\n" + f"{round}b\n" * (1 + 99 * round)


@pytest.mark.parametrize("compress", [False, True])
def test_follower_reads_large_copies_in_pieces(log: Path, follower: Follower, compress: bool) -> None:
    """Missed lines of a file that was emptied twice come in pieces of whole lines, however many they are."""
    expected = []
    for round in range(2):
        wait_for_clock(log)
        text = "".join(f"{round} {number:99}\n" for number in range(100_000))
        append(log, text)
        expected.append(text.encode())
        copy = log.with_name(f"app.log.{round}")
        if compress:
            log.with_name(f"{copy.name}.gz").write_bytes(gzip.compress(log.read_bytes(), 1))
        else:
            shutil.copy(log, copy)
        os.truncate(log, 0)
    append(log, "the end\n")
    pieces = []
    while data := follower.read():
        pieces.append(data)
    assert b"".join(pieces) == b"".join(expected) + b"the end\n"
    assert max(map(len, pieces)) < CHUNK + 200
    assert all(piece.endswith(b"\n") for piece in pieces)


def test_follower_begins_again_in_a_file_that_was_emptied(log: Path, follower: Follower) -> None:
    """Also where the same lines come again."""
    os.truncate(log, 0)
    assert read(follower) == ""
    append(log, "1\n2\n")
    assert read(follower) == "1\n2\n"


@pytest.mark.parametrize("looks_between", [False, True])
def test_follower_skips_what_is_written_again(log: Path, follower: Follower, looks_between: bool) -> None:
    """A logging process that was killed is followed by one that cuts the file back and writes the rest again."""
    append(log, "3\n4\n5\n")
    assert read(follower) == "3\n4\n5\n"
    for notice in ("", "mplog: restarted\n"):
        os.truncate(log, 4)
        if looks_between:
            assert read(follower) == ""
        append(log, f"3\n{notice}4\n")
        assert read(follower) == notice
    append(log, "5\n5\n6\n")
    assert read(follower) == "5\n6\n"


@pytest.mark.parametrize("seconds", [0, 3600])
@pytest.mark.parametrize("has_ended", [False, True])
def test_follower_skips_a_new_file_that_is_written_again(
    log: Path, follower: Follower, seconds: float, has_ended: bool
) -> None:
    """After a kill before the first commit in a file, the next logging process, which has the lock, cuts all of it."""
    lock = LogLock(str(log))
    append(log, "3\n")
    assert read(follower) == "3\n"
    try:
        os.utime(log.with_name(f".{log.name}.lock"), (time.time() - seconds,) * 2)
        os.truncate(log, 0)
        append(log, "mplog: restarted\n1\n2\n3\n4\n")
        if has_ended:
            lock.release()
        again = "1\n2\n3\n" if seconds and not has_ended else ""
        assert read(follower) == f"mplog: restarted\n{again}4\n"
    finally:
        lock.release()


def test_follower_skips_a_batch_that_went_into_two_files(log: Path, follower: Follower) -> None:
    """After a kill in the middle of such a batch, both files are cut back, and all of it goes into the second."""
    append(log, "3\n")
    log.rename(log.with_name("app.2026-11-20.001.log"))
    log.write_text("4\n")
    assert read(follower) == "3\n4\n"
    os.truncate(log.with_name("app.2026-11-20.001.log"), 4)
    os.truncate(log, 0)
    append(log, "mplog: restarted\n3\n4\n5\n")
    assert read(follower) == "mplog: restarted\n5\n"


@pytest.mark.parametrize("is_rotated_again", [False, True])
@pytest.mark.parametrize("looks_between", [False, True])
def test_follower_takes_back_a_rotation(
    log: Path, follower: Follower, looks_between: bool, is_rotated_again: bool
) -> None:
    """A killed process has not noted a rotation: the next takes it back, and what was in the new file comes again."""
    rotated = log.with_name("app.2026-11-20.001.log")
    append(log, "3\n")
    log.rename(rotated)
    log.write_text("4\n5\n")
    assert read(follower) == "3\n4\n5\n"
    wait_for_clock(rotated)
    rotated.rename(log)
    if looks_between:
        assert read(follower) == ""
    os.truncate(log, 4)
    append(log, "3\n")
    if is_rotated_again:
        log.rename(rotated)
        log.write_text("4\n")
    else:
        append(log, "4\n")
    assert read(follower) == ""
    append(log, "5\n6\n")
    assert read(follower) == "6\n"


def test_follower_goes_on_where_a_file_was_removed(log: Path, follower: Follower) -> None:
    """Lines in the next file of its name are new, even if they are the same."""
    log.unlink()
    assert read(follower) == ""
    log.write_text("1\n2\n")
    assert read(follower) == "1\n2\n"


class Rotator:
    """Writes numbered lines into a log, and rotates it in one of the ways that there are.

    Args:
        log: the path.
        way: ``"dated"``, ``"counting"``, or ``"copying"``.
        chance: what it throws its dice with.
    """

    def __init__(self, log: Path, way: str, chance: random.Random) -> None:
        self.log = log
        self.lines: list[str] = []
        self._way = way
        self._chance = chance
        self._rotations = 0

    def write(self) -> None:
        """Write some lines."""
        for _ in range(self._chance.randrange(1, 4)):
            self.lines.append(f"{len(self.lines)} {'x' * self._chance.randrange(400)}\n")
            append(self.log, self.lines[-1])

    def rotate(self) -> None:
        """Rotate the log, if there is something in it."""
        if not self.log.stat().st_size:
            return
        self._rotations += 1
        directory = self.log.parent
        if self._way == "dated":
            target = directory / f"app.2026-11-20.{self._rotations:03}.log"
        else:
            numbered = [path for path in directory.iterdir() if path.name.startswith("app.log.")]
            for path in sorted(numbered, key=lambda path: -int(path.name.split(".")[2])):
                _, _, number, *suffix = path.name.split(".")
                path.rename(directory / ".".join(["app.log", str(int(number) + 1), *suffix]))
            target = directory / "app.log.1"
        if self._way == "copying":
            shutil.copy(self.log, target)
            os.truncate(self.log, 0)
        else:
            self.log.rename(target)
            self.log.touch()
        # The clock of a file system ticks some 250 times a second only.
        os.utime(target, ns=(0, 10**18 + self._rotations))
        if self._chance.random() < 0.3:
            self.compress()

    def compress(self) -> None:
        """Compress one of the rotated files."""
        plain = [path for path in self.log.parent.iterdir() if path.name != "app.log" and path.suffix != ".gz"]
        if plain:
            path = self._chance.choice(plain)
            packed = path.with_name(f"{path.name}.gz")
            packed.write_bytes(gzip.compress(path.read_bytes()))
            shutil.copystat(path, packed)
            path.unlink()


@pytest.mark.parametrize("way", ["dated", "counting", "copying"])
@pytest.mark.parametrize("seed", range(30))
def test_follower_misses_nothing_whatever_happens_between_two_looks(log: Path, way: str, seed: int) -> None:
    """Lines, rotations, compressions and looks, in any order and number."""
    chance = random.Random(seed)
    rotator = Rotator(log, way, chance)
    rotator.write()
    follower = Follower(str(log), open_log(str(log)), 0)
    try:
        seen = read(follower)
        for _ in range(60):
            step = chance.choice([rotator.write, rotator.write, rotator.rotate, rotator.compress, None])
            if step is None:
                seen += read(follower)
            else:
                step()
        rotator.write()
        assert seen + read(follower) == "".join(rotator.lines)
    finally:
        follower.close()
