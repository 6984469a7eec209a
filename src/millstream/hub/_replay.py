"""What a subscriber missed, written to it before it hears what is new.

A subscriber that reconnects names an id. Where everything behind it is still there, that's what it gets, once
and in order. Where it cannot, the subscriber gets a `gap` event and then whatever is left. A client that returns
without an id gets what its mailbox took in since it left.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from millstream._stores.base import Gap
from millstream.hub._arrivals import Arrivals, Visit
from millstream.hub._channels import CLIENT, PRESENCE, is_pattern
from millstream.hub._event import Event, gap, parse_position, position_id
from millstream.hub._journal import Journal
from millstream.hub._subscriber import Subscription

_CHUNK = 64 * 1024
"""Bytes written between two looks at whether the outlet has room."""


class CatchUp:
    """The catching up of one subscriber."""

    __slots__ = (
        "_arrivals", "_at", "_beside", "_catch_up", "_dropped", "_epoch", "_heard", "_journal", "_subscription",
        "_told", "_visiting", "_wanted", "_written", "wrote",
    )  # fmt: skip

    def __init__(
        self,
        journal: Journal,
        arrivals: Arrivals,
        subscription: Subscription,
        catch_up: Callable[[], Awaitable[None]],
        beside: Sequence[Subscription] = (),
    ) -> None:
        self._journal = journal
        self._arrivals = arrivals
        self._catch_up = catch_up
        self._subscription = subscription
        self._beside = beside
        """Who hears on the same outlet."""
        self._at = subscription.since = journal.offset
        """Everything up to here is written, or not wanted."""
        self._written = 0
        """The offset of the event that was written last."""
        self._visiting = any(channel.startswith(PRESENCE) for channel in subscription.channels)
        subscription.heard = arrivals.last.number
        self._heard: tuple[int, int | None] = 0, subscription.heard
        """Place and number behind which arrivals and departures are new to the subscriber."""
        self._epoch = journal.epoch
        self._dropped: dict[str, int] = {}
        """The newest event of each channel that its history has no room for."""
        self._told = False
        """One gap event is enough."""
        self._wanted: dict[str, bool] = {}
        """Channels, and whether they are wanted: each pattern is matched once for each channel."""
        self.wrote = False
        """Some event was written."""

    @property
    def complete(self) -> bool:
        """The subscriber was not told of a gap."""
        return not self._told

    async def resume(self, id: str) -> None:
        """Go on behind the event with this id."""
        journal = self._journal
        offset, number = parse_position(id, journal.epoch) or (None, None)
        if offset is None:
            offset = await journal.find(id, self._wants)
        if offset is None:
            offset = max((event.offset for event in await self._histories() if event.id == id), default=None)
        if offset is not None:
            await self._reach(offset)
        if offset is None or offset > journal.offset:
            # From before a restart, never published, or out of the journal.
            await self._start_over("unknown", after=0)
        else:
            self._at = self._written = self._subscription.since = offset
            self._heard = offset, number
            if number is not None:
                self._subscription.heard = number
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
        events = self._merge(await self._histories(count) + await self._held(count), 0, end)
        await self._write(events[-count:])
        await self._follow()

    def finish(self) -> None:
        """Write who came and left meanwhile. The subscriber hears the next event, so nothing may wait behind this."""
        if not self._subscription.outlet.closed:
            self._tell_visits(self._missed_visits(), sys.maxsize)

    def _missed_visits(self) -> deque[Visit]:
        if not self._visiting:
            return deque()
        visits, complete = self._arrivals.missed(*self._heard)
        if not complete:
            self._tell_gap("trimmed")
        return visits

    def _tell_visits(self, visits: deque[Visit], before: int) -> None:
        """Write those that were delivered before an event, in its place: each id stands for all that was written."""
        subscription, journal = self._subscription, self._journal
        while visits and visits[0].behind < before:
            visit = visits.popleft()
            if self._heard[1] is None:
                subscription.heard = visit.number - 1
            self._heard = 0, visit.number
            if self._lacks(visit.event) and not journal.too_old(visit.event):
                place = position_id(journal.epoch, max(visit.behind, self._written))
                subscription.write(replace(visit.event, id=f"{place}-{visit.number}"))

    async def _reach(self, offset: int) -> None:
        """Another worker may have been ahead of this one; what it delivered must not come again as news."""
        if offset > self._journal.offset:
            await self._catch_up()

    async def _follow(self) -> None:
        """Write what comes behind `_at` until there is no more; nothing else runs between that and the return."""
        journal, outlet = self._journal, self._subscription.outlet
        while not outlet.closed:
            if journal.epoch != self._epoch or journal.offset < self._at:
                await self._start_over("epoch" if journal.epoch != self._epoch else "lost", after=0)
                continue
            events = journal.recent(self._at)
            if events is not None:
                self._at = journal.offset
                if not any(map(self._lacks, events)):
                    return
            elif (events := await self._page()) is None:
                if journal.epoch == self._epoch:
                    await self._bridge()
                continue
            wanted = [event for event in events if self._lacks(event)]
            fresh = [event for event in wanted if not journal.too_old(event)]
            if len(fresh) < len(wanted):
                self._tell_gap("expired")
            await self._write(fresh)

    async def _page(self) -> list[Event] | None:
        """What the store has behind `_at`; None when some of it is gone, or it began a new epoch."""
        try:
            events, last = await self._journal.page(self._at, self._wants)
        except Gap:
            await self._catch_up()  # the store may have begun a new epoch that nobody has told of yet
            return None
        if last == self._at:
            return None
        self._at = last
        await asyncio.sleep(0)
        return events

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
        events = self._merge(await self._histories() + await self._held(), after, end)
        self._subscription.since = events[0].offset - 1 if events else end
        await self._write(events)

    def _tell_gap(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._subscription.write(gap(reason))

    async def _history(self, channel: str, newest: int = 0) -> list[Event]:
        events, self._dropped[channel] = await self._journal.history(channel, newest, recent_apart=True)
        return events

    async def _histories(self, newest: int = 0) -> list[Event]:
        """What is kept of the channels themselves."""
        kept: list[Event] = []
        for channel in self._subscription.channels:
            if not is_pattern(channel):
                kept += await self._history(channel, newest)
        return kept

    async def _held(self, count: int | None = None) -> list[Event]:
        """For wildcards, the newest in the journal."""
        if not self._subscription.wild:
            return []
        held = await self._journal.held(self._wants, count)
        return [event for event in held if not self._journal.too_old(event)]

    def _merge(self, kept: Sequence[Event], after: int, end: int) -> list[Event]:
        """The events between two places, and stand behind them.

        A worker's own memory is asked too: it may have delivered an event that its publisher has not yet put into
        the history.
        """
        found = {event.offset: event for event in kept}
        for event in self._journal.remembered(after):
            dropped = self._dropped.get(event.channel, 0)
            if event.offset > dropped and self._wants(event.channel) and not self._journal.too_old(event):
                found[event.offset] = event
        self._at = end
        return [found[offset] for offset in sorted(found) if after < offset <= end and self._lacks(found[offset])]

    async def _write(self, events: Sequence[Event]) -> None:
        """Write one by one, as the outlet has room."""
        outlet, encode = self._subscription.outlet, self._subscription.encode
        since, visits = 0, self._missed_visits()
        for event in events:
            if visits:
                self._tell_visits(visits, event.offset)
            self._written, self.wrote = event.offset, True
            data = encode(event)
            outlet.write(data)
            since += len(data)
            if since >= _CHUNK:
                since = 0
                await outlet.drain()
                if outlet.closed:
                    return

    def _wants(self, channel: str) -> bool:
        wanted = self._wanted.get(channel)
        if wanted is None:
            wanted = self._wanted[channel] = self._subscription.wants(channel)
        return wanted

    def _lacks(self, event: Event) -> bool:
        """Whether it wants an event that nobody else writes to its outlet."""
        arrival = event.channel.startswith(PRESENCE)
        return self._wants(event.channel) and not any(
            (each.heard if arrival else each.since) < event.offset and each.wants(event.channel)
            for each in self._beside
        )
