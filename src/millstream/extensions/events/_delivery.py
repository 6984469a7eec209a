"""Webhook deliveries. One worker at a time delivers a type's events.

The worker with the lease follows the hub channel. The store keeps the position up to which every event was accepted,
dropped, or saved as pending, and the pending events. The next worker continues from there. After a crash, it may
repeat the deliveries of the last second, with the same ``webhook-id``.
"""

import asyncio
from contextlib import suppress
from math import inf
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from millstream import ProtocolError
from millstream.extensions import Host, LocalError, LogOnce, cancel_all, scopes_of
from millstream.extensions.events._catalog import (
    FORBIDDEN,
    EventType,
    FilterIndex,
    Reader,
    logger,
    sees,
    unknown_event_error,
)
from millstream.extensions.events._event_methods import (
    Feed,
    describe_error,
    epoch_of,
    open_feed,
    position,
    read_page,
    split_cursor,
)
from millstream.extensions.events._outbox import Outbox, OutgoingMessage, Target
from millstream.extensions.events._webhook import (
    CHANGES,
    LEASE,
    AttemptResult,
    Status,
    SubscriptionStore,
    UndeliveredEvent,
    UndeliveredEvents,
    WebhookSubscription,
    read_url,
    tag_of,
)
from millstream.hub import Event, Hub
from millstream.protocol import MALFORMED
from millstream.stores import Claim, Entry, StoreFull

ATTEMPTS = 5
WINDOW = 900.0
"""Seconds after the first attempt before an event is dropped."""
MAX_PENDING = 100
"""Maximum pending events of one subscription. Beyond it, the oldest is dropped, and the endpoint gets a `gap`."""
_FLUSH_INTERVAL = 1.0
_STATUS_INTERVAL = 60.0
"""Minimum seconds between two successful status updates."""
_YIELD_INTERVAL = 500
_ACCESS_REVOKED = ProtocolError(FORBIDDEN, "Forbidden", {"reason": "Access revoked"})


