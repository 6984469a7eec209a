"""What other implementations send although the schema doesn't allow it, and what their SDKs accept.

A message may begin with a byte order mark, and have NaN, halves of characters, and its id as text. Null means absent
where a member may be absent. Keywords of a JSON Schema whose value has the wrong type are left out. A listed item that
still can't be decoded is left out, not its list.
"""

import re
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import fields, replace

from millstream._protocol.errors import PARSE_ERROR, ProtocolError
from millstream._protocol.json_schema import MAPS, SUBSCHEMA_LISTS, SUBSCHEMAS, is_array, is_object, members
from millstream._protocol.jsonrpc import MALFORMED, Envelope, Json, decoder, encode, exceeds_limits, read

T = TypeVar("T", bound=Struct)
_Kinds = tuple[type[Struct], ...]


def read_foreign(body: bytes) -> Envelope:
    """Decode one message of another implementation.

    Args:
        body: The bytes of the message.

    Raises:
        ProtocolError: PARSE_ERROR if they can't be repaired, INVALID_REQUEST if they aren't a JSON-RPC message.
    """
    try:
        envelope = read(body, allow_null=True)
    except ProtocolError as exc:
        # The repair takes many times as long and as much memory.
        if exc.code != PARSE_ERROR or len(body) > _MAX_REPAIRED or exceeds_limits(body):
            raise
        try:
            repaired = repair_json(body.decode("utf-8-sig"))
        except MALFORMED:
            raise exc from None
        envelope = read(repaired, allow_null=True)
    if envelope.is_answer and isinstance(envelope.id, str) and _NUMBER.fullmatch(envelope.id):
        return replace(envelope, id=int(envelope.id))
    return envelope


def repair_json(text: str) -> bytes:
    """Return JSON without NaN, infinities, and halves of characters: ``repair_json('{"a":NaN}')``.

    Args:
        text: JSON as other libraries write it.

    Raises:
        ValueError: It isn't JSON.
        RecursionError: It's nested too deeply.
    """
    import json  # noqa: PLC0415  few servers need it

    found = json.loads(text, parse_constant=lambda name: None)
    return _HALVES.sub("\ufffd", json.dumps(found, ensure_ascii=False, separators=(",", ":"))).encode()


_MAX_REPAIRED = 2 * 1024 * 1024
_NUMBER = re.compile("[0-9]{1,15}")
_HALVES = re.compile("[\ud800-\udfff]")
"""Surrogates without their other half. JavaScript makes them from shortened text."""


def foreign_decoder(kind: type[T], warn: Callable[[str], None] | None = None) -> Callable[[bytes], T]:
    """Return a decoder for a message of another implementation. It raises `MALFORMED`.

    Args:
        kind: Type of the message.
        warn: Called with the reason why an item of a list is left out. By default, none is.

    Example:
        ``read = foreign_decoder(ListToolsResult, logger.warning)``
    """
    decode = decoder(kind)

    def read(data: bytes) -> T:
        try:
            return decode(data)
        except msgspec.ValidationError:
            if exceeds_limits(data):
                raise
            found = drop_nulls(msgspec.json.decode(data), kind)
            if warn is not None and is_object(found):
                for name, (_, kinds) in _members((kind,)).items():
                    if kinds and is_array(found.get(name)):
                        found[name] = [each for each in found[name] if _is_usable(each, kinds[0], warn)]
            return decode(encode(found))

    return read


def _is_usable(item: Any, kind: type[Struct], warn: Callable[[str], None]) -> bool:
    try:
        msgspec.convert(item, kind)
    except msgspec.ValidationError as exc:
        warn(f"Left out an item of a server's list, {item!r:.100}: {exc}")
        return False
    return True


def present(members: Json) -> Json:
    """Return the members that aren't null: ``present({"title": None, "name": "add"})``

    Args:
        members: Members of an object.
    """
    return {name: value for name, value in members.items() if value is not None}


