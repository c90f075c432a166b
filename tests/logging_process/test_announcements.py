"""What is about to be written, for the process that comes after a kill."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from mplog.files.portion import Portion, Position
from mplog.logging_process.announcements import Announcements, Noted
from mplog.logging_process.commit import Note
from mplog.logging_process.suspects import Place
from mplog.monitoring.restart_lines import Restarts
from mplog.queue.buffer_memory import NOTE_SIZE

_LARGE = 2**63 - 1


def _portion(inode: int, start: int, size: int) -> Portion:
    return Portion([], bytes(size), Position(_LARGE, inode, start), None)


@pytest.mark.parametrize("files", [0, 1, 90, 91, 1000, 17_000])
def test_any_number_of_files_is_announced(tmp_path: Path, files: int) -> None:
    """However many files a batch goes to, the note stays short, and the next process learns all of them, in order."""
    announcements = Announcements(str(tmp_path), Noted())
    for number in range(files):
        announcements.add(_LARGE, _portion(_LARGE - number, _LARGE - 2, 1))
    note = msgspec.msgpack.encode(announcements.noted)
    assert len(note) < NOTE_SIZE - 50
    found = list(Announcements(str(tmp_path), msgspec.msgpack.decode(note, type=Noted)).before(pytest.fail))
    assert [each.inode for each in found] == [_LARGE - number for number in range(files)]
    assert {(each.file, each.start, each.end) for each in found} <= {(_LARGE, _LARGE - 2, _LARGE - 1)}


def test_the_note_has_room_for_restarts_too(tmp_path: Path) -> None:
    """However many files are announced while there is much to say of restarts, the note is not too long."""
    announcements, restarts = Announcements(str(tmp_path), Noted()), Restarts([], [], 0, {}, 0.0)
    for number in range(500):
        announcements.add(_LARGE, _portion(_LARGE - number, _LARGE - 2, 1))
        restarts = Restarts(restarts.untold, ["x" * 500], 0, {}, 0.0)
        places = [Place(_LARGE, 100, 100, 100), Place(bytes(16), 100, 100, 100)]
        note = Note(announcements.noted, bytes(16), _LARGE, restarts.untold, places)
        assert len(msgspec.msgpack.encode(note)) <= NOTE_SIZE


def test_portions_of_one_file_are_one_announcement(tmp_path: Path) -> None:
    """What is written into a file in several portions is taken back to the beginning of the first."""
    announcements = Announcements(str(tmp_path), Noted())
    announcements.add(0, _portion(1, 10, 5))
    announcements.add(0, _portion(1, 15, 5))
    announcements.add(0, _portion(2, 0, 5))
    assert [(each.inode, each.start, each.end) for each in announcements.noted.latest] == [(1, 10, 20), (2, 0, 5)]


def test_files_go_when_the_note_does_not_name_them(tmp_path: Path) -> None:
    """A commit leaves none behind, and the next process overwrites none that the note still names."""
    announcements = Announcements(str(tmp_path), Noted())
    for number in range(200):
        announcements.add(0, _portion(number, 0, 1))
    noted = announcements.noted
    after = Announcements(str(tmp_path), noted)
    for number in range(200):
        after.add(0, _portion(1000 + number, 0, 1))
    assert [each.inode for each in Announcements(str(tmp_path), noted).before(pytest.fail)] == list(range(200))
    after.clear()
    after.remove()
    assert os.listdir(tmp_path) == []
