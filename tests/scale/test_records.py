import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bad_input.shop import make_shop
from cases import for_each
from cpu import count_calls
from fleet import Worker, fleet, open_records_at, settle, until
from millstream import Context, Server
from millstream._protocol.handlers import NotificationFilters
from millstream._protocol.metadata import ClientInfo
from millstream._server.calls.services import ServerChange, encode_change
from millstream._server.calls.sessions import SessionRecord
from millstream._transports.streamable.get import _StandaloneStream
from patience import WAIT
from wire import LATEST_HANDSHAKE, POST, ask_asgi, encode_headers, request

SIGN = {"uri": "shop://sign"}
CLIENT = {"name": "t", "version": "1"}


def make_ten() -> Server:
    """A server with ten resources, and any number of notes."""
    mcp = make_shop()
    for number in range(10):
        mcp.resource(f"shelf://{number}", name=f"shelf{number}")(lambda: "full")

    @mcp.resource("note://{name}")
    def note(name: str) -> str:
        """A note."""
        return name

    return mcp


async def subscriptions(worker: Worker) -> set[str]:
    """What the only session has subscribed to, as the store has it."""
    keys = await worker.store.core.kv.keys("session:")
    raw = await worker.store.core.kv.get(keys[0])
    assert raw is not None
    return {part for part in raw.decode().split('"') if "://" in part}


@for_each("turns", [0, 1, 3])
async def test_concurrent_subscriptions_on_several_workers_are_kept(turns: int) -> None:
    async with fleet(make_ten, 4, turns=lambda: turns) as workers:
        headers = await workers[0].initialize()
        await asyncio.gather(
            *(
                workers[number % 4].ask("resources/subscribe", {"uri": f"shelf://{number}"}, headers, number)
                for number in range(10)
            )
        )
        assert await subscriptions(workers[0]) == {f"shelf://{number}" for number in range(10)}
        await asyncio.gather(
            *(
                workers[number % 4].ask("resources/unsubscribe", {"uri": f"shelf://{number}"}, headers, number)
                for number in range(0, 10, 2)
            )
        )
        assert await subscriptions(workers[0]) == {f"shelf://{number}" for number in range(1, 10, 2)}


