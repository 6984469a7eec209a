"""Arguments of a planned function, from JSON or texts, and error messages for models.

Arguments that the decoder refuses are examined again. Large ones are never walked in Python.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec

from millstream._protocol.errors import shorten
from millstream._protocol.json_schema import Schema, is_integral
from millstream._protocol.jsonrpc import too_many_values
from millstream._server.functions.engine import SchemaCheck
from millstream._server.functions.plan import Plan
from millstream._server.functions.problems import (
    MAX_LISTED,
    MAX_WALKED,
    Problem,
    engine_problem,
    expected_text,
    explain,
    find_problems,
)

MAX_VALUES = 100_000
"""Maximum number of values in arguments that are slow to validate."""
MAX_BUILT = 300_000
"""Maximum number of values in arguments that are slow to build."""


class ArgumentError(ValueError):
    """Invalid arguments. The text is for a model: ``raise ArgumentError("'isbn' must have 13 digits.")``"""


def read_texts(plan: Plan, values: dict[str, Any]) -> Any:
    """Return the arguments of a prompt or resource from their strings: ``"3"`` becomes an int if the parameter is one.

    Raises:
        ArgumentError: A text doesn't fit its parameter.
    """
    try:
        return plan.engine.convert(values, lax=True)
    except msgspec.ValidationError as error:
        few = len(values) <= MAX_LISTED
        problems = plan.engine.problems(error, values, lax=True) if few else [engine_problem(error)]
        raise _refusal(plan, problems) from error


def _refusal(plan: Plan, problems: list[Problem]) -> ArgumentError:
    """Return the error for a model: ``Invalid arguments for tool 'add': 'a' must be an integer, got a string. …``."""
    return ArgumentError(f"Invalid arguments for {plan.kind} {plan.name!r}: {explain(problems, plan.input_schema)}")


def _problems(error: Exception, plan: Plan, raw: bytes) -> list[Problem]:
    if len(raw) > MAX_WALKED:
        return [engine_problem(error)]
    try:
        return plan.engine.problems(error, msgspec.json.decode(raw), lax=plan.coerce)
    except (msgspec.DecodeError, RecursionError):
        return [engine_problem(error)]


def read_arguments(plan: Plan, raw: bytes) -> Any:
    """Return arguments from JSON, validated against a handwritten schema if there is one.

    If the decoder refuses them, it tries again with ``2.0`` read as the integer 2, as JSON Schema does.

    Raises:
        ArgumentError: The arguments are invalid. The text says what to fix.
    """
    slow = "check" if plan.check is not None else plan.engine.slow
    if slow:
        _check_size(raw, f"{plan.kind} {plan.name!r}", MAX_BUILT if slow == "build" else MAX_VALUES)
    if plan.check is not None:
        read_checked(raw, f"{plan.kind} {plan.name!r}", plan.input_schema, plan.check)
    try:
        return plan.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        arguments = _second_try(plan, raw)
        if arguments is None:
            raise _refusal(plan, _problems(error, plan, raw)) from error
        return arguments
    except TypeError as error:  # an array or object in a set, if it isn't the function's own
        if len(raw) > MAX_WALKED:
            raise
        if not (unhashable := list(find_problems(plan.engine.input_schema, msgspec.json.decode(raw)))):
            raise
        raise _refusal(plan, unhashable) from error


def decode_of(plan: Plan) -> Callable[[Any], Any]:
    """Return a decoder of small raw arguments. For invalid ones it raises msgspec.DecodeError, or returns them
    unchanged.
    """
    if plan.engine.typed is not None:
        return plan.decode
    decode_small = plan.decode

    def decode(raw: Any) -> Any:
        if len(memoryview(raw)) > MAX_WALKED:
            raise msgspec.DecodeError("the number of values must be checked first")
        return decode_small(raw)

    return decode


def _check_size(raw: bytes, item: str, most: int) -> None:
    if len(raw) > MAX_WALKED and too_many_values(raw, most):
        raise ArgumentError(f"Invalid arguments for {item}: at most {most:,} values are allowed in one call")


def read_checked(raw: bytes, item: str, schema: Schema, check: SchemaCheck) -> Any:
    """Return arguments as JSON values, validated against a handwritten schema.

    Raises:
        ArgumentError: The arguments are invalid. The text says what to fix.
    """
    _check_size(raw, item, MAX_VALUES)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArgumentError(
            f"Invalid arguments for {item}: they can't be decoded: {shorten(str(error))}. {expected_text(schema)}"
        ) from error
    if not check.fits(value):
        why = f"{check.reasons(value, len(raw))}. {expected_text(schema)}"
        raise ArgumentError(f"Invalid arguments for {item}: {why}")
    return value


def _second_try(plan: Plan, raw: bytes) -> Any | None:
    """Return arguments in which ``2.0`` is the integer 2, and coerced if the tool's `coerce` is set.

    Return None if they still don't fit. Each number with a fraction costs a call, so large arguments aren't tried
    again.
    """
    if len(raw) > MAX_WALKED or not (plan.coerce or b"." in raw or b"e" in raw or b"E" in raw):
        return None
    try:
        values = _decode_integral(raw)
        if plan.coerce:
            decode_json_texts(plan.input_schema, values)
        return plan.engine.convert(values, lax=plan.coerce)
    except (msgspec.DecodeError, AttributeError, TypeError, RecursionError):
        return None


def decode_json_texts(schema: Schema, values: dict[str, Any]) -> None:
    """Decode JSON strings where the schema expects no text, in place.

    Raises:
        msgspec.DecodeError: A text looks like JSON but isn't.
    """
    properties: Schema = schema.get("properties", {})
    for name, value in values.items():
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and not _takes_text(properties.get(name, {})):
            values[name] = msgspec.json.decode(value)


def _takes_text(node: Schema) -> bool:
    parts: list[Schema] = node.get("anyOf", [node])
    return any(part.get("type", "string") == "string" and "$ref" not in part for part in parts)


def _whole(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError("Number out of range")
    whole: float = is_integral(value)
    return whole


_decode_integral = msgspec.json.Decoder(float_hook=_whole).decode
