"""How a result lies in a store: its tables, and a row of theirs as bytes and back."""

import struct
from hashlib import blake2b
from typing import Any

import numpy as np

from prunus.candidates.task import Result

TABLES = (
    "CREATE TABLE identity (position INTEGER PRIMARY KEY, name TEXT UNIQUE, value TEXT)",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT, digest BLOB)",
    # position: 1, 2, 3, ... Little-endian: kl, loss [images] float32, seconds float64 (a column of
    # numbers would lose NaN and -0.0); correct: one bit per image, the first in the lowest.
    """CREATE TABLE results (position INTEGER PRIMARY KEY, key TEXT, start INTEGER, stop INTEGER,
       kl BLOB, loss BLOB, correct BLOB, statistics BLOB, seconds BLOB, digest BLOB)""",
    "CREATE UNIQUE INDEX tasks ON results (key, start, stop)",
)
COLUMNS = "position, key, start, stop, kl, loss, correct, statistics, seconds, digest"


def encode(result: Result) -> tuple[Any, ...]:
    """The columns of a result, from ``key`` on."""
    start, stop = int(result.start), int(result.stop)
    for name, dtype in (("kl", np.float32), ("loss", np.float32), ("correct", np.bool_)):
        array = getattr(result, name)
        if array.dtype != dtype or array.shape != (stop - start,):
            raise ValueError(
                f"{name} is {array.dtype} {list(array.shape)}: images {start}-{stop} need "
                f"{np.dtype(dtype)} [{stop - start}]"
            )
    blobs = (
        result.kl.astype("<f4").tobytes(),
        result.loss.astype("<f4").tobytes(),
        np.packbits(result.correct, bitorder="little").tobytes(),
        bytes(result.statistics),
        struct.pack("<d", result.seconds),
    )
    return result.key, start, stop, *blobs, digest_of(result.key, start, stop, *blobs)


def decode(row: tuple[Any, ...]) -> Result:
    """A result from its columns, from ``key`` on.

    Raises:
        TypeError, ValueError: They are not as ``encode`` made them.
    """
    *content, digest = row
    if digest_of(*content) != digest:
        raise ValueError("its digest does not match")
    key, start, stop, kl, loss, correct, statistics, seconds = content
    images = stop - start
    if (len(kl), len(loss), len(correct)) != (4 * images, 4 * images, (images + 7) // 8):
        raise ValueError(f"its arrays are not of {images} images")
    bits = np.unpackbits(np.frombuffer(correct, np.uint8), count=images, bitorder="little")
    return Result(
        key=key,
        start=start,
        stop=stop,
        kl=np.frombuffer(kl, "<f4").astype(np.float32),
        loss=np.frombuffer(loss, "<f4").astype(np.float32),
        correct=bits.astype(np.bool_),
        statistics=statistics,
        seconds=struct.unpack("<d", seconds)[0],
    )


def digest_of(*parts: str | int | bytes) -> bytes:
    """16 bytes that change with any part, or with where one ends and the next begins."""
    found = blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.digest()
