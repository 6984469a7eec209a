"""A `Map` in Redis strings."""

from collections.abc import Sequence
from typing import Any

from millstream._stores.base import StoreFull
from millstream._stores.rates import MARK_BYTES, PART, share_of
from millstream._stores.redis.client import RedisClient
from millstream._stores.redis.keys import HUB, RedisKeys, tag_of
from millstream._stores.redis.log import milliseconds
from millstream._stores.redis.scripts import script

MAX_VALUE = 32 * 1024 * 1024
_PAGE = 1000


class RedisMap:
    """The `Map` in Redis. Writes aren't retried after a broken connection: that could undo writes made since."""

    def __init__(self, client: RedisClient, keys: RedisKeys, room: int) -> None:
        self._client = client
        self._keys = keys
        self._room = room
        """Maximum bytes of the lossy values of one kind. A share may take a fraction of it."""

    async def get(self, key: str) -> bytes | None:
        name = self._keys.value(key)
        found: bytes | None = await self._client.ask(name, "GET", name)
        return found

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        names = [self._keys.value(key) for key in keys]
        return await self._client.get_many(names)

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        await self._set(key, ("any", b""), value, ttl, lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        compare = ("absent", b"") if expected is None else ("equal", expected)
        return await self._set(key, compare, value, ttl, lossy)

    async def delete(self, key: str) -> bool:
        return await self._set(key, ("any", b""), None, 1, False)

    async def keys(self, prefix: str) -> list[str]:
        found: set[str] = set()
        for key in await self._client.scan(self._keys.values_pattern(prefix), _PAGE):
            name = self._keys.name_of(key)
            if name is not None and name.startswith(prefix):
                found.add(name)
        return list(found)

    async def _set(self, key: str, compare: tuple[str, bytes], value: bytes | None, ttl: float, lossy: bool) -> bool:
        if value is not None and len(value) > MAX_VALUE:
            raise StoreFull(f"A value of {len(value)} bytes exceeds the maximum of {MAX_VALUE} for Redis.")
        share, kind = share_of(key), key.partition(":")[0]
        names = [self._keys.value(key), *(self._keys.share(key) if share else ())]
        if tag_of(key) == HUB:
            names += [self._keys.order(kind), self._keys.sizes(kind)]
        most = self._room // PART if share else self._room
        about = (milliseconds(ttl), int(lossy), most, MARK_BYTES if share else "", self._room)
        args: list[Any] = [*compare, int(value is not None), value or b"", *about]
        return bool(await self._client.run(script("set"), names, args, again=False))
