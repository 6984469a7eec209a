"""The pydantic engine: one generated model for the arguments, one adapter for the result.

It's loaded only for functions that need it, because pydantic is an extra.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, MutableSet, Sequence
from copy import deepcopy
from dataclasses import MISSING, InitVar, fields, is_dataclass
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial
from math import inf, isfinite
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec
import pydantic
import pydantic_core
from msgspec import NODEFAULT, Meta, Struct
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import (
    PydanticOmit,
    PydanticSerializationError,
    SchemaError,
    SchemaValidator,
    core_schema,
)

from millstream._override import override
from millstream._protocol.json_schema import (
    LOOSE,
    NO_NUMBER,
    Schema,
    drop_formats,
    has_no_number,
    inline_references,
    is_object,
    is_recursive_alias,
    key_schema,
    members,
    schema_of,
    type_text,
    walk,
)
from millstream._server.functions.dependencies import RegistrationError
from millstream._server.functions.description import CONSTRAINTS
from millstream._server.functions.msgspec_engine import (
    MAX_VALUES,
    Engine,
    Output,
    OutputError,
    check_exactly,
    check_numbers,
    dec_hook,
    enc_hook,
    has_decimals,
    is_structured,
    once_per_type,
    output_error,
    schema_hook,
)
from millstream._server.functions.parameters import (
    UNIONS,
    ArgumentList,
    Parameter,
    PatternError,
    finish_schema,
    has_fields,
    has_meta,
    has_pydantic_members,
    is_alias,
    is_struct,
    needs_pydantic,
    parts_of,
    split_annotation,
    typed_dict_members,
    union_of,
    unwrap_alias,
)
from millstream._server.functions.patterns import NOT_LINEAR, check_no_patterns, matcher_of
from millstream._server.functions.problems import (
    MAX_SLOW_STEPS,
    Path,
    Problem,
    find_problems,
    got_text,
    list_names,
    place,
    subject,
)
from millstream._server.functions.pydantic_codecs import (
    DECIMAL_SCHEMA,
    NO_SCHEMAS,
    Codec,
    checker_of,
    chooses_encoding,
    codec_of,
    is_programs,
    pattern_text,
    reader_of,
)

MAX_ERRORS = 200
"""Maximum number of problems that pydantic lists, because listing one requires building all."""
MAX_NAMED = 20
_SHOWN = (str, int, float, Decimal)
_UNMATCHED = "string_pattern_mismatch"
_UNREADABLE = (
    pydantic.PydanticUserError,
    SchemaError,
    PydanticOmit,
    TypeError,
    RecursionError,
    NameError,
    AttributeError,
    ImportError,
)


class PydanticEngine(Engine):
    """The engine of all other functions: a model with a field per parameter.

    Plain types are strict, as in msgspec. Models keep their own configuration.

    Raises:
        TypeError: pydantic doesn't support a type.
        RegistrationError: pydantic would ignore a bound of our `Field`.
    """

    max_values = MAX_VALUES
    typed = None

    def __init__(self, arguments: ArgumentList) -> None:
        name, parameters = arguments.function, arguments.parameters
        make = partial(_model_of, name, parameters, forbid_unknown=arguments.closed)
        try:
            model = make()
            _check_patterns(model.__pydantic_core_schema__)
            composed = _composed_schema(parameters, forbid_unknown=arguments.closed)
            self.input_schema = composed or _arguments_schema(model)
            if not all(each.wire in self.input_schema["properties"] for each in parameters):
                raise RegistrationError("its schema is hidden from clients. Mark it with Depends instead")
        except (RegistrationError, PatternError):
            raise
        except _UNREADABLE as error:
            types = ", ".join(type_text(each.annotation) for each in parameters)
            if isinstance(error, SchemaError) and "regex" in str(error):
                raise PatternError(f"a pattern in {types} {NOT_LINEAR}") from error
            raise TypeError(_explain_failure(types, error)) from error
        self.struct = msgspec.defstruct(name, [(parameter.name, Any) for parameter in parameters], gc=False)
        reader = reader_of(model)
        _check_defaults(model, reader, parameters)
        self._validate = reader.validate_json
        self._make = make
        self.decode = partial(self._read, self._validate)

    @cached_property
    def _validate_lax(self) -> Callable[[bytes], Any]:
        return reader_of(self._make(strict=False)).validate_json

    @override
    def convert(self, values: Mapping[str, Any], *, lax: bool = False) -> Any:
        """See `Engine`."""
        return self._read(self._validate_lax if lax else self._validate, msgspec.json.encode(values))

    def _read(self, validate: Callable[[bytes], Any], raw: Any) -> Any:
        try:
            made = validate(bytes(raw))
        except pydantic.ValidationError as error:
            raise msgspec.ValidationError(f"{error.error_count()} problems") from error
        return self.struct(*made.values())  # the fields, in order

    @override
    def problems(self, error: Exception, values: Any, *, lax: bool = False) -> list[Problem]:
        """See `Engine`."""
        cause = error.__cause__
        if not isinstance(cause, pydantic.ValidationError):
            return super().problems(error, values, lax=lax)
        count = cause.error_count()
        if count > MAX_ERRORS:
            known = find_problems(self.input_schema, values, lax=lax)
            return known or [Problem((), f"have {count:,} problems")]
        items = cause.errors(include_url=False)
        # pydantic has tried the patterns. Others may match them more slowly, or differently.
        unmatched = {(each.get("ctx", {})["pattern"], each["input"]) for each in items if each["type"] == _UNMATCHED}

        def matches(pattern: str, text: str) -> bool:
            return (pattern, text) not in unmatched

        in_words = {
            each.path: each
            for each in find_problems(self.input_schema, values, lax=lax, matches=matches, steps=MAX_SLOW_STEPS)
        }
        found: list[Problem] = []
        for item in items:
            problem = _problem(item, values)
            below: list[Problem] = []
            # msgspec's errors about a Struct have no location in pydantic's form.
            if isinstance(item.get("ctx", {}).get("error"), msgspec.ValidationError):
                below = [each for each in in_words.values() if each.path[: len(problem.path)] == problem.path]
            found += below or [problem]
        inner = {each.path[:depth] for each in found for depth in range(len(each.path))}
        # Alternatives of a union with another type are omitted, because they add no information.
        return list(dict.fromkeys(in_words.get(each.path, each) for each in found if each.path not in inner))


def _problem(item: Any, values: Any) -> Problem:
    kind, steps = item["type"], item["loc"]
    path: Path = ()
    for step in steps:
        try:
            values = getattr(values, step) if is_dataclass(values) else values[step]
        except (LookupError, TypeError, AttributeError):
            continue  # an alternative of a union, or a missing member
        path = (*path, step)
    if kind in ("missing", "missing_argument"):
        return Problem((*path, *steps[-1:]), "missing")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return Problem(path, "unknown")
    value, text = item["input"], item["msg"].removeprefix("Value error, ")
    # An object would reveal too much, and a `SecretStr` is none of these types.
    got = got_text(str(value) if isinstance(value, Decimal) else value, path, {}) if isinstance(value, _SHOWN) else ""
    return Problem(path, f"is invalid: {text}{got}")


def _explain_failure(types: str, error: Exception) -> str:
    """Return why pydantic can't read a type: it's unknown, or another package is missing."""
    return f"{types} needs a package: {error}" if isinstance(error, ImportError) else f"{types} isn't supported"


class _Arguments(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, protected_namespaces=())


class _ClosedArguments(_Arguments):
    """Refuses unknown arguments. As model configuration, this would also apply to dataclasses and TypedDicts inside."""

    @classmethod
    @override
    def __get_pydantic_core_schema__(cls, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        schema: Any = handler(source)
        schema["schema"]["extra_behavior"] = "forbid"
        return schema

    @classmethod
    @override
    def __get_pydantic_json_schema__(cls, core: Any, handler: pydantic.GetJsonSchemaHandler) -> Schema:
        return {**handler.resolve_ref_schema(handler(core)), "additionalProperties": False}


def _model_of(
    name: str, parameters: list[Parameter], *, forbid_unknown: bool, strict: bool = True
) -> type[pydantic.BaseModel]:
    definitions: dict[str, Any] = {
        f"p{index}": (  # a model rejects names such as `_x` and `schema`
            Annotated[_translate_whole(parameter.annotation), pydantic.Field(alias=parameter.wire)]
            if parameter.default is NODEFAULT
            else (_translate_whole(parameter.annotation), pydantic.Field(parameter.default, alias=parameter.wire))
        )
        for index, parameter in enumerate(parameters)
    }
    base = _ClosedArguments if forbid_unknown else _Arguments
    return pydantic.create_model(name, __base__=base, __cls_kwargs__={"strict": strict}, **definitions)


def _check_defaults(model: type[pydantic.BaseModel], reader: SchemaValidator, parameters: list[Parameter]) -> None:
    """Check that clients could send every default that can be written as JSON.

    Raises:
        RegistrationError: A default doesn't match its type.
    """
    for parameter, field in zip(parameters, model.model_fields.values(), strict=True):
        if field.default in (None, pydantic_core.PydanticUndefined):
            continue
        value = {parameter.wire: field.default}
        try:
            written = msgspec.json.encode(value, enc_hook=enc_hook)
        except (TypeError, ValueError, RecursionError):
            continue  # the function's own sentinel, which only makes the argument optional
        # Models write other members than they read.
        why = _first_error(reader.validate_json, written) and _first_error(reader.validate_python, value)
        if why and not has_no_number(field.default):
            raise RegistrationError(f"its default {field.default!r} doesn't fit its type: {why}")


def _first_error(validate: Callable[[Any], Any], values: Any) -> str:
    """Return the first error of the values, or an empty string. Other arguments can be missing."""
    try:
        validate(values)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        return next((each["msg"] for each in found if each["type"] != "missing" or len(each["loc"]) > 1), "")
    return ""


def _arguments_schema(model: type[pydantic.BaseModel]) -> Schema:
    schema = _clean_schema(model.model_json_schema(schema_generator=SchemaGenerator), model.__name__)
    schema.setdefault("properties", {})
    return finish_schema(schema)


def _composed_schema(parameters: list[Parameter], *, forbid_unknown: bool) -> Schema | None:
    """Return the result of `_arguments_schema`, built from cached schemas of types, or None if one isn't cacheable."""
    properties = {each.wire: _property(each) for each in parameters}
    if None in properties.values():
        return None
    required = [each.wire for each in parameters if each.default is NODEFAULT]
    return finish_schema(
        {
            **({"additionalProperties": False} if forbid_unknown else {}),
            "properties": properties,
            **({"required": required} if required else {}),
            "type": "object",
        }
    )


