"""What happens when another server has taken over, or the same one began again from its files.

Replication lags and files are written late, so the new one may lack the newest entries, of which some were acknowledged
and delivered. Its scripts refuse the hub's streams until the workers have brought what they remember: each entry at the
offset that it had, and recognized where the new server has it. Where nobody had an entry, and where a worker that may
have had it doesn't come, the data get a new epoch, and every reader learns that it may have missed something.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Final

from millstream._stores.redis.commands import Asked, Commands
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.link import Argument
from millstream._stores.redis.recent import Recent
from millstream._stores.redis.scripts import script
from millstream._stores.redis.standing import Standing

PATIENCE: Final = 3.0
"""Seconds that all wait for one that doesn't come: less than a publisher waits."""
_PAGE: Final = 200
_SHORTEST: Final = 0.005
_PAUSE: Final = 0.05
"""Seconds between two questions whether the others have come; shorter while they're bringing something."""
_DONE: Final = "done"
_DIFFERS: Final = "differs"
_HOLE: Final = "hole "

_logger = logging.getLogger("millstream.stores")


class Repair:
    """This worker's part of it."""

    def __init__(self, commands: Commands, keys: Keys, standing: Standing, recent: Recent, lease: float) -> None:
        self._commands = commands
        self._keys = keys
        self._standing = standing
        self._recent = recent
        self._lease = lease

    async def run(self) -> tuple[str, str]:
        """Bring what is remembered, and wait for the others.

        Returns:
            The run of the server that has the data now, and their epoch, or "" where the store lost everything.
        """
        _logger.warning("Another run of Redis has taken over: workers bring it what it may lack.")
        keys, standing = self._keys, self._standing
        names = [keys.generation, keys.leases, keys.repair]
        while True:
            await self._commands.link(keys.generation)
            run = standing.run
            pause = _SHORTEST
            says = turn = ""  # it only says that it's there, until it knows which turn it brings things to
            while standing.run == run:  # else it has ended, too, and the next one has nothing of what was brought

                def asked(run: str = run, says: str = says, turn: str = turn) -> Asked:
                    said = says if standing.run == run else ""
                    if said:
                        standing.promise(turn)
                    lease, patience = int(self._lease * 1e6), int(PATIENCE * 1e6)
                    return names, [
                        standing.run, standing.me, said, lease, patience, secrets.token_hex(2), standing.epoch, turn
                    ]  # fmt: skip

                verdict, epoch, settled = await self._commands.run(script("settle"), asked)
                if standing.run != run:
                    break
                if verdict == b"over":
                    data, found = str(settled, "ascii"), str(epoch, "ascii")
                    if not says and data != run and found == standing.epoch and await self._misses():
                        standing.refuse(data)
                        break
                    standing.turn(data)
                    return standing.run, found
                if verdict == b"again":
                    before, turn = turn, str(settled, "ascii")
                    says = await self._bring(says.removeprefix(_HOLE) if turn == before else "")
                    pause = _SHORTEST
                else:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _PAUSE)

    async def _misses(self) -> bool:
        """Whether the data lack what is remembered: those who settled them may never have heard of this worker."""
        for stream in self._recent.streams():
            for page in self._recent.pages(stream, 0, _PAGE):
                entries: list[Argument] = [part for offset, _, data in page for part in (offset, data)]
                if await self._commands.run(script("lacks"), ([self._keys.stream(stream)], entries)):
                    return True
        return False

    async def _bring(self, hole: str) -> str:
        """Bring everything, in order, and leave a hole in front of this offset only; gives what there is to say."""
        says = _DONE
        for stream in self._recent.streams():
            _, end = await self._refill(stream, hole, ())
            for page in self._recent.pages(stream, int(end or 0), _PAGE):
                told, where = await self._refill(stream, hole, [part for entry in page for part in entry])
                if told == b"over":
                    return _DONE
                if told == b"hole":
                    return _HOLE + str(where, "ascii")
                if told == b"differs":
                    says = _DIFFERS
        return says

    async def _refill(self, stream: str, hole: str, entries: Sequence[Argument]) -> tuple[bytes, bytes]:
        """Bring some entries; gives what comes of it, and where the stream ends or what is missing."""
        keys, standing = self._keys, self._standing
        names = [keys.generation, keys.stream(stream), keys.meta(stream)]

        def asked() -> Asked:
            return names, [standing.run, standing.epoch, hole, keys.hub, *entries]

        told, where = await self._commands.run(script("refill"), asked)
        return told, where
