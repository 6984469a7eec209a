"""How pydantic reads and writes values: the JSON that our JSON Schemas describe, in classes that don't declare it, too.

It's loaded only for values of models, because pydantic is an extra.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from typing import Any, cast

import msgspec
import pydantic
import pydantic_core
from msgspec import Struct
from pydantic_core import PydanticCustomError, SchemaSerializer, SchemaValidator, core_schema

from millstream._protocol.json_schema import DECIMAL, Schema, is_object, members
from millstream._server.functions.problems import find_problems

_KEPT_CODECS = 512


class Codec(Struct, frozen=True, eq=False):
    """Validates and encodes a type."""

    validator: SchemaValidator
    serializer: SchemaSerializer


def codec_of(kind: Any) -> Codec:
    """Return the codec of a type adapter or model.

    pydantic reads bytes as text unless the configuration of each single class says otherwise.
    """
    if isinstance(kind, pydantic.TypeAdapter):
        core, usual = kind.core_schema, Codec(kind.validator, kind.serializer)  # type: ignore[arg-type]  # or a plugin's
    else:
        core, usual = kind.__pydantic_core_schema__, Codec(kind.__pydantic_validator__, kind.__pydantic_serializer__)
    changed = _with_json_forms(core)
    if changed == core:
        return usual
    # Otherwise, pydantic would use the validators that the classes have.
    return Codec(SchemaValidator(changed, None, False), SchemaSerializer(changed, None, False))


def reader_of(model: type[pydantic.BaseModel]) -> Callable[[bytes], Any]:
    """Return a function that makes a model from JSON."""
    core = model.__pydantic_core_schema__
    changed = _with_json_forms(core, tables=True)
    usual = changed == core
    return (model.__pydantic_validator__ if usual else SchemaValidator(changed, None, False)).validate_json


def _checked_table(node: dict[str, Any]) -> Any:
    """Return a core schema that validates the members of a table before SQLModel's own code, which doesn't, gets them.

    Another class holds the members, so that the configuration of the table applies.
    """
    kind = node["cls"]

    def make(checked: Any) -> Any:
        return kind(**{name: checked.__dict__[name] for name in checked.__pydantic_fields_set__})

    ref = node.pop("ref", None)
    inner = cast("core_schema.CoreSchema", {**node, "cls": pydantic.BaseModel, "custom_init": False})
    return core_schema.chain_schema([inner, core_schema.no_info_plain_validator_function(make)], ref=ref)


@lru_cache(_KEPT_CODECS)
def _codec_of_class(kind: Any) -> Codec:
    return codec_of(kind)


def jsonable(model: object) -> Any:
    """Return a model as JSON values that match its output schema: ``jsonable(Book(title="Momo"))``."""
    kind: Any = type(model)
    return _codec_of_class(kind).serializer.to_python(model, mode="json", by_alias=True)


def _with_json_forms(node: Any, *, chosen: bool = False, tables: bool = False) -> Any:
    """Return a core schema that reads and writes the JSON that the JSON schema describes.

    If `tables` is true, SQLModel tables are validated.
    """
    if is_object(node) and "config" in node:
        chosen = chooses_encoding(node["config"])
    change = partial(_with_json_forms, chosen=chosen, tables=tables)
    if isinstance(node, list | tuple):
        parts = map(change, cast("Sequence[Any]", node))
        return list(parts) if isinstance(node, list) else tuple(parts)
    if not is_object(node):
        return node
    if (made := _json_form(node, chosen=chosen)) is not None:
        return made
    function = getattr(members(node.get("function")).get("function"), "__self__", None)
    if isinstance(function, pydantic.EncodedBytes):
        return node
    changed = dict(node)
    for key, value in node.items():
        if key in _MAPS and is_object(value):
            changed[key] = {name: change(each) for name, each in value.items()}
        elif key not in NO_SCHEMAS:
            changed[key] = change(value)
    is_table = tables and node.get("type") == "model" and node["cls"].model_config.get("table")
    return _checked_table(changed) if is_table else changed


def _json_form(node: dict[str, Any], *, chosen: bool) -> Any:
    """Return another core schema for bytes, decimal numbers, and members of an enum, or None for everything else.

    Bytes are base64, except where a class has chosen another encoding. A member is the JSON of its value.
    """
    usual = cast("core_schema.CoreSchema", node)
    if node.get("type") == "bytes" and not chosen:
        encoded = cast("core_schema.CoreSchema", {**node, "serialization": _TO_BASE64})
        return {
            "type": "json-or-python",
            "json_schema": core_schema.chain_schema([_FROM_BASE64, encoded]),
            "python_schema": node,
            "serialization": _TO_BASE64,
        }
    if node.get("type") == "decimal" and not node.get("allow_inf_nan"):
        return core_schema.no_info_before_validator_function(_read_decimal, usual)
    if node.get("type") == "enum" and not all(isinstance(each.value, _JSON_VALUES) for each in node["members"]):
        return core_schema.no_info_before_validator_function(member_of(node["members"]), usual)
    return None


_JSON_VALUES = (str, int, float, type(None))
_MAPS = frozenset(("fields", "choices"))
"""Members of a core schema that hold schemas by names."""
NO_SCHEMAS = frozenset(("cls", "config", "default", "expected", "function", "metadata", "serialization"))


def chooses_encoding(config: Mapping[str, Any]) -> bool:
    """Return whether the configuration of a class says how its bytes are written."""
    return "val_json_bytes" in config or "ser_json_bytes" in config


def _read_base64(value: Any) -> bytes:
    try:
        return msgspec.convert(value, bytes)
    except msgspec.ValidationError:
        raise PydanticCustomError("base64", "must be base64-encoded") from None


_FROM_BASE64 = core_schema.no_info_plain_validator_function(_read_base64)
_TO_BASE64 = core_schema.plain_serializer_function_ser_schema(
    lambda value: b64encode(value).decode(), return_schema=core_schema.str_schema(), when_used="json"
)


def _read_decimal(value: Any) -> Any:
    """Return a decimal number from text or a number. `Decimal` accepts more text than JSON parsers do."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return value
    if find_problems(DECIMAL_SCHEMA, value):
        raise PydanticCustomError("decimal", "must be a decimal number as text, such as 1.50")
    return Decimal(str(value))


DECIMAL_SCHEMA: Schema = {"type": "string", "pattern": DECIMAL}


def member_of(choices: Sequence[Any]) -> Callable[[Any], Any]:
    """Return a function that finds an enum member for a JSON value. pydantic accepts only the member, or its value."""
    found = [
        (each, pydantic_core.to_jsonable_python(each.value, serialize_unknown=True))
        for each in choices
        if isinstance(each, Enum)
    ]
    return lambda value: next((each for each, written in found if written == value), value)
