"""The event types that a server declares."""

from collections.abc import Iterator
from typing import Any

from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream.extensions import scopes_of
from millstream.extensions.events._errors import unknown_event
from millstream.extensions.events._event_type import EventType


class EventCatalog:
    """Event types by name and by the class of their payload."""

    def __init__(self) -> None:
        self._by_name: dict[str, EventType] = {}
        self._by_payload: dict[Any, EventType] = {}

    def add(self, kind: EventType) -> None:
        """Declare an event type.

        Raises:
            ValueError: the name or the payload class is taken.
        """
        if kind.name in self._by_name:
            raise ValueError(f"There is already an event {kind.name!r}. Choose another name")
        if kind.payload in self._by_payload:
            other = self._by_payload[kind.payload].name
            raise ValueError(
                f"{kind.payload.__name__} is already the payload of {other!r}. Define another class for {kind.name!r}"
            )
        self._by_name[kind.name] = kind
        self._by_payload[kind.payload] = kind

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> EventType | None:
        """Return the event type with a name, or None."""
        return self._by_name.get(name)

    def find(self, event: Any) -> EventType:
        """Return the event type with a name, or of a payload.

        Raises:
            LocalError: no such event is declared.
        """
        kind = self._by_name.get(event) if isinstance(event, str) else self._by_payload.get(type(event))
        if kind is None:
            description = repr(event) if isinstance(event, str) else f"the class {type(event).__name__}"
            raise LocalError(
                f'No event is declared for {description}. Declare it with @mcp.event("order.paid") on a class.'
            )
        return kind

    def visible(self, name: str, scopes: frozenset[str] | None) -> EventType:
        """Return an event type if the caller may use it.

        Args:
            name: name of the event.
            scopes: the caller's scopes; None for a caller without restrictions.

        Raises:
            ProtocolError: NOT_FOUND, also for event types that are hidden from the caller.
        """
        kind = self._by_name.get(name)
        if kind is None or not sees(kind, scopes):
            raise unknown_event(name)
        return kind

    def allows_channel(self, principal: Principal | None, channel: str) -> bool:
        """Return whether a peer may subscribe directly to a hub channel, without the filters of events."""
        kind = self._by_name.get(channel)
        return kind is None or (not kind.has_match and sees(kind, scopes_of(principal)))


def sees(kind: EventType, scopes: frozenset[str] | None) -> bool:
    """Return whether scopes cover an event type; None covers all."""
    return scopes is None or kind.scopes <= scopes
