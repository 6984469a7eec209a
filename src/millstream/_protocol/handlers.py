"""Handlers of custom methods and filters of notifications, for extensions on both sides.

A handler is a function with typed parameters that returns a JSON-serializable result. A filter sees, changes, or drops
notifications in both directions.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.json_schema import is_object
from millstream._protocol.jsonrpc import (
    MALFORMED,
    Envelope,
    Json,
    decode_object,
    decoder,
    encode,
    notification_message,
)
from millstream._protocol.principal import Principal

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
        annotation = hints.get(parameter.name, Json)
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
            raise TypeError(f"{name} must take only the message's parameters and a {context.__name__}.")

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
        raise TypeError(f"{name}: msgspec can't read the type of its parameters: {exc}.") from exc


def result_object(value: Any) -> Json:
    """Return the members of a result. None becomes an empty object.

    Raises:
        TypeError: The value isn't an object.
    """
    built: Any = {} if value is None else msgspec.to_builtins(value, str_keys=True)
    if not is_object(built):
        raise TypeError(
            f"A method's result must be an object. Return a mapping or a Struct, not {type(value).__name__}."
        )
    return built


_HEAD = b'{"jsonrpc":"2.0","method":'
"""The beginning of each notification that this side sends. A request has its id there."""


class NotificationMessage(Struct):
    """An incoming or outgoing notification. See `Extension.filter_notification`."""

    method: str
    params: Json
    incoming: bool
    principal: Principal | None = None
    """The peer, if it's authenticated."""


NotificationFilter = Callable[[NotificationMessage], NotificationMessage | None]
"""Returns the notification, a changed one, or None to drop it. It must not block."""


class _SentMessage(Struct, gc=False):
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decode_outgoing = decoder(_SentMessage)


class NotificationFilters(list[NotificationFilter]):
    """The filters of one server or client, outermost first: ``listener.filters.filter_outgoing(message)``.

    An appended filter is the innermost one: it runs last for incoming notifications and first for outgoing ones.

    Args:
        log_error: The `error` method of a logger. If a filter raises, it's logged, and the notification is dropped.
    """

    def __init__(self, log_error: Callable[..., object]) -> None:
        super().__init__()
        self._log_error = log_error

    def filter_incoming(self, message: Envelope, principal: Principal | None = None) -> Envelope | None:
        """Return a notification from the peer after filtering, or None to drop it.

        Args:
            message: The notification.
            principal: The peer, if it's an authenticated client.
        """
        if not self:
            return message
        passed = self._pass(message.method, message.params, principal, incoming=True)
        if passed is None:
            return None
        return msgspec.structs.replace(message, method=passed.method, params=encode(passed.params))

    def filter_outgoing(self, message: bytes, principal: Principal | None = None) -> bytes:
        """Return a message after filtering, or empty bytes to drop it. Requests and answers aren't filtered.

        Args:
            message: The message as JSON.
            principal: The peer, if it's an authenticated client.
        """
        if not self or not message.startswith(_HEAD):
            return message
        sent = _decode_outgoing(message)
        passed = self._pass(sent.method, bytes(sent.params), principal, incoming=False)
        return b"" if passed is None else notification_message(passed.method, passed.params)

    def _pass(
        self, method: str, params: bytes, principal: Principal | None, *, incoming: bool
    ) -> NotificationMessage | None:
        try:
            message = NotificationMessage(method, decode_object(params or b"{}"), incoming, principal)
        except MALFORMED:
            return None  # params are an object, or missing
        try:
            for each in self if incoming else reversed(self):
                kept = each(message)
                if kept is None:
                    return None
                message = kept
        except Exception as error:
            self._log_error("A notification filter failed, so %s was dropped.", method, exc_info=error)
            return None
        return message
