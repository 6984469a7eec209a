"""The event types that a server declares, and the errors of the events extension.

An event type has a hub channel, a schema for the payload, and a filter for subscriptions. The error codes are
those of SEP-3415.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

from millstream import Principal, ProtocolError
from millstream.extensions import JsonType, LocalError, scopes_of
from millstream.hub import Event, check_channel
from millstream.protocol import INVALID_PARAMS, MALFORMED, Json, decode_object, is_array, is_object, shorten

NOT_FOUND = -32023
FORBIDDEN = -32024
RESOURCE_EXHAUSTED = -32025
UNSUPPORTED_OPTION = -32026
CALLBACK_ENDPOINT_ERROR = -32027


def invalid(reason: str) -> ProtocolError:
    """Return the error for an invalid request."""
    return ProtocolError(INVALID_PARAMS, f"Invalid params: {reason}")


def forbidden_error(reason: str) -> ProtocolError:
    """Return the error for a caller without permission to subscribe."""
    return ProtocolError(FORBIDDEN, f"Forbidden: {reason}", {"reason": reason})


def unknown_event_error(name: str) -> ProtocolError:
    """Return the error for an event type that the server doesn't have, or no longer has."""
    return ProtocolError(NOT_FOUND, f"There is no event {name[:200]!r}.", {"kind": "event"})


def limit_error(limit: str, most: int | None = None) -> ProtocolError:
    """Return the error for reaching one of the server's limits."""
    data: Json = {"limit": limit} if most is None else {"limit": limit, "max": most}
    return ProtocolError(RESOURCE_EXHAUSTED, f"A server limit was reached: {limit}", data)


MAX_BODY = 256 * 1024
"""Maximum size of a delivered event, in bytes. Receivers may reject larger ones."""
MAX_ARGUMENTS = 16 * 1024
"""Maximum size of a subscription's arguments, in bytes, as canonical JSON."""

_MAX_WHOLE = 1e21
"""Whole numbers below it are written without an exponent."""

Match = Callable[[Any, Any, Principal | None], bool]
"""``match(payload, arguments, principal)`` returns whether a subscription receives an event. It must not block."""

logger = logging.getLogger("millstream.events")
_encode_canonical = msgspec.json.Encoder(order="sorted").encode


class Arguments(Struct, frozen=True):
    """The arguments of a subscription, as typed values and as canonical JSON."""

    value: Any
    """The value for `match`: an instance of the declared type, or a dictionary."""
    values: Mapping[str, Any]
    canonical: bytes


