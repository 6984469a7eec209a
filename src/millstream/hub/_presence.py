"""Presence: the clients with an id on each channel, across all workers, and the stream of their changes."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from zlib import crc32

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from millstream._protocol.principal import Profile, visible_part
from millstream._stores.base import Entry, Position
from millstream._stores.store import Store
from millstream._stores.workers import Claim, WorkerTable, read_again, update_worker_table
from millstream.hub._channels import PRESENCE, owned_id
from millstream.hub._event import Event, StoredEvent, encode_data, pack, position_id, unpack
from millstream.hub._journal import Journal


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
        """Return the member as a reader can see it.

        Args:
            full: Whether the reader has the scope ``millstream:identities``.
        """
        user = visible_part(self.user, full)
        return replace(self, owner="", user=user)


class MemberList(Struct, frozen=True):
    """The clients on a channel: ``for member in (await mcp.hub.members("room.den")).members: print(member.name)``."""

    channel: str
    members: list[Member]
    """In order of arrival, without `Member.owner`."""
    event: str
    """The id of the last presence event that's included. A subscriber to ``$presence.<channel>`` that resumes after it
    receives each later arrival and departure once.
    """

    def visible(self, full: bool) -> "MemberList":
        """Return the list as a reader can see it.

        Args:
            full: Whether the reader has the scope ``millstream:identities``.
        """
        return replace(self, members=[member.visible(full) for member in self.members])


Place = tuple[str, str]
"""A channel and a client's key, by which presence is tracked."""


class MemberRecord(Struct, array_like=True):
    """One client on a channel, as stored."""

    value: bytes
    """The member, as of its first connection."""
    workers: list[str]
    """The workers that the client is connected to. Empty while its departure is being announced."""
    announcer: str = ""
    """The worker that is announcing its arrival or departure, or an empty string."""


Record = dict[str, MemberRecord]
"""Some clients of a channel, by key."""


class Roster(Struct):
    """The clients on a channel as stored, by their presence events' data, and what's needed to bring it up to date."""

    number: int
    """Later changes must be applied. Earlier ones are included, except for clients in `announcing`."""
    members: dict[bytes, Member] = {}
    announcing: set[bytes] = set()
    """Clients whose last change may not be in the stream of changes yet. They're in `members` if that's a departure."""


RECORDS = 128
"""Maximum number of records per channel."""
_RECORD_TTL = 86400.0
"""Time to live of a record in seconds. `Presence.refresh` renews it."""
_PREFIX = "member:presence:"
_SWEEP = "roster:sweep"
_SWEEP_SECONDS = 10.0
_PAGE = 200

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Member).decode
_decode_json = msgspec.json.Decoder(Member).decode
_decode_record = msgspec.msgpack.Decoder(Record).decode


