"""What the load generators send: heads and bodies of each request kind, "@" standing for the id.

`a` is the id and `b` is 1, so that an answer can be checked by itself: the result is the id plus one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

COMMON = "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
CLIENT = {"name": "bench", "version": "1"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass(frozen=True)
class Kind:
    """A request as wrk sends it, and what `load.lua` expects: the sum, or a number of tools."""

    head: str
    body: str
    expect: str = "sum"
    session: bool = False


def _body(method: str, params: Mapping[str, object]) -> str:
    text = json.dumps({"jsonrpc": "2.0", "id": "@", "method": method, "params": params}, separators=(",", ":"))
    return text.replace('"@"', "@")


CALL: dict[str, object] = {"name": "add", "arguments": {"a": "@", "b": 1}}
KINDS = {
    "call-2026": Kind(
        f"{COMMON}mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: add\r\n",
        _body("tools/call", CALL | {"_meta": META}),
    ),
    "call-2025": Kind(f"{COMMON}mcp-protocol-version: 2025-11-25\r\n", _body("tools/call", CALL)),
    "call-session": Kind(f"{COMMON}mcp-protocol-version: 2025-11-25\r\n", _body("tools/call", CALL), session=True),
    "list-100": Kind(
        f"{COMMON}mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/list\r\n",
        _body("tools/list", {"_meta": META}),
        expect="100",
    ),
}
INITIALIZE = (
    _body("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT})
    .replace("@", "1")
    .encode()
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


@dataclass(frozen=True)
class First:
    """A request that a server answers without any preparation, by which it is known to have started."""

    path: str
    head: str
    body: bytes


FIRST_CALL = First("/mcp", KINDS["call-2026"].head, KINDS["call-2026"].body.replace("@", "1").encode())
FIRST_SESSION = First("/mcp", COMMON, INITIALIZE)
"""For a server that knows the handshake only."""
FIRST_EVENT = First("/publish", "content-type: application/json\r\n", b'{"data":"first"}')


def call_lines(first: int, count: int) -> list[bytes]:
    """`count` calls for stdio, each a line with the ids from `first` on."""
    before, middle, after = KINDS["call-2025"].body.split("@")
    return [f"{before}{number}{middle}{number}{after}\n".encode() for number in range(first, first + count)]
