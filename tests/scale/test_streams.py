import asyncio
import json
from typing import Any

from bad_input.shop import make_shop
from cases import for_each
from fleet import EventStream, Worker, fleet, one_worker, settle, until
from millstream import Context, Server
from millstream._server.calls import load_secrets
from millstream._stores.base import StoreFull
from shared_store import SharedStore
from wire import request


def make_talking() -> Server:
    """A server with a tool that says something whenever it may."""
    mcp = make_shop()
    mcp.go = asyncio.Semaphore(0)  # type: ignore[attr-defined]
    mcp.ended = []  # type: ignore[attr-defined]

    @mcp.tool
    async def talks(ctx: Context, words: int = 3) -> str:
        """Says words."""
        try:
            for number in range(words):
                await ctx.info(f"word {number}")
                await mcp.go.acquire()  # type: ignore[attr-defined]
        finally:
            mcp.ended.append(ctx.request_id)  # type: ignore[attr-defined]
        return "said"

    return mcp


def said(messages: list[object]) -> list[object]:
    """The words, and what else was said."""
    return [each["params"]["data"] if "params" in each else each for each in messages]  # type: ignore[operator,index]


async def talk(worker: Worker, headers: dict[str, str], words: int = 3, id: int | str = 5) -> EventStream:
    """A call whose first word has come."""
    params = {"name": "talks", "arguments": {"words": words}}
    stream = EventStream(await worker.post(request("tools/call", params, id), headers))
    await stream.until(1)
    return stream


def allow(worker: Worker, words: int) -> None:
    """Let the tool go on."""
    for _ in range(words):
        worker.server.go.release()  # type: ignore[attr-defined]


async def test_newest_stand_alone_stream_wins_on_any_worker() -> None:
    """MCP 2025-11-25, basic/transports."""
    async with fleet(make_shop, 3) as workers:
        headers = await workers[0].initialize()
        streams = []
        for each in (*workers, workers[0]):
            streams.append(await each.get(headers))
            await settle()
        assert [stream.ended for stream in streams] == [True, True, True, False]


@for_each("turns", [0, 1, 7])
async def test_only_one_of_several_concurrent_streams_stays_open(turns: int) -> None:
    async with fleet(make_shop, 4, turns=lambda: turns) as workers:
        for _ in range(5):
            headers = await workers[0].initialize()
            streams = await asyncio.gather(*(each.get(headers) for each in workers))
            await settle(1000)
            assert [stream.ended for stream in streams].count(False) == 1
            for stream in streams:
                stream.close()
            await until(lambda: not any(len(each.runtime.streams) for each in workers))


@for_each("turns", [0, 1, 7])
async def test_running_streams_resume_on_another_worker(turns: int) -> None:
    """MCP 2025-11-25, basic/transports."""
    async with fleet(make_talking, 3, turns=lambda: turns) as (first, second, third):
        headers = await first.initialize()
        broken = await talk(first, headers)
        last = broken.last_id
        broken.close()
        allow(first, 1)
        followed = await second.get(headers, last)
        assert followed.status == 200
        await followed.until(1)
        allow(first, 2)
        messages = await followed.end()
        assert said(messages)[:2] == ["word 1", "word 2"]
        assert messages[2]["result"]["content"][0]["text"] == "said"
        again = await third.get(headers, last)
        assert await again.end() == messages


async def test_resuming_elsewhere_ends_older_connections() -> None:
    """MCP 2025-11-25, basic/transports."""
    async with fleet(make_talking, 3) as (first, second, third):
        headers = await first.initialize()
        line = await talk(first, headers)
        older = await second.get(headers, line.last_id)
        await until(lambda: line.ended)
        newer = await third.get(headers, line.last_id)
        await until(lambda: older.ended)
        allow(first, 3)
        assert len(await newer.end()) == 3
        assert len(line.messages) == 1
        assert older.messages == []


async def test_streams_on_dead_workers_end_with_a_retry_error() -> None:
    async with fleet(make_talking, 3) as (first, second, third):
        headers = await first.initialize()
        broken = await talk(first, headers, id="the call")
        await first.die(noticed=False)
        followed = await second.get(headers, broken.last_id)
        assert followed.status == 200
        await settle()
        assert not followed.ended, "its lease is not over: it may live"
        first.store.end_lease()
        (message,) = await followed.end()
        assert message["id"] == "the call"
        assert "try again" in message["error"]["message"].lower()
        again = await third.get(headers, broken.last_id)
        assert await again.end() == [message]


async def test_streams_on_long_dead_workers_close_immediately() -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        broken = await talk(first, headers)
        await first.die()
        followed = await second.get(headers, broken.last_id)
        assert "try again" in (await followed.end())[0]["error"]["message"].lower()


async def test_worker_with_an_expired_lease_is_fenced() -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        line = await talk(first, headers)
        first.store.sleep()
        followed = await second.get(headers, line.last_id)
        (error,) = await followed.end()
        first.store.wake()
        allow(first, 1)
        await until(lambda: first.server.ended)  # type: ignore[attr-defined]
        await until(lambda: not first.runtime.dispatcher.calls)
        await until(lambda: line.ended)
        assert len(line.messages) == 1
        assert not first.runtime.streams.lines
        again = await second.get(headers, line.last_id)
        assert await again.end() == [error]


async def test_finished_calls_on_dead_workers_are_readable() -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        line = await talk(first, headers, words=1)
        last = line.last_id
        allow(first, 1)
        await line.end()
        await first.die()
        followed = await second.get(headers, last)
        (message,) = await followed.end()
        assert message["result"]["content"][0]["text"] == "said"


