"""Delivery from the journal to the outlets of this worker.

A live event is encoded once per kind of outlet, and a plain loop writes the same bytes to the outlets of that kind. A
channel's plan lists its outlets by encoder, each once. It's built on demand.

A subscriber that falls too far behind gets a final event with the reason and can resume. Others are unaffected. Each
outlet has its own limit, but there can be thousands, so there's also a limit on the total of unread bytes. Beyond it,
the slowest outlets are disconnected.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct, field

from millstream._http.hosts import is_loopback
from millstream._http.message import OutputStream, peer_network
from millstream._protocol.principal import Principal, Share
from millstream._recent import Recent
from millstream._stores.base import Entry, Gap, Position
from millstream._stores.store import Store
from millstream._stores.tail import Tail
from millstream.hub._channels import (
    CLIENT,
    PRESENCE,
    YOUR_CHANNELS,
    YOUR_SUBSCRIBERS,
    HubLimits,
    LimitExceeded,
    is_pattern,
    topic_for,
)
from millstream.hub._event import Event, cut, gap
from millstream.hub._journal import JOURNAL, Journal
from millstream.hub._mailbox import Mailboxes, logger
from millstream.hub._presence import STREAM, PresenceChanges
from millstream.hub._reader import JournalReader
from millstream.hub._subscriber import Encode, PatternIndex, Subscription

FanOut = list[tuple[Encode, list[OutputStream]]]

_MAX_UNUSED = 1_000
"""Maximum number of topics that are followed without subscribers."""
_MAX_PLANS = 4096
_MAX_MEMORY = 256 * 1024 * 1024
"""Maximum memory for all subscribers' channels and patterns, in bytes. One owner can use half of it."""
_ENTRY_BYTES = 384
_NODE_BYTES = 336
"""Memory for a channel, in addition to its name, and for a segment of a pattern, in bytes."""
"""Maximum number of cached plans."""
_TURN_BYTES = 4 * 1024 * 1024
"""Bytes written to subscribers after which the event loop has a turn for everything else."""
_LEAST_BYTES = _TURN_BYTES // 32
"""The least that a publication counts as."""
_COUNTS_PER_LIMIT = 4
"""How often unread bytes are counted while a write of the maximum size is in progress."""


