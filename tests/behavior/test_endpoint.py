import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from behavior.client_setup import server_for
from behavior.combinations import Combination, mark_param
from behavior.conftest import Connect
from behavior.exchanges import Http, serve_http
from behavior.judge import judge_of
from behavior.links import ACCEPT, SseLink
from cases import for_each

JSON = {"content-type": "application/json", "accept": ACCEPT}
NEW = {"mcp-protocol-version": "2026-07-28"}
EVENTS = {"accept": "text/event-stream"}
META = "io.modelcontextprotocol/"
ENVELOPE = {f"{META}protocolVersion": "2026-07-28", f"{META}clientCapabilities": {}}


@pytest.fixture(params=["lane", "asgi"])
async def http(request: pytest.FixtureRequest) -> AsyncIterator[Http]:
    """The world with sessions, on each kind of server."""
    async with serve_http(server_for("asgi"), lane=request.param == "lane") as found:
        yield found


@pytest.fixture(params=["lane", "asgi"])
async def sessionless(request: pytest.FixtureRequest) -> AsyncIterator[Http]:
    """The world without sessions, on each kind of server."""
    async with serve_http(server_for("sessionless"), lane=request.param == "lane") as found:
        yield found


GETS: list[tuple[dict[str, str], int]] = [
    ({**EVENTS, **NEW}, 405),
    ({**EVENTS, "mcp-protocol-version": "2099-01-01"}, 405),
    ({**EVENTS, "mcp-protocol-version": "2025-11-25"}, 400),
    ({**EVENTS, "last-event-id": "x"}, 400),
    ({**EVENTS, "mcp-session-id": "x"}, 404),
    ({"accept": "application/json"}, 406),
]


@for_each(("headers", "status"), GETS, ids=str)
async def test_get_errors_mention_the_missing_header(http: Http, headers: dict[str, str], status: int) -> None:
    """405 for 2026-07-28, 400 without a session."""
    reply = await http.fetch("GET", "/mcp", headers)
    assert reply.status == status
    if status == 405:
        assert "POST" in reply.headers["allow"]


async def test_bare_get_opens_a_stream_in_the_first_revision(http: Http) -> None:
    said: list[Any] = []
    link = await SseLink(http, lambda message, request, status: said.append(message)).open("/mcp")
    assert link.path.startswith("/messages/?session_id=")
    await link.close()


@for_each("method", ["GET", "DELETE"])
async def test_sessionless_endpoint_allows_only_post(sessionless: Http, method: str) -> None:
    reply = await sessionless.fetch(method, "/mcp", EVENTS)
    assert reply.status == 405
    assert "POST" in reply.headers["allow"]


DELETES: list[tuple[dict[str, str], int]] = [(NEW, 405), ({}, 400), ({"mcp-session-id": "x"}, 404)]


@for_each(("headers", "status"), DELETES, ids=str)
async def test_delete_needs_a_session(http: Http, headers: dict[str, str], status: int) -> None:
    """MCP 2025-11-25, basic/transports and 2026-07-28, basic/transports/streamable-http."""
    assert (await http.fetch("DELETE", "/mcp", headers)).status == status


@for_each("method", ["PUT", "PATCH"])
async def test_other_methods_are_not_allowed(http: Http, method: str) -> None:
    reply = await http.fetch(method, "/mcp", JSON)
    assert reply.status == 405
    assert {"GET", "POST", "DELETE"} <= set(reply.headers["allow"].replace(" ", "").split(","))


@for_each("method", ["GET", "DELETE", "PUT"])
async def test_message_path_allows_only_post(http: Http, method: str) -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse."""
    assert (await http.fetch(method, "/messages/?session_id=x", EVENTS)).status == 405


async def test_messages_for_unknown_streams_are_rejected(http: Http) -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse."""
    assert (await http.fetch("POST", "/messages/", JSON, b"{}")).status == 400
    assert (await http.fetch("POST", "/messages/?session_id=x", JSON, b"{}")).status == 404


async def test_trailing_slash_is_served_without_a_redirect(http: Http) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    assert (await http.fetch("POST", "/mcp/", JSON, body)).status == 200


