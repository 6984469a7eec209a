"""The dashboard of several workers: whoever is asked shows them all, and nothing travels while nobody watches."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet import Reading, Worker, real_fleet, settle, until
from millstream import Server
from millstream._app.fleet import HEARD, MAX_CHANNELS, SAY_EVERY, Fleet
from millstream._app.here_only import Bind
from millstream._server.observing.observer import Observer
from millstream._server.peer_messages import Measured
from millstream._server.peers import Peers
from observed import a_call
from patience import WAIT
from shared_store import SharedStore
from store_parts import BACKINGS, backings
from workers_world import Client, call, workers

HUB: dict[str, Any] = {"subscribers": 0, "channels": {}}


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class One:
    """One worker, without its clients."""

    def __init__(self, shared: SharedStore, clock: Clock) -> None:
        self.store: Any = shared.worker()
        self.peers = Peers(self.store, [b"secret"])
        self.observer = Observer({"add"}, clock=clock)
        self.hub = HUB
        self.fleet = Fleet(self.peers, self.store.workers, self.observer.figures, hub=lambda: self.hub, clock=clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["One"]:
        """It listens to the others, and sends nothing by itself."""
        await self.store.open()
        self.peers.open()
        try:
            yield self
        finally:
            await self.peers.close()
            await self.store.close()

    def add(self, times: int) -> None:
        """Calls of a tool."""
        for _ in range(times):
            self.observer(a_call(method="tools/call", name="add"), 0.001, b"")

    @property
    def sent(self) -> int:
        """How many messages it sent."""
        return int(self.store.operations["publish"] + self.store.operations["send"])


class World:
    """Workers that share a store, and their clock."""

    def __init__(self, ones: list[One], clock: Clock, shared: SharedStore) -> None:
        self.ones = ones
        self.clock = clock
        self.shared = shared

    async def second(self, *watched: One) -> None:
        """What happens in a second in which somebody watches these."""
        self.clock.now += 1
        for each in watched:
            each.fleet.watch()
        await settle()
        for each in self.ones:
            if not each.store.dead:
                await each.fleet.send()
        await settle()


@asynccontextmanager
async def world(count: int) -> AsyncIterator[World]:
    """Workers, for the length of the block."""
    shared, clock = SharedStore(), Clock()
    async with AsyncExitStack() as stack:
        ones = [await stack.enter_async_context(One(shared, clock).running()) for _ in range(count)]
        yield World(ones, clock, shared)


async def test_whoever_is_watched_shows_the_sums_and_a_row_for_each() -> None:
    """Our choice: the dashboard adds up over all workers that share a store."""
    async with world(3) as w:
        for number, each in enumerate(w.ones):
            each.add(number + 1)
        for watched in w.ones:
            await w.second(watched)
            page = watched.fleet.snapshot(store={"up": True})
            assert page["calls"] == 6
            assert {row["name"] for row in page["workers"]} == {each.store.me for each in w.ones}
            assert page["store"] == {"up": True}


async def test_nothing_is_sent_while_nobody_watches() -> None:
    """Our choice: no dashboard, no cost. And none goes on for long after the last one was closed."""
    async with world(2) as w:
        one, other = w.ones
        await w.second()
        assert (one.sent, other.sent) == (0, 0)
        await w.second(one)
        assert (one.sent, other.sent) == (1, 1)
        w.clock.now += HEARD + 1
        await w.second()
        await w.second()
        assert (one.sent, other.sent) == (1, 1)


async def test_a_watched_worker_says_so_every_two_seconds_and_gets_figures_every_second() -> None:
    """Our choice: figures go to whoever shows them, and to nobody else."""
    async with world(3) as w:
        one, other, third = w.ones
        for _ in range(8):
            await w.second(one)
        assert (one.sent, other.sent, third.sent) == (8 / SAY_EVERY, 8, 8)
        assert len(third.fleet.snapshot()["workers"]) == 1


async def test_a_worker_that_died_is_gone_at_once_and_one_that_is_silent_after_seconds() -> None:
    """Our choice: what it counted goes with it."""
    async with world(3) as w:
        one, dead, silent = w.ones
        for each in w.ones:
            each.add(1)
        await w.second(one)
        assert one.fleet.snapshot()["calls"] == 3
        dead.store.die()
        await settle()
        page = one.fleet.snapshot()
        assert (page["calls"], {row["name"] for row in page["workers"]}) == (2, {one.store.me, silent.store.me})
        silent.store.die(noticed=False)
        await settle()
        assert len(one.fleet.snapshot()["workers"]) == 2
        w.clock.now += HEARD + 1
        page = one.fleet.snapshot()
        assert (page["calls"], len(page["workers"])) == (1, 1)


async def test_a_dashboard_whose_worker_died_gets_nothing_more() -> None:
    """The bus says whose lease is over."""
    async with world(2) as w:
        one, other = w.ones
        await w.second(one)
        one.store.die()
        await w.second()
        sent = other.sent
        await w.second()
        assert other.sent == sent


async def test_a_store_that_does_not_answer_leaves_the_figures_of_this_worker() -> None:
    """Our choice: an outage ends nobody's dashboard."""
    async with world(2) as w:
        one, other = w.ones
        one.add(1)
        other.add(1)
        await w.second(one)
        one.store.down = other.store.down = True
        await w.second(one)
        w.clock.now += HEARD + 1
        await w.second(one)
        assert one.fleet.snapshot()["calls"] == 1
        one.store.down = other.store.down = False
        async with asyncio.timeout(WAIT):
            while one.fleet.snapshot()["calls"] != 2:
                await w.second(one)
                await asyncio.sleep(0.02)


