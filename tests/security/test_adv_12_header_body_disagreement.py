"""Header and body disagree (2026-07-28): requests are processed by the body, after checking it against the headers.

A gateway may route, limit, or refuse requests by `Mcp-Method` and `Mcp-Name`. A body that disagrees is refused, and our
own gate uses only the body.
"""

import pytest

from bad_input.shop import make_shop
from cases import for_each
from four_workers import ON_FOUR
from millstream._protocol.admission import target_name
from millstream._protocol.errors import ProtocolError
from millstream._server.calls.call import Call
from wire import Wire, per_request, routing, run_wire

CHEAP, DEAR = "add", "refuses"
METHODS = {
    "tools/call": (CHEAP, {"name": CHEAP, "arguments": {"a": 1, "b": 2}}),
    "prompts/get": ("greet", {"name": "greet", "arguments": {"name": "Ada"}}),
    "resources/read": ("shop://sign", {"uri": "shop://sign"}),
    "tools/list": ("", {}),
    "server/discover": ("", {}),
}


def watch(wire: Wire) -> list[tuple[str, str]]:
    """Return the list of calls that the gate checks; it stays empty for workers in other processes."""
    asked: list[tuple[str, str]] = []
    if wire.runtime is None:  # pyright: ignore[reportUnnecessaryComparison]
        return asked

    def gate(call: Call) -> None:
        name = call.name or target_name(call.method, call.params)
        asked.append((call.method, name))
        if name == DEAR:
            raise ProtocolError(-32099, "Not for you.", status=403)

    wire.runtime.dispatcher.gate = gate
    return asked


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_header_mismatches_reach_neither_gate_nor_function(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        asked = watch(wire)
        for method, (_, params) in METHODS.items():
            for other, (name, _) in METHODS.items():
                if other != method:
                    reply = await wire.post(per_request(method, params, 7), routing(other, name))
                    assert reply.error == (400, -32020, 7), (method, other)
        for header, body in ((CHEAP, DEAR), (DEAR, CHEAP), (CHEAP.upper(), CHEAP), (f"{CHEAP},{DEAR}", CHEAP)):
            reply = await wire.post(per_request("tools/call", {"name": body}, 7), routing("tools/call", header))
            assert reply.error == (400, -32020, 7)
        assert asked == []


@for_each("way", ["lane", "asgi"])
async def test_gates_run_once_with_the_name_from_the_body(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        asked = watch(wire)
        for method, (name, params) in METHODS.items():
            reply = await wire.post(per_request(method, params), routing(method, name))
            assert reply.status == 200
            assert asked == [(method, name)]
            asked.clear()
        for name in (DEAR, "=?base64?cmVmdXNlcw==?="):
            reply = await wire.post(per_request("tools/call", {"name": DEAR}, 7), routing("tools/call", name))
            assert reply.error == (403, -32099, 7)
            assert asked == [("tools/call", DEAR)]
            asked.clear()


async def test_handshake_requests_are_gated_by_their_body() -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    async with run_wire(make_shop(), "asgi") as wire:
        asked = watch(wire)
        session = await wire.initialize()
        headers = {**session, "mcp-method": "tools/list", "mcp-name": CHEAP}
        body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": DEAR}}
        reply = await wire.post(body, headers)
        assert asked == [("tools/call", DEAR)]
        assert reply.message["error"]["code"] == -32099
