"""The hub of one worker: publishing, subscriptions, and presence.

The hub combines these parts: the journal stores events, delivery writes them, replay brings a subscriber up to date,
and mailboxes and presence track clients. This module does no network I/O.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from heapq import nlargest
from typing import Any

from msgspec import Struct

from millstream._copies import NotCopyable
from millstream._http.message import OutputStream
from millstream._limits import Limiter
from millstream._protocol.principal import Principal, Profile, get_profile
from millstream._recent import Recent
from millstream._stores.base import EntryRepeated, Position
from millstream._stores.store import Store
from millstream._tasks import cancel_all
from millstream._troubles import LogOnce, run_on
from millstream.hub._admission import AccessRules, check_target, deny_on_errors
from millstream.hub._channels import (
    CLIENT,
    PRESENCE,
    EventTooLarge,
    HubLimits,
    check_channel,
    check_client_id,
    is_presence,
    owned_id,
    owner_of,
)
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
from millstream.hub._mailbox import EventListener, logger
from millstream.hub._presence import Member, MemberList, Place, Presence, Roster
from millstream.hub._reader import SharedReads
from millstream.hub._replay import REPLAYS, CatchUp
from millstream.hub._subscriber import Authorize, Encode, Subscription

_REFRESHES_PER_READ = 6
"""Number of refreshes per read of the streams, which finds messages after lost notifications. The store reports
interruptions, so this is rarely needed, and it costs an idle worker two commands.
"""
_MAX_PROFILES = 1024
_ROSTER_BYTES, _MEMBER_BYTES = 600, 800
"""Memory for a channel's members, and for each member, in bytes."""


Caller = Principal | None
"""A signed-in principal, or None."""


class HubStats(Struct, frozen=True):
    """Statistics for operators. Counters cover this worker since it opened: ``mcp.hub.stats().subscribers``."""

    subscribers: int
    channels: dict[str, int]
    """Number of subscribers per channel and pattern."""
    published: int
    delivered: int
    disconnected: dict[str, int]
    """Number of subscribers that the hub ended, by reason."""
    gaps: int
    """Number of times that this worker lost its position in the journal."""
    transports: dict[str, int]
    """Number of subscribers per transport."""
    replays: dict[str, int]
    """Number of subscribers that resumed from an event id or opened a mailbox: ``full`` if they received everything,
    ``gap`` otherwise.
    """


