"""Bad input in revision 2026-07-28: the first failing check of each kind, and requests with state.

Each test ends with a valid request from the same client, on the same connection.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cases import for_each
from millstream import protocol
from wire import META, PER_REQUEST, POST, Reply, Wire, envelope, per_request, request, routing

ADD = per_request("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}}, 7)
ADD_HEADERS = routing("tools/call", "add")
VERSION = f"{META}protocolVersion"
CAPABILITIES = f"{META}clientCapabilities"


@pytest.fixture(autouse=True)
async def alive(wire: Wire) -> AsyncIterator[None]:
    """After the test the server answers a good call."""
    yield
    reply = await wire.post(ADD, ADD_HEADERS)
    assert (reply.status, reply.message["id"], reply.message["result"]["content"][0]["text"]) == (200, 7, "5")


def without(values: dict[str, str], name: str) -> dict[str, str]:
    """The headers without one."""
    return {key: value for key, value in values.items() if key != name}


# Step a: the envelope

META_CASES: dict[str, Any] = {
    "no version": {CAPABILITIES: {}},
    "no capabilities": {VERSION: PER_REQUEST},
    "version a number": {VERSION: 20260728, CAPABILITIES: {}},
    "version null": {VERSION: None, CAPABILITIES: {}},
    "capabilities an array": {VERSION: PER_REQUEST, CAPABILITIES: []},
    "client information a string": {**envelope(), f"{META}clientInfo": "me"},
    "log level a number": {**envelope(), f"{META}logLevel": 3},
    "log level unknown": {**envelope(), f"{META}logLevel": "loud"},
    "log level empty": {**envelope(), f"{META}logLevel": ""},
    "progress token null": {**envelope(), "progressToken": None},
    "progress token an object": {**envelope(), "progressToken": {}},
    "empty": {},
    "no object": "meta",
    "null": None,
}


@for_each("name", META_CASES)
@for_each("method", ["tools/list", "tools/call"])
async def test_incomplete_envelopes_are_invalid_params(wire: Wire, method: str, name: str) -> None:
    params = {"name": "add", "arguments": {"a": 2, "b": 3}} if method == "tools/call" else {}
    headers = routing(method, "add" if method == "tools/call" else "")
    reply = await wire.post(request(method, {**params, "_meta": META_CASES[name]}, 7), headers)
    assert reply.error == (400, -32602, 7)


@for_each("params", [None, {}, {"name": "add"}])
async def test_missing_envelope_error_names_the_keys(wire: Wire, params: Any) -> None:
    """MCP 2026-07-28, basic/versioning."""
    reply = await wire.post(request("tools/call", params, 7), ADD_HEADERS)
    assert reply.error == (400, -32602, 7)
    assert VERSION in reply.message["error"]["message"]
    assert CAPABILITIES in reply.message["error"]["message"]


# Step b: the headers

HEADER_CASES = {
    "no version": without(ADD_HEADERS, "mcp-protocol-version"),
    "another version": {**ADD_HEADERS, "mcp-protocol-version": "2025-11-25"},
    "a version in the future": {**ADD_HEADERS, "mcp-protocol-version": "2099-01-01"},
    "an empty version": {**ADD_HEADERS, "mcp-protocol-version": ""},
    "no method": without(ADD_HEADERS, "mcp-method"),
    "another method": {**ADD_HEADERS, "mcp-method": "tools/list"},
    "the method in capitals": {**ADD_HEADERS, "mcp-method": "Tools/Call"},
    "an empty method": {**ADD_HEADERS, "mcp-method": ""},
    "no name": without(ADD_HEADERS, "mcp-name"),
    "another name": {**ADD_HEADERS, "mcp-name": "sampler"},
    "the name in capitals": {**ADD_HEADERS, "mcp-name": "ADD"},
    "an empty name": {**ADD_HEADERS, "mcp-name": ""},
    "a name in latin-1": {**ADD_HEADERS, "mcp-name": "ädd"},
    "another name in Base64": {**ADD_HEADERS, "mcp-name": "=?base64?c2FtcGxlcg==?="},
    "bad Base64": {**ADD_HEADERS, "mcp-name": "=?base64?YWRk!?="},
    "Base64 of no UTF-8": {**ADD_HEADERS, "mcp-name": "=?base64?/w==?="},
    "an open Base64": {**ADD_HEADERS, "mcp-name": "=?base64?YWRk"},
}


@for_each("name", HEADER_CASES)
async def test_missing_and_different_routing_headers_are_mismatches(wire: Wire, name: str) -> None:
    """Step b and MCP 2026-07-28, basic/transports/streamable-http: 400 -32020 with the request's id."""
    assert (await wire.post(ADD, HEADER_CASES[name])).error == (400, -32020, 7)