def drop_nulls(value: Any, *kinds: type[Struct]) -> Any:
    """Return a JSON value without the members that are null, where these types have optional members.

    Where they require an array, null becomes an empty one.

    Args:
        value: The decoded value.
        kinds: Types that it may have.

    Example:
        ``drop_nulls(description, ToolDescription)``
    """
    if is_array(value):
        return [drop_nulls(each, *kinds) for each in value]
    if not kinds or not is_object(value):
        return value
    known = _members(kinds)
    found: Json = {}
    for name, each in value.items():
        instead, below = known.get(name, _OTHER)
        if each is not None:
            found[name] = drop_nulls(each, *below)
        elif instead is not UNSET:
            found[name] = instead
    return found


_OTHER: tuple[Any, _Kinds] = None, ()


@cache
def _members(kinds: _Kinds) -> dict[str, tuple[Any, _Kinds]]:
    """Return the members of types: the meaning of null (UNSET if it has none), and the types of the value."""
    found: dict[str, tuple[Any, _Kinds]] = {}
    for each in (each for kind in kinds for each in fields(kind)):
        choices = get_args(each.type) if get_origin(each.type) in (Union, UnionType) else (each.type,)
        free = Any in choices or Raw in choices
        empty: list[Any] | None = [] if get_origin(each.type) is list else None
        found[each.encode_name] = None if free else empty if each.required else UNSET, _structs(each.type)
    return found


def _structs(annotation: Any) -> _Kinds:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return (annotation,)
    if get_origin(annotation) is dict:
        return ()
    return tuple(kind for part in get_args(annotation) for kind in _structs(part))


def repair_schema(schema: Any) -> Any:
    """Return a JSON Schema without keywords that no reader can use, such as ``"required": null``; None for no schema.

    Use it for schemas of other servers before you pass them on: ``repair_schema(tool.input_schema)``.

    ``true`` and ``false`` as the schema of a property become objects, because some clients accept only these.

    Args:
        schema: The schema as the other server sent it, of any type.
    """
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if not is_object(schema):
        return None
    repaired: Json = {}
    for key, value in schema.items():
        made: Any = _repair_keyword(key, value)
        if made is not UNSET:
            repaired[key] = made
    return repaired


def _repair_keyword(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in MAPS and is_object(value):
        return {name: members(repair_schema(each)) for name, each in value.items()}
    if key in SUBSCHEMA_LISTS or (key == "items" and is_array(value)):
        value = [made for each in value if (made := repair_schema(each)) is not None] if is_array(value) else None
    elif key in SUBSCHEMAS and not isinstance(value, bool):
        value = repair_schema(value)
    elif key == "type" and is_array(value):
        value = [each for each in value if isinstance(each, str)] or None
    elif key == "required" and is_array(value):
        value = [each for each in value if isinstance(each, str)]
    elif not _has_right_type(key, value):
        value = None
    return UNSET if value is None else value


_DATA = frozenset({"const", "default"})
"""Keywords whose value can be anything."""
_VALUE_TYPES: dict[str, Any] = {
    **dict.fromkeys(MAPS | SUBSCHEMAS, dict),
    **dict.fromkeys({"enum", "examples", "required"} | SUBSCHEMA_LISTS, list),
    **dict.fromkeys(
        ("$dynamicRef", "$ref", "contentEncoding", "description", "format", "pattern", "title", "type"), str
    ),
    **dict.fromkeys(("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"), int),
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"), (int, float)),
}
"""Keyword -> type of its value. A subschema can also be a boolean."""
_TYPES = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))


def fits_keyword(keyword: str, value: Any) -> bool:
    """Return whether a keyword of a schema can have a value: ``fits_keyword("type", "text")`` is False.

    Clients refuse schemas with other values. Keywords that JSON Schema doesn't define fit any value.

    Args:
        keyword: The keyword.
        value: Its value. Subschemas in it aren't checked.
    """
    if keyword == "required":
        return is_array(value) and all(isinstance(each, str) for each in value)
    if keyword == "type":
        return all(isinstance(each, str) and each in _TYPES for each in (value if is_array(value) else [value]))
    return _has_right_type(keyword, value)


def _has_right_type(keyword: str, value: Any) -> bool:
    if isinstance(value, bool) and keyword in _VALUE_TYPES:
        return keyword in SUBSCHEMAS
    return isinstance(value, _VALUE_TYPES.get(keyword, object))
