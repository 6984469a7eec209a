"""Parameters of a function as typed arguments: annotations in msgspec's terms, a struct, and its JSON Schema.

Everything that can be wrong with a parameter is found here, when the function is registered, and the message names
the parameter and what works.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from millstream._protocol.json_schema import (
    Schema,
    is_array,
    is_object,
    object_schema,
    shown,
    without_modules,
    without_null,
)
from millstream._server.functions.callables import Refused
from millstream._server.functions.choices import choice_of
from millstream._server.functions.fields import CONSTRAINTS, HEADER_KEYWORD, as_written
from millstream._server.functions.pydantic_types import (
    COLLECTIONS,
    adapted,
    as_meta,
    available,
    dec_hook,
    enc_hook,
    factory_of,
    needs_pydantic,
    schema_hook,
    uses_pydantic,
    wire_name,
)
from millstream._server.functions.stand_ins import unaliased
from millstream._server.functions.unions import union_of

Kind = Literal["tool", "resource", "prompt"]

WHAT_WORKS = (
    "use builtins, dataclasses, TypedDict, msgspec Structs, enums, Literal, Path, unions of these or pydantic models"
)
MORE_WORKS = " (with pydantic, pip install 'millstream[pydantic]', further types work)"
PLAIN = (str, int, float, bool, bytes, type(None))
"""Defaults that cannot change; others are copied for each call."""
TEXTS = ("title", "description", "examples", "extra_json_schema", "extra")
_EVALUATING = {
    *("patternProperties", "additionalProperties", "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then"),
    *("else", "dependentSchemas"),
}
_CLOSING = {"additionalProperties": {"patternProperties"}, "unevaluatedProperties": _EVALUATING}
"""Keywords that leave no property but the listed ones when they're false, unless one of others is beside them."""
_MANY = ("items", "additionalProperties", "$defs")
TEXT_TYPES = frozenset(("string", "integer", "number", "boolean", "null"))


class Argument(Struct, frozen=True):
    """One parameter as msgspec understands it."""

    name: str
    wire: str
    """What clients call it."""
    annotation: Any
    default: Any
    """`NODEFAULT` when the argument is required."""
    factory: Callable[[], Any] | None = None
    """Makes the default of each call."""


def argument_of(
    parameter: inspect.Parameter, hints: dict[str, Any], descriptions: dict[str, str], kind: Kind, name: str
) -> Argument:
    """Read one parameter.

    Raises:
        TypeError: for one that clients could not fill in.
    """
    where = f"{name}: parameter {parameter.name!r}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise TypeError(f"{where} takes any number of arguments: {_named_how(parameter)}")
    hint = hints.get(parameter.name, Any if kind == "tool" else str)
    if isinstance(hint, str):
        raise TypeError(f"{where}: the annotation {hint!r} cannot be resolved; import it where {name} is defined")
    given = NODEFAULT if parameter.default is parameter.empty else parameter.default
    if _metadata(given)[0]:
        hint, given = Annotated[hint, given], NODEFAULT
    description = descriptions.get(parameter.name)
    try:
        said = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        wire = wire_name(said) or parameter.name
        factory = factory_of(said) if given is NODEFAULT else None
        annotation, default = _readable(hint, given, description)
        _check_readable(annotation)
    except Refused as error:
        raise Refused(f"{where}: {error}") from error
    except TypeError as error:
        works = WHAT_WORKS if available() else WHAT_WORKS + MORE_WORKS
        raise TypeError(f"{where}: {without_modules(str(error)).partition(' - type')[0]}; {works}") from error
    except RecursionError:
        raise TypeError(f"{where}: the alias {shown(hint)} refers to itself; use a dataclass that does") from None
    _check_default(default, annotation, where)
    return Argument(parameter.name, wire, annotation, default, factory)


def _named_how(parameter: inspect.Parameter) -> str:
    if parameter.name in ("args", "kwargs", "kw"):
        return (
            "name each one, so that clients know what to send. If a decorator made this function, write "
            "@functools.wraps(function) in the decorator"
        )
    return "name each one, so that clients know what to send"


