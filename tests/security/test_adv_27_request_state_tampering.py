"""Tampering with `requestState` (2026-07-28): it is sealed, bound to its call and owner, and expires.

The conformance scenario `input-required-result-tampered-state` makes one change; these tests change every position.
"""

import json
from typing import Any

import pytest

from bad_input.shop import make_shop
from cases import for_each
from four_workers import ON_FOUR
from millstream._http.message import HttpRequest, Response
from millstream._protocol.principal import Principal
from millstream._transports.streamable import StreamableEndpoint
from millstream._transports.streamable.post import Streamable
from stub_auth import protect
from wire import Reply, Wire, encode_headers, per_request, routing, run_wire

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
HEADERS = routing("tools/call", "ask")


def body(state: str = "", responses: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Return one round of the call."""
    params: dict[str, Any] = {"name": "ask", "arguments": arguments}
    if responses is not None:
        params |= {"requestState": state, "inputResponses": responses}
    return per_request("tools/call", params, 7, elicitation={})


async def first_round(wire: Wire, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """Return the state, and the answer to its question."""
    result = (await wire.post(body(**arguments), HEADERS)).message["result"]
    answer = {"action": "accept", "content": {"name": "Ada"}}
    return result["requestState"], dict.fromkeys(result["inputRequests"], answer)


def refused(reply: Reply) -> bool:
    """Check for the error that every invalid state gets."""
    return reply.error == (200, -32602, 7)


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
async def test_state_with_any_changed_bit_is_rejected(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        state, answers = await first_round(wire)
        for place, character in enumerate(state):
            value = ALPHABET.index(character)
            for bit in range(6):
                changed = state[:place] + ALPHABET[value ^ 1 << bit] + state[place + 1 :]
                assert refused(await wire.post(body(changed, answers), HEADERS)), (place, bit)
        assert (await wire.post(body(state, answers), HEADERS)).message["result"]["content"][0]["text"] == "It is Ada."


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
@for_each("junk", ["=", "==", "A", "\n", " ", "\x00", "é", "+", "/", "." * 100, "A" * 2_000_000])
async def test_state_with_inserted_characters_is_rejected(way: str, junk: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        state, answers = await first_round(wire)
        for changed in (state + junk, junk + state, state[:20] + junk + state[20:], junk):
            assert refused(await wire.post(body(changed, answers), HEADERS))


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
async def test_state_is_bound_to_arguments_and_tool(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        state, answers = await first_round(wire, topic="a")
        for arguments in ({"topic": "b"}, {}, {"topic": "a "}):
            assert refused(await wire.post(body(state, answers, **arguments), HEADERS))
        session_token = (await wire.initialize())["mcp-session-id"]
        assert refused(await wire.post(body(session_token, answers, topic="a"), HEADERS))
        text = json.dumps(body(state, answers, topic="a")).replace('"topic": "a"', '"topic":   "\\u0061"')
        assert (await wire.post(text.encode(), HEADERS)).message["result"]["content"][0]["text"] == "It is Ada."


async def test_state_expires() -> None:
    async with run_wire(make_shop(input_timeout=100), "asgi") as wire:
        services = wire.runtime.services
        now = 1_000_000.0
        services.clock = lambda: now
        state, answers = await first_round(wire)
        now += 99
        assert "result" in (await wire.post(body(state, answers), HEADERS)).message
        now += 2
        reply = await wire.post(body(state, answers), HEADERS)
        assert refused(reply)
        assert "again" in reply.message["error"]["message"]


async def test_state_is_bound_to_its_principal() -> None:
    async with run_wire(make_shop(), "asgi") as wire:

        async def authenticate(request: HttpRequest) -> Principal | None:
            user = request.headers.get(b"x-user")
            return None if user is None else Principal(user.decode())

        streamable = Streamable(StreamableEndpoint(wire.runtime.dispatcher, wire.runtime.streams, None))
        handler = protect(streamable.post, authenticate)

        async def post(user: str, message: dict[str, Any]) -> Any:
            fields = encode_headers({**HEADERS, "x-user": user} if user else HEADERS)
            given = json.dumps(message).encode()
            reply = await handler(HttpRequest("POST", "/mcp", fields, dict(fields), given))
            assert isinstance(reply, Response)
            return json.loads(reply.body)

        result = (await post("alice", body()))["result"]
        answers = {key: {"action": "accept", "content": {"name": "Ada"}} for key in result["inputRequests"]}
        second = body(result["requestState"], answers)
        for user in ("bob", "", "alice "):
            assert (await post(user, second))["error"]["code"] == -32602
        assert (await post("alice", second))["result"]["content"][0]["text"] == "It is Ada."
