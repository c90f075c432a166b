"""A server in the background, for ``mplog serve start``.

::

    mplog serve start --- fork ---> the server: detached, standard error in a file without a name
             ^                        |
             '--- the queue's path ---'   ready; `start` prints it, and sends a byte back

The rule of this file: **no server is left that its user does not know of.**
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable

from mplog.errors import MplogError

#: Bytes of standard error that are kept.
_KEPT_ERRORS = 2**20


def start_in_background(serve: Callable[[socket.socket], int], *, is_known: bool) -> int:
    """Run `serve` in a process of its own, connected to this one; return the exit status when it is ready.

    `is_known` says that the server can be found even if its path cannot be printed.
    """
    sys.stdout.flush()
    connection, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            status = 1
            try:
                connection.close()
                status = serve(socket.socket(fileno=_detach(theirs.detach(), errors.fileno())))
            except MplogError as error:
                print(f"mplog serve: {error}", file=sys.stderr, flush=True)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(status)
        theirs.close()
        is_told = False
        try:
            with connection, connection.makefile("rb") as stream:
                path = stream.readline()
                if path:
                    _print_path(path, is_known=is_known)
                    is_told = True
                    with contextlib.suppress(OSError):  # it has been killed
                        connection.send(b"\n")
                        return 0
        finally:
            if not is_told:  # it has failed, or it ends because the connection is closed, as after Ctrl-C
                os.waitpid(child, 0)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
        sys.stderr.write(said or "mplog serve: the server was killed while it started\n")
        return 1


def report_ready(queue: str, starter: socket.socket) -> None:
    """Runs in the background: have ``serve start`` print the path of the queue; raises MplogError if it cannot."""
    with starter, contextlib.suppress(OSError):
        starter.sendall(os.fsencode(f"{queue}\n"))
        if starter.recv(1):
            return
    raise MplogError("serve start has ended before the server was ready")


def read_errors() -> str:
    """Runs in the background: return what was printed on standard error."""
    with contextlib.suppress(OSError):
        return os.pread(2, _KEPT_ERRORS, 0).decode(errors="replace")
    return ""


def trim_errors() -> None:
    """Empty the file of standard error if it has grown too long; do nothing in the foreground."""
    with contextlib.suppress(OSError):
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and not status.st_nlink and status.st_size > _KEPT_ERRORS:
            os.ftruncate(2, 0)


def _print_path(line: bytes, *, is_known: bool) -> None:
    try:
        os.write(sys.stdout.fileno(), line)
    except OSError as error:
        if not is_known:
            raise MplogError(
                f"the directory of the queue cannot be printed ({error.strerror}). No process would find the server, "
                "so it was stopped. Read what start prints, or give the server a name: --queue PATH"
            ) from None


def _detach(ready: int, errors: int) -> int:
    """Leave the session, and close every descriptor except the connection, which is returned, and standard error."""
    os.setsid()
    fcntl.fcntl(errors, fcntl.F_SETFL, fcntl.fcntl(errors, fcntl.F_GETFL) | os.O_APPEND)
    # First out of the way: if standard input was closed, one of them may have its number.
    null, errors, ready = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (os.open(os.devnull, os.O_RDWR), errors, ready))
    for fd, number in zip((null, null, errors, ready), range(4)):
        os.dup2(fd, number)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(3, False)
    return 3
