"""Presence: the clients with an id on each channel, across all workers, and the stream of their changes."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from millstream._protocol.principal import Profile, visible_part
from millstream._stores.base import CoAppend, Entry, Position
from millstream._stores.store import Store
from millstream.hub._channels import PRESENCE, owned_id
from millstream.hub._event import Event, StoredEvent, encode_data, pack, position_id, unpack
from millstream.hub._journal import Journal

_GROUP = "presence:"
_LOCK_COUNT = 64


class Member(Struct, frozen=True, omit_defaults=True):
    """A client on a channel: ``[member.name for member in await mcp.hub.presence("den")]``."""

    client_id: str
    name: str = ""
    since: float = 0.0
    owner: str = ""
    """The principal that owns the client, so other principals can't impersonate it. Empty without a principal."""
    user: Profile | None = None
    """The client's signed-in caller. The `name` is chosen by the client."""

    @property
    def key(self) -> str:
        """The unique key of the client."""
        return owned_id(self.client_id, self.owner)

    def visible(self, full: bool) -> "Member":
        """Return the members that a reader can see.

        Args:
            full: Whether the reader has the scope ``millstream:identities``.
        """
        user = visible_part(self.user, full)
        return replace(self, owner="", user=user)


Place = tuple[str, str]
"""A channel and a client's key, by which presence is tracked."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Member).decode


class Presence(Struct):
    """The members of all channels, as registered by one worker.

    Each channel is a member group in the store. A worker registers its connected clients there under its lease. If the
    worker dies, the others report its clients as departed unless another worker has registered them. The store
    operation that changes the group also appends the presence event, so each change is reported once.
    """

    _store: Store
    _journal: Journal
    _clock: Callable[[], float]
    _wait_for_delivery: Callable[[Position], Awaitable[None]]
    """Waits until a published event is delivered on this worker."""
    _connections: dict[Place, list[Member]] = {}
    """The connections to this worker."""
    _registered: dict[Place, Member] = {}
    """Clients that this worker has registered."""
    _worker_id: str = ""
    """The worker id of the registrations."""
    _unreported: list[tuple[str, str, bytes]] = []
    """Departed clients of dead workers that haven't been reported yet."""
    _locks: list[asyncio.Lock] = field(default_factory=lambda: [asyncio.Lock() for _ in range(_LOCK_COUNT)])
    """Locks that keep the changes of each client in order."""

    def __post_init__(self) -> None:
        self._worker_id = self._store.workers.me

    def connect(self, place: Place, member: Member) -> None:
        """Add a connection of a client. Call `update` afterwards."""
        self._connections.setdefault(place, []).append(member)

    def disconnect(self, place: Place, member: Member) -> None:
        """Remove a connection of a client, without publishing it: `update` does that."""
        connections = self._connections.get(place, [])
        if member in connections:
            connections.remove(member)
            if not connections:
                del self._connections[place]

    async def members(self, channel: str) -> list[Member]:
        """Return all clients on a channel, in order of arrival."""
        members = [_decode(value) for _, value in await self._store.members.present(_GROUP + channel)]
        members.sort(key=lambda member: (member.since, member.client_id))
        return members

    async def refresh(self) -> None:
        """Retry failed operations and report the clients of dead workers as departed.

        If this worker was considered dead, register its clients again under its new id.
        """
        if self._worker_id != self._store.workers.me:
            self._worker_id = self._store.workers.me
            self._registered.clear()
        await self._update_all()
        self._unreported += await self._store.members.remove_abandoned()
        while self._unreported:
            group, _, value = self._unreported[0]
            entry = self._entry(group.removeprefix(_GROUP), "leave", _decode(value))
            position = await self._store.log.append(entry.stream, entry.data, ttl=_TTL, max_entries=_MAX_CHANGES)
            del self._unreported[0]
            await self._wait_for_delivery(position)

    async def leave_all(self) -> None:
        """Remove all clients of this worker when it shuts down."""
        self._connections.clear()
        await self._update_all()

    def _entry(self, channel: str, event: str, member: Member) -> CoAppend:
        """Return the log entry for a change. The `id` in its record is the journal position before the change."""
        offset, data = str(self._journal.offset), encode_data(member.visible(full=False))
        record = StoredEvent(PRESENCE + channel, data, event, offset, self._clock(), member.user)
        return CoAppend(STREAM, pack(record), _TTL, _MAX_CHANGES)

    async def _update_all(self) -> None:
        for place in self._connections.keys() ^ self._registered.keys():
            await self.update(place)

    async def update(self, place: Place) -> None:
        """Register a client if it's connected, and unregister it otherwise."""
        channel, client_id = place
        async with self._locks[hash(place) % _LOCK_COUNT]:
            connections, registered = self._connections.get(place), self._registered.get(place)
            if connections and registered is None:
                member = connections[0]
                value, position = await self._store.members.join(
                    _GROUP + channel, client_id, _encode(member), self._entry(channel, "join", member)
                )
                self._registered[place] = _decode(value)
            elif registered is not None and not connections:
                entry = self._entry(channel, "leave", registered)
                position = await self._store.members.leave(_GROUP + channel, client_id, entry)
                del self._registered[place]
            else:
                return
        if position is not None:
            await self._wait_for_delivery(position)


