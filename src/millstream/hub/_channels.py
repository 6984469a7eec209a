"""Channel names, and the hub's limits and errors.

A name has segments separated by dots. In subscriptions, ``*`` matches one segment and ``>`` the rest, as in NATS.
Names that start with ``$`` are reserved for the hub. As in MQTT, a leading wildcard doesn't match them, so a
subscription to everything doesn't include messages for a single client.

The errors that publishing raises are also tool errors, so a tool that publishes its caller's input doesn't need to
catch them: the caller receives the text.
"""

import re

from msgspec import Struct

from millstream._config import Settings
from millstream._copies import CopyableError
from millstream._protocol.errors import ToolError
from millstream._protocol.principal import Principal

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
    max_channels_per_subscriber: int = _DEFAULTS.hub_channels_per_subscriber
    max_event: int = 256 * 1024
    """Maximum size of an event's data."""
    max_buffered: int = 512 * 1024
    """A subscriber with more unread bytes is disconnected. Must be less than the outlet's limit."""
    max_unread: int = 256 * 1024 * 1024
    """Maximum number of unread bytes for all subscribers of a worker. Above it, the slowest subscribers are cut."""
    journal: int = _DEFAULTS.hub_replay_events
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
        """Return the limits of a server with these settings: ``HubLimits.of(mcp.settings)``.

        Args:
            settings: The settings of the server.
        """
        return cls(
            max_connections=settings.hub_connections or settings.max_connections,
            max_connections_per_address=settings.max_connections_per_address,
            max_subscribers_per_channel=settings.hub_subscribers_per_channel,
            max_channels_per_subscriber=settings.hub_channels_per_subscriber,
            max_event=min(cls().max_event, settings.stream_buffer // 4),
            max_buffered=settings.stream_buffer // 2,
            journal=settings.hub_replay_events,
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
    """Reject an event whose JSON is too large to decode. Smaller events are measured after decoding.

    Escapes and trailing zeros can make the JSON longer than the delivered event, so the limit is generous.

    Raises:
        EventTooLarge: `size` exceeds four times the maximum size of an event.
    """
    if size > 4 * max_event:
        raise EventTooLarge(f"An event must have at most {max_event} bytes, not {size} bytes of JSON.")


class Forbidden(ToolError):
    """The authorization hook or the hub denied access to a channel: ``except Forbidden: return "Access denied."``.

    Args:
        action: ``publish`` or ``subscribe``.
        channel: The channel.
        scope: The scope that the caller lacks, if that's the reason.
    """

    def __init__(self, action: str, channel: str, scope: str = "") -> None:
        where = "to" if action == "publish" else "to the"
        why = f" That requires the scope {scope}." if scope else ""
        super().__init__(f"You aren't allowed to {action} {where} channel {channel!r}.{why}")
        self.action = action
        self.channel = channel


YOUR_SUBSCRIBERS = "yours"
YOUR_CHANNELS = "bytes of your channels and patterns"
SOCKET_CHANNELS = "channels on one socket"
_FREE_SOME = "Unsubscribe from a channel or close a stream first."
_OWN_LIMITS = {YOUR_SUBSCRIBERS: _FREE_SOME, YOUR_CHANNELS: _FREE_SOME, SOCKET_CHANNELS: "Unsubscribe from one first."}
"""Limits that don't depend on other clients -> what to do."""


class LimitExceeded(CopyableError):
    """A limit on subscribers is reached. The text tells the client to try again later, if that can help.

    Args:
        scope: The kind of limit: connections, address, channel, or one of the client's own.
        limit: The maximum number of subscribers.

    Example:
        ``except LimitExceeded as error: print(error.scope)``
    """

    def __init__(self, scope: str, limit: int) -> None:
        fix = _OWN_LIMITS.get(scope, "Try again later.")
        super().__init__(f"Too many subscribers ({scope}: {limit}). {fix}")
        self.scope = scope
        self.limit = limit


DEFAULT = "broadcast"
PRESENCE = "$presence."
CLIENT = "$client."

MAX_NAME = 200
MAX_CLIENT_ID = 128
MAX_CLIENT_NAME = 80

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREADABLE = "\ufffd"
"""The replacement character for invalid UTF-8 in queries, paths, and headers. Names that contain it are invalid."""


def check_channel(name: str) -> None:
    """Check a channel name: ``check_channel("orders.7")``.

    Args:
        name: Segments separated by dots, at most 200 characters.

    Raises:
        InvalidName: The name is empty, too long, or a pattern, or it has spaces, commas, control characters, or an
            empty segment.
    """
    check_pattern(name)
    if is_pattern(name):
        raise InvalidName(f"A wildcard is allowed only in subscriptions: {name!r}.")


def check_pattern(name: str) -> None:
    """Check a channel name or pattern.

    Raises:
        InvalidName: As for `check_channel`, or ``>`` isn't at the end.
    """
    _check_text("channel name", name, MAX_NAME)
    segments = name.split(".")
    if "" in segments:
        raise InvalidName(f"A channel must not have an empty segment: {name!r}.")
    if ">" in segments[:-1]:
        raise InvalidName(f"The wildcard '>' must be at the end: {name!r}.")
    if "," in name and not name.startswith(CLIENT):  # client ids aren't in lists
        raise InvalidName(f"A channel name must not contain a comma, which separates channels in a query: {name!r}.")


def check_client_id(client_id: str) -> None:
    """Check a client id. It's used in a channel name and as a path segment.

    Raises:
        InvalidName: The id is invalid or longer than 128 characters.
    """
    _check_text("client id", client_id, MAX_CLIENT_ID)
    if "/" in client_id:
        raise InvalidName("A client id must not contain a slash.")
    check_channel(CLIENT + client_id)


def owner_of(principal: Principal | None) -> str:
    """Return the owner prefix of a principal's clients, or an empty string without a principal."""
    return "" if principal is None else principal.binding.hex()


def owned_id(client_id: str, owner: str) -> str:
    """Return an owner's client id, unique among all owners. Client ids contain no slash."""
    return f"{owner}/{client_id}" if owner else client_id


def check_name(name: str) -> None:
    """Check a client's display name, which can be empty.

    Raises:
        InvalidName: The name is longer than 80 characters or has control characters.
    """
    _check_readable("client's name", name)
    if len(name) > MAX_CLIENT_NAME or _CONTROLS.search(name):
        raise InvalidName(f"A client's name must have at most {MAX_CLIENT_NAME} characters and no control characters.")


def is_pattern(name: str) -> bool:
    """Return whether a valid name has a wildcard."""
    return ("*" in name or ">" in name) and not {"*", ">"}.isdisjoint(name.split("."))


def is_presence(name: str) -> bool:
    """Return whether a valid name is the presence of a single channel."""
    return name.startswith(PRESENCE) and not is_pattern(name)


def topic_for(pattern: str) -> str | None:
    """Return the journal topic for a channel or pattern, or None if its events can be in any topic."""
    if not is_pattern(pattern):
        return pattern
    first = pattern.partition(".")[0]
    return None if first in ("*", ">") else f"{first}."


def split_pattern(pattern: str) -> tuple[list[str], bool]:
    """Return a pattern's segments without a final ``>``, and whether there was one."""
    segments = pattern.split(".")
    rest = segments[-1] == ">"
    return segments[: len(segments) - rest], rest


def matches(pattern: str, channel: str) -> bool:
    """Return whether a pattern matches a channel."""
    if pattern == channel:
        return True
    tokens, segments = pattern.split("."), channel.split(".")
    if channel.startswith("$") and tokens[0] != segments[0]:
        return False
    if tokens[-1] == ">":
        tokens.pop()
        if len(segments) <= len(tokens):
            return False
        del segments[len(tokens) :]
    return len(tokens) == len(segments) and all(
        token in ("*", segment) for token, segment in zip(tokens, segments, strict=True)
    )


def _check_readable(what: str, text: str) -> None:
    if _UNREADABLE in text:
        raise InvalidName(f"A {what} must be UTF-8, but {text[:80]!r} isn't.")


def _check_text(what: str, text: str, limit: int) -> None:
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  programs pass other values
        raise InvalidName(f"A {what} must be a string, not {text!r:.80}.")
    if not 1 <= len(text) <= limit:
        raise InvalidName(f"A {what} must have 1 to {limit} characters, not {len(text)}.")
    _check_readable(what, text)
    if not text.isprintable() or " " in text:
        raise InvalidName(f"A {what} must not contain spaces or control characters: {text!r}.")
