"""Deliveries to webhooks: one worker at a time delivers the events of a type.

The worker with the lease follows the hub channel. The store keeps the position up to which every event was attempted,
and the events whose first attempt failed. The next worker continues from there. After a crash, it may repeat the
deliveries of the last second, with the same ``webhook-id``.
"""

import asyncio
import heapq
import logging
import random
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from millstream._protocol.errors import LocalError, ProtocolError
from millstream._protocol.principal import Principal
from millstream.extensions import LogOnce
from millstream.extensions.events._catalog import sees
from millstream.extensions.events._errors import FORBIDDEN
from millstream.extensions.events._event_methods import occurrence
from millstream.extensions.events._event_type import MAX_BODY, Arguments, EventType
from millstream.extensions.events._feed import Feed, Notice, open_feed, position, read_page, split_cursor
from millstream.extensions.events._subscriptions import (
    LEASE,
    Status,
    SubscriptionStore,
    UndeliveredEvent,
    UndeliveredEvents,
    WebhookSubscription,
)
from millstream.extensions.events._webhook import AttemptResult, WebhookSender, read_secret, read_url
from millstream.extensions.http_post import Url
from millstream.hub import Hub
from millstream.stores import Entry

ATTEMPTS: Final = 5
WINDOW: Final = 900.0
"""Seconds after the first attempt before an event is dropped."""
MAX_PENDING: Final = 100
"""Maximum pending events of one subscription. Beyond it, the oldest is dropped, and the endpoint gets a `gap`."""
MAX_QUEUED: Final = 20_000
"""Maximum pending deliveries of one worker. Further events stay in the hub."""
IN_FLIGHT: Final = 64
IN_FLIGHT_PER_HOST: Final = 32
"""Maximum concurrent deliveries to one host and port."""
_FIRST_DELAY: Final = 5.0
_FLUSH_INTERVAL: Final = 1.0
_STATUS_INTERVAL: Final = 60.0
"""Minimum seconds between two successful status updates."""
_YIELD_INTERVAL: Final = 500

T = TypeVar("T")
_logger = logging.getLogger("millstream.events")
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def retry_delay(attempts: int) -> float:
    """Return the delay before the next attempt, with jitter: about 5, 20, 80, and 320 seconds."""
    return _FIRST_DELAY * float(4 ** (attempts - 1)) * random.uniform(0.75, 1.25)  # noqa: S311  jitter


class Target:
    """A subscription on the worker that delivers to it."""

    __slots__ = (
        "after", "arguments", "gap", "has_unsaved_status", "host", "is_removed", "keys", "lock", "pending", "principal",
        "record", "replays_left", "status", "status_saved_at", "undelivered_offsets", "url",
    )  # fmt: skip

    def __init__(self, record: WebhookSubscription, arguments: Arguments, after: int) -> None:
        self.arguments: Arguments = arguments
        self.after: int = after
        """Events up to this offset aren't delivered."""
        self.url: Url = read_url(record.url)
        self.host: tuple[str, int] = (self.url.host, self.url.port)
        self.pending: dict[int, OutgoingMessage] = {}
        """Offset -> event that the endpoint hasn't accepted yet."""
        self.replays_left: int = 0
        """Number of replayed deliveries not attempted yet."""
        self.undelivered_offsets: frozenset[int] = frozenset()
        """Offsets of the events that were pending at the start. The channel's replay may repeat some of them."""
        self.gap: bool = False
        """Whether a `gap` is being sent."""
        self.is_removed: bool = False
        self.lock: asyncio.Lock = asyncio.Lock()
        self.status: Status = Status()
        self.status_saved_at: float = 0.0
        self.has_unsaved_status: bool = False
        self.update(record)

    def update(self, record: WebhookSubscription) -> None:
        """Replace the record of the subscription."""
        self.record: WebhookSubscription = record
        self.principal: Principal = record.principal
        self.keys: tuple[bytes, ...] = tuple(read_secret(each) for each in (record.secret, record.old_secret) if each)

    def signing_keys(self, now: float) -> Sequence[bytes]:
        """Return the current signing keys."""
        return self.keys if now < self.record.old_until else self.keys[:1]

    def watermark(self, offset: int) -> int:
        """Return the offset up to which every event will be settled once the event at `offset` is."""
        return min((each - 1 for each in self.pending if each < offset), default=offset)


