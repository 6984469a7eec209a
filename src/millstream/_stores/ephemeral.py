"""In-memory storage of ephemeral kinds (`base.EPHEMERAL`), for a store whose data outlive its workers."""

from collections.abc import Callable, Sequence

from millstream._stores.base import EPHEMERAL, PAGE_BYTES, Entry, Index, Log, Map, Position


class SplitMap:
    """A `Map` that keeps ephemeral kinds in `memory` and all others in `durable`."""

    def __init__(self, durable: Map, memory: Map) -> None:
        self._durable = durable
        self._memory = memory

    async def get(self, key: str) -> bytes | None:
        return await self._of(key).get(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if not any(_is_ephemeral(key) for key in keys):
            return await self._durable.get_many(keys)
        return [await self._of(key).get(key) for key in keys]

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        await self._of(key).put(key, value, ttl, lossy=lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        return await self._of(key).compare_and_set(key, expected, value, ttl, lossy=lossy)

    async def delete(self, key: str) -> bool:
        return await self._of(key).delete(key)

    async def keys(self, prefix: str) -> list[str]:
        if ":" in prefix:
            return await self._of(prefix).keys(prefix)
        return await self._durable.keys(prefix) + await self._memory.keys(prefix)

    def _of(self, key: str) -> Map:
        return self._memory if _is_ephemeral(key) else self._durable


class SplitLog:
    """A `Log` that keeps ephemeral kinds in `memory` and all others in `durable`."""

    def __init__(self, durable: Log, memory: Log) -> None:
        self._durable = durable
        self._memory = memory

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        return await self._of(stream).append(stream, data, ttl=ttl, max_entries=max_entries, index=index, seal=seal)

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        return await self._of(stream).read(stream, after, limit, max_bytes)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        return await self._of(stream).newest(stream, limit, max_bytes)

    async def touch(self, stream: str, ttl: float) -> bool:
        return await self._of(stream).touch(stream, ttl)

    async def trim(self, stream: str) -> None:
        await self._of(stream).trim(stream)

    def listen(
        self, stream: str, hear: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        return self._of(stream).listen(stream, hear, interrupted=interrupted)

    async def wait_until_listening(self, stream: str) -> None:
        await self._of(stream).wait_until_listening(stream)

    def _of(self, stream: str) -> Log:
        return self._memory if _is_ephemeral(stream) else self._durable


def _is_ephemeral(name: str) -> bool:
    return name.partition(":")[0] in EPHEMERAL