def _check_default(default: Any, annotation: Any, where: str) -> None:
    """Make sure that clients could send the default that they see.

    Validators of pydantic don't see it, since pydantic spares defaults, too.

    Raises:
        TypeError: they could not.
    """
    if default is NODEFAULT or default is None or uses_pydantic(annotation):
        return
    try:
        value = msgspec.to_builtins(default, enc_hook=enc_hook)
    except TypeError:
        return  # a marker object of the function's own
    try:
        msgspec.convert(value, annotation, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        raise TypeError(f"{where}: its default {default!r} doesn't fit its type: {error}") from error


def _readable(hint: Any, given: Any, description: str | None) -> tuple[Any, Any]:
    """An annotation in msgspec's terms, or a class that stands for it; and the default, given or named by it."""
    annotation: Any = None
    needs = needs_pydantic(hint)
    if needs:
        metas, default = _said(hint)  # what pydantic knows need not have any words of msgspec
    else:
        annotation, metas, default = _plain(hint)
        needs = not _is_readable(_annotated(annotation, metas) if _of_decimals(annotation, metas) else annotation)
    if needs:
        annotation = adapted(hint)
        description = next((meta.description for meta in metas if meta.description), description)
        metas = []
        if "description" in annotation.schema:
            description = None
    if description and not any(meta.description for meta in metas):
        metas.append(Meta(description=description))
    default = default if given is NODEFAULT else given
    return _annotated(annotation | None if default is None else annotation, metas), default


def _is_readable(annotation: Any) -> bool:
    """Whether msgspec knows a type; when pydantic could be asked instead.

    Raises:
        TypeError: nobody else could be asked.
    """
    try:
        _check_readable(annotation)
    except TypeError:
        if not available():
            raise
        return False
    return True


def _check_readable(annotation: Any) -> None:
    """Raises: TypeError: neither msgspec nor a hook knows the type."""
    if any(annotation is plain for plain in PLAIN):
        return  # msgspec knows what most parameters are, and asking it takes a struct and a schema
    object_schema(msgspec.defstruct("_", [("value", annotation)]), hook=schema_hook)
    msgspec.json.Decoder(annotation, dec_hook=dec_hook)


def _metadata(item: Any) -> tuple[list[Meta], Any]:
    """What one element of ``Annotated``, or a default, says about a value."""
    if isinstance(item, Meta):
        return [item], (item.extra or {}).get("default", NODEFAULT)
    return as_meta(item)


def _plain(annotation: Any) -> tuple[Any, list[Meta], Any]:
    """Take the outermost ``Annotated`` apart, and rewrite everything inside to what msgspec understands."""
    annotation = unaliased(annotation)
    if get_origin(annotation) is not Annotated:
        return rewritten(annotation), [], NODEFAULT
    return rewritten(get_args(annotation)[0]), *_said(annotation)


def _said(annotation: Any) -> tuple[list[Meta], Any]:
    """What the outermost ``Annotated`` says, and the default that it names."""
    annotation = unaliased(annotation)
    metas: list[Meta] = []
    default: Any = NODEFAULT
    for item in get_args(annotation)[1:] if get_origin(annotation) is Annotated else ():
        if isinstance(item, str):
            metas.append(Meta(description=item))
            continue
        more, given = _metadata(item)
        metas += more
        default = default if given is NODEFAULT else given
    return metas, default


def rewritten(annotation: Any) -> Any:
    """The annotation with every ``Annotated`` inside it in msgspec's terms."""
    annotation = unaliased(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, metas, _ = _plain(annotation)
        return _annotated(inner, metas)
    if origin in (Union, UnionType):
        return union_of([rewritten(part) for part in get_args(annotation)])
    if origin in COLLECTIONS:
        return origin[*(rewritten(part) if part is not ... else part for part in get_args(annotation))]
    return Any if annotation is object else choice_of(annotation)


def _annotated(annotation: Any, metas: list[Meta]) -> Any:
    """Join a type and what is said about it. Constraints of a union go to the members that they make sense for."""
    if get_origin(annotation) in (Union, UnionType):
        for meta in metas:
            bounds = {key: value for key in CONSTRAINTS if (value := getattr(meta, key)) is not None}
            if bounds:
                annotation = _bounded(get_args(annotation), Meta(**bounds))
        metas = [Meta(**{key: getattr(meta, key) for key in TEXTS}) for meta in metas]
    return Annotated[annotation, *metas] if metas else annotation


def _of_decimals(annotation: Any, bounds: list[Meta]) -> bool:
    """Whether bounds of numbers are of decimal ones, too, which pydantic alone checks."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return Decimal in kinds and all(map(_is_of_numbers, bounds))


def _is_of_numbers(bounds: Meta) -> bool:
    return bounds.min_length is None and bounds.max_length is None and bounds.pattern is None


def _bounded(members: tuple[Any, ...], bounds: Meta) -> Any:
    result: list[Any] = []
    for member in members:
        try:
            msgspec.json.Decoder(Annotated[member, bounds], dec_hook=dec_hook)
        except TypeError:
            result.append(Annotated[member, bounds] if member is Decimal and _is_of_numbers(bounds) else member)
        else:
            result.append(Annotated[member, bounds])
    if result == list(members):
        raise Refused(f"{as_written(bounds)} fits none of the types {' | '.join(map(shown, members))}")
    union: Any = Union
    return union[tuple(result)]


def struct_of(name: str, arguments: list[Argument], *, forbid_unknown_fields: bool) -> type[Struct]:
    """The struct that the arguments of a call are decoded into, in the order of the signature."""
    members: list[Any] = []
    for argument in arguments:
        if argument.default is NODEFAULT:
            members.append((argument.name, argument.annotation, msgspec.field(name=argument.wire)))
        elif argument.factory is not None:
            field = msgspec.field(default_factory=argument.factory, name=argument.wire)
            members.append((argument.name, argument.annotation, field))
        elif isinstance(argument.default, PLAIN):
            field = msgspec.field(default=argument.default, name=argument.wire)
            members.append((argument.name, argument.annotation, field))
        else:
            factory = functools.partial(copy.deepcopy, argument.default)
            members.append(
                (argument.name, argument.annotation, msgspec.field(default_factory=factory, name=argument.wire))
            )
    # The struct lives for one call and nothing refers back to it.
    return msgspec.defstruct(name, members, kw_only=True, gc=False, forbid_unknown_fields=forbid_unknown_fields)


def schema_of_arguments(struct: type[Any], arguments: list[Argument]) -> Schema:
    """What clients read about the struct."""
    schema = object_schema(struct, hook=schema_hook)
    properties = schema["properties"]
    for name, node in properties.items():
        if HEADER_KEYWORD in node:
            # Headers carry no null, and clients drop tools that annotate anything but a plain type.
            properties[name] = without_null(node)
    for argument in arguments:
        each_its_own = argument.factory is not None
        if each_its_own and not _is_always_the_same(argument):
            continue
        if argument.default is not NODEFAULT and (each_its_own or not isinstance(argument.default, PLAIN)):
            try:
                properties[argument.wire]["default"] = msgspec.to_builtins(argument.default, enc_hook=enc_hook)
            except TypeError:
                continue  # a marker object of the function's own: the argument is optional, and that is all
    return schema


def _is_always_the_same(argument: Argument) -> bool:
    """Whether a factory makes what clients may read as the default: no time, and nothing that happens once."""
    default: Any = argument.default
    kinds = (*PLAIN, list, dict, set, frozenset, tuple)
    return isinstance(default, kinds) and argument.factory is not None and bool(argument.factory() == default)


def check_described(arguments: list[Argument], schema: Schema, name: str) -> None:
    """Make sure that a schema written by hand has what the function cannot do without.

    Raises:
        TypeError: it refuses such a property.
    """
    closing = [key for key, others in _CLOSING.items() if schema.get(key) is False and not others & schema.keys()]
    if not closing:
        return
    for argument in arguments:
        if argument.default is NODEFAULT and argument.wire not in schema.get("properties", {}):
            raise TypeError(
                f"{name}: input_schema allows no property {argument.wire!r}, since {closing[0]} is false, and the "
                'function can\'t be called without it. Add it to "properties", or give the parameter a default'
            )


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


def is_slow_to_build(schema: Any, *, many: bool = False) -> bool:
    """Whether a schema takes sets of texts, or many texts of a pattern: of these, each takes long.

    Args:
        schema: or a part of one.
        many: it's of something that there may be any number of.
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
