"""Arguments for a planned function: from JSON or from texts, and what a model reads about those that don't fit.

What the decoder refuses gets a second look. Nothing large is walked in Python, however it came to be refused.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec

from millstream._protocol.depth import too_many_values
from millstream._protocol.json_schema import Schema, integral
from millstream._server.functions.argument_errors import BAD_DECIMAL, MAX_LISTED, MAX_WALKED, expected, explain
from millstream._server.functions.plan import Plan
from millstream._server.functions.pydantic_types import dec_hook
from millstream._server.functions.schema_check import SchemaCheck

MAX_VALUES = 100_000
"""Values in arguments that are slow to check."""
MAX_BUILT = 300_000
"""Values in arguments that are slow to build."""
_NOT_IN_SETS = ("unhashable type: 'list'", "unhashable type: 'dict'")


class ArgumentError(ValueError):
    """Arguments that do not fit; the text is for a model."""


def bind(plan: Plan, values: dict[str, Any]) -> Any:
    """Arguments of a prompt or a resource from their strings: ``"3"`` is an int where one is asked for.

    Raises:
        msgspec.ValidationError: for a text that is not what the parameter asks for.
    """
    if plan.decimals is not None:
        _check_decimals(plan, values)
    return msgspec.convert(values, plan.arguments, strict=False, dec_hook=dec_hook)


def read_texts(plan: Plan, values: dict[str, Any]) -> Any:
    """As `bind`, for callers that don't know plans.

    Raises:
        ArgumentError: with what is wrong.
    """
    try:
        return bind(plan, values)
    except msgspec.ValidationError as error:
        raw = msgspec.json.encode(values) if len(values) <= MAX_LISTED else b""
        text = argument_error(error, plan, raw) if plan.kind == "prompt" else str(error)
        raise ArgumentError(text) from error


def argument_error(error: Exception, plan: Plan, raw: bytes = b"") -> str:
    """What a model has to fix, in words: ``Invalid arguments for tool 'add': 'a' must be an integer, got a string. …``.

    Args:
        error: what `Plan.decoder` or `bind` raised.
        plan: of the function that was to be called.
        raw: the arguments, to name every missing and unknown one and not only the first.
    """
    return f"Invalid arguments for {plan.kind} {plan.name!r}: {explain(error, plan.input_schema, raw)}"


def read_arguments(plan: Plan, raw: bytes) -> Any:
    """Arguments from their JSON: checked against a schema written by hand, if there is one, and decoded.

    What the decoder refuses is tried once more with ``2.0`` read as the integer 2, as JSON Schema does.

    Raises:
        ArgumentError: with what a model has to fix.
    """
    if plan.slow:
        _bound(raw, f"{plan.kind} {plan.name!r}", MAX_BUILT if plan.slow == "build" else MAX_VALUES)
    if plan.check is not None:
        read_checked(raw, f"{plan.kind} {plan.name!r}", plan.input_schema, plan.check)
    try:
        return plan.decoder.decode(raw) if plan.decimals is None else _decode(plan, raw)
    except (msgspec.DecodeError, RecursionError) as error:
        arguments = _lenient(plan, raw) if plan.lenient else _recover(plan, raw, error)
        if arguments is None:
            raise ArgumentError(argument_error(error, plan, raw)) from error
        return arguments
    except TypeError as error:
        if not any(told in str(error) for told in _NOT_IN_SETS):
            raise
        why = f"an array with unique items holds an array or object. {expected(plan.input_schema)}"
        raise ArgumentError(f"Invalid arguments for {plan.kind} {plan.name!r}: {why}") from error


def decode_of(plan: Plan) -> Callable[[Any], Any]:
    """What decodes small raw arguments that fit; for others it raises msgspec.DecodeError, or gives what they are."""
    if plan.decimals is None:
        return plan.decoder.decode

    def decode(raw: Any) -> Any:
        if len(memoryview(raw)) > MAX_WALKED:
            raise msgspec.DecodeError("values have to be counted first")
        return _decode(plan, raw)

    return decode


def _decode(plan: Plan, raw: Any) -> Any:
    arguments = plan.decoder.decode(raw)
    _check_decimals(plan, msgspec.json.decode(raw))
    return arguments


def _check_decimals(plan: Plan, values: Any) -> None:
    """Refuse what only Python reads as a decimal number, in the words of msgspec: ``NaN``, ``1_000``.

    Raises:
        msgspec.ValidationError: naming the place.
    """
    if plan.decimals is not None and (place := plan.decimals(values)) is not None:
        raise msgspec.ValidationError(f"{BAD_DECIMAL} - at `${place}`")


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
        raise ArgumentError(f"Invalid arguments for {item}: {explain(error, schema, b'')}") from error
    if not check.fits(value):
        why = f"{check.reasons(value, len(raw))}. {expected(schema)}"
        raise ArgumentError(f"Invalid arguments for {item}: {why}")
    return value


def _recover(plan: Plan, raw: bytes, error: Exception) -> Any | None:
    """Arguments with every whole number as an integer; `None` when that is not what they lack.

    Each number with a fraction costs a call, so large arguments get no second try.
    """
    if ("got `float`" not in str(error) and "got a number" not in str(error)) or len(raw) > MAX_WALKED:
        return None
    try:
        values = _decode_integral(raw)
        _check_decimals(plan, values)
        return msgspec.convert(values, plan.arguments, dec_hook=dec_hook)
    except msgspec.DecodeError:
        return None


def _lenient(plan: Plan, raw: bytes) -> Any | None:
    """Arguments as hosts and models write them; `None` when they don't fit in this way either."""
    if len(raw) > MAX_WALKED:
        return None
    try:
        values = _decode_integral(raw)
        properties: Schema = plan.input_schema.get("properties", {})
        for name, value in values.items():
            if (
                isinstance(value, str)
                and value.lstrip()[:1] in ("[", "{")
                and not _takes_text(properties.get(name, {}))
            ):
                values[name] = msgspec.json.decode(value)
        _check_decimals(plan, values)
        return msgspec.convert(values, plan.arguments, strict=False, dec_hook=dec_hook)
    except (msgspec.DecodeError, AttributeError, RecursionError):
        return None


def _takes_text(node: Schema) -> bool:
    parts: list[Schema] = node.get("anyOf", [node])
    return any(part.get("type", "string") == "string" and "$ref" not in part for part in parts)


def _whole(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError("Number out of range")
    whole: float = integral(value)
    return whole


_decode_integral = msgspec.json.Decoder(float_hook=_whole).decode
