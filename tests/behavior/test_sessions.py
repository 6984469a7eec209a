import json
from typing import Any

import pytest

from behavior import world
from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.exchanges import Exchange, serve_http
from behavior.harness import Client, Json
from behavior.links import ACCEPT
from millstream import Server, Settings

JSON = {"content-type": "application/json", "accept": ACCEPT}
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
OPENING: Json = {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"},
}  # fmt: skip
STREAMS = ("lane", "asgi")


async def raw(client: Client, method: str, body: bytes = b"", **headers: str) -> Exchange:
    """Send a request with only the given headers."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.streamable.http.fetch(method, "/mcp", {**JSON, **given}, body)


async def code(reply: Exchange) -> tuple[int, int]:
    """Return the HTTP status and JSON-RPC code of an error."""
    return reply.status, json.loads(await reply.body())["error"]["code"]


@in_combinations("handshake session", over=(*STREAMS, "json"), since="2025-03-26")
async def test_session_ids_are_visible_ascii_and_unique(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25."""
    first, second = await connect(combination), await connect(combination)
    ids = {first.streamable.session, second.streamable.session}
    assert len(ids) == 2
    for each in ids:
        assert 32 <= len(each) <= 400
        assert all("!" <= character <= "~" for character in each)


@in_combinations("handshake session", over=STREAMS)
async def test_deleted_sessions_are_not_found(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client, other = await connect(combination), await connect(combination)
    await client.link.open_standalone_stream()
    session = client.streamable.session
    headers = client.streamable.headers()
    assert (await client.streamable.http.fetch("DELETE", "/mcp", headers)).status == 204
    await client.streamable.streams["GET"].over.wait()
    given = {**JSON, **headers}
    for method, body in (("POST", PING), ("GET", b""), ("DELETE", b"")):
        assert (await client.streamable.http.fetch(method, "/mcp", given, body)).status == 404
    assert (await other.request("ping")).result == {}
    client.streamable.session = ""
    await client.initialize()
    assert client.streamable.session not in ("", session)
    assert (await client.request("ping")).result == {}


@in_combinations("handshake session", over=STREAMS)
async def test_unknown_session_ids_are_not_found(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    good = client.streamable.session
    forged = good[:40] + ("A" if good[40] != "A" else "B") + good[41:]
    for session in ("nonsense", forged, good[:-1], good + "A", "x" * 2000):
        assert (await raw(client, "POST", PING, mcp_session_id=session)).status == 404
    assert (await raw(client, "POST", PING, mcp_session_id=good)).status == 200


@in_combinations("handshake session", over=STREAMS)
async def test_requests_without_a_session_id_are_rejected(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    reply = await raw(client, "POST", PING, mcp_protocol_version=combination.revision)
    assert await code(reply) == (400, -32600)
    assert (await raw(client, "POST", PING)).status == 200


@in_combinations("handshake session", over=STREAMS)
async def test_version_header_must_match_the_session(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports: an unsupported `MCP-Protocol-Version` is 400."""
    client = await connect(combination)
    session = client.streamable.session
    for version in ("1900-01-01", "nonsense"):
        reply = await raw(client, "POST", PING, mcp_session_id=session, mcp_protocol_version=version)
        assert reply.status == 400
    assert (await raw(client, "POST", PING, mcp_session_id=session)).status == 200


@in_combinations("handshake", "session")
async def test_second_initialize_is_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    error = (await client.request("initialize", OPENING)).error
    assert error["code"] == -32600
    assert (await client.request("ping")).result == {}


@in_combinations("handshake", "session")
async def test_ids_in_flight_cannot_be_reused(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic. Over HTTP, each request has its own reply, and some clients send the same id each time."""
    client = await connect(combination)
    key = f"reuse {combination}"
    sent = await client.start("tools/call", {"name": "waits", "arguments": {"key": key}})
    await client.call("awaited", key=key, text="begun")
    message = {"jsonrpc": "2.0", "id": sent, "method": "ping"}
    if combination.http:
        again = await (await client.streamable.post(message)).body()
        assert b'"result":{}' in again
        assert b"-32600" not in again
    else:
        first = client._waiting.pop(sent)
        client._waiting[sent] = again = (first[0], first[1].get_loop().create_future())
        await client.link.send(message)
        assert (await again[1])[0]["error"]["code"] == -32600
        client._waiting[sent] = first
    await client.call("open_gate", key=key)
    assert (await client.finish(sent)).text == "waited"


@in_combinations("handshake session", over=("lane",))
async def test_sessions_survive_a_restart_with_the_same_key(connect: Connect, combination: Combination) -> None:
    client = await connect(combination, server=world.build())
    headers = {**JSON, **client.streamable.headers()}
    session_of: Json = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "who", "arguments": {}}}
    async with serve_http(world.build(), lane=True) as restarted:
        client.streamable.http = restarted
        reply = await client.streamable.post(session_of)
        body = await reply.body()
        assert (reply.status, b"true" in body, b"raw" in body) == (200, True, True)
        stream = await restarted.fetch("GET", "/mcp", {**headers, "accept": "text/event-stream"})
        assert stream.status == 200
        subscribing = b'{"jsonrpc":"2.0","id":6,"method":"resources/subscribe","params":{"uri":"note://one"}}'
        assert (await restarted.fetch("POST", "/mcp", headers, subscribing)).status == 200
        assert (await restarted.fetch("DELETE", "/mcp", headers)).status == 204
        for method, body in (("POST", PING), ("POST", subscribing), ("GET", b"")):
            given = headers if body else {**headers, "accept": "text/event-stream"}
            assert (await restarted.fetch(method, "/mcp", given, body)).status == 404
    async with serve_http(world.build(secret_key="a key that this session was not sealed with"), lane=True) as stranger:
        assert (await stranger.fetch("POST", "/mcp", headers, PING)).status == 404
    key = "the one key of every behavior test"
    async with serve_http(Server("another", settings=Settings(secret_key=key)), lane=True) as another:
        assert (await another.fetch("POST", "/mcp", headers, PING)).status == 404


async def send_initialize(client: Client, params: Any, **headers: str) -> tuple[Exchange, Json]:
    """Return the reply to an `initialize`."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    if params is not None:
        message["params"] = params
    reply = await raw(client, "POST", json.dumps(message).encode(), **headers)
    return reply, json.loads(await reply.body())


@in_combinations("streamable http", since="2025-11-25", over=STREAMS)
async def test_initialize_tolerates_known_deviations(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/lifecycle."""
    client = await connect(combination)
    reply, message = await send_initialize(client, None)
    assert message["result"]["protocolVersion"] == "2025-03-26"
    assert "mcp-session-id" not in reply.headers
    reply, message = await send_initialize(client, {"capabilities": {}})
    assert message["error"]["code"] == -32602
    reply, message = await send_initialize(client, {"protocolVersion": "2025-06-18"}, mcp_protocol_version="2025-11-25")
    assert message["result"]["protocolVersion"] == "2025-06-18"
    assert "mcp-session-id" in reply.headers
    for version in ("2026-07-28", "2099-01-01", "1900-01-01"):
        reply, message = await send_initialize(client, {**OPENING, "protocolVersion": version})
        assert message["result"]["protocolVersion"] == "2025-11-25"
    reply, message = await send_initialize(client, OPENING, mcp_protocol_version="2026-07-28")
    assert (reply.status, message["error"]["code"]) == (400, -32020)
    assert "mcp-session-id" not in reply.headers


@in_combinations(over=("sessionless",), until="2025-11-25")
async def test_sessionless_servers_announce_no_session_features(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    capabilities = (await connect(combination)).initialized["capabilities"]
    assert "subscribe" not in capabilities["resources"]
    assert not any(capabilities[kind].get("listChanged") for kind in ("tools", "prompts", "resources"))


async def test_short_keys_prevent_startup() -> None:
    server = world.build(secret_key="short")
    with pytest.raises(ValueError, match="32 characters"):
        async with server.running():
            pass


@in_combinations("requests of its own", "streamable http")
async def test_newest_revision_has_no_sessions(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    client = await connect(combination)
    for session in ("", "nonsense"):
        client.streamable.session = session
        params = client.params({"name": "text", "arguments": {}})
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        reply = await client.streamable.post(message, {"last-event-id": "nonsense"})
        assert reply.status == 200
        assert "mcp-session-id" not in reply.headers
        await reply.body()