class OutgoingMessage:
    """One message for one subscription."""

    __slots__ = (
        "attempts", "blocks_position", "control", "first_attempt_at", "id", "is_replay", "job", "notice", "target",
    )  # fmt: skip

    def __init__(
        self,
        job: "EventDelivery",
        target: Target,
        notice: Notice | None,
        *,
        control: dict[str, Any] | None = None,
        is_replay: bool = False,
    ) -> None:
        self.job = job
        self.target = target
        self.notice = notice
        self.control = control
        self.attempts: int = 0
        self.first_attempt_at: float = 0.0
        """Unix time of the first attempt."""
        self.blocks_position: bool = True
        """Whether the position of the event type must wait for this delivery."""
        self.is_replay = is_replay
        """Whether it belongs to the initial replay of a subscription."""
        kind = "" if control is None else control["type"]
        self.id: str = f"msg_{kind}_{secrets.token_hex(12)}" if notice is None else notice.id

    def body(self) -> bytes:
        """Return the message."""
        if self.notice is None:
            return _encode(self.control)
        cursor = position(self.job.hub, self.target.watermark(self.notice.offset))
        return _encode(occurrence(self.job.kind.name, self.notice, cursor))


class Outbox:
    """The scheduled and running deliveries of one worker.

    Args:
        sender: sends one message.
        clock: Unix time.
        delay: returns the seconds before the next attempt, by the number of attempts so far.
    """

    def __init__(
        self, sender: WebhookSender, clock: Callable[[], float], delay: Callable[[int], float] = retry_delay
    ) -> None:
        self._sender = sender
        self.clock: Callable[[], float] = clock
        self.delay: Callable[[int], float] = delay
        self._scheduled: list[tuple[float, int, OutgoingMessage]] = []
        """Deliveries that aren't due yet, as a heap."""
        self._due: dict[tuple[str, int], dict[str, deque[OutgoingMessage]]] = {}
        """Host and port -> principal -> deliveries that are due, the longest waiting first."""
        self._size = 0
        self._number = 0
        self._running: dict[asyncio.Task[None], OutgoingMessage] = {}
        self._running_by_host: Counter[tuple[str, int]] = Counter()
        self._running_by_principal: Counter[str] = Counter()
        self._wake_event = asyncio.Event()
        self._room_event = asyncio.Event()
        self._room_event.set()

    def add(self, delivery: OutgoingMessage, delay: float = 0.0) -> None:
        """Schedule a message after a delay in seconds."""
        self._size += 1
        if delay > 0:
            self._number += 1
            heapq.heappush(self._scheduled, (self.clock() + delay, self._number, delivery))
        else:
            self._add_due(delivery)
        if self._size >= MAX_QUEUED:
            self._room_event.clear()
        self._wake_event.set()

    async def wait_for_room(self) -> None:
        """Wait until there's room for the deliveries of another event."""
        await self._room_event.wait()

    async def run(self) -> None:
        """Send due deliveries until canceled."""
        while True:
            self._wake_event.clear()
            now = self.clock()
            while self._scheduled and self._scheduled[0][0] <= now:
                self._add_due(heapq.heappop(self._scheduled)[2])
            self._start_due()
            if self._size < MAX_QUEUED:
                self._room_event.set()
            wait = max(0.0, self._scheduled[0][0] - self.clock()) if self._scheduled else None
            with suppress(TimeoutError):  # `wait_for` of Python 3.11 can lose a cancellation
                async with asyncio.timeout(wait):
                    await self._wake_event.wait()

    def _add_due(self, delivery: OutgoingMessage) -> None:
        target = delivery.target
        self._due.setdefault(target.host, {}).setdefault(target.principal.id, deque()).append(delivery)

    def _start_due(self) -> None:
        """Start as many due deliveries as the limits allow, in turn by host and principal."""
        started = True
        while started:
            started = False
            for host in list(self._due):
                if len(self._running) >= IN_FLIGHT:
                    return
                started |= self._running_by_host[host] < IN_FLIGHT_PER_HOST and self._start_one(host)

    def _start_one(self, host: tuple[str, int]) -> bool:
        """Start the first delivery to a host whose principal is below its limit.

        A principal may have fewer running deliveries than there are free slots, so the slow endpoints of one never take
        the last slot, and those of several share the slots equally.
        """
        owners, free = self._due.pop(host), IN_FLIGHT - len(self._running)
        found = None
        while found is None and (
            owner := next((each for each in owners if self._running_by_principal[each] < free), None)
        ):
            due = owners.pop(owner)
            while due and found is None:
                delivery = due.popleft()
                self._size -= 1
                found = delivery if delivery.job.wants(delivery) else None
            if due:
                owners[owner] = due
        if owners:
            self._due[host] = owners
        if found is None:
            return False
        self._running_by_host[host] += 1
        self._running_by_principal[found.target.principal.id] += 1
        task = asyncio.get_running_loop().create_task(self._attempt(found))
        self._running[task] = found
        task.add_done_callback(self._on_delivery_done)
        return True

    def _on_delivery_done(self, task: asyncio.Task[None]) -> None:
        target = self._running.pop(task).target
        _count_down(self._running_by_host, target.host)
        _count_down(self._running_by_principal, target.principal.id)
        self._wake_event.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("A webhook delivery failed", exc_info=error)

    async def _attempt(self, delivery: OutgoingMessage) -> None:
        now, target = self.clock(), delivery.target
        delivery.first_attempt_at = delivery.first_attempt_at or now
        delivery.attempts += 1
        body = delivery.body()
        if len(body) > MAX_BODY:
            _logger.warning("The event %s of %r is too large for webhooks", delivery.id, delivery.job.kind.name)
            answer = AttemptResult(413, "http_4xx")
        else:
            answer = await self._sender.send(
                target.url, body, message_id=delivery.id, subscription=target.record.id,
                keys=target.signing_keys(now), now=now,
            )  # fmt: skip
        await delivery.job.settle(delivery, answer)

    async def wait_for(self, job: "EventDelivery", seconds: float) -> None:
        """Wait for the running deliveries of a job, for a maximum number of seconds."""
        tasks = [task for task, delivery in self._running.items() if delivery.job is job]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """Stop all running deliveries."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _count_down(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


class EventDelivery:
    """The deliveries of one event type on one worker, active while the worker has the lease.

    Args:
        kind: the event type.
        hub: the hub of the events.
        subscriptions: the store of subscriptions.
        outbox: sends the deliveries.
        shared: whether other workers may have the lease.
        has_credential: returns whether a principal may still have a valid credential.
        is_revoked: see `ServerHost.is_revoked`.
    """

    def __init__(
        self,
        kind: EventType,
        hub: Hub,
        subscriptions: SubscriptionStore,
        outbox: Outbox,
        *,
        shared: bool,
        has_credential: Callable[[Principal], bool],
        is_revoked: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.kind = kind
        self.hub = hub
        self._has_credential = has_credential
        self._is_revoked = is_revoked
        self._recheck_tokens = False
        """Whether tokens may have been revoked."""
        self._shared = shared
        self._subscriptions = subscriptions
        self._outbox = outbox
        self._log = LogOnce(
            _logger,
            f"Webhooks of {kind.name!r} can't be delivered; retrying",
            f"Webhooks of {kind.name!r} are delivered again.",
        )
        self._targets: dict[str, Target] = {}
        self._position = 0
        self._epoch = ""
        self._first_attempts: dict[int, int] = {}
        """Offset -> number of outstanding first attempts."""
        self._saved_cursor = ""
        self._saved_count = -1
        self._changed_ids: set[str] = set()
        self._reload = False
        self._change_event = asyncio.Event()
        self._leased_until = 0.0
        """Time on the event loop's clock."""
        self._lease_lost = False
        """Whether a delivery was dropped because the lease had ended."""

    async def run(self) -> None:
        """Deliver whenever this worker gets the lease, until canceled."""
        while True:
            with self._log:
                await self._deliver_with_lease()
            await asyncio.sleep(LEASE / 3 if not self._log.lasts else 1.0)

    def recheck(self) -> None:
        """Check soon whether tokens of subscriptions were revoked, and end those subscriptions."""
        self._recheck_tokens = True

    def wants(self, delivery: OutgoingMessage) -> bool:
        """Return whether this worker should still send a delivery."""
        target = delivery.target
        if self._has_lease_expired():
            self._lease_lost = True
            return False
        if delivery.notice is None:
            return True
        return not target.is_removed and target.pending.get(delivery.notice.offset) is delivery

    # With the lease

    def _has_lease_expired(self) -> bool:
        return self._shared and asyncio.get_running_loop().time() >= self._leased_until

    async def _renew(self) -> bool:
        until = asyncio.get_running_loop().time() + LEASE
        if not await self._subscriptions.lead(self.kind.name):
            return False
        self._leased_until = until
        return True

    async def _deliver_with_lease(self) -> None:
        if not await self._renew():
            return
        stop = self._subscriptions.listen(self._on_change, self._reload_all)
        tasks: list[asyncio.Task[Any]] = []
        feed: Feed | None = None
        try:
            await self._subscriptions.wait_until_listening()
            cursor = await self._begin()
            feed, replay = open_feed(self.hub, self.kind.name, cursor)
            loop = asyncio.get_running_loop()
            works = [loop.create_task(each) for each in (self._consume(feed), self._maintain(), self._apply_changes())]
            tasks = [*works, replay]
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for each in works:
                if each.done():
                    each.result()
        finally:
            stop()
            if feed is not None:
                feed.close()
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._drop_all()

    async def save(self, seconds: float) -> None:
        """Wait for running deliveries and save the progress. No further deliveries start."""
        await self._outbox.wait_for(self, seconds)
        if self._targets and not self._has_lease_expired():
            with suppress(LocalError):
                await self._flush()

    async def resign(self) -> None:
        """Release the lease."""
        if not self._has_lease_expired():
            with suppress(LocalError):
                await self._subscriptions.resign(self.kind.name)
        self._leased_until = 0.0

    def _drop_all(self) -> None:
        for target in self._targets.values():
            target.is_removed = True
        self._targets, self._first_attempts = {}, {}

    async def _begin(self) -> str:
        """Load the subscriptions and their pending events. Return the cursor to continue from."""
        name, subscriptions = self.kind.name, self._subscriptions
        cursor = await subscriptions.position(name)
        if not cursor:
            cursor = self.hub.place()
            await subscriptions.put_position(name, cursor)
        self._saved_cursor = cursor
        self._epoch, self._position = split_cursor(cursor)
        self._first_attempts, self._saved_count, self._lease_lost = {}, -1, False
        records = await subscriptions.all(name)
        self._recheck_tokens = True
        undelivered = await subscriptions.find_undelivered([record.id for record in records])
        events: dict[int, Notice | None] = {}
        for record in records:
            target = await self._add_target(record)
            if target is not None and record.id in undelivered:
                await self._resume(target, undelivered[record.id], events)
        return cursor

    async def _resume(self, target: Target, undelivered: UndeliveredEvents, events: dict[int, Notice | None]) -> None:
        """Schedule the events whose earlier attempts failed on any worker."""
        epoch, now = split_cursor(self.hub.place())[0], self._outbox.clock()
        if undelivered.epoch == epoch:
            target.undelivered_offsets = frozenset(each.offset for each in undelivered.events)
        for each in undelivered.events:
            if each.offset not in events:
                events[each.offset] = await self._read_event(each.offset) if undelivered.epoch == epoch else None
            notice = events[each.offset]
            if notice is None:
                self._send_gap(target, each.offset)
                continue
            delivery = OutgoingMessage(self, target, notice)
            delivery.attempts, delivery.first_attempt_at, delivery.blocks_position = each.attempts, each.first, False
            target.pending[each.offset] = delivery
            self._outbox.add(delivery, max(0.0, each.due - now))

    async def _read_event(self, offset: int) -> Notice | None:
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
            if self._reload:
                self._reload = False
                self._changed_ids.update(self._targets)
                self._changed_ids.update(record.id for record in await self._subscriptions.all(self.kind.name))
            while self._changed_ids:
                await self._reload_subscription(self._changed_ids.pop())
            await self._save_count()

    async def _reload_subscription(self, id: str) -> None:
        record, _ = await self._subscriptions.get(self.kind.name, id)
        if record is None or record.expires <= self._outbox.clock():
            self._remove(id)
        elif id in self._targets:
            self._targets[id].update(record)
        else:
            target = await self._add_target(record)
            if target is not None and record.credential and await self._is_revoked(record.credential):
                await self._terminate(target)

    async def _add_target(self, record: WebhookSubscription) -> Target | None:
        """Start to deliver to a subscription, beginning with the replay that it requested."""
        try:
            arguments = self.kind.read_arguments(record.arguments)
            target = Target(record, arguments, self._position)
        except ProtocolError:
            _logger.warning(
                "Dropped the subscription %s, because it no longer fits the event %r", record.id, record.name
            )
            await self._subscriptions.delete(record.name, record.id)
            return None
        self._targets[record.id] = target
        visible = sees(self.kind, record.scopes) or "*" in record.scopes
        if not visible or not self._has_credential(target.principal):
            await self._terminate(target)
            return None
        target.status = await self._subscriptions.status(record.id)
        if record.since:
            epoch, since = split_cursor(record.since)
            if epoch == self._epoch and since >= self._position:
                target.after = since
            else:
                await self._replay(target)
        return target

    async def _replay(self, target: Target) -> None:
        """Queue the events between a subscription's cursor and this worker's position."""
        record, until = target.record, target.after
        cursor, more = record.since, True

        def accepts(notice: Notice) -> bool:
            return notice.offset <= until and notice.at >= record.oldest and self._matches(target, notice)

        while more and not target.is_removed:
            page = await read_page(self.hub, self.kind.name, cursor, most=MAX_PENDING, accepts=accepts)
            if page.gap and cursor == record.since:
                self._send_gap(target, page.events[0].offset - 1 if page.events else until)
            for notice in page.events:
                target.replays_left += 1
                self._queue(target, OutgoingMessage(self, target, notice, is_replay=True))
            cursor, more = page.cursor, page.more and split_cursor(page.cursor)[1] < until
            await self._outbox.wait_for_room()

    async def _terminate(self, target: Target) -> None:
        """End a subscription whose principal lost access."""
        record = target.record
        error = {"code": FORBIDDEN, "message": "Forbidden", "data": {"reason": "Access revoked"}}
        await self._subscriptions.delete(record.name, record.id)
        await self._subscriptions.discount(record.principal, record.id)
        self._remove(record.id)
        self._outbox.add(OutgoingMessage(self, target, None, control={"type": "terminated", "error": error}))

    def _remove(self, id: str) -> None:
        target = self._targets.pop(id, None)
        if target is not None:
            target.is_removed = True
            for delivery in target.pending.values():
                self._release_position(delivery)
            target.pending.clear()

    # Events

    async def _consume(self, feed: Feed) -> None:
        """Queue each event for every subscription that receives it."""
        gap = False
        while (notice := await feed.take()) is not None and notice.kind != "cut":
            if notice.kind == "gap":
                gap = True
                continue
            before, epoch = self._position, split_cursor(self.hub.place())[0]
            if epoch != self._epoch:
                before = 0
                self._forget_epoch(epoch)
            self._position = notice.offset
            if gap:
                gap = False
                for target in self._targets.values():
                    self._send_gap(target, max(before, notice.offset - 1))
            if notice.kind == "event":
                self._count_first_attempts(notice.offset, 1)  # blocks the position until all are queued
                await self._queue_for_all(notice)
                self._count_first_attempts(notice.offset, -1)
                await self._outbox.wait_for_room()
        # The feed fell behind: restart at the saved position.

    def _forget_epoch(self, epoch: str) -> None:
        """Drop all pending events, because the store lost data and offsets restarted."""
        self._epoch = epoch
        self._first_attempts.clear()
        for target in self._targets.values():
            target.after, target.undelivered_offsets = 0, frozenset()
            for delivery in target.pending.values():
                delivery.blocks_position = False
            target.pending.clear()

    async def _queue_for_all(self, notice: Notice) -> None:
        try:
            payload, data = self.kind.read(notice.data), _decode_object(notice.data)
        except (ValueError, RecursionError) as error:
            _logger.warning("An event on the channel %r isn't delivered: %s", self.kind.name, str(error)[:300])
            return
        now = self._outbox.clock()
        for number, target in enumerate(list(self._targets.values()), 1):
            record = target.record
            if (
                notice.offset > target.after
                and notice.offset not in target.undelivered_offsets
                and not target.is_removed
                and record.expires > now
                and self.kind.matches(payload, data, target.arguments, target.principal)
            ):
                self._count_first_attempts(notice.offset, 1)
                self._queue(target, OutgoingMessage(self, target, notice))
            if not number % _YIELD_INTERVAL:
                await asyncio.sleep(0)

    def _matches(self, target: Target, notice: Notice) -> bool:
        try:
            payload, data = self.kind.read(notice.data), _decode_object(notice.data)
        except (ValueError, RecursionError):
            return False
        return self.kind.matches(payload, data, target.arguments, target.principal)

    def _queue(self, target: Target, delivery: OutgoingMessage) -> None:
        assert delivery.notice is not None  # noqa: S101  control messages aren't counted
        if len(target.pending) >= MAX_PENDING:
            oldest = min(target.pending)
            self._release_position(target.pending.pop(oldest))
            self._send_gap(target, oldest)
        target.pending[delivery.notice.offset] = delivery
        self._outbox.add(delivery)

    def _send_gap(self, target: Target, offset: int) -> None:
        if not target.gap:
            target.gap = True
            control = {"type": "gap", "cursor": position(self.hub, offset)}
            self._outbox.add(OutgoingMessage(self, target, None, control=control))

    def _count_first_attempts(self, offset: int, by: int) -> None:
        count = self._first_attempts.get(offset, 0) + by
        if count:
            self._first_attempts[offset] = count
        else:
            self._first_attempts.pop(offset, None)

    def _release_position(self, delivery: OutgoingMessage) -> None:
        """Let the position advance past a delivery that was settled or stored."""
        if not delivery.blocks_position:
            return
        delivery.blocks_position = False
        if delivery.is_replay:
            delivery.target.replays_left -= 1
        elif delivery.notice is not None and delivery.notice.offset in self._first_attempts:
            self._count_first_attempts(delivery.notice.offset, -1)

    # Outcomes

    async def settle(self, delivery: OutgoingMessage, answer: AttemptResult) -> None:
        """Record the outcome of an attempt, and schedule the next one after a failure."""
        target, now = delivery.target, self._outbox.clock()
        self._update_status(target, answer, now)
        given_up = delivery.attempts >= ATTEMPTS or now - delivery.first_attempt_at > WINDOW
        if delivery.notice is None:
            if answer.final or given_up:
                target.gap = False
            else:
                self._outbox.add(delivery, self._outbox.delay(delivery.attempts))
            return
        if target.is_removed or target.pending.get(delivery.notice.offset) is not delivery:
            return
        was_undelivered = not delivery.blocks_position
        if answer.final or given_up:
            del target.pending[delivery.notice.offset]
            self._release_position(delivery)
            if was_undelivered:
                await self._save_undelivered(target)
            return
        delay = self._outbox.delay(delivery.attempts)
        saved = await self._save_undelivered(target, delivery, now + delay)
        if target.pending.get(delivery.notice.offset) is delivery and not target.is_removed:
            if saved:
                self._release_position(delivery)
            self._outbox.add(delivery, delay)

    async def _save_undelivered(self, target: Target, failed: OutgoingMessage | None = None, due: float = 0.0) -> bool:
        """Save the pending events of a subscription. Return False if the store is unavailable."""
        async with target.lock:
            if target.is_removed:
                return True
            undelivered = [
                UndeliveredEvent(
                    offset, each.attempts, due if each is failed else self._outbox.clock(), each.first_attempt_at
                )
                for offset, each in target.pending.items()
                if not each.blocks_position or each is failed
            ]
            try:
                await self._subscriptions.put_undelivered(target.record, self._epoch, undelivered)
            except LocalError as error:
                _logger.debug("The pending events of the subscription %s weren't saved: %s", target.record.id, error)
                return False
            return True

    def _update_status(self, target: Target, answer: AttemptResult, now: float) -> None:
        before = target.status
        if answer.reason:
            target.status = replace(before, last_error=answer.reason, failed_since=before.failed_since or now)
        else:
            target.status = Status(now)
        if bool(before.last_error) != bool(target.status.last_error) or now - target.status_saved_at > _STATUS_INTERVAL:
            target.has_unsaved_status = True

    # Upkeep

    async def _maintain(self) -> None:
        """Renew the lease and save the progress."""
        trouble = LogOnce(
            _logger,
            f"The progress of webhooks of {self.kind.name!r} can't be stored; retrying",
            f"The progress of webhooks of {self.kind.name!r} can be stored again.",
        )
        while not self._lease_lost and not self._has_lease_expired():
            await asyncio.sleep(_FLUSH_INTERVAL)
            with trouble:
                if not await self._renew():
                    return
                await self._flush()

    async def _flush(self) -> None:
        """Save all changes since the last call."""
        name, subscriptions, now = self.kind.name, self._subscriptions, self._outbox.clock()
        offset = min(self._first_attempts) - 1 if self._first_attempts else self._position
        cursor = f"{self._epoch}.{offset}"
        if cursor != self._saved_cursor:
            await subscriptions.put_position(name, cursor)
            self._saved_cursor = cursor
        revoked = await self._find_revoked()
        for target in list(self._targets.values()):
            record = target.record
            if record.expires <= now:
                self._changed_ids.add(record.id)
                self._change_event.set()
            elif record.credential in revoked or not self._has_credential(target.principal):
                await self._terminate(target)
            elif record.since and not target.replays_left and offset >= split_cursor(record.since)[1]:
                await self._clear_initial_cursor(target)
            if target.has_unsaved_status:
                target.has_unsaved_status, target.status_saved_at = False, now
                await subscriptions.put_status(record.id, target.status)
        await self._save_count()

    async def _find_revoked(self) -> set[str]:
        """Return the revoked credentials. Only checks after a possible revocation."""
        if not self._recheck_tokens:
            return set()
        self._recheck_tokens = False
        credentials = {target.record.credential for target in self._targets.values()} - {""}
        try:
            return {each for each in credentials if await self._is_revoked(each)}
        except BaseException:
            self._recheck_tokens = True
            raise

    async def _save_count(self) -> None:
        count = len(self._targets)
        if count != self._saved_count:
            await self._subscriptions.put_count(self.kind.name, count)
            self._saved_count = count

    async def _clear_initial_cursor(self, target: Target) -> None:
        """Clear the initial cursor of a subscription, which from now on has the position of its event type."""
        record, sealed = await self._subscriptions.get(self.kind.name, target.record.id)
        if record is None or not record.since:
            return
        updated = replace(record, since="", oldest=0.0)
        if await self._subscriptions.replace(updated, sealed):
            target.update(updated)


class WebhookDelivery:
    """The deliveries of all event types on one worker.

    Args:
        jobs: one job for each event type.
        outbox: their shared outbox.
    """

    def __init__(self, jobs: Sequence[EventDelivery], outbox: Outbox) -> None:
        self._jobs = jobs
        self._outbox = outbox
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox_task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start the deliveries."""
        loop = asyncio.get_running_loop()
        self._outbox_task = loop.create_task(self._outbox.run())
        self._tasks = [loop.create_task(job.run()) for job in self._jobs]

    async def close(self, seconds: float = 0.0) -> None:
        """Stop after waiting up to `seconds` for running deliveries. Idempotent."""
        if self._outbox_task is None:
            return
        sending, self._outbox_task = self._outbox_task, None
        sending.cancel()
        for job in self._jobs:
            await job.save(seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(sending, *self._tasks, return_exceptions=True)
        await self._outbox.close()
        for job in self._jobs:
            await job.resign()
