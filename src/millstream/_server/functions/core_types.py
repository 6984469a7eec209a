"""How types are read and described: one walk writes the core schema for pydantic's validator, and the JSON Schema.

So clients see what's accepted, and a parameter doesn't depend on the others. A type of pydantic's is read by pydantic,
which is imported only for it, and a Struct or a class of attrs by msgspec.
"""

import datetime as dt
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, InitVar, fields, is_dataclass
from decimal import Decimal
from enum import Enum, Flag
from functools import cached_property, partial
from itertools import count
from math import inf
from pathlib import PurePath
from types import NoneType
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, cast, get_args, get_origin
from uuid import UUID

import msgspec
from msgspec import NODEFAULT, Meta, Raw, UnsetType

from millstream._protocol.json_schema import (
    DECIMAL,
    INTEGER_KEY,
    LOOSE,
    REF,
    Schema,
    drop_formats,
    has_no_number,
    inline_references,
    key_schema,
    type_text,
    walk,
)
from millstream._server.functions.dependencies import RegistrationError
from millstream._server.functions.description import CONSTRAINTS, constraint_text
from millstream._server.functions.msgspec_engine import (
    OutputError,
    check_readable,
    dec_hook,
    enc_hook,
    encode,
    find_fields,
)
from millstream._server.functions.parameters import (
    COLLECTIONS,
    UNIONS,
    ArgumentList,
    RecursiveAlias,
    choice_value,
    finish_schema,
    has_validators,
    hints_in,
    is_pydantic,
    is_pydantics,
    is_struct,
    is_tagged,
    normalize,
    parts_of,
    split_annotation,
    typed_dict_members,
    union_of,
)
from millstream._server.functions.patterns import search
from millstream._server.functions.problems import find_problems, problem_text, subject

Core = dict[str, Any]
"""A core schema, or a part of it."""
Names = Mapping[Any, Any]
"""Type variable of a generic class -> its type."""
_EMPTY_FACTORIES: frozenset[Any] = frozenset((list, dict, set, bytearray))


class TypeSchemas(NamedTuple):
    """A type as pydantic's validator reads it, and as clients see it."""

    core: Core
    schema: Schema


HIDDEN: Schema = {"not": {}}
"""The schema of a type that pydantic hides from clients."""
_SCALARS: Mapping[Any, tuple[str, Schema]] = {
    str: ("str", {"type": "string"}),
    int: ("int", {"type": "integer"}),
    float: ("float", {"type": "number"}),
    bool: ("bool", {"type": "boolean"}),
    None: ("none", {"type": "null"}),
    NoneType: ("none", {"type": "null"}),
    Any: ("any", {}),
    bytes: ("bytes", {"type": "string", "contentEncoding": "base64"}),
    Decimal: ("decimal", {"type": "string", "pattern": DECIMAL}),
    dt.date: ("date", {"type": "string", "format": "date"}),
    dt.datetime: ("datetime", {"type": "string", "format": "date-time"}),
    dt.time: ("time", {"type": "string", "format": "time"}),
    dt.timedelta: ("timedelta", {"type": "string", "format": "duration"}),
    UUID: ("uuid", {"type": "string", "format": "uuid"}),
}
_NUMERIC = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
_BOUNDS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("int", "float", "decimal"), _NUMERIC),
    "str": {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"},
    "bytes": {"min_length": "minLength", "max_length": "maxLength"},
    **{kind: {"min_length": "minItems", "max_length": "maxItems"} for kind in ("list", "set", "frozenset", "tuple")},
    "dict": {"min_length": "minProperties", "max_length": "maxProperties"},
}
"""Type in a core schema -> its bounds, and their keywords in JSON Schema."""
_KINDS: Mapping[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}