def _property(parameter: Parameter) -> Schema | None:
    annotation, more = parameter.annotation, {}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        if any(isinstance(each, FieldInfo) and not _is_about_the_type(each) for each in metadata):
            return None
        text = getattr(metadata[0], "description", None)
        if len(metadata) == 1 and metadata[0] == Meta(description=text):
            annotation, more = inner, {"description": text}
    if parameter.default is not NODEFAULT:
        if type(parameter.default) not in _PLAIN_DEFAULTS:
            return None
        more["default"] = parameter.default
    schema = _type_schema(annotation)
    return None if schema is None else {**schema, **more}


_OF_FIELDS = (
    "alias",
    "deprecated",
    "exclude",
    "frozen",
    "init",
    "init_var",
    "kw_only",
    "serialization_alias",
    "validate_default",
    "validation_alias",
)


def _is_about_the_type(field: FieldInfo) -> bool:
    """Return whether a `pydantic.Field` has only properties that also apply outside of a model."""
    return field.is_required() and field.repr and all(getattr(field, name, None) is None for name in _OF_FIELDS)


@once_per_type
def _type_schema(annotation: Any) -> Schema | None:
    """Return the schema of a type as an argument, or None if it's recursive, or pydantic doesn't support the type."""
    try:
        schema = _adapter(annotation).json_schema(by_alias=True, schema_generator=SchemaGenerator)
    except (RegistrationError, *_UNREADABLE):
        return None
    name: str = getattr(annotation, "__name__", "")
    found = _clean_schema(schema, _INVALID_CHARACTERS.sub("_", name))
    return found if "$defs" not in found else None


