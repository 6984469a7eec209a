"""Batches: an array is answered by an array on 2025-03-26, and refused elsewhere."""

from typing import Any

from behaviour.combinations import Combination, every
from behaviour.conftest import Connect
from behaviour.harness import Client, Json


def call(request_id: Any, tool: str, **arguments: Any) -> Json:
    """One request of a batch."""
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


async def answered(client: Client, batch: list[Any]) -> Any:
    """What a batch is answered by."""
    count = len(client.stray)
    await client.link.send(batch)
    return (await client.until(lambda: client.stray[count:]))[0]


@every("batches")
async def test_requests_of_a_batch_are_answered_together(connect: Connect, combination: Combination) -> None:
    """Digest 16, row 10: an array with an answer for each request, none for notifications."""
    client = await connect(combination)
    note = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    answers = await answered(client, [call("a", "text"), note, call(90001, "add", a=1, b=2), call("c", "no such")])
    by_id = {answer["id"]: answer for answer in answers}
    assert list(by_id) == ["a", 90001, "c"]
    assert by_id["a"]["result"]["content"][0]["text"] == "plain"
    assert by_id[90001]["result"]["content"][0]["text"] == "3"
    assert by_id["c"]["error"]["code"] == -32602


@every("batches")
async def test_a_bad_item_is_answered_among_the_others(connect: Connect, combination: Combination) -> None:
    """JSON-RPC 2.0, section 6: each item stands for itself."""
    client = await connect(combination)
    answers = await answered(client, [1, call("b", "text"), {"jsonrpc": "1.0", "id": 3, "method": "ping"}])
    assert [answer.get("error", {}).get("code") for answer in answers] == [-32600, None, -32600]


@every("batches")
async def test_a_call_in_a_batch_may_report_and_ask_in_vain(connect: Connect, combination: Combination) -> None:
    """DESIGN 3: one reply for all carries no notifications; a question is refused in the result."""
    client = await connect(combination)
    talking = call("a", "steps")
    talking["params"]["_meta"] = {"progressToken": 1}
    answers = await answered(client, [talking, call("b", "logs")])
    assert [answer["result"]["content"][0]["text"] for answer in answers] == ["stepped", "logged"]


@every("batches")
async def test_notifications_alone_are_not_answered(connect: Connect, combination: Combination) -> None:
    """Digest 4.3: 202, without a body."""
    client = await connect(combination)
    await client.link.send([{"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}] * 2)
    assert (await client.call("text")).text == "plain"
    assert client.stray == []


@every("batches")
async def test_a_batch_that_is_none_is_refused_whole(connect: Connect, combination: Combination) -> None:
    """Digest 1 and 2.3, step 3: empty, with an initialize, with a message of the newest revision, or too long."""
    client = await connect(combination)
    newest: Json = call("n", "text")
    newest["params"]["_meta"] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    opening = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-03-26"}}
    for batch in ([], [call("a", "text"), opening], [newest], [call(n, "text") for n in range(60)]):
        if combination.http:
            reply = await client.streamable.post(batch)
            assert reply.status == 400
            assert b"-32600" in await reply.body()
        else:
            assert (await answered(client, batch))["error"]["code"] == -32600


@every()
async def test_other_revisions_refuse_arrays(connect: Connect, combination: Combination) -> None:
    """Digest 16, row 10: 400 -32600 over HTTP."""
    client = await connect(combination)
    if combination.revision == "2025-03-26":
        return
    batch = [call("a", "text")]
    if not combination.handshake:
        batch[0]["params"] = client.params(batch[0]["params"])
    if combination.http:
        reply = await client.streamable.post(batch)
        assert reply.status == 400
        assert b"-32600" in await reply.body()
    else:
        assert (await answered(client, batch))["error"]["code"] == -32600
