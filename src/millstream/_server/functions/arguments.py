"""Arguments for a planned function: from JSON or from texts, and what a model reads about those that don't fit.

What the decoder refuses gets a second look. Nothing large is walked in Python, however it came to be refused.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec

from millstream._protocol.depth import too_many_values
from millstream._protocol.errors import shorten
from millstream._protocol.json_schema import Schema, is_integral
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
from millstream._server.functions.schema_check import SchemaCheck

MAX_VALUES = 100_000
"""Values in arguments that are slow to check."""
MAX_BUILT = 300_000
"""Values in arguments that are slow to build."""


class ArgumentError(ValueError):
    """Arguments that do not fit; the text is for a model."""


def bind(plan: Plan, values: dict[str, Any]) -> Any:
    """Arguments of a prompt or a resource from their strings: ``"3"`` is an int where one is asked for.

    Raises:
        msgspec.ValidationError: for a text that is not what the parameter asks for.
    """
    return plan.engine.convert(values, lax=True)


def read_texts(plan: Plan, values: dict[str, Any]) -> Any:
    """As `bind`, for callers that don't know plans.

    Raises:
        ArgumentError: with what is wrong.
    """
    try:
        return bind(plan, values)
    except msgspec.ValidationError as error:
        raise ArgumentError(_text_error(error, plan, values)) from error


def _text_error(error: msgspec.ValidationError, plan: Plan, values: dict[str, Any]) -> str:
    if len(values) > MAX_LISTED:
        return _refusal(plan, explain([engine_problem(error)], plan.input_schema))
    return _refusal(plan, explain(plan.engine.problems(error, values, lax=True), plan.input_schema))


def _refusal(plan: Plan, why: str) -> str:
    return f"Invalid arguments for {plan.kind} {plan.name!r}: {why}"


def argument_error(error: Exception, plan: Plan, raw: bytes = b"") -> str:
    """What a model has to fix, in words: ``Invalid arguments for tool 'add': 'a' must be an integer, got a string. …``.

    Args:
        error: what `Plan.decode` raised.
        plan: of the function that was to be called.
        raw: the arguments, to name every problem and not only the first.
    """
    return _refusal(plan, explain(_problems(error, plan, raw), plan.input_schema))


def _problems(error: Exception, plan: Plan, raw: bytes) -> list[Problem]:
    if len(raw) > MAX_WALKED:
        return [engine_problem(error)]
    try:
        return plan.engine.problems(error, msgspec.json.decode(raw), lax=plan.lenient)
    except (msgspec.DecodeError, RecursionError):
        return [engine_problem(error)]


def read_arguments(plan: Plan, raw: bytes) -> Any:
    """Arguments from their JSON: checked against a schema written by hand, if there is one, and decoded.

    What the decoder refuses is tried once more with ``2.0`` read as the integer 2, as JSON Schema does.

    Raises:
        ArgumentError: with what a model has to fix.
    """
    slow = "check" if plan.check is not None else plan.engine.slow
    if slow:
        _bound(raw, f"{plan.kind} {plan.name!r}", MAX_BUILT if slow == "build" else MAX_VALUES)
    if plan.check is not None:
        read_checked(raw, f"{plan.kind} {plan.name!r}", plan.input_schema, plan.check)
    try:
        return plan.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        arguments = _second_try(plan, raw)
        if arguments is None:
            raise ArgumentError(argument_error(error, plan, raw)) from error
        return arguments
    except TypeError as error:  # an array or object in a set, if it isn't the function's own
        if not (unhashable := _unhashable(plan, raw)):
            raise
        raise ArgumentError(_refusal(plan, explain(unhashable, plan.input_schema))) from error


def _unhashable(plan: Plan, raw: bytes) -> list[Problem]:
    return [] if len(raw) > MAX_WALKED else list(find_problems(plan.engine.input_schema, msgspec.json.decode(raw)))


def decode_of(plan: Plan) -> Callable[[Any], Any]:
    """What decodes small raw arguments that fit; for others it raises msgspec.DecodeError, or gives what they are."""
    if plan.engine.typed is not None:
        return plan.decode
    decode_small = plan.decode

    def decode(raw: Any) -> Any:
        if len(memoryview(raw)) > MAX_WALKED:
            raise msgspec.DecodeError("values have to be counted first")
        return decode_small(raw)

    return decode


def _bound(raw: bytes, item: str, most: int) -> None:
    if len(raw) > MAX_WALKED and too_many_values(raw, most):
        raise ArgumentError(f"Invalid arguments for {item}: it takes at most {most:,} values in one call")


def read_checked(raw: bytes, item: str, schema: Schema, check: SchemaCheck) -> Any:
    """Arguments that fit a schema written by hand, as JSON values.

    Raises:
        ArgumentError: with what a model has to fix.
    """
    _bound(raw, item, MAX_VALUES)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArgumentError(
            f"Invalid arguments for {item}: the arguments don't fit: {shorten(str(error))}. {expected_text(schema)}"
        ) from error
    if not check.fits(value):
        why = f"{check.reasons(value, len(raw))}. {expected_text(schema)}"
        raise ArgumentError(f"Invalid arguments for {item}: {why}")
    return value


def _second_try(plan: Plan, raw: bytes) -> Any | None:
    """Arguments with every whole number as an integer; those of a lenient tool as hosts and models write them.

    None when they don't fit in this way either. Each number with a fraction costs a call, so large arguments get no
    second try.
    """
    if len(raw) > MAX_WALKED or not (plan.lenient or b"." in raw or b"e" in raw or b"E" in raw):
        return None
    try:
        values = _decode_integral(raw)
        if plan.lenient:
            decode_json_texts(plan.input_schema, values)
        return plan.engine.convert(values, lax=plan.lenient)
    except (msgspec.DecodeError, AttributeError, TypeError, RecursionError):
        return None


def decode_json_texts(schema: Schema, values: dict[str, Any]) -> None:
    """Decode arguments that are JSON as text where no text is expected, in place.

    Raises:
        msgspec.DecodeError: a text looks like JSON and isn't.
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
