import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from bad_input.shop import make_shop
from fleet import EventStream, Worker, real_fleet, settle, until
from hub_parts import listen, receive
from millstream import Context, Server
from patience import WAIT
from store_parts import BACKINGS, Backing, backings
from streaming_shop import make_streaming_shop, start_talking
from wire import LATEST_HANDSHAKE, request

SHARED = [name for name, backing in BACKINGS.items() if backing.shared]  # type: ignore[attr-defined]
SIGN = {"uri": "shop://sign"}
PAUSE = 0.02
"""Seconds between two tries."""
OPENING = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


@pytest.fixture(params=backings(SHARED))
async def backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Each store that several workers can share."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()


async def status(worker: Worker, message: object, headers: dict[str, str]) -> int:
    """Of a POST."""
    reply = await worker.post(message, headers)
    await reply.body()
    return reply.status


async def until_status(worker: Worker, message: object, headers: dict[str, str], wanted: int) -> None:
    """Wait until a POST gets a status: what another worker did is on its way, or its lease ends soon."""
    async with asyncio.timeout(WAIT):
        while await status(worker, message, headers) != wanted:  # noqa: ASYNC110  only asking tells
            await asyncio.sleep(PAUSE)


async def test_concurrent_session_changes_are_kept(backing: Backing) -> None:
    async with real_fleet(make_streaming_shop, backing) as workers:
        headers = await workers[0].initialize()
        stream = await workers[2].get(headers)
        await asyncio.gather(
            *(
                workers[number % 4].ask("resources/subscribe", {"uri": f"shelf://{number}"}, headers, number)
                for number in range(9)
            )
        )
        for number in range(9):
            await workers[(number + 1) % 4].server.resource_updated(f"shelf://{number}")
        found = await stream.until(9)
        assert {each["params"]["uri"] for each in found} == {f"shelf://{number}" for number in range(9)}
        assert await workers[1].delete(headers) == 204
        await stream.end()
        for worker in workers:
            await until_status(worker, request("ping"), headers, 404)


def make_keeping() -> Server:
    """Tools that keep something for a session."""
    mcp = Server("keeping")

    @mcp.tool
    async def add(ctx: Context) -> int:
        """Counts."""
        return int(await ctx.session_state.update("count", lambda n: n + 1, 0))

    @mcp.tool
    async def count(ctx: Context) -> int:
        """What was counted."""
        return int(await ctx.session_state.get("count", 0))

    return mcp


async def test_session_state_is_visible_on_every_worker(backing: Backing) -> None:
    async with real_fleet(make_keeping, backing) as workers:
        headers = await workers[0].initialize()
        for number in range(8):
            assert await workers[number % 4].call("count", headers) == str(number)
            assert await workers[(number + 1) % 4].call("add", headers) == str(number + 1)
        add = {"name": "add", "arguments": {}}
        added = await asyncio.gather(
            *(workers[number % 4].ask("tools/call", add, headers, number) for number in range(12))
        )
        assert sorted(int(each["result"]["content"][0]["text"]) for each in added) == list(range(9, 21))


async def test_answers_reach_their_question(backing: Backing) -> None:
    async with real_fleet(make_shop, backing) as (first, second, *_):
        headers = await first.initialize({"elicitation": {}})
        asked = request("tools/call", {"name": "ask", "arguments": {}}, 7)
        stream = EventStream(await first.post(asked, headers))
        (question,) = await stream.until(1)
        accepted = {"action": "accept", "content": {"name": "Ada"}}
        assert await status(second, {"jsonrpc": "2.0", "id": question["id"], "result": accepted}, headers) == 202
        assert (await stream.end())[-1]["result"]["content"][0]["text"] == "It is Ada."


async def test_cancellations_reach_their_call(backing: Backing) -> None:
    async with real_fleet(make_streaming_shop, backing) as (first, second, *_):
        headers = await first.initialize()
        stream = await start_talking(first, headers)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
        assert await status(second, note, headers) == 202
        await first.server.ended.wait()  # type: ignore[attr-defined]
        await stream.end()