class Audience:
    """All subscribers of a worker. `enter` registers a subscriber, and `join` starts delivery to it."""

    def __init__(self, limits: HubLimits) -> None:
        self._limits = limits
        self._share = Share(limits.max_connections or sys.maxsize)
        self.subscriptions: dict[Subscription, str | None] = {}
        """All subscribers, including those still catching up, each with the owner whose share it uses, or None for the
        server's own above the cap.
        """
        self._memory = Share(_MAX_MEMORY)
        self._by_address = Share()
        self.by_channel = Share()
        """Number of subscribers per channel and pattern."""
        self.by_transport: Counter[str] = Counter()
        """Number of subscribers per transport, including 0 for transports used earlier."""
        self.by_outlet: dict[OutputStream, tuple[Subscription, ...]] = {}
        """The subscribers that share an outlet, in order of arrival."""
        self._exact: dict[str, dict[Subscription, None]] = {}
        self._wild = PatternIndex()
        self._plans: Recent[str, FanOut] = Recent(_MAX_PLANS)

    def check_room(self, channels: Sequence[str], address: str, principal: Principal | None) -> None:
        """Check that one more subscriber is within the caps.

        Raises:
            LimitExceeded: A cap is reached.
        """
        limits = self._limits
        if limits.max_connections and len(self.subscriptions) >= limits.max_connections:
            raise LimitExceeded("connections", limits.max_connections)
        cap = limits.max_connections_per_address
        if cap and address and self._by_address.count(peer_network(address)) >= cap:
            raise LimitExceeded("address", cap)
        if not self._share.has_room(_owner(address, principal)):
            raise LimitExceeded(YOUR_SUBSCRIBERS, self._share.each)
        if not self._memory.has_room(_owner(address, principal), _size(channels)):
            raise LimitExceeded(YOUR_CHANNELS, self._memory.each)
        cap = limits.max_subscribers_per_channel
        if cap and any(self.by_channel.count(channel) >= cap for channel in channels):
            raise LimitExceeded("channel", cap)

    def enter(self, subscription: Subscription) -> None:
        """Count a subscriber."""
        owner, size = _owner(subscription.address, subscription.principal), _size(subscription.channels)
        counted = self._memory.has_room(owner, size) and self._share.take(owner) and self._memory.take(owner, size)
        self.subscriptions[subscription] = owner if counted else None
        self.by_transport[subscription.transport] += 1
        self.by_outlet[subscription.outlet] = (*self.on(subscription.outlet), subscription)
        if subscription.address:
            self._by_address.take(peer_network(subscription.address))
        for channel in subscription.channels:
            self.by_channel.take(channel)

    def join(self, subscription: Subscription) -> None:
        """Deliver future events to a subscriber."""
        subscription.joined = True
        for channel in subscription.channels:
            if is_pattern(channel):
                self._wild.add(channel, subscription)
            else:
                self._exact.setdefault(channel, {})[subscription] = None
        self._forget_plans(subscription)

    def leave(self, subscription: Subscription) -> bool:
        """Remove a subscriber. Return False if it was already removed."""
        if subscription not in self.subscriptions:
            return False
        owner = self.subscriptions.pop(subscription)
        if owner is not None:
            self._share.leave(owner)
            self._memory.leave(owner, _size(subscription.channels))
        self.by_transport[subscription.transport] -= 1
        outlet = subscription.outlet
        others = tuple(each for each in self.by_outlet.pop(outlet) if each is not subscription)
        if others:
            self.by_outlet[outlet] = others
        if subscription.address:
            self._by_address.leave(peer_network(subscription.address))
        for channel in subscription.channels:
            self.by_channel.leave(channel)
            subscribers = self._exact.get(channel)
            if subscribers is not None:
                subscribers.pop(subscription, None)
                if not subscribers:
                    del self._exact[channel]
            if is_pattern(channel):
                self._wild.discard(channel, subscription)
        self._forget_plans(subscription)
        return True

    def plan(self, channel: str) -> FanOut:
        """Return the outlets for publications on a channel. The caller must not change it."""
        plan = self._plans.get(channel)
        if plan is None:
            subscribers = self._exact.get(channel, {}).copy()
            for each in self._wild.find(channel):
                if each not in subscribers and each.matches(channel):
                    subscribers[each] = None
            self._plans.keep(channel, plan := _group(subscribers))
        return plan

    def everyone(self) -> FanOut:
        """Return the outlets of all subscribers that have caught up."""
        return _group(each for each in self.subscriptions if each.joined)

    def on(self, outlet: OutputStream) -> tuple[Subscription, ...]:
        """Return the subscribers that share an outlet, in order of arrival."""
        return self.by_outlet.get(outlet, ())

    def _forget_plans(self, subscription: Subscription) -> None:
        if subscription.has_wildcard:
            self._plans.clear()
            return
        for channel in subscription.channels:
            self._plans.pop(channel, None)


def _owner(address: str, principal: Principal | None) -> str:
    """Return the owner of a subscription, or an empty string for this machine, which may be a proxy."""
    if principal is not None:
        return principal.id
    return "" if is_loopback(address) else peer_network(address)


def _size(channels: Iterable[str]) -> int:
    """Return the memory that a subscription uses: its names, an entry for each, and a node for each segment of a
    pattern.
    """
    return sum(
        _ENTRY_BYTES + len(each) + (_NODE_BYTES * (each.count(".") + 1) if is_pattern(each) else 0) for each in channels
    )


def _group(subscriptions: Iterable[Subscription]) -> FanOut:
    groups: dict[Encode, dict[OutputStream, None]] = {}
    for each in subscriptions:
        groups.setdefault(each.encode, {})[each.outlet] = None
    return [(encode, list(outlets)) for encode, outlets in groups.items()]


