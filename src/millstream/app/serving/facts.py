"""What a person learns about a server that listens: where, what it has, what protects it, one call to try."""

import shlex
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from millstream.app.definition import Definition
from millstream.config import Settings
from millstream.http.hosts import is_loopback
from millstream.http.lane import load_lane
from millstream.server.features.tools import Tool

EXAMPLES: dict[str, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}, "null": None}
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - shown, not bound
NO_AUTH = (
    "Anyone who reaches this address can call every tool: there is no authentication. "
    "Bind to 127.0.0.1, or let only a proxy that authenticates reach it."
)


class Facts(Struct, frozen=True, kw_only=True):
    """What there is to say about a server that listens."""

    name: str
    version: str
    url: str
    sse_url: str
    pages: list[str]
    """What to open in a browser."""
    counts: dict[str, int]
    protections: list[str]
    curl: str
    warning: str
    workers: list[int] = []
    """Process ids, where several serve."""


def facts(definition: Definition, *, host: str, port: int) -> Facts:
    """Collect them for a server that listens on an address."""
    shown = EVERY_ADDRESS.get(host, host)
    origin = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    registry, settings = definition.registry, definition.settings
    kinds = ("tools", "resources", "templates", "prompts")
    return Facts(
        name=definition.name,
        version=definition.version,
        url=origin + settings.path,
        sse_url=origin + "/sse" if settings.sessions else "",
        pages=[f"{origin}/{page}" for page in pages_of(definition.parts, local=is_loopback(host))],
        counts={kind: len(getattr(registry, kind)) for kind in kinds},
        protections=protections(settings, guarded=load_lane().protocol is not None),
        curl=curl(origin + settings.path, registry.tools),
        warning="" if is_loopback(host) else NO_AUTH,
    )


def pages_of(parts: frozenset[str], *, local: bool) -> list[str]:
    """The pages that answer; all but the documentation do so only on a server that is bound to a loopback address."""
    if "web" in parts and local:
        return ["dashboard", "chat", "inspect", "docs"]
    return ["docs"] if "rest" in parts else []


def protections(settings: Settings, *, guarded: bool) -> list[str]:
    """The limits that hold for every peer: as the settings have them, and only the guard's where there is one."""
    names = [("Host", "*" not in settings.allowed_hosts), ("Origin", "*" not in settings.allowed_origins)]
    checked = " and ".join(name for name, on in names if on)
    return [
        *([f"{checked} checked"] if checked else []),
        f"bodies ≤ {settings.max_body / 1024 / 1024:g} MiB",
        *([f"headers ≤ {settings.header_timeout:g} s"] if guarded else []),
        *(["sealed sessions"] if settings.sessions else ["no sessions"]),
    ]


def curl(url: str, tools: Mapping[str, Tool]) -> str:
    """A command that calls the first tool with the arguments it needs; lists the tools when there are none."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    if tools:
        name, tool = next(iter(tools.items()))
        params = {"name": name, "arguments": example(tool.describe()["inputSchema"])}
        message |= {"method": "tools/call", "params": params}
    body = shlex.quote(msgspec.json.encode(message).decode())
    return f"curl -s {url} -H content-type:application/json -d {body}"


def example(schema: dict[str, Any]) -> Any:
    """A small value that a schema takes: the required properties of an object, an allowed value of the rest."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return example(schema[key][0])
    kinds: str | list[str] = schema.get("type", "string")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example(properties.get(name, {})) for name in schema.get("required", [])}
    if kind in ("integer", "number"):
        return schema.get("minimum", EXAMPLES[kind])
    return EXAMPLES.get(kind, "hello")
