"""Parameters of a function as typed arguments: annotations in msgspec's terms, a struct, and its JSON Schema.

Everything that can be wrong with a parameter is found here, when the function is registered, and the message names
the parameter and what works.
"""

import copy
import functools
import inspect
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from millstream.protocol.json_schema import Schema, object_schema, without_null
from millstream.server.functions.fields import HEADER_KEYWORD
from millstream.server.functions.pydantic_types import as_meta, dec_hook, enc_hook, schema_hook

Kind = Literal["tool", "resource", "prompt"]

WHAT_WORKS = "use builtins, dataclasses, TypedDict, msgspec Structs, enums, Literal, unions of these or pydantic models"
PLAIN = (str, int, float, bool, bytes, type(None))
"""Defaults that cannot change; others are copied for each call."""
COLLECTIONS: tuple[Any, ...] = (list, set, frozenset, tuple, dict)
CONSTRAINTS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")
TEXTS = ("title", "description", "examples", "extra_json_schema", "extra")
TEXT_TYPES = frozenset(("string", "integer", "number", "boolean", "null"))


class Argument(Struct, frozen=True):
    """One parameter as msgspec understands it."""

    name: str
    annotation: Any
    default: Any
    """`NODEFAULT` when the argument is required."""


def argument_of(
    parameter: inspect.Parameter, hints: dict[str, Any], descriptions: dict[str, str], kind: Kind, name: str
) -> Argument:
    """Read one parameter.

    Raises:
        TypeError: for one that clients could not fill in.
    """
    where = f"{name}: parameter {parameter.name!r}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise TypeError(f"{where} takes any number of arguments: name each one, so that clients know what to send")
    hint = hints.get(parameter.name, Any if kind == "tool" else str)
    if isinstance(hint, str):
        raise TypeError(f"{where}: the annotation {hint!r} cannot be resolved; import it where {name} is defined")
    annotation, metas, default = _plain(hint)
    if parameter.default is not parameter.empty:
        more, default = _metadata(parameter.default)
        metas += more
        default = default if more else parameter.default
    if not any(meta.description for meta in metas) and parameter.name in descriptions:
        metas.append(Meta(description=descriptions[parameter.name]))
    if default is None:
        annotation = annotation | None
    try:
        annotation = _annotated(annotation, metas)
        object_schema(msgspec.defstruct("_", [("value", annotation)]), hook=schema_hook)
        msgspec.json.Decoder(annotation, dec_hook=dec_hook)
    except TypeError as error:
        raise TypeError(f"{where}: {error}; {WHAT_WORKS}") from error
    return Argument(parameter.name, annotation, default)


def _metadata(item: Any) -> tuple[list[Meta], Any]:
    """What one element of ``Annotated``, or a default, says about a value."""
    if isinstance(item, Meta):
        return [item], (item.extra or {}).get("default", NODEFAULT)
    return as_meta(item)


def _plain(annotation: Any) -> tuple[Any, list[Meta], Any]:
    """Take the outermost ``Annotated`` apart, and rewrite everything inside to what msgspec understands."""
    if get_origin(annotation) is not Annotated:
        return rewritten(annotation), [], NODEFAULT
    inner, *items = get_args(annotation)
    metas: list[Meta] = []
    default: Any = NODEFAULT
    for item in items:
        if isinstance(item, str):
            metas.append(Meta(description=item))
            continue
        more, given = _metadata(item)
        metas += more
        default = default if given is NODEFAULT else given
    return rewritten(inner), metas, default


def rewritten(annotation: Any) -> Any:
    """The annotation with every ``Annotated`` inside it in msgspec's terms."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, metas, _ = _plain(annotation)
        return _annotated(inner, metas)
    if origin in (Union, UnionType):
        return Union[*(rewritten(part) for part in get_args(annotation))]
    if origin in COLLECTIONS:
        return origin[*(rewritten(part) if part is not ... else part for part in get_args(annotation))]
    return annotation


def _annotated(annotation: Any, metas: list[Meta]) -> Any:
    """Join a type and what is said about it. Constraints of a union go to the members that they make sense for."""
    if get_origin(annotation) in (Union, UnionType):
        for meta in metas:
            bounds = {key: value for key in CONSTRAINTS if (value := getattr(meta, key)) is not None}
            if bounds:
                annotation = _bounded(get_args(annotation), Meta(**bounds))
        metas = [Meta(**{key: getattr(meta, key) for key in TEXTS}) for meta in metas]
    return Annotated[annotation, *metas] if metas else annotation


def _bounded(members: tuple[Any, ...], bounds: Meta) -> Any:
    result: list[Any] = []
    for member in members:
        try:
            msgspec.json.Decoder(Annotated[member, bounds], dec_hook=dec_hook)
        except TypeError:
            result.append(member)
        else:
            result.append(Annotated[member, bounds])
    if result == list(members):
        raise TypeError(f"{bounds} fits none of the types")
    union: Any = Union
    return union[tuple(result)]


def struct_of(name: str, arguments: list[Argument], *, forbid_unknown_fields: bool) -> type[Struct]:
    """The struct that the arguments of a call are decoded into, in the order of the signature."""
    members: list[Any] = []
    for argument in arguments:
        if argument.default is NODEFAULT:
            members.append((argument.name, argument.annotation))
        elif isinstance(argument.default, PLAIN):
            members.append((argument.name, argument.annotation, argument.default))
        else:
            factory = functools.partial(copy.deepcopy, argument.default)
            members.append((argument.name, argument.annotation, msgspec.field(default_factory=factory)))
    # The struct lives for one call and nothing refers back to it.
    return msgspec.defstruct(name, members, kw_only=True, gc=False, forbid_unknown_fields=forbid_unknown_fields)


def schema_of_arguments(struct: type[Any], arguments: list[Argument]) -> Schema:
    """What clients are told about the struct."""
    schema = object_schema(struct, hook=schema_hook)
    properties = schema["properties"]
    for name, node in properties.items():
        if HEADER_KEYWORD in node:
            # Headers carry no null, and clients drop tools that annotate anything but a plain type (digest §4.5).
            properties[name] = without_null(node)
    for argument in arguments:
        if argument.default is not NODEFAULT and not isinstance(argument.default, PLAIN):
            try:
                properties[argument.name]["default"] = msgspec.to_builtins(argument.default, enc_hook=enc_hook)
            except TypeError:
                continue  # a marker object of the function's own: the argument is optional, and that is all
    return schema


def check_text_arguments(schema: Schema, kind: Kind, name: str) -> None:
    """Arguments of prompts and resources are strings on the wire (and lists, from an exploded URI variable).

    Raises:
        TypeError: for a parameter that cannot be read from text.
    """
    allowed = TEXT_TYPES | {"array"} if kind == "resource" else TEXT_TYPES
    for parameter, node in schema.get("properties", {}).items():
        kinds = {part.get("type", "string" if "enum" in part else None) for part in node.get("anyOf", [node])}
        if node and not kinds <= allowed:
            raise TypeError(
                f"{name}: parameter {parameter!r} of a {kind} arrives as text: use str, int, float, bool, an enum, "
                "Literal or a date"
            )