_INVALID_CHARACTERS = re.compile(r"[^a-zA-Z0-9.\-_]")
"""Characters that pydantic removes from class names."""


def _clean_schema(schema: Schema, name: str) -> Schema:
    """Return a schema without references, and without titles that repeat a class name."""
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
    return inline_references(schema, definitions)


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
_HIDDEN_REF = "$msgspec-ref"
"""Keyword for references to types that msgspec reads. pydantic refuses references that it doesn't know."""
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
        """Describe bytes in the form that `pydantic_codecs` reads and writes."""
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


# msgspec types, translated for pydantic


def _translate_whole(annotation: Any) -> Any:
    needs_pydantic(annotation)  # raises RegistrationError
    return translate(annotation)


def translate(annotation: Any, inside: tuple[Any, ...] = ()) -> Any:
    """Return an annotation with our `Field` and msgspec's Structs converted for pydantic.

    Args:
        annotation: The original annotation.
        inside: The classes that contain it in a field.

    Raises:
        RegistrationError: pydantic would ignore a bound of ours in a class.
    """
    if is_alias(annotation) and not _is_translated(annotation):
        return annotation  # It can refer to itself.
    annotation = unwrap_alias(annotation)
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        if any(isinstance(item, Meta) and item.tz is not None for item in parts[1:]):
            return Annotated[annotation, _StructSchema(annotation)]  # pydantic has no times with an offset
        bounds = [_field(item) for item in parts[1:] if isinstance(item, Meta)]
        others = [item for item in parts[1:] if not isinstance(item, Meta)]
        return Annotated[translate(parts[0], inside), *bounds, *others]  # behind validators, bounds aren't listed
    kind: Any = origin or annotation
    if (made := _translate_class(annotation, kind, inside)) is not None:
        return made
    if not parts:
        return annotation
    if origin in UNIONS:
        return _translate_union(parts, inside)
    if not isinstance(origin, type) or any(isinstance(part, list) for part in parts):
        return annotation
    made = [part if part is ... else translate(part, inside) for part in parts]
    if issubclass(origin, Mapping) and (names := _choices_in(parts[0])):
        made[0] = Annotated[parts[0], pydantic.BeforeValidator(lambda name: names.get(name, name))]
    return _GENERIC.get(origin, origin)[*made]