class Hub(NotCopyable):
    """Publish/subscribe channels on top of a store. A server with ``serve="hub"`` has one: `Server.hub`.

    Args:
        store: The store, which must be open before the hub is.
        limits: Limits of subscribers, events, and histories.
        clock: Returns the Unix time, by default the store's clock, which all workers share.
        authorize: ``f(principal, "publish" or "subscribe", channel)`` returns whether a caller can use a channel. If it
            raises, access is denied.
        name_claims: Claims that can contain a caller's display name (see `Settings.display_name_claims`).

    Example:
        >>> hub = Hub(store, HubLimits())
        >>> await hub.open()
        >>> await hub.publish("broadcast", {"text": "hello"})
    """

    _COPY_ADVICE = "Use the hub of the server in each process."

    _published = 0

    def __init__(
        self,
        store: Store,
        limits: HubLimits,
        *,
        clock: Callable[[], float] | None = None,
        authorize: Authorize | None = None,
        name_claims: Sequence[str] = (),
    ) -> None:
        self.limits = limits
        self._name_claims = name_claims
        self._profiles: Recent[bytes, tuple[Principal, Profile]] = Recent(_MAX_PROFILES)
        self._clock = clock = clock or store.time
        self._store = store
        self._delivery = delivery = Delivery(store, limits, clock)
        self._journal, self._audience = delivery.journal, delivery.audience
        self.admission: AccessRules = AccessRules(
            self._audience, limits, deny_on_errors(authorize) if authorize is not None else None
        )
        """Access checks that transports run before they respond."""
        self._presence = Presence(store, self._journal, clock, self._wait_for_delivery)
        self._rosters = SharedReads[Roster](lambda roster: _ROSTER_BYTES + len(roster.members) * _MEMBER_BYTES)
        self._departures: asyncio.Queue[Sequence[Place]] = asyncio.Queue()
        """Departures to publish in the background. Bounded by the number of subscribers."""
        self._presence_outage = LogOnce(
            None,  # `Presence.refresh` retries
            "The hub can't publish presence events; retrying",
            "The hub can publish presence events again.",
        )
        self._replay_limiter = Limiter("replays", REPLAYS, clock=lambda: asyncio.get_running_loop().time())
        self._replays = {"full": 0, "gap": 0}
        self._refresh_needed = asyncio.Event()
        self._refreshes = 0
        self._stops: list[Callable[[], None]] = []
        self._stop_hooks: list[Callable[[], Awaitable[object]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Find the end of the journal and start listening. The store must be open."""
        await self._delivery.open()
        self._stops = [each.watch(self._refresh_needed.set) for each in (self._store, self._store.workers)]
        outage = LogOnce(
            self._store.troubles,
            "The hub can't refresh its records; retrying",
            "The hub can refresh its records again.",
        )
        refreshes = run_on(self._refresh_needed, self._refresh, outage, every=self.limits.refresh)
        jobs = self._run_departures(), self._delivery.mailboxes.run_saves(), refreshes
        self._tasks = [asyncio.create_task(job) for job in jobs]

    def on_stop(self, hook: Callable[[], Awaitable[object]]) -> None:
        """Await a function when the server stops, after its calls have ended and before the hub's streams close.

        Each worker does this. Together, the functions have what's left of `Settings.drain_timeout`, but at least a
        second. An error is logged, and doesn't keep the server from closing.

        Args:
            hook: An async function without arguments.

        Example:
            ``mcp.hub.on_stop(lambda: mcp.hub.publish("news", "Back in a minute", event="stopping"))``
        """
        self._stop_hooks.append(hook)

    async def run_stop_hooks(self, seconds: float) -> None:
        """Run the functions of `on_stop` once, then deliver what other workers have published until now.

        Args:
            seconds: The time limit.
        """
        hooks, self._stop_hooks = self._stop_hooks, []
        until = asyncio.get_running_loop().time() + seconds
        for hook in (*hooks, self._delivery.event_tail.settle) if hooks else ():
            try:
                async with asyncio.timeout_at(until):
                    await hook()
            except Exception:
                logger.exception("A function that runs before the hub's streams close failed.")

    async def close(self) -> None:
        """End all subscriptions and save what clients need for their next connection. Idempotent."""
        if not self._tasks:
            return
        for stop in self._stops:
            stop()
        tasks, self._tasks = self._tasks, []
        await cancel_all(*tasks)
        await self._delivery.close()
        for subscription in list(self._audience.subscriptions):
            subscription.close()
        await self._delivery.mailboxes.save()
        await self._presence.leave_all()
        await self._delivery.reader.close()
        await self._rosters.tasks.close()

    # Publishing

    async def publish(
        self, channel: str, data: Any, *, event: str | None = None, id: str | None = None, publisher: Caller = None
    ) -> PublishResult:
        """Publish an event to a channel. Text is sent unchanged, anything else as JSON.

        Returns when the event is stored and written to the subscribers of this worker. Subscribers receive the events,
        also of different channels, in the same order.

        Args:
            channel: The channel, without wildcards.
            data: The data.
            event: The event name. Without a name, the event is a plain message.
            id: The publisher's own event id, which subscribers see and can resume from. An event with the same id on
                the same channel within two minutes isn't published again.
            publisher: The caller that publishes it, such as ``ctx.principal``. Subscribers then see the caller's
                display name (`Event.user`). One caller's event ids can't displace another caller's.

        Raises:
            InvalidName: The channel, event name, or id is invalid.
            Forbidden: The channel is reserved for the hub.
            EventTooLarge: The data exceeds `HubLimits.max_event`.
            TypeError: The data isn't JSON-serializable.
        """
        check_target(channel)
        return await self._publish(channel, data, event, id, owner_of(publisher), publisher)

    async def send(
        self,
        client_id: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        principal: Caller = None,
        publisher: Caller = None,
    ) -> PublishResult:
        """Publish to one client of a person: ``await mcp.hub.send("phone", {"n": 1}, principal=ctx.principal)``.

        With sign-in, a client id belongs to the principal that connects with it, so two people can use the same id. The
        message reaches only the principal that you pass. That can be another person than the caller of your tool. The
        hub doesn't check who may write to whom, so your tool has to. A principal is identified by its `subject`,
        `issuer`, and `client`: store these when the person calls a tool, and later pass ``Principal(subject, issuer,
        client)``. For a named API key, it's ``Principal("Ada", client="Ada")``.

        While the client is offline, its mailbox stores up to `HubLimits.mailbox` messages, each for
        `HubLimits.mailbox_age` seconds, even if the client has never connected.

        Args:
            client_id: The client's id, at most 128 characters.
            data: The data. Text is sent unchanged, anything else as JSON.
            event: The event name. Without a name, the event is a plain message.
            id: The publisher's own event id, as for `publish`.
            principal: The client's owner, such as ``ctx.principal`` for the caller's own client. For another person,
                pass ``Principal("Ada", client="Ada")`` for an API key with the name Ada, or ``Principal(subject,
                issuer, client)`` as in that person's tokens. Without a principal, only clients without sign-in receive
                the message.
            publisher: The caller that sends it, as for `publish`.

        Raises:
            InvalidName, EventTooLarge, TypeError: As for `publish`.
        """
        check_client_id(client_id)
        return await self._publish(CLIENT + owned_id(client_id, owner_of(principal)), data, event, id, "", publisher)

    # Subscribing

    async def subscribe(  # noqa: PLR0913  the options of a subscription
        self,
        channels: Sequence[str],
        outlet: OutputStream,
        *,
        encode: Encode,
        last_event_id: str = "",
        history: int = 0,
        members: bool = False,
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
                some of them are no longer stored.
            history: The number of recent events to write first, without a last event id.
            members: Whether to write a ``members`` event for each ``$presence.<channel>``, after missed events and the
                history, and before the arrivals and departures that aren't in it.
            client_id: The id to show in the channels' presence (not for patterns) until the outlet closes.
            name: The client's display name.
            principal: The caller, for the authorization hook.
            address: The address, for the cap per address.
            transport: The transport, for `HubStats.transports`.

        Raises:
            InvalidName, Forbidden, LimitExceeded: The subscription isn't allowed. Nothing was written.
        """
        wanted = self.admission.subscribe(
            channels, client_id=client_id, name=name, principal=principal, address=address
        )
        owner, user = owner_of(principal), self._profile(principal)
        member = Member(client_id, name, self._clock(), owner, user) if client_id else None
        subscription = Subscription(
            wanted,
            outlet,
            encode,
            self._leave,
            member=member,
            principal=principal,
            address=address,
            authorize=self.admission.reaches,
            transport=transport,
        )
        return await self._start(subscription, last_event_id, history, members)

    @asynccontextmanager
    async def hold_interest(self, channels: Sequence[str]) -> AsyncGenerator[None]:
        """Read the events of channels during the block, so that a subscription can begin without waiting.

        Args:
            channels: Valid channels and patterns.
        """
        try:
            await self._delivery.interest.add(channels)
            await self._delivery.pass_published()
            yield
        finally:
            self._delivery.interest.remove(channels)

    async def follow(
        self, channel: str, outlet: OutputStream, *, encode: Encode, last_event_id: str = "", transport: str = ""
    ) -> Subscription:
        """Subscribe on behalf of the server, without the authorization hook and limits.

        Args:
            channel: The channel, without wildcards.
            outlet: The outlet, as for `subscribe`.
            encode: The encoder, one function per kind of outlet.
            last_event_id: The id of the last received event, to resume after it.
            transport: The transport, for `HubStats.transports`.

        Raises:
            InvalidName: The channel name is invalid. Nothing was written.
        """
        check_channel(channel)
        subscription = Subscription((channel,), outlet, encode, self._leave, transport=transport)
        return await self._start(subscription, last_event_id, 0)

    async def receive(
        self,
        client_id: str,
        outlet: OutputStream,
        *,
        encode: Encode,
        last_event_id: str = "",
        principal: Caller = None,
        address: str = "",
        transport: str = "",
    ) -> Subscription:
        """Write a client's messages to an outlet: first the messages that arrived while it was offline, then new ones.

        Without a last event id, the first messages are the undelivered ones. With an id, they are the messages after
        that event.

        Args:
            client_id: The id that is passed to `send`.
            outlet: The outlet, as for `subscribe`.
            encode: The encoder, one function per kind of outlet.
            last_event_id: The id of the last received message.
            principal: The caller. A client id belongs to one principal, so another principal's messages can't be read.
            address: The address, for the cap per address.
            transport: The transport, for `HubStats.transports`.

        Raises:
            InvalidName, LimitExceeded: The subscription isn't allowed. Nothing was written.
        """
        mailbox = self.admission.receive(client_id, principal=principal, address=address)
        subscription = Subscription(
            (CLIENT + mailbox,),
            outlet,
            encode,
            self._leave,
            mailbox=mailbox,
            principal=principal,
            address=address,
            transport=transport,
        )
        return await self._start(subscription, last_event_id, 0)

    def listen(self, pattern: str, *, name: str = "") -> AsyncGenerator[Event, None]:
        """Return an async iterator over new events on a channel or pattern.

        Without a name, each listener gets all events. With a name, only one listener on any worker reads the events at
        a time, from the position in the store for that name. A new name starts with new events. An event is completed
        when the next one is requested. After a crash, the last event may arrive again, with the same id. If the journal
        dropped events, a warning is logged. Iteration ends when the hub closes.

        Args:
            pattern: A channel or pattern. Channels that start with ``$`` aren't allowed.
            name: The listener's name, such as its purpose.

        Raises:
            InvalidName: The pattern is invalid or reserved.

        Example:
            ``async for event in mcp.hub.listen("orders.*", name="mailer"): await send(event.data)``
        """
        return EventListener(self._store, pattern, name, lambda: bool(self._tasks)).events()

    async def presence(self, channel: str) -> list[Member]:
        """Return the clients on a channel, in order of arrival: ``await mcp.hub.presence("room.den")``.

        This includes the clients on all workers. A client is present from its subscription with a `client_id` until its
        connection closes.

        Args:
            channel: The channel, without wildcards.

        Raises:
            InvalidName: The channel name is invalid.
        """
        check_channel(channel)
        return await self._presence.members(channel)

    async def members(self, channel: str) -> MemberList:
        """Return the clients on a channel, and the id of the last presence event that the list includes.

        Args:
            channel: The channel, without wildcards.

        Raises:
            InvalidName: The channel name is invalid.
        """
        check_channel(channel)
        return (await self._member_lists([channel]))[0]

    async def history(self, channel: str, count: int = 50) -> list[Event]:
        """Return the newest events of a channel, oldest first: ``await mcp.hub.history("room.den", 20)``.

        Args:
            channel: The channel, without wildcards.
            count: Maximum number of events. `HubLimits.history` events are stored per channel.

        Raises:
            InvalidName: The channel name is invalid.
        """
        check_channel(channel)
        return await self._journal.history(channel, count) if count > 0 else []

    def last_event_id(self) -> str:
        """Return the id of this worker's position. A subscriber can resume after it."""
        return self._journal.current_id()

    def stats(self) -> HubStats:
        """Return the statistics of this worker's hub."""
        delivery, audience = self._delivery, self._audience
        return HubStats(
            len(audience.subscriptions),
            audience.by_channel.counts(),
            self._published,
            delivery.delivered,
            dict(delivery.cut),
            delivery.gaps,
            dict(audience.by_transport),
            dict(self._replays),
        )

    def slowest(self, count: int) -> list[tuple[Subscription, ...]]:
        """Return the slowest subscribers, each with its subscriptions. Iterates over all subscribers.

        Args:
            count: Maximum number of subscribers.
        """
        return nlargest(count, self._audience.by_outlet.values(), key=lambda each: each[0].outlet.buffered)

    def queued_bytes(self) -> int:
        """Return the bytes that subscribers haven't read yet. Iterates over all subscribers."""
        return sum(outlet.buffered for outlet in self._audience.by_outlet)

    def count_delivered(self, events: int, written: int = 0) -> None:
        """Count events that an encoder has written directly to outlets: ``hub.count_delivered(3, 3 * len(chunk))``.

        Args:
            events: Number of events, counted for each outlet, for `HubStats.delivered`.
            written: Number of bytes, for `HubLimits.max_unread`.
        """
        self._delivery.delivered += events
        self._delivery.count_written(written)

    def disconnect(self, outlet: OutputStream) -> None:
        """End the subscriptions of an outlet whose reader is too slow, after a final event with the reason.

        The hub does this itself, except if an encoder writes directly to outlets.

        Args:
            outlet: The outlet.
        """
        self._delivery.disconnect(outlet)

    async def refresh(self, *, read: bool = True) -> None:
        """Report members of dead workers as departed and send the current position to all subscribers.

        The hub does this on its own every `HubLimits.refresh` seconds, and when workers have changed.

        Args:
            read: Whether to read missed messages first.
        """
        delivery = self._delivery
        delivery.interest.sweep()
        delivery.reader.forget()
        self._rosters.forget()
        await (delivery.catch_up() if read else delivery.event_tail.settle())
        await self._presence.refresh()
        delivery.write(delivery.position_event(), None)

    # Internals

    def _profile(self, principal: Caller) -> Profile | None:
        if principal is None or not self._name_claims:
            return None
        known, profile = self._profiles.get(principal.binding) or (None, None)
        if known is not principal:  # the caller's credential was verified again, possibly with other claims
            profile = get_profile(principal, self._name_claims)
            self._profiles.keep(principal.binding, (principal, profile))
        return profile

    async def _publish(
        self, channel: str, data: Any, event: str | None, id: str | None, owner: str, publisher: Caller
    ) -> PublishResult:
        """Publish to any channel, including clients' channels."""
        check_event_name(event)
        check_event_id(id, self._journal.epoch)
        if len(encoded := encode_data(data)) > self.limits.max_event:
            raise EventTooLarge(f"An event must have at most {self.limits.max_event} bytes, not {len(encoded)}.")
        await self._delivery.wait_for_turn()
        subscribers, now = sum(len(outlets) for _, outlets in self._audience.plan(channel)), self._clock()
        try:
            user = None if publisher is None else self._profile(publisher)
            position = await self._journal.append(StoredEvent(channel, encoded, event, id, now, user), owner)
        except EntryRepeated:
            return PublishResult(id or "", 0)
        event_id = position_id(position.epoch, position.offset)  # the journal can be at another epoch
        if not subscribers and channel.startswith(CLIENT):
            await self._delivery.mailboxes.record_undelivered(channel.removeprefix(CLIENT), event_id, now)
        if subscribers:
            await self._delivery.event_tail.reach(position)
        else:
            self._delivery.published = position
        self._published += 1
        return PublishResult(id or event_id, subscribers)

    async def _member_lists(self, channels: Sequence[str]) -> list[MemberList]:
        """Return the members of channels, all as of this worker's last presence event.

        Reads of the store are shared. An earlier result is brought up to date with the changes since.
        """
        changes = self._delivery.presence_changes
        while True:
            rosters = [
                await self._rosters.get(
                    channel,
                    partial(self._presence.roster, channel, number := changes.last.number),
                    since=number,
                    usable=lambda since, _: changes.reaches(since),
                )
                for channel in channels
            ]
            await self._delivery.change_tail.settle()
            if all(changes.reaches(roster.number) for roster in rosters):
                break
        event = f"{self._journal.current_id()}-{changes.last.number}"
        return [
            MemberList(channel, changes.apply(roster, channel), event)
            for channel, roster in zip(channels, rosters, strict=True)
        ]

    async def _start(
        self, subscription: Subscription, last_event_id: str, history: int, members: bool = False
    ) -> Subscription:
        """Bring a subscriber up to date and deliver future events to it."""
        delivery, outlet, mailbox = self._delivery, subscription.outlet, subscription.mailbox
        self._audience.enter(subscription)
        try:
            replay = await self._replay(subscription, last_event_id, history, members)
        except BaseException:
            subscription.handle_close()  # the outlet may stay open
            raise
        replay.finish()
        if last_event_id or mailbox:
            self._replays["gap" if replay.gap_sent else "full"] += 1
        # Nothing must be awaited between the end of the replay and this line, or an event would be lost.
        if outlet.closed:
            return subscription
        self._audience.join(subscription)
        if mailbox:
            delivery.mailboxes.client_arrived(mailbox, served=replay.wrote)
        subscription.write(delivery.position_event())
        if subscription.member is not None and not outlet.closed:
            for place in subscription.places:
                self._presence.connect(place, subscription.member)
            await self._publish_presence(subscription.places)
        return subscription

    async def _replay(self, subscription: Subscription, last_event_id: str, history: int, members: bool) -> CatchUp:
        """Write what a subscriber has missed, and return the replay to finish."""
        delivery, outlet, mailbox = self._delivery, subscription.outlet, subscription.mailbox
        try:
            await delivery.interest.add(subscription.channels)
        finally:  # immediately, if the outlet is closed, and then the channels are removed
            outlet.on_close(subscription.handle_close)
        await delivery.pass_published()
        replay = CatchUp(delivery, subscription, self._replay_limiter)
        if last_event_id:
            await replay.resume(last_event_id)
        elif mailbox:
            await replay.mailbox(mailbox)
        elif history:
            await replay.newest(history)
        if members:
            watched = [each.removeprefix(PRESENCE) for each in subscription.channels if is_presence(each)]
            await replay.members(await self._member_lists(watched))  # nothing runs in between
        return replay

    def _leave(self, subscription: Subscription) -> None:
        """Remove a subscriber. Its departure is published in the background."""
        if not self._audience.leave(subscription):
            return
        subscription.outlet.forget(subscription.handle_close)
        self._delivery.interest.remove(subscription.channels)
        if subscription.mailbox and subscription.joined:
            self._delivery.mailboxes.client_left(subscription.mailbox)
        if subscription.member is not None and subscription.joined:
            for place in subscription.places:
                self._presence.disconnect(place, subscription.member)
            self._departures.put_nowait(subscription.places)

    async def _run_departures(self) -> None:
        """Publish departures, in order, until canceled."""
        trouble = LogOnce(
            None,  # `Presence.refresh` publishes a departure that failed
            "The hub can't publish a departure",
            "The hub can publish departures again.",
            catches=Exception,
        )
        while True:
            places = await self._departures.get()
            with trouble:
                await self._publish_presence(places)

    async def _publish_presence(self, places: Sequence[Place]) -> None:
        """Publish the arrival or departure of a client on its channels."""
        for place in places:
            with self._presence_outage:
                await self._delivery.event_tail.settle()
                await self._presence.update(place)

    async def _wait_for_delivery(self, position: Position) -> None:
        """Wait until this worker's subscribers have a presence event. Returns immediately when the hub is closing."""
        if self._tasks:
            await self._delivery.change_tail.reach(position)
        self._published += 1
        await self._delivery.wait_for_turn()

    async def _refresh(self) -> None:
        self._refreshes += 1
        await self.refresh(read=self._refreshes % _REFRESHES_PER_READ == 0)
