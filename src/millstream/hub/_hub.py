"""The hub of one worker: publishing, subscriptions, and presence.

The hub combines these parts: the journal stores events, delivery writes them, replay brings a subscriber up to date,
and mailboxes and presence track clients. This module does no network I/O.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

from msgspec import Struct

from millstream._http.message import Outlet
from millstream._protocol.principal import Principal
from millstream._stores.base import CoAppend, Position, Store
from millstream._stores.health import LogOnce
from millstream.hub._admission import AccessRules, check_target
from millstream.hub._audience import Audience
from millstream.hub._channels import CLIENT, PRESENCE, check_channel, check_client_id, owned_id, owner_of
from millstream.hub._delivery import Delivery
from millstream.hub._event import (
    Event,
    PublishResult,
    StoredEvent,
    check_event_id,
    check_event_name,
    encode_data,
    position_id,
)
from millstream.hub._event_ids import WINDOW
from millstream.hub._journal import Journal
from millstream.hub._limits import EventTooLarge, HubLimits
from millstream.hub._mailbox import Mailboxes
from millstream.hub._permission import SafeAuthorize
from millstream.hub._presence import Member, Presence
from millstream.hub._presence_changes import PresenceChanges
from millstream.hub._presence_events import PresenceEvents
from millstream.hub._reader import JournalReader
from millstream.hub._subscriber import Authorize, Encode, Subscription

_READS: Final = 6
"""One in this many refreshes reads for messages whose hints were lost. The store reports interruptions, so this is
rarely needed, and it costs an idle worker two commands.
"""
_TURN = 32
"""Publications after which the event loop gets a turn, so sockets can send."""

_logger = logging.getLogger("millstream.hub")


Caller = Principal | None
"""A signed-in principal, or None."""


class HubStats(Struct, frozen=True):
    """Statistics for operators. Counters are of this worker, since it opened: ``mcp.hub.stats().subscribers``."""

    subscribers: int
    channels: dict[str, int]
    """Number of subscribers per channel and pattern."""
    published: int
    delivered: int
    cut: dict[str, int]
    """Number of subscribers that the hub ended, by reason."""
    gaps: int
    """How often this worker lost its position in the journal."""
    transports: dict[str, int]
    """Number of subscribers per transport."""
    replays: dict[str, int]
    """Number of subscribers that returned with an event id or to a mailbox: ``full`` if they missed nothing, else
    ``gap``.
    """


class Hub:
    """Publish/subscribe channels on top of a store.

    Example:
        >>> hub = Hub(store, HubLimits())
        >>> await hub.open()
        >>> await hub.publish("broadcast", {"text": "hello"})
    """

    def __init__(
        self,
        store: Store,
        limits: HubLimits,
        *,
        clock: Callable[[], float] | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        # configuration
        self.limits = limits
        self._clock = clock = clock or store.time
        self._authorize = SafeAuthorize(authorize) if authorize is not None else None
        # process
        self._journal = Journal(store, limits, clock)
        self._reader = JournalReader(store, self._journal)
        self._audience = Audience(limits)
        self.admission: AccessRules = AccessRules(self._audience, limits, self._authorize)
        """Access checks that transports run before they respond."""
        self._arrivals = PresenceChanges(store)
        self._mailboxes = Mailboxes(store, self._journal, limits)
        self._delivery = Delivery(
            store, self._journal, self._reader, self._arrivals, self._mailboxes, self._audience, limits=limits
        )
        self._presence = Presence(store, self._tell, self._tell_here)
        self._attendance = PresenceEvents(
            self._audience,
            self._mailboxes,
            self._presence,
            self._journal,
            self._reader,
            self._arrivals,
            delivery=self._delivery,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._published = 0
        self._publishing: dict[tuple[str, str], asyncio.Future[None]] = {}
        """Channels and ids of events whose publication is in progress."""

    async def open(self) -> None:
        """Find the end of the journal and start listening. The store must be open."""
        await self._delivery.open()
        works = (self._attendance.run_departures, self._mailboxes.keep_saved, self._keep_fresh)
        self._tasks = [asyncio.create_task(work()) for work in works]

    async def close(self) -> None:
        """End all subscriptions, and save what clients need for their next connection. Idempotent."""
        if not self._tasks:
            return
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._delivery.close()
        for subscription in self._audience.all():
            subscription.close()
        self._attendance.forget()
        await self._mailboxes.save()
        await self._presence.leave_all()
        self._reader.close()

    # Publishing

    async def publish(
        self, channel: str, data: Any, *, event: str | None = None, id: str | None = None
    ) -> PublishResult:
        """Publish an event to a channel. Text is sent unchanged, anything else as JSON.

        Returns when the event is stored and written to the subscribers of this worker. All subscribers receive the
        events of all channels in the same order.

        Args:
            channel: The channel, without wildcards.
            data: The data.
            event: The event name. Without a name, the event is a plain message.
            id: The publisher's own event id, which subscribers see and can resume from. An event with the same id on
                the same channel within two minutes is a repetition and isn't published again.

        Raises:
            InvalidName: The channel, event name, or id is invalid.
            Forbidden: The channel is reserved for the hub.
            EventTooLarge: The data exceeds `HubLimits.max_event`.
            TypeError: The data isn't JSON-serializable.
        """
        check_target(channel)
        return await self._publish(channel, data, event, id)

    async def send(
        self, client_id: str, data: Any, *, event: str | None = None, id: str | None = None, principal: Caller = None
    ) -> PublishResult:
        """Publish to one client of a principal. While the client is offline, its mailbox stores the message.

        Raises:
            InvalidName, EventTooLarge, TypeError: As for `publish`.
        """
        check_client_id(client_id)
        return await self._publish(CLIENT + owned_id(client_id, owner_of(principal)), data, event, id)

    # Subscribing

    async def subscribe(
        self,
        channels: Sequence[str],
        outlet: Outlet,
        *,
        encode: Encode,
        last_event_id: str = "",
        history: int = 0,
        client_id: str = "",
        name: str = "",
        principal: Caller = None,
        address: str = "",
        transport: str = "",
    ) -> Subscription:
        """Write future events to an outlet, until the outlet or the subscription is closed.

        Args:
            channels: Channels and patterns.
            outlet: The outlet. Events written by its other subscriptions aren't repeated.
            encode: The encoder, one function per kind of outlet.
            last_event_id: The id of the last received event. Missed events are written first, after a `gap` event if
                some of them are gone.
            history: The number of recent events to write first, without a last event id.
            client_id: The id that appears in the presence of the channels (not of patterns) until the outlet closes.
            name: The client's display name.
            principal: The caller, for the authorization hook.
            address: The address, for the cap per address.
            transport: The transport, for `HubStats.transports`.

        Raises:
            InvalidName, Forbidden, TooMany: The subscription isn't allowed. Nothing was written.
        """
        wanted = self.admission.subscribe(
            channels, client_id=client_id, name=name, principal=principal, address=address
        )
        member = Member(client_id, name, self._clock(), owner_of(principal)) if client_id else None
        subscription = Subscription(
            wanted,
            outlet,
            encode,
            self._attendance.leave,
            member=member,
            principal=principal,
            address=address,
            authorize=self.admission.reach,
            transport=transport,
        )
        return await self._attendance.start(subscription, last_event_id, history)

    async def follow(
        self, channel: str, outlet: Outlet, *, encode: Encode, last_event_id: str = "", transport: str = ""
    ) -> Subscription:
        """Subscribe on behalf of the server, without the authorization hook and caps.

        The arguments are those of `subscribe`.

        Raises:
            InvalidName: The channel name is invalid. Nothing was written.
        """
        check_channel(channel)
        subscription = Subscription((channel,), outlet, encode, self._attendance.leave, transport=transport)
        return await self._attendance.start(subscription, last_event_id, 0)

    async def receive(
        self,
        client_id: str,
        outlet: Outlet,
        *,
        encode: Encode,
        last_event_id: str = "",
        principal: Caller = None,
        address: str = "",
        transport: str = "",
    ) -> Subscription:
        """Write a client's messages to an outlet: first those that arrived while it was offline, then new ones.

        Without a last event id, the first messages are those that no connection of the client has received. With an id,
        they are those after it. Arguments and errors are those of `subscribe`.
        """
        mailbox = self.admission.receive(client_id, principal=principal, address=address)
        subscription = Subscription(
            (CLIENT + mailbox,), outlet, encode, self._attendance.leave,
            mailbox=mailbox, principal=principal, address=address, transport=transport,
        )  # fmt: skip
        return await self._attendance.start(subscription, last_event_id, 0)

    async def presence(self, channel: str) -> list[Member]:
        """Return the clients on a channel, over all workers, in order of arrival.

        Raises:
            InvalidName: The channel name is invalid.
        """
        check_channel(channel)
        return await self._presence.members(channel)

    async def history(self, channel: str, count: int = 50) -> list[Event]:
        """Return the newest events of a channel, oldest first.

        Raises:
            InvalidName: The channel name is invalid.
        """
        check_channel(channel)
        return await self._journal.history(channel, count) if count > 0 else []

    def place(self) -> str:
        """Return the id of this worker's position. A subscriber can resume after it."""
        return self._journal.place()

    def stats(self) -> HubStats:
        """Return the statistics of this worker's hub."""
        delivery = self._delivery
        return HubStats(
            len(self._audience), self._audience.counts(), self._published, delivery.delivered, dict(delivery.cut),
            delivery.gaps, self._audience.transports(), dict(self._attendance.replays),
        )  # fmt: skip

    def slowest(self, count: int) -> list[tuple[Subscription, ...]]:
        """Return the subscribers furthest behind, each with its subscriptions. Iterates over all subscribers."""
        return self._audience.slowest(count)

    def queued_bytes(self) -> int:
        """Return the bytes that subscribers haven't read yet. Iterates over all subscribers."""
        return self._audience.queued_bytes()

    async def refresh(self, *, read: bool = True) -> None:
        """Report members of dead workers as departed, and send the current position to all subscribers. With `read`,
        also read missed messages.
        """
        if read:
            await self._delivery.catch_up()
        await self._presence.refresh()
        self._delivery.tell_place()

    # Internals

    async def _publish(self, channel: str, data: Any, event: str | None, id: str | None) -> PublishResult:
        """Publish to any channel, including those of clients."""
        check_event_name(event)
        check_event_id(id, self._journal.epoch)
        if len(encoded := encode_data(data)) > self.limits.max_event:
            raise EventTooLarge(f"An event must have at most {self.limits.max_event} bytes, not {len(encoded)}.")
        if id is not None:
            return await self._publish_once(channel, encoded, event, id)
        return await self._append(channel, encoded, event, None)

    async def _publish_once(self, channel: str, encoded: bytes, event: str | None, id: str) -> PublishResult:
        """Publish an event, unless one with its id was just published."""
        under_way = self._publishing.get((channel, id))
        if under_way is not None:
            await asyncio.wait([under_way])
        if any(each.channel == channel and self._clock() - each.at < WINDOW for each in self._journal.ids.find(id)):
            return PublishResult(id, 0)
        done = self._publishing[channel, id] = asyncio.get_running_loop().create_future()
        try:
            return await self._append(channel, encoded, event, id)
        finally:
            done.set_result(None)
            if self._publishing.get((channel, id)) is done:
                del self._publishing[channel, id]

    async def _append(self, channel: str, encoded: bytes, event: str | None, id: str | None) -> PublishResult:
        subscribers, now = sum(len(outlets) for _, outlets in self._audience.plan(channel)), self._clock()
        at = (await self._journal.append(StoredEvent(channel, encoded, event, id, now))).position
        place = position_id(at.epoch, at.offset)  # the journal can be at another epoch
        if not subscribers and channel.startswith(CLIENT):
            await self._mailboxes.record_debt(channel.removeprefix(CLIENT), place, now)
        await self._delivery.events.reach(at)
        await self._count()
        return PublishResult(id or place, subscribers)

    def _tell(self, channel: str, event: str, member: Member) -> CoAppend:
        """Return the presence event of a member."""
        behind = str(self._journal.offset)
        return self._arrivals.entry_for(
            StoredEvent(PRESENCE + channel, encode_data(member), event, behind, self._clock())
        )

    async def _tell_here(self, told: Position) -> None:
        """Wait until this worker's subscribers have an event. Returns immediately when the hub is closing."""
        if self._tasks:
            await self._delivery.visits.reach(told)
        await self._count()

    async def _count(self) -> None:
        self._published += 1
        if not self._published % _TURN:
            await asyncio.sleep(0)

    async def _keep_fresh(self) -> None:
        trouble = LogOnce(
            _logger, "The hub can't refresh its records; retrying", "The hub can refresh its records again."
        )
        for turn in count(1):
            await asyncio.sleep(self.limits.refresh)
            with trouble:
                await self.refresh(read=turn % _READS == 0)
