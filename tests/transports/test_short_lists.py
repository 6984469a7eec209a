"""A usual list request of 2026-07-28 takes a fast path, which differs only in speed."""

import json
from typing import Any

from cases import for_each
from millstream import Server, Settings
from wire import META, Json, Reply, Wire, encode_headers, per_request, routing, run_wire

MAX_ID = 16 * 1024
"""Maximum length of a request id."""

LISTS = ["tools/list", "prompts/list", "resources/list", "resources/templates/list"]


def make_server(**settings: Any) -> Server:
    """Two pages of tools, one resource, and no prompts."""
    server = Server("lists", settings=Settings(page_size=2, **settings))
    for number in range(3):
        server.tool(name=f"tool{number}")(_tool)
    server.resource("note://one")(_note)
    return server


async def _tool(a: int) -> int:
    return a


async def _note() -> str:
    return "one"


def meta(**members: Any) -> Json:
    """Parameters with these members in their `_meta`, beside the required ones."""
    return {"_meta": {**per_request("x")["params"]["_meta"], **members}}


MESSAGES: dict[str, Any] = {
    "usual": per_request("tools/list"),
    "a text for an id": per_request("tools/list", id="ä" * 20),
    "prompts": per_request("prompts/list"),
    "resources": per_request("resources/list"),
    "templates": per_request("resources/templates/list"),
    "first page": per_request("tools/list", {"cursor": None}),
    "cursor": per_request("tools/list", {"cursor": "dG9vbHM6dG9vbDE="}),
    "wrong cursor": per_request("tools/list", {"cursor": "x"}),
    "empty cursor": per_request("tools/list", {"cursor": ""}),
    "cursor of no text": per_request("tools/list", {"cursor": 7}),
    "unknown member": per_request("tools/list", {"more": [1]}),
    "who asks": per_request("tools/list", meta(**{f"{META}clientInfo": {"name": "c", "version": "1"}})),
    "who asks, badly": per_request("tools/list", meta(**{f"{META}clientInfo": 7})),
    "level": per_request("tools/list", meta(**{f"{META}logLevel": "info"})),
    "unknown level": per_request("tools/list", meta(**{f"{META}logLevel": "loud"})),
    "token": per_request("tools/list", meta(progressToken=1)),
    "odd token": per_request("tools/list", meta(progressToken=[])),
    "another version": per_request("tools/list", meta(**{f"{META}protocolVersion": "2025-11-25"})),
    "unknown version": per_request("tools/list", meta(**{f"{META}protocolVersion": "2031-01-01"})),
    "no capabilities": {
        **per_request("tools/list"),
        "params": {"_meta": {f"{META}protocolVersion": "2026-07-28"}},
    },
    "capabilities of no object": per_request("tools/list", meta(**{f"{META}clientCapabilities": 1})),
    "large capabilities": per_request("tools/list", x={"y": "z" * 5000}),
    "no meta": {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
    "no params": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    "params of no object": {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": []},
    "another method": per_request("prompts/list"),
    "a call": per_request("tools/call", {"name": "tool0", "arguments": {"a": 1}}),
    "unknown method": per_request("tools/lists"),
    "no id": {**per_request("tools/list"), "id": None},
    "an id too many": per_request("tools/list", id="x" * (MAX_ID + 1)),
    "an id that just fits": per_request("tools/list", id="x" * (MAX_ID - 2)),
    "an answer": {"jsonrpc": "2.0", "id": 1, "result": {}},
    "both": {**per_request("tools/list"), "result": {}},
    "another protocol": {**per_request("tools/list"), "jsonrpc": "1.0"},
    "a batch": [per_request("tools/list")],
    "a number": 7,
}
METHODS = {"prompts": LISTS[1], "resources": LISTS[2], "templates": LISTS[3]}


ANSWERED = {
    "usual", "a text for an id", "resources", "templates", "first page", "cursor", "unknown member", "who asks",
    "level", "token", "large capabilities", "an id that just fits",
}  # fmt: skip


async def both(wire: Wire, message: Any, *more: tuple[bytes, bytes], path: str = "/mcp", **headers: str) -> list[Reply]:
    """The reply to a message, sent so that it may take the short cut, and so that it can't."""
    body = json.dumps(message).encode()
    fields = {**routing("tools/list"), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return [
        await wire.ask("POST", path, [*encode_headers({**fields, "content-type": content_type}), *more], body)
        for content_type in ("application/json", "application/json; charset=utf-8")
    ]


@for_each("way", ["asgi", "lane"])
@for_each("kind", MESSAGES)
async def test_fast_and_exact_path_return_the_same_list(kind: str, way: str) -> None:
    async with run_wire(make_server(), way) as wire:
        short, exact = await both(wire, MESSAGES[kind], mcp_method=METHODS.get(kind, "tools/list"))
    assert short == exact
    assert (b'"result":' in short.body) == (kind in ANSWERED), short


HEADERS: dict[str, dict[str, str]] = {
    "another method": {"mcp_method": "prompts/list"},
    "another list": {"mcp_method": "resources/list"},
    "a name": {"mcp_name": "tool0"},
    "another version": {"mcp_protocol_version": "2025-11-25"},
    "an unknown version": {"mcp_protocol_version": "2031-01-01"},
    "only streams": {"accept": "text/event-stream"},
    "only JSON": {"accept": "application/json"},
    "neither": {"accept": "text/html"},
    "white space": {"mcp_method": " tools/list "},
    "compressed": {"content_encoding": "gzip"},
}


@for_each("kind", HEADERS)
async def test_fast_and_exact_path_check_the_same_headers(kind: str) -> None:
    async with run_wire(make_server(), "asgi") as wire:
        short, exact = await both(wire, per_request("tools/list"), **HEADERS[kind])
    assert short == exact
    assert (short.status == 200) == (kind in {"a name", "only streams", "only JSON", "white space"}), short


async def test_duplicate_headers_and_queries_take_the_exact_path() -> None:
    async with run_wire(make_server(), "asgi") as wire:
        short, exact = await both(wire, per_request("tools/list"), (b"mcp-method", b"tools/list"))
        assert (short.status, short) == (400, exact)
        short, exact = await both(wire, per_request("tools/list"), path="/mcp?client_id=one")
        assert (short.status, short) == (200, exact)