class Interest(Struct):
    """The topics of the journal that this worker follows, because it has subscribers for them."""

    _tail: Tail
    _journal: Journal
    _counts: Counter[str | None] = field(default_factory=Counter[str | None])
    """Number of subscribers by topic, without topics that have none."""
    _stops: dict[str | None, Callable[[], None]] = {}
    """Functions that stop following a topic, by topic. A topic without subscribers is followed a little
    longer, because many subscribers reconnect."""

    async def add(self, channels: Sequence[str]) -> None:
        """Follow the topics of a subscriber. Call `remove` afterwards, even if this raises.

        Raises:
            LocalError, OSError: The store can't be read.
        """
        topics, journal = self._topics(channels), self._journal
        for topic in topics:
            self._counts[topic] += 1
            if topic not in self._stops:
                self._stops[topic] = self._tail.follow(topic)
        stops = {topic: self._stops[topic] for topic in topics}
        if not all(topic in journal.floors for topic in topics):
            if not self._tail.pushes_all:
                await self._tail.settle()
            for topic in topics:
                if self._stops.get(topic) is stops[topic]:  # the topic wasn't stopped and followed again
                    journal.floors.setdefault(topic, journal.offset)

    def remove(self, channels: Sequence[str]) -> None:
        """Soon stop following the topics of a subscriber."""
        for topic in self._topics(channels):
            self._counts[topic] -= 1
            if not self._counts[topic]:
                del self._counts[topic]
        if len(self._stops) - len(self._counts) > _MAX_UNUSED:
            self.sweep()

    def sweep(self) -> None:
        """Stop following topics without subscribers."""
        for topic in self._stops.keys() - self._counts.keys():
            self._journal.floors.pop(topic, None)
            self._stops.pop(topic)()

    def _topics(self, channels: Sequence[str]) -> set[str | None]:
        return {topic_for(each) for each in channels if not each.startswith(PRESENCE)}


SLOW = "slow"


