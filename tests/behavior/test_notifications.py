from typing import Any

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from cases import for_each

PROGRESS, LOG = "notifications/progress", "notifications/message"


@in_combinations("notifications")
@for_each("token", [0, "", 7, "a token"], ids=repr)
async def test_progress_carries_the_token_of_its_request_and_increases(
    connect: Connect, combination: Combination, token: Any
) -> None:
    """MCP 2025-11-25, basic/utilities/progress."""
    reply = await (await connect(combination)).call("steps", meta={"progressToken": token})
    assert reply.text == "stepped"
    notes = reply.of(PROGRESS)
    assert [note["progress"] for note in notes] == [1, 2, 3]
    assert [note["progressToken"] for note in notes] == [token] * 3
    assert type(notes[0]["progressToken"]) is type(token)
    assert {note["total"] for note in notes} == {3}
    assert ("message" in notes[0]) == (combination.revision >= "2025-03-26")


@in_combinations()
async def test_progress_is_sent_only_on_request(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/utilities/progress."""
    reply = await (await connect(combination)).call("steps")
    assert reply.text == "stepped"
    assert reply.notes == []


@in_combinations()
async def test_calls_without_a_stream_still_return_their_result(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    assert (await client.call("steps", meta={"progressToken": 1})).text == "stepped"
    assert (await client.call("logs")).text == "logged"


@in_combinations("notifications", "handshake session")
async def test_sessions_receive_logs_at_or_above_their_level(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, server/utilities/logging."""
    client = await connect(combination)
    assert (await client.request("logging/setLevel", {"level": "debug"})).result == {}
    reply = await client.call("logs")
    assert [note["level"] for note in reply.of(LOG)] == ["debug", "info", "error"]
    assert reply.of(LOG)[1]["data"] == {"n": 1}
    assert [note.get("logger") for note in reply.of(LOG)] == [None, None, "world"]
    await client.request("logging/setLevel", {"level": "error"})
    assert [note["level"] for note in (await client.call("logs")).of(LOG)] == ["error"]
    await client.request("logging/setLevel", {"level": "emergency"})
    assert (await client.call("logs")).of(LOG) == []
    await client.request("logging/setLevel", {"level": "info"})
    assert [note["level"] for note in (await client.call("logs")).of(LOG)] == ["info", "error"]
    assert (await client.request("logging/setLevel", {"level": "loud"})).error["code"] == -32602


@in_combinations("notifications", "requests of its own")
async def test_requests_receive_logs_at_or_above_their_level(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, server/utilities/logging."""
    client = await connect(combination)
    level = "io.modelcontextprotocol/logLevel"
    assert (await client.call("logs")).notes == []
    assert [note["level"] for note in (await client.call("logs", meta={level: "info"})).of(LOG)] == ["info", "error"]
    assert (await client.call("logs")).notes == []
    assert (await client.call("logs", meta={level: "loud"})).error["code"] == -32602


@in_combinations("notifications")
@for_each("tool", ["counts", "counts_in_thread"])
async def test_streaming_tools_send_each_value_and_return_the_last(
    connect: Connect, combination: Combination, tool: str
) -> None:
    reply = await (await connect(combination)).call(tool, meta={"progressToken": "t"}, upto=3)
    notes = reply.of(PROGRESS)
    assert [note["progress"] for note in notes] == [1, 2, 3]
    if combination.revision >= "2025-03-26":
        assert [note["message"] for note in notes] == ["at 1", "at 2", "at 3"]
    assert reply.text == "at 3"


@in_combinations()
@for_each("tool", ["counts", "counts_in_thread"])
async def test_streaming_tools_without_a_token_return_the_last_value(
    connect: Connect, combination: Combination, tool: str
) -> None:
    client = await connect(combination)
    reply = await client.call(tool, upto=2)
    assert (reply.text, reply.notes) == ("at 2", [])
    assert (await client.call(tool, upto=0)).result["content"] == []


@in_combinations("notifications")
async def test_concurrent_calls_receive_only_their_own_notifications(
    connect: Connect, combination: Combination
) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    key = f"apart {combination}"
    slow = await client.start(
        "tools/call", {"name": "waits", "arguments": {"key": key}}, meta={"progressToken": "slow"}
    )
    await client.wait_for_notification(PROGRESS)
    quick = await client.call("steps", meta={"progressToken": "quick"})
    assert {note["progressToken"] for note in quick.of(PROGRESS)} == {"quick"}
    await client.call("open_gate", key=key)
    assert (await client.finish(slow)).text == "waited"
    if combination.http:
        own = [event.data for event in client.streamable.streams[slow].events if event.data]
        assert len(own) == 2
        assert "quick" not in "".join(own)


@in_combinations("streamable http")
async def test_reply_is_json_unless_notifications_precede_it(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    plain = await client.streamable.post({"jsonrpc": "2.0", "id": 900, "method": "tools/call", "params": client.params(
        {"name": "text", "arguments": {}})})  # fmt: skip
    assert plain.headers["content-type"] == "application/json"
    await plain.body()
    params = client.params({"name": "steps", "arguments": {}}, {"progressToken": 1})
    talking = await client.streamable.post({"jsonrpc": "2.0", "id": 901, "method": "tools/call", "params": params})
    assert talking.streaming == (combination.transport != "json")
    if talking.streaming:
        assert talking.headers["cache-control"] == "no-cache, no-transform"
        assert talking.headers["x-accel-buffering"] == "no"
        events = [event async for event in talking.events()]
        assert [event.id is not None for event in events] == [combination.events] * len(events)
        assert (events[0].data == "") == (combination.events and combination.revision == "2025-11-25")
    else:
        await talking.body()


@in_combinations()
async def test_def_tools_run_in_a_thread(connect: Connect, combination: Combination) -> None:
    assert (await (await connect(combination)).call("thread_name")).text == "false"
