"""A sum for each row, because SQLite has none: a file in which the disk changed something is refused, and not read as
something else. They find accidents, not forgers.
"""

import sqlite3
from collections.abc import Callable
from zlib import crc32


def of_entry(stream: int, offset: int, data: bytes) -> int:
    """Of an entry of a stream."""
    return crc32(data, (stream * 31 + offset) & 0xFFFF_FFFF)


def of_stream(id: int, name: str, floor: int, sealed: int, until: float) -> int:
    """Of a stream without its entries."""
    return crc32(f"{id} {floor} {int(sealed)} {until!r} {name}".encode())


def of_key(name: str, value: bytes, until: float, place: int) -> int:
    """Of a value and its key."""
    return crc32(value, crc32(f"{place} {until!r} {name}".encode()))


def of_kind(name: str, highest: int) -> int:
    """Of the highest offset of a kind of streams."""
    return crc32(f"{highest} {name}".encode())


_FUNCTIONS: dict[str, tuple[int, Callable[..., int]]] = {
    "entry_sum": (3, of_entry), "stream_sum": (5, of_stream), "key_sum": (4, of_key), "kind_sum": (2, of_kind),
}  # fmt: skip


def provide(database: sqlite3.Connection) -> None:
    """Let statements use them: those that bring an older file to this version."""
    for name, (arguments, function) in _FUNCTIONS.items():
        database.create_function(name, arguments, function, deterministic=True)
