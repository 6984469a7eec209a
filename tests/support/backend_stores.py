"""Stores with one backend each, for tests that access the backend."""

from typing import Any

from millstream._stores.local.store import LocalBackend
from millstream._stores.memory.log import MemoryLog
from millstream._stores.memory.store import MemoryBackend, MemoryMap
from millstream._stores.sqlite.file import Location
from millstream._stores.sqlite.store import SqliteBackend
from millstream._stores.store import Store


class MemoryStore(Store):
    """The store of one process."""

    backend: MemoryBackend
    kv: MemoryMap
    log: MemoryLog

    def __init__(self, **options: Any) -> None:
        """Take the arguments of `MemoryBackend`."""
        super().__init__(MemoryBackend(**options))


class SqliteStore(Store):
    """A store in a file."""

    backend: SqliteBackend

    def __init__(self, location: Location, **options: Any) -> None:
        """Take the arguments of `SqliteBackend`."""
        super().__init__(SqliteBackend(location, **options))


class LocalStore(Store):
    """A store in the parent process."""

    backend: LocalBackend

    def __init__(self, address: str, url: str) -> None:
        """Take the arguments of `LocalBackend`."""
        super().__init__(LocalBackend(address, url))


def stored_bytes(part: MemoryMap | MemoryLog) -> int:
    """Return the total of all kinds, as counted against their bounds."""
    return sum(kind.size for kind in part.kinds.values())
