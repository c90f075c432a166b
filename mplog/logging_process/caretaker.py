"""Looks after the directory of the queue, in which other programs clean up. Runs in the supervisor.

::

    cleaner of /tmp ------ removes ----> directory, FIFO, files
    caretaker --- a descriptor of each --'        `- a copy, or a link in its place ----> /proc/PID/fd/N

The rule of this file: **the queue can be used as long as its supervisor lives.** systemd-tmpfiles passes by a directory
that is locked, and other cleaners pass by files that are not old. What is removed all the same, the processes that have
it open still share. A file without a name cannot get one again, but a link to the caretaker's descriptor leads to it.
Other users, such as workers of the group, may not follow that link (proc_pid_fd(5)). So what no process keeps open
becomes a file again.

The kernel tells of each change in the directory (F_NOTIFY, fcntl(2)), but not that the directory itself was moved. So
an idle supervisor wakes up once a minute. Where there is no F_NOTIFY, what is gone is noticed then. Where there is no
/proc, it is only said.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import signal
import sys
import time

from mplog.queue.directory import ended_path, fifo_path, opened, share

if sys.platform != "win32":
    import fcntl

#: Seconds for which something must be gone before it is made again: a program that removes a directory, file by file,
#: fails if a file comes back meanwhile.
_CALM_SECONDS = 0.05
#: So many looks in so many seconds at most, however much changes in the directory. That is enough for a start, which
#: makes several files one directly after the other: each is kept at once.
_BURST, _BURST_SECONDS = 20, 0.4
#: Seconds between two looks at most.
_LOOK_SECONDS = 60.0
#: Seconds between two attempts to make again what cannot be made.
_RETRY_SECONDS = 10.0

_FIFO = os.path.basename(fifo_path(""))
#: What processes share, and do not make again by themselves. Other files belong to one process, or to one moment.
_SHARED = (_FIFO, "logging", "level-changes", "levels", "server", "fill")
#: Those that no process keeps open or writes in place, so that a copy does as well.
_COPIED = ("logging", "levels", "server")


class Caretaker:
    """Looks after a directory: after each change in it, and once a minute.

    Args:
        directory: of the queue.
        fd: the reading end of its FIFO.
        seconds: after so many, a look also makes the files young, for cleaners that remove old ones.
    """

    def __init__(self, directory: str, fd: int, seconds: float) -> None:
        self._directory = directory
        self._seconds = seconds
        self._place = -1
        #: A descriptor of each shared file. O_PATH makes neither a reader nor a writer of a FIFO.
        self._kept: dict[str, int] = {}
        if hasattr(os, "O_PATH"):
            with contextlib.suppress(OSError):  # no /proc
                self._kept[_FIFO] = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        self._due: float | None = None
        self._touched_at = time.monotonic()
        #: When the last looks were.
        self._looks = collections.deque([0.0] * _BURST, _BURST)
        self._gone_since: float | None = None
        self._is_helpless = False
        #: Lines for the log.
        self.unsaid: list[str] = []
        status = os.fstat(fd)
        #: The group that the directory is shared with.
        self._group = status.st_gid if status.st_mode & 0o020 else None
        with contextlib.suppress(OSError), opened(directory, os.O_RDONLY) as place:  # gone already
            self._settle_in(place)
        self.look()

    @property
    def fifo(self) -> int:
        """A descriptor by which the FIFO can be opened; -1 where there is no such thing."""
        return self._kept.get(_FIFO, -1)

    def timeout(self) -> float | None:
        """Return the milliseconds until `work` has something to do; None for nothing."""
        return None if self._due is None else max(0.0, 1000 * (self._due - time.monotonic()))

    def work(self) -> None:
        """Look, if it is time."""
        if self._due is not None and time.monotonic() >= self._due:
            self.look()

    def rest(self) -> None:
        """Let the directory be removed, until the next `look`: the server is about to end."""
        self._due = None
        if hasattr(signal, "SIGIO"):
            signal.signal(signal.SIGIO, signal.SIG_IGN)

    def close(self) -> None:
        """Give all descriptors back, except that of the FIFO: no logging process will need the directory any more."""
        self.rest()
        for fd in (self._place, *(fd for name, fd in self._kept.items() if name != _FIFO)):
            if fd >= 0:
                os.close(fd)

    def look(self, *, at_once: bool = False) -> None:
        """Make again what has been gone for long enough, or `at_once`, and note it in `unsaid`."""
        now = time.monotonic()
        self._looks.append(now)
        self._due = now + min(self._seconds, _LOOK_SECONDS)
        self._listen()
        is_there = self._is_there()
        gone = self._find_gone() if is_there else []
        if is_there and not gone:
            self._gone_since = None
            if now - self._touched_at >= self._seconds:
                self._touched_at = now
                self._touch()
            return
        self._gone_since = self._gone_since or now
        calm_at = self._gone_since + _CALM_SECONDS
        if now < calm_at and not at_once:
            self._due = calm_at
            return
        try:
            self._make_again()
        except OSError as error:
            self._due = now + min(self._seconds, _RETRY_SECONDS)
            if not self._is_helpless:
                self._is_helpless = True
                self._say(
                    f"the directory of the queue, {self._directory}, and it cannot be made again: {error}. Processes "
                    "that have joined log on, and others cannot join"
                )
        else:
            self._is_helpless, self._gone_since = False, None
            what = f"{', '.join(gone)} from the directory of the queue," if gone else "the directory of the queue,"
            what = f"{what} {self._directory}. What is needed is there again, and logging goes on"
            if self._group is not None and os.path.islink(fifo_path(self._directory)):
                what += ". Other workers of the group cannot join until the server is restarted"
            self._say(what)

    def _say(self, what: str) -> None:
        self.unsaid.append(f"mplog: another program has removed {what}")

    # --- what is there ---

    def _listen(self) -> None:
        """Have the kernel tell of the next change."""
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not Linux, not all of it, no directory
            signal.signal(signal.SIGIO, self._on_change)
            fcntl.fcntl(self._place, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_RENAME)

    def _on_change(self, *_: object) -> None:
        due = self._looks[0] + _BURST_SECONDS
        self._due = due if self._due is None else min(self._due, due)

    def _is_there(self) -> bool:
        """Whether the path still leads to our directory."""
        with contextlib.suppress(OSError), opened(self._directory) as fd:
            return os.path.samestat(os.fstat(fd), os.fstat(self._place))
        return False

    def _find_gone(self) -> list[str]:
        """Return the names of the shared files that are gone; keep those that are new."""
        gone = []
        for name in _SHARED:
            kept = self._kept.get(name, -1)
            try:
                found = os.stat(name, dir_fd=self._place)
            except OSError:
                # Else it was not made yet; or the server has begun to end, which renames the FIFO.
                if not os.path.lexists(ended_path(self._directory)) if name == _FIFO else kept >= 0:
                    gone.append(name)
                continue
            if kept >= 0 and os.path.samestat(found, os.fstat(kept)):
                continue
            if kept >= 0 and name == _FIFO:
                gone.append(name)  # this is another one
            else:
                self._keep(name)  # the server replaces its files by new ones
        return gone

    def _keep(self, name: str) -> None:
        if hasattr(os, "O_PATH"):
            with contextlib.suppress(OSError):  # just replaced once more, or no descriptor is left
                fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._place)
                before, self._kept[name] = self._kept.get(name, -1), fd
                if before >= 0:
                    os.close(before)

    # --- what is done about it ---

    def _make_again(self) -> None:
        """Make the directory, if it is gone, and make again what is gone in it."""
        is_made = False
        with contextlib.suppress(OSError):  # it was removed, or cannot be moved back
            moved = os.readlink(f"/proc/self/fd/{self._place}")
            if os.path.samestat(os.stat(moved), os.fstat(self._place)):
                os.rename(moved, self._directory)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._directory, 0o700)
            is_made = True
        with opened(self._directory, os.O_RDONLY) as fd:
            if is_made:
                os.chmod(fd, 0o700)  # whatever the umask
            if self._place < 0 or not os.path.samestat(os.fstat(fd), os.fstat(self._place)):
                self._settle_in(fd)
        self._listen()
        for name in self._find_gone():
            kept = self._kept.get(name, -1)
            if kept < 0:
                raise FileNotFoundError(errno.ENOENT, "without /proc, its FIFO cannot be found")
            with contextlib.suppress(FileNotFoundError):  # another FIFO, or a link that leads nowhere
                os.unlink(name, dir_fd=self._place)
            with contextlib.suppress(FileExistsError):  # just made anew
                try:
                    (self._copy if name in _COPIED else self._link)(name, kept)
                except OSError:
                    os.symlink(f"/proc/{os.getpid()}/fd/{kept}", name, dir_fd=self._place)
        if is_made and self._group is not None:
            share(self._directory, self._group)

    def _copy(self, name: str, fd: int) -> None:
        """Make a file with the content of an open one, which gets its name when it is whole."""
        flags = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_TMPFILE", 0)
        with (
            open(f"/proc/self/fd/{fd}", "rb") as old,
            open(os.open(".", flags, 0o600, dir_fd=self._place), "wb") as new,
        ):
            os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
            new.write(old.read())
            new.flush()
            self._link(name, new.fileno())

    def _link(self, name: str, fd: int) -> None:
        """Give an open file a further name; raise FileNotFoundError if it has none any more."""
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=self._place)

    def _settle_in(self, fd: int) -> None:
        """Keep an open directory, and lock it."""
        with contextlib.suppress(OSError):  # no locks on this file system
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        before, self._place = self._place, os.dup(fd)  # which has the same lock
        if before >= 0:
            os.close(before)

    def _touch(self) -> None:
        """Make the directory and its files young."""
        with contextlib.suppress(OSError):
            os.utime(self._place)
            for name in os.listdir(self._place):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(name, dir_fd=self._place, follow_symlinks=False)
