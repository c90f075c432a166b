"""A parent whose children end as they are told, and which asks for their exit codes when it is told to.

Run as a script, it takes commands, a line each, and answers each with a line:

    fork <FIFO or -> <how>    start a child that has the FIFO open (or not), and will end that way -> its pid
    go <pid> ...              have the children end, and wait until they have -> "done"
    reap <pid> ...            ask for their exit codes -> "done"
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys


class Family:
    """A parent in a process of its own, and its children.

    Args:
        fifo: what the children have open.
    """

    def __init__(self, fifo: str) -> None:
        self._fifo = fifo
        self.parent = subprocess.Popen(
            [sys.executable, "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        self.parent.communicate(timeout=60)

    def _ask(self, *words: object) -> str:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        print(*words, file=self.parent.stdin, flush=True)
        return self.parent.stdout.readline().strip()

    def fork(self, how: str = "exit:0", *, with_fifo: bool = True) -> int:
        """Start a child that will end by "exit:<code>" or "signal:<number>", and return its pid."""
        return int(self._ask("fork", self._fifo if with_fifo else "-", how))

    def go(self, *pids: int, reap: bool = False) -> None:
        """Have children end, and wait until they have; then, if `reap`, have the parent ask for their exit codes."""
        assert self._ask("go", *pids) == "done"
        if reap:
            self.reap(*pids)

    def reap(self, *pids: int) -> None:
        """Have the parent ask for the exit codes of children that have ended."""
        assert self._ask("reap", *pids) == "done"


def end(how: str) -> None:
    """End this process in that way, whatever it does with a signal otherwise, and without a core file."""
    kind, number = how.split(":")
    if kind == "exit":
        os._exit(int(number))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if int(number) != signal.SIGKILL:
        signal.signal(int(number), signal.SIG_DFL)
    os.kill(os.getpid(), int(number))


def start_child(fifo: str, how: str) -> tuple[int, int]:
    """Fork a child; return its pid, and where to write a byte that makes it end."""
    reader, gate = os.pipe()
    ready, its_ready = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if fifo != "-":
                os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            os.write(its_ready, b".")
            os.read(reader, 1)
            end(how)
        finally:
            os._exit(99)
    os.close(reader)
    os.close(its_ready)
    assert os.read(ready, 1), "the child has not come to its gate"
    os.close(ready)
    return pid, gate


def main() -> None:
    """Do what stdin says until its end, and leave no child."""
    gates: dict[int, int] = {}
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "fork":
            pid, gate = start_child(*arguments)
            gates[pid] = gate
            print(pid, flush=True)
            continue
        for pid in map(int, arguments):
            if command == "go":
                os.write(gates[pid], b".")
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            else:
                os.waitpid(pid, 0)
                os.close(gates.pop(pid))
        print("done", flush=True)
    for pid in gates:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