@for_each("name", ["mcp-protocol-version", "mcp-method", "mcp-name"])
async def test_duplicate_routing_headers_are_mismatches(wire: Wire, name: str) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    fields = [(key.encode(), value.encode()) for key, value in ADD_HEADERS.items()]
    repeated = (name.encode(), ADD_HEADERS[name].encode())
    reply = await wire.post(ADD, [*fields, repeated])
    assert reply.error == (400, -32020, 7)


@for_each("name", ["=?base64?YWRk?=", "  add\t"])
async def test_mcp_name_may_be_encoded_or_padded(wire: Wire, name: str) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http: optional white space is stripped, the sentinel is decoded."""
    assert (await wire.post(ADD, {**ADD_HEADERS, "mcp-name": name})).status == 200


@for_each("region", [None, "", "EU", "=?base64?RVU=?=", "é"])
async def test_parameter_headers_that_differ_from_arguments_are_mismatches(wire: Wire, region: str | None) -> None:
    """Step f and MCP 2026-07-28, server/tools#x-mcp-header."""
    body = per_request("tools/call", {"name": "routed", "arguments": {"region": "US"}}, 7)
    headers = routing("tools/call", "routed")
    reply = await wire.post(body, headers if region is None else {**headers, "mcp-param-region": region})
    assert reply.error == (400, -32020, 7)
    good = await wire.post(body, {**headers, "mcp-param-region": "US", "mcp-param-other": "ignored"})
    assert good.message["result"]["content"][0]["text"] == "US"


# Steps c to g


@for_each("version", ["2099-01-01", "2025-11-25", "draft", ""])
async def test_unsupported_version_error_lists_supported_ones(wire: Wire, version: str) -> None:
    body = request("tools/list", {"_meta": envelope(version)}, 7)
    reply = await wire.post(body, {**routing("tools/list"), "mcp-protocol-version": version})
    assert reply.error == (400, -32022, 7)
    assert reply.message["error"]["data"] == {"supported": list(protocol.PER_REQUEST), "requested": version}


@for_each("method", ["no/such", "initialize", "ping", "resources/subscribe", "logging/setLevel", "Tools/list"])
async def test_methods_from_other_revisions_get_404(wire: Wire, method: str) -> None:
    assert (await wire.post(per_request(method, id=7), routing(method))).error == (404, -32601, 7)


async def test_missing_client_capabilities_are_listed(wire: Wire) -> None:
    headers = routing("tools/call", "sampler")
    for capabilities in ({}, {"sampling": None}, {"sampling": True}, {"Sampling": {}}):
        reply = await wire.post(per_request("tools/call", {"name": "sampler"}, 7, **capabilities), headers)
        assert reply.error == (400, -32021, 7)
        assert reply.message["error"]["data"] == {"requiredCapabilities": {"sampling": {}}}
    reply = await wire.post(per_request("tools/call", {"name": "sampler"}, 7, sampling={}), headers)
    assert reply.message["result"]["content"][0]["text"] == "sampled"


