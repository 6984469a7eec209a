"""Events, as stored and as delivered, and their ids.

A subscriber resumes from ``<epoch>.<offset>``, a position in the journal, or from a publisher's id, if only one event
has it. The suffix ``-<number>`` is the number of the last presence change after that position. Publisher-assigned ids
also identify repeated events.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.principal import Principal, Profile, knows_identities, visible_part
from millstream._recent import Recent
from millstream._stores.base import Entry, read_offset
from millstream.hub._channels import InvalidName

GAP = "gap"
CUT = "cut"
UNAVAILABLE = "unavailable"
MEMBERS = "members"
RESERVED_NAMES = frozenset({GAP, CUT, UNAVAILABLE})
"""Event names that only the hub uses."""

MAX_EVENT_NAME = 100
MAX_ID = 200


class StoredEvent(Struct, frozen=True, gc=False, array_like=True):
    """The stored form of an event."""

    channel: str
    data: bytes
    event: str | None
    id: str | None
    at: float
    """Time of publication, by the publisher's clock."""
    user: Profile | None = None


class EventHeader(Struct, frozen=True, gc=False, array_like=True):
    """A `StoredEvent` without its data."""

    channel: str
    data: msgspec.Raw
    event: msgspec.Raw
    id: str | None
    at: float


class Event(Struct, frozen=True, gc=False):
    """An event. A new one is encoded once for all subscribers with the same encoder.

    Example:
        ``def encode(event: Event) -> bytes: return event.data or b""``
    """

    channel: str
    """The channel. Empty for the hub's own messages to a subscriber."""
    data: bytes | None
    """UTF-8 text. None for an event that contains only `id`, the position to resume from."""
    event: str | None = None
    id: str = ""
    offset: int = 0
    timestamp: float = 0.0
    user: Profile | None = None
    """The publisher, identified by a credential, or None if it's the program or a caller without sign-in. On presence
    channels, the client that arrived or left. Publishers can't set it, unlike any name in `data`.
    """
    position: str = ""
    """The position to resume from, if `id` is the publisher's. Other events may have the same id."""

    def visible_user(self, reader: Principal | None) -> Profile | None:
        """Return the members of `user` that a reader can see: ``event.visible_user(ctx.principal)``.

        Args:
            reader: The caller, or None without sign-in. Only callers with the scope ``millstream:identities`` can see
                more than the name.
        """
        return visible_part(self.user, knows_identities(reader))


class HubEvent(Struct, frozen=True, gc=False, tag="event", omit_defaults=True):
    """An event as clients receive it, from `connect` and on a WebSocket: ``print(event.channel, event.data)``."""

    channel: str
    data: str
    """The text, or the JSON of anything else."""
    id: str = ""
    """The publisher's id for the event, or else its position."""
    event: str | None = None
    """Name of the event."""
    user: Profile | None = None
    """The publisher, if the server knows it."""
    position: str = ""
    """The position to resume from, if it isn't the id."""


class PublishResult(Struct, frozen=True, gc=False):
    """The result of publishing: ``print((await mcp.hub.publish("news", "Hello")).id)``."""

    id: str
    subscribers: int
    """Number of subscribers on this worker that received the event."""


pack: Callable[[StoredEvent], bytes] = msgspec.msgpack.Encoder().encode
"""Encodes a record."""
_decode_record = msgspec.msgpack.Decoder(StoredEvent).decode
unpack_header = msgspec.msgpack.Decoder(EventHeader).decode
"""Reads the channel, id, and time of a stored record, without copying its data."""
_encode_json = msgspec.json.Encoder().encode


def unpack(entry: Entry) -> Event:
    """Return the event in a stored record, with its position in the journal."""
    record, offset = _decode_record(entry.data), entry.position.offset
    here = position_id(entry.position.epoch, offset)
    id, position = (here, "") if record.id is None else (record.id, here)
    return Event(record.channel, record.data, record.event, id, offset, record.at, record.user, position)


