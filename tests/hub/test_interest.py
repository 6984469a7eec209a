"""Stores push to a worker only events on its subscribers' channels. Tested on every store that workers can share."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from auth_world import STREAM, GuardedServer
from fleet import real_fleet
from http_peer import serve
from hub_parts import Outlet, encode_line, listen, open_hub
from millstream import Server, Settings
from millstream.hub import Hub
from nats_parts import NatsBacking
from patience import WAIT
from redis_parts import RedisBacking, shared_servers, until
from store_parts import (
    BACKINGS,
    Backing,
    LocalBacking,
    shared_backing,  # noqa: F401  the fixture `backing`
)


def make_open_hub(store: str = "memory://", **settings: Any) -> Server:
    """Return a hub that anyone may use."""
    return Server("open", serve="hub", settings=Settings(store=store, **settings))


@asynccontextmanager
async def workers(backing: Backing, count: int) -> AsyncIterator[list[Hub]]:
    """The hubs of several workers."""
    async with AsyncExitStack() as stack:
        stores = [await backing.worker() for _ in range(count)]
        yield [await stack.enter_async_context(open_hub(store, clock=store.time)) for store in stores]


def numbers_of(outlet: Outlet) -> list[int]:
    """The numbers that an outlet has received."""
    return [int(data) for data in outlet.data]


async def test_streams_contain_every_event_published_after_their_response_head(backing: Backing) -> None:
    async with AsyncExitStack() as stack:
        one, two = await stack.enter_async_context(real_fleet(make_open_hub, backing, 2))
        world = GuardedServer(two.server, two.runtime, await stack.enter_async_context(serve(two.server)))
        for number in range(8):
            peer = await world.send(None, "GET", f"/events?channel=room.{number}", **STREAM)
            await peer.head()
            await one.server.hub.publish(f"room.{number}", "hello")
            text = await peer.chunk()  # whatever comes first, the stream is open then
            await one.server.hub.publish(f"room.{number}", "bye")
            async with asyncio.timeout(WAIT):
                while b"data: bye" not in text:
                    text += await peer.chunk()
            assert b"data: hello" in text
            peer.close()


async def test_reconnecting_subscribers_get_each_event_once(backing: Backing) -> None:
    dice = random.Random(0)
    patterns = [("orders.1",), ("orders.2", "news"), ("orders.*",), (">",), ("news", "orders.>")]
    async with workers(backing, 3) as hubs:
        published: list[tuple[str, int]] = []
        done = asyncio.Event()
        start = (await listen(hubs[0], ">")).last_id

        async def publish() -> None:
            for number in range(240):
                channel = dice.choice(["orders.1", "orders.2", "news", "other", "other.x"])
                published.append((channel, number))
                await dice.choice(hubs).publish(channel, str(number))
            done.set()

        async def follow(channels: tuple[str, ...]) -> list[int]:
            found: list[int] = []
            last, finished = start, False
            while not finished:
                finished = done.is_set()
                outlet = Outlet()
                await dice.choice(hubs).subscribe(channels, outlet, encode=encode_line, last_event_id=last)
                await asyncio.sleep(dice.random() / 50)
                outlet.close()
                assert outlet.gaps == []
                found += numbers_of(outlet)
                last = outlet.last_id
            return found

        _, *followed = await asyncio.gather(publish(), *map(follow, patterns))
        for channels, found in zip(patterns, followed, strict=True):
            wanted = [
                number
                for channel, number in published
                if channel in channels
                or ">" in channels
                or (channel.startswith("orders.") and {"orders.*", "orders.>"} & set(channels))
            ]
            assert found == wanted


async def test_wildcards_and_exact_names_together_receive_each_event_once(backing: Backing) -> None:
    async with workers(backing, 2) as (one, two):
        outlets = [await listen(one, *channels) for channels in (("a.b",), ("a.*",), (">",), ("a.b", "a.>"))]
        wanted = [str(number) for number in range(20)]
        for number in wanted:
            await (one if int(number) % 2 else two).publish("a.b", number)
        for outlet in outlets:
            assert await outlet.until(20) == wanted
        outlets[2].close()
        outlets[1].close()
        await one.refresh()
        await two.publish("a.c", "not for the first")
        await two.publish("a.b", "last")
        assert (await outlets[0].until(21))[20:] == ["last"]
        assert (await outlets[3].until(22))[20:] == ["not for the first", "last"]


async def test_positions_move_past_events_without_subscribers(backing: Backing) -> None:
    async with workers(backing, 2) as (one, two):
        outlet = await listen(one, "quiet")
        for number in range(5):
            await two.publish("busy", str(number))
        end = (await two.publish("busy", "end")).id
        await one.refresh()
        assert one.last_event_id() == outlet.last_id == end
        assert (await listen(two, "busy", last_event_id=end)).data == []
        assert (await listen(two, "quiet", "busy", last_event_id=end)).gaps == []


async def test_new_subscribers_receive_only_later_events(backing: Backing) -> None:
    async with workers(backing, 2) as (one, two):
        for hub in (one, two):
            await hub.publish("a", "before")
        for hub in (one, two):
            outlet = await listen(hub, "a")
            await one.publish("a", "1")
            await two.publish("a", "2")
            data = await outlet.until(2)
            # A worker that is sent everything (NATS) may not have read the event of the other one yet.
            assert [each for each in data if each != "before"] in (["1"], ["1", "2"])
            assert data.count("before") <= 1
            outlet.close()


async def test_history_contains_events_from_before_a_worker_subscribed(backing: Backing) -> None:
    async with workers(backing, 2) as (one, two):
        for number in range(4):
            await two.publish("news.a", str(number))
        for channel in ("news.a", "news.*", ">"):
            data = (await listen(one, channel, history=3)).data
            # A worker that is sent everything may still be at the third event. The fourth one then follows its history.
            assert data in (["1", "2", "3"], ["0", "1", "2", "3"])


async def test_publisher_ids_from_two_workers_without_subscribers_are_stored_once(backing: Backing) -> None:
    async with workers(backing, 3) as (one, two, three):
        start = (await listen(three, "a")).last_id
        for number in range(10):
            both = await asyncio.gather(*(hub.publish("a", str(number), id=f"id {number}") for hub in (one, two)))
            assert [each.id for each in both] == [f"id {number}"] * 2
        wanted = [str(number) for number in range(10)]
        assert (await listen(two, "a", last_event_id=start)).data == wanted
        for hub in (one, two, three):
            for channel in ("a", "*"):
                assert (await listen(hub, channel, last_event_id="id 4")).data == wanted[5:]


async def test_stalled_workers_read_messages_that_were_not_pushed() -> None:
    backing = LocalBacking()
    try:
        async with workers(backing, 2) as (slow, busy):
            outlet = await listen(slow, "a")
            transport = slow._store.backend._transport  # type: ignore[attr-defined]
            transport.pause_reading()
            for number in range(60):
                await busy.publish("a", f"{number} {'x' * 250_000}")
                await busy.publish("b", "not wanted")
            transport.resume_reading()
            await slow.refresh()
            assert [int(data.split()[0]) for data in await outlet.until(60)] == list(range(60))
            assert outlet.gaps == []
    finally:
        await backing.close()


@pytest.fixture
async def redis() -> AsyncIterator[RedisBacking]:
    """A Redis store."""
    backing = RedisBacking()
    yield backing
    await backing.close()


@pytest.fixture(params=["redis", "nats"])
async def filtering(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """A store that filters events on its server."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()


