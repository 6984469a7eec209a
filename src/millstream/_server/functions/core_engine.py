"""The engine of functions with any types: core schemas of `core_types`, which pydantic's validator reads."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from decimal import Decimal
from functools import partial
from importlib import import_module
from math import inf
from operator import eq
from typing import Any, cast

import msgspec
import pydantic_core
from msgspec import NODEFAULT
from pydantic_core import PydanticSerializationError, SchemaSerializer, SchemaValidator, ValidationError

from millstream._override import override
from millstream._protocol.json_schema import Schema, members
from millstream._protocol.jsonrpc import too_many_values
from millstream._server.functions.core_forms import (
    checker_of,
    is_whole,
    reader_of,
    serializer_of,
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
    Engine,
    Output,
    OutputError,
    check_numbers,
    encode,
    is_structured,
    once_per_type,
    output_error,
)
from millstream._server.functions.parameters import (
    ArgumentList,
    Parameter,
    PatternError,
    is_programs,
    is_pydantic,
    is_pydantic_field,
    parts_of,
    split_annotation,
)
from millstream._server.functions.patterns import search
from millstream._server.functions.problems import (
    MAX_SLOW_STEPS,
    MAX_WALKED,
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


class CoreEngine(Engine):
    """The engine of all other functions.

    Raises:
        TypeError: A type isn't supported.
        RegistrationError: A bound of our `Field` would be ignored.
    """

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
        validate, struct, most = reader_of(core).validate_json, self.struct, arguments.max_values

        def decode(raw: Any) -> Any:
            data = bytes(raw)
            if len(data) > MAX_WALKED and too_many_values(data, most):
                raise msgspec.ValidationError(f"at most {most:,} values are allowed per call")
            try:
                made = validate(data)
            except ValidationError as error:
                raise msgspec.ValidationError(f"{error.error_count()} problems") from error
            return struct(*made.values())  # the fields, in order

        self.decode = decode

    @override
    def convert(self, values: Mapping[str, Any]) -> Any:
        """See `Engine`."""
        return self.decode(msgspec.json.encode(values))

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
        # A model can accept more than its schema lists, and its validators less.
        listed = [_problem(item, values) for item in cause.errors(include_url=False)]
        in_words = [
            each
            for each in find_problems(self.input_schema, values, matches=search, steps=MAX_SLOW_STEPS)
            if any(all(map(eq, each.path, other.path)) for other in listed)
        ]
        places = {each.path[:depth] for each in in_words for depth in range(len(each.path) + 1)}
        found = [*in_words, *(each for each in listed if each.path not in places)]
        inner = {each.path[:depth] for each in found for depth in range(len(each.path))}
        return list(dict.fromkeys(each for each in found if each.path not in inner))


def _read_pydantic(annotation: Any, reader: TypeReader) -> TypeSchemas:
    made: TypeSchemas = import_module("millstream._server.functions.pydantic_types").read(annotation, reader)
    return made


def _read_parameter(parameter: Parameter, reader: TypeReader) -> TypeSchemas:
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


def _encode_checked(
    serializer: SchemaSerializer, check: SchemaValidator, schema: Schema, warnings: Any, value: Any
) -> bytes:
    """Return the JSON of a value. Builtins in place of a model are validated and encoded as the model.

    Args:
        warnings: What the serializer does about values of other types. False takes less time.
    """
    made: Any = value
    try:
        made = check.validate_python(value)
        if hasattr(made, "model_construct"):
            listed = cast("Any", type(made)).model_fields
            unset: list[str] = sorted(listed.keys() - made.__dict__.keys())
            if unset:  # `model_construct` doesn't validate anything
                raise output_error(f"missing {list_names(unset)}")
        data: bytes = serializer.to_json(made, by_alias=True, warnings=warnings)
    except ValidationError as error:
        problems = [_problem(item, value) for item in error.errors(include_url=False)[:MAX_NAMED]]
        with suppress(TypeError, ValueError, RecursionError):
            found = find_problems(schema, msgspec.json.decode(encode(value)))
            problems = [
                next((inner for inner in found if inner.path[: len(each.path)] == each.path), each) for each in problems
            ]
        raise output_error(problem_text([*dict.fromkeys(problems)], whole="it")) from None
    except PydanticSerializationError:
        data = serializer.to_json(made, by_alias=True, warnings=False)
        # A default of another type isn't validated, and can be JSON of the right type.
        for problem in find_problems(schema, msgspec.json.decode(data), steps=inf, first=True):
            raise output_error(f"{subject(problem.path)}{problem.text}") from None
    if b"null" in data:
        plain = serializer.to_python(made)
        check_numbers(schema, pydantic_core.to_jsonable_python(plain, inf_nan_mode="constants", bytes_mode="base64"))
    return data


@once_per_type
def output_of(annotation: Any) -> Output | None:
    """Return the output for a return type, or None if it isn't structured.

    Raises:
        OutputError: The type isn't supported.
    """
    core, schema = read_result(annotation, _read_pydantic)
    if not is_structured(schema):
        return None
    kinds = [kind for _, kind in parts_of(annotation)]
    is_checked = not any(is_pydantic(each) or (is_dataclass(each) and not is_whole(each)) for each in kinds)
    try:
        check, warnings = checker_of(core), False if is_checked else "error"
        return Output(schema, partial(_encode_checked, serializer_of(core), check, schema, warnings))
    except PatternError as error:
        raise OutputError(str(error)) from error


def writers_of(annotation: Any) -> tuple[Output | None, Callable[[Any], Any] | None]:
    """Return the `output` and `write` of an engine for a return type. Raises the errors of `output_of`."""
    output = output_of(annotation)
    core = None if output else read_result(annotation, _read_pydantic).core
    if core is None or not _has_serializer(core):
        return output, None
    return None, partial(serializer_of(core).to_python, mode="json", by_alias=True)


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