def encode_object(event: Event, full: bool) -> bytes:
    """Return an event with data as one JSON object, for a reader as of `visible_part`."""
    user, data = visible_part(event.user, full), (event.data or b"").decode()
    return _encode_json(HubEvent(event.channel, data, event.id, event.event, user, event.position))


def encode_data(data: Any) -> bytes:
    """Return text as UTF-8, and anything else as JSON.

    Raises:
        TypeError: The data isn't JSON-serializable.
    """
    try:
        return data.encode() if isinstance(data, str) else _encode_json(data)
    except TypeError as exc:
        raise TypeError(f"{exc}. An event's data is text, or builtins, dataclasses, and Structs.") from None


def position_id(epoch: str, offset: int) -> str:
    """Return the id for the position after a journal entry."""
    return f"{epoch}.{offset}"


def parse_position(id: str, epoch: str) -> tuple[int, int | None] | None:
    """Return the offset in an id of this epoch and the number of the last presence change, or None for any other id."""
    id_epoch, _, digits = id.rpartition(".")
    digits, dash, last = digits.partition("-")
    offset, number = read_offset(digits), read_offset(last) if dash else 0
    if id_epoch != epoch or offset is None or number is None:
        return None
    return offset, number if dash else None


def parse_offset(id: str, epoch: str) -> int:
    """Return the offset in an id of this epoch, or 0 for any other id."""
    return (parse_position(id, epoch) or (0, None))[0]


def gap(reason: str) -> Event:
    """Return an event that reports missing events.

    Reasons: ``trimmed`` (too many events since), ``expired`` (too old), ``lost`` (this worker missed events), ``epoch``
    (the store started over), and ``unknown`` (no event has the id, or several have it). After ``unknown``, all stored
    events follow, possibly including some that were already received.
    """
    return Event("", _encode_json({"reason": reason}), GAP)


def cut(reason: str) -> Event:
    """Return the final event for a subscriber that the hub disconnects."""
    return Event("", _encode_json({"reason": reason}), CUT)


def check_event_name(name: str | None) -> None:
    """Check a publisher's event name.

    Raises:
        InvalidName: The name is empty, too long, or reserved, or it has control characters.
    """
    if name is None:
        return
    _check_line("name", name, MAX_EVENT_NAME)
    if name in RESERVED_NAMES:
        raise InvalidName(f"The event name {name!r} is reserved for the hub.")


def check_event_id(id: str | None, epoch: str) -> None:
    """Check a publisher's event id.

    Raises:
        InvalidName: The id is empty or too long, contains control characters, or looks like the hub's own ids.
    """
    if id is None:
        return
    _check_line("id", id, MAX_ID)
    if parse_position(id, epoch) is not None:
        raise InvalidName(f"Event ids of the form {id!r} are reserved for the hub.")


def _check_line(what: str, text: str, limit: int) -> None:
    if not 1 <= len(text) <= limit:
        raise InvalidName(f"An event {what} must have 1 to {limit} characters, not {len(text)}.")
    if not text.isprintable():
        raise InvalidName(f"An event {what} must not contain line breaks or control characters: {text[:80]!r}.")


MAX_IDS = 10_000
"""Maximum number of ids that a worker keeps. The oldest are dropped first."""
_MAX_CHANNELS = 16
"""Maximum number of channels per id."""


REPEATED = 0
"""Stands for the offset of an event with a publisher-assigned id, if several have that id."""


class EventIds(Recent[str, dict[str, int]]):
    """Publisher-assigned id -> channel -> offset of the event with that id, or `REPEATED`. Only recent ids are kept.

    If an id has too many channels, the empty one stands for the others.
    """

    def add(self, id: str, channel: str, offset: int) -> None:
        """Remember an event's offset on a channel."""
        channels = self.setdefault(id, {})
        if channel not in channels and len(channels) >= _MAX_CHANNELS:
            channel, offset = "", REPEATED
        channels[channel] = offset if channels.get(channel, offset) == offset else REPEATED
        self.keep(id, channels)
