"""What happens when another server has taken over, or the same one began anew from its files.

Replication lags and files are written late, so the new one may lack the newest entries, of which some were acknowledged
and delivered. Its scripts refuse the hub's streams until the workers have brought what they remember: each entry at the
offset that it had, and recognized where the new server has it. Where nobody had an entry, and where a worker that may
have had it doesn't come, the data get a new epoch, and every reader learns that it may have missed something.
"""

import asyncio
import logging
import secrets
from typing import Any, Final

from millstream.stores.redis.commands import Commands
from millstream.stores.redis.keys import Keys
from millstream.stores.redis.link import Argument
from millstream.stores.redis.recent import Recent
from millstream.stores.redis.scripts import script
from millstream.stores.redis.standing import Standing

PATIENCE: Final = 3.0
"""Seconds that all wait for one that doesn't come: less than a publisher waits."""
_PAGE: Final = 200
_PAUSE: Final = 0.05
_DONE: Final = "done"
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

    async def run(self, run: str) -> str:
        """Bring what is remembered, and wait for the others; gives the epoch, or "" where the store lost everything."""
        _logger.warning("Another run of Redis has taken over: workers bring it what it may lack.")
        keys = self._keys
        says = await self._bring(run, "")
        while True:
            args: list[Argument] = [
                run,
                self._standing.me,
                says,
                int(self._lease * 1e6),
                int(PATIENCE * 1e6),
                secrets.token_hex(6),
            ]
            names = [keys.generation, keys.leases, keys.repair]
            verdict, epoch = await self._commands.run(script("settle"), (names, args))
            if verdict == b"over":
                return str(epoch, "ascii")
            if verdict == b"again":
                says = await self._bring(run, says.removeprefix(_HOLE))
            else:
                await asyncio.sleep(_PAUSE)

    async def _bring(self, run: str, hole: str) -> str:
        """Bring everything, in order, and leave a hole in front of this offset only; gives what there is to say."""
        for stream in self._recent.streams():
            for page in self._recent.pages(stream, _PAGE):
                entries: list[Any] = [run, hole, self._keys.hub]
                for entry in page:
                    entries += entry
                names = [self._keys.generation, self._keys.stream(stream), self._keys.meta(stream)]
                told = await self._commands.run(script("refill"), (names, entries))
                if told == b"over":
                    return _DONE
                if told != b"done":
                    return _HOLE + str(told, "ascii")
        return _DONE