class EventType:
    """A declared event type.

    Args:
        name: Name of the event and of its hub channel.
        payload: Type of the data, an object.
        arguments: Type of the subscriptions' arguments, an object. By default, the fields of the payload are filters.
        match: Function that decides which subscriptions receive an event. By default, each argument must equal the
            field of the payload with its name. Arguments without such a field are ignored.
        description: Description for clients, by default the first paragraph of the payload's docstring.
        scopes: Scopes that a caller needs to see the event type.

    Raises:
        InvalidName: The name isn't a valid channel name.
        TypeError: A type isn't an object, or has no JSON schema.
    """

    def __init__(
        self,
        name: str,
        payload: Any,
        *,
        arguments: Any = None,
        match: Match | None = None,
        description: str = "",
        scopes: Collection[str] = (),
    ) -> None:
        check_channel(name)
        self.name: str = name
        self.payload: Any = payload
        self.scopes: frozenset[str] = frozenset(scopes)
        self.description: str = description or _summary(payload)
        self._type = JsonType(payload)
        self.payload_schema: Json = _object_schema(self._type, name, "payload")
        self.fields: frozenset[str] = frozenset(self.payload_schema.get("properties", {}))
        self._arguments = None if arguments is None else JsonType(arguments)
        self.input_schema: Json = (
            _filters_of(self.payload_schema)
            if self._arguments is None
            else _object_schema(self._arguments, name, "arguments")
        )
        self._match = match
        self.is_removed: bool = False
        """Whether the server no longer offers the event type."""
        self.on_removal: set[Callable[[], None]] = set()
        """Called when the event type is removed, such as by open streams."""

    @property
    def has_match(self) -> bool:
        """Whether `match` was specified."""
        return self._match is not None

    def describe(self, delivery: list[str]) -> Json:
        """Return the entry of `events/list`.

        Args:
            delivery: Delivery modes of this server.
        """
        described: Json = {"name": self.name}
        if self.description:
            described["description"] = self.description
        return {
            **described,
            "delivery": delivery,
            "inputSchema": self.input_schema,
            "payloadSchema": self.payload_schema,
        }

    # Arguments

    def read_arguments(self, raw: Raw | bytes) -> Arguments:
        """Return the arguments of a subscription.

        Args:
            raw: The arguments as JSON text; empty or ``null`` for none.

        Raises:
            ProtocolError: INVALID_PARAMS. The message identifies the invalid argument.
        """
        text = bytes(raw)
        if text in (b"", b"null"):
            text = b"{}"
        try:
            values = decode_object(text)
            canonical = _encode_canonical(_with_plain_numbers(values))
        except MALFORMED as error:
            raise invalid("arguments must be an object") from error
        if len(canonical) > MAX_ARGUMENTS:
            raise invalid(f"arguments must not exceed {MAX_ARGUMENTS} bytes")
        if self._arguments is None:
            unknown = sorted(values.keys() - self.fields)
            if unknown:
                raise invalid(f"{self.name} has no field {shorten(unknown[0])!r} to filter by")
            for name, value in values.items():
                if not _fits(value, self.input_schema["properties"][name]):
                    raise invalid(f"{name} must have the type that inputSchema declares")
            return Arguments(values, values, canonical)
        try:
            value = self._arguments.read(text)
        except ValueError as error:
            raise invalid(f"arguments: {shorten(str(error))}") from error
        return Arguments(value, values, canonical)

    # Payloads

    def encode(self, data: Any) -> bytes:
        """Encode a payload as JSON.

        Args:
            data: A value of the declared type.

        Raises:
            LocalError: It doesn't match the declared type, or it's too large.
            TypeError: It can't be encoded as JSON.
        """
        written = JsonType.write(data)
        if len(written) + 2048 > MAX_BODY:
            limit = MAX_BODY - 2048
            raise LocalError(
                f"The data for the event {self.name!r} has {len(written)} bytes, more than the limit of {limit}. "
                "Publish an id, and let clients read the rest with a tool."
            )
        try:
            self.read(written)
        except ValueError as error:
            raise LocalError(f"The data doesn't match the event {self.name!r}: {error}.") from error
        return written

    def read(self, written: bytes) -> Any:
        """Return a payload of the declared type from JSON.

        Args:
            written: The JSON that `encode` returned.

        Raises:
            ValueError: The JSON doesn't match the type.
        """
        return self._type.read(written)

    def matches(self, payload: Any, data: Mapping[str, Any], arguments: Arguments, principal: Principal | None) -> bool:
        """Return whether a subscription receives an event. A `match` that raises excludes it.

        Args:
            payload: The event's payload, of the declared type.
            data: The payload as JSON values.
            arguments: Arguments of the subscription.
            principal: The subscriber.
        """
        if self._match is None:
            return all(data.get(name) == value for name, value in arguments.values.items() if name in self.fields)
        try:
            return bool(self._match(payload, arguments.value, principal))
        except Exception:
            logger.exception("The match function of the event %r failed; the event isn't delivered", self.name)
            return False


class Reader(Struct):
    """Decides which events of a type one subscription receives."""

    kind: EventType
    arguments: Arguments
    principal: Principal | None
    oldest: float = 0.0
    """Events published before this Unix time are skipped."""
    has_skipped: bool = False
    """Whether an event was skipped because it was too old."""

    def accepts(self, event: Event) -> bool:
        """Return whether the subscription receives an event. Data that doesn't match the schema is ignored."""
        if event.timestamp < self.oldest:
            self.has_skipped = True
            return False
        data = event.data or b""
        try:
            payload, values = self.kind.read(data), decode_object(data)
        except MALFORMED:
            return False
        return self.kind.matches(payload, values, self.arguments, self.principal)


T = TypeVar("T")


class FilterIndex(Struct, Generic[T]):
    """An index of an event type's subscribers by the values in their filters.

    The time to find an event's subscribers doesn't depend on the total number of subscribers.
    """

    _kind: EventType
    _by_values: dict[tuple[str, ...], dict[tuple[Any, ...], dict[T, None]]] = {}
    """Subscribers, indexed by filter name and value."""
    _keys: dict[T, tuple[tuple[str, ...], tuple[Any, ...]]] = {}
    """The place of each subscriber in `_by_values`."""
    _others: dict[T, Reader] = {}
    """Subscribers to check one by one: for a `match` function, or by a list or object."""

    def add(self, subscriber: T, reader: Reader) -> None:
        """Add a subscriber, indexed by its arguments."""
        arguments = reader.arguments.values
        names = tuple(name for name in sorted(arguments) if name in self._kind.fields)
        values = tuple(arguments[name] for name in names)
        if self._kind.has_match or any(isinstance(each, dict | list) for each in values):
            self._others[subscriber] = reader
        else:
            self._by_values.setdefault(names, {}).setdefault(values, {})[subscriber] = None
            self._keys[subscriber] = names, values

    def discard(self, subscriber: T) -> None:
        """Remove a subscriber. Idempotent."""
        self._others.pop(subscriber, None)
        names, values = self._keys.pop(subscriber, ((), None))
        if values is not None:
            groups = self._by_values[names]
            del groups[values][subscriber]
            if not groups[values]:
                del groups[values]
            if not groups:
                del self._by_values[names]

    def find(self, written: bytes) -> list[T]:
        """Return the subscribers that receive an event, which is decoded once.

        Raises:
            ValueError: The JSON doesn't match the type.
        """
        payload, data = self._kind.read(written), decode_object(written)
        found: list[T] = []
        for names, groups in self._by_values.items():
            with suppress(TypeError):  # a list or object in the payload, which no subscriber here filters by
                found += groups.get(tuple(map(data.get, names)), ())
        for subscriber, reader in self._others.items():
            if self._kind.matches(payload, data, reader.arguments, reader.principal):
                found.append(subscriber)
        return found


