import asyncio
import logging

import pytest

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.harness import Client, Json

PROGRESS = "notifications/progress"


async def journal_has(client: Client, key: str, text: str) -> None:
    """Wait until a function wrote something."""
    assert (await client.call("awaited", key=key, text=text)).text == text


async def start_waiting(client: Client, tool: str, key: str) -> int:
    """Start a tool that waits, and return once it runs."""
    sent: int = await client.start("tools/call", {"name": tool, "arguments": {"key": key}}, meta={"progressToken": 1})
    await journal_has(client, key, "begun")
    return sent


@in_combinations("explicit cancel")
async def test_canceled_calls_stop_without_a_response(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/utilities/cancellation."""
    client = await connect(combination)
    key = f"cancel {combination}"
    sent = await start_waiting(client, "waits", key)
    await client.notify("notifications/cancelled", {"requestId": "no such id"})
    await client.notify("notifications/cancelled", {"requestId": sent, "reason": "changed my mind"})
    await journal_has(client, key, "cancelled")
    assert (await client.call("text")).text == "plain"
    assert not client._waiting[sent][1].done()


@in_combinations("explicit cancel", over=("memory",))
async def test_reason_of_a_cancellation_is_logged(
    connect: Connect, combination: Combination, caplog: pytest.LogCaptureFixture
) -> None:
    """MCP 2025-11-25, basic/utilities/cancellation: "Both parties SHOULD log cancellation reasons for debugging"."""
    client = await connect(combination)
    key = f"reason {combination}"
    sent = await start_waiting(client, "waits", key)
    with caplog.at_level(logging.DEBUG, "millstream"):
        await client.notify("notifications/cancelled", {"requestId": sent, "reason": "Ada pressed Escape."})
        await journal_has(client, key, "cancelled")
    assert "The client canceled tools/call: Ada pressed Escape." in caplog.messages


@in_combinations("explicit cancel", over=("memory",))
async def test_cancellation_right_after_the_request_takes_effect(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/utilities/cancellation."""
    client = await connect(combination)
    key = f"right behind {combination}"
    await client.call("open_gate", key=key)
    sent = await client.start("tools/call", {"name": "waits", "arguments": {"key": key}})
    await client.notify("notifications/cancelled", {"requestId": sent})
    for _ in range(3):
        assert (await client.call("text")).text == "plain"
    assert "ended" not in (await client.call("journal", key=key)).text
    assert not client._waiting[sent][1].done()


@in_combinations("explicit cancel")
async def test_functions_in_threads_can_observe_the_cancellation(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    key = f"thread {combination}"
    sent = await start_waiting(client, "waits_in_thread", key)
    await client.notify("notifications/cancelled", {"requestId": sent})
    assert (await client.call("text")).text == "plain"
    await client.call("open_gate", key=key)
    await journal_has(client, key, "cancelled")


@in_combinations("handshake", "explicit cancel", "questions", "elicitation")
async def test_calls_waiting_for_an_answer_can_be_canceled(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/utilities/cancellation."""
    client = await connect(combination, answer=lambda method, params: None)
    sent = await client.start("tools/call", {"name": "insists", "arguments": {}})
    await client.until(lambda: client.questions)
    await client.notify("notifications/cancelled", {"requestId": sent})
    client.answer = lambda method, params: {"action": "accept", "content": {"x": 1}}
    assert (await client.call("insists")).text == "Point(x=1, y=0)"
    assert not client._waiting[sent][1].done()


@in_combinations("requests of its own", "streamable http")
async def test_disconnect_cancels_calls_in_the_newest_revision(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/cancellation."""
    client = await connect(combination)
    for meta in ({}, {"progressToken": 1}):
        key = f"gone {combination} {len(meta)}"
        params = client.params({"name": "waits", "arguments": {"key": key}}, meta)
        message: Json = {"jsonrpc": "2.0", "id": 700, "method": "tools/call", "params": params}
        posting = asyncio.get_running_loop().create_task(client.streamable.post(message))
        await journal_has(client, key, "begun")
        if meta and combination.transport != "json":
            (await posting).close()
        else:
            posting.cancel()
        await journal_has(client, key, "cancelled")


@in_combinations("handshake session", "streamable http", "resumption")
async def test_disconnect_does_not_cancel_session_calls(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/cancellation."""
    client = await connect(combination)
    key = f"stays {combination}"
    message: Json = {
        "jsonrpc": "2.0", "id": 700, "method": "tools/call",
        "params": client.params({"name": "waits", "arguments": {"key": key}}, {"progressToken": 1}),
    }  # fmt: skip
    exchange = await client.streamable.post(message)
    exchange.close()
    await journal_has(client, key, "begun")
    await client.call("open_gate", key=key)
    await journal_has(client, key, "ended")
    assert "cancelled" not in (await client.call("journal", key=key)).text


@in_combinations("requests of its own", "streamable http")
async def test_cancellation_does_not_affect_other_callers(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/versioning."""
    client = await connect(combination)
    key = f"touch {combination}"
    sent = await start_waiting(client, "waits", key)
    await client.notify("notifications/cancelled", {"requestId": sent})
    await client.call("open_gate", key=key)
    assert (await client.finish(sent)).text == "waited"


@in_combinations(over=("sse",), until="2025-11-25")
async def test_http_sse_sessions_end_with_their_stream(connect: Connect, combination: Combination) -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse: closing the connection ends the session and its calls."""
    client = await connect(combination)
    watcher = await connect(combination, server=client.server)
    key = f"sse {combination}"
    await start_waiting(client, "waits", key)
    client.link.stream.close()  # type: ignore[attr-defined]  # an SseLink
    await journal_has(watcher, key, "cancelled")