async def test_figures_that_another_version_sent_are_left_out() -> None:
    """During a deploy both run."""
    async with world(2) as w:
        one, other = w.ones
        await other.peers.tell(Measured(msgspec.msgpack.encode(["?"])))
        await settle()
        assert len(one.fleet.snapshot()["workers"]) == 1


async def test_only_the_largest_channels_of_another_worker_are_told() -> None:
    """There may be a channel for each client; a message has a bounded size."""
    async with world(2) as w:
        one, other = w.ones
        other.hub = {"subscribers": 500, "channels": {f"c{number}": number for number in range(500)}}
        await w.second(one)
        channels = one.fleet.snapshot()["hub"]["channels"]
        assert (len(channels), channels["c499"]) == (MAX_CHANNELS, 499)


async def test_figures_of_one_moment_are_taken_once_for_all_who_show_them() -> None:
    """Rates and the share of CPU are those since the last look: two looks at once would make noise of them."""
    async with world(3) as w:
        one, other, _ = w.ones
        await w.second(one, other)
        w.ones[2].add(3)
        await w.second(one, other)
        for watched in (one, other):
            (add,) = watched.fleet.snapshot()["tools"]
            assert add["rate"] == 3.0


@pytest.mark.parametrize("kind", backings([name for name, backing in BACKINGS.items() if backing.shared]))  # type: ignore[attr-defined]
async def test_the_dashboard_of_any_runtime_counts_a_call_of_each_and_a_session_of_all_once(kind: str) -> None:
    """On every store that workers can share, and through the event stream of the page."""
    backing = BACKINGS[kind]()
    try:
        async with real_fleet(make_served, backing) as served:
            session = await served[0].initialize()
            for each in served:
                assert await each.call("add", session, a=1, b=1) == "2"
            for each in served[:2]:
                page = await shown_by(each, len(served))
                (add,) = page["tools"]
                assert add["calls"] == len(served)
                assert [row["count"] for row in page["sessions"]] == [1]
                assert {row["name"] for row in page["workers"]} == {one.store.workers.me for one in served}
    finally:
        await backing.close()


def make_served() -> Server:
    """A server with the pages."""
    server = Server("shop", serve="web")
    server.runtimes.bind = Bind(loopback=True)

    @server.tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    return server


async def shown_by(worker: Worker, count: int) -> dict[str, Any]:
    """The first snapshot with so many workers."""
    stream = Reading(await worker.http.fetch("GET", "/dashboard/events"))
    found: list[dict[str, Any]] = []

    def told() -> bool:
        pages = [json.loads(event.data) for event in stream.events if event.name == "snapshot"]
        found[:] = [page for page in pages if len(page["workers"]) == count]
        return bool(found)

    await until(told)
    stream.close()
    return found[0]


@pytest.mark.server
async def test_a_dashboard_of_two_processes_counts_the_calls_of_both(tmp_path: Path) -> None:
    """The whole way: two processes, the parent's store between them, and the event stream of one."""
    with workers(tmp_path, 2, "--serve", "all") as served:
        answered = set[int]()
        calls = 0
        while len(answered) < 2:
            client = Client(served.port)
            answered.add((await client.request(call("who"))).value)
            await client.close()
            calls += 1
        async with asyncio.timeout(WAIT):
            async for page in snapshots(served.port):
                if page["calls"] == calls and len(page["workers"]) == 2:
                    break
        assert {row["pid"] for row in page["workers"]} == answered
        assert sum(row["streams"] for row in page["workers"]) == 1


async def snapshots(port: int) -> AsyncIterator[dict[str, Any]]:
    """What a dashboard hears."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /dashboard/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        told = b""
        async for line in reader:
            if line.startswith(b"event: "):
                told = line
            elif line.startswith(b"data: ") and told == b"event: snapshot\n":
                yield json.loads(line[6:])
    finally:
        writer.close()