@pytest.fixture
async def nats() -> AsyncIterator[NatsBacking]:
    """A NATS store."""
    backing = NatsBacking()
    yield backing
    await backing.close()


@pytest.mark.server
async def test_concurrent_subscribers_share_store_requests(nats: NatsBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workers(nats, 2) as (one, two):
        last = (await listen(one, "lobby")).last_id
        for number in range(300):
            await two.publish(f"room.{number}", "missed")
        link = one._store.backend._link  # type: ignore[attr-defined]
        ask, marks, changes = link._ask, list[str](), list[str]()

        async def count(subject: str, *rest: object) -> object:
            if ".touch." in subject:
                marks.append(subject)
            elif "CONSUMER.CREATE" in subject:
                changes.append(subject)
            return await ask(subject, *rest)

        monkeypatch.setattr(link, "_ask", count)
        outlets = await asyncio.gather(*(listen(one, f"room.{number}", last_event_id=last) for number in range(300)))
        assert len(marks) <= 10
        assert len(changes) <= 3
        for number in range(300):
            await two.publish(f"room.{number}", "new")
        for outlet in outlets:
            assert await outlet.until(2) == ["missed", "new"]
            assert outlet.gaps == []


@pytest.mark.server
async def test_every_event_arrives_once_when_redis_connections_are_killed(redis: RedisBacking) -> None:
    server = shared_servers(redis.servers)
    async with workers(redis, 2) as (one, two):
        outlets = [await listen(one, channel) for channel in ("a", "a.*")]
        for number in range(200):
            await two.publish("a.x" if number % 2 else "a", str(number))
            if number % 20 == 10:
                server.ask("CLIENT", "KILL", "TYPE", "normal" if number % 40 == 10 else "pubsub", "SKIPME", "yes")
        assert await outlets[0].until(100) == [str(number) for number in range(0, 200, 2)]
        assert await outlets[1].until(100) == [str(number) for number in range(1, 200, 2)]
        assert [outlet.gaps for outlet in outlets] == [[], []]


@pytest.mark.server
async def test_workers_without_interested_subscribers_are_sent_nothing(filtering: Backing) -> None:
    async with workers(filtering, 2) as (one, two):
        await listen(one, "mine")
        tail = one._delivery.event_tail
        before = tail.position
        for number in range(50):
            await two.publish("other.x", str(number))
        assert tail.position == before
        await one.refresh()
        assert tail.position != before


@pytest.mark.server
async def test_channels_are_not_followed_for_a_client_that_has_already_left(filtering: Backing) -> None:
    async with workers(filtering, 2) as (one, two):
        left = Outlet()
        left.close()
        await listen(one, "mine")
        await one.subscribe(["other.x"], left, encode=encode_line)
        await one.refresh()
        tail = one._delivery.event_tail
        before = tail.position
        await two.publish("other.x", "1")
        assert tail.position == before


@pytest.mark.server
async def test_many_topics_are_followed_at_once(redis: RedisBacking) -> None:
    async with workers(redis, 2) as (one, two):
        outlets = [
            await listen(one, *(f"room.{number}" for number in range(at, at + 15))) for at in range(0, 9_000, 15)
        ]
        for number in range(0, 9_000, 900):
            await two.publish(f"room.{number}", str(number))
        await until(lambda: sum(len(outlet.data) for outlet in outlets) == 10)
        found = [outlet.data for outlet in outlets if outlet.data]
        assert found == [[str(number)] for number in range(0, 9_000, 900)]
