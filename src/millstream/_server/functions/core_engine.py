"""The engine of functions with any types: core schemas of `core_types`, which pydantic's validator reads."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from decimal import Decimal
from functools import partial
from importlib import import_module
from math import inf
from typing import Any, cast

import msgspec
import pydantic_core
from msgspec import NODEFAULT
from pydantic_core import PydanticSerializationError, SchemaValidator, ValidationError

from millstream._override import override
from millstream._protocol.json_schema import Schema, has_no_number, members
from millstream._server.functions.core_forms import (
    Codec,
    checker_of,
    codec_of,
    is_programs,
    map_core,
    pattern_text,
    reader_of,
)
from millstream._server.functions.core_types import (
    HIDDEN,
    TypeReader,
    TypeSchemas,
    describe_arguments,
    read_result,
    with_default,
)
from millstream._server.functions.dependencies import RegistrationError
from millstream._server.functions.msgspec_engine import (
    MAX_VALUES,
    Engine,
    Output,
    check_numbers,
    default_error,
    enc_hook,
    encode,
    is_structured,
    once_per_type,
    output_error,
)
from millstream._server.functions.parameters import (
    ArgumentList,
    Parameter,
    is_pydantic_field,
    needs_pydantic,
    split_annotation,
)
from millstream._server.functions.patterns import matcher_of
from millstream._server.functions.problems import (
    MAX_SLOW_STEPS,
    Path,
    Problem,
    find_problems,
    got_text,
    list_names,
    problem_text,
    subject,
)

MAX_ERRORS = 200
"""Maximum number of problems that pydantic lists, because listing one requires building all."""
MAX_NAMED = 20
_SHOWN = (str, int, float, Decimal)
_UNMATCHED = "string_pattern_mismatch"


class CoreEngine(Engine):
    """The engine of all other functions.

    Raises:
        TypeError: A type isn't supported.
        RegistrationError: A bound of our `Field` would be ignored.
    """

    max_values = MAX_VALUES
    typed = None

    def __init__(self, arguments: ArgumentList) -> None:
        parameters, reader = arguments.parameters, TypeReader(_read_pydantic)
        made = [_read_parameter(each, reader) for each in parameters]
        fields = {
            each.name: {
                "type": "typed-dict-field",
                "schema": described.core,
                "required": described.core["type"] != "default",
                "validation_alias": each.wire,
            }
            for each, described in zip(parameters, made, strict=True)
        }
        core = {"type": "typed-dict", "fields": fields, "extra_behavior": "forbid" if arguments.closed else "ignore"}
        core = reader.whole_core(core)
        self.input_schema = describe_arguments(arguments, reader, made)
        self.struct = msgspec.defstruct(
            arguments.function, [(parameter.name, Any) for parameter in parameters], gc=False
        )
        check_patterns(core)
        validator = reader_of(core)
        for each, described in zip(parameters, made, strict=True):
            _check_default(each, described, validator, self.input_schema)
        self.decode = partial(self._read, validator.validate_json)

    @override
    def convert(self, values: Mapping[str, Any]) -> Any:
        """See `Engine`."""
        return self.decode(msgspec.json.encode(values))

    def _read(self, validate: Callable[[bytes], Any], raw: Any) -> Any:
        try:
            made = validate(bytes(raw))
        except ValidationError as error:
            raise msgspec.ValidationError(f"{error.error_count()} problems") from error
        return self.struct(*made.values())  # the fields, in order

    @override
    def problems(self, error: Exception, values: Any) -> list[Problem]:
        """See `Engine`."""
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            return super().problems(error, values)
        count = cause.error_count()
        if count > MAX_ERRORS:
            known = find_problems(self.input_schema, values)
            return known or [Problem((), f"have {count:,} problems")]
        items = cause.errors(include_url=False)
        # pydantic has tried the patterns. Another matcher may be slower, or disagree.
        unmatched = {(each.get("ctx", {})["pattern"], each["input"]) for each in items if each["type"] == _UNMATCHED}

        def matches(pattern: str, text: str) -> bool:
            return (pattern, text) not in unmatched

        in_words = {
            each.path: each for each in find_problems(self.input_schema, values, matches=matches, steps=MAX_SLOW_STEPS)
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


def _read_pydantic(annotation: Any, reader: TypeReader) -> TypeSchemas:
    made: TypeSchemas = import_module("millstream._server.functions.pydantic_types").read(annotation, reader)
    return made


def _read_parameter(parameter: Parameter, reader: TypeReader) -> TypeSchemas:
    needs_pydantic(parameter.annotation)  # raises RegistrationError
    made = reader.read(parameter.annotation)
    if made.schema is HIDDEN:
        raise RegistrationError("its schema is hidden from clients. Mark it with Depends instead")
    if parameter.default is not NODEFAULT:
        return with_default(made, parameter.default)
    for each in split_annotation(parameter.annotation)[1]:
        if not is_pydantic_field(each):
            continue
        if each.default_factory is not None:
            takes_data = each.default_factory_takes_validated_data
            core = {"default_factory": each.default_factory, "default_factory_takes_data": takes_data}
            return TypeSchemas({"type": "default", "schema": made.core, **core}, made.schema)
        if not each.is_required():
            described = with_default(made, each.default)
            return described._replace(core={**described.core, "validate_default": bool(each.validate_default)})
    return made


def _check_default(parameter: Parameter, made: TypeSchemas, validator: SchemaValidator, schema: Schema) -> None:
    """Check that clients could send a default, if it can be written as JSON.

    Raises:
        RegistrationError: It doesn't match its type.
    """
    default = made.core.get("default") if made.core["type"] == "default" else None
    if default is None:
        return
    value = {parameter.wire: default}
    try:
        written = msgspec.json.encode(value, enc_hook=enc_hook)
    except (TypeError, ValueError, RecursionError):
        return  # the function's own sentinel, which only makes the argument optional
    # Models write other members than they read.
    why = _first_error(validator.validate_json, written) and _first_error(validator.validate_python, value)
    if why and not has_no_number(default):
        raise default_error(
            default, schema["properties"][parameter.wire], msgspec.json.decode(written)[parameter.wire], why
        )


def _first_error(validate: Callable[[Any], Any], values: Any) -> str:
    """Return the first error of the values, or an empty string. Other arguments can be missing."""
    try:
        validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        return next((each["msg"] for each in found if each["type"] != "missing" or len(each["loc"]) > 1), "")
    return ""


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


def _encode_checked(codec: Codec, check: SchemaValidator, schema: Schema, value: Any) -> bytes:
    """Return the JSON of a value. Builtins in place of a model are validated and encoded as the model."""
    made: Any = value
    try:
        made = check.validate_python(value)
        if hasattr(made, "model_construct"):
            listed = cast("Any", type(made)).model_fields
            unset: list[str] = sorted(listed.keys() - made.__dict__.keys())
            if unset:  # `model_construct` doesn't validate anything
                raise output_error(f"missing {list_names(unset)}")
        data: bytes = codec.serializer.to_json(made, by_alias=True, warnings="error")
    except ValidationError as error:
        problems = [_problem(item, value) for item in error.errors(include_url=False)[:MAX_NAMED]]
        with suppress(TypeError, ValueError, RecursionError):
            in_words = {each.path: each for each in find_problems(schema, msgspec.json.decode(encode(value)))}
            problems = [in_words.get(each.path, each) for each in problems]
        raise output_error(problem_text(problems, whole="it")) from None
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
        OutputError: The type isn't supported.
    """
    core, schema = _read_result(annotation)
    if not is_structured(schema):
        return None
    return Output(schema, partial(_encode_checked, codec_of(core), checker_of(core), schema))


def _read_result(annotation: Any) -> TypeSchemas:
    return read_result(annotation, _read_pydantic, check_patterns)


def writers_of(annotation: Any) -> tuple[Output | None, Callable[[Any], Any] | None]:
    """Return the `output` and `write` of an engine for a return type. Raises the errors of `output_of`."""
    output = output_of(annotation)
    core = None if output else _read_result(annotation).core
    if core is None or not _has_serializer(core):
        return output, None
    return None, partial(codec_of(core).serializer.to_python, mode="json", by_alias=True)


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


def check_patterns(node: Any) -> Any:
    """Check the patterns in a core schema. Raises the error of `matcher_of`."""
    if members(node).get("type") == "str" and "pattern" in node:
        matcher_of(pattern_text(node["pattern"]))
    return map_core(node, check_patterns)
