"""In 2025-03-26, a batch gets an array or a stream as its response. Other revisions reject it."""

import asyncio
import json
from typing import Any

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.harness import Client, Json
from behavior.test_resumption import messages_of, resumed, some
from patience import WAIT


def call(request_id: Any, tool: str, **arguments: Any) -> Json:
    """Return one request of a batch."""
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


async def send_batch(client: Client, batch: list[Any]) -> Any:
    """Send a batch and return its response."""
    count = len(client.stray)
    await client.link.send(batch)
    return (await client.until(lambda: client.stray[count:]))[0]


@in_combinations("batches")
async def test_batch_responses_are_sent_together(connect: Connect, combination: Combination) -> None:
    """MCP 2025-06-18, changelog."""
    client = await connect(combination)
    note = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    answers = await send_batch(client, [call("a", "text"), note, call(90001, "add", a=1, b=2), call("c", "no such")])
    by_id = {answer["id"]: answer for answer in answers}
    assert list(by_id) == ["a", 90001, "c"]
    assert by_id["a"]["result"]["content"][0]["text"] == "plain"
    assert by_id[90001]["result"]["content"][0]["text"] == "3"
    assert by_id["c"]["error"]["code"] == -32602


@in_combinations("batches")
async def test_invalid_batch_items_get_errors_beside_other_responses(
    connect: Connect, combination: Combination
) -> None:
    """JSON-RPC 2.0, section 6."""
    client = await connect(combination)
    answers = await send_batch(client, [1, call("b", "text"), {"jsonrpc": "1.0", "id": 3, "method": "ping"}])
    assert [answer.get("error", {}).get("code") for answer in answers] == [-32600, None, -32600]


async def responses_by_id(client: Client, batch: list[Json]) -> dict[Any, Json]:
    """Return the responses to a batch by id, in order of arrival, together or one by one."""
    count, wanted = len(client.stray), {each["id"] for each in batch if each["jsonrpc"] == "2.0"}
    found: dict[Any, Json] = {}

    def complete() -> bool:
        for each in client.stray[count:]:
            found.update({answer.get("id"): answer for answer in (each if isinstance(each, list) else [each])})
        return found.keys() >= wanted

    await client.link.send(batch)
    await client.until(complete)
    return found


@in_combinations("batches", "notifications")
async def test_calls_in_a_batch_report_progress(connect: Connect, combination: Combination) -> None:
    """Regression: notifications were dropped. MCP 2025-11-25, basic/transports: requests may be answered on a stream,
    batch or not.
    """
    client = await connect(combination)
    talking = call("a", "steps")
    talking["params"]["_meta"] = {"progressToken": 1}
    bad = {"jsonrpc": "1.0", "id": 3, "method": "ping"}
    answers = await responses_by_id(client, [talking, call("b", "logs"), call("c", "text"), bad])
    texts = {key: answers[key]["result"]["content"][0]["text"] for key in ("a", "b", "c")}
    assert texts == {"a": "stepped", "b": "logged", "c": "plain"}
    progress = [note["params"] for note in client.notes if note["method"] == "notifications/progress"]
    assert [(note["progressToken"], note["progress"]) for note in progress] == [(1, 1), (1, 2), (1, 3)]
    if combination.http:
        stream = client.streamable.streams["batch"]
        await asyncio.wait_for(stream.over.wait(), WAIT)
        assert all(isinstance(message, dict) for message in messages_of(stream.events))
        assert [each["error"]["code"] for each in messages_of(stream.events) if "error" in each] == [-32600]


@in_combinations("batches", "questions", "notifications")
async def test_calls_in_a_batch_can_ask_questions(connect: Connect, combination: Combination) -> None:

    def answer(method: str, params: Json) -> Json:
        assert method == "sampling/createMessage"
        return {"role": "assistant", "model": "toy", "content": {"type": "text", "text": "yes"}}

    client = await connect(combination, capabilities={"sampling": {}}, answer=answer)
    answers = await responses_by_id(client, [call("a", "samples"), call("b", "text"), call("c", "samples")])
    assert [answers[key]["result"]["content"][0]["text"] for key in ("a", "b", "c")] == [
        "toy: yes",
        "plain",
        "toy: yes",
    ]
    assert len(client.questions) == 2


@in_combinations("batches", "resumption")
async def test_batch_streams_can_be_resumed(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    talking = call("a", "steps")
    talking["params"]["_meta"] = {"progressToken": 1}
    batch = [call("b", "text"), talking]
    whole = await some(await client.streamable.post(batch))
    assert sorted(str(message.get("id")) for message in messages_of(whole)) == ["None"] * 3 + ["a", "b"]
    exchange = await client.streamable.post(batch)
    before = await some(exchange, 2)
    exchange.close()
    after = await some(await resumed(client, before[-1].id))
    assert sorted(map(str, messages_of(before + after))) == sorted(map(str, messages_of(whole)))


@in_combinations("batches")
async def test_batch_progress_is_dropped_without_a_stream(connect: Connect, combination: Combination) -> None:
    if not combination.http:
        return
    client = await connect(combination)
    talking = call("a", "steps")
    talking["params"]["_meta"] = {"progressToken": 1}
    reply = await client.streamable.post([talking, call("b", "samples")], {"accept": "application/json"})
    answers = json.loads(await reply.body())
    assert [answer["id"] for answer in answers] == ["a", "b"]
    assert answers[0]["result"]["content"][0]["text"] == "stepped"
    assert answers[1]["result"]["isError"]


@in_combinations("batches")
async def test_notification_batches_get_no_response(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    await client.link.send([{"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}] * 2)
    assert (await client.call("text")).text == "plain"
    assert client.stray == []


@in_combinations("batches")
async def test_invalid_batches_are_rejected_as_a_whole(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic and 2026-07-28, basic/versioning."""
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
            assert (await send_batch(client, batch))["error"]["code"] == -32600


@in_combinations()
async def test_other_revisions_reject_arrays(connect: Connect, combination: Combination) -> None:
    """MCP 2025-06-18, changelog: 400 -32600 over HTTP."""
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
        assert (await send_batch(client, batch))["error"]["code"] == -32600
