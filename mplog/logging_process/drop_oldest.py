"""`drop_oldest`: the oldest records go out of the intake buffer, and a frame among the others says how many."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from mplog.queue.losses import Reason
from mplog.queue.overflow import KEPT_LEVEL
from mplog.queue.process_losses import ProcessLosses, decode_losses, encode_losses
from mplog.record import frame
from mplog.record.decoding import origin_of


def without_oldest(content: bytes | memoryview, wanted: int) -> tuple[bytes, int]:
    """Take the oldest records below ERROR out of what the intake buffer holds, until `wanted` bytes are free.

    Only whole records go: all parts of a long one, or none if a part is missing. A frame of kind `frame.LOSSES` takes
    the place of the first, and says what was dropped, including what an earlier such frame said. The frame appears in
    the same instant in which the records vanish, so it is lost or doubled no more than a record is.

    Return the frames that stay, and the number of records dropped: 0 if dropping would gain nothing.
    """
    data = bytes(content)
    dropped: Counter[tuple[int, str, int]] = Counter()
    told: list[ProcessLosses] = []
    gone: list[frame.Found] = []
    freed = 0
    for pieces, kind, payload in _messages(data):
        if freed >= wanted:
            break
        try:
            if kind == frame.LOSSES:
                told += decode_losses(payload)
                gone += pieces
                continue
            origin = origin_of(payload)
        except (ValueError, RecursionError):
            continue  # garbage, which is counted when the buffer is written
        if origin.levelno < KEPT_LEVEL:
            dropped[origin.process or 0, origin.processName or "", origin.levelno] += 1
            gone += pieces
            freed += _size(pieces)
    told += [ProcessLosses(pid, name, {(level, Reason.OLDEST): n}) for (pid, name, level), n in dropped.items()]
    notices = encode_losses(told)
    if not dropped or _size(gone) <= len(notices):
        return data, 0
    gone.sort()
    kept, position = [data[: gone[0].start], notices], gone[0].start
    for piece in gone:
        kept.append(data[position : piece.start])
        position = piece.end
    kept.append(data[position:])
    return b"".join(kept), dropped.total()


def _messages(data: bytes) -> Iterator[tuple[list[frame.Found], int, bytes]]:
    """Yield the frames, kind and payload of each record, and of each frame of kind `frame.LOSSES`."""
    parts: defaultdict[bytes, list[tuple[frame.Found, frame.Part]]] = defaultdict(list)
    for found in frame.walk(data):
        payload = data[found.payload]
        if found.kind in (frame.RECORD, frame.LOSSES):
            yield [found], found.kind, payload
        elif found.kind == frame.PART:
            try:
                part = frame.decode_part(payload)
            except ValueError:
                continue
            so_far = parts[part.message_id]
            so_far.append((found, part))
            if part.kind == frame.RECORD and [each.number for _, each in so_far] == list(range(part.total)):
                yield [each for each, _ in so_far], frame.RECORD, b"".join(each.piece for _, each in so_far)


def _size(pieces: Iterable[frame.Found]) -> int:
    return sum(piece.end - piece.start for piece in pieces)