class Presence(Struct):
    """The members of all channels, as registered by one worker.

    A worker registers its connected clients in the store under its lease. If the worker dies, the others report its
    clients as departed unless another worker has registered them.

    The clients of a channel are spread over several records, so a change in a large channel stays small. An arrival or
    departure takes three steps: a compare-and-set that names the announcing worker, the announcement, and a
    compare-and-set that marks it as done. Until then, no other worker announces a change to that client, which keeps
    announcements ordered. If a worker dies between a change and its announcement, the announcement may be missing.
    After a failed append, it may be late or repeated.
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
    _registered_in: tuple[str, str] = "", ""
    """The store's epoch and this worker's id when it registered them."""
    _renewed_at: float = 0.0
    """Time at which the records' time to live was last renewed."""
    _departed: list[tuple[str, Member]] = []
    """Channels and departed clients of dead workers that haven't been reported yet."""
    _locks: list[asyncio.Lock] = field(default_factory=lambda: [asyncio.Lock() for _ in range(RECORDS)])
    """Locks by record number. They keep the changes to each client in order."""

    def __post_init__(self) -> None:
        self._registered_in = self._store.epoch, self._store.workers.me
        self._renewed_at = self._clock()

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
        """Return the clients on a channel, in order of arrival."""
        records = await self._read(channel)
        return sorted((_decode(held.value) for held in records if self._has_worker(held)), key=_arrival)

    async def roster(self, channel: str, number: int) -> Roster:
        """Return the clients on a channel, to be brought up to date with the changes after a number."""
        roster = Roster(number)
        for held in await self._read(channel):
            member = _decode(held.value)
            data = encode_data(member.visible(full=False))
            if is_announced := self._is_announced(held):
                roster.announcing.add(data)
            if is_announced is not self._has_worker(held):
                roster.members[data] = member.visible(full=True)
        return roster

    async def _read(self, channel: str) -> list[MemberRecord]:
        await self._store.workers.read()
        found = await self._store.kv.get_many([_name(channel, number) for number in range(RECORDS)])
        return [held for raw in found if raw is not None for held in _decode_record(raw).values()]

    def _has_worker(self, held: MemberRecord) -> bool:
        return any(not self._is_gone(each) for each in held.workers)

    async def refresh(self) -> None:
        """Retry failed operations and report the clients of dead workers as departed.

        If this worker was considered dead, or the store may have lost data, register its clients again.
        """
        current = self._store.epoch, self._store.workers.me
        if self._registered_in != current:
            self._registered_in = current
            for place in self._connections.keys() & self._registered.keys():
                del self._registered[place]
        await self._update_all()
        await self._remove_abandoned()
        while self._departed:
            position = await self._append(*self._departed[0], "leave")
            del self._departed[0]
            await self._wait_for_delivery(position)
        if self._clock() - self._renewed_at > _RECORD_TTL / 4:
            for channel, number in {(channel, _number(client)) for channel, client in self._registered}:
                async with self._locks[number]:
                    await self._change(_name(channel, number), lambda record: "renew")
            self._renewed_at = self._clock()

    async def leave_all(self) -> None:
        """Remove all clients of this worker when it shuts down."""
        self._connections.clear()
        await self._update_all()

    async def _update_all(self) -> None:
        for place in self._connections.keys() ^ self._registered.keys():
            await self.update(place)

    async def update(self, place: Place) -> None:
        """Register a client if it's connected, and unregister it otherwise."""
        async with self._locks[_number(place[1])]:
            connections, registered = self._connections.get(place), self._registered.get(place)
            if connections and registered is None:
                position = await self._register(place, connections[0])
            elif registered is not None and not connections:
                position = await self._unregister(place, registered)
            else:
                return
        if position is not None:
            await self._wait_for_delivery(position)

    async def _register(self, place: Place, member: Member) -> Position | None:
        """Register a client. If no other worker has, announce its arrival and return the position of that event."""
        (channel, client), me = place, self._store.workers.me

        def add(record: Record) -> str:
            nonlocal member
            held = record.get(client)
            if held is None:
                record[client] = MemberRecord(_encode(member), [me], me)
                return "announce"
            member = _decode(held.value)
            if me in held.workers:
                return "announce" if held.announcer == me else ""
            if not held.workers and self._is_announced(held):
                return "wait"
            held.workers.append(me)
            if self._is_gone(held.announcer):
                held.announcer = ""
            return "silent"

        self._registered[place] = member  # from now on, `refresh` may remove it, and a departure unregisters it
        try:
            outcome = await self._change(_name(channel, _number(client)), add)
            position = await self._announce(place, member, "join") if outcome == "announce" else None
        except BaseException:
            if place in self._connections:
                self._registered.pop(place, None)  # `refresh` retries
            raise
        if place in self._registered:
            self._registered[place] = member
        return position

    async def _unregister(self, place: Place, member: Member) -> Position | None:
        """Unregister a client. If no other worker has it, announce its departure and return the event's position."""
        (channel, client), me = place, self._store.workers.me

        def remove(record: Record) -> str:
            held = record.get(client)
            if held is None or (me not in held.workers and (held.workers or held.announcer != me)):
                return ""
            others = [each for each in held.workers if each != me]
            if any(not self._is_gone(each) for each in others):
                held.workers = others
                if held.announcer == me:
                    held.announcer = ""
                return "silent"
            if held.announcer != me and self._is_announced(held):
                return "wait"
            held.workers, held.announcer = [], me
            return "announce"

        await self._store.workers.read()
        outcome = await self._change(_name(channel, _number(client)), remove)
        position = await self._announce(place, member, "leave") if outcome == "announce" else None
        self._registered.pop(place, None)  # `refresh` may have removed it, because the client has returned
        return position

    async def _announce(self, place: Place, member: Member, event: str) -> Position:
        (channel, client), me = place, self._store.workers.me
        position = await self._append(channel, member, event)

        def finish(record: Record) -> str:
            held = record.get(client)
            if held is None or held.announcer != me:
                return ""
            held.announcer = ""
            if not held.workers:
                del record[client]
            return "announced"

        await self._change(_name(channel, _number(client)), finish)
        return position

    async def _append(self, channel: str, member: Member, event: str) -> Position:
        """Append an event, whose `id` is the journal position before it."""
        offset, data = str(self._journal.offset), encode_data(member.visible(full=False))
        record = StoredEvent(PRESENCE + channel, data, event, offset, self._clock(), member.user)
        return await self._store.log.append(STREAM, pack(record), ttl=_TTL, max_entries=_MAX_CHANGES)

    async def _remove_abandoned(self) -> None:
        """Remove the clients that only dead workers have registered. At most one worker reports each departure."""
        kv = self._store.kv
        unswept = set((await self._store.workers.read()).unswept)
        claim = Claim(kv, _SWEEP, _SWEEP_SECONDS)
        if not unswept or not await claim.take():
            return
        keys = await kv.keys(_PREFIX)
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            for key, raw in zip(page, await kv.get_many(page), strict=True):
                if raw is not None and any(
                    unswept & {*held.workers, held.announcer} for held in _decode_record(raw).values()
                ):
                    await self._sweep(key)

        def remove_swept(table: WorkerTable) -> bool:
            table.unswept = [worker for worker in table.unswept if worker not in unswept]
            return True

        await update_worker_table(kv, remove_swept)
        await claim.leave()

    async def _sweep(self, key: str) -> None:
        """Remove dead workers from a record, and the clients that no worker has."""
        (channel, _, number), found = key.removeprefix(_PREFIX).rpartition(":"), list[tuple[str, Member]]()

        def remove(record: Record) -> str:
            found.clear()
            for client, held in list(record.items()):
                held.workers = [each for each in held.workers if not self._is_gone(each)]
                if self._is_gone(held.announcer):
                    held.announcer = ""
                if not held.workers and not held.announcer:
                    found.append((channel, _decode(held.value)))
                    del record[client]
            return "swept"

        async with self._locks[int(number, 16)]:
            await self._change(key, remove)
        self._departed += found

    async def _change(self, key: str, edit: Callable[[Record], str]) -> str:
        """Save a record unless `edit` returns an empty string. Return its result. If that's "wait", retry first."""
        kv, outcome = self._store.kv, ""
        for attempt in count():
            raw = await read_again(kv, key, attempt)
            record: Record = {} if raw is None else _decode_record(raw)
            outcome = edit(record)
            if outcome == "wait":
                await self._store.workers.read()
            elif not outcome or await kv.compare_and_set(key, raw, _encode(record) if record else None, _RECORD_TTL):
                break
        return outcome

    def _is_gone(self, worker: str) -> bool:
        return worker in self._store.workers.dead

    def _is_announced(self, held: MemberRecord) -> bool:
        """Return whether a live worker is announcing a change to a client."""
        return bool(held.announcer) and not self._is_gone(held.announcer)


def _arrival(member: Member) -> tuple[float, str]:
    return member.since, member.client_id


def _number(client: str) -> int:
    """Return the number of a client's record."""
    return crc32(client.encode()) % RECORDS


def _name(channel: str, number: int) -> str:
    """Return the key of a record."""
    return f"{_PREFIX}{channel}:{number:x}"


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

    def reaches(self, number: int) -> bool:
        """Return whether all changes after a number are known."""
        return self._last_dropped.number <= number

    def apply(self, roster: Roster, channel: str) -> list[Member]:
        """Return the members of a roster after all known changes, in order of arrival."""
        members = roster.members.copy()
        for change in self._changes:
            event = change.event
            data = event.data or b""
            if event.channel != PRESENCE + channel or (
                change.number <= roster.number and data not in roster.announcing
            ):
                continue
            if event.event == "join":
                members[data] = replace(_decode_json(data), user=event.user)
            else:
                members.pop(data, None)
        return sorted(members.values(), key=_arrival)

    def since(self, offset: int, number: int | None) -> tuple[deque[PresenceChange], bool]:
        """Return the changes after an event id, and whether they are complete."""
        changes = deque(change for change in self._changes if change.after(offset, number))
        return changes, not self._last_dropped.after(offset, number)
