"""What bounds the hub, and the errors that name the bound.

What is wrong with a publication is a `ToolError` too: a tool that passes on what its caller gave need not catch it, and
the caller reads what was wrong.
"""

from msgspec import Struct

from millstream._config import Settings
from millstream._protocol.errors import ToolError

_DEFAULTS = Settings()


class HubLimits(Struct, frozen=True, kw_only=True):
    """Counts, sizes in bytes, times in seconds. A cap of 0 means none. What has a setting has its default.

    Example:
        ``HubLimits(max_event=64 * 1024)``
    """

    max_connections: int = _DEFAULTS.max_connections
    max_connections_per_address: int = _DEFAULTS.max_connections_per_address
    max_subscribers_per_channel: int = _DEFAULTS.hub_subscribers_per_channel
    max_channels_per_subscriber: int = 16
    max_event: int = 256 * 1024
    """The largest data of one event."""
    max_buffered: int = 512 * 1024
    """A subscriber further behind than this is cut. Keep it below what the outlet itself allows."""
    max_unread: int = 256 * 1024 * 1024
    """What all subscribers of a worker may be behind together. Beyond it, those furthest behind are cut."""
    journal: int = _DEFAULTS.hub_journal
    """Events of all channels together that a reconnecting subscriber can be given again."""
    history: int = _DEFAULTS.hub_history
    """Events kept of each channel."""
    history_age: float = _DEFAULTS.hub_history_age
    mailbox: int = _DEFAULTS.hub_mailbox
    """Messages kept for each client."""
    mailbox_age: float = _DEFAULTS.hub_mailbox_age
    refresh: float = 10.0
    """Between two rounds of what the hub does periodically."""

    @classmethod
    def of(cls, settings: Settings) -> "HubLimits":
        """The bounds of a server with these settings."""
        return cls(
            max_connections=settings.hub_connections or settings.max_connections,
            max_connections_per_address=settings.max_connections_per_address,
            max_subscribers_per_channel=settings.hub_subscribers_per_channel,
            max_event=min(cls().max_event, settings.stream_buffer // 4),
            max_buffered=settings.stream_buffer // 2,
            journal=settings.hub_journal,
            history=settings.hub_history,
            history_age=settings.hub_history_age,
            mailbox=settings.hub_mailbox,
            mailbox_age=settings.hub_mailbox_age,
        )


class InvalidName(ToolError, ValueError):
    """A channel, client id, event name or event id that cannot be one. ``except InvalidName as error: print(error)``"""


class EventTooLarge(ToolError, ValueError):
    """The data of an event exceeds `HubLimits.max_event`.

    Example: ``except EventTooLarge: await mcp.hub.publish("news", link)``
    """


def check_unread(size: int, max_event: int) -> None:
    """Refuse the JSON of an event that is too large to be read at all. What is smaller is measured when it was read.

    Escapes and fractions such as ``1.500000`` are longer than what subscribers are sent, though not by so much.

    Raises:
        TooLarge: the `size` in bytes is more than four times that of the largest data.
    """
    if size > 4 * max_event:
        raise EventTooLarge(f"An event takes {max_event} bytes, not {size} bytes of JSON.")


class Forbidden(ToolError):
    """The authorization hook, or the hub itself, refuses a channel. ``except Forbidden: return "You may not."``"""

    def __init__(self, action: str, channel: str) -> None:
        super().__init__(f"You may not {action} {'to' if action == 'publish' else 'to the'} channel {channel!r}.")
        self.action = action
        self.channel = channel


class TooMany(Exception):
    """A cap is reached. `scope` names it: connections, address or channel.

    Example:
        ``except TooMany as error: print(error.scope)``
    """

    def __init__(self, scope: str, limit: int) -> None:
        super().__init__(f"Too many subscribers ({scope}: {limit}). Try again later.")
        self.scope = scope
        self.limit = limit
