"""Parameters that clients fill in, and the rules for their schemas in tools, resources, and prompts.

Problems of a parameter are found at registration, here or by the engine. The message names the parameter and what
works.
"""

import inspect
from typing import Annotated, Any, Literal

from msgspec import NODEFAULT, Meta, Struct

from millstream._protocol.json_schema import Schema, drop_modules, drop_null, is_array, is_object, type_text
from millstream._server.functions.annotations import (
    alias_in,
    default_in,
    described_in,
    is_pydantic_field,
    join_annotation,
    normalize,
    split_annotation,
)
from millstream._server.functions.dependencies import RegistrationError
from millstream._server.functions.description import HEADER_KEYWORD

Kind = Literal["tool", "resource", "prompt"]

WHAT_WORKS = (
    "use builtins, dataclasses, TypedDict, msgspec Structs, enums, Literal, Path, unions of these, or pydantic models"
)
_EVALUATING_KEYWORDS = {
    *("patternProperties", "additionalProperties", "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then"),
    *("else", "dependentSchemas"),
}
_CLOSING_KEYWORDS = {"additionalProperties": {"patternProperties"}, "unevaluatedProperties": _EVALUATING_KEYWORDS}
"""Keywords that, if false, exclude unlisted properties, unless one of the other keywords is present."""
_MANY = ("items", "additionalProperties", "$defs")
TEXT_TYPES = frozenset(("string", "integer", "number", "boolean", "null"))


class Parameter(Struct, frozen=True):
    """A parameter in the form that both engines read."""

    name: str
    wire: str
    """The name for clients."""
    annotation: Any
    """The result of `normalize`."""
    default: Any
    """The default, or `NODEFAULT` if the argument is required or ``pydantic.Field`` has the default."""


class ParameterError(TypeError):
    """A parameter that no engine supports. The text names it."""


def parameter_of(
    parameter: inspect.Parameter, hints: dict[str, Any], descriptions: dict[str, str], kind: Kind, name: str
) -> Parameter:
    """Return one parameter of a signature.

    Raises:
        TypeError: Clients couldn't fill in the parameter.
    """
    where = f"{name}: parameter {parameter.name!r}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise TypeError(f"{where} takes any number of arguments: {_named_how(parameter)}")
    hint = hints.get(parameter.name, Any if kind == "tool" else str)
    if isinstance(hint, str):
        raise TypeError(f"{where}: the annotation {hint!r} can't be resolved. Import it where {name} is defined")
    default = NODEFAULT if parameter.default is parameter.empty else parameter.default
    if isinstance(default, Meta) or is_pydantic_field(default):
        hint, default = Annotated[hint, default], NODEFAULT
    try:
        annotation, metadata = split_annotation(normalize(hint))
        wire = alias_in(metadata) or parameter.name
        default = default_in(metadata) if default is NODEFAULT else default
    except RegistrationError as error:
        raise RegistrationError(f"{where}: {error}") from error
    except TypeError as error:
        raise TypeError(f"{where}: {error}; {WHAT_WORKS}") from error
    except RecursionError:
        raise TypeError(
            f"{where}: the alias {type_text(hint)} refers to itself. Use a dataclass that refers to itself"
        ) from None
    if default is None:
        annotation = annotation | None
    description = descriptions.get(parameter.name)
    if description and not described_in(metadata):
        metadata = (*metadata, Meta(description=description))
    return Parameter(parameter.name, wire, join_annotation(annotation, metadata), default)


def _named_how(parameter: inspect.Parameter) -> str:
    if parameter.name in ("args", "kwargs", "kw"):
        return (
            "name each one, so clients know what to send. If a decorator made this function, use "
            "@functools.wraps(function) in the decorator"
        )
    return "name each one, so clients know what to send"


def unreadable(name: str, parameter: Parameter, error: Exception) -> ParameterError:
    """Return the error for a parameter that an engine doesn't support."""
    where = f"{name}: parameter {parameter.name!r}"
    return ParameterError(f"{where}: {drop_modules(str(error)).partition(' - type')[0]}; {WHAT_WORKS}")


def finish_schema(schema: Schema) -> Schema:
    """Complete the schema of arguments, in place. Parameters in headers can't be null, and clients drop tools that
    allow it.
    """
    properties = schema["properties"]
    for name, node in properties.items():
        if HEADER_KEYWORD in node:
            properties[name] = drop_null(node)
    return schema


def check_described(required: list[str], schema: Schema, name: str) -> None:
    """Check that a handwritten schema allows the arguments that a function requires.

    Args:
        required: Names of required arguments.
        schema: The handwritten schema.
        name: The function's name.

    Raises:
        TypeError: The schema excludes a required property.
    """
    closing = [
        key for key, others in _CLOSING_KEYWORDS.items() if schema.get(key) is False and not others & schema.keys()
    ]
    if not closing:
        return
    for wire in required:
        if wire not in schema.get("properties", {}):
            raise TypeError(
                f"{name}: input_schema doesn't allow the property {wire!r}, because {closing[0]} is false, but "
                'the function requires it. Add it to "properties", or give the parameter a default'
            )


def check_text_arguments(schema: Schema, kind: Kind, name: str) -> None:
    """Check the arguments of prompts and resources, which arrive as strings (or lists, for an exploded URI variable).

    Raises:
        TypeError: A parameter can't be read from text.
    """
    allowed = TEXT_TYPES | {"array"} if kind == "resource" else TEXT_TYPES
    for parameter, node in schema.get("properties", {}).items():
        kinds = {part.get("type", "string" if "enum" in part else None) for part in node.get("anyOf", [node])}
        if node and not kinds <= allowed:
            raise TypeError(
                f"{name}: parameter {parameter!r} of a {kind} arrives as text. Use str, int, float, bool, an "
                "enum, Literal, or a date"
            )


def is_slow_to_build(schema: Any, *, many: bool = False) -> bool:
    """Return whether a schema has values that are slow to build: sets of texts, or many texts with a pattern.

    Args:
        schema: The schema, or a part of one.
        many: Whether any number of values can have this schema.
    """
    if is_array(schema):
        return any(is_slow_to_build(part, many=many) for part in schema)
    if not is_object(schema):
        return False
    if schema.get("uniqueItems") is True and schema.get("items", {}).get("type") == "string":
        return True
    if many and isinstance(schema.get("pattern"), str):
        return True
    return any(is_slow_to_build(part, many=many or key in _MANY) for key, part in schema.items())
