from typing import Any

import pytest

from bad_input.shop import make_shop
from cases import for_each
from millstream.extensions import LocalError
from wire import HOST, LATEST_HANDSHAKE, POST, Wire, request, run_wire

FORGED = "A" * 80


async def alive(wire: Wire, headers: dict[str, str]) -> None:
    """The session answers."""
    reply = await wire.post(request("ping", id=99), headers)
    assert (reply.status, reply.message["result"]) == (200, {})


# Sessions


@for_each("session", [FORGED, "", "no such session", "x" * 4000, "é", "a,b", "%00"])
@for_each("method", ["POST", "GET", "DELETE"])
async def test_unknown_session_ids_get_404(wire: Wire, method: str, session: str) -> None:
    """MCP 2025-11-25, basic/transports."""
    headers = {**POST, "accept": "text/event-stream, application/json", "mcp-session-id": session}
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}' if method == "POST" else b""
    reply = await wire.ask(method, "/mcp", headers, body)
    assert reply.error == (404, -32001, 1 if method == "POST" else "none")


@for_each("empty", [None, []])
async def test_clients_may_send_null_or_an_empty_array_for_an_empty_object(wire: Wire, empty: Any) -> None:
    """PHP encodes an empty object as an empty array."""
    for name in ("capabilities", "clientInfo"):
        params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t"}, name: empty}
        assert (await wire.post(request("initialize", params))).message["result"]["protocolVersion"] == LATEST_HANDSHAKE


async def test_deleted_sessions_get_404_and_others_remain(wire: Wire) -> None:
    """MCP 2025-11-25, basic/transports."""
    gone, other = await wire.initialize(), await wire.initialize()
    assert (await wire.ask("DELETE", "/mcp", gone)).status == 204
    assert (await wire.post(request("ping"), gone)).error == (404, -32001, request("ping")["id"])
    assert (await wire.ask("DELETE", "/mcp", gone)).status == 404
    await alive(wire, other)


async def test_version_without_a_session_gets_400(wire: Wire) -> None:
    reply = await wire.post(request("tools/list"), {**POST, "mcp-protocol-version": LATEST_HANDSHAKE})
    assert reply.error == (400, -32600, request("tools/list")["id"])


@for_each("version", ["1999-01-01", "2.0", "", "2025-11-25, 2025-06-18", "é"])
async def test_invalid_version_header_gets_400_and_keeps_the_session(wire: Wire, version: str) -> None:
    """MCP 2025-11-25, basic/transports."""
    headers = await wire.initialize()
    reply = await wire.post(request("ping"), {**headers, "mcp-protocol-version": version})
    assert reply.error[:2] == (400, -32600)
    await alive(wire, headers)


async def test_initialize_by_another_client_gets_400_and_keeps_the_session(wire: Wire) -> None:
    """MCP 2025-11-25, basic/transports."""
    headers = await wire.initialize()
    params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "u", "version": "1"}}
    assert (await wire.post(request("initialize", params, 7), headers)).error == (400, -32600, 7)
    await alive(wire, headers)


@for_each(
    "params",
    [{}, {"capabilities": {}}, {"protocolVersion": 1}, {"protocolVersion": LATEST_HANDSHAKE, "capabilities": [1]}],
)
async def test_initialize_without_a_usable_version_is_invalid_params(wire: Wire, params: dict[str, Any]) -> None:
    reply = await wire.post(request("initialize", params, 7))
    assert reply.error[1:] == (-32602, 7)
    assert b"mcp-session-id" not in reply.headers


async def test_capabilities_may_contain_large_numbers(wire: Wire) -> None:
    headers = await wire.initialize(capabilities={"experimental": {"x": {"n": 10**30}}})
    await alive(wire, headers)


async def test_initialize_with_a_per_request_header_is_a_mismatch(wire: Wire) -> None:
    """MCP 2026-07-28, basic/versioning."""
    params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    reply = await wire.post(request("initialize", params, 7), {**POST, "mcp-protocol-version": "2026-07-28"})
    assert reply.error == (400, -32020, 7)


async def test_response_without_a_session_gets_400(wire: Wire) -> None:
    """MCP 2026-07-28, basic/versioning."""
    reply = await wire.post({"jsonrpc": "2.0", "id": 7, "result": {}})
    assert reply.error[:2] == (400, -32600)


async def test_late_responses_are_accepted_and_ignored(wire: Wire) -> None:
    """Regression: it got 400, and official clients closed the connection. See
    https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation
    """
    headers = await wire.initialize()
    for answer in ({"id": 7, "result": {}}, {"id": "x", "error": {"code": -1, "message": "no"}}):
        reply = await wire.post({"jsonrpc": "2.0", **answer}, headers)
        assert (reply.status, reply.body) == (202, b"")
    await alive(wire, headers)


