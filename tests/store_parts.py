"""What the tests of the contract of stores share: the stores, and how streams are written and read."""

from collections.abc import Callable
from typing import Any

from millstream.stores import open_store
from millstream.stores.base import PAGE_BYTES, Entry, Position, Store

TTL = 300.0
STORES: dict[str, Callable[[], Store]] = {"memory": lambda: open_store("memory://")}
"""One factory a store; each call makes an empty one. What is listed here is tested."""


async def append(store: Store, stream: str, *data: bytes, max_entries: int = 1000) -> list[Position]:
    return [await store.log.append(stream, item, ttl=TTL, max_entries=max_entries) for item in data]


async def read_all(store: Store, stream: str, max_bytes: int = PAGE_BYTES) -> list[Entry]:
    """A whole stream, page by page."""
    found: list[Entry] = []
    while page := await store.log.read(stream, found[-1].position if found else None, max_bytes=max_bytes):
        found += page
    return found


def data_of(entries: Any) -> list[bytes]:
    return [entry.data for entry in entries]
