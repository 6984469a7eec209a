import json
from typing import Any

import pytest

from cases import for_each
from millstream import ProtocolError
from millstream._protocol.admission import (
    admit_per_request,
    check_handshake_header,
    check_notification,
    per_request_revision,
    target_name,
)
from millstream._protocol.jsonrpc import Envelope
from millstream._protocol.metadata import declares
from millstream.protocol import BY_DATE, NEWEST

META = {
    "io.modelcontextprotocol/protocolVersion": NEWEST.date,
    "io.modelcontextprotocol/clientCapabilities": {"sampling": {}},
}
HEADERS = {b"mcp-protocol-version": NEWEST.date.encode(), b"mcp-method": b"tools/call", b"mcp-name": b"add"}


def request(meta: Any = META, method: str = "tools/call", **params: Any) -> Envelope:
    return Envelope(1, method, json.dumps({"name": "add", **params, "_meta": meta}).encode())


def admit(message: Envelope, headers: dict[bytes, bytes] | None = None, **more: Any) -> Any:
    given = {
        "serves": lambda method, revision: revision.requests.get(method) not in (None, "prompts"),
        "requires": lambda method, name: {},
        **more,
    }
    raw = list((headers or {}).items()) + more.get("twice", [])
    given.pop("twice", None)
    return admit_per_request(message, headers=headers, raw_headers=raw, **given)


def refusal(*args: Any, **more: Any) -> tuple[int, int]:
    with pytest.raises(ProtocolError) as raised:
        admit(*args, **more)
    return raised.value.status, raised.value.code


def test_valid_requests_are_admitted_with_and_without_headers() -> None:
    """MCP 2026-07-28, basic/versioning."""
    admitted = admit(request(), HEADERS)
    assert (admitted.revision, admitted.name, admitted.client.capabilities) == (NEWEST, "add", {"sampling": {}})
    assert admit(request()).name == "add"
    named = admit(request({**META, "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"}}))
    assert (named.client.name, named.client.version) == ("c", "1")
    listing = Envelope(1, "tools/list", json.dumps({"_meta": META}).encode())
    assert admit(listing).name == ""
    assert admit(listing, {**HEADERS, b"mcp-method": b"tools/list"}).name == ""


@for_each(
    ("meta", "code"),
    [
        ({}, -32602),
        ({key: META[key] for key in list(META)[:1]}, -32602),
        ({**META, "io.modelcontextprotocol/clientCapabilities": []}, -32602),
        ({**META, "io.modelcontextprotocol/logLevel": "loud"}, -32602),
        ({**META, "progressToken": None}, -32602),
        ({**META, "io.modelcontextprotocol/protocolVersion": "2999-01-01"}, -32022),
        ({**META, "io.modelcontextprotocol/protocolVersion": "2025-11-25"}, -32022),
    ],
)
def test_envelope_is_checked_first(meta: Any, code: int) -> None:
    """MCP 2026-07-28, basic/versioning."""
    assert refusal(request(meta)) == (400, code)


def test_headers_are_checked_before_the_version() -> None:
    """MCP 2026-07-28, basic/versioning."""
    unknown = request({**META, "io.modelcontextprotocol/protocolVersion": "v999"})
    assert refusal(unknown, HEADERS) == (400, -32020)
    for name, value in HEADERS.items():
        assert refusal(request(), {key: HEADERS[key] for key in HEADERS if key != name}) == (400, -32020)
        assert refusal(request(), {**HEADERS, name: b"other"}) == (400, -32020)
        assert refusal(request(), HEADERS, twice=[(name, value)]) == (400, -32020)
    assert refusal(request(), {**HEADERS, b"mcp-param-a": b"1"}, twice=[(b"mcp-param-a", b"1")]) == (400, -32020)
    assert admit(request(), {**HEADERS, b"mcp-name": b" =?base64?YWRk?= "}).name == "add"


def test_methods_and_capabilities_are_checked_last() -> None:
    """MCP 2026-07-28, basic/versioning."""
    assert refusal(request(method="ping")) == (404, -32601)
    assert refusal(request(method="prompts/get")) == (404, -32601)
    assert refusal(request(), requires=lambda method, name: {"elicitation": {}}) == (400, -32021)
    assert refusal(request(name=7)) == (400, -32602)
    assert admit(request(), requires=lambda method, name: {"sampling": {}}).name == "add"


def test_era_is_determined_by_the_body_before_the_headers() -> None:
    """MCP 2026-07-28, basic/versioning."""
    assert per_request_revision(request())
    assert not per_request_revision(request({}))
    assert per_request_revision(request({}), {b"mcp-protocol-version": NEWEST.date.encode()})
    assert not per_request_revision(Envelope(1, "tools/list", b'{"_meta":7}'))
    assert not per_request_revision(Envelope(1, "tools/list", b""))
    assert per_request_revision(request(method="initialize"))
    assert not per_request_revision(Envelope(1, "initialize", b"{}"), {})
    with pytest.raises(ProtocolError):
        per_request_revision(Envelope(1, "initialize", b"{}"), {b"mcp-protocol-version": NEWEST.date.encode()})


def test_handshake_version_header_must_be_known() -> None:
    """MCP 2025-11-25, basic/transports."""
    l3, l4 = BY_DATE["2025-06-18"], BY_DATE["2025-11-25"]
    assert check_handshake_header({}, None) is None
    assert check_handshake_header({}, l4) is l4
    assert check_handshake_header({b"mcp-protocol-version": b" 2025-06-18 "}, None) is l3
    assert check_handshake_header({b"mcp-protocol-version": b"2025-06-18"}, l4) is l4, "the negotiated one counts"
    for bad in (b"2.0", NEWEST.date.encode()):
        with pytest.raises(ProtocolError):
            check_handshake_header({b"mcp-protocol-version": bad}, l4)


def test_requests_without_an_id_are_rejected() -> None:
    check_notification(Envelope(None, "notifications/cancelled", b""))
    with pytest.raises(ProtocolError):
        check_notification(Envelope(None, "tools/list", b""))
    assert target_name("tools/call", b'{"name":"a"}') == "a"
    assert target_name("resources/read", b'{"uri":"u:v"}') == "u:v"
    assert target_name("tools/call", b'{"name":7}') == target_name("tools/list", b"") == ""


def test_capabilities_are_covered_name_by_name() -> None:
    """MCP 2025-11-25, client/elicitation."""
    assert declares({"elicitation": {}}, {"elicitation": {"form": {}}})
    assert not declares({"elicitation": {"url": {}}}, {"elicitation": {"form": {}}})
    assert not declares({"sampling": {}}, {"sampling": {"tools": {}}})
    assert not declares({"sampling": 7}, {"sampling": {}})
    assert declares({"sampling": {"tools": {}}}, {"sampling": {"tools": {}}})


def test_capability_settings_that_are_not_objects_must_be_equal() -> None:
    assert declares({"roots": {"listChanged": True}}, {"roots": {"listChanged": True}})
    assert not declares({"roots": {"listChanged": False}}, {"roots": {"listChanged": True}})
    assert not declares({"roots": {"listChanged": 1}}, {"roots": {"listChanged": True}})
    assert not declares({"roots": {}}, {"roots": {"listChanged": True}})
    apps = {"extensions": {"com.example/apps": {"types": ["a", "b"]}}}
    assert declares(apps, {"extensions": {"com.example/apps": {"types": ["b"]}}})
    assert not declares(apps, {"extensions": {"com.example/apps": {"types": ["c"]}}})
    assert not declares(apps, {"extensions": {"com.example/apps": {"types": {}}}})
