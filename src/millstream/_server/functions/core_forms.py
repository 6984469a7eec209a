"""How pydantic reads and writes values: the JSON that our JSON Schemas describe, in classes that don't declare it, too.

It changes core schemas, which pydantic's validator and serializer read. pydantic itself isn't imported.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache, partial
from importlib import import_module
from pathlib import PurePath
from typing import Any, cast

import msgspec
from pydantic_core import PydanticCustomError, SchemaError, SchemaSerializer, SchemaValidator, core_schema

from millstream._protocol.json_schema import DECIMAL, INTEGER_KEY, Schema, is_object, members
from millstream._server.functions.parameters import VALIDATORS, choice_value, is_programs
from millstream._server.functions.patterns import pattern_error
from millstream._server.functions.problems import find_problems

_KEPT_SERIALIZERS = 512


def serializer_of(core: Any) -> SchemaSerializer:
    """Return the serializer of a core schema.

    pydantic writes bytes as text unless the configuration of each single class says otherwise.
    """
    # Otherwise, pydantic would use the serializers that the classes have.
    return SchemaSerializer(_with_json_forms(core), None, False)


def reader_of(core: Any) -> SchemaValidator:
    """Return a validator that reads JSON. Outside of models, plain types accept only what their schema describes.

    Raises:
        PatternError: Matching a pattern could take a very long time.
    """
    config = core_schema.CoreConfig(strict=True)
    return _compile(_with_json_forms(core, root=config), config)


def checker_of(core: Any) -> SchemaValidator:
    """Return a validator for results. It doesn't run the program's validators, because a result isn't an argument.

    Raises:
        PatternError: Matching a pattern could take a very long time.
    """
    return _compile(_without_functions(core))


def _compile(core: Any, config: Any = None) -> SchemaValidator:
    try:
        return SchemaValidator(core, config, False)
    except SchemaError as error:
        raise pattern_error(error) from error


def map_core(node: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a core schema, or of a list, in which `change` has replaced each direct part."""
    if isinstance(node, list | tuple):
        parts = map(change, cast("Sequence[Any]", node))
        return list(parts) if isinstance(node, list) else tuple(parts)
    if not is_object(node):
        return node
    return {
        key: {name: change(each) for name, each in value.items()}
        if key in _MAPS and is_object(value)
        else value
        if key in _NO_SCHEMAS
        else change(value)
        for key, value in node.items()
    }


def _without_functions(node: Any) -> Any:
    made = map_core(node, _without_functions)
    if not is_object(node):
        return made
    made = in_linear_time(made)
    kind: str = node.get("type", "")
    if kind == "str":
        made = {key: value for key, value in made.items() if key not in _TEXT_CHANGES}
    if kind in _SCALARS:
        return {**made, "strict": True}
    choices = _choices_in(node) if "missing" not in node else ()
    if any(isinstance(getattr(each, "value", each), int) for each in choices):  # pydantic would write true as 1
        return core_schema.no_info_plain_validator_function(choice_finder(choices))
    if kind == "dataclass" and not hasattr(node["cls"], "__pydantic_config__"):  # the program can set anything
        made["post_init"] = False
        made["revalidate_instances"] = "always" if is_whole(node["cls"]) else "never"
    if kind == "json" or (kind in VALIDATORS and is_programs(members(node["function"]).get("function"))):
        inner: Any = made.get("schema", {"type": "any"})
        return {**inner, "ref": node["ref"]} if "ref" in node else inner
    return made


def is_whole(kind: Any) -> bool:
    """Return whether instances of a dataclass have each value that ``__init__`` takes, and no others."""
    return [each.name for each in fields(kind) if each.init] == [*kind.__dataclass_fields__]


def pattern_text(pattern: "str | re.Pattern[str]") -> str:
    """Return a pattern, which can be compiled, as text with its flags."""
    if isinstance(pattern, str):
        return pattern
    flags = "".join(name for name in "imsx" if pattern.flags & re.RegexFlag[name.upper()])
    return f"(?{flags}){pattern.pattern}" if flags else pattern.pattern


def in_linear_time(node: dict[str, Any]) -> dict[str, Any]:
    """Return a core schema whose pattern isn't matched with Python, which can take very long."""
    if node.get("type") == "str" and "pattern" in node:
        return {**node, "pattern": pattern_text(node["pattern"]), "regex_engine": "rust-regex"}
    return node


_SCALARS = frozenset(("int", "float", "bool", "str"))
_TEXT_CHANGES = frozenset(("strip_whitespace", "to_lower", "to_upper"))


def _checked_table(node: dict[str, Any]) -> Any:
    """Return a core schema that validates the members of a table before SQLModel's own code, which doesn't, gets them.

    Another class holds the members, so that the configuration of the table applies.
    """
    kind = node["cls"]

    def make(checked: Any) -> Any:
        return kind(**{name: checked.__dict__[name] for name in checked.__pydantic_fields_set__})

    ref = node.pop("ref", None)
    inner = cast("core_schema.CoreSchema", {**node, "cls": import_module("pydantic").BaseModel, "custom_init": False})
    return core_schema.chain_schema([inner, core_schema.no_info_plain_validator_function(make)], ref=ref)


