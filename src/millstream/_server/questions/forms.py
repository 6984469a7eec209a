"""Forms (``requestedSchema``), and conversion of the answers.

A form is one flat object of strings, numbers, booleans, and choices (MCP 2025-11-25, client/elicitation). Other types
are refused before the client is asked. Constraints that a form can't express (``pattern``, exclusive bounds) are
checked on the answer.
"""

from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError, shorten
from millstream._protocol.json_schema import Schema, drop_null, is_integral, is_object
from millstream._server.functions.engine import VALUE, Engine, engine_of_type
from millstream._server.functions.problems import Problem, explain, find_problems

TEXTS = ("type", "title", "description", "default")
KEYWORDS = {
    "string": (*TEXTS, "minLength", "maxLength", "format", "enum", "enumNames", "oneOf"),
    "integer": (*TEXTS, "minimum", "maximum"),
    "number": (*TEXTS, "minimum", "maximum"),
    "boolean": TEXTS,
    "array": (*TEXTS, "minItems", "maxItems", "items"),
}
"""The keywords of each kind of field, from PrimitiveSchemaDefinition of the specification."""
FORMATS = frozenset(("email", "uri", "date", "date-time"))
FIELDS = "a form can contain only strings, numbers, booleans, dates, choices of strings, and lists of such choices"


class Form(Struct, frozen=True, eq=False):
    """The form for a type, and the decoder of its answers."""

    schema: Schema
    engine: Engine
    plain: bool
    """Whether the form asks for a single value, such as a `str` or enum, in the field `VALUE`."""


@lru_cache(256)
def form_of(answer: Any) -> Form:
    """Return the form for a type: a dataclass, Struct, TypedDict, or pydantic model, or a single value.

    Raises:
        TypeError: The type isn't flat. The text names the field.
    """
    engine = engine_of_type(answer)
    schema: Schema = engine.input_schema["properties"][VALUE]
    plain = schema.get("type") != "object"
    schema = engine.input_schema if plain else schema
    properties = {name: _form_field(name, node) for name, node in schema.get("properties", {}).items()}
    return Form({"type": "object", "properties": properties, "required": schema.get("required", [])}, engine, plain)


def requested_schema(answer: Any) -> Schema:
    """Return the form for a type, or a schema unchanged. Raises the errors of `form_of`."""
    return answer if is_object(answer) else form_of(answer).schema


def _form_field(name: str, node: Schema) -> Schema:
    node = drop_null(node)
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    kind = node.get("type")
    problem = f"a form can't contain the field {name!r}: {FIELDS}"
    if not isinstance(kind, str) or kind not in KEYWORDS or ("enum" in node and kind != "string"):
        raise TypeError(problem)
    choices = _choices_of(node.get("items")) if kind == "array" else {}
    if choices is None:
        raise TypeError(problem)
    if node.get("format", "date") not in FORMATS or "contentEncoding" in node:
        raise TypeError(problem)
    field = {key: value for key, value in _inclusive(node).items() if key in KEYWORDS[kind]}
    if field.get("default", 0) is None:
        del field["default"]  # `x: str = None`: optional, and null isn't text
    if choices:
        field["items"] = choices
    elif "oneOf" in field:
        field.pop("enum", None)
    return field


def _choices_of(items: Any) -> Schema | None:
    """Return the items of a multi-selection: titled constants or an enum of strings. None for anything else."""
    if not is_object(items) or items.get("type") != "string" or "enum" not in items:
        return None
    titled = items.get("oneOf") or items.get("anyOf")
    return {"anyOf": titled} if titled else {"type": "string", "enum": items["enum"]}


def _inclusive(node: Schema) -> Schema:
    """Replace exclusive bounds of integers with inclusive ones."""
    if node["type"] != "integer":
        return node
    bounds: Schema = {}
    if "exclusiveMinimum" in node:
        bounds["minimum"] = node["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in node:
        bounds["maximum"] = node["exclusiveMaximum"] - 1
    return bounds | node


def project(schema: Schema, *, rich_enums: bool, defaults_all: bool) -> Schema:
    """Return a form for an older revision.

    Args:
        schema: A schema of `requested_schema`.
        rich_enums: Whether the revision has titled choices and multi-selection. Otherwise these become ``enum`` with
            ``enumNames``, and a single choice (which `parse_answer` reads as a list of one).
        defaults_all: Whether every field can have a default. Otherwise only booleans can.
    """
    if rich_enums and defaults_all:
        return schema
    properties = {
        name: _project_node(node, rich_enums=rich_enums, defaults_all=defaults_all)
        for name, node in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties}


def _project_node(node: Schema, *, rich_enums: bool, defaults_all: bool) -> Schema:
    field: Schema = dict(node)
    if not rich_enums:
        if field.get("type") == "array":
            texts: Schema = {key: field[key] for key in ("title", "description") if key in field}
            items: Schema = field.get("items", {})
            field = {"type": "string", **texts, **items}
        titled = _titled_choices(field)
        if titled:
            field = {key: value for key, value in field.items() if key not in ("oneOf", "anyOf")}
            field["enum"] = [choice["const"] for choice in titled]
            field["enumNames"] = [choice.get("title", choice["const"]) for choice in titled]
    if not defaults_all and field.get("type") != "boolean":
        field.pop("default", None)
    return field


def parse_answer(content: dict[str, Any], answer: Any) -> Any:
    """Return the answer as the type that was asked for, or unchanged for a schema.

    Raises:
        ProtocolError: The answer doesn't fit the form.
    """
    schema = requested_schema(answer)
    properties: dict[str, Schema] = schema.get("properties", {})
    content = {
        name: [value]
        if properties.get(name, {}).get("type") == "array" and isinstance(value, str)
        else is_integral(value)
        for name, value in content.items()
    }
    if isinstance(answer, dict):
        if problems := list(find_problems(schema, content)):
            raise _wrong_answer(problems, schema)
        return content
    form = form_of(answer)
    values = content if form.plain else {VALUE: content}
    try:
        return getattr(form.engine.convert(values), VALUE)
    except msgspec.ValidationError as error:
        problems = form.engine.problems(error, values)
        if not form.plain:
            problems = [each._replace(path=each.path[1:]) for each in problems]
        raise _wrong_answer(problems, schema) from error


def _wrong_answer(problems: list[Problem], schema: Schema) -> ProtocolError:
    why = shorten(explain(problems, schema))
    return ProtocolError(INVALID_PARAMS, f"The answer doesn't match the form: {why}")


def _titled_choices(node: Schema) -> list[Schema]:
    """Return choices with titles. Other alternatives of a handwritten form stay unchanged."""
    choices: list[Schema] = node.get("oneOf") or node.get("anyOf") or []
    return choices if all("const" in choice for choice in choices) else []
