"""Every fault, one after the other, while workers publish and follow: what was acknowledged is there, once, and all see
the same.
"""

import asyncio
import itertools
import random
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from millstream._stores.base import Entry, Gap, StoreFull, StoreUnavailable
from millstream._stores.follow import Tail
from millstream._stores.redis.store import RedisStore
from patience import WAIT
from redis_parts import RedisServer, opened, until
from redis_wire import Proxy
from store_parts import TTL, append, read_all

pytestmark = [pytest.mark.server, pytest.mark.impatient]
STREAM = "hub:journal"
REFUSALS = {
    "full": (("CONFIG", "SET", "maxmemory", "1"), b"errorstat_OOM", ("CONFIG", "SET", "maxmemory", "0")),
    "read only": (("REPLICAOF", "127.0.0.1", "1"), b"errorstat_READONLY", ("REPLICAOF", "NO", "ONE")),
}
"""How it begins, the error that somebody gets whose connection outlasts the beginning, how it ends."""
FAULTS = [
    "cut",
    "half close",
    "lost replies",
    "freeze",
    "restart",
    "save",
    "pause",
    "flap",
    "kicked",
    "full",
    "read only",
    "half a command",
    "half a reply",
]


class World:
    """A Redis, three workers, each behind a wire of its own, and what they did and saw."""

    def __init__(self, server: RedisServer, wires: list[Proxy], workers: list[RedisStore]) -> None:
        self.server = server
        self.wires = wires
        self.workers = workers
        self.acknowledged: list[Entry] = []
        self.taken: list[list[Entry]] = [[] for _ in workers]
        self.told: list[Gap] = []
        self.over = False
        self._numbers = itertools.count()

    async def publish(self, worker: RedisStore) -> None:
        while not self.over:
            data = b"%d" % next(self._numbers)
            try:
                at = await worker.log.append(STREAM, data, ttl=TTL, max_entries=10**6)
            except (StoreUnavailable, StoreFull):
                await asyncio.sleep(0)
                continue
            self.acknowledged.append(Entry(at, data))

    async def follow(self, number: int) -> None:
        def take(entries: Sequence[Entry]) -> None:
            self.taken[number].extend(entries)

        await Tail(self.workers[number].log, STREAM, None, take, self.told.append).run()

    async def suffer(self, fault: str, wire: Proxy) -> None:
        """One fault, in the middle of the work."""
        if fault == "cut":
            wire.cut()
        elif fault == "half close":
            wire.half_close()
        elif fault == "lost replies":
            wire.deaf = True
            await self.more(20)
            wire.deaf = False
            wire.cut()
        elif fault == "freeze":
            wire.freeze()
            await self.more(20)
            wire.thaw()
        elif fault == "half a command":
            wire.torn = 200
            await until(lambda: wire.torn is None)
        elif fault == "half a reply":
            wire.left = 300
            await self.more(20)
            wire.left = None
            wire.cut()
        elif fault == "flap":
            for each in self.wires:
                each.cut()
        else:
            await self._suffer_of_server(fault)

    async def _suffer_of_server(self, fault: str) -> None:
        process = self.server.process
        assert process is not None
        if fault == "save":
            self.server.ask("SAVE")
        elif fault == "restart":  # what wasn't saved is lost
            self.server.stop()
            self.server.start()
        elif fault == "pause":
            process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGCONT)
        elif fault == "kicked":
            for kind in ("normal", "pubsub"):
                self.server.ask("CLIENT", "KILL", "TYPE", kind)
        else:
            begin, error, end = REFUSALS[fault]
            self.server.ask(*begin)
            # Nobody gets it if the machine stands still now and all connect anew: a replica is refused before that.
            await until(lambda: error in self.server.ask("INFO", "errorstats") or not self.connected())
            self.server.ask(*end)

    def connected(self) -> bool:
        """Whether any worker has a connection for commands."""
        return any(worker._commands._links for worker in self.workers)

    async def more(self, count: int) -> None:
        """Return when so many more events are acknowledged."""
        goal = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= goal)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_breaks_acknowledged_events_are_there_once_and_all_see_one_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our promise: nothing acknowledged is lost while a worker that saw it lives, and nothing is there twice."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    monkeypatch.setattr(
        "millstream._stores.redis.commands.SILENCE", 1.0
    )  # one fault more where the machine stands still
    dice = random.Random(seed)
    faults = dice.sample(FAULTS * 2, len(FAULTS) * 2)
    async with AsyncExitStack() as stack:
        server = RedisServer()
        stack.callback(server.close)
        wires = [await stack.enter_async_context(Proxy(server.port)) for _ in range(3)]
        urls = [f"redis://127.0.0.1:{wire.port}" for wire in wires]
        # A lease that outlasts any fault: who lives and who doesn't isn't the subject.
        workers = [await stack.enter_async_context(opened(url, lease=WAIT, insists=True)) for url in urls]
        world = World(server, wires, workers)
        await append(workers[0], STREAM, b"first")
        server.ask("SAVE")
        epoch = workers[0].epoch
        tails = [asyncio.create_task(world.follow(number)) for number in range(3)]
        publishers = [asyncio.create_task(world.publish(worker)) for worker in workers for _ in range(4)]
        for fault in faults:
            await world.more(60)
            await world.suffer(fault, dice.choice(wires))
        await world.more(60)
        world.over = True
        await asyncio.gather(*publishers)
        monkeypatch.setattr("millstream._stores.redis.commands.PATIENCE", WAIT)  # only the machine may stand still now
        stream = await read_all(workers[0], STREAM)
        data = [entry.data for entry in stream]
        assert len(data) == len(set(data)), faults
        assert set(world.acknowledged) <= set(stream), faults
        assert {entry.position.epoch for entry in stream} == {epoch}
        await until(lambda: all(taken and taken[-1] == stream[-1] for taken in world.taken))
        assert world.taken == [stream] * 3
        for task in tails:
            task.cancel()
        await asyncio.gather(*tails, return_exceptions=True)
