"""How pydantic's own types are read and described. It's imported only for functions that use one."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from enum import EnumType
from functools import partial
from math import inf, isfinite
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import pydantic
from msgspec import Meta
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticOmit, PydanticSerializationError, SchemaError, core_schema

from millstream._override import override
from millstream._protocol.json_schema import (
    NO_NUMBER,
    Schema,
    is_object,
    key_schema,
    members,
    type_text,
    walk,
)
from millstream._server.functions.core_forms import DECIMAL_SCHEMA, PYDANTICS, chooses_encoding, map_core
from millstream._server.functions.core_types import HIDDEN, TypeReader, TypeSchemas
from millstream._server.functions.description import CONSTRAINTS
from millstream._server.functions.msgspec_engine import once_per_type
from millstream._server.functions.parameters import (
    UNIONS,
    PatternError,
    RecursiveAlias,
    has_fields,
    is_pydantics,
    is_struct,
    join_annotation,
    split_annotation,
    union_of,
    unwrap_alias,
)
from millstream._server.functions.patterns import pattern_error

_UNREADABLE = (
    pydantic.PydanticUserError,
    SchemaError,
    PydanticOmit,
    TypeError,
    RuntimeError,
    NameError,
    AttributeError,
    ImportError,
)


def read(annotation: Any, reader: TypeReader) -> TypeSchemas:
    """Return how pydantic reads a type, and its schema.

    Raises:
        TypeError: pydantic doesn't support the type.
        PatternError: Matching a pattern could take a very long time.
    """
    mode: Literal["validation", "serialization"] = "serialization" if reader.written else "validation"
    try:
        translated = _without_names(_translate(annotation, reader))
        core, schema = _DESCRIBE[mode](translated)
    except PatternError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, SchemaError) and "regex" in str(error):
            raise pattern_error(error) from error
        raise TypeError(_explain_failure(type_text(annotation), error)) from error
    if schema is not HIDDEN:
        name: str = getattr(split_annotation(annotation)[0], "__name__", "")
        schema = reader.add_definitions(_clean_schema(deepcopy(schema), _INVALID_CHARACTERS.sub("_", name)))
    return TypeSchemas(_separate(core, f"{PYDANTICS}{next(reader.numbers)}"), schema)


def _describe(annotation: Any, mode: Literal["validation", "serialization"]) -> TypeSchemas:
    adapter = pydantic.TypeAdapter[Any](annotation)
    try:
        schema = adapter.json_schema(by_alias=True, mode=mode, schema_generator=SchemaGenerator)
    except PydanticOmit:
        schema = HIDDEN
    return TypeSchemas(cast("Any", adapter.core_schema), schema)


_DESCRIBE: Mapping[str, Callable[[Any], TypeSchemas]] = {
    "validation": once_per_type(partial(_describe, mode="validation")),
    "serialization": once_per_type(partial(_describe, mode="serialization")),
}


def _without_names(annotation: Any) -> Any:
    """Return a type without what only members have, such as aliases."""
    inner, metadata = split_annotation(annotation)
    items = [copy(item) if isinstance(item, FieldInfo) else item for item in metadata]
    for item in items:
        if isinstance(item, FieldInfo):
            item.alias = item.validation_alias = item.serialization_alias = item.validate_default = None
    return join_annotation(inner, tuple(items))


def _separate(node: Any, suffix: str) -> Any:
    """Return a core schema whose definitions other types don't share, because they can have another configuration."""
    if not is_object(node):
        return map_core(node, partial(_separate, suffix=suffix))
    if node.get("type") == "any" and _HIDDEN_REF in node.get("metadata", {}):
        return {"type": "definition-ref", "schema_ref": node["metadata"][_HIDDEN_REF]}
    named = {key: node[key] + suffix for key in ("ref", "schema_ref") if key in node}
    return map_core(node, partial(_separate, suffix=suffix)) | named


def _explain_failure(types: str, error: Exception) -> str:
    """Return why pydantic can't read a type: it's unknown, or another package is missing."""
    return f"{types} needs a package: {error}" if isinstance(error, ImportError) else f"{types} isn't supported"


def _clean_schema(schema: Schema, name: str) -> Schema:
    """Return a schema without titles that repeat a class name."""
    definitions: dict[str, Schema] = schema.get("$defs", {})
    for node in walk({"anyOf": [schema], "$defs": definitions}):
        if _HIDDEN_REF in node:
            node["$ref"] = node.pop(_HIDDEN_REF)
        for bound in _BOUNDS.keys() & node.keys():
            value = node.pop(bound)
            is_bound = isinstance(value, int | float) and abs(value) < inf  # pydantic writes a `Decimal` as text
            if _BOUNDS[bound] and node.get("type") in ("integer", "number") and is_bound:
                node[_BOUNDS[bound]] = value
    for title, part in [(name, schema), *definitions.items()]:
        if title in ((written := part.get("title", "")), _INVALID_CHARACTERS.sub("_", written)):
            part.pop("title", None)
    return schema