async def test_unstored_streams_reach_their_reader() -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        line = await talk(first, headers)
        first.store.down = True
        allow(first, 1)
        await line.until(2)
        assert line.events[-1].id is None, "nobody can come back to this one"
        first.store.down = False
        allow(first, 2)
        assert said(await line.end())[:3] == ["word 0", "word 1", "word 2"]
        assert "result" in line.messages[-1]
        followed = await second.get(headers, line.last_id)
        (message,) = await followed.end()
        assert "try again" in message["error"]["message"].lower()


@for_each("full", [True, False])
async def test_unstored_stream_ends_are_written_later(*, full: bool) -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        line = await talk(first, headers)
        append = first.store.log.append

        async def refuse(stream: str, *given: Any, **more: Any) -> None:
            if stream.startswith("call:"):
                raise StoreFull("It is full.")
            await append(stream, *given, **more)

        if full:
            first.store.log.append = refuse
        first.store.down = not full
        allow(first, 3)
        assert said(await line.end())[:3] == ["word 0", "word 1", "word 2"]
        assert "result" in line.messages[-1]
        first.store.log.append, first.store.down = append, False
        followed = await second.get(headers, line.last_id)
        await first.runtime.streams.touch(first.store.log, 300.0)
        (message,) = await followed.end()
        assert "try again" in message["error"]["message"].lower()
        assert not first.runtime.streams.unended


async def test_silent_call_logs_are_renewed_together() -> None:
    async with fleet(make_talking, 1, turns=lambda: 10) as (worker,):
        headers = await worker.initialize()
        lines = [await talk(worker, headers, id=number) for number in range(20)]
        names = list(worker.runtime.streams.lines)
        under_way = most = 0
        touch = worker.store.log.touch

        async def counted(name: str, ttl: float) -> bool:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await touch(name, ttl)  # type: ignore[no-any-return]
            finally:
                under_way -= 1

        worker.store.log.touch = counted
        await worker.runtime.streams.touch(worker.store.log, 300.0)
        assert most == len(names) == 20
        for line in lines:
            line.close()


LISTS = [
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
]


async def test_sessions_open_a_stream_and_subscribe_after_the_store_lost_them() -> None:
    shared = SharedStore()
    async with fleet(make_talking, 2, store=shared) as (first, second):
        headers, another = await first.initialize(), await first.initialize()
        watched = {"uri": "shop://sign"}
        await first.ask("resources/subscribe", watched, headers)
        stream = await second.get(headers)
        call = await talk(first, headers)
        shared.lose_everything()
        await stream.end()
        assert await second.call("add", headers, a=1, b=2) == "3", "calls go on"
        for last in (stream.events[0].id, None):
            stream = await second.get(headers, last)
            assert stream.status == 200
            await stream.until(len(LISTS))
            assert [each["method"] for each in stream.messages] == LISTS
        assert (await second.get(headers, call.events[-1].id)).status == 400, "its log is lost"
        await first.server.resource_updated("shop://sign")
        assert "result" in await first.ask("resources/subscribe", watched, headers)
        assert "result" in await first.ask("logging/setLevel", {"level": "debug"}, headers)
        await first.server.resource_updated("shop://sign")
        await stream.until(len(LISTS) + 1)
        assert stream.messages[-1]["params"] == watched, "only the second one"
        assert await first.delete(headers) == 204
        await stream.end()
        assert (await second.get(headers)).status == 404
        assert (await second.get({**headers, "mcp-session-id": "nonsense"})).status == 404
        assert (await first.get(another)).status == 200


async def test_workers_on_one_store_agree_on_a_key() -> None:
    def make_keyless() -> Server:
        return make_shop(secret_key="")

    shared = SharedStore(lambda: 2)
    async with fleet(make_keyless, 3, store=shared) as workers:
        assert {each.runtime.services.secrets.source for each in workers} == {"store"}
        headers = await workers[0].initialize()
        for each in workers:
            assert await each.call("add", headers, a=1, b=2) == "3"
        before = workers[0].runtime.services.secrets.values
        shared.lose_everything()
        await shared.core.kv.put("secret:seal", b"another worker was faster than these!", 1.0)
        await until(lambda: all(each.runtime.services.secrets.values != before for each in workers))
        for each in workers:
            assert each.runtime.services.secrets.values == (b"another worker was faster than these!", *before)
            assert await each.call("add", headers, a=1, b=2) == "3"
        async with one_worker(make_keyless, shared) as late:
            newer = await workers[1].initialize()
            assert await late.call("add", newer, a=1, b=2) == "3"
            stream = await late.get(newer)
            await workers[0].server.resource_updated("shop://sign")
            assert await workers[2].delete(newer) == 204
            await stream.end()


async def test_single_worker_calls_use_no_store() -> None:
    mcp = make_shop()
    async with mcp.running() as runtime:
        peers = runtime.services.peers
        assert not peers.shared
        assert not peers._keys
        assert not await peers.send("0" * 12, json)  # type: ignore[arg-type]


async def test_store_key_survives_a_full_restart() -> None:

    def make_keyless() -> Server:
        return make_shop(secret_key="")

    async with fleet(make_keyless, 2) as (worker, _):
        headers = await worker.initialize()
        kept = await worker.store.core.kv.get("secret:seal")
        assert kept is not None
        assert load_secrets("").values[0] not in kept
    async with fleet(make_keyless, 2) as (_, other):
        assert await other.call("add", headers, a=1, b=2) == "3"


async def test_long_streams_on_dead_workers_end_without_an_error() -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        line = await talk(first, headers, words=1_100)
        allow(first, 1_050)
        await line.until(1_051)
        await first.die()
        followed = await second.get(headers, line.last_id)
        assert await followed.end() == []