def _choices_in(annotation: Any) -> dict[Any, Any]:
    """Return the choices for a dict's keys, by their JSON names. pydantic reads numeric choices as text."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {str(each.value): each for each in annotation}
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return {str(each.value if isinstance(each, Enum) else each): each for each in choices}


_GENERIC: Mapping[Any, Any] = {Collection: Sequence, MutableSet: set}
"""Generic types that pydantic doesn't support -> the type to use instead."""


def _is_translated(annotation: Any) -> bool:
    """Return whether a type has parts that pydantic doesn't read as msgspec does: our `Field`, Structs, TypedDicts."""
    return any(
        isinstance(item, Meta) or is_struct(item) or hasattr(item, "__total__") for _, item in parts_of(annotation)
    )


def _is_tagged(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.tag is not None


def _field(meta: Meta) -> Any:
    names = (*CONSTRAINTS, "title", "description", "examples")
    said = {name: value for name in names if (value := getattr(meta, name)) is not None}
    return pydantic.Field(**said, json_schema_extra=meta.extra_json_schema)


def _translate_union(parts: tuple[Any, ...], inside: tuple[Any, ...]) -> Any:
    made = [translate(part, inside) for part in parts]
    tagged = [part for part in parts if _is_tagged(get_origin(part) or part)]
    if len(tagged) > 1:  # msgspec finds the class with the tag
        union = union_of(tagged)
        others = [new for part, new in zip(parts, made, strict=True) if part not in tagged]
        made = [Annotated[union, _StructSchema(union)], *others]
    return union_of(made)


def _translate_class(annotation: Any, kind: Any, inside: tuple[Any, ...]) -> Any:
    """Return a class for pydantic, or None if pydantic reads it unchanged."""
    if is_struct(kind):
        if needs_pydantic(annotation):
            raise RegistrationError(
                f"pydantic can't read the Struct {kind.__name__}, which contains a type that only pydantic "
                f"supports. Make {kind.__name__} a dataclass or a pydantic model"
            )
        return Annotated[annotation, _StructSchema(annotation)]
    if not has_fields(kind) or hasattr(kind, "__pydantic_fields__"):
        return None
    if not _is_translated(kind):
        return None
    if has_pydantic_members(kind):
        if not has_meta(kind):
            return None
        raise RegistrationError(
            f"pydantic checks {type_text(annotation)}, which has validators, and ignores millstream's Field in it. "
            "Write pydantic.Field there"
        )
    if not hasattr(kind, "__total__") and not is_dataclass(kind):
        return Annotated[annotation, _StructSchema(annotation)]
    return Annotated[annotation, _FieldsSchema(annotation, inside)]


class _StructSchema:
    """Lets pydantic read and write a class through msgspec."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        kinds = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
        plain = [split_annotation(each)[0] for each in kinds]
        self._classes = tuple(get_origin(each) or each for each in plain)
        schema = schema_of(kind, hook=schema_hook)
        check_no_patterns(schema)
        self._exact = schema if has_decimals(schema) else None
        self._schema = deepcopy(schema)
        for node in walk(self._schema):
            if "$ref" in node:
                node[_HIDDEN_REF] = node.pop("$ref")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.with_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(self._write)
        )

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Schema:
        return self._schema

    def _read(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if info.mode == "python":  # a result
            if not is_recursive_alias(self._kind) and isinstance(value, self._classes):
                return value
            value = self._write(value)
        if self._exact is not None:
            check_exactly(self._exact, value)
        return msgspec.convert(value, self._kind, dec_hook=dec_hook, str_keys=True)

    def _write(self, value: Any) -> Any:
        return msgspec.to_builtins(value, enc_hook=enc_hook)


class _FieldsSchema:
    """Makes pydantic read a dataclass or TypedDict with replaced annotations."""

    def __init__(self, annotation: Any, inside: tuple[Any, ...]) -> None:
        self._kind: Any = get_origin(annotation) or annotation
        self._ref = f"{self._kind.__module__}.{type_text(annotation)}:{id(self._kind)}-fields"
        parameters = getattr(self._kind, "__parameters__", ())
        self._names: dict[Any, Any] = dict(zip(parameters, get_args(annotation), strict=False))
        self._inside = inside

    def _replace(self, hint: Any) -> Any:
        """Return a translated annotation, in which the parameters of a generic class have values."""
        if isinstance(hint, TypeVar):
            hint = self._names.get(hint, hint)
        elif parameters := getattr(hint, "__parameters__", ()):
            hint = hint[tuple(self._names.get(each, each) for each in parameters)]
        return translate(hint, (*self._inside, self._ref))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        if self._ref in self._inside:
            return core_schema.definition_reference_schema(self._ref)
        if not is_dataclass(self._kind):
            members = {
                name: core_schema.typed_dict_field(handler.generate_schema(self._replace(hint)), required=required)
                for name, hint, required in typed_dict_members(self._kind)
            }
            return core_schema.typed_dict_schema(members, cls=self._kind, ref=self._ref)
        source, hints = self._kind, get_type_hints(self._kind, include_extras=True)
        made: list[Any] = []
        for name, hint in hints.items():
            if isinstance(hint, InitVar):
                wanted: Any = cast("Any", hint).type
                schema = handler.generate_schema(self._replace(wanted))
                if hasattr(source, name):
                    schema = core_schema.with_default_schema(schema, default=getattr(source, name))
                made.append(core_schema.dataclass_field(name, schema, init_only=True))
        has_init_only = bool(made)
        for field in fields(source):
            schema = handler.generate_schema(self._replace(hints[field.name]))
            if field.default is not MISSING:
                schema = core_schema.with_default_schema(schema, default=field.default)
            elif field.default_factory is not MISSING:
                schema = core_schema.with_default_schema(schema, default_factory=field.default_factory)
            made.append(core_schema.dataclass_field(field.name, schema, init=field.init, kw_only=field.kw_only is True))
        arguments = core_schema.dataclass_args_schema(source.__name__, made, collect_init_only=has_init_only)
        names = [field.name for field in fields(source)]
        return core_schema.dataclass_schema(
            source,
            arguments,
            names,
            post_init=hasattr(source, "__post_init__"),
            slots=hasattr(source, "__slots__"),
            ref=self._ref,
        )


def _encode_checked(codec: Codec, check: SchemaValidator, schema: Schema, value: Any) -> bytes:
    """Return the JSON of a value. Builtins in place of a model are validated and encoded as the model."""
    made: Any = value
    try:
        made = check.validate_python(value)
        if isinstance(made, pydantic.BaseModel):
            unset = sorted(type(made).model_fields.keys() - made.__dict__.keys())
            if unset:  # `model_construct` doesn't validate anything
                raise output_error(f"missing {list_names(unset)}")
        data: bytes = codec.serializer.to_json(made, by_alias=True, warnings="error")
    except pydantic.ValidationError as error:
        problems = (_problem(item, value) for item in error.errors(include_url=False)[:MAX_NAMED])
        raise output_error("; ".join(f"{place(each.path)} {each.text}" for each in problems)) from None
    except PydanticSerializationError:
        data = codec.serializer.to_json(made, by_alias=True, warnings=False)
        # A default of another type isn't validated, and can be JSON of the right type.
        for problem in find_problems(schema, msgspec.json.decode(data), steps=inf, first=True):
            raise output_error(f"{subject(problem.path)}{problem.text}") from None
    if b"null" in data:
        plain = codec.serializer.to_python(made)
        check_numbers(schema, pydantic_core.to_jsonable_python(plain, inf_nan_mode="constants", bytes_mode="base64"))
    return data


@once_per_type
def output_of(annotation: Any) -> Output | None:
    """Return the output for a return type, or None if it isn't structured.

    Raises:
        OutputError: pydantic doesn't support the type.
    """
    try:
        adapter = _adapter(annotation)
        schema = adapter.json_schema(by_alias=True, mode="serialization", schema_generator=SchemaGenerator)
        codec = codec_of(adapter)
    except RegistrationError:
        raise
    except _UNREADABLE as error:
        raise OutputError(_explain_failure(type_text(annotation), error)) from error
    schema = _clean_schema(schema, schema.get("title", ""))
    drop_formats(schema, LOOSE)
    if not is_structured(schema):
        return None
    return Output(schema, partial(_encode_checked, codec, checker_of(adapter.core_schema), schema))


def writers_of(annotation: Any) -> tuple[Output | None, Callable[[Any], Any] | None]:
    """Return the `output` and `write` of an engine for a return type. Raises the errors of `output_of`."""
    output = output_of(annotation)
    adapter = None if output else _adapter(annotation)
    if adapter is None or not _has_serializer(adapter.core_schema):
        return output, None
    return None, partial(codec_of(adapter).serializer.to_python, mode="json", by_alias=True)


def _has_serializer(node: Any) -> bool:
    """Return whether a program chose how an annotation or one of its alternatives is written."""
    if isinstance(node, tuple):  # an alternative, and its label
        return _has_serializer(node[0])
    function = members(node.get("serialization")).get("function")
    if function is not None:
        return is_programs(function)
    inner = node.get("choices", [node.get("schema")]) if node["type"] in _ALTERNATIVES else ()
    return any(map(_has_serializer, inner))


_ALTERNATIVES = frozenset(("nullable", "union", "default", "function-after", "function-before", "function-wrap"))


def _check_patterns(node: Any) -> None:
    """Check the patterns in a core schema. Raises the error of `matcher_of`."""
    if isinstance(node, list | tuple):
        for each in cast("Sequence[Any]", node):
            _check_patterns(each)
    elif is_object(node):
        if node.get("type") == "str" and "pattern" in node:
            matcher_of(pattern_text(node["pattern"]))
        for key, each in node.items():
            if key not in NO_SCHEMAS:
                _check_patterns(each)


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    made = pydantic.TypeAdapter[Any](_translate_whole(annotation))
    _check_patterns(made.core_schema)
    return made
