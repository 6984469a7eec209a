"""Handlers of custom methods: functions with typed parameters that return a JSON-serializable result."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

import msgspec

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.json_schema import is_object
from millstream._protocol.jsonrpc import MALFORMED, decoder

Handler = Callable[..., Any]
"""``handler(params, context)``, with either parameter optional. Plain or asynchronous."""
Run = Callable[[bytes, Any], Awaitable[Any]]
"""``run(params, context)``, with the parameters as JSON, or empty bytes without parameters."""


def with_decoded_params(handler: Handler, context: type) -> Run:
    """Return a wrapper of a handler that decodes the JSON parameters.

    Args:
        handler: Its first parameter receives the message's parameters, decoded as the annotated type: a msgspec Struct,
            a dataclass, a TypedDict, or a `dict` if there's no annotation.
        context: A parameter annotated with this class, or with a base or subclass of it, receives the context.

    Raises:
        TypeError: The handler has other parameters, or msgspec doesn't support the annotated type.
    """
    name = getattr(handler, "__qualname__", repr(handler))
    hints = get_type_hints(handler, include_extras=True)
    order: list[bool] = []
    decode: Callable[[bytes], Any] | None = None
    for parameter in inspect.signature(handler).parameters.values():
        annotation = hints.get(parameter.name, dict[str, Any])
        if (
            isinstance(annotation, type)
            and annotation is not object
            and (issubclass(annotation, context) or issubclass(context, annotation))
        ):
            order.append(True)
        elif decode is None and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            order.append(False)
            decode = _decoder(annotation, name)
        else:
            raise TypeError(f"{name} must take only the parameters of the message and a {context.__name__}")

    async def run(params: bytes, about: Any) -> Any:
        try:
            value = None if decode is None else decode(params or b"{}")
        except MALFORMED as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
        result = handler(*(about if wants_context else value for wants_context in order))
        return await result if inspect.isawaitable(result) else result

    return run


def _decoder(annotation: Any, name: str) -> Callable[[bytes], Any]:
    try:
        return decoder(annotation)
    except TypeError as exc:
        raise TypeError(f"{name}: msgspec can't read the type of its parameters: {exc}") from exc


def result_object(value: Any) -> dict[str, Any]:
    """Return the members of a result. None becomes an empty object.

    Raises:
        TypeError: The value isn't an object.
    """
    built: Any = {} if value is None else msgspec.to_builtins(value, str_keys=True)
    if not is_object(built):
        raise TypeError(
            f"The result of a method must be an object. Return a mapping or a Struct, not {type(value).__name__}."
        )
    return built
