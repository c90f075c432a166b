"""A program: writers flood a FIFO, and the process that takes it into the buffers and a file is killed again and again.

It runs in an interpreter of its own, because it forks, and prints what became of the frames as JSON. The first argument
says, as JSON, how: ``directory``, ``writers``, ``seed``, ``replaces`` (whether frames are shortened in the intake
buffer), and ``kills``: by process, the point at which it is armed to kill itself, or null for a SIGKILL at a random
moment of its first 20 milliseconds.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import select
import signal
import struct
import sys
import threading
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

from readers import fork

from mplog.queue import buffer_memory, buffers, fifo
from mplog.queue import kill_points as faults
from mplog.record import frame

SIZE = 2 * buffer_memory.FIFO_SIZE

HEADER = struct.Struct(">6sH")  # of a frame: what it begins with, length of the payload
MESSAGE = struct.Struct("<III")  # writer, number, checksum of what follows
NOTE = struct.Struct("<QQ")  # committed length of the file, length that it will have after the next write
NOISE = random.Random(0).randbytes(frame.PAYLOAD_SIZE)

# Words of shared memory that the processes tell each other things in.
STOP, FOUND_MADE, FOUND_NOT_MADE, CUT, ACKNOWLEDGED = range(5)


def write(path: str, writer: int, shared: memoryview) -> None:
    """Runs in a writer: write numbered frames of many sizes, each acknowledged, until told to stop."""
    chance = random.Random(writer)
    fd = fifo.open_writer(path)
    for number in itertools.count(1):
        if shared[STOP]:
            return
        piece = NOISE[: chance.choice((0, 20, 100, 200, 300, 1000, frame.PAYLOAD_SIZE - MESSAGE.size))]
        message = frame.frame(frame.RECORD, MESSAGE.pack(writer, number, zlib.crc32(piece)) + piece)
        assert message is not None
        while True:
            try:
                os.write(fd, message)
                break
            except BlockingIOError:
                fifo.wait(fd, select.POLLOUT, None)
        shared[ACKNOWLEDGED + writer] = number


def log(fd: int, read_fd: int, path: str, shared: memoryview, replaces: bool, point: str) -> None:
    """Runs in the logging process: go on where the one before it was."""
    faults.arm(point)
    sys.setswitchinterval(0.0002)  # the two threads meet more often
    before = buffer_memory.read_state(fd)
    pair = buffers.BufferPair(fd)
    if before.announced:
        shared[FOUND_MADE if pair.state.fill > before.fill else FOUND_NOT_MADE] += 1
    Log(pair, read_fd, path, shared, replaces).run()


class Log:
    """The two threads of a logging process."""

    def __init__(self, pair: buffers.BufferPair, read_fd: int, path: str, shared: memoryview, replaces: bool) -> None:
        self.pair, self.read_fd, self.replaces = pair, read_fd, replaces
        self.arrived, self.swapped, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.committed, announced = NOTE.unpack(pair.note) if pair.note else (0, 0)
        length = os.fstat(self.file).st_size
        assert self.committed <= length <= max(announced, self.committed), (self.committed, length, announced)
        shared[CUT] += length > self.committed
        os.ftruncate(self.file, self.committed)
        os.lseek(self.file, 0, os.SEEK_END)

    def run(self) -> None:
        """Write until the FIFO has come to its end."""
        threading.Thread(target=self.take_in, daemon=True).start()
        while True:
            content = self.pair.unwritten()
            if len(content):
                self.write(content)
                continue
            ended = self.ended.is_set()
            if self.pair.swap():
                self.swapped.set()
            elif ended:
                return
            else:
                self.arrived.wait()
                self.arrived.clear()

    def take_in(self) -> None:
        """Runs in the intake thread."""
        try:
            while (count := self.pair.intake(self.read_fd)) != buffers.END:
                if count == buffers.NO_ROOM:
                    self.swapped.wait()
                    self.swapped.clear()
                elif count == buffers.NOTHING:
                    fifo.wait(self.read_fd, select.POLLIN, None)
                else:
                    if self.replaces:
                        self.pair.replace(shortened)
                    self.arrived.set()
                    time.sleep(0.0005)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
        self.ended.set()
        self.arrived.set()

    def write(self, content: memoryview) -> None:
        """Write a batch of whole frames: announce, write, commit."""
        size = 0
        for _ in range(200):
            size += HEADER.size + HEADER.unpack_from(content, size)[1]
            if size >= len(content):
                break
        assert size <= len(content), "a frame was cut"
        self.pair.commit(0, NOTE.pack(self.committed, self.committed + size))
        written = 0
        while written < size:
            written += os.write(self.file, content[written:size])
        self.committed += size
        self.pair.commit(size, NOTE.pack(self.committed, 0))


def shortened(content: memoryview) -> bytes:
    """Return what stays: of the first frames, those that carry something go without it."""
    data = bytes(content)
    kept, position = [], 0
    for found in itertools.islice(frame.walk(data), 50):
        assert found.kind == frame.RECORD, "a frame was cut"
        writer, number, _ = MESSAGE.unpack_from(data, found.payload.start)
        whole = frame.frame(frame.RECORD, MESSAGE.pack(writer, number, zlib.crc32(b"")))
        assert whole is not None
        kept.append(whole)
        position = found.end
    return b"".join((*kept, data[position:]))


def watch(fd: int, timeout: float) -> None:
    """Look at the state while it changes: it is always whole, and the counters never go back."""
    taken = committed = 0
    deadline = time.monotonic() + timeout
    while True:
        state = buffer_memory.read_state(fd)
        assert taken <= state.taken and committed <= state.committed <= state.taken, (taken, committed, state)
        taken, committed = state.taken, state.committed
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.0002))


def verdict(path: str, acknowledged: list[int]) -> dict[str, Any]:
    """Hold the file against what the writers wrote."""
    data = Path(path).read_bytes()
    result: dict[str, Any] = {"written": 0, "lost": 0, "doubled": 0, "disordered": 0, "torn": 0, "shortened": 0}
    last = [0] * len(acknowledged)
    seen: list[set[int]] = [set() for _ in acknowledged]
    position = 0
    while position < len(data):
        start, length = HEADER.unpack_from(data, position)
        end = position + HEADER.size + length
        if start != frame.header(frame.RECORD, 0)[:-2] or length > frame.PAYLOAD_SIZE or end > len(data):
            result["torn"] += 1
            break
        writer, number, checksum = MESSAGE.unpack_from(data, position + HEADER.size)
        result["torn"] += zlib.crc32(data[position + HEADER.size + MESSAGE.size : end]) != checksum
        result["doubled"] += number in seen[writer]
        result["disordered"] += number < last[writer]
        seen[writer].add(number)
        result["shortened"] += end == position + HEADER.size + MESSAGE.size
        last[writer] = number
        position = end
        result["written"] += 1
    result["lost"] = sum(len(set(range(1, count + 1)) - numbers) for count, numbers in zip(acknowledged, seen))
    result["acknowledged"] = sum(acknowledged)
    return result


def main() -> None:
    """Run the program."""
    order = json.loads(sys.argv[1])
    chance = random.Random(order["seed"])
    count = order["writers"]
    fifo_path, log_path = os.path.join(order["directory"], "fifo"), os.path.join(order["directory"], "log")
    fifo.create(fifo_path)
    read_fd = fifo.open_reader(fifo_path)
    fifo.set_size(read_fd, buffer_memory.FIFO_SIZE)
    fd = buffer_memory.create(SIZE)
    shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
    writers = [fork(write, fifo_path, writer, shared) for writer in range(count)]
    ends = []
    for point in order["kills"]:
        pid = fork(log, fd, read_fd, log_path, shared, order["replaces"], point or "")
        if point is None:
            watch(fd, chance.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    shared[STOP] = 1
    # Writers that wait for room get it from the last logging process.
    pid = fork(log, fd, read_fd, log_path, shared, order["replaces"], "")
    ends += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (*writers, pid)]
    result = verdict(log_path, list(shared[ACKNOWLEDGED : ACKNOWLEDGED + count]))
    names = {"found_made": FOUND_MADE, "found_not_made": FOUND_NOT_MADE, "cut": CUT}
    print(json.dumps({**result, **{name: shared[word] for name, word in names.items()}, "ends": ends}))


if __name__ == "__main__":
    main()