def _summary(payload: Any) -> str:
    text = getattr(payload, "__doc__", None) or ""
    return "" if text.startswith(f"{getattr(payload, '__name__', '')}(") else text.strip().partition("\n\n")[0]


def _object_schema(declared: JsonType, name: str, what: str) -> Json:
    schema = declared.schema
    if schema.get("type") != "object":
        raise TypeError(
            f"The {what} of {name!r} must be an object: use a dataclass, Struct, TypedDict, or pydantic model."
        )
    return schema


def _filters_of(payload: Json) -> Json:
    """Return the schema of arguments where each field of the payload is an optional filter."""
    properties = {
        name: each if isinstance(each, bool) else {key: value for key, value in each.items() if key != "default"}
        for name, each in payload.get("properties", {}).items()
    }
    schema: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "$defs": payload["$defs"]} if "$defs" in payload else schema


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str, "boolean": bool, "array": list, "object": dict, "null": type(None), "number": (int, float),
    "integer": int,
}  # fmt: skip


def _fits(value: Any, schema: Any) -> bool:
    """Return whether a value has a type and is one of the values that a schema allows. References allow any."""
    if not is_object(schema):
        return True
    if either := schema.get("anyOf"):
        return any(_fits(value, each) for each in either)
    if "enum" in schema and value not in schema["enum"]:
        return False
    types = schema.get("type", ())
    value = _with_plain_numbers(value)
    return not types or any(
        isinstance(value, _TYPES[each]) and (each == "boolean" or not isinstance(value, bool))
        for each in ([types] if isinstance(types, str) else types)
    )


def _with_plain_numbers(value: Any) -> Any:
    """Return a JSON value with one spelling of each whole number (RFC 8785 §3.2.2.3)."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _MAX_WHOLE else value
    if is_array(value):
        return [_with_plain_numbers(each) for each in value]
    return {key: _with_plain_numbers(each) for key, each in value.items()} if is_object(value) else value


class EventCatalog(Struct):
    """Event types by name and by the class of their payload."""

    _by_name: dict[str, EventType] = {}
    _by_payload: dict[Any, EventType] = {}

    def add(self, kind: EventType) -> None:
        """Declare an event type.

        Raises:
            ValueError: The name or the payload class is taken.
        """
        if kind.name in self._by_name:
            raise ValueError(f"There is already an event {kind.name!r}. Choose another name.")
        if kind.payload in self._by_payload:
            other = self._by_payload[kind.payload].name
            raise ValueError(
                f"{kind.payload.__name__} is already the payload of {other!r}. Define another class for {kind.name!r}."
            )
        self._by_name[kind.name] = kind
        self._by_payload[kind.payload] = kind

    def remove(self, name: str) -> EventType:
        """Remove an event type and end its streams.

        Raises:
            LocalError: No such event is declared.
        """
        kind = self.find(name)
        del self._by_name[name], self._by_payload[kind.payload]
        kind.is_removed = True
        for callback in list(kind.on_removal):
            callback()
        return kind

    def __iter__(self) -> Iterator[EventType]:
        return iter(list(self._by_name.values()))

    def find(self, event: Any) -> EventType:
        """Return the event type with the given name or payload.

        Raises:
            LocalError: No such event is declared.
        """
        kind = self._by_name.get(event) if isinstance(event, str) else self._by_payload.get(type(event))
        if kind is None:
            description = repr(event) if isinstance(event, str) else f"the class {type(event).__name__}"
            raise LocalError(
                f'No event is declared for {description}. Declare it with @events.event("order.paid") on a class.'
            )
        return kind

    def visible(self, name: str, scopes: frozenset[str] | None) -> EventType:
        """Return an event type if the caller can use it.

        Args:
            name: Name of the event.
            scopes: The caller's scopes, or None for a caller without restrictions.

        Raises:
            ProtocolError: NOT_FOUND, including for event types that are hidden from the caller.
        """
        kind = self._by_name.get(name)
        if kind is None or not sees(kind, scopes):
            raise unknown_event_error(name)
        return kind

    def allows_channel(self, principal: Principal | None, channel: str) -> bool:
        """Return whether a peer can subscribe directly to a hub channel, without the filters of events."""
        kind = self._by_name.get(channel)
        return kind is None or (not kind.has_match and sees(kind, scopes_of(principal)))


def sees(kind: EventType, scopes: frozenset[str] | None) -> bool:
    """Return whether scopes cover an event type; None covers all."""
    return scopes is None or kind.scopes <= scopes
