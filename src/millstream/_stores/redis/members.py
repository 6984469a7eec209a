"""`Members` in hashes, one for each group. Beside them each worker has a set of those for whom it vouches, so what a
dead one leaves behind is found without looking at the rest.
"""

import asyncio
from typing import Final

from msgspec.structs import replace

from millstream._stores.base import Position, Told
from millstream._stores.redis.commands import Asked, Commands
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.log import milliseconds
from millstream._stores.redis.recent import Recent
from millstream._stores.redis.scripts import Script, script
from millstream._stores.redis.standing import Standing

KEPT_SECONDS: Final = 86400
"""How long a group outlives the last worker that said anything of it."""
_PAGE: Final = 500
_AT_ONCE: Final = 100


class RedisMembers:
    """The groups."""

    def __init__(self, commands: Commands, keys: Keys, standing: Standing, recent: Recent) -> None:
        # configuration
        self._commands = commands
        self._keys = keys
        self._standing = standing
        self._recent = recent
        # process
        self._mine: dict[tuple[str, str], tuple[bytes, Told]] = {}
        """For whom this worker vouches."""

    async def join(self, group: str, member: str, value: bytes, told: Told) -> tuple[bytes, Position | None]:
        self._mine[group, member] = (value, told)
        return await self._change(script("join"), group, member, value, told)

    async def leave(self, group: str, member: str, told: Told) -> Position | None:
        self._mine.pop((group, member), None)
        return (await self._change(script("part"), group, member, b"", told))[1]

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        keys = self._keys
        found = await self._commands.run(script("present"), ([keys.group(group), keys.leases], []))
        return [(member.decode(), value) for member, value in zip(found[::2], found[1::2], strict=True)]

    async def abandoned(self) -> list[tuple[str, str, bytes]]:
        keys = self._keys
        now = int(self._standing.time() * 1e6)
        dead = await self._commands.ask(keys.leases, "ZRANGEBYSCORE", keys.leases, "-inf", now)
        found: list[tuple[str, str, bytes]] = []
        for worker in (each.decode() for each in dead):
            names = [keys.leases, keys.vouched(worker)]
            more = 1
            while more:
                more, *items = await self._commands.run(
                    script("abandoned"), (names, [worker, keys.group(""), _PAGE]), again=False
                )
                triples = zip(items[::3], items[1::3], items[2::3], strict=True)
                found += [(group.decode(), member.decode(), value) for group, member, value in triples]
        return found

    async def vouch_again(self, *, quietly: bool = False) -> None:
        """Under a new name, or in a store that lost data, for all of them.

        Args:
            quietly: everybody knows that they are there.
        """
        mine = list(self._mine.items())
        for start in range(0, len(mine), _AT_ONCE):
            await asyncio.gather(
                *(
                    self._change(script("join"), group, member, value, replace(told, data=b"") if quietly else told)
                    for (group, member), (value, told) in mine[start : start + _AT_ONCE]
                )
            )

    async def keep(self) -> None:
        """The groups live on."""
        for group in {group for group, _ in self._mine}:
            name = self._keys.group(group)
            await self._commands.ask(name, "PEXPIRE", name, KEPT_SECONDS * 1000)

    def end_all(self) -> None:
        """This worker vouches for nobody any more."""
        self._mine.clear()

    async def _change(
        self, change: Script, group: str, member: str, value: bytes, told: Told
    ) -> tuple[bytes, Position | None]:
        keys, standing = self._keys, self._standing
        names = [
            keys.group(group), keys.vouched(standing.me), keys.places(standing.me), keys.generation, keys.leases,
            keys.stream(told.stream), keys.meta(told.stream),
        ]  # fmt: skip
        place, number = await standing.take()
        try:
            me = standing.me

            def asked() -> Asked:
                return names, [
                    place, number, standing.run, me, group, member, value, KEPT_SECONDS * 1000, told.data,
                    milliseconds(told.ttl), told.max_entries, standing.floor(told.stream),
                ]  # fmt: skip

            offset, epoch, *stands = await self._commands.run(change, asked)
        finally:
            standing.give(place)
        present = stands[0] if stands else b""
        if not offset:
            return present, None
        standing.seen(told.stream, int(offset))
        about = f"- - - {milliseconds(told.ttl)} {told.max_entries}"
        self._recent.add(told.stream, int(offset), about.encode(), told.data)
        return present, Position(epoch.decode(), int(offset))
