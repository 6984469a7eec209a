"""The OpenAPI 3.1 document of a server's tools. Each tool is `POST /tools/{name}` with its arguments as the body.

OpenAPI 3.1 uses JSON Schema 2020-12, so the schemas for MCP clients are included unchanged, except that references
inside them are rebased. A pure function: tools in, bytes out.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from msgspec import UNSET

from millstream._http.message import (
    BUSY,
    INTERNAL,
    INVALID_ARGUMENTS,
    MALFORMED,
    NEEDS_ANSWERS,
    PROBLEM_TYPE,
    TOOL_ERROR,
    WRONG_TYPE,
    ProblemKind,
)
from millstream._protocol.json_schema import rebase_references
from millstream._protocol.jsonrpc import encode
from millstream._server.features.tools import Tool, title_of
from millstream._transports.rest.examples import example_of

Json = dict[str, Any]
TOOLS_PATH = "/tools/"
_CONTENT: Json = {
    "type": "object",
    "description": "Content blocks of a tool whose result has no structured value.",
    "properties": {"content": {"type": "array", "items": {"type": "object", "required": ["type"]}}},
    "required": ["content"],
}
_PROBLEM: Json = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "incident": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}


def document(
    tools: Iterable[Tool],
    info: Mapping[str, Any],
    *,
    instructions: str = "",
    root_path: str = "",
    mcp: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the document as JSON.

    Args:
        tools: The tools, in display order.
        info: The server's name, version, and description.
        instructions: The description, if `info` has none.
        root_path: The path at which the server is mounted.
    """
    schemas: Json = {"Content": _CONTENT, "Problem": _PROBLEM}
    paths = {f"{TOOLS_PATH}{quote(tool.name)}": {"post": _operation(tool, schemas)} for tool in tools}
    about: Json = {"title": info.get("title") or info["name"], "version": info["version"]}
    description = info.get("description") or instructions
    if description:
        about["description"] = description
    made: Json = {"openapi": "3.1.0", "info": about}
    if root_path:
        made["servers"] = [{"url": root_path}]
    if mcp is not None:
        made["x-mcp"] = mcp
    return encode({**made, "paths": paths, "components": {"schemas": schemas, "responses": _responses()}})


def _operation(tool: Tool, schemas: Json) -> Json:
    described = tool.describe()
    name: str = described["name"]
    arguments: Json = described["inputSchema"]
    result: Json = described.get("outputSchema", {})
    description: str = described.get("description", "")
    content: Json = {"schema": _add_component(f"{name}.arguments", arguments, schemas)}
    # A schema of another server can have any limits.
    with contextlib.suppress(ArithmeticError, TypeError, ValueError):
        if (example := example_of(arguments)) is not UNSET:
            content["example"] = example
    body: Json = {"required": bool(arguments.get("required")), "content": {"application/json": content}}
    title: str = described.get("title", "")
    if title == title_of(name):  # the docstring's first line is more informative
        title = ""
    return {
        **({"tags": sorted(tool.tags)} if tool.tags else {}),
        "operationId": name,
        "summary": title or description.partition("\n")[0] or name,
        "description": description,
        "requestBody": body,
        "responses": {
            "200": {
                "description": "The structured result of the tool" if result else "The result of the tool",
                "content": {"application/json": {"schema": _add_component(f"{name}.result", result, schemas)}},
            },
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in _BY_STATUS},
        },
    }


def _add_component(name: str, schema: Json, schemas: Json) -> Json:
    """Add a schema to the components and return a reference to it."""
    if not schema:
        return {
            "description": "A structured value if the tool returned one, else its content blocks.",
            "anyOf": [{"$ref": "#/components/schemas/Content"}, {}],
        }
    key = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    while key in schemas:
        key += "_"
    place = f"#/components/schemas/{key}"
    schemas[key] = rebase_references(schema, place)
    return {"$ref": place}


def _by_status(kinds: Iterable[ProblemKind]) -> dict[int, list[ProblemKind]]:
    grouped: dict[int, list[ProblemKind]] = {}
    for kind in kinds:
        grouped.setdefault(kind.status, []).append(kind)
    return grouped


_BY_STATUS = _by_status((MALFORMED, TOOL_ERROR, NEEDS_ANSWERS, WRONG_TYPE, INVALID_ARGUMENTS, INTERNAL, BUSY))
_CONTENT_TYPE = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _responses() -> Json:
    made: Json = {}
    for status, kinds in _BY_STATUS.items():
        text = " ".join(kind.meaning for kind in kinds)
        made[str(status)] = {"description": text, "content": _CONTENT_TYPE}
        if status == BUSY.status:
            made[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return made
