"""What a subscriber missed, written to it before it hears what is new.

A subscriber that reconnects names an id. Where everything behind it can still be told, that is what it gets, once
and in order. Where it cannot, the subscriber gets a `gap` event and then whatever is left. A client that returns
without an id gets what its mailbox took in since it left.
"""

from collections.abc import Awaitable, Callable, Sequence

from millstream.hub.channels import CLIENT, PRESENCE, is_pattern
from millstream.hub.event import Event, gap, parse_position
from millstream.hub.journal import Journal
from millstream.hub.subscriber import Subscription
from millstream.stores.base import Gap

_CHUNK = 64 * 1024
"""Bytes written between two looks at whether the outlet has room."""


class CatchUp:
    """The catching up of one subscriber."""

    __slots__ = ("_at", "_beside", "_catch_up", "_dropped", "_epoch", "_journal", "_subscription", "_told")

    def __init__(
        self,
        journal: Journal,
        subscription: Subscription,
        catch_up: Callable[[], Awaitable[None]],
        beside: Sequence[Subscription] = (),
    ) -> None:
        self._journal = journal
        self._catch_up = catch_up
        self._subscription = subscription
        self._beside = beside
        """Who hears on the same outlet."""
        self._at = subscription.since = journal.offset
        """Everything up to here is written, or not wanted."""
        self._epoch = journal.epoch
        self._dropped: dict[str, int] = {}
        """The newest event of each channel that its history has no room for."""
        self._told = False
        """One gap event is enough."""

    @property
    def complete(self) -> bool:
        """The subscriber was not told of a gap."""
        return not self._told

    async def resume(self, id: str) -> None:
        """Go on behind the event with this id."""
        journal = self._journal
        offset = parse_position(id, journal.epoch)
        if offset is None:
            offset = await journal.find(id, self._wants)
        if offset is None:
            offset = max((event.offset for event in await self._kept() if event.id == id), default=None)
        if offset is not None:
            await self._reach(offset)
        if offset is None or offset > journal.offset:
            # From before a restart, never published, or out of the journal.
            await self._start_over("unknown", after=0)
        else:
            self._at = self._subscription.since = offset
        await self._follow()

    async def mailbox(self, client_id: str, seen: int, owed: tuple[int, float]) -> None:
        """Write what came for a client behind `seen`; `owed` are place and time of the oldest message of it."""
        oldest, at = owed
        await self._reach(max(seen, oldest))
        end = self._journal.offset
        channel = CLIENT + client_id
        kept = await self._history(channel)
        dropped = self._dropped[channel] > seen
        events = self._merge(kept, seen, end)
        if oldest > seen and (not events or events[0].offset > oldest):
            self._tell_gap("expired" if self._journal.past(channel, at) else "trimmed")
        elif dropped:
            self._tell_gap("trimmed")
        await self._write(events)
        await self._follow()

    async def newest(self, count: int) -> None:
        """Write the last `count` events of what the subscription wants; arrivals and departures are not counted."""
        end = self._journal.offset
        events = self._merge(await self._kept(), 0, end)
        await self._write([event for event in events if not event.channel.startswith(PRESENCE)][-count:])
        await self._follow()

    async def _reach(self, offset: int) -> None:
        """Another worker may have been ahead of this one; what it delivered must not come again as news."""
        if offset > self._journal.offset:
            await self._catch_up()

    async def _follow(self) -> None:
        """Write what comes behind `_at` until there is no more; nothing else runs between that and the return."""
        journal, outlet = self._journal, self._subscription.outlet
        while not outlet.closed:
            if journal.epoch != self._epoch:
                await self._start_over("epoch", after=0)
                continue
            events = journal.recent(self._at)
            if events is not None:
                self._at = journal.offset
                if not any(map(self._lacks, events)):
                    return
            elif events := await self._page():
                self._at = events[-1].offset
            else:
                if journal.epoch == self._epoch:
                    await self._bridge()
                continue
            wanted = [event for event in events if self._lacks(event)]
            fresh = [event for event in wanted if not journal.too_old(event)]
            if len(fresh) < len(wanted):
                self._tell_gap("expired")
            await self._write(fresh)

    async def _page(self) -> list[Event]:
        """What the store has behind `_at`; nothing when some of it is gone, or it began a new epoch."""
        await self._catch_up()
        try:
            return await self._journal.page(self._at) if self._journal.epoch == self._epoch else []
        except Gap:
            return []

    async def _bridge(self) -> None:
        """The journal begins behind `_at`: go by the histories, if they all go back so far."""
        after, end = self._at, self._journal.offset
        kept: list[Event] = []
        for channel in self._subscription.channels:
            events = [] if is_pattern(channel) else await self._history(channel)
            if not events or events[0].offset > after:
                await self._start_over("trimmed", after=after)
                return
            kept += events
        await self._write(self._merge(kept, after, end))

    async def _start_over(self, reason: str, *, after: int) -> None:
        """Say that events are gone, then write those behind `after` that are not."""
        self._epoch, end = self._journal.epoch, self._journal.offset
        self._tell_gap(reason)
        events = self._merge(await self._kept(), after, end)
        self._subscription.since = events[0].offset - 1 if events else end
        await self._write(events)

    def _tell_gap(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._subscription.write(gap(reason))

    async def _history(self, channel: str) -> list[Event]:
        events, self._dropped[channel] = await self._journal.history(channel)
        return events

    async def _kept(self) -> list[Event]:
        """The histories of the channels, and for wildcards what is in the journal."""
        journal, subscription = self._journal, self._subscription
        kept: list[Event] = []
        for channel in subscription.channels:
            if not is_pattern(channel):
                kept += await self._history(channel)
        if subscription.wild:
            kept += [event for event in await journal.held() if self._wants(event) and not journal.too_old(event)]
        return kept

    def _merge(self, kept: Sequence[Event], after: int, end: int) -> list[Event]:
        """The events between two places, and stand behind them.

        A worker's own memory is asked too: it may have delivered an event that its publisher has not yet put into
        the history.
        """
        found = {event.offset: event for event in kept}
        for event in self._journal.remembered(after):
            dropped = self._dropped.get(event.channel, 0)
            if event.offset > dropped and self._wants(event) and not self._journal.too_old(event):
                found[event.offset] = event
        self._at = end
        return [found[offset] for offset in sorted(found) if after < offset <= end and self._lacks(found[offset])]

    async def _write(self, events: Sequence[Event]) -> None:
        """Write one by one, as the outlet has room."""
        outlet, encode = self._subscription.outlet, self._subscription.encode
        since = 0
        for event in events:
            data = encode(event)
            outlet.write(data)
            since += len(data)
            if since >= _CHUNK:
                since = 0
                await outlet.drain()
                if outlet.closed:
                    return

    def _wants(self, event: Event) -> bool:
        return self._subscription.wants(event.channel)

    def _lacks(self, event: Event) -> bool:
        """Whether it wants an event that nobody else writes to its outlet."""
        return self._wants(event) and not any(
            each.since < event.offset and each.wants(event.channel) for each in self._beside
        )
