"""An event, as it is stored and as it is delivered, and its id.

The id that a subscriber gives back is the publisher's own, or ``<epoch>.<offset>``: the place in the journal. Where
arrivals and departures followed that place, ``-<number>`` behind it says up to which one.
"""

from typing import Any

import msgspec
from msgspec import Struct

from millstream._stores.base import read_offset
from millstream.hub._limits import InvalidName

GAP = "gap"
CUT = "cut"
RESERVED = frozenset({GAP, CUT})
"""Event names that only the hub uses."""

MAX_EVENT_NAME = 100
MAX_ID = 200


class StoredEvent(Struct, frozen=True, gc=False, array_like=True):
    """What a store keeps of one event."""

    channel: str
    data: bytes
    event: str | None
    id: str | None
    at: float
    """When it was published, in the publisher's clock."""


class Stamp(Struct, frozen=True, gc=False, array_like=True):
    """A `StoredEvent` without its data."""

    channel: str
    data: msgspec.Raw
    event: msgspec.Raw
    id: str | None
    at: float


class _Channel(Struct, frozen=True, gc=False, array_like=True):
    """The beginning of a `StoredEvent`."""

    channel: str


class Event(Struct, frozen=True, gc=False):
    """What an encoder turns into bytes, once for all subscribers of its kind.

    Example:
        ``def encode(event: Event) -> bytes: return event.data or b""``
    """

    channel: str
    """Empty for what the hub itself tells one subscriber."""
    data: bytes | None
    """UTF-8 text. None: nothing happened, `id` is the place from which to resume."""
    event: str | None = None
    id: str = ""
    offset: int = 0
    at: float = 0.0


class PublishResult(Struct, frozen=True, gc=False):
    """An accepted event. ``print((await mcp.hub.publish("news", "Hello")).id)``"""

    id: str
    subscribers: int
    """Those on this worker that it was written to."""


_encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(StoredEvent).decode
_decode_stamp = msgspec.msgpack.Decoder(Stamp).decode
_decode_channel = msgspec.msgpack.Decoder(_Channel).decode
_encode_json = msgspec.json.Encoder().encode


def pack(record: StoredEvent) -> bytes:
    """A record as a store keeps it."""
    return _encode_record(record)


def unpack(data: bytes | memoryview, epoch: str, offset: int) -> Event:
    """The event of a stored record at its place in the journal."""
    record = _decode_record(data)
    return Event(record.channel, record.data, record.event, record.id or position_id(epoch, offset), offset, record.at)


def stamp_of(data: bytes) -> Stamp:
    """Return channel, id and time of a stored record, without a copy of its data."""
    return _decode_stamp(data)


def channel_of(data: bytes) -> str:
    """The channel of a stored record, without a look at the rest."""
    return _decode_channel(data).channel


def encode_data(data: Any) -> bytes:
    """Text as it is, anything else as JSON.

    Raises:
        TypeError: it has no JSON form.
    """
    return data.encode() if isinstance(data, str) else _encode_json(data)


def position_id(epoch: str, offset: int) -> str:
    """The id of the place behind an entry of the journal."""
    return f"{epoch}.{offset}"


def parse_position(id: str, epoch: str) -> tuple[int, int | None] | None:
    """The offset in an id of this epoch, and the number of the last arrival or departure; None for every other id."""
    found, _, digits = id.rpartition(".")
    digits, dash, last = digits.partition("-")
    offset, number = read_offset(digits), read_offset(last) if dash else 0
    if found != epoch or offset is None or number is None:
        return None
    return offset, number if dash else None


def parse_offset(id: str, epoch: str) -> int:
    """The offset in an id of this epoch; 0 for every other id."""
    return (parse_position(id, epoch) or (0, None))[0]


def gap(reason: str) -> Event:
    """What follows is not all.

    The reasons: ``trimmed`` (more came than is kept), ``expired`` (it was too long ago), ``lost`` (this worker missed
    some), ``epoch`` (the store began again) and ``unknown``: the id to resume from is not known any more, so what is
    left is given from its beginning, and may repeat what the client has.
    """
    return Event("", _encode_json({"reason": reason}), GAP)


def cut(reason: str) -> Event:
    """Return the last event of a subscriber that the hub ends."""
    return Event("", _encode_json({"reason": reason}), CUT)


def check_event_name(name: str | None) -> None:
    """A name for an event of a publisher.

    Raises:
        InvalidName: it is empty, too long, has control characters, or is one of the hub's own.
    """
    if name is None:
        return
    _check_line("name", name, MAX_EVENT_NAME)
    if name in RESERVED:
        raise InvalidName(f"The event name {name!r} belongs to the hub.")


def check_event_id(id: str | None, epoch: str) -> None:
    """An id given by a publisher.

    Raises:
        InvalidName: it is empty, too long, has control characters, or looks like one that the hub makes.
    """
    if id is None:
        return
    _check_line("id", id, MAX_ID)
    if parse_position(id, epoch) is not None:
        raise InvalidName(f"Event ids of the form {id!r} are made by the hub.")


def _check_line(what: str, text: str, limit: int) -> None:
    if not 1 <= len(text) <= limit:
        raise InvalidName(f"An event {what} has 1 to {limit} characters, not {len(text)}.")
    if not text.isprintable():
        raise InvalidName(f"An event {what} has no line ends and no control characters: {text[:80]!r}.")
