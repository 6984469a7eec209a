"""Example values for JSON Schemas, for the OpenAPI document.

Supports the schemas of function signatures. For anything that can't be guaranteed, such as a pattern, an unknown format
or keyword, or a recursive type, the result is `UNSET`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET

from millstream._protocol.json_schema import Schema, is_array, is_object

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
"""Keywords that make a guess unsafe."""


def example_of(schema: Schema, depth: int = 0) -> Any:
    """Return a valid value, or `UNSET`. Objects have only their required members."""
    for key in ("examples", "enum"):
        if is_array(schema.get(key)) and schema[key]:
            return schema[key][0]
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if depth >= MAX_DEPTH or not schema.keys().isdisjoint(HARD):
        return UNSET
    for alternative in schema.get("anyOf") or schema.get("oneOf") or ():
        found = example_of(alternative, depth + 1)
        if found is not UNSET:
            return found
    kind = schema.get("type")
    make = _MAKERS.get(kind[0] if is_array(kind) else kind)
    return make(schema, depth) if make is not None else UNSET


def _object(schema: Schema, depth: int) -> Any:
    properties = schema.get("properties", {})
    made: dict[str, Any] = {}
    for name in schema.get("required", []):
        part = properties.get(name)
        value = example_of(part, depth + 1) if is_object(part) else UNSET
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
    values = [example_of(part, depth + 1) if is_object(part) else UNSET for part in parts]
    return UNSET if UNSET in values or len(values) < schema.get("minItems", 0) else values


def _string(schema: Schema, depth: int) -> Any:
    if "format" in schema:
        return FORMATS.get(schema["format"], UNSET)
    shortest = schema.get("minLength", 0)
    if shortest > MAX_LENGTH or "contentEncoding" in schema:
        return UNSET
    return "text".ljust(shortest, "t")[: schema.get("maxLength", MAX_LENGTH)]


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
