import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

from bad_input.shop import make_shop
from fleet import real_fleet, settle, until
from millstream import Server, Settings
from millstream._server.peers import Peers, StreamTakeover
from store_parts import (
    Backing,
    shared_backing,  # noqa: F401  the fixture `backing`
)
from streaming_shop import make_streaming_shop, start_talking


async def test_newest_stream_in_a_session_stays_open(backing: Backing) -> None:
    async with real_fleet(make_shop, backing) as workers:
        headers = await workers[0].initialize()
        streams = await asyncio.gather(*(each.get(headers) for each in workers))
        await until(lambda: [stream.ended for stream in streams].count(True) == 3)
        newest = await workers[1].get(headers)
        await until(lambda: all(stream.ended for stream in streams))
        assert not newest.ended
        newest.close()


def hold_back(kind: type, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Semaphore, asyncio.Event]:
    """Workers tell each other messages of a kind once the event is set; the semaphore counts those that wait."""
    waiting, go, tell = asyncio.Semaphore(0), asyncio.Event(), Peers.broadcast

    async def tell_late(self: Peers, message: object) -> bool:
        if isinstance(message, kind):
            waiting.release()
            await go.wait()
        return await tell(self, message)  # type: ignore[arg-type]

    monkeypatch.setattr(Peers, "broadcast", tell_late)
    return waiting, go


async def test_one_of_several_simultaneous_streams_stays_open(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    instant = time.time_ns() // 1000
    counts: defaultdict[Peers, Iterator[int]] = defaultdict(lambda: itertools.count(instant))
    monkeypatch.setattr(Peers, "stamp", lambda peers: next(counts[peers]))
    async with real_fleet(make_streaming_shop, backing) as workers:
        headers = await workers[0].initialize()
        line = await start_talking(workers[0], headers)
        for last_id in (None, line.last_id):
            streams = await asyncio.gather(*(each.get(headers, last_id) for each in workers))
            await until(lambda: [stream.ended for stream in streams].count(True) == 3)  # noqa: B023
            for stream in streams:
                stream.close()


async def test_replayed_store_messages_close_no_stream(backing: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[Peers, bytes]] = []
    receive = Peers._receive

    def keep(self: Peers, data: bytes) -> None:
        heard.append((self, data))
        receive(self, data)

    monkeypatch.setattr(Peers, "_receive", keep)
    async with real_fleet(make_shop, backing) as (first, second, *_):
        headers = await first.initialize()
        older = await first.get(headers)
        newer = await second.get(headers)
        await until(lambda: older.ended)
        for peers, data in tuple(heard):
            receive(peers, data)
        await settle()
        assert not newer.ended
        newer.close()


async def test_streams_start_after_other_workers_are_notified(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go = hold_back(StreamTakeover, monkeypatch)
    async with real_fleet(make_shop, backing) as (first, second, *_):
        headers = await second.initialize()
        opening = asyncio.create_task(first.get(headers))
        await waiting.acquire()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not opening.done()
        go.set()
        older = await opening
        newer = await second.get(headers)
        await until(lambda: older.ended)
        assert not newer.ended
        newer.close()


async def test_streams_waiting_for_other_workers_count_toward_the_cap(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go = hold_back(StreamTakeover, monkeypatch)
    async with real_fleet(lambda: Server("shop", settings=Settings(max_streams=1)), backing) as (first, *_):
        opening = [asyncio.create_task(first.get(await first.initialize())) for _ in range(3)]
        for _ in opening:
            await waiting.acquire()
        go.set()
        streams = await asyncio.gather(*opening)
        assert sorted(stream.status for stream in streams) == [200, 503, 503]
        for stream in streams:
            stream.close()


async def test_broken_streams_resume_on_another_worker(backing: Backing) -> None:
    async with real_fleet(make_streaming_shop, backing) as (first, second, third, _):
        headers = await first.initialize()
        line = await start_talking(first, headers)
        older = await second.get(headers, line.last_id)
        await until(lambda: line.ended)
        first.server.go.release()  # type: ignore[attr-defined]
        await older.until(1)
        newer = await third.get(headers, older.last_id)
        await until(lambda: older.ended)
        for _ in range(2):
            first.server.go.release()  # type: ignore[attr-defined]
        messages = line.messages + older.messages + await newer.end()
        assert [each["params"]["data"] for each in messages[:-1]] == ["word 0", "word 1", "word 2"]
        assert messages[-1]["result"]["content"][0]["text"] == "said"


async def test_resuming_streams_count_toward_the_cap(backing: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, go = hold_back(StreamTakeover, monkeypatch)
    async with real_fleet(lambda: make_streaming_shop(max_streams=1), backing) as (first, second, *_):
        sessions = [await first.initialize() for _ in range(3)]
        lines = [await start_talking(first, headers) for headers in sessions]
        opening = [
            asyncio.create_task(second.get(headers, line.last_id))
            for headers, line in zip(sessions, lines, strict=True)
        ]
        for _ in opening:
            await waiting.acquire()
        go.set()
        streams = await asyncio.gather(*opening)
        assert sorted(stream.status for stream in streams) == [200, 503, 503]
        for stream in (*lines, *streams):
            stream.close()
