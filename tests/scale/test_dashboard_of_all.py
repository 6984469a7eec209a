import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet import EventStream, Worker, real_fleet, settle, until
from millstream import Server
from millstream._app.definition import Bind
from millstream._app.parts.web import FRESH, DashboardQueries
from millstream._protocol.principal import Share
from millstream._server.observability.observer import Observer
from millstream._server.observability.recent_calls import RecentCalls
from millstream._server.peers import Peers
from millstream._server.worker_queries import WorkerQueries, WorkerQuestion, encode
from millstream._transports.open_streams import OpenStreams
from millstream.hub import Hub, HubLimits
from patience import WAIT
from shared_store import SharedStore
from store_parts import BACKINGS, backings
from telemetry_parts import make_call
from workers_world import Client, call, run_workers


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class One:
    """One worker, without its clients."""

    def __init__(self, shared: SharedStore, clock: Clock, known: set[str]) -> None:
        self.queries: DashboardQueries
        self.store: Any = shared.worker()
        self.peers = Peers(self.store, [b"secret"])
        self.observer = Observer({"add"}, clock=clock)
        self.hub = Hub(self.store, HubLimits())
        self.clock = clock
        self.known = known
        known.add(self.store.me)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["One"]:
        """It listens to the others, and sends nothing by itself."""
        await self.store.open()
        self.peers.open()
        self.queries = DashboardQueries(
            WorkerQueries(self.peers, lambda: self.known - {self.store.me}),
            self.observer,
            RecentCalls(),
            streams=OpenStreams(Share(1)),
            hub=self.hub,
            me=self.store.me,
            clock=self.clock,
        )
        try:
            yield self
        finally:
            await self.peers.close()
            await self.store.close()

    def add(self, times: int) -> None:
        """Calls of a tool."""
        for _ in range(times):
            self.observer(make_call(method="tools/call", name="add"), 0.001, b"")

    @property
    def sent(self) -> int:
        """How many messages it sent."""
        return int(self.store.operations["publish"] + self.store.operations["send"])

    async def page(self) -> dict[str, Any]:
        """What its dashboard shows a second after it asked."""
        await self.queries.measure()
        return self.queries.snapshot(store={"up": True})


@asynccontextmanager
async def world(count: int) -> AsyncIterator[tuple[list[One], Clock]]:
    """Workers that share a store, and their clock."""
    shared, clock, known = SharedStore(), Clock(), set[str]()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(One(shared, clock, known).running()) for _ in range(count)], clock


async def test_dashboard_shows_sums_and_a_row_per_worker() -> None:
    async with world(3) as (ones, clock):
        for number, each in enumerate(ones):
            each.add(number + 1)
        for each in ones:
            clock.now += 1
            page = await each.page()
            assert page["calls"] == 6
            assert {row["name"] for row in page["workers"]} == {one.store.me for one in ones}
            assert page["store"] == {"up": True}


async def test_no_metrics_are_sent_without_a_dashboard() -> None:
    async with world(3) as (ones, _):
        await settle()
        assert [each.sent for each in ones] == [0, 0, 0]
        await ones[0].page()
        assert [each.sent for each in ones] == [1, 1, 1]


async def test_dashboard_drops_unresponsive_workers() -> None:
    async with world(2) as (ones, clock):
        for each in ones:
            each.add(1)
        assert (await ones[0].page())["calls"] == 2
        ones[1].store.die(noticed=False)
        assert (await ones[0].page())["calls"] == 2, "it may be slow"
        clock.now += FRESH + 1
        page = await ones[0].page()
        assert (page["calls"], len(page["workers"])) == (1, 1)


async def test_dashboard_shows_local_metrics_during_a_store_outage() -> None:
    async with world(2) as (ones, clock):
        ones[0].add(1)
        ones[0].store.down = ones[1].store.down = True
        clock.now += 1
        assert (await ones[0].page())["calls"] == 1


async def test_metrics_from_other_versions_are_ignored() -> None:
    async with world(2) as (ones, _):

        async def answer(question: WorkerQuestion) -> bytes:
            return encode(["?"])

        ones[1].queries.workers.answer("figures", answer)
        assert len((await ones[0].page())["workers"]) == 1


@pytest.mark.parametrize("kind", backings([name for name, backing in BACKINGS.items() if backing.shared]))  # type: ignore[attr-defined]
async def test_dashboard_counts_calls_and_sessions_on_all_workers(kind: str) -> None:
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
                assert [row["count"] for row in page["sessions"]] == [len(served)]
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
    stream = EventStream(await worker.http.fetch("GET", "/dashboard/events"))
    found: list[dict[str, Any]] = []

    def told() -> bool:
        pages = [json.loads(event.data) for event in stream.events if event.name == "snapshot"]
        found[:] = [page for page in pages if len(page["workers"]) == count]
        return bool(found)

    await until(told)
    stream.close()
    return found[0]


@pytest.mark.server
async def test_dashboard_counts_calls_in_both_processes(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2, "--serve", "all") as served:
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