@lru_cache(_KEPT_SERIALIZERS)
def _serializer_of_class(kind: Any) -> SchemaSerializer:
    return serializer_of(kind.__pydantic_core_schema__)


def jsonable(model: object) -> Any:
    """Return a model as JSON values that match its output schema: ``jsonable(Book(title="Momo"))``."""
    kind: Any = type(model)
    return _serializer_of_class(kind).to_python(model, mode="json", by_alias=True)


def _with_json_forms(node: Any, *, chosen: bool = False, plain: bool = True, root: Any = None) -> Any:
    """Return a core schema that reads and writes the JSON that the JSON schema describes.

    Args:
        chosen: Whether the class around the node has chosen how bytes are written.
        plain: Whether no model is around the node. In a model, the model decides what it accepts.
        root: The configuration of plain types, to read arguments. Then SQLModel tables are validated.
    """
    change = partial(_with_json_forms, chosen=chosen, plain=plain, root=root)
    if not is_object(node):
        return map_core(node, change)
    if root is not None:
        node, plain = _enter(node, root, plain=plain)
    node = in_linear_time(node)
    if "config" in node:
        chosen = chooses_encoding(node["config"])
    change = partial(_with_json_forms, chosen=chosen, plain=plain, root=root)
    if (made := _json_form(node, chosen=chosen)) is not None:
        return made
    if root is not None and plain and (made := _exact_form(node, change)) is not None:
        return made
    if _is_encoded(node):
        return node
    changed = map_core(node, change)
    return changed if root is None else _read_form(changed)


def _is_encoded(node: dict[str, Any]) -> bool:
    """Return whether the program has chosen how bytes are encoded, with pydantic's `EncodedBytes`."""
    function: object = members(node.get("function")).get("function")
    return hasattr(getattr(function, "__self__", None), "encoder")


def _enter(node: dict[str, Any], root: Any, *, plain: bool) -> tuple[dict[str, Any], bool]:
    """Return a core schema, and whether its parts are outside of models."""
    kind, holder = node.get("type"), node.get("cls")
    if not plain or PYDANTICS in str(node.get("ref")):
        return node, False
    if kind in ("dataclass", "typed-dict") and not hasattr(
        holder, "__pydantic_config__"
    ):  # pydantic doesn't pass it on
        return {"config": root, **node}, True
    return node, kind not in ("model", "dataclass")


PYDANTICS = " of pydantic's "
"""Text in the names of pydantic's definitions. Those of plain classes outside of models are ours."""


def _read_form(node: dict[str, Any]) -> Any:
    """Return another core schema for a type that pydantic doesn't read, or read at once."""
    if node.get("type") == "generator":
        read = {key: value for key, value in node.items() if key in ("items_schema", "min_length", "max_length")}
        return _in_json(node, {"type": "list", **read})
    if node.get("type") != "model":
        return node
    return _checked_table(node) if node["cls"].model_config.get("table") else node


def _exact_form(node: dict[str, Any], change: Callable[[Any], Any]) -> Any:
    """Return another core schema for a type of which pydantic reads more JSON than our schema describes, or None."""
    kind: str = node["type"] if isinstance(node.get("type"), str) else ""
    if kind in _TEXTS:
        return _in_json(node, _behind(_TEXTS[kind], node))
    if kind == "float":
        return {**node, "allow_inf_nan": False}
    if choices := _choices_in(node):
        return _choice_form(node, choices)
    if kind == "dict" and (keys := node.get("keys_schema", {})).get("type") in _KEYS:
        values = change(node.get("values_schema", {"type": "any"}))
        return {**node, "keys_schema": _behind(_KEYS[keys["type"]], keys), "values_schema": values}
    if kind in ("tuple", "deque"):  # behind a validator, an array is a list
        return {**map_core(node, change), "strict": False}
    if kind in _SETS:
        items = {**node, "type": "list", "items_schema": change(node.get("items_schema", {"type": "any"}))}
        items.pop("ref", None)
        make = partial(_distinct, _SETS[kind])
        return _in_json(node, core_schema.no_info_after_validator_function(make, cast("core_schema.CoreSchema", items)))
    if kind == "lax-or-strict":
        return _lax_form(node, change)
    return _in_order(node, change) if kind == "union" else None


def _choices_in(node: dict[str, Any]) -> Sequence[Any]:
    """Return the values of a `Literal` or the members of an enum. A `Flag` has more values than members."""
    if node.get("type") == "enum":
        return () if issubclass(node["cls"], Flag) else node["members"]
    return node["expected"] if node.get("type") == "literal" else ()


_SETS: Mapping[str, Any] = {"set": set, "frozenset": frozenset}