class TypeReader:
    """Reads annotations. Classes that refer to themselves become definitions.

    Args:
        read_foreign: Reads a type of pydantic's. It isn't imported here, because it imports this module and pydantic.
            Without it, there are none.
        written: Whether the types are those of results.
    """

    def __init__(
        self, read_foreign: "Callable[[Any, TypeReader], TypeSchemas] | None" = None, *, written: bool = False
    ) -> None:
        self._read_pydantic = read_foreign
        self.written = written
        self.numbers = count()
        self._added: dict[tuple[str, str], str] = {}
        self._cores: dict[str, Core] = {}
        self._schemas: dict[str, Schema] = {}
        self._open: dict[str, str] = {}
        self._recursive: set[str] = set()
        self._made: dict[str, TypeSchemas] = {}
        self._structs: list[Schema] = []
        self._is_in_struct = False

    def whole_core(self, core: Core) -> Core:
        """Return a core schema with the definitions that it refers to."""
        if not self._cores:
            return core
        return {"type": "definitions", "schema": core, "definitions": [*self._cores.values()]}

    def whole_schema(self, schema: Schema) -> Schema:
        """Return a schema with references only to recursive types.

        Raises:
            TypeError: msgspec reads a Struct in another way than its schema says.
        """
        for each in self._structs:
            check_readable(each, self._schemas)
        made = inline_references(schema, self._schemas)
        if self.written:
            drop_formats(made, LOOSE)
        return made

    def read(self, annotation: Any) -> TypeSchemas:
        """Return how a type is read, and its schema.

        Args:
            annotation: The type, as `normalize` returns it.

        Raises:
            TypeError: The type isn't supported.
            RegistrationError: A part of it would be ignored.
        """
        inner, metadata = split_annotation(annotation)
        metas = [each for each in metadata if isinstance(each, Meta)]
        if any(map(is_pydantic, metadata)):
            return self._read_foreign(annotation)
        made = self._read_plain(inner)
        for tz in (each.tz for each in metas if each.tz is not None):
            made = self._read_leaf(annotation, made.schema if tz else {"type": "string"})
        bounds = {name: value for each in metas for name in CONSTRAINTS if (value := getattr(each, name)) is not None}
        bounded = self._with_bounds(made, bounds) if bounds else made
        if bounded is None:
            return self._read_foreign(annotation)
        core, schema = bounded
        for meta in metas:
            about = {name: getattr(meta, name) for name in ("title", "description", "examples")}
            said = {key: each for key, each in about.items() if each is not None}
            schema = {**schema, **said, **(meta.extra_json_schema or {})}
        return TypeSchemas(core, schema)

    def _with_bounds(self, made: TypeSchemas, bounds: Mapping[str, Any]) -> TypeSchemas | None:
        """Return a type with bounds, or None if only pydantic knows what they mean."""
        kind, schema = made.core["type"], made.schema
        if not bounds.keys() <= _BOUNDS.get(kind, {}).keys():
            return None
        keywords = {_BOUNDS[kind][name]: value for name, value in bounds.items()}
        if kind == "bytes":  # base64
            keywords = {name: (value + 2) // 3 * 4 for name, value in keywords.items()}
        if kind != "decimal":
            schema = {**schema, **keywords}
        elif not self.written:  # only numbers have a minimum
            schema = {"anyOf": [{"type": "number", **keywords}, schema]}
        return TypeSchemas({**made.core, **bounds}, schema)

    def _read_plain(self, kind: Any) -> TypeSchemas:
        if is_scalar(kind):
            name, schema = _SCALARS[kind]
            return TypeSchemas({"type": name}, schema)
        origin, parts = get_origin(kind) or kind, get_args(kind)
        if origin is Literal:
            return _choices({"type": "literal", "expected": [*parts]}, parts)
        if origin in UNIONS:
            return self._read_union(parts)
        if isinstance(kind, RecursiveAlias):
            return self._define(kind, kind.__name__, lambda: self.read(kind.target))
        if not isinstance(origin, type) or any(isinstance(part, list) or _is_unpacked(part) for part in parts):
            return self._read_foreign(kind)
        if origin in COLLECTIONS:
            return self._read_collection(kind, origin, parts)
        return self._read_class(kind, origin)

    def _read_class(self, kind: Any, origin: Any) -> TypeSchemas:
        if origin in (bytearray, memoryview):
            return self._read_leaf(kind, _SCALARS[bytes][1])
        if is_struct(origin):
            return self._define(kind, type_text(kind), partial(self._read_struct, kind))
        if is_pydantics(origin):
            return self._read_foreign(kind)
        if issubclass(origin, PurePath):
            core = _function("plain", partial(_read_path, origin))
            core |= {"metadata": {"reads_text": True}, "serialization": {"type": "to-string"}}
            return TypeSchemas(core, {"type": "string", "format": "path"})
        if issubclass(origin, Enum) and len(origin):
            return _read_enum(origin)
        for is_kind, read in (
            (is_dataclass(origin), self._read_dataclass),
            (hasattr(origin, "__total__"), self._read_typed_dict),
            (hasattr(origin, "_fields") and issubclass(origin, tuple), self._read_named_tuple),
        ):
            if is_kind:
                return self._define(kind, type_text(kind), partial(read, origin, _hints_of(kind)))
        return self._read_foreign(kind)

    def _define(self, kind: Any, name: str, make: Callable[[], TypeSchemas]) -> TypeSchemas:
        """Return a class. If it refers to itself, it's a definition."""
        key = f"{kind!r}:{id(get_origin(kind) or kind)}"
        if key in self._made:
            return self._made[key]
        if key in self._open:
            self._recursive.add(key)
        else:
            name = _plain_name(name)
            while name in self._open.values() or name in self._schemas:
                name += "_"
            self._open[key] = name
            made = make()
            self._open.pop(key)
            if key not in self._recursive:
                self._made[key] = made
                return made
            self._cores[key], self._schemas[name] = {**made.core, "ref": key}, made.schema
            self._made[key] = TypeSchemas({"type": "definition-ref", "schema_ref": key}, {"$ref": REF + name})
            return self._made[key]
        return TypeSchemas({"type": "definition-ref", "schema_ref": key}, {"$ref": REF + self._open[key]})

    def _read_union(self, parts: tuple[Any, ...]) -> TypeSchemas:
        tagged = [part for part in parts if is_tagged(get_origin(part) or part)]
        others = [part for part in parts if part is not NoneType and (len(tagged) < 2 or part not in tagged)]
        made = [self.read(part) for part in others if part is not UnsetType or not self._is_in_struct]
        if len(tagged) > 1:  # msgspec finds the class with the tag
            schema = _any_of([self.read(part).schema for part in tagged])
            if name := (get_origin(tagged[0]) or tagged[0]).__struct_config__.tag_field:
                schema["discriminator"] = {"propertyName": name}
            find_fields(union_of(tagged))  # raises TypeError
            made.insert(0, self._read_leaf(union_of(tagged), schema))
        core = made[0].core if len(made) == 1 else {"type": "union", "choices": [each.core for each in made]}
        schemas = [each.schema for each in made if each.schema is not HIDDEN]
        if NoneType in parts:
            core = {"type": "nullable", "schema": core}
            schemas.append({"type": "null"})
        return TypeSchemas(core, _any_of(schemas))

    def _read_collection(self, kind: Any, origin: Any, parts: tuple[Any, ...]) -> TypeSchemas:
        made = [self.read(part) for part in parts if part is not ...] if origin is not dict else []
        items = made[0] if made else TypeSchemas({"type": "any"}, {})
        if origin is list:
            return TypeSchemas({"type": "list", "items_schema": items.core}, {"type": "array", "items": items.schema})
        if origin in (set, frozenset):
            schema = {"type": "array", "uniqueItems": True, "items": items.schema}
            return TypeSchemas({"type": origin.__name__, "items_schema": items.core}, schema)
        if origin is tuple:
            if parts[-1:] == (...,) or kind is tuple:
                core = {"type": "tuple", "items_schema": [items.core], "variadic_item_index": 0}
                return TypeSchemas(core, {"type": "array", "items": items.schema})
            return _read_tuple(made, len(made))
        key, value = map(self.read, parts) if parts else (items, items)
        about = {"additionalProperties": value.schema} if value.schema else {}
        if allowed := key_schema(self.whole_schema(key.schema)):
            about["propertyNames"] = allowed
        core = {"type": "dict", "keys_schema": _read_key(key.core), "values_schema": value.core}
        return TypeSchemas(core, {"type": "object", **about})

    def read_argument(self, annotation: Any, default: Any) -> TypeSchemas:
        """Return a type with a default, or with `NODEFAULT`. Raises the errors of `read`."""
        made = self.read(annotation)
        return made if default is NODEFAULT else with_default(made, default)

    def _read_member(self, hint: Any, default: Any = NODEFAULT) -> TypeSchemas:
        """Return a member of a class."""
        return self.read_argument(normalize(hint, received=not self.written), default)

    def _read_dataclass(self, kind: Any, hints: Names) -> TypeSchemas:
        listed, required = list[Core](), list[str]()
        properties: dict[str, Schema] = {}
        init_only = {name: cast("Any", hint).type for name, hint in hints.items() if isinstance(hint, InitVar)}

        def add(name: str, made: TypeSchemas, *, shown: bool, **options: Any) -> None:
            listed.append({"type": "dataclass-field", "name": name, "schema": made.core, **options})
            if shown and made.schema is not HIDDEN:
                properties[name] = made.schema
                required.extend([name] if made.core["type"] != "default" else [])

        for name, hint in init_only.items():
            made = self._read_member(hint, getattr(kind, name, NODEFAULT))
            add(name, made, shown=not self.written, init_only=True)
        for field in fields(kind):
            default = field.default if field.default is not MISSING else NODEFAULT
            made = self._read_member(hints[field.name], default)
            if field.default_factory is not MISSING:
                made = TypeSchemas(
                    {"type": "default", "schema": made.core, "default_factory": field.default_factory}, made.schema
                )
            options = {"init": field.init, "kw_only": field.kw_only is True}
            add(field.name, made, shown=field.init or self.written, **options)
        core: Core = {
            "type": "dataclass",
            "cls": kind,
            "schema": {
                "type": "dataclass-args",
                "dataclass_name": kind.__name__,
                "fields": listed,
                "collect_init_only": bool(init_only),
            },
            "fields": [field.name for field in fields(kind)],
            "post_init": hasattr(kind, "__post_init__"),
            "slots": hasattr(kind, "__slots__"),
        }
        return TypeSchemas(core, _object(kind, properties, required))

    def _read_typed_dict(self, kind: Any, hints: Names) -> TypeSchemas:
        made = {name: (self._read_member(hint), required) for name, hint, required in typed_dict_members(kind, hints)}
        core: Core = {
            "type": "typed-dict",
            "cls": kind,
            "fields": {
                name: {"type": "typed-dict-field", "schema": each.core, "required": required}
                for name, (each, required) in made.items()
            },
        }
        properties = {name: each.schema for name, (each, _) in made.items() if each.schema is not HIDDEN}
        schema = _object(kind, properties, [name for name in properties if made[name][1]])
        if getattr(kind, "__closed__", None):
            core["extra_behavior"], schema["additionalProperties"] = "forbid", False
        return TypeSchemas(core, schema)

    def _read_named_tuple(self, kind: Any, hints: Names) -> TypeSchemas:
        defaults = kind._field_defaults
        made = [self._read_member(hints.get(name, Any), defaults.get(name, NODEFAULT)) for name in kind._fields]
        core, schema = _read_tuple(made, len(made) - len(defaults))
        return TypeSchemas({**_function("after", partial(_make_tuple, kind)), "schema": core}, schema)

    def _read_struct(self, kind: Any) -> TypeSchemas:
        if any(is_pydantic(item) for _, item in parts_of(kind)):
            raise RegistrationError(
                f"pydantic can't read the Struct {type_text(kind)}, which contains a type that only pydantic "
                f"supports. Make {type_text(kind)} a dataclass or a pydantic model"
            )
        info = find_fields(kind)
        hints, was_in_struct, self._is_in_struct = _hints_of(kind), self._is_in_struct, True
        properties: dict[str, Schema] = {}
        required = [each.encode_name for each in info.fields if each.required]
        for each in info.fields:
            make: Callable[[], Any] = each.default_factory
            default = make() if make in _EMPTY_FACTORIES else each.default
            properties[each.encode_name] = self._read_member(hints[each.name], default).schema
        self._is_in_struct = was_in_struct
        if (tag := getattr(info, "tag", None)) is not None:
            properties = {info.tag_field: {"enum": [tag]}, **properties}
            required.insert(0, info.tag_field)
        is_closed = getattr(info, "forbid_unknown_fields", False)
        if getattr(info, "array_like", False):
            schema: Schema = {"type": "array", "prefixItems": [*properties.values()], "minItems": len(required)}
            schema |= {"maxItems": len(properties)} if is_closed else {}
        else:
            schema = _object(info.cls, properties, required)
            schema |= {"additionalProperties": False} if is_closed else {}
        self._structs.append(schema)
        return self._read_leaf(kind, schema)

    def _read_leaf(self, kind: Any, schema: Schema) -> TypeSchemas:
        """Return a type that msgspec reads."""
        reader = _StructReader(kind, lambda: self.whole_schema(schema))
        function = {"type": "with-info", "function": reader.read}
        written = {"type": "function-plain", "function": reader.write}
        return TypeSchemas({"type": "function-plain", "function": function, "serialization": written}, schema)

    def _read_foreign(self, annotation: Any) -> TypeSchemas:
        if self._is_in_struct and annotation is Raw:
            return TypeSchemas({"type": "any"}, {})
        if self._is_in_struct or self._read_pydantic is None:
            raise TypeError(f"{type_text(annotation)} isn't supported")
        _check_ignored(annotation)
        return self._read_pydantic(annotation, self)

    def add_definitions(self, schema: Schema) -> Schema:
        """Return a schema whose definitions are added to those of the reader."""
        definitions: Mapping[str, Schema] = schema.pop("$defs", {})
        renamed: dict[str, str] = {}
        for name, each in definitions.items():
            key = name, repr(each)
            if key not in self._added:
                new = name
                while new in self._open.values() or new in self._schemas:
                    new += "_"
                self._added[key], self._schemas[new] = new, each
            renamed[REF + name] = REF + self._added[key]
        for node in walk({"anyOf": [schema, *definitions.values()]}):
            if node.get("$ref") in renamed:
                node["$ref"] = renamed[node["$ref"]]
        return schema


def is_scalar(kind: Any) -> bool:
    """Return whether a type is a value without parts."""
    try:
        return kind in _SCALARS
    except TypeError:  # it isn't hashable
        return False


def with_default(made: TypeSchemas, default: Any) -> TypeSchemas:
    """Return a type with a default, which clients see if it's JSON."""
    schema = made.schema
    try:
        if not has_no_number(msgspec.to_builtins(default, enc_hook=enc_hook)) and schema is not HIDDEN:
            schema = {**schema, "default": msgspec.json.decode(encode(default))}
    except (TypeError, ValueError, RecursionError):
        pass  # the function's own sentinel, which only makes the argument optional
    return TypeSchemas({"type": "default", "schema": made.core, "default": default}, schema)


def _is_unpacked(part: Any) -> bool:
    return get_origin(part) is typing.Unpack or getattr(part, "__unpacked__", False)


def _plain_name(name: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in name).strip("_")


def _hints_of(kind: Any) -> Names:
    """Return the annotations of a class, with the types that it gives the parameters of generic classes."""
    hints, pending = hints_in(get_origin(kind) or kind), [kind]
    for each in pending:
        origin = get_origin(each) or each
        names = dict(zip(getattr(origin, "__parameters__", ()), get_args(each), strict=False))
        bases = [base for base in getattr(origin, "__orig_bases__", ()) if get_origin(base) not in _MARKS]
        pending += [_replace(base, names) for base in bases if isinstance(get_origin(base) or base, type)]
        own = inspect.get_annotations(origin)
        hints |= {name: _replace(hint, names) for name, hint in hints.items() if name in own}
    return hints


_MARKS = (Generic, Protocol)
"""Bases that only name the parameters of a generic class."""


def _replace(hint: Any, names: Names) -> Any:
    """Return an annotation in which the parameters of a generic class have values."""
    if isinstance(hint, TypeVar):
        return names.get(hint, hint)
    if names and (parameters := getattr(hint, "__parameters__", ())) and not isinstance(hint, type):
        return hint[tuple(names.get(each, each) for each in parameters)]
    return hint


def _check_ignored(annotation: Any) -> None:
    kind: object = get_origin(annotation) or annotation
    reads_all = isinstance(kind, type) and is_pydantics(kind)
    for holder, item in parts_of(annotation):
        is_limit = isinstance(item, Meta) and any(getattr(item, name) is not None for name in (*CONSTRAINTS, "extra"))
        if is_limit and holder is not None and (reads_all or is_pydantics(holder)):
            text = constraint_text(item)
            raise RegistrationError(
                f"pydantic checks the fields of {type_text(holder)} and ignores millstream's {text}. Write "
                f"pydantic.{text} there"
            )


def _any_of(schemas: list[Schema]) -> Schema:
    """Return the schema of a union."""
    parts: list[Schema] = []
    for each in schemas:
        inner = each["anyOf"] if [*each] == ["anyOf"] else [each]
        parts += [part for part in inner if part not in parts]
    return parts[0] if len(parts) == 1 else {"anyOf": parts} if parts else HIDDEN


def _choices(core: Core, choices: Any) -> TypeSchemas:
    """Return values to choose from: members of an enum, or those of a `Literal`."""
    listed = [choice_value(each) for each in choices]
    is_single = core["type"] == "literal" and len(listed) == 1
    schema: Schema = {"const": listed[0]} if is_single else {"enum": listed}
    kinds: set[type[Any]] = {type(each) for each in listed}
    if len(kinds) == 1 and (kind := _KINDS.get(kinds.pop())):
        schema["type"] = kind
    return TypeSchemas(core, schema)


def _read_enum(kind: Any) -> TypeSchemas:
    choices = [*kind.__members__.values()]
    core: Core = {"type": "enum", "cls": kind, "members": choices}
    if kind._missing_.__func__ is not Enum._missing_.__func__:  # type: ignore[attr-defined]  # a class method
        core["missing"] = kind._missing_
    for base, name in ((int, "int"), (str, "str"), (float, "float")):
        if issubclass(kind, base):
            core["sub_type"] = name
            break
    core, schema = _choices(core, choices)
    if issubclass(kind, Flag):  # several members combined make another value
        schema = {"type": "integer"}
    return TypeSchemas(core, _with_description(kind, schema))


def _with_description(kind: Any, schema: Schema) -> Schema:
    text = kind.__doc__
    if text and not text.startswith(f"{kind.__name__}(") and text != "An enumeration.":
        schema["description"] = inspect.cleandoc(text)
    return schema


def _object(kind: Any, properties: Schema, required: list[str]) -> Schema:
    schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    return _with_description(kind, schema)


def _function(where: str, function: Callable[..., Any]) -> Core:
    return {"type": f"function-{where}", "function": {"type": "no-info", "function": function}}


def _read_tuple(made: list[TypeSchemas], required: int) -> TypeSchemas:
    schema: Schema = {"type": "array"}
    if made:
        schema["prefixItems"] = [each.schema for each in made]
    if required or not made:
        schema["minItems"] = required
    schema["maxItems"] = len(made)
    return TypeSchemas({"type": "tuple", "items_schema": [each.core for each in made]}, schema)


def _make_tuple(kind: Any, items: tuple[Any, ...]) -> Any:
    return kind(*items)


def _read_key(core: Core) -> Core:
    """Return the core schema for a dict's key. Numeric choices are text there."""
    if core["type"] not in ("literal", "enum"):
        return core
    if core["type"] == "enum" and issubclass(core["cls"], Flag):
        return {**_function("before", _read_number), "schema": core}
    choices = core["members" if core["type"] == "enum" else "expected"]
    names = {str(each.value if isinstance(each, Enum) else each): each for each in choices}
    return {**_function("before", partial(_find_name, names)), "schema": core}


def _read_number(name: Any) -> Any:
    return int(name) if isinstance(name, str) and re.fullmatch(INTEGER_KEY, name) else name


def _find_name(names: Mapping[str, Any], name: Any) -> Any:
    return names.get(name, name)


def _read_path(kind: Any, value: Any) -> Any:
    return value if isinstance(value, PurePath) else dec_hook(kind, value)


class _StructReader:
    """Reads and writes a class through msgspec."""

    def __init__(self, kind: Any, describe: Callable[[], Schema]) -> None:
        self._kind, self._describe = kind, describe
        kinds = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
        plain = [split_annotation(each)[0] for each in kinds]
        self._classes = tuple(get_origin(each) or each for each in plain)

    @cached_property
    def _decimals(self) -> Schema | None:
        """The schema, if it has decimal numbers, for which `Decimal` accepts more text than JSON parsers do."""
        schema = self._describe()
        return schema if repr(DECIMAL) in repr(schema) else None

    def read(self, value: Any, info: Any) -> Any:
        is_result = info.mode == "python"
        if is_result and isinstance(value, self._classes) and hasattr(value, "__post_init__"):
            return value  # it validates itself
        plain = self.write(value) if is_result else value
        for problem in find_problems(self._decimals or {}, plain, steps=inf, first=True):
            raise ValueError(f"{subject(problem.path)}{problem.text}")
        made = msgspec.convert(plain, self._kind, dec_hook=dec_hook, str_keys=True)
        return value if is_result and isinstance(value, self._classes) else made

    def write(self, value: Any) -> Any:
        return msgspec.to_builtins(value, enc_hook=enc_hook)


def describe_arguments(arguments: ArgumentList, reader: TypeReader, made: Iterable[TypeSchemas]) -> Schema:
    """Return the schema of arguments."""
    parameters = {each.wire: part for each, part in zip(arguments.parameters, made, strict=True)}
    required = [wire for wire, part in parameters.items() if part.core["type"] != "default"]
    schema = {
        "type": "object",
        "properties": {wire: part.schema for wire, part in parameters.items()},
        **({"required": required} if required else {}),
        **({"additionalProperties": False} if arguments.closed else {}),
    }
    whole = finish_schema(reader.whole_schema(schema))
    for wire, part in parameters.items():
        default = part.core.get("default")
        # A validator may make another default fit, as in pydantic.
        if default is not None and not has_no_number(default) and not has_validators(part.core):
            _check_default(default, {"anyOf": [whole["properties"][wire]], "$defs": whole.get("$defs", {})})
    return whole


def _check_default(default: Any, schema: Schema) -> None:
    try:
        value = msgspec.json.decode(msgspec.json.encode(default))
    except (TypeError, ValueError, RecursionError):
        return  # a model, or the function's own sentinel, which only makes the argument optional
    if found := find_problems(schema, value, matches=search):
        raise RegistrationError(f"its default {default!r} doesn't fit its type: {problem_text(found, whole='it')}")


def read_result(
    annotation: Any,
    read_foreign: "Callable[[Any, TypeReader], TypeSchemas] | None" = None,
) -> TypeSchemas:
    """Return how a result is written, and its schema.

    Args:
        annotation: The type.
        read_foreign: See `TypeReader`.

    Raises:
        OutputError: The type isn't supported.
        RegistrationError: A part of it would be ignored.
    """
    reader = TypeReader(read_foreign, written=True)
    try:
        made = reader.read(annotation)
        return TypeSchemas(reader.whole_core(made.core), reader.whole_schema(made.schema))
    except RegistrationError:
        raise
    except (TypeError, RecursionError, NameError) as error:
        raise OutputError(str(error)) from error
