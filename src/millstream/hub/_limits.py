"""Limits of the hub, and errors that name the limit.

The errors of a publication are also tool errors, so a tool that publishes its caller's input doesn't need to catch
them: the caller receives the text.
"""

from msgspec import Struct

from millstream._config import Settings
from millstream._protocol.errors import ToolError

_DEFAULTS = Settings()


class HubLimits(Struct, frozen=True, kw_only=True):
    """Limits of the hub: counts, sizes in bytes, times in seconds. A cap of 0 means no limit. Defaults come from
    `Settings`.

    Example:
        ``HubLimits(max_event=64 * 1024)``
    """

    max_connections: int = _DEFAULTS.max_connections
    max_connections_per_address: int = _DEFAULTS.max_connections_per_address
    max_subscribers_per_channel: int = _DEFAULTS.hub_subscribers_per_channel
    max_channels_per_subscriber: int = 16
    max_event: int = 256 * 1024
    """Maximum size of an event's data."""
    max_buffered: int = 512 * 1024
    """A subscriber with more unread bytes is cut. Must be below the limit of the outlet."""
    max_unread: int = 256 * 1024 * 1024
    """Maximum number of unread bytes for all subscribers of a worker. Above it, the slowest subscribers are cut."""
    journal: int = _DEFAULTS.hub_journal
    """Number of events, over all channels, from which a subscriber can resume."""
    history: int = _DEFAULTS.hub_history
    """Number of events to keep per channel."""
    history_age: float = _DEFAULTS.hub_history_age
    mailbox: int = 1_000
    """Number of messages to keep per client."""
    mailbox_age: float = 24 * 3600.0
    refresh: float = 10.0
    """Interval of the hub's periodic work."""

    @classmethod
    def of(cls, settings: Settings) -> "HubLimits":
        """Return the limits of a server with these settings."""
        return cls(
            max_connections=settings.hub_connections or settings.max_connections,
            max_connections_per_address=settings.max_connections_per_address,
            max_subscribers_per_channel=settings.hub_subscribers_per_channel,
            max_event=min(cls().max_event, settings.stream_buffer // 4),
            max_buffered=settings.stream_buffer // 2,
            journal=settings.hub_journal,
            history=settings.hub_history,
            history_age=settings.hub_history_age,
        )


class InvalidName(ToolError, ValueError):
    """An invalid channel, client id, event name, or event id: ``except InvalidName as error: print(error)``."""


class EventTooLarge(ToolError, ValueError):
    """The data of an event exceeds `HubLimits.max_event`.

    Example:
        ``except EventTooLarge: await mcp.hub.publish("news", link)``
    """


def check_encoded_size(size: int, max_event: int) -> None:
    """Refuse an event whose JSON is too large to decode. Smaller events are measured after decoding.

    Escapes and trailing zeros can make the JSON longer than the delivered event, so the bound is generous.

    Raises:
        EventTooLarge: `size` exceeds four times the maximum size of an event.
    """
    if size > 4 * max_event:
        raise EventTooLarge(f"An event must have at most {max_event} bytes, not {size} bytes of JSON.")


class Forbidden(ToolError):
    """The authorization hook or the hub denied access to a channel: ``except Forbidden: return "Access denied."``."""

    def __init__(self, action: str, channel: str) -> None:
        super().__init__(
            f"You aren't allowed to {action} {'to' if action == 'publish' else 'to the'} channel {channel!r}."
        )
        self.action = action
        self.channel = channel


class TooMany(Exception):
    """A cap is reached. `scope` names the cap: connections, yours, address, or channel.

    Example:
        ``except TooMany as error: print(error.scope)``
    """

    def __init__(self, scope: str, limit: int) -> None:
        super().__init__(f"Too many subscribers ({scope}: {limit}). Try again later.")
        self.scope = scope
        self.limit = limit