def ping(**members: Any) -> bytes:
    """Return a request with changed members."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", **members}).encode()


BAD_BODIES: list[tuple[str, bytes, int]] = [
    ("empty", b"", -32700),
    ("not JSON", b"{", -32700),
    ("not UTF-8", b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', -32700),
    ("not a number", b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', -32700),
    ("too deep", b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 80 + b"]" * 80 + b"}}", -32700),
    ("a string", b'"ping"', -32600),
    ("empty array", b"[]", -32600),
    ("no version", b'{"id":1,"method":"ping"}', -32600),
    ("another version", ping(jsonrpc="1.0"), -32600),
    ("id null", ping(id=None), -32600),
    ("id true", ping(id=True), -32600),
    ("id fraction", ping(id=1.5), -32600),
    ("id object", ping(id={}), -32600),
    ("method a number", ping(method=1), -32600),
    ("params a string", ping(params="x"), -32600),
    ("neither request nor response", b'{"jsonrpc":"2.0","id":1}', -32600),
    ("a response without a session", b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
]


@for_each(("body", "code"), [each[1:] for each in BAD_BODIES], ids=[each[0] for each in BAD_BODIES])
@for_each("headers", [{}, NEW], ids=["handshake", "per-request"])
async def test_invalid_bodies_get_400_with_a_code(http: Http, headers: dict[str, str], body: bytes, code: int) -> None:
    reply = await http.fetch("POST", "/mcp", {**JSON, **headers}, body)
    message = json.loads(await reply.body())
    assert (reply.status, message["error"]["code"]) == (400, code)
    judge_of("2026-07-28").check_message(message)


@for_each("method", ["tools/call", "initialize", "server/discover"])
@for_each("headers", [{}, NEW], ids=["handshake", "per-request"])
async def test_requests_without_an_id_are_not_ignored(http: Http, headers: dict[str, str], method: str) -> None:
    body = {"jsonrpc": "2.0", "method": method, "params": {"name": "text", "_meta": ENVELOPE if headers else {}}}
    reply = await http.fetch("POST", "/mcp", {**JSON, **headers, "mcp-method": method}, json.dumps(body).encode())
    assert reply.status == 400
    assert json.loads(await reply.body())["error"]["code"] == -32600


async def test_unknown_notifications_are_accepted_and_ignored(http: Http) -> None:
    """JSON-RPC 2.0, section 4.1."""
    body = b'{"jsonrpc":"2.0","method":"notifications/no_such"}'
    assert (await http.fetch("POST", "/mcp", JSON, body)).status == 202


@for_each(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/jsonx"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        ({"content-type": "application/json", "accept": "text/html"}, 406),
        ({"content-type": "application/json", "accept": "*/*"}, 200),
        ({"content-type": "application/json", "accept": ""}, 200),
        ({"content-type": "application/json", "accept": "APPLICATION/json;q=0.5"}, 200),
    ],
    ids=str,
)
async def test_media_types_are_checked_first(http: Http, headers: dict[str, str], status: int) -> None:
    assert (await http.fetch("POST", "/mcp", headers, ping())).status == status


async def test_reply_is_an_event_if_only_events_are_accepted(http: Http) -> None:
    reply = await http.fetch("POST", "/mcp", {**JSON, "accept": "text/event-stream"}, ping())
    (event,) = [event async for event in reply.events()]
    assert (reply.status, json.loads(event.data)["result"]) == (200, {})


async def test_a_body_over_the_limit_gets_413(http: Http) -> None:
    assert (await http.fetch("POST", "/mcp", JSON, b" " * (4 * 1024 * 1024 + 1))).status == 413


ROUTED = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "text"}
LADDER: list[tuple[str, dict[str, Any], dict[str, str], int, int]] = [
    ("no version in the envelope", {f"{META}clientCapabilities": {}}, ROUTED, 400, -32602),
    ("no capabilities", {f"{META}protocolVersion": "2026-07-28"}, ROUTED, 400, -32602),
    ("capabilities a list", {**ENVELOPE, f"{META}clientCapabilities": []}, ROUTED, 400, -32602),
    ("another version in the body", {**ENVELOPE, f"{META}protocolVersion": "2099-01-01"}, ROUTED, 400, -32020),
    ("no version header", ENVELOPE, {"mcp-method": "tools/call", "mcp-name": "text"}, 400, -32020),
    ("no method header", ENVELOPE, {**NEW, "mcp-name": "text"}, 400, -32020),
    ("another method", ENVELOPE, {**ROUTED, "mcp-method": "Tools/Call"}, 400, -32020),
    ("no name header", ENVELOPE, {**NEW, "mcp-method": "tools/call"}, 400, -32020),
    ("another name", ENVELOPE, {**ROUTED, "mcp-name": "add"}, 400, -32020),
    ("name in Base64", ENVELOPE, {**ROUTED, "mcp-name": "=?base64?dGV4dA==?="}, 200, 0),
    ("space around values", ENVELOPE, {**ROUTED, "mcp-name": " text "}, 200, 0),
    ("unsupported", {**ENVELOPE, f"{META}protocolVersion": "2099-01-01"},
     {**ROUTED, "mcp-protocol-version": "2099-01-01"}, 400, -32022),
    ("a handshake version", {**ENVELOPE, f"{META}protocolVersion": "2025-11-25"},
     {**ROUTED, "mcp-protocol-version": "2025-11-25"}, 400, -32022),
]  # fmt: skip


@for_each(("envelope", "headers", "status", "code"), [each[1:] for each in LADDER], ids=[each[0] for each in LADDER])
async def test_first_failing_check_determines_the_error(
    http: Http, envelope: dict[str, Any], headers: dict[str, str], status: int, code: int
) -> None:
    """MCP 2026-07-28, basic/versioning: every refusal carries the id of its request."""
    body = {"jsonrpc": "2.0", "id": "r", "method": "tools/call",
            "params": {"name": "text", "arguments": {}, "_meta": envelope}}  # fmt: skip
    reply = await http.fetch("POST", "/mcp", {**JSON, **headers}, json.dumps(body).encode())
    message = json.loads(await reply.body())
    assert (reply.status, message.get("error", {}).get("code", 0)) == (status, code), message
    assert message["id"] == "r"
    judge_of("2026-07-28").check_message(message, "tools/call")


@pytest.mark.parametrize("transport", [mark_param(each, each) for each in ("memory", "stdio")])
async def test_invalid_line_gets_an_error_and_the_connection_stays_open(connect: Connect, transport: str) -> None:
    client = await connect(Combination("2024-11-05", transport))
    for bad in ("ping", {"jsonrpc": "1.0", "id": 1, "method": "ping"}, {"jsonrpc": "2.0", "id": 1.5, "method": "ping"}):
        count = len(client.stray)
        await client.link.send(bad)
        assert (await client.until(lambda count=count: client.stray[count:]))[0]["error"]["code"] == -32600
    assert (await client.request("ping")).result == {}