def _distinct(kind: Any, items: list[Any]) -> Any:
    made = kind(items)
    if len(made) != len(items):
        raise PydanticCustomError("distinct", "must have no item twice")
    return made


def _lax_form(node: dict[str, Any], change: Callable[[Any], Any]) -> Any:
    strict = node["strict_schema"]
    if strict["type"] == "chain":  # a collection, whose items it reads twice
        return change(node["lax_schema"])
    if issubclass(members(strict.get("python_schema")).get("cls", object), PurePath):
        return core_schema.no_info_before_validator_function(_read_path, cast("core_schema.CoreSchema", node))
    return None


def _read_path(value: Any) -> Any:
    if isinstance(value, str) and (not value or "\0" in value):
        raise PydanticCustomError("path", "must be a path as text")
    return value


def _in_json(node: dict[str, Any], read: Any) -> Any:
    """Return a core schema that reads JSON in another way than Python values."""
    usual = {key: value for key, value in node.items() if key != "ref"}
    ref = {"ref": node["ref"]} if "ref" in node else {}
    return {"type": "json-or-python", "json_schema": read, "python_schema": usual, **ref}


def _behind(pattern: str, node: dict[str, Any]) -> Any:
    """Return a core schema that reads only text with a pattern."""
    text = core_schema.str_schema(strict=True, pattern=pattern)
    return core_schema.chain_schema([text, cast("core_schema.CoreSchema", {**node, "strict": False})])


def _in_order(node: dict[str, Any], change: Callable[[Any], Any]) -> Any:
    """Return a union in which text becomes the first alternative that fits, or None if it already does.

    pydantic prefers other classes to `str`.
    """
    written: Sequence[Any] = node["choices"]
    choices: list[Any] = [cast("Any", each)[0] if isinstance(each, tuple) else each for each in written]
    texts = [each for each in choices if _kind_of(each) in _READ_FROM_TEXT]
    if len(texts) < 2 or "str" not in map(_kind_of, texts):
        return None
    first = {"type": "union", "choices": [change(each) for each in texts], "mode": "left_to_right"}
    others = [change(each) for each in choices if each not in texts]
    return {**node, "choices": [first, *others]} if others else {**node, **first}


def _kind_of(node: Any) -> str:
    while node["type"] in ("function-before", "function-after", "function-wrap", "default"):
        node = node["schema"]
    return "lax-or-strict" if members(node.get("metadata")).get("reads_text") else str(node["type"])


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_HOUR = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?"
_HEX = "[0-9a-fA-F]"
_TEXTS = {
    "date": f"^{_DAY}$",
    "datetime": f"^{_DAY}[Tt ]{_HOUR}$",
    "time": f"^{_HOUR}$",
    "timedelta": (
        r"^[+-]?P(?:[0-9]+W)?(?:[0-9]+(?:\.[0-9]+)?D)?"
        r"(?:T(?:[0-9]+H)?(?:[0-9]+M)?(?:[0-9]+(?:\.[0-9]+)?S)?)?$"
    ),
    "uuid": f"^(?:{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}|{_HEX}{{32}})$",
}
"""Type in a core schema -> the text that JSON has for it."""
_KEYS = {"int": INTEGER_KEY, "float": r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"}
_READ_FROM_TEXT = frozenset(("str", "bytes", "url", "decimal", "fraction", "lax-or-strict", *_TEXTS))
"""Types in a core schema that are read from text. A path, for example, is `lax-or-strict`."""


def choice_finder(choices: Sequence[Any]) -> Callable[[Any], Any]:
    """Return a function that finds the choice for a JSON value. Unlike pydantic, it doesn't take true as 1."""
    by_value: dict[Any, Any] = {}
    others: list[tuple[Any, Any]] = []
    for each in choices:
        written = choice_value(each)
        if isinstance(written, list | dict):
            others.append((cast("Any", written), each))
        else:
            by_value.setdefault((isinstance(written, bool), written), each)

    def find(value: Any) -> Any:
        if isinstance(value, Enum) and value in choices:  # the key of a dict
            return value
        if isinstance(value, str | int | float | None):
            key = isinstance(value, bool), value
            found = [by_value[key]] if key in by_value else []
        else:  # a result can be anything
            found = [each for written, each in others if written == value]
        if not found:
            raise PydanticCustomError("choice", "must be one of the choices")
        return found[0]

    return find


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
        return _choice_form(node, node["members"])
    return None


def _choice_form(node: dict[str, Any], choices: Sequence[Any]) -> Any:
    return _in_json(node, core_schema.no_info_plain_validator_function(choice_finder(choices)))


_JSON_VALUES = (str, int, float, type(None))
_MAPS = frozenset(("fields", "choices"))
"""Members of a core schema that hold schemas by names."""
_NO_SCHEMAS = frozenset(("cls", "config", "default", "expected", "function", "metadata", "serialization"))


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