async def test_responses_without_a_session_are_rejected(wire: Wire) -> None:
    reply = await wire.post({"jsonrpc": "2.0", "id": 7, "result": {}})
    assert reply.error == (400, -32600, "none")


async def test_version_errors_contain_the_text_that_clients_match(wire: Wire) -> None:
    reply = await wire.post(request("tools/list"), {**POST, "mcp-protocol-version": "1999-01-01"})
    assert reply.error[0] == 400
    assert "Unsupported protocol version" in reply.message["error"]["message"]


# Methods and parameters

PARAMS: dict[str, tuple[str, Any, int]] = {
    "an unknown method": ("no/such/method", {}, -32601),
    "a method in capitals": ("PING", {}, -32601),
    "a method of the other era": ("server/discover", {}, -32601),
    "a notification's method": ("notifications/initialized", {}, -32601),
    "no tool name": ("tools/call", {}, -32602),
    "no params at all": ("tools/call", None, -32602),
    "a tool name that is a number": ("tools/call", {"name": 1}, -32602),
    "an unknown tool": ("tools/call", {"name": "nothing"}, -32602),
    "an unknown prompt": ("prompts/get", {"name": "nothing"}, -32602),
    "a prompt without its argument": ("prompts/get", {"name": "greet"}, -32602),
    "prompt arguments that are no text": ("prompts/get", {"name": "greet", "arguments": {"name": 1}}, -32602),
    "an unknown resource": ("resources/read", {"uri": "shop://nothing"}, -32002),
    "no URI": ("resources/read", {}, -32602),
    "a bad cursor": ("tools/list", {"cursor": "nonsense"}, -32602),
    "a cursor that is a number": ("tools/list", {"cursor": 1}, -32602),
    "an empty cursor": ("tools/list", {"cursor": ""}, -32602),
    "a bad log level": ("logging/setLevel", {"level": "loud"}, -32602),
    "a subscription to nothing": ("resources/subscribe", {}, -32602),
}


@for_each("name", PARAMS)
async def test_invalid_params_get_200_with_code_and_id(wire: Wire, name: str) -> None:
    """JSON-RPC 2.0."""
    method, params, code = PARAMS[name]
    headers = await wire.initialize()
    reply = await wire.post(request(method, params, "seven"), headers)
    assert reply.error == (200, code, "seven")
    await alive(wire, headers)


@for_each("arguments", [{"a": "one", "b": 2}, {"b": 2}, {"a": 1.5, "b": 2}, [1, 2], "a"])
@for_each("revision", ["2024-11-05", "2025-03-26", "2025-06-18", LATEST_HANDSHAKE])
async def test_invalid_arguments_are_protocol_errors_on_older_revisions(
    wire: Wire, revision: str, arguments: Any
) -> None:
    """MCP 2025-11-25, changelog."""
    headers = await wire.initialize(revision)
    reply = await wire.post(request("tools/call", {"name": "add", "arguments": arguments}), headers)
    if revision == LATEST_HANDSHAKE:
        assert reply.message["result"]["isError"] is True
        text = reply.message["result"]["content"][0]["text"]
    else:
        assert reply.error == (200, -32602, 1)
        text = reply.message["error"]["message"]
    assert "integer" in text or "missing" in text, text
    await alive(wire, headers)


@for_each("params", [None, {}, {"requestId": None}, {"requestId": 1.5}, {"requestId": "nobody"}])
async def test_cancellation_of_unknown_ids_is_ignored(wire: Wire, params: Any) -> None:
    """MCP 2025-11-25, basic/utilities/cancellation: cancellation of unknown requests is not an error."""
    headers = await wire.initialize()
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", **({} if params is None else {"params": params})}
    reply = await wire.post(message, headers)
    assert (reply.status, reply.body) == (202, b"")
    await alive(wire, headers)


# Batches


@for_each("revision", ["2024-11-05", "2025-06-18", LATEST_HANDSHAKE])
async def test_unsupported_batches_get_400(wire: Wire, revision: str) -> None:
    """MCP 2025-03-26, basic: only 2025-03-26 has batches."""
    headers = await wire.initialize(revision)
    assert (await wire.post([request("ping")], headers)).error == (400, -32600, "none")
    await alive(wire, headers)


