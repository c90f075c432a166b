"""`EmergencyReader`: reads the emergency file for the logging process, and removes it. POSIX only.

The reader takes a file by renaming it, and workers make a new one. It reads what is there at once. Only at the end of
the file does it try to get the lock, to know that no worker still writes into it. If one does, because it is stopped,
the file waits, and the reader goes on with the next: what is missing is only what that worker has not sent yet.

A kill neither loses nor doubles anything, because the reader says how far it is:

- `EmergencyReader.note`: the caller stores it so that it changes at one instant with the end of the log. It outlives
  the logging process, but no reboot.
- Pieces at the end of a taken file, which outlive that, too: before anything is written into the log, which part of
  which log file (`announce`), and after the commit, how far this file is read (`commit`). After a reboot, the next
  reader has in `announced` what was not committed. The caller cuts it off and calls `settle`, and it is read again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from mplog.queue.emergency import (
    ANNOUNCED,
    BEGINNING,
    HEAD_SIZE,
    MAGIC,
    MESSAGE,
    PORTION,
    READ,
    TAKEN,
    Piece,
    open_own,
    piece,
    read_piece,
)
from mplog.queue.locks import try_lock_file, unlock_file

#: About how many bytes are read at a time.
READ_SIZE = 2**20

_POSITION = struct.Struct("=Q")

_ID = slice(len(MAGIC), len(MAGIC) + 8)
_CHUNK = 2**20


class EmergencyReader:
    """Reads one emergency file after another.

    Args:
        path: of the emergency file.
        note: the value of `note` at the last commit of the log.

    Attributes:
        path: of the emergency file.
        finished: how many files have been read to their end, and removed.
        announced: what an earlier reader has announced and not committed: numbers of handlers, devices, inodes, and
            lengths before and after.
        refused: errors about files that cannot be read, such as planted ones.
    """

    def __init__(self, path: str, note: bytes = b"") -> None:
        self.path = path
        self.finished = 0
        self.announced: list[tuple[int, ...]] = []
        self.refused: list[OSError] = []
        self._note = note
        self._taken: list[_Taken] = []
        #: The file of which something was read and is not committed.
        self._current: _Taken | None = None
        for name in ("", *TAKEN):
            try:
                taken = _Taken(path + name)
                if name:
                    self.announced += taken.resume(note)
                    self._taken.append(taken)
                else:
                    taken.close()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.refused.append(error)

    def take_earlier(self) -> None:
        """Take the file of an earlier server, in which its supervisor may have announced something."""
        with contextlib.suppress(OSError):  # one that is `refused`
            if self.take():
                self.announced += self._taken[-1].resume(self._note)

    def take(self) -> bool:
        """Take the file into which workers write; return False if there is none, or no name is left for it.

        Raises:
            OSError: the file cannot be opened, or it is not one of this user's own.
        """
        name = next((name for name in TAKEN if not os.path.lexists(self.path + name)), None)
        if name is None:
            return False
        try:
            taken = _Taken(self.path)
            taken.rename(self.path + name)
        except FileNotFoundError:
            return False
        self._taken.append(taken)
        return True

    def read(self, limit: int = READ_SIZE) -> bytes:
        """Return the next whole frames of what was taken, those of a long message together; b"" where there are none.

        Args:
            limit: about how many bytes at most; a message that is longer comes alone.

        Raises:
            OSError: a file cannot be read.
        """
        return self._read(limit)[0]

    def peek(self, most: int) -> tuple[bytes, int]:
        """Return the first `most` bytes of the next message, and its length; b"" and 0 where there is none.

        No more of it is in memory meanwhile. `commit` passes over it, and `read` begins with it.
        """
        return self._read(1, most)

    def _read(self, limit: int, most: int | None = None) -> tuple[bytes, int]:
        # What was peeked at comes first, even if a worker now goes on in an earlier file.
        for taken in self._taken[:] if self._current is None else [self._current]:
            data, size = taken.read(limit, most)
            if size:
                self._current = taken
                self._note = taken.note
                return data, size
            if taken.is_sealed:
                taken.remove()
                self._taken.remove(taken)
                self.finished += 1
        return b"", 0

    def note(self, *, is_read: bool = False) -> bytes:
        """Return 16 bytes for the next constructor; `is_read`: what `read` has returned last is in the log."""
        if is_read and self._current is not None:
            return self._current.note_after
        return self._note

    def settle(self) -> None:
        """Note that nothing of what was `announced` is in the log. If that fails, `announce` tries again."""
        for taken in self._taken:
            if not taken.is_settled:
                with contextlib.suppress(OSError):
                    taken.mark()

    def announce(self, *portion: int) -> None:
        """Note what is about to be written into a log file, as it is in `announced`, if it is what was read here."""
        self.settle()
        if self._current is not None:
            with contextlib.suppress(OSError):  # then it comes again after a reboot
                self._current.announce(portion)

    def commit(self) -> None:
        """Note that what `read` has returned last is in the log."""
        current, self._current = self._current, None
        if current is not None:
            self._note = current.note_after
            current.commit()

    def reopen(self) -> None:
        """After an error, have the next `read` open the files anew by their paths: descriptors may be dead for good."""
        self._current = None
        for taken in self._taken:
            taken.close()

    def close(self) -> None:
        """Leave the rest to the next logging process."""
        for taken in self._taken:
            taken.close()
        self._taken.clear()

    @property
    def files(self) -> int:
        """How many files there are to read, including those that are being read."""
        return len(self._taken) + os.path.exists(self.path)


class _Taken:
    """A file that was taken. `is_sealed`: no worker writes into it any more. `is_settled`: it says how far it is."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.is_sealed = False
        self.is_settled = True
        self._fd = open_own(path, 0)
        self._id = b""
        self._position = self._next = 0
        self._announced: set[tuple[int, ...]] = set()

    def rename(self, path: str) -> None:
        try:
            os.rename(self._path, path)
        except BaseException:
            self.close()
            raise
        self._path = path

    @property
    def note(self) -> bytes:
        return self._id + _POSITION.pack(self._position)

    @property
    def note_after(self) -> bytes:
        return self._id + _POSITION.pack(self._next)

    def resume(self, note: bytes) -> list[tuple[int, ...]]:
        """Find out how far the file is read, and what an earlier reader had announced, unless the note says it."""
        announced: list[tuple[int, ...]] = []
        self._id = self._read_id()
        if len(note) == len(self.note) and note.startswith(self._id):
            (self._position,) = _POSITION.unpack_from(note, len(self._id))
        else:
            position = 0
            while (found := self._find(position, skips=True, most=PORTION.size)) is not None:
                position = found.end
                if found.kind == READ:
                    (self._position,) = _POSITION.unpack(found.payload)
                    announced.clear()
                elif found.kind == ANNOUNCED:
                    announced.append(PORTION.unpack(found.payload))
        self._next = self._position
        self.is_settled = False
        return announced

    def read(self, limit: int, most: int | None) -> tuple[bytes, int]:
        """Return the first `most` bytes of the next messages, and their length."""
        if self._fd < 0 and not self._reopen():
            return b"", 0
        data, size = self._read(limit, most)
        if not size and not self.is_sealed and try_lock_file(self._fd):
            # Whoever gets the lock from now on sees that the file is taken, and writes nothing.
            unlock_file(self._fd)
            self.is_sealed = True
            data, size = self._read(limit, most)
        return data, size

    def _reopen(self) -> bool:
        """Open the file anew; return False if it is not there, because its file system is not mounted."""
        try:
            self._fd = open_own(self._path, 0)
        except FileNotFoundError:
            return False
        if self._id not in (b"", self._read_id()):
            self.close()
            return False
        return True

    def _read(self, limit: int, most: int | None) -> tuple[bytes, int]:
        payloads: list[bytes] = []
        size = 0
        is_whole = True
        self._next = self._position
        while size < limit or not is_whole:
            room = None if most is None else max(0, most - size)
            found = self._find(self._next, skips=self.is_sealed, most=room)
            if found is None:
                break
            self._next = found.end
            if found.kind in (MESSAGE, BEGINNING):
                payloads.append(found.payload)
                size += found.size
                is_whole = found.kind == MESSAGE
        self._id = self._id or self._read_id()
        return b"".join(payloads), size

    def _read_id(self) -> bytes:
        return os.pread(self._fd, HEAD_SIZE, 0)[_ID]

    def _find(self, position: int, *, skips: bool, most: int | None) -> Piece | None:
        """Return the next whole piece, with `most` bytes of its payload; None if there is none.

        `skips`: over what a killed process or a full disk has left.
        """
        while True:
            found = read_piece(self._fd, position, most)
            if found is not None:
                return found
            if not skips or (position := self._find_magic(position + 1)) < 0:
                return None

    def _find_magic(self, position: int) -> int:
        while len(data := os.pread(self._fd, _CHUNK, position)) >= len(MAGIC):
            if (found := data.find(MAGIC)) >= 0:
                return position + found
            position += len(data) - len(MAGIC) + 1
        return -1

    def announce(self, portion: tuple[int, ...]) -> None:
        if portion not in self._announced:  # a write that failed is announced again
            self._announced.add(portion)
            self._append(ANNOUNCED, PORTION.pack(*portion))

    def commit(self) -> None:
        self._position = self._next
        self._announced.clear()
        self.mark()

    def mark(self) -> None:
        """Note how far the file is read, and that nothing is announced."""
        self.is_settled = False
        self._append(READ, _POSITION.pack(self._position))
        self.is_settled = True

    def _append(self, kind: int, payload: bytes) -> None:
        data = piece(kind, payload)
        if os.write(self._fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self.close()

    def close(self) -> None:
        self.is_sealed = False  # who opens it anew finds that out again
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # its file system has died
                os.close(fd)
