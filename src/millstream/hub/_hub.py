"""The hub of one worker: what is published, who subscribes, who is there.

It puts the parts together: the journal keeps events, delivery writes them, replay brings a subscriber up to date,
mailboxes and presence remember clients. Nothing here touches a socket.
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
"""Of so many refreshes one looks for what hints may have missed. A store says where they were interrupted, so that's
rarely needed, and it costs an idle worker two of its few commands.
"""
_TURN = 32
"""Publications after which the loop gets a turn, so that sockets can take what was written."""

_logger = logging.getLogger("millstream.hub")


Caller = Principal | None
"""A signed-in principal, or None."""


class HubStats(Struct, frozen=True):
    """What an operator looks for. Counters are of this worker, since it opened. ``mcp.hub.stats().subscribers``"""

    subscribers: int
    channels: dict[str, int]
    """Subscribers of each channel and pattern."""
    published: int
    delivered: int
    cut: dict[str, int]
    """Subscribers that the hub ended, by reason."""
    gaps: int
    """How often this worker itself lost the thread of the journal."""
    transports: dict[str, int]
    """Subscribers by what carries them."""
    replays: dict[str, int]
    """Subscribers that came back, by an event id or to a mailbox: ``full`` for all that they missed, or ``gap``."""


class Hub:
    """Channels on a store.

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
        """For transports: whether a peer may publish or subscribe, before they answer."""
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
        """Channels and ids of the events that are just being published."""

    async def open(self) -> None:
        """Find the end of the journal and listen. The store is open."""
        await self._delivery.open()
        works = (self._attendance.run_departures, self._mailboxes.keep_saved, self._keep_fresh)
        self._tasks = [asyncio.create_task(work()) for work in works]

    async def close(self) -> None:
        """End every subscription, and save what the next connection of a client needs. Idempotent."""
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
        """Publish to a channel. Text is sent as it is, anything else as JSON.

        It returns when the event is kept and written to the subscribers of this worker. Subscribers hear the events
        of all channels in one order, the same everywhere.

        Args:
            channel: where to; no wildcards.
            data: what.
            event: the name of the event; without one it is a plain message.
            id: the publisher's own id of the event, which subscribers see and may resume from. An event with the same
                id on the same channel within two minutes is a repetition: it is not published again.

        Raises:
            InvalidName: the channel, event name or id cannot be one.
            Forbidden: the channel belongs to the hub.
            TooLarge: the data exceed `HubLimits.max_event`.
            TypeError: the data have no JSON form.
        """
        check_target(channel)
        return await self._publish(channel, data, event, id)

    async def send(
        self, client_id: str, data: Any, *, event: str | None = None, id: str | None = None, principal: Caller = None
    ) -> PublishResult:
        """Publish to one client of a principal. While it is offline its mailbox keeps the message.

        Raises:
            InvalidName, TooLarge, TypeError: as `publish`.
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
        """Write to an outlet what is published from now on, until one of the two is closed.

        Args:
            channels: channels and patterns.
            outlet: where to write. What another subscription has written there is not written again.
            encode: how; one function for each kind of outlet.
            last_event_id: first write what was published after this event. Where that is not known any more, a
                `gap` event and what is left.
            history: without a last event id, first write so many of the newest events.
            client_id: who appears in the presence of the channels (patterns aside) until the outlet closes.
            name: the client's name there.
            principal: who is asked about in the authorization hook.
            address: counted against the cap for each address.
            transport: what carries it, for `HubStats.transports`.

        Raises:
            InvalidName, Forbidden, TooMany: nothing was written.
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
            authorize=self._authorize,
            transport=transport,
        )
        return await self._attendance.start(subscription, last_event_id, history)

    async def follow(
        self, channel: str, outlet: Outlet, *, encode: Encode, last_event_id: str = "", transport: str = ""
    ) -> Subscription:
        """Subscribe for the server itself: neither the authorization hook nor a cap is asked.

        Arguments as `subscribe`.

        Raises:
            InvalidName: nothing was written.
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
        """Write to an outlet what is sent to one client: first what came while it was away, then what comes.

        Without a last event id these are the messages that no connection of the client was written; with one, those
        behind it. Arguments and errors as `subscribe`.
        """
        mailbox = self.admission.receive(client_id, principal=principal, address=address)
        subscription = Subscription(
            (CLIENT + mailbox,), outlet, encode, self._attendance.leave,
            mailbox=mailbox, principal=principal, address=address, transport=transport,
        )  # fmt: skip
        return await self._attendance.start(subscription, last_event_id, 0)

    async def presence(self, channel: str) -> list[Member]:
        """The clients on a channel, on all workers, in the order of arrival.

        Raises:
            InvalidName: the channel cannot be one.
        """
        check_channel(channel)
        return await self._presence.members(channel)

    async def history(self, channel: str, count: int = 50) -> list[Event]:
        """The newest events of a channel, oldest first.

        Raises:
            InvalidName: the channel cannot be one.
        """
        check_channel(channel)
        return await self._journal.history(channel, count) if count > 0 else []

    def place(self) -> str:
        """Return the id of the place where this worker stands. A subscriber resumes behind it."""
        return self._journal.place()

    def stats(self) -> HubStats:
        """The state of this worker's part of the hub."""
        delivery = self._delivery
        return HubStats(
            len(self._audience), self._audience.counts(), self._published, delivery.delivered, dict(delivery.cut),
            delivery.gaps, self._audience.transports(), dict(self._attendance.replays),
        )  # fmt: skip

    def slowest(self, count: int) -> list[tuple[Subscription, ...]]:
        """The subscribers that are furthest behind, each with its subscriptions: a walk over all of them."""
        return self._audience.slowest(count)

    def queued_bytes(self) -> int:
        """What subscribers have not taken yet: a walk over all of them."""
        return self._audience.queued()

    async def refresh(self, *, read: bool = True) -> None:
        """Tell who left with a dead worker, and everybody the present place; `read` what hints may have missed."""
        if read:
            await self._delivery.catch_up()
        await self._presence.refresh()
        self._delivery.tell_place()

    # Inside

    async def _publish(self, channel: str, data: Any, event: str | None, id: str | None) -> PublishResult:
        """`publish`, to the channels of clients too."""
        check_event_name(event)
        check_event_id(id, self._journal.epoch)
        if len(encoded := encode_data(data)) > self.limits.max_event:
            raise EventTooLarge(f"An event takes {self.limits.max_event} bytes, not {len(encoded)}.")
        if id is not None:
            return await self._publish_once(channel, encoded, event, id)
        return await self._append(channel, encoded, event, None)

    async def _publish_once(self, channel: str, encoded: bytes, event: str | None, id: str) -> PublishResult:
        """Publish an event unless one with its id was published just now."""
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
        place = position_id(at.epoch, at.offset)  # the journal may know another epoch
        if not subscribers and channel.startswith(CLIENT):
            await self._mailboxes.record_debt(channel.removeprefix(CLIENT), place, now)
        await self._delivery.events.reach(at)
        await self._count()
        return PublishResult(id or place, subscribers)

    def _tell(self, channel: str, event: str, member: Member) -> CoAppend:
        """Return the event that a member came or left."""
        behind = str(self._journal.offset)
        return self._arrivals.entry_for(
            StoredEvent(PRESENCE + channel, encode_data(member), event, behind, self._clock())
        )

    async def _tell_here(self, told: Position) -> None:
        """Return when the subscribers of this worker know it. A hub that closes has none left to wait for."""
        if self._tasks:
            await self._delivery.visits.reach(told)
        await self._count()

    async def _count(self) -> None:
        self._published += 1
        if not self._published % _TURN:
            await asyncio.sleep(0)

    async def _keep_fresh(self) -> None:
        trouble = LogOnce(
            _logger, "The hub can't refresh its records, which is tried again", "The hub refreshes its records again."
        )
        for turn in count(1):
            await asyncio.sleep(self.limits.refresh)
            with trouble:
                await self.refresh(read=turn % _READS == 0)