async def test_invalid_batch_messages_get_their_own_error(wire: Wire) -> None:
    """JSON-RPC 2.0 §6."""
    headers = await wire.initialize("2025-03-26")
    batch = [
        request("ping", id="a"), 1, {"jsonrpc": "2.0", "id": None, "method": "ping"}, request("nothing", id="b"),
        {"jsonrpc": "2.0", "method": "notifications/x"}, {"jsonrpc": "2.0", "id": 9, "result": {}},
    ]  # fmt: skip
    reply = await wire.post(batch, headers)
    answers = reply.message
    assert reply.status == 200
    assert [answer.get("id", "none") for answer in answers] == ["a", "none", "none", "b"]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32600, -32600, -32601]


@for_each(
    "batch", [[request("initialize", {"protocolVersion": "2025-03-26"})], [request("ping", id=n) for n in range(51)]]
)
async def test_batches_with_initialize_or_too_many_messages_get_400(wire: Wire, batch: list[Any]) -> None:
    """MCP 2025-11-25."""
    headers = await wire.initialize("2025-03-26")
    assert (await wire.post(batch, headers)).error == (400, -32600, "none")
    await alive(wire, headers)


# Media types and size


@for_each(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", "", None],
)
async def test_bodies_not_declared_as_json_get_415(wire: Wire, content_type: str | None) -> None:
    """MCP 2026-07-28, basic/versioning."""
    headers = await wire.initialize()
    given = {name: value for name, value in headers.items() if name != "content-type"}
    reply = await wire.post(request("ping"), given if content_type is None else {**given, "content-type": content_type})
    assert reply.error == (415, -32600, "none")
    await alive(wire, headers)


@for_each("encoding", ["gzip", "br", "deflate, gzip"])
async def test_compressed_bodies_get_415(wire: Wire, encoding: str) -> None:
    reply = await wire.post(request("ping"), {**POST, "content-encoding": encoding})
    assert reply.error == (415, -32600, "none")


@for_each("accept", ["text/html", "image/*", "application/json;q=0", "application/json;q=0.0, text/html"])
async def test_unusable_accept_headers_get_406(wire: Wire, accept: str) -> None:
    headers = await wire.initialize()
    assert (await wire.post(request("ping"), {**headers, "accept": accept})).error == (406, -32600, "none")
    await alive(wire, headers)


@for_each(
    "accept",
    [
        "application/json",
        "text/event-stream",
        "*/*",
        "application/*",
        "text/*;q=0.1",
        "Application/JSON;charset=utf-8",
        None,
    ],
)
async def test_requests_with_usable_accept_headers_are_served(wire: Wire, accept: str | None) -> None:
    headers = {name: value for name, value in (await wire.initialize()).items() if name != "accept"}
    reply = await wire.post(request("ping"), headers if accept is None else {**headers, "accept": accept})
    assert (reply.status, reply.message["result"]) == (200, {})


@for_each("accept", ["application/json", "text/html"])
async def test_get_that_does_not_accept_event_streams_gets_406(wire: Wire, accept: str) -> None:
    """MCP 2025-11-25, basic/transports: `Accept: text/event-stream` is required on GET."""
    reply = await wire.ask("GET", "/mcp", {**(await wire.initialize()), "accept": accept})
    assert reply.error == (406, -32600, "none")


@for_each("path", ["/mcp", "/sse"])
async def test_browsers_get_an_explanation_of_the_endpoint(wire: Wire, path: str) -> None:
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
    reply = await wire.ask("GET", path, {"host": "localhost", "accept": accept})
    assert reply.status == (200 if path == "/mcp" else 406)
    assert b"<p>This is the address of an MCP server." in reply.body


@for_each("last", ["nonsense", "a.b.c", "1.main.x", "e.0000.99", "", ".", "é.é.é", "9" * 5000])
async def test_unknown_event_ids_get_400(wire: Wire, last: str) -> None:
    headers = await wire.initialize()
    reply = await wire.ask("GET", "/mcp", {**headers, "accept": "text/event-stream", "last-event-id": last})
    assert reply.error == (400, -32600, "none")
    await alive(wire, headers)


@for_each("method", ["PUT", "PATCH", "TRACE"])
async def test_other_http_methods_get_405(wire: Wire, method: str) -> None:
    """RFC 9110 §15.5.6."""
    reply = await wire.ask(method, "/mcp", HOST)
    assert reply.status == 405
    assert b"POST" in reply.headers[b"allow"]


@for_each("way", ["lane", "asgi"])
async def test_bodies_over_the_limit_get_413(way: str) -> None:
    async with run_wire(make_shop(max_body=500), way) as wire:
        headers = await wire.initialize()
        body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
        assert (await wire.post(body.ljust(500), headers)).status == 200
        assert (await wire.post(body.ljust(501), headers)).status == 413
        await alive(wire, headers)


async def test_short_keys_prevent_startup() -> None:
    with pytest.raises((ValueError, LocalError), match="secret"):
        async with make_shop(secret_key="short").running():
            pass