async def test_record_share_per_address_spans_workers() -> None:
    async with fleet(make_ten, 3) as workers:
        workers[0].store.core.kv.max_bytes = 64_000
        served: list[bool] = []
        for number in range(60):
            headers = await workers[number % 3].initialize()
            params = {"uri": f"note://{'x' * 1_000}"}
            reply = await workers[(number + 1) % 3].ask("resources/subscribe", params, headers)
            served.append("result" in reply)
        taken = served.count(True)
        assert 10 < taken < 40
        assert served == [True] * taken + [False] * (60 - taken)
        opening = request("initialize", {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": CLIENT})
        for number, worker in enumerate(workers):
            peer = f"198.51.100.{number}"
            reply = await ask_asgi(
                worker.server, "POST", "/mcp", encode_headers(POST), json.dumps(opening).encode(), peer=peer
            )
            headers = {**POST, "mcp-session-id": reply.headers[b"mcp-session-id"].decode()}
            headers["mcp-protocol-version"] = LATEST_HANDSHAKE
            other = workers[(number + 1) % 3]
            assert "result" in await other.ask("resources/subscribe", SIGN, headers)


async def test_deleted_sessions_stay_deleted() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize()
        second.store.topics.clear()  # it does not hear that its call is canceled
        # It has read the record, and it is about to write.
        reached = asyncio.Event()
        go_on = asyncio.Event()
        kv = second.store.kv

        class Slow:
            def __getattr__(self, name: str) -> object:
                return getattr(kv, name)

            async def compare_and_set(self, *arguments: object, **named: object) -> bool:
                reached.set()
                await go_on.wait()
                return await kv.compare_and_set(*arguments, **named)  # type: ignore[no-any-return]

        second.store.kv = Slow()
        late = asyncio.create_task(second.ask("resources/subscribe", SIGN, headers))
        await reached.wait()
        assert await first.delete(headers) == 204
        go_on.set()
        await late
        await settle()
        for worker in (first, second):
            assert (await worker.post(request("ping"), headers)).status == 404


async def test_deleted_sessions_are_unknown_to_every_worker() -> None:
    async with fleet(make_shop, 3) as workers:
        headers = await workers[0].initialize()
        for worker in workers:
            assert (await worker.post(request("ping"), headers)).status == 200
        assert await workers[0].delete(headers) == 204
        await settle()
        for worker in workers:
            assert (await worker.post(request("ping"), headers)).status == 404
            assert (await worker.get(headers)).status == 404


async def test_stored_capabilities_are_known_to_every_worker() -> None:
    async with fleet(make_shop) as (first, second):
        second.store.topics.clear()  # it hears nothing: what counts is the id
        headers = await first.initialize({"experimental": {"x": {"y": 1}}, "elicitation": {}})
        reply = await second.post(
            request("tools/call", {"name": "ask", "arguments": {}, "_meta": {"progressToken": 1}}), headers
        )
        assert reply.streaming, "it asked, so it knows the capability"
        reply.close()


async def test_sessions_without_a_record_need_no_store_access() -> None:
    async with fleet(make_shop) as (first, second):
        for each in (first, second):
            open_records_at(each, 0)  # they run for a while
        sessions = [await first.initialize() for _ in range(20)]
        for worker in (first, second):
            worker.store.operations.clear()
            for headers in sessions:
                assert await worker.call("add", headers, a=1, b=2) == "3"
                assert (await worker.post(request("ping"), headers)).status == 200
            assert worker.store.operations == {}


async def test_sessions_older_than_the_worker_are_looked_up_once() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize()
        open_records_at(second, time.time() + 60)
        second.store.operations.clear()
        for _ in range(3):
            assert await second.call("add", headers, a=1, b=2) == "3"
        assert second.store.operations == {"get": 1}


def make_talking() -> Server:
    """A server with a tool that says three words."""
    mcp = make_shop()

    @mcp.tool
    async def talks(ctx: Context) -> str:
        """Says words."""
        for word in ("one", "two", "three"):
            await ctx.info(word)
        return "said"

    return mcp


async def words(worker: Worker, headers: dict[str, str]) -> int:
    """How many words a client gets."""
    reply = await worker.post(request("tools/call", {"name": "talks", "arguments": {}}), headers)
    return (await reply.body()).count(b"notifications/message")


async def test_records_are_cached_until_they_change() -> None:
    async with fleet(make_talking) as (first, second):
        headers = await first.initialize()
        await first.ask("logging/setLevel", {"level": "error"}, headers)
        await settle()
        second.store.operations.clear()
        for _ in range(3):
            assert await words(second, headers) == 0
        assert second.store.operations == {"get": 1}
        await first.ask("logging/setLevel", {"level": "info"}, headers)
        await settle()
        second.store.operations.clear()
        assert await words(second, headers) == 3
        # The stream begins, says three words and ends: a logged message costs an append.
        assert second.store.operations == {"get": 1, "append": 5}


async def test_records_are_read_again_after_missed_messages() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize()
        assert await second.call("add", headers, a=1, b=2) == "3"
        second.store.arrive = lambda deliver: None  # type: ignore[method-assign]
        assert await first.delete(headers) == 204
        await settle()
        del second.store.arrive  # type: ignore[method-assign]
        assert (await second.post(request("ping"), headers)).status == 200, "it cannot know"
        second.store.miss()
        assert (await second.post(request("ping"), headers)).status == 404


async def test_streams_receive_updates_subscribed_on_another_worker() -> None:
    async with fleet(make_shop, 3) as (first, second, third):
        headers = await first.initialize()
        stream = await second.get(headers)
        assert stream.status == 200
        await first.ask("resources/subscribe", SIGN, headers)
        await third.server.resource_updated("shop://sign")
        (message,) = await stream.until(1)
        assert message["params"] == SIGN
        await third.ask("resources/unsubscribe", SIGN, headers)
        await settle()
        await first.server.resource_updated("shop://sign")
        await settle()
        assert len(stream.messages) == 1
        assert await third.delete(headers) == 204
        await until(lambda: stream.ended)


async def test_updates_use_the_newest_record() -> None:
    changes = SimpleNamespace(source=SimpleNamespace(follow=lambda *_: None, entry_bytes=0))
    memory = SimpleNamespace(bytes=SimpleNamespace(take=lambda *_: True, leave=lambda *_: None))
    services = SimpleNamespace(changes=changes, notification_filters=NotificationFilters(print), client_memory=memory)
    request = SimpleNamespace(owner="ada", principal=None)
    shown = cast("Any", request), lambda uri: True
    stream = _StandaloneStream("main", ClientInfo(), cast("Any", services), *shown)
    sign = ServerChange("updated", "shop://sign")
    said: list[bytes] = []
    stream.open(cast("Any", SimpleNamespace(write=said.append)))
    stream.update_record(None)  # another worker has changed the record, which is read now
    stream.watcher(sign, encode_change(sign))
    stream.begin(SessionRecord(subscriptions={"shelf://1": ""}))  # what was read when the stream opened
    stream.update_record(SessionRecord(subscriptions={"shelf://1": "", "shop://sign": ""}))
    assert len(said) == 1
    assert b"shop://sign" in said[0]


async def test_later_subscriptions_cost_no_more_than_the_first() -> None:
    async with fleet(make_ten, 1) as (worker,):
        headers = await worker.initialize()
        stream = await worker.get(headers)

        async def work(first: int, method: str) -> int:
            with count_calls() as names:
                for number in range(first, first + 20):
                    reply = await worker.ask(f"resources/{method}", {"uri": f"note://{number}%2e"}, headers)
                    assert "result" in reply
                await settle()
            return len(names)

        first = await work(0, "subscribe")
        for number in range(20, 500):
            await worker.ask("resources/subscribe", {"uri": f"note://{number}%2e"}, headers)
        assert await work(500, "subscribe") < 1.2 * first
        assert await work(500, "unsubscribe") < 1.2 * first
        await worker.server.resource_updated("note://499.")
        (message,) = await stream.until(1)
        assert message["params"] == {"uri": "note://499%2e"}


async def test_changes_during_a_read_cause_another_read() -> None:
    async with fleet(make_ten) as (first, _):
        records = first.runtime.services.records
        told: list[bool] = []
        ended = asyncio.Event()

        def watcher(record: object) -> None:
            told.append(record is not None)
            if told == [False, True]:  # the read ends with this call: the next change comes in the same turn
                asyncio.get_running_loop().call_soon(records._on_activity, "session")
            elif told[-1]:
                ended.set()

        records.watch("session", watcher)
        records._on_activity("session")
        async with asyncio.timeout(WAIT):
            await ended.wait()
        assert told == [False, True, False, True]


async def test_session_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.calls.sessions._MAX_KNOWN", 3)
    async with fleet(make_shop) as (first, second):
        sessions = [await first.initialize() for _ in range(10)]
        for headers in sessions:
            assert await first.delete(headers) == 204
        await settle()
        for worker in (first, second):
            assert len(worker.runtime.services.records.known) <= 3
            for headers in sessions:
                assert (await worker.post(request("ping"), headers)).status == 404