PARAMS: dict[str, tuple[str, str, Any]] = {
    "an unknown tool": ("tools/call", "nothing", {"name": "nothing"}),
    "an unknown prompt": ("prompts/get", "nothing", {"name": "nothing"}),
    "an unknown resource": ("resources/read", "shop://nothing", {"uri": "shop://nothing"}),
    "a bad cursor": ("tools/list", "", {"cursor": "nonsense"}),
    "a state that is no state": ("tools/call", "ask", {"name": "ask", "requestState": "nonsense"}),
    "a state that is a number": ("tools/call", "ask", {"name": "ask", "requestState": 1}),
    "responses that are an array": ("tools/call", "ask", {"name": "ask", "inputResponses": []}),
}


@for_each("name", PARAMS)
async def test_invalid_params_errors_carry_the_id(wire: Wire, name: str) -> None:
    method, target, params = PARAMS[name]
    reply = await wire.post(per_request(method, params, 7), routing(method, target))
    assert reply.error == (200, -32602, 7)


@for_each("target", [1, None, {}, []])
async def test_names_must_be_strings(wire: Wire, target: Any) -> None:
    reply = await wire.post(per_request("tools/call", {"name": target}, 7), ADD_HEADERS)
    assert reply.error == (400, -32602, 7)


@for_each("arguments", [{"a": "two", "b": 3}, {"a": 2}, [2, 3], "2, 3", {"a": 2.5, "b": 3}, {"a": 10**400}])
async def test_errors_for_invalid_arguments_help_the_model(wire: Wire, arguments: Any) -> None:
    """MCP 2025-11-25, changelog."""
    reply = await wire.post(per_request("tools/call", {"name": "add", "arguments": arguments}, 7), ADD_HEADERS)
    assert (reply.status, reply.message["result"]["isError"]) == (200, True)


# The order of the steps


async def test_first_failing_check_determines_the_error(wire: Wire) -> None:
    """MCP 2026-07-28, basic/versioning: a before b, b before c, c before d, d before e."""
    steps: list[tuple[Any, dict[str, str], int]] = [
        (request("no/such", {"_meta": {}}, 7), without(routing("tools/list"), "mcp-method"), -32602),
        (request("no/such", {"_meta": envelope("2099-01-01")}, 7), routing("no/such"), -32020),
        (request("no/such", {"_meta": envelope("2099-01-01")}, 7),
         {**routing("no/such"), "mcp-protocol-version": "2099-01-01"}, -32022),
        (per_request("no/such", {"cursor": 1}, 7), routing("no/such"), -32601),
        (per_request("tools/call", {"name": "sampler", "arguments": 5}, 7), routing("tools/call", "sampler"), -32021),
    ]  # fmt: skip
    for body, headers, code in steps:
        assert (await wire.post(body, headers)).error[1:] == (code, 7)


# What the era has not


async def test_responses_and_batches_are_rejected(wire: Wire) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http and 2026-07-28, basic/versioning."""
    headers = routing("tools/list")
    assert (await wire.post({"jsonrpc": "2.0", "id": 7, "result": {}}, headers)).error[:2] == (400, -32600)
    assert (await wire.post([ADD], headers)).error == (400, -32600, "none")
    assert (await wire.post([request("ping")], headers)).error == (400, -32600, "none")
    orphan = {"jsonrpc": "2.0", "method": "tools/list", "params": {"_meta": envelope()}}
    assert (await wire.post(orphan, headers)).error == (400, -32600, "none")
    for method in ("notifications/cancelled", "notifications/initialized"):
        message = {"jsonrpc": "2.0", "method": method, "params": {"_meta": envelope(), "requestId": 7}}
        reply = await wire.post(message, routing(method))
        assert (reply.status, reply.body) == (202, b"")


@for_each("method", ["GET", "DELETE"])
async def test_only_post_is_allowed(wire: Wire, method: str) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http: 405 with `Allow: POST`."""
    reply = await wire.ask(method, "/mcp", {**POST, "mcp-protocol-version": PER_REQUEST})
    assert (reply.status, reply.headers[b"allow"]) == (405, b"POST")


