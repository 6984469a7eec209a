from typing import Any

from bad_input.shop import make_shop
from cases import for_each
from wire import POST, Wire, per_request, request, routing, run_wire

STREAM_ONLY = "text/event-stream"
ADD: dict[str, Any] = {"name": "add", "arguments": {"a": 1, "b": 2}}


@for_each("way", ["lane", "asgi"])
@for_each("method", ["tools/call", "tools/list"])
@for_each("era", ["per request", "handshake"])
async def test_stream_only_clients_get_406_without_streaming(way: str, method: str, era: str) -> None:
    """MCP 2026-07-28, basic/versioning."""
    async with run_wire(make_shop(json_only=True), way) as wire:
        params = ADD if method == "tools/call" else {}
        if era == "handshake":
            headers, message = await wire.initialize(), request(method, params, 7)
        else:
            name = "add" if method == "tools/call" else ""
            headers, message = routing(method, name), per_request(method, params, 7)
        assert (await wire.post(message, {**headers, "accept": STREAM_ONLY})).error == (406, -32600, 7)
        assert (await wire.post(message, headers)).status == 200


async def test_subscriptions_stream_without_streaming_replies() -> None:
    async with run_wire(make_shop(json_only=True), "asgi") as wire:
        headers = {**routing("subscriptions/listen"), "accept": STREAM_ONLY}
        reply = await wire.post(per_request("subscriptions/listen", {"notifications": {}}), headers)
        assert reply.status == 200
        assert reply.messages[0]["method"] == "notifications/subscriptions/acknowledged"


async def test_stream_only_clients_receive_a_batch_reply_as_an_event(wire: Wire) -> None:
    """MCP 2025-11-25, basic/transports."""
    headers = {**await wire.initialize("2025-03-26"), "accept": STREAM_ONLY}
    reply = await wire.post([request("ping", id="a"), request("tools/call", ADD, 2)], headers)
    assert (reply.status, reply.headers[b"content-type"]) == (200, b"text/event-stream")
    assert reply.body.startswith(b"data: [{") or b"\ndata: [{" in reply.body
    assert reply.body.count(b'"jsonrpc"') == 2


async def test_batches_from_stream_only_clients_get_406_without_streaming() -> None:
    async with run_wire(make_shop(json_only=True), "asgi") as wire:
        headers = {**await wire.initialize("2025-03-26"), "accept": STREAM_ONLY}
        assert (await wire.post([request("ping")], headers)).error == (406, -32600, "none")


@for_each("extra", [{"result": {}}, {"error": {"code": 1, "message": "m"}}])
async def test_messages_with_method_and_result_are_invalid(wire: Wire, extra: dict[str, Any]) -> None:
    """JSON-RPC 2.0 §4."""
    modern = await wire.post({**per_request("tools/call", ADD), **extra}, routing("tools/call", "add"))
    assert modern.error[:2] == (400, -32600)
    session = await wire.initialize()
    for headers in (POST, session):
        assert (await wire.post({**request("tools/call", ADD), **extra}, headers)).error[:2] == (400, -32600)
    note = {"jsonrpc": "2.0", "method": "notifications/initialized", **extra}
    assert (await wire.post(note, session)).error[:2] == (400, -32600)
