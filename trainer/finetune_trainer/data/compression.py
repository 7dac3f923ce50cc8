"""Compressed files as streams of what they hold: known by their first bytes, never by their names."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from finetune_trainer.data.problems import BadExampleError

LOOK = 4096
BUFFER = 1 << 20


def _gzip(path: Path) -> Any:
    import gzip

    return gzip.open(path)


def _bz2(path: Path) -> Any:
    import bz2

    return bz2.open(path)


def _xz(path: Path) -> Any:
    import lzma

    return lzma.open(path)


def _zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_KNOWN: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _bz2),
    (b"\xfd7zXZ\0", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


def open_plain(path: Path) -> IO[bytes]:
    """Open a file for reading its content, decompressed where it is compressed. Reading may raise what DAMAGE names."""
    decompress = _decompressor(path)
    return io.BufferedReader(decompress(path), BUFFER) if decompress else path.open("rb", BUFFER)


def is_compressed(path: Path) -> bool:
    """Whether the file is compressed as a whole (Parquet compresses inside)."""
    return _decompressor(path) is not None


def start_of(path: Path) -> bytes:
    """Return the first bytes of the content. Raises BadExampleError if it is damaged."""
    try:
        with open_plain(path) as file:
            return file.read(LOOK)
    except Exception as error:
        if is_damage(error):
            raise damaged() from error
        raise


def is_damage(error: Exception) -> bool:
    """Whether this is how a decompressor refuses its input; errors of the disk have a number, and are not."""
    import lzma
    import zlib

    return isinstance(error, EOFError | zlib.error | lzma.LZMAError) or (
        isinstance(error, OSError) and error.errno is None
    )


def damaged() -> BadExampleError:
    """Return what to say of a damaged file."""
    return BadExampleError("is damaged or was cut off (it cannot be decompressed to its end): upload it again")


def _decompressor(path: Path) -> Callable[[Path], Any] | None:
    with path.open("rb") as file:
        start = file.read(8)
    return next((decompress for magic, decompress in _KNOWN if start.startswith(magic)), None)
