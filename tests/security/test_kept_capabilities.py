import json
from typing import Any

from bad_input.shop import make_shop
from cases import for_each
from millstream._protocol.metadata import MAX_CAPABILITIES
from wire import MemoryPipe, per_request, request, run_wire

BULK = {f"{number:040}": {} for number in range(40_000)}  # within the limit on nested objects
WIDE = {**BULK, "roots": {"listChanged": True}, "elicitation": BULK, "sampling": {}}


async def opened(wire: Any, message: Any) -> tuple[MemoryPipe, Any]:
    pipe = MemoryPipe(wire.runtime.dispatcher)
    pipe.send(json.dumps(message).encode())
    return pipe, json.loads(await pipe.receive())


async def test_huge_capabilities_are_reduced() -> None:
    info = {"name": "n" * 1_000_000, "version": "v" * 1_000_000}
    params = {"protocolVersion": "2025-11-25", "capabilities": WIDE, "clientInfo": info}
    async with run_wire(make_shop(), "asgi") as wire:
        pipe, answer = await opened(wire, request("initialize", params))
        assert "result" in answer
        client = pipe._connection.session.client  # type: ignore[union-attr]
        assert client.capabilities == {"roots": {"listChanged": True}, "elicitation": {}, "sampling": {}}
        assert max(len(client.name), len(client.version)) <= 256
        await pipe.close()


async def test_subscriptions_do_not_keep_their_request() -> None:
    params = {"notifications": {"toolsListChanged": True}}
    async with run_wire(make_shop(), "asgi") as wire:
        pipe, answer = await opened(wire, per_request("subscriptions/listen", params, elicitation=BULK))
        assert answer["method"] == "notifications/subscriptions/acknowledged"
        (call,) = wire.runtime.dispatcher.calls
        assert (call.client.capabilities, call.params) == ({}, b"")
        await pipe.close()


async def test_subscription_uris_are_bounded_in_bytes() -> None:
    params = {"notifications": {"resourceSubscriptions": [f"x://{n}/{'u' * 4000}" for n in range(40)]}}
    async with run_wire(make_shop(), "asgi") as wire:
        pipe, answer = await opened(wire, per_request("subscriptions/listen", params))
        assert answer["error"]["code"] == -32600
        await pipe.close()


@for_each("size", [MAX_CAPABILITIES - 100, MAX_CAPABILITIES + 100])
async def test_small_capabilities_are_kept_unchanged(size: int) -> None:
    declared = {"experimental": {"x": "y" * size}}
    params = {"protocolVersion": "2025-11-25", "capabilities": declared}
    async with run_wire(make_shop(), "asgi") as wire:
        pipe, _ = await opened(wire, request("initialize", params))
        kept = pipe._connection.session.client.capabilities  # type: ignore[union-attr]
        assert kept == (declared if size < MAX_CAPABILITIES else {"experimental": {}})
        await pipe.close()