async def test_session_ids_are_ignored_and_never_issued(wire: Wire) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    reply = await wire.post(ADD, {**ADD_HEADERS, "mcp-session-id": "nobody's", "last-event-id": "nothing"})
    assert reply.status == 200
    assert b"mcp-session-id" not in reply.headers


async def test_header_check_uses_the_value_of_the_call(wire: Wire) -> None:
    text = json.dumps(per_request("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}}, 7))
    twice = text.replace('"name": "add"', '"name": "sampler", "name": "add"').encode()
    assert (await wire.post(twice, ADD_HEADERS)).message["result"]["content"][0]["text"] == "5"
    assert (await wire.post(twice, {**ADD_HEADERS, "mcp-name": "sampler"})).error == (400, -32020, 7)


# State


async def first_round(wire: Wire, params: dict[str, Any] | None = None) -> tuple[str, str]:
    """The state and the key of the question of a call that asks."""
    body = per_request("tools/call", {"name": "ask", "arguments": {}, **(params or {})}, 7, elicitation={})
    result = (await wire.post(body, routing("tools/call", "ask"))).message["result"]
    assert result["resultType"] == "input_required"
    return result["requestState"], next(iter(result["inputRequests"]))


async def second_round(wire: Wire, state: str, key: str, **params: Any) -> Reply:
    """The same call with the answer."""
    answer = {key: {"action": "accept", "content": {"name": "Ada"}}}
    given = {"name": "ask", "arguments": {}, "inputResponses": answer, "requestState": state, **params}
    return await wire.post(per_request("tools/call", given, 7, elicitation={}), routing("tools/call", "ask"))


@for_each("change", ["flip", "cut", "grow", "other arguments"])
async def test_changed_and_foreign_state_is_invalid_params(wire: Wire, change: str) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    state, key = await first_round(wire)
    middle = len(state) // 2
    changed = {
        "flip": state[:middle] + ("A" if state[middle] != "A" else "B") + state[middle + 1 :],
        "cut": state[:-4],
        "grow": state + "AAAA",
        "other arguments": state,
    }[change]
    params = {"arguments": {"topic": "x"}} if change == "other arguments" else {}
    assert (await second_round(wire, changed, key, **params)).error == (200, -32602, 7)
    assert (await second_round(wire, state, key)).message["result"]["content"][0]["text"] == "It is Ada."


async def test_expired_state_is_invalid_params(wire: Wire) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    state, key = await first_round(wire)
    services = wire.runtime.services
    clock = services.clock
    services.clock = lambda: clock() + services.settings.input_timeout + 2
    assert (await second_round(wire, state, key)).error == (200, -32602, 7)
    services.clock = clock


@for_each(
    "answer", [None, 1, {}, {"action": "maybe"}, {"action": "accept"}, {"action": "accept", "content": {"name": 1}}]
)
async def test_invalid_answers_are_reported_and_keep_the_state(wire: Wire, answer: Any) -> None:
    state, key = await first_round(wire)
    reply = await second_round(wire, state, key, inputResponses={key: answer})
    message = reply.message
    assert reply.status == 200
    assert "Internal error" not in reply.body.decode()
    assert "error" in message or message["result"].get("isError") or message["result"]["resultType"] == "input_required"


async def test_large_numbers_do_not_break_state_binding(wire: Wire) -> None:
    for number in (b"1e999", b"-1e999", b"1" * 400, b"1e-999"):
        text = json.dumps(
            per_request("tools/call", {"name": "ask", "arguments": {"topic": "x", "y": "NUMBER"}}, 7, elicitation={})
        )
        reply = await wire.post(text.encode().replace(b'"NUMBER"', number), routing("tools/call", "ask"))
        assert b"Internal error" not in reply.body, reply
        assert reply.status in (200, 400)
