"""The hub of one worker: publish, subscribe, deliver.

Publishing appends to the journal, delivers here what the journal has new, and says on the bus that there is more.
Delivery encodes an event once for each kind of outlet and writes the same bytes to all of that kind, in one plain
loop. Whoever is too far behind is ended by name and can resume; the others do not feel it.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from millstream.hub.audience import Audience
from millstream.hub.channels import CLIENT, PRESENCE, check_channel, check_client_id, check_pattern, is_pattern
from millstream.hub.event import (
    Event,
    Published,
    Record,
    check_event_id,
    check_event_name,
    cut,
    encode_data,
    gap,
    position_id,
)
from millstream.hub.journal import Journal
from millstream.hub.limits import Forbidden, HubLimits, InvalidName, TooLarge
from millstream.hub.mailbox import Mailboxes
from millstream.hub.presence import Member, Presence
from millstream.hub.replay import Replay
from millstream.hub.subscriber import Authorize, Encode, Outlet, Subscription
from millstream.protocol.errors import LocalError
from millstream.protocol.principal import Principal
from millstream.stores.base import Gap, Store

_TOPIC = "hub"
_TURN = 32
"""Publications after which the loop gets a turn, so that sockets can take what was written."""
_RETRY_SECONDS = 1.0

_logger = logging.getLogger("millstream.hub")


class HubStats(Struct, frozen=True):
    """What an operator looks for. Counters are of this worker, since it opened."""

    subscribers: int
    channels: dict[str, int]
    """Subscribers of each channel and pattern."""
    published: int
    delivered: int
    cut: dict[str, int]
    """Subscribers that the hub ended, by reason."""
    gaps: int
    """How often this worker itself lost the thread of the journal."""


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
        clock: Callable[[], float] = time.time,
        authorize: Authorize | None = None,
    ) -> None:
        # configuration
        self.limits = limits
        self._store = store
        self._clock = clock
        self._authorize = authorize
        # process
        self._journal = Journal(store, limits, clock)
        self._audience = Audience(limits)
        self._mailboxes = Mailboxes(store.kv, self._journal, limits)
        self._presence = Presence(store.kv, limits, clock, secrets.token_hex(8), self._announce)
        self._delivering = asyncio.Lock()
        self._work = asyncio.Event()
        self._departed: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] | None = None
        self._published = 0
        self._delivered = 0
        self._gaps = 0
        self._cut: dict[str, int] = {}

    async def open(self) -> None:
        """Find the end of the journal and listen. The store is open."""
        self._unsubscribe = self._store.bus.subscribe(_TOPIC, self._wake, interrupted=self._work.set)
        await self._journal.open()
        self._tasks = [asyncio.create_task(self._attend()), asyncio.create_task(self._keep_up())]

    async def close(self) -> None:
        """End every subscription, and save what the next connection of a client needs. Idempotent."""
        if self._unsubscribe is None:
            return
        self._unsubscribe()
        self._unsubscribe = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for subscription in self._audience.all():
            subscription.close()
        self._departed.clear()
        await self._mailboxes.save()
        await self._presence.withdraw_all()

    # Publishing

    async def publish(self, channel: str, data: Any, *, event: str | None = None, id: str | None = None) -> Published:
        """Publish to a channel. Text is sent as it is, anything else as JSON.

        It returns when the event is kept and written to the subscribers of this worker. Subscribers hear the events
        of all channels in one order, the same everywhere.

        Args:
            channel: where to; no wildcards.
            data: what.
            event: the name of the event; without one it is a plain message.
            id: the publisher's own id of the event, which subscribers see and may resume from.

        Raises:
            InvalidName: the channel, event name or id cannot be one.
            TooLarge: the data exceed `HubLimits.max_event`.
            TypeError: the data have no JSON form.
        """
        check_channel(channel)
        check_event_name(event)
        check_event_id(id, self._journal.epoch)
        encoded = encode_data(data)
        if len(encoded) > self.limits.max_event:
            raise TooLarge(f"An event takes {self.limits.max_event} bytes, not {len(encoded)}.")
        subscribers = sum(len(outlets) for _, outlets in self._audience.plan(channel))
        offset = await self._journal.append(Record(channel, encoded, event, id, self._clock()))
        await self._deliver_new()
        await self._store.bus.publish(_TOPIC, b"%d" % offset)
        self._published += 1
        if not self._published % _TURN:
            await asyncio.sleep(0)
        return Published(id or position_id(self._journal.epoch, offset), subscribers)

    async def send(self, client_id: str, data: Any, *, event: str | None = None, id: str | None = None) -> Published:
        """Publish to one client. While it is offline its mailbox keeps the message.

        Raises:
            InvalidName, TooLarge, TypeError: as `publish`.
        """
        check_client_id(client_id)
        return await self.publish(CLIENT + client_id, data, event=event, id=id)

    def check_publish(self, channel: str, principal: Principal | None = None) -> None:
        """Whether a principal may publish; for those who publish on behalf of a peer.

        Raises:
            InvalidName: the channel cannot be one.
            Forbidden: it belongs to the hub, or the hook refuses.
        """
        check_channel(channel)
        if channel.startswith("$") or not self._allows(principal, "publish", channel):
            raise Forbidden("publish", channel)

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
        principal: Principal | None = None,
        address: str = "",
    ) -> Subscription:
        """Write to an outlet what is published from now on, until one of the two is closed.

        Args:
            channels: channels and patterns.
            outlet: where to write.
            encode: how; one function for each kind of outlet.
            last_event_id: first write what was published after this event. Where that is not known any more, a
                `gap` event and what is left.
            history: without a last event id, first write so many of the newest events.
            client_id: who appears in the presence of the channels (patterns aside) until the outlet closes.
            name: the client's name there.
            principal: who is asked about in the authorization hook.
            address: counted against the cap for each address.

        Raises:
            InvalidName, Forbidden, TooMany: nothing was written.
        """
        wanted = self.check_subscribe(channels, principal=principal, address=address)
        member = self._member(client_id, name)
        return await self._start(
            wanted, outlet, encode, last_event_id, history, member=member, principal=principal, address=address
        )

    async def receive(
        self,
        client_id: str,
        outlet: Outlet,
        *,
        encode: Encode,
        last_event_id: str = "",
        principal: Principal | None = None,
        address: str = "",
    ) -> Subscription:
        """Write to an outlet what is sent to one client: first what came while it was away, then what comes.

        Without a last event id these are the messages that no connection of the client was written; with one, those
        behind it. Arguments and errors as `subscribe`.
        """
        channel = self.check_receive(client_id, principal=principal, address=address)
        return await self._start(
            (channel,), outlet, encode, last_event_id, 0, mailbox=client_id, principal=principal, address=address
        )

    def check_subscribe(
        self, channels: Sequence[str], *, principal: Principal | None = None, address: str = ""
    ) -> tuple[str, ...]:
        """The channels of a subscription without repetition, if it is possible now.

        Raises:
            InvalidName, Forbidden, TooMany: it is not.
        """
        wanted = tuple(dict.fromkeys(channels))
        most = self.limits.max_channels_per_subscriber
        if not 1 <= len(wanted) <= most:
            raise InvalidName(f"A subscription has 1 to {most} channels, not {len(wanted)}.")
        for channel in wanted:
            check_pattern(channel)
            if channel.startswith(CLIENT) or channel == "$client" or not self._allows(principal, "subscribe", channel):
                raise Forbidden("subscribe", channel)
        self._audience.check_room(wanted, address)
        return wanted

    def check_receive(self, client_id: str, *, principal: Principal | None = None, address: str = "") -> str:
        """The channel of a client, if somebody may listen to it now.

        Raises:
            InvalidName, Forbidden, TooMany: it is not so.
        """
        check_client_id(client_id)
        channel = CLIENT + client_id
        if not self._allows(principal, "subscribe", channel):
            raise Forbidden("subscribe", channel)
        self._audience.check_room((channel,), address)
        return channel

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
        events, _ = await self._journal.history(channel)
        return events[-count:] if count > 0 else []

    def stats(self) -> HubStats:
        """The state of this worker's part of the hub."""
        return HubStats(
            len(self._audience),
            self._audience.counts(),
            self._published,
            self._delivered,
            dict(self._cut),
            self._gaps,
        )

    async def refresh(self) -> None:
        """What the hub does every third of `HubLimits.presence_ttl`: presence, cursors, and the id of the present
        place to every subscriber, so that who reconnects after a long silence is not behind the journal.
        """
        await self._deliver_new()
        await self._presence.refresh()
        await self._mailboxes.save_online()
        here = Event("", None, None, position_id(self._journal.epoch, self._journal.offset))
        chunks: dict[Encode, bytes] = {}
        for subscription in self._audience.all():
            if subscription.joined:
                encode = subscription.encode
                chunk = chunks[encode] = chunks.get(encode) or encode(here)
                subscription.outlet.write(chunk)

    # Inside

    def _allows(self, principal: Principal | None, action: str, channel: str) -> bool:
        return self._authorize is None or self._authorize(principal, action, channel)
