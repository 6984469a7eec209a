"""What workers send to each other: each has an inbox, a stream that only it reads.

A message arrives, in the order of sending, as long as the lease of the one that it's for lasts. So what couldn't be
sent because a connection broke is sent when there's one again, and recognized if it had arrived.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.redis.commands import Commands
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.link import Argument
from millstream._stores.redis.scripts import script
from millstream._stores.redis.standing import Standing

LOST: Final = "\0"
"""The topic that tells a worker that something for it was given up."""
_MOST: Final = 10_000
_PAUSE: Final = 0.5


class Outbox:
    """Sends without letting the sender wait."""

    def __init__(self, commands: Commands, keys: Keys, standing: Standing) -> None:
        # configuration
        self._commands = commands
        self._keys = keys
        self._standing = standing
        # process
        self._waiting: dict[str, deque[tuple[str, bytes, str]]] = {}
        """By worker; in the order of sending."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._forgetting: set[asyncio.Task[None]] = set()

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        """Send, and wait until the message is in the inbox; False where the worker's lease is over.

        Raises:
            StoreUnavailable: the store didn't answer in time.
        """
        standing, keys = self._standing, self._keys
        place, number = await standing.take()
        try:
            places = keys.places(standing.me)

            def asked() -> tuple[list[str], list[Argument]]:
                run = standing.run
                names = [keys.leases, keys.inbox(worker, run), places, keys.generation]
                return names, [place, number, worker, topic, data, run]

            sent = await self._commands.run(script("send"), asked)
        finally:
            standing.give(place)
        return bool(sent == b"1")

    def post(self, worker: str, topic: str, data: bytes, followers: str) -> None:
        """Send soon. A worker whose lease is over is taken out of the set with the key `followers`."""
        waiting = self._waiting.setdefault(worker, deque())
        if len(waiting) >= _MOST:
            waiting.clear()
            waiting.append((LOST, b"", followers))
        else:
            waiting.append((topic, data, followers))
        if worker not in self._tasks:
            self._tasks[worker] = asyncio.create_task(self._deliver(worker, waiting))

    def forget(self, followers: str) -> None:
        """Take this worker out of a set of followers, soon."""
        task = asyncio.create_task(self._remove(followers, self._standing.me))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def close(self) -> None:
        """Whatever waits stays unsent."""
        tasks = [*self._tasks.values(), *self._forgetting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._waiting.clear()

    async def _deliver(self, worker: str, waiting: deque[tuple[str, bytes, str]]) -> None:
        while waiting:
            message = waiting[0]
            try:
                sent = await self.send(worker, message[0], message[1])
            except LocalError:
                await asyncio.sleep(_PAUSE)
                continue
            if not sent:
                for key in {each[2] for each in waiting}:
                    await self._remove(key, worker)
                waiting.clear()
                break
            if waiting[0] is message:
                waiting.popleft()
        del self._waiting[worker], self._tasks[worker]

    async def _remove(self, followers: str, worker: str) -> None:
        with suppress(LocalError):
            await self._commands.ask(followers, "SREM", followers, worker)