class Delivery:
    """Reads the journal and presence changes and writes them to the audience."""

    event_tail: Tail
    """The reader of the journal. `Tail.reach` returns after an event has been delivered."""
    change_tail: Tail
    """The reader of presence changes."""
    interest: Interest
    published: Position | None = None
    """The position of this worker's last event without a subscriber here."""
    delivered = 0
    gaps = 0
    _bytes_since_count = 0
    """Bytes written since the unread bytes were last counted."""
    _waiting_bytes = 0
    _turn_bytes = 0
    """Bytes written since the event loop's last turn that publishers waited for."""

    def __init__(self, store: Store, limits: HubLimits, clock: Callable[[], float]) -> None:
        self._store = store
        self._max_buffered, self._max_unread = limits.max_buffered, limits.max_unread
        self.journal = Journal(store, limits, clock)
        self.reader = JournalReader(store, self.journal)
        self.presence_changes = PresenceChanges(store)
        self.mailboxes = Mailboxes(store.kv, store.troubles, self.journal, limits)
        self.audience = Audience(limits)
        self._waiting: dict[OutputStream, int] = {}
        """Unread bytes of the outlets waiting for space while they catch up, longest wait first."""
        self.cut: Counter[str] = Counter()

    async def open(self) -> None:
        """Start listening at the end of both streams."""
        log, topic = self._store.log, None
        if self._store.shared:
            topic = ""  # without events; interest adds more
        else:
            self.journal.floors[topic] = 0
        self.event_tail = Tail(
            log,
            self._store.troubles,
            JOURNAL,
            None,
            self._deliver_entries,
            self._on_gap,
            topic=topic,
            moved=self._on_move,
            drain=self.wait_for_turn,
        )
        self.change_tail = Tail(log, self._store.troubles, STREAM, None, self._deliver_changes, self._on_changes_lost)
        self.event_tail.position = await self.journal.open()
        self.change_tail.position = await self.presence_changes.open(self.journal.epoch)
        self.interest = Interest(self.event_tail, self.journal)
        await self.event_tail.catch_up()
        await self.change_tail.catch_up()
        self.event_tail.start()
        self.change_tail.start()

    async def close(self) -> None:
        """Stop reading events and changes."""
        await self.event_tail.close()
        await self.change_tail.close()

    async def wait_for_turn(self) -> None:
        """Wait before a publication until the sockets have been served, if much was written since they were."""
        while self._turn_bytes >= _TURN_BYTES:  # noqa: ASYNC110  it waits for the loop, not for an event
            await asyncio.sleep(0)
        self._count_turn(_LEAST_BYTES)

    def _count_turn(self, size: int) -> None:
        before, self._turn_bytes = self._turn_bytes, self._turn_bytes + size
        if before < _TURN_BYTES <= self._turn_bytes:
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn_bytes = 0

    async def pass_published(self) -> None:
        """Skip this worker's own events, which don't concern later subscribers."""
        published, self.published = self.published, None
        if published is not None and published != Position(self.journal.epoch, self.journal.offset):
            await self.event_tail.settle()

    async def catch_up(self) -> None:
        """Deliver all new entries of the two streams and skip entries that aren't followed here."""
        await self.event_tail.settle()
        await self.change_tail.settle()

    def _deliver_entries(self, entries: Sequence[Entry]) -> None:
        take, write = self.journal.add, self.write
        for entry in entries:
            event = take(entry)
            write(event, event.channel)
            if event.channel.startswith(CLIENT):
                self.mailboxes.mark_delivered(event.channel.removeprefix(CLIENT))

    def _on_move(self, position: Position) -> None:
        self.journal.offset = position.offset

    def _deliver_changes(self, entries: Sequence[Entry]) -> None:
        journal = self.journal
        for entry in entries:
            event = self.presence_changes.add(entry, journal.epoch, journal.offset)
            self.write(event, event.channel)

    def _on_gap(self, loss: Gap) -> None:
        self.journal.reset(loss)
        self.reader.forget()
        self.reader.forget_ids()
        self.presence_changes.forget(self.journal.offset)  # the journal positions of these entries are now invalid
        self._send_gap("journal")

    def _on_changes_lost(self, loss: Gap) -> None:
        self.presence_changes.forget(self.journal.offset)
        self._send_gap("presence stream")

    def _send_gap(self, stream: str) -> None:
        self.gaps += 1
        logger.warning(
            "Entries of the hub's %s were dropped before this worker read them. Its subscribers receive a gap event.",
            stream,
        )
        self.write(gap("lost"), None)

    def position_event(self) -> Event:
        """Return an event with this worker's position, so subscribers can resume before their first event."""
        offset, id, last = self.journal.offset, self.journal.current_id(), self.presence_changes.last
        return Event("", None, None, f"{id}-{last.number}" if last.after(offset, None) else id, offset)

    def write(self, event: Event, channel: str | None) -> None:
        """Write an event to the subscribers of a channel, or to all subscribers if it's None."""
        limit = self._max_buffered
        written = 0
        slow: list[OutputStream] = []
        for encode, outlets in self.audience.everyone() if channel is None else self.audience.plan(channel):
            chunk = encode(event)
            if not chunk:
                continue
            for outlet in outlets:
                outlet.write(chunk)
                if outlet.buffered > limit:
                    slow.append(outlet)
            self.delivered += len(outlets)
            written += len(chunk) * len(outlets)
        for outlet in slow:
            self.disconnect(outlet)
        self.count_written(written)

    def count_written(self, size: int) -> None:
        """Count written bytes and cut the slowest outlets if too much is unread."""
        self._count_turn(size)
        self._bytes_since_count += size
        if self._bytes_since_count * _COUNTS_PER_LIMIT < self._max_unread:
            return
        self._bytes_since_count, outlets = 0, self.audience.by_outlet
        unread = sum(outlet.buffered for outlet in outlets)
        if unread <= self._max_unread:
            return
        for outlet in sorted(outlets, key=lambda outlet: outlet.buffered, reverse=True):
            unread -= outlet.buffered
            self.disconnect(outlet)
            if unread <= self._max_unread:
                return

    async def drain(self, outlet: OutputStream) -> None:
        """Wait until an outlet that is catching up has space. Cut the longest waiting outlets if too much is unread."""
        waiting = self._waiting
        if outlet in waiting:  # another subscription of this outlet already waits
            await outlet.drain()
            return
        waiting[outlet] = unread = outlet.buffered
        self._waiting_bytes += unread
        try:
            while self._waiting_bytes * 2 > self._max_unread and len(waiting) > 1:
                longest = next(iter(waiting))
                self._waiting_bytes -= waiting.pop(longest)
                self.disconnect(longest)
            await outlet.drain()
        finally:
            self._waiting_bytes -= waiting.pop(outlet, 0)

    def disconnect(self, outlet: OutputStream) -> None:
        """End the subscriptions of an outlet whose reader is too slow."""
        subscriptions = self.audience.on(outlet)
        if subscriptions:
            self.cut[SLOW] += 1
            subscriptions[0].write(cut(SLOW))
            subscriptions[0].close()