STREAM = "presence:events"
_TTL = 86400.0
_MAX_CHANGES = 1_000


class PresenceChange(Struct, frozen=True, gc=False):
    """The arrival or departure of a client."""

    journal_offset: int
    """The offset of the journal at delivery."""
    number: int
    """The change's own offset."""
    event: Event
    announced: int = 0
    """The journal offset of the worker that announced it, which may be ahead of this worker's."""

    def after(self, offset: int, number: int | None) -> bool:
        """Return whether the change is later than a journal position, or than the change with a given number."""
        return max(self.journal_offset, self.announced) >= offset if number is None else self.number > number


class PresenceChanges:
    """The newest presence changes, as delivered by one worker.

    Changes are events in a separate stream, so they can't displace published events from the journal. The two streams
    are numbered separately. Each change records the journal position at its delivery, so a subscriber that resumes from
    a journal event gets the later changes.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes: deque[PresenceChange] = deque()
        self._last_dropped = PresenceChange(-1, 0, Event("", None))
        """The newest dropped change."""

    async def open(self, epoch: str) -> Position | None:
        """Load the stored changes and return the position of the last one."""
        entries = await self._store.log.newest(STREAM, _MAX_CHANGES)
        for entry in entries:
            self.add(entry, epoch, None)
        if entries and entries[0].position.offset > 1:  # earlier changes were trimmed
            self._last_dropped = replace(self._changes[0], number=entries[0].position.offset - 1)
        return entries[-1].position if entries else None

    @property
    def last(self) -> PresenceChange:
        """The newest change."""
        return self._changes[-1] if self._changes else self._last_dropped

    def add(self, entry: Entry, epoch: str, offset: int | None) -> Event:
        """Add a change delivered at a journal offset (None if before this worker started) and return its event."""
        event, number = unpack(entry), entry.position.offset
        announced = int(event.id)
        journal_offset = announced if offset is None else offset
        event = replace(event, id=f"{position_id(epoch, journal_offset)}-{number}", offset=number)
        self._changes.append(PresenceChange(journal_offset, number, event, announced))
        if len(self._changes) > _MAX_CHANGES:
            self._last_dropped = self._changes.popleft()
        return event

    def forget(self, offset: int) -> None:
        """Drop all changes after some were lost. The journal is at `offset`."""
        self._last_dropped = replace(self.last, journal_offset=offset, announced=0)
        self._changes.clear()

    def since(self, offset: int, number: int | None) -> tuple[deque[PresenceChange], bool]:
        """Return the changes after an event id, and whether they are complete."""
        changes = deque(change for change in self._changes if change.after(offset, number))
        return changes, not self._last_dropped.after(offset, number)
