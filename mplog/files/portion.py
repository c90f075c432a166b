"""The part of a batch that goes into one file: as many texts as it has room for, encoded."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec


class Position(NamedTuple):
    """How far a file is written. Its device and inode identify the file, whatever its path."""

    device: int
    inode: int
    length: int


class Portion(msgspec.Struct, frozen=True):
    """The first texts of a batch, encoded for one file from `start` on. `state`: the encoder's state before them."""

    texts: list[str]
    data: bytes
    start: Position
    state: Any

    @property
    def end(self) -> Position:
        return self.start._replace(length=self.start.length + len(self.data))


class Encoder:
    """Encodes texts for a file. A character that the encoding does not have is written as an escape."""

    def __init__(self, encoding: str) -> None:
        self._encoder = codecs.getincrementalencoder(encoding)("backslashreplace")

    def continue_at(self, length: int) -> None:
        """Go on in a file of this length: a byte order mark is written only at the beginning."""
        if length:
            self._encoder.setstate(0)
        else:
            self._encoder.reset()

    def encode(self, texts: list[str], start: Position) -> Portion:
        state = self._encoder.getstate()
        return Portion(texts, self._encoder.encode("".join(texts)), start, state)

    def fit(
        self, texts: list[str], start: Position, limit: int, fits: Callable[[int, str, int], bool], *, forced: int = 0
    ) -> Portion:
        """Return as many of the texts as fit into the file, but at least `forced`; with 0, it may be none.

        A text that ends within `limit` bytes of the file fits. Of any other, ``fits(length, text, size)`` decides, with
        the length of the file before the text and the size of the text, both in bytes.
        """
        state = self._encoder.getstate()
        # A text has at least as many bytes as characters, so too long ones need not be encoded to know.
        if start.length + sum(map(len, texts)) <= limit:
            portion = self.encode(texts, start)
            if start.length + len(portion.data) <= limit:
                return portion
            self._encoder.setstate(state)
        pieces: list[bytes] = []
        length = start.length
        for text in texts:
            before = self._encoder.getstate()
            piece = self._encoder.encode(text)
            if len(pieces) >= forced and not fits(length, text, len(piece)):
                self._encoder.setstate(before)
                break
            pieces.append(piece)
            length += len(piece)
        return Portion(texts[: len(pieces)], b"".join(pieces), start, state)

    def rewind(self, portion: Portion, done: int) -> tuple[int, int]:
        """Return to the state after the whole texts in the first `done` bytes; return their size and their number."""
        self._encoder.setstate(portion.state)
        whole = 0
        for count, text in enumerate(portion.texts):
            before = self._encoder.getstate()
            size = len(self._encoder.encode(text))
            if whole + size > done:
                self._encoder.setstate(before)
                return whole, count
            whole += size
        return whole, len(portion.texts)