async def test_calls_on_dead_workers_end_with_an_error(backing: Backing) -> None:
    async with real_fleet(make_streaming_shop, backing) as (first, second, *_):
        headers = await second.initialize()
        line = await start_talking(first, headers)
        followed = await second.get(headers, line.last_id)
        await until(lambda: line.ended)
        await backing.kill(first.store.real)
        (error,) = await followed.end()
        assert error["id"] == 5
        assert "may have taken effect" in error["error"]["message"]


async def test_http_sse_messages_reach_their_stream(backing: Backing) -> None:
    async with real_fleet(make_shop, backing) as (first, second, third, _):
        stream = EventStream(await first.http.fetch("GET", "/sse", {"accept": "text/event-stream"}))
        await until(lambda: stream.events)
        path = stream.events.pop(0).data
        for number, (worker, message) in enumerate(
            [
                (second, request("initialize", OPENING, 0)),
                (third, request("ping", {}, 1)),
                (first, request("ping", {}, 2)),
            ]
        ):
            head = {"content-type": "application/json"}
            reply = await worker.http.fetch("POST", path, head, json.dumps(message).encode())
            assert reply.status == 202
            await stream.until(number + 1)
        assert [each["id"] for each in stream.messages] == [0, 1, 2]
        stream.close()


async def test_messages_for_dead_workers_are_rejected(backing: Backing) -> None:
    async with real_fleet(make_shop, backing) as (first, second, *_):
        headers = await second.initialize({"elicitation": {}})
        asking = EventStream(await first.post(request("tools/call", {"name": "ask", "arguments": {}}, 7), headers))
        (question,) = await asking.until(1)
        stream = EventStream(await first.http.fetch("GET", "/sse", {"accept": "text/event-stream"}))
        await until(lambda: stream.events)
        await backing.kill(first.store.real)
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "cancel"}}
        await until_status(second, answer, headers, 400)
        head, body = {"content-type": "application/json"}, json.dumps(request("ping")).encode()
        async with asyncio.timeout(WAIT):
            while (await second.http.fetch("POST", stream.events[0].data, head, body)).status != 404:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE)
        stream.close()
        asking.close()


async def test_removals_and_switches_apply_to_every_worker(backing: Backing) -> None:
    async with real_fleet(make_shop, backing) as workers:
        workers[1].server.remove_tool("add")
        workers[2].server.disable("tool", "ask")
        for worker in workers:
            await until(lambda worker=worker: "add" not in worker.server.registry.tools)
            await until_tools(worker, "ask", there=False)
        workers[3].server.enable("tool", "ask")
        for worker in workers:
            await until_tools(worker, "ask", there=True)


async def until_tools(worker: Worker, name: str, *, there: bool) -> None:
    """Wait until a worker offers a tool, or doesn't."""
    headers = await worker.initialize()
    async with asyncio.timeout(WAIT):
        while there != (
            name in {each["name"] for each in (await worker.ask("tools/list", {}, headers))["result"]["tools"]}
        ):
            await settle()


async def test_channels_presence_and_mailboxes_span_workers(backing: Backing) -> None:
    async with real_fleet(lambda: Server("hub", serve="hub"), backing) as workers:
        hubs = [worker.runtime.hub for worker in workers if worker.runtime.hub is not None]
        listeners = [await listen(hub, "news", client_id=f"client{number}") for number, hub in enumerate(hubs)]
        for number in range(12):
            await hubs[number % 4].publish("news", str(number))
        heard = [await each.until(12) for each in listeners]
        assert heard == [[str(number) for number in range(12)]] * 4
        ids = [[id for _, data, id in each.events() if data is not None] for each in listeners]
        assert ids == [ids[0]] * 4
        for hub in hubs:
            members = {member.client_id for member in await hub.presence("news")}
            assert members == {f"client{number}" for number in range(4)}
        again = await listen(hubs[3], "news", last_event_id=ids[0][5])
        assert again.data == [str(number) for number in range(6, 12)]
        await hubs[0].send("ada", "for ada")
        assert (await receive(hubs[2], "ada")).data == ["for ada"]


async def test_workers_share_a_generated_key(backing: Backing) -> None:
    async with real_fleet(lambda: make_shop(secret_key=""), backing) as workers:
        assert len({each.runtime.services.secrets.values for each in workers}) == 1
        headers = await workers[0].initialize()
        for worker in workers:
            assert await worker.call("add", headers, a=1, b=2) == "3"
