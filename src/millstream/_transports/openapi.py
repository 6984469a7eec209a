"""The OpenAPI 3.1 document of a server's tools. A tool is `POST /tools/{name}` with its arguments as the body.

OpenAPI 3.1 uses JSON Schema 2020-12, so the schemas for MCP clients are included unchanged, except that references
inside them are rebased. This is a pure function from tools to bytes.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
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
)
from millstream._protocol.json_schema import Schema, is_array, is_object, members, rebase_references
from millstream._protocol.jsonrpc import Json, encode
from millstream._protocol.metadata import ORIGIN_KEY
from millstream._server.calls.idempotency import MAX_KEY
from millstream._server.features.tools import Tool, title_of

MAX_DEPTH = 8
MAX_LENGTH = 200
FORMATS = {
    "date": "1999-12-31",
    "date-time": "1999-12-31T12:00:00Z",
    "time": "12:00:00Z",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "email": "ann@example.com",
    "uri": "https://example.com/",
}
HARD = ("$ref", "allOf", "contains", "dependentSchemas", "else", "if", "minProperties", "not", "pattern", "then")
"""Keywords for which a generated example may be invalid."""


def example_of(schema: Schema) -> Any:
    """Return a valid value for a JSON Schema, or `UNSET`. Generated objects have only their required members.

    It supports the schemas of function signatures. If validity can't be guaranteed, such as for a pattern, an unknown
    format or keyword, or a recursive type, the result is `UNSET`.
    """
    try:
        return _example(schema, 0)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # a schema from another server can have any limits
        return UNSET


def _example(schema: Any, depth: int) -> Any:
    if not is_object(schema):
        return UNSET
    for key in ("examples", "enum"):
        if is_array(schema.get(key)) and schema[key]:
            return schema[key][0]
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if depth >= MAX_DEPTH or not schema.keys().isdisjoint(HARD):
        return UNSET
    for alternative in schema.get("anyOf") or schema.get("oneOf") or ():
        found = _example(alternative, depth + 1)
        if found is not UNSET:
            return found
    kind = schema.get("type")
    make = _MAKERS.get(kind[0] if is_array(kind) else kind)
    return make(schema, depth) if make is not None else UNSET


def _object(schema: Schema, depth: int) -> Any:
    properties = schema.get("properties", {})
    made: Json = {}
    for name in schema.get("required", []):
        value = _example(properties.get(name), depth + 1)
        if value is UNSET:
            return UNSET
        made[name] = value
    return made


def _array(schema: Schema, depth: int) -> Any:
    items, prefix = schema.get("items"), schema.get("prefixItems", [])
    count = max(schema.get("minItems", 0), len(prefix), 1 if is_object(items) else 0)
    count = min(count, schema.get("maxItems", count))
    if count > MAX_DEPTH or (count > 1 and schema.get("uniqueItems")):
        return UNSET
    parts = [*prefix, *[items] * count][:count]
    values = [_example(part, depth + 1) for part in parts]
    return UNSET if UNSET in values or len(values) < schema.get("minItems", 0) else values


def _string(schema: Schema, depth: int) -> Any:
    if "format" in schema:
        return FORMATS.get(schema["format"], UNSET)
    shortest = schema.get("minLength", 0)
    if shortest > MAX_LENGTH or "contentEncoding" in schema:
        return UNSET
    return "hello".ljust(shortest, "o")[: schema.get("maxLength", MAX_LENGTH)]


def _number(schema: Schema, depth: int) -> Any:
    whole = schema.get("type") == "integer"
    step = schema.get("multipleOf", 1)
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    start = low if low > -math.inf else min(0.0, high)
    first = math.ceil(start / step) * step if start else 0
    for value in (step, first, first + step, (low + high) / 2):
        if value == schema.get("exclusiveMinimum") or value == schema.get("exclusiveMaximum"):
            continue
        if low <= value <= high and not (whole and value != int(value)):
            return int(value) if value == int(value) else value
    return UNSET


_MAKERS: Mapping[Any, Callable[[Schema, int], Any]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _number,
    "number": _number,
    "boolean": lambda schema, depth: True,
    "null": lambda schema, depth: None,
}


_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Calls with the same key run once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
}
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
    instructions: str,
    root_path: str,
    tools_path: str,
    mcp: Mapping[str, Any],
) -> bytes:
    """Return the document as JSON.

    Args:
        tools: The tools, in display order.
        info: The server's name, version, and description.
        instructions: The description, if `info` has none.
        root_path: The path at which the server is mounted.
        tools_path: Prefix of the tools' paths under it.
        mcp: The path of the MCP endpoint, and the published events.
    """
    schemas: Json = {"Content": _CONTENT, "Problem": _PROBLEM}
    paths = {f"{tools_path}{quote(tool.name)}": {"post": _operation(tool, schemas)} for tool in tools}
    about: Json = {"title": info.get("title") or info["name"], "version": info["version"]}
    description = info.get("description") or instructions
    if description:
        about["description"] = description
    made: Json = {"openapi": "3.1.0", "info": about}
    if root_path:
        made["servers"] = [{"url": root_path}]
    return encode({**made, "x-mcp": mcp, "paths": paths, "components": {"schemas": schemas, "responses": _RESPONSES}})


def _operation(tool: Tool, schemas: Json) -> Json:
    described = tool.describe()
    name: str = described["name"]
    arguments: Json = described["inputSchema"]
    result: Json = described.get("outputSchema", {})
    description: str = described.get("description", "")
    content: Json = {"schema": _add_component(f"{name}.arguments", arguments, schemas)}
    if (example := example_of(arguments)) is not UNSET:
        content["example"] = example
    body: Json = {"required": bool(arguments.get("required")), "content": {"application/json": content}}
    title: str = described.get("title", "")
    if title == title_of(name):  # the docstring's first line is more informative
        title = ""
    origin = members(described.get("_meta")).get(ORIGIN_KEY)
    tags: list[Any] = [
        *(each for each in (origin[:1] if is_array(origin) else ()) if isinstance(each, str)),
        *sorted(tool.tags),
    ]  # pages show the first as a heading
    return {
        **({"tags": tags} if tags else {}),
        "operationId": name,
        "summary": title or description.partition("\n")[0] or name,
        "description": description,
        **({"parameters": [_KEY]} if tool.idempotency else {}),
        "requestBody": body,
        "responses": {
            "200": {
                "description": "The structured result of the tool" if result else "The result of the tool",
                "content": {"application/json": {"schema": _add_component(f"{name}.result", result, schemas)}},
            },
            **{status: {"$ref": f"#/components/responses/{status}"} for status in _RESPONSES},
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


_RESPONSES: Json = {}
for _kind in (MALFORMED, TOOL_ERROR, NEEDS_ANSWERS, WRONG_TYPE, INVALID_ARGUMENTS, INTERNAL, BUSY):
    _response = _RESPONSES.setdefault(
        str(_kind.status),
        {"description": "", "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
    )
    _response["description"] = f"{_response['description']} {_kind.meaning}".lstrip()
_RESPONSES[str(BUSY.status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