_INVALID_CHARACTERS = re.compile(r"[^a-zA-Z0-9.\-_]")
"""Characters that pydantic removes from class names."""
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "max_digits": "",
    "decimal_places": "",
}
"""Names that pydantic writes for bounds behind a validator or on a union, and their keywords in JSON Schema."""
_HIDDEN_REF = "$millstream-ref"
"""Keyword for references to our definitions. pydantic refuses references that it doesn't know."""
_PLAIN_DEFAULTS = frozenset({type(None), bool, int, str})


class SchemaGenerator(GenerateJsonSchema):
    """pydantic's generator without titles derived from names."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  pydantic's own attribute

    @override
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    @override
    def encode_default(self, dft: Any) -> Any:
        """Return a default as JSON. pydantic would build a serializer for each, which plain values don't need."""
        if isinstance(dft, bytes):
            return b64encode(dft).decode()
        if isinstance(dft, float) and not isfinite(dft):
            raise PydanticSerializationError(NO_NUMBER)  # the schema then has no default
        return dft if type(dft) in _PLAIN_DEFAULTS else super().encode_default(dft)

    @override
    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        """Describe bytes in the form that `core_forms` reads and writes."""
        if chooses_encoding(self._config.config_dict):
            return {"type": "string"}
        return {"type": "string", "contentEncoding": "base64"}

    @override
    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Describe decimal numbers without bounds as msgspec's engine does, and otherwise also allow numbers."""
        if not schema.keys() & {"ge", "gt", "le", "lt", "multiple_of", "max_digits", "decimal_places"}:
            return {**DECIMAL_SCHEMA}
        made = super().decimal_schema(schema)
        for part in made.get("anyOf", [made]):
            if part["type"] == "string":
                part.update(DECIMAL_SCHEMA)  # pydantic's patterns have lookahead, which many clients don't support
        return made

    @override
    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Describe exactly the member names that the key types allow."""
        values = self.generate_inner(schema["values_schema"]) if "values_schema" in schema else {}
        keys = schema.get("keys_schema", {"type": "any"})
        made: JsonSchemaValue = {"type": "object", **({"additionalProperties": values} if values else {})}
        key = self.resolve_ref_schema(self.generate_inner(keys))
        if names := key_schema(key):
            made["propertyNames"] = names
        self.update_with_validations(made, schema, self.ValidationsMapping.object)
        return made

    @override
    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Describe alternatives that a function tells apart, which can overlap, as ``anyOf``."""
        made = super().tagged_union_schema(schema)
        if "discriminator" not in made and "oneOf" in made:
            made["anyOf"] = made.pop("oneOf")
        return made

    @override
    def ser_schema(self, schema: Any) -> JsonSchemaValue | None:
        """Return no schema for a serializer without a return annotation, because it can write anything."""
        made = super().ser_schema(schema)
        if getattr(schema.get("function"), "__module__", "").startswith("pydantic."):
            return made  # default of a path, an enum, or a dict
        own = schema["type"] == "function-plain" or schema.get("is_field_serializer")
        return {} if made is None and own and schema.get("return_schema") is None else made


def _translate(annotation: Any, reader: TypeReader) -> Any:
    """Return a type in which pydantic reads classes that aren't its own through the reader."""
    annotation = unwrap_alias(annotation)
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        items = [_field(item) if isinstance(item, Meta) else item for item in parts[1:]]
        return Annotated[_translate(parts[0], reader), *items]
    if origin in UNIONS:
        return union_of([_translate(part, reader) for part in parts])
    kind: Any = origin or annotation
    if isinstance(kind, RecursiveAlias | EnumType) or is_struct(kind) or has_fields(kind):
        part = None if is_pydantics(kind) else _Part(reader.read(annotation), written=reader.written)
        return Annotated[annotation, part] if part else annotation
    if not parts or not isinstance(origin, type) or any(isinstance(part, list) for part in parts):
        return annotation
    made = [part if part is ... else _translate(part, reader) for part in parts]
    return kind[*made]


def _field(meta: Meta) -> Any:
    names = (*CONSTRAINTS, "title", "description", "examples")
    said = {name: value for name in names if (value := getattr(meta, name)) is not None}
    return pydantic.Field(**said, json_schema_extra=meta.extra_json_schema)


class _Part:
    """Makes pydantic use a core schema and a schema of ours."""

    def __init__(self, part: TypeSchemas, *, written: bool) -> None:
        self._part = part
        self._written = written

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        core = _hide_references(self._part.core)
        return {**core, "metadata": {**core.get("metadata", {}), "pydantic_js_functions": [self._describe]}}

    def _describe(self, core: Any, handler: Any) -> Schema:
        serializer = core.get("serialization")
        if self._written and serializer is not self._part.core.get("serialization"):  # the program chose it
            made: Schema = handler({"type": "any", "serialization": serializer})
            if made or serializer["type"] == "function-plain":
                return made
        schema = deepcopy(self._part.schema)
        for node in walk(schema):
            if "$ref" in node:
                node[_HIDDEN_REF] = node.pop("$ref")
        return schema


def _hide_references(node: Any) -> Any:
    if members(node).get("type") == "definition-ref":
        return {"type": "any", "metadata": {_HIDDEN_REF: node["schema_ref"]}}
    return map_core(node, _hide_references)
