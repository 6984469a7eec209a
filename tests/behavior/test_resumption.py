import asyncio
import json

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.exchanges import WAIT, Event, Exchange
from behavior.harness import Client, Json, new_order_uri


def request(tool: str, request_id: int = 800, **arguments: str) -> Json:
    """Return a call that reports progress."""
    params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": "t"}}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


async def some(exchange: Exchange, count: int = 1000) -> list[Event]:
    """Return the first events of a stream, or all if it ends earlier."""
    found: list[Event] = []
    if not count:
        return found
    async with asyncio.timeout(WAIT):
        async for event in exchange.events():
            found.append(event)
            if len(found) == count:
                break
    return found


async def resumed(client: Client, last: str | None, **headers: str) -> Exchange:
    """Resume a stream after an event."""
    given = {"accept": "text/event-stream", **client.streamable.headers(), **headers}
    if last is not None:
        given["last-event-id"] = last
    return await client.streamable.http.fetch("GET", "/mcp", given)


def messages_of(events: list[Event]) -> list[Json]:
    """Return the messages of a stream, without priming events."""
    return [json.loads(event.data) for event in events if event.data]


@in_combinations("resumption")
async def test_resume_continues_after_any_event(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    whole = await some(await client.streamable.post(request("steps")))
    assert [note.get("method", "result") for note in messages_of(whole)] == ["notifications/progress"] * 3 + ["result"]
    assert all(event.id for event in whole)
    assert len({event.id for event in whole}) == len(whole)
    for cut in range(1, len(whole)):
        exchange = await client.streamable.post(request("steps"))
        before = await some(exchange, cut)
        exchange.close()
        after = await some(await resumed(client, before[-1].id))
        assert messages_of(before + after) == messages_of(whole), cut
        again = await some(await resumed(client, before[-1].id))
        assert [(event.id, event.data) for event in again] == [(event.id, event.data) for event in after], cut


@in_combinations("resumption")
async def test_resumed_call_streams_receive_later_events(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    for late in (False, True):
        key = f"cut {combination} {late}"
        exchange = await client.streamable.post(request("waits", key=key))
        before = await some(exchange, 2 if combination.revision == "2025-11-25" else 1)
        exchange.close()
        if late:
            await client.call("open_gate", key=key)
            await client.call("awaited", key=key, text="ended")
            stream = await resumed(client, before[-1].id)
        else:
            stream = await resumed(client, before[-1].id)
            assert stream.status == 200
            await client.call("open_gate", key=key)
        (response,) = messages_of(await some(stream))
        assert response["result"]["content"][0]["text"] == "waited"


@in_combinations("resumption")
async def test_resuming_a_stream_ends_the_older_connection(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    key = f"taken up {combination}"
    older = await client.streamable.post(request("waits", key=key))
    before = await some(older, 2 if combination.revision == "2025-11-25" else 1)
    newer = await resumed(client, before[-1].id)
    assert newer.status == 200
    await client.call("open_gate", key=key)
    (response,) = messages_of(await some(newer))
    assert response["result"]["content"][0]["text"] == "waited"
    assert messages_of(await some(older)) == []


@in_combinations("resumption")
async def test_resume_after_the_last_event_is_empty(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    whole = await some(await client.streamable.post(request("steps")))
    stream = await resumed(client, whole[-1].id)
    assert stream.status == 200
    assert await some(stream) == []


@in_combinations("resumption")
async def test_unknown_and_foreign_event_ids_are_rejected(connect: Connect, combination: Combination) -> None:
    client, stranger = await connect(combination), await connect(combination)
    whole = await some(await client.streamable.post(request("steps")))
    foreign = whole[0].id
    assert foreign is not None
    epoch, stream, _ = foreign.split(".")
    for last in ("nonsense", f"{epoch}.{stream}.999", f"older.{stream}.1", f"{epoch}.{'0' * 32}.1", ".."):
        assert (await resumed(client, last)).status == 400, last
    assert (await resumed(stranger, foreign)).status == 400
    assert (await resumed(client, foreign)).status == 200
    assert (await client.request("ping")).result == {}


@in_combinations("resumption")
async def test_tools_can_close_their_stream_and_let_clients_reconnect(
    connect: Connect, combination: Combination
) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    key = f"polled {combination}"
    polling = combination.revision == "2025-11-25"
    exchange = await client.streamable.post(request("polled", key=key))
    if not polling:
        await client.call("open_gate", key=key)
    first = await some(exchange)
    await client.call("awaited", key=key, text=f"dropped {polling}")
    if polling:
        assert first[0].data == ""
        assert [note["params"]["progress"] for note in messages_of(first)] == [1]
        assert first[-1].retry == 10
        stream = await resumed(client, [event.id for event in first if event.id][-1])
        await client.call("open_gate", key=key)
        rest = await some(stream)
        assert messages_of(rest)[0]["params"]["progress"] == 2
        first = rest
    assert messages_of(first)[-1]["result"]["content"][0]["text"] == "polled"
    assert all(event.retry is None for event in first)


@in_combinations("requests of its own", "streamable http", "notifications")
async def test_streams_in_the_newest_revision_cannot_be_resumed(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    key = f"stays open {combination}"
    await client.call("open_gate", key=key)
    reply = await client.call("polled", {"progressToken": 1}, key=key)
    assert reply.text == "polled"
    assert "dropped False" in (await client.call("journal", key=key)).text


@in_combinations("resumption", since="2025-11-25")
async def test_lost_questions_are_sent_again_on_the_new_stream(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    exchange = await client.streamable.post(request("insists"))
    before = await some(exchange, 2)
    exchange.close()
    assert messages_of(before)[0]["method"] == "elicitation/create"
    stream = await resumed(client, before[0].id)
    (question,) = messages_of(await some(stream, 1))
    assert question == messages_of(before)[0]
    answer = {"action": "accept", "content": {"x": 1}}
    await client.link.send({"jsonrpc": "2.0", "id": question["id"], "result": answer})
    (response,) = messages_of(await some(stream))
    assert response["result"]["content"][0]["text"] == "Point(x=1, y=0)"


@in_combinations("resumption")
async def test_newest_stand_alone_stream_wins(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    watched = new_order_uri()
    await client.request("resources/subscribe", {"uri": watched})
    first = await client.streamable.resume()
    second = await client.streamable.resume()
    assert (first.exchange.status, second.exchange.status) == (200, 200)
    async with asyncio.timeout(WAIT):
        await first.over.wait()
    await client.call("touch", uri=watched)
    await client.wait_for_notification("notifications/resources/updated")
    assert len(client.notes) == 1
    assert not second.over.is_set()


@in_combinations("resumption")
async def test_resumed_stand_alone_stream_receives_missed_messages(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    await client.request("resources/subscribe", {"uri": "orders://3"})
    stream = await resumed(client, None)
    await client.call("grow", kind="tools")
    before = await some(stream, 2 if combination.revision == "2025-11-25" else 1)
    assert (before[0].data == "") == (combination.revision == "2025-11-25")
    stream.close()
    again = await resumed(client, before[-1].id)
    found = messages_of(await some(again, 4 + (combination.revision == "2025-11-25")))
    assert [note["method"].removeprefix("notifications/") for note in found] == [
        "tools/list_changed",
        "prompts/list_changed",
        "resources/list_changed",
        "resources/updated",
    ]
    assert found[-1]["params"] == {"uri": "orders://3"}
    again.close()
