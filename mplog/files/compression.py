"""The formats of compressed logs: gzip, and Zstandard where this Python or a package brings it."""

from __future__ import annotations

import gzip
import sys
from typing import IO, Any, cast

#: What a compressed file's name ends in, by the word for its format.
SUFFIXES = {"gz": ".gz", "zst": ".zst"}


def find_zstd() -> Any:
    """Return the module for Zstandard: Python's own from 3.14, before the package backports.zstd; it may be missing."""
    try:
        if sys.version_info < (3, 14):
            from backports import zstd
        else:
            from compression import zstd
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Zstandard ('zst') needs the package backports.zstd, or a Python 3.14 that was built with "
            "compression.zstd: pip install 'mplog[zstd]'. gzip ('gz') needs nothing"
        ) from None
    return zstd


def compress_into(file: IO[bytes], how: str, written_at: float) -> Any:
    """Return a file that compresses into another one, which stays open after it."""
    if how == "gz":
        return gzip.GzipFile("", "wb", 6, file, mtime=int(written_at))
    zstd = find_zstd()
    return zstd.open(file, "wb", options={zstd.CompressionParameter.checksum_flag: 1})


def decompress(file: str | IO[bytes], how: str) -> IO[bytes]:
    """Open a compressed file, given by its path or as an open one, which stays open after it."""
    return cast(IO[bytes], gzip.open(file, "rb") if how == "gz" else find_zstd().open(file, "rb"))
