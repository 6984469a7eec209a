"""What bounds the hub, and the errors that name the bound.

What is wrong with a publication is a `ToolError` too: a tool that passes on what its caller gave need not catch it, and
the caller reads what was wrong.
"""

from msgspec import Struct

from millstream.protocol.errors import ToolError


class HubLimits(Struct, frozen=True, kw_only=True):
    """Counts, sizes in bytes, times in seconds. A cap of 0 means none."""

    max_connections: int = 20_000
    max_connections_per_address: int = 0
    max_subscribers_per_channel: int = 0
    max_channels_per_subscriber: int = 16
    max_event: int = 256 * 1024
    """The largest data of one event."""
    max_buffered: int = 512 * 1024
    """A subscriber further behind than this is cut. Keep it below what the outlet itself allows."""
    journal: int = 10_000
    """Events of all channels together that a reconnecting subscriber can be given again."""
    history: int = 1_000
    """Events kept of each channel."""
    history_age: float = 3600.0
    mailbox: int = 1_000
    """Messages kept for each client."""
    mailbox_age: float = 24 * 3600.0
    presence_ttl: float = 30.0
    """A member of a worker that died is gone after this time."""


class InvalidName(ToolError, ValueError):
    """A channel, client id, event name or event id that cannot be one."""


class TooLarge(ToolError, ValueError):
    """The data of an event exceeds `HubLimits.max_event`."""


class Forbidden(ToolError):
    """The authorization hook, or the hub itself, refuses a channel."""

    def __init__(self, action: str, channel: str) -> None:
        super().__init__(f"You may not {action} {'to' if action == 'publish' else 'to the'} channel {channel!r}.")
        self.action = action
        self.channel = channel


class TooMany(Exception):
    """A cap is reached. `scope` names it: connections, address or channel."""

    def __init__(self, scope: str, limit: int) -> None:
        super().__init__(f"Too many subscribers ({scope}: {limit}). Try again later.")
        self.scope = scope
        self.limit = limit