class EventDelivery(Struct):
    """The deliveries of one event type on one worker, active while the worker has the lease."""

    kind: EventType
    _host: Host
    _subscriptions: SubscriptionStore
    _outbox: Outbox
    """Sends the deliveries."""
    _index: FilterIndex[Target]
    _recheck_tokens: bool = False
    """Whether tokens may have been revoked."""
    _targets: dict[str, Target] = {}
    _position: int = 0
    """Offset of the channel's last entry."""
    _queued_position: int = 0
    """Offset up to which every event is queued for every subscription that receives it."""
    _epoch: str = ""
    _saved_cursor: str = ""
    _changed_ids: set[str] = set()
    _reload: bool = False
    _change_event: asyncio.Event = field(default_factory=asyncio.Event)
    _leased_until: float = 0.0
    """Time on the event loop's clock."""
    _is_retired: bool = False
    """Whether the event type was removed."""
    _suspensions: Any = None
    """A `LogOnce` that lasts while an endpoint refuses deliveries."""

    def __post_init__(self) -> None:
        self._suspensions = LogOnce(
            self._host.troubles,
            f"Webhooks for {self.kind.name!r} are refused",
            f"No webhooks for {self.kind.name!r} are suspended.",
            remedy="Ask whoever subscribed to repair the endpoint. The next refresh of the subscription ends this.",
        )

    @property
    def hub(self) -> Hub:
        return self._host.hub

    async def run(self) -> None:
        """Deliver events while this worker has the lease, until canceled."""
        trouble = LogOnce(
            self._host.troubles,
            f"Webhooks for {self.kind.name!r} can't be delivered; retrying",
            f"Webhooks for {self.kind.name!r} can be delivered again.",
            catches=Exception,
        )
        try:
            while not self._is_retired:
                with trouble:
                    await self._deliver_with_lease(trouble)
                if not self._is_retired:
                    await asyncio.sleep(1.0 if trouble.lasts else LEASE / 3)
        finally:
            if self._host.shared and self.has_lease():
                with suppress(LocalError):
                    await self._claim().leave()

    def recheck(self) -> None:
        """Check soon whether subscriptions' tokens were revoked and end such subscriptions."""
        self._recheck_tokens = True

    def retire(self) -> None:
        """Stop delivering, because the event type was removed, and end its subscriptions."""
        self._is_retired = True
        self._change_event.set()

    def has_lease(self) -> bool:
        """Return whether this worker is still allowed to deliver. If not, it starts again from the saved position."""
        return asyncio.get_running_loop().time() < self._leased_until

    # With the lease

    def _claim(self) -> Claim:
        return Claim(self._host.map, f"events:lease.{tag_of(self.kind.name)}", LEASE, owner=self._host.worker.encode())

    async def _renew(self) -> bool:
        until = inf
        if self._host.shared:
            until = asyncio.get_running_loop().time() + LEASE
            if not await self._claim().keep():
                return False
        self._leased_until = until
        return True

    async def _deliver_with_lease(self, trouble: LogOnce) -> None:
        if not await self._renew():
            return
        log, loop = self._host.log, asyncio.get_running_loop()
        stop = log.listen(CHANGES, self._on_change, interrupted=self._reload_all)
        try:
            await log.wait_until_listening(CHANGES)
            feed, replay = open_feed(self.hub, self.kind.name, await self._begin())
            works = [
                loop.create_task(each) for each in (self._consume(feed), self._maintain(trouble), self._apply_changes())
            ]
            try:
                await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                for each in (*works, replay):
                    if each.done():
                        each.result()
            finally:
                feed.close()
                await cancel_all(*works, replay)
                if self.has_lease():
                    with suppress(LocalError):
                        await self._flush()
        finally:
            stop()
            self._suspensions.forget()
            for id in list(self._targets):
                self._remove(id)

    async def _begin(self) -> str:
        """Load the subscriptions and their pending events. Return the cursor to continue from."""
        name, subscriptions = self.kind.name, self._subscriptions
        cursor = await subscriptions.position(name)
        if not cursor:
            cursor = self.hub.last_event_id()
            await subscriptions.put_position(name, cursor)
        self._saved_cursor = cursor
        self._epoch, self._position = split_cursor(cursor)
        self._queued_position = self._position
        records = await subscriptions.all(name)
        self._recheck_tokens = True
        undelivered = await subscriptions.find_undelivered([record.id for record in records])
        events: dict[int, Event | None] = {}
        for record in records:
            target = await self._add_target(record)
            if target is not None and record.id in undelivered:
                await self._resume(target, undelivered[record.id], events)
        self._change_event.set()
        return cursor

    async def _resume(self, target: Target, undelivered: UndeliveredEvents, events: dict[int, Event | None]) -> None:
        """Schedule the events whose earlier attempts failed on any worker."""
        now, is_current = self._outbox.clock(), undelivered.epoch == epoch_of(self.hub)
        if is_current:
            target.undelivered_offsets = frozenset(each.offset for each in undelivered.events)
        for each in undelivered.events:
            if each.offset not in events:
                events[each.offset] = await self._read_event(each.offset) if is_current else None
            event = events[each.offset]
            if event is None:
                self._send_gap(target, each.offset)
                continue
            message = OutgoingMessage(
                self, target, event, attempts=each.attempts, first_attempt_at=each.first, is_stored=True
            )
            self._queue(message, each.due - now)

    async def _read_event(self, offset: int) -> Event | None:
        page = await read_page(self.hub, self.kind.name, position(self.hub, offset - 1), most=1)
        return page.events[0] if page.events and page.events[0].offset == offset else None

    # Subscriptions

    def _on_change(self, entry: Entry) -> None:
        name, _, id = entry.data.decode("utf-8", "replace").partition("\0")
        if name == self.kind.name:
            self._changed_ids.add(id)
            self._change_event.set()

    def _reload_all(self) -> None:
        self._reload = True
        self._change_event.set()

    async def _apply_changes(self) -> None:
        while True:
            await self._change_event.wait()
            self._change_event.clear()
            if self._is_retired:
                for target in list(self._targets.values()):
                    await self._terminate(target, unknown_event_error(self.kind.name))
                    # A new event type with this name may have loaded the subscription.
                    await self._subscriptions.announce_change(self.kind.name, target.record.id)
                return
            if self._reload:
                self._reload = False
                self._changed_ids.update(self._targets)
                self._changed_ids.update(record.id for record in await self._subscriptions.all(self.kind.name))
            while self._changed_ids:
                await self._reload_subscription(self._changed_ids.pop())
            with suppress(StoreFull):  # then there's also no space for a subscription beyond the limit
                # Also update it after a refresh. Otherwise, the count would expire before the subscriptions.
                await self._subscriptions.put_count(self.kind.name, len(self._targets))

    async def _reload_subscription(self, id: str) -> None:
        record, _ = await self._subscriptions.get(self.kind.name, id)
        if record is None or record.expires <= self._outbox.clock():
            self._remove(id)
        elif id in self._targets:
            known = self._targets[id]
            was_suspended = known.is_suspended
            known.record, known.reader.principal = record, record.principal
            if was_suspended and not known.is_suspended:
                self._end_suspension(known)
        else:
            target = await self._add_target(record)
            if target is not None and record.credential and await self._host.is_revoked(record.credential):
                await self._terminate(target)

    async def _add_target(self, record: WebhookSubscription) -> Target | None:
        """Start to deliver to a subscription, beginning with the replay that it requested."""
        try:
            reader = Reader(self.kind, self.kind.read_arguments(record.arguments), record.principal, record.oldest)
            target = Target(record, reader, self._position, read_url(record.url))
        except ProtocolError:
            logger.warning(
                "Dropped the subscription %s, because it no longer fits the event %r", record.id, record.name
            )
            await self._subscriptions.delete(record.principal, record.name, record.id)
            return None
        self._targets[record.id] = target
        self._index.add(target, reader)
        if not sees(self.kind, scopes_of(target.principal)) or not self._host.has_credential(target.principal):
            await self._terminate(target)
            return None
        target.status = await self._subscriptions.status(record.id)
        if target.is_suspended:
            self._report_suspension(target)
        if record.since:
            epoch, since = split_cursor(record.since)
            if epoch == self._epoch and since >= self._position:
                target.after = since
            else:
                await self._replay(target)
        return target

    async def _replay(self, target: Target) -> None:
        """Queue the events between a subscription's cursor and this worker's position."""
        since, until = target.record.since, target.after
        cursor, more = since, True

        def accepts(event: Event) -> bool:
            return event.offset <= until and target.reader.accepts(event)

        while more and not target.is_removed:
            page = await read_page(self.hub, self.kind.name, cursor, most=MAX_PENDING, accepts=accepts)
            if page.gap and cursor == since:
                self._send_gap(target, page.events[0].offset - 1 if page.events else until)
            for event in page.events:
                self._queue(OutgoingMessage(self, target, event, is_replay=True))
            cursor, more = page.cursor, page.more and split_cursor(page.cursor)[1] < until
            target.has_unsaved_events = True

    async def _terminate(self, target: Target, error: ProtocolError = _ACCESS_REVOKED) -> None:
        """End a subscription, and tell the endpoint why. By default, the principal lost access."""
        record = target.record
        await self._subscriptions.delete(record.principal, record.name, record.id)
        self._remove(record.id)
        self._outbox.schedule(OutgoingMessage(self, target, {"type": "terminated", "error": describe_error(error)}))

    def _remove(self, id: str) -> None:
        target = self._targets.pop(id, None)
        if target is None:
            return
        target.is_removed = True
        self._end_trouble()
        self._change_event.set()  # saves the count
        self._index.discard(target)
        self._drop_events(target)
        if target.gap is not None:
            self._outbox.cancel(target.gap)
            target.gap = None

    # Events

    async def _consume(self, feed: Feed) -> None:
        """Queue each event for every subscription that receives it."""
        gap = False
        while (event := await feed.take()) is not None and event.event != "cut":
            if event.event == "gap":
                gap = True
                continue
            before, epoch = self._position, epoch_of(self.hub)
            if epoch != self._epoch:
                # The store lost data, and offsets restarted.
                before, self._epoch = 0, epoch
                for target in self._targets.values():
                    target.after, target.undelivered_offsets = 0, frozenset()
                    self._drop_events(target)
            self._position = event.offset
            if gap:
                gap = False
                for target in self._targets.values():
                    self._send_gap(target, max(before, event.offset - 1))
            if event.channel:
                await self._queue_for_all(event)
            self._queued_position = event.offset
        # The feed fell behind: restart at the saved position.

    async def _queue_for_all(self, event: Event) -> None:
        try:
            targets = self._index.find(event.data or b"")
        except MALFORMED as error:
            logger.warning("An event on the channel %r isn't delivered: %s", self.kind.name, error)
            return
        now = self._outbox.clock()
        for number, target in enumerate(targets, 1):
            if (
                event.offset > target.after
                and event.offset not in target.undelivered_offsets
                and not target.is_removed
                and target.record.expires > now
            ):
                self._queue(OutgoingMessage(self, target, event))
            if not number % _YIELD_INTERVAL:
                await asyncio.sleep(0)

    def _queue(self, message: OutgoingMessage, delay: float = 0.0) -> None:
        """Schedule an event. Beyond the limits, drop the subscription's oldest ones, and send a `gap`."""
        target, share = message.target, self._outbox.share
        if message.offset in target.pending:  # also in the initial replay
            self._drop(target, message.offset)
        while len(target.pending) >= MAX_PENDING or not share.take(target.principal.id, message.size):
            oldest = min((at for at, each in target.pending.items() if each is not target.probe), default=-1)
            self._send_gap(target, message.offset if oldest < 0 else oldest)
            if oldest < 0:
                return
            self._drop(target, oldest)
        target.pending[message.offset] = message
        if target.is_ready:
            self._outbox.schedule(message, delay)
        elif target.probe is None and not target.is_suspended:
            target.probe = message
            self._outbox.schedule(message)

    def _drop(self, target: Target, offset: int) -> None:
        """Drop an event that was accepted, abandoned, or displaced by newer ones."""
        message = target.pending.pop(offset)
        self._outbox.cancel(message)
        if message is target.probe:
            target.probe = None
        self._outbox.share.leave(target.principal.id, message.size)
        target.has_unsaved_events |= message.is_stored

    def _drop_events(self, target: Target) -> None:
        for offset in list(target.pending):
            self._drop(target, offset)

    def _send_gap(self, target: Target, offset: int) -> None:
        if target.gap is None:
            target.gap = OutgoingMessage(self, target, {"type": "gap", "cursor": position(self.hub, offset)})
            if target.is_ready:
                self._outbox.schedule(target.gap)

    # Outcomes

    def settle(self, message: OutgoingMessage, answer: AttemptResult) -> None:
        """Record the outcome of an attempt and schedule the next one after a failure."""
        target, now = message.target, self._outbox.clock()
        self._update_status(target, answer, now)
        if message is target.probe:
            target.probe = None
        ends = answer.final or message.attempts >= ATTEMPTS or now - message.first_attempt_at > WINDOW
        is_event = target.pending.get(message.offset) is message
        if is_event and ends:
            self._drop(target, message.offset)
        elif message is target.gap and ends:
            target.gap = None
        target.has_unsaved_events |= is_event and not ends
        self._adjust_delivery(target, answer, now)
        goes_on = (is_event or message is target.gap) and target.is_ready
        if not ends and (goes_on or message.is_termination):
            self._outbox.schedule(message, self._outbox.delay(message.attempts))

    def _adjust_delivery(self, target: Target, answer: AttemptResult, now: float) -> None:
        """Decide after an attempt whether the endpoint gets every message, only a probe, or none until a refresh."""
        if self._is_failing(target, answer, now):
            target.timeouts, target.probe = 0, None
            for each in target.messages():
                self._outbox.cancel(each)
        elif answer.reason == "timeout":
            if target.probe is None:
                self._send_probe(target)
        elif target.timeouts:  # the endpoint responds again
            target.timeouts = 0
            for each in target.messages():
                self._outbox.schedule(each, each.due - now)

    def _is_failing(self, target: Target, answer: AttemptResult, now: float) -> bool:
        """Count an attempt, and return whether deliveries to the endpoint are suspended."""
        if target.count_attempt(bool(answer.reason) and not answer.final, now) and not target.is_suspended:
            target.status = replace(target.status, suspended_at=now)
            target.has_unsaved_status = True
            self._report_suspension(target)
        return target.is_suspended

    def _end_suspension(self, target: Target) -> None:
        """Send the messages that waited for a refresh. The wait doesn't count as time of their attempts."""
        target.window_end = 0.0
        self._end_trouble()
        for each in target.messages():
            each.first_attempt_at = 0.0
            self._outbox.schedule(each)

    def _report_suspension(self, target: Target) -> None:
        text = f"the subscription {target.record.id} is suspended until its next refresh: {target.status.last_error}"
        self._suspensions.fail(text)

    def _end_trouble(self) -> None:
        """End the trouble if no subscription is suspended."""
        if not any(each.is_suspended for each in self._targets.values()):
            self._suspensions.end()

    def _send_probe(self, target: Target) -> None:
        """Send only an occasional message to an endpoint that doesn't respond."""
        target.timeouts += 1
        messages = target.messages()
        for each in messages:
            self._outbox.cancel(each)
        if messages:
            target.probe = messages[0]
            self._outbox.schedule(target.probe, self._outbox.delay(min(target.timeouts, ATTEMPTS - 1)))

    async def _save_events(self, target: Target) -> None:
        """Save the pending events of a subscription, so that the position can advance past them."""
        pending, target.has_unsaved_events = list(target.pending.values()), False
        for each in pending:
            each.is_stored = True
        undelivered = [
            UndeliveredEvent(each.offset, each.attempts, each.due, each.first_attempt_at) for each in pending
        ]
        try:
            await self._subscriptions.put_undelivered(target.record, self._epoch, undelivered)
        except BaseException as error:  # save it even if the run is canceled
            target.has_unsaved_events = True
            for each in pending:
                each.is_stored = False
            if not isinstance(error, StoreFull):
                raise
            logger.debug("The pending events of the subscription %s weren't saved: %s", target.record.id, error)

    def _update_status(self, target: Target, answer: AttemptResult, now: float) -> None:
        before = target.status
        if answer.reason:
            target.status = replace(before, last_error=answer.reason, failed_since=before.failed_since or now)
        else:
            target.status = Status(now, suspended_at=before.suspended_at)
        if bool(before.last_error) != bool(target.status.last_error) or now - target.status_saved_at > _STATUS_INTERVAL:
            target.has_unsaved_status = True

    # Upkeep

    async def _maintain(self, delivering: LogOnce) -> None:
        """Renew the lease and save the progress."""
        trouble = LogOnce(
            self._host.troubles,
            f"The progress of webhooks for {self.kind.name!r} can't be stored; retrying",
            f"The progress of webhooks for {self.kind.name!r} can be stored again.",
        )
        while self.has_lease():
            await asyncio.sleep(_FLUSH_INTERVAL)
            delivering.end()  # what fails, fails at once
            self._suspensions.goes_on()
            with trouble:
                until = self._leased_until
                # A delivery was dropped if the lease has ended, even if it could be renewed.
                if not await self._renew() or asyncio.get_running_loop().time() >= until:
                    return
                await self._flush()

    async def _flush(self) -> None:
        """Save all changes since the last call."""
        name, subscriptions, now = self.kind.name, self._subscriptions, self._outbox.clock()
        epoch, offset = self._epoch, self._queued_position
        for target in list(self._targets.values()):
            waiting = [each for each in target.pending.values() if not (each.is_stored or each.is_replay)]
            if target.has_unsaved_events or any(each.due < now - LEASE for each in waiting):
                await self._save_events(target)
            offset = min([offset, *(each.offset - 1 for each in waiting if not each.is_stored)])
        cursor = f"{epoch}.{offset}"
        if cursor != self._saved_cursor:
            await subscriptions.put_position(name, cursor)
            self._saved_cursor = cursor
        revoked = await self._find_revoked()
        for target in list(self._targets.values()):
            record = target.record
            if record.expires <= now:
                self._changed_ids.add(record.id)
                self._change_event.set()
            elif record.credential in revoked or not self._host.has_credential(target.principal):
                await self._terminate(target)
            elif record.since and not target.has_unsaved_events and offset >= split_cursor(record.since)[1]:
                await self._clear_initial_cursor(target)
            if target.has_unsaved_status:
                target.has_unsaved_status, target.status_saved_at = False, now
                await subscriptions.put_status(record.id, target.status)

    async def _find_revoked(self) -> set[str]:
        """Return the revoked credentials. Only checks after a possible revocation."""
        if not self._recheck_tokens:
            return set()
        self._recheck_tokens = False
        credentials = {target.record.credential for target in self._targets.values()} - {""}
        try:
            return {each for each in credentials if await self._host.is_revoked(each)}
        except BaseException:
            self._recheck_tokens = True
            raise

    async def _clear_initial_cursor(self, target: Target) -> None:
        """Clear a subscription's initial cursor. From now on, it uses the position of its event type."""
        record, sealed = await self._subscriptions.get(self.kind.name, target.record.id)
        if record is None or not record.since:
            return
        updated = replace(record, since="", oldest=0.0)
        if await self._subscriptions.replace(updated, sealed):
            target.record = updated
