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
IN_FLIGHT_EACH: Final = 32
"""Maximum for one host and port."""
_FIRST_DELAY: Final = 5.0
_FLUSH: Final = 1.0
_STATUS_EVERY: Final = 60.0
"""Minimum seconds between two successful status updates."""
_TURN: Final = 500

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
        "after", "arguments", "caught_up", "dirty", "gap", "host", "keys", "lock", "owed", "pending", "principal",
        "record", "removed", "status", "status_at", "url",
    )  # fmt: skip

    def __init__(self, record: WebhookSubscription, arguments: Arguments, after: int) -> None:
        self.arguments: Arguments = arguments
        self.after: int = after
        """Events up to this offset aren't delivered."""
        self.url: Url = read_url(record.url)
        self.host: tuple[str, int] = (self.url.host, self.url.port)
        self.pending: dict[int, OutgoingMessage] = {}
        """Offset -> event that the endpoint hasn't accepted yet."""
        self.caught_up: int = 0
        """Number of replayed deliveries not attempted yet."""
        self.owed: frozenset[int] = frozenset()
        """Offsets of the events that were pending at the start. The replay of the channel repeats some of them."""
        self.gap: bool = False
        """Whether a `gap` is being sent."""
        self.removed: bool = False
        self.lock: asyncio.Lock = asyncio.Lock()
        self.status: Status = Status()
        self.status_at: float = 0.0
        self.dirty: bool = False
        self.use(record)

    def use(self, record: WebhookSubscription) -> None:
        """Replace the record of the subscription."""
        self.record: WebhookSubscription = record
        self.principal: Principal = record.principal
        self.keys: tuple[bytes, ...] = tuple(read_secret(each) for each in (record.secret, record.old_secret) if each)

    def signing_keys(self, now: float) -> Sequence[bytes]:
        """Return the current signing keys."""
        return self.keys if now < self.record.old_until else self.keys[:1]

    def watermark(self, offset: int) -> int:
        """Return the offset up to which every event will be settled after the one at `offset`."""
        return min((each - 1 for each in self.pending if each < offset), default=offset)


class OutgoingMessage:
    """One message for one subscription."""

    __slots__ = ("attempts", "control", "first", "fresh", "id", "job", "notice", "replayed", "target")

    def __init__(
        self,
        job: "EventDelivery",
        target: Target,
        notice: Notice | None,
        *,
        control: dict[str, Any] | None = None,
        replayed: bool = False,
    ) -> None:
        self.job = job
        self.target = target
        self.notice = notice
        self.control = control
        self.attempts: int = 0
        self.first: float = 0.0
        """Unix time of the first attempt."""
        self.fresh: bool = True
        """Whether the position of the event type must wait for this delivery."""
        self.replayed = replayed
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
        self._later: list[tuple[float, int, OutgoingMessage]] = []
        """Deliveries that aren't due yet, as a heap."""
        self._due: dict[tuple[str, int], dict[str, deque[OutgoingMessage]]] = {}
        """Host and port -> principal -> deliveries that are due, the longest waiting first."""
        self._size = 0
        self._number = 0
        self._flying: dict[asyncio.Task[None], OutgoingMessage] = {}
        self._hosts: Counter[tuple[str, int]] = Counter()
        self._owners: Counter[str] = Counter()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def add(self, delivery: OutgoingMessage, delay: float = 0.0) -> None:
        """Schedule a message after a delay in seconds."""
        self._size += 1
        if delay > 0:
            self._number += 1
            heapq.heappush(self._later, (self.clock() + delay, self._number, delivery))
        else:
            self._add_due(delivery)
        if self._size >= MAX_QUEUED:
            self._room.clear()
        self._news.set()

    async def room(self) -> None:
        """Wait until there's room for the deliveries of another event."""
        await self._room.wait()

    async def run(self) -> None:
        """Send due deliveries until cancelled."""
        while True:
            self._news.clear()
            now = self.clock()
            while self._later and self._later[0][0] <= now:
                self._add_due(heapq.heappop(self._later)[2])
            self._start_due()
            if self._size < MAX_QUEUED:
                self._room.set()
            wait = max(0.0, self._later[0][0] - self.clock()) if self._later else None
            with suppress(TimeoutError):  # `wait_for` of Python 3.11 can lose a cancellation
                async with asyncio.timeout(wait):
                    await self._news.wait()

    def _add_due(self, delivery: OutgoingMessage) -> None:
        target = delivery.target
        self._due.setdefault(target.host, {}).setdefault(target.principal.id, deque()).append(delivery)

    def _start_due(self) -> None:
        """Start as many due deliveries as the limits allow, in turn by host and principal."""
        started = True
        while started:
            started = False
            for host in list(self._due):
                if len(self._flying) >= IN_FLIGHT:
                    return
                started |= self._hosts[host] < IN_FLIGHT_EACH and self._start_one(host)

    def _start_one(self, host: tuple[str, int]) -> bool:
        """Start the first delivery to a host whose principal may have another one under way.

        A principal has fewer under way than there are free places, so slow endpoints of one never take the last place,
        and those of several share the places equally.
        """
        owners, free = self._due.pop(host), IN_FLIGHT - len(self._flying)
        found = None
        while found is None and (owner := next((each for each in owners if self._owners[each] < free), None)):
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
        self._hosts[host] += 1
        self._owners[found.target.principal.id] += 1
        task = asyncio.get_running_loop().create_task(self._attempt(found))
        self._flying[task] = found
        task.add_done_callback(self._on_delivery_done)
        return True

    def _on_delivery_done(self, task: asyncio.Task[None]) -> None:
        target = self._flying.pop(task).target
        _count_down(self._hosts, target.host)
        _count_down(self._owners, target.principal.id)
        self._news.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("A webhook delivery failed", exc_info=error)

    async def _attempt(self, delivery: OutgoingMessage) -> None:
        now, target = self.clock(), delivery.target
        delivery.first = delivery.first or now
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
        tasks = [task for task, delivery in self._flying.items() if delivery.job is job]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """Stop all running deliveries."""
        tasks = list(self._flying)
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
        self._rechecks = False
        """Tokens may have been revoked."""
        self._shared = shared
        self._subscriptions = subscriptions
        self._outbox = outbox
        self._trouble = LogOnce(
            _logger,
            f"Webhooks of {kind.name!r} can't be delivered; retrying",
            f"Webhooks of {kind.name!r} are delivered again.",
        )
        self._targets: dict[str, Target] = {}
        self._position = 0
        self._epoch = ""
        self._fresh: dict[int, int] = {}
        """Offset -> number of first attempts still to come."""
        self._saved = ""
        self._counted = -1
        self._changed: set[str] = set()
        self._reload = False
        self._news = asyncio.Event()
        self._leased_until = 0.0
        """Time on the event loop's clock."""
        self._lapsed = False
        """Whether a delivery was dropped because the lease had ended."""

    async def run(self) -> None:
        """Deliver whenever this worker gets the lease, until cancelled."""
        while True:
            with self._trouble:
                await self._lead()
            await asyncio.sleep(LEASE / 3 if not self._trouble.lasts else 1.0)

    def recheck(self) -> None:
        """End the subscriptions whose tokens were revoked, soon."""
        self._rechecks = True

    def wants(self, delivery: OutgoingMessage) -> bool:
        """Return whether this worker should still send a delivery."""
        target = delivery.target
        if self._is_over():
            self._lapsed = True
            return False
        if delivery.notice is None:
            return True
        return not target.removed and target.pending.get(delivery.notice.offset) is delivery

    # With the lease

    def _is_over(self) -> bool:
        return self._shared and asyncio.get_running_loop().time() >= self._leased_until

    async def _renew(self) -> bool:
        until = asyncio.get_running_loop().time() + LEASE
        if not await self._subscriptions.lead(self.kind.name):
            return False
        self._leased_until = until
        return True

    async def _lead(self) -> None:
        if not await self._renew():
            return
        stop = self._subscriptions.listen(self._hear, self._reload_all)
        tasks: list[asyncio.Task[Any]] = []
        feed: Feed | None = None
        try:
            await self._subscriptions.wait_until_listening()
            cursor = await self._begin()
            feed, replay = open_feed(self.hub, self.kind.name, cursor)
            loop = asyncio.get_running_loop()
            works = [loop.create_task(each) for each in (self._consume(feed), self._keep(), self._follow())]
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
        if self._targets and not self._is_over():
            with suppress(LocalError):
                await self._flush()

    async def resign(self) -> None:
        """Release the lease."""
        if not self._is_over():
            with suppress(LocalError):
                await self._subscriptions.resign(self.kind.name)
        self._leased_until = 0.0

    def _drop_all(self) -> None:
        for target in self._targets.values():
            target.removed = True
        self._targets, self._fresh = {}, {}

    async def _begin(self) -> str:
        """Load the subscriptions and their pending events. Return the cursor to continue from."""
        name, subscriptions = self.kind.name, self._subscriptions
        cursor = await subscriptions.position(name)
        if not cursor:
            cursor = self.hub.place()
            await subscriptions.put_position(name, cursor)
        self._saved = cursor
        self._epoch, self._position = split_cursor(cursor)
        self._fresh, self._counted, self._lapsed = {}, -1, False
        records = await subscriptions.all(name)
        self._rechecks = True
        owed = await subscriptions.find_undelivered([record.id for record in records])
        events: dict[int, Notice | None] = {}
        for record in records:
            target = await self._adopt(record)
            if target is not None and record.id in owed:
                await self._resume(target, owed[record.id], events)
        return cursor

    async def _resume(self, target: Target, owed: UndeliveredEvents, events: dict[int, Notice | None]) -> None:
        """Schedule the events whose earlier attempts failed, on any worker."""
        present, now = split_cursor(self.hub.place())[0], self._outbox.clock()
        if owed.epoch == present:
            target.owed = frozenset(each.offset for each in owed.events)
        for each in owed.events:
            if each.offset not in events:
                events[each.offset] = await self._find(each.offset) if owed.epoch == present else None
            notice = events[each.offset]
            if notice is None:
                self._tell_gap(target, each.offset)
                continue
            delivery = OutgoingMessage(self, target, notice)
            delivery.attempts, delivery.first, delivery.fresh = each.attempts, each.first, False
            target.pending[each.offset] = delivery
            self._outbox.add(delivery, max(0.0, each.due - now))

    async def _find(self, offset: int) -> Notice | None:
        page = await read_page(self.hub, self.kind.name, position(self.hub, offset - 1), most=1)
        return page.events[0] if page.events and page.events[0].offset == offset else None

    # Subscriptions

    def _hear(self, entry: Entry) -> None:
        name, _, id = entry.data.decode("utf-8", "replace").partition("\0")
        if name == self.kind.name:
            self._changed.add(id)
            self._news.set()

    def _reload_all(self) -> None:
        self._reload = True
        self._news.set()

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._reload:
                self._reload = False
                self._changed.update(self._targets)
                self._changed.update(record.id for record in await self._subscriptions.all(self.kind.name))
            while self._changed:
                await self._look_at(self._changed.pop())
            await self._note_count()

    async def _look_at(self, id: str) -> None:
        record, _ = await self._subscriptions.get(self.kind.name, id)
        if record is None or record.expires <= self._outbox.clock():
            self._remove(id)
        elif id in self._targets:
            self._targets[id].use(record)
        else:
            target = await self._adopt(record)
            if target is not None and record.credential and await self._is_revoked(record.credential):
                await self._terminate(target)

    async def _adopt(self, record: WebhookSubscription) -> Target | None:
        """Start delivering to a subscription, beginning with the replay it requested."""
        try:
            arguments = self.kind.read_arguments(record.arguments)
            target = Target(record, arguments, self._position)
        except ProtocolError:
            _logger.warning("The subscription %s no longer fits the event %r, and is dropped", record.id, record.name)
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

        while more and not target.removed:
            page = await read_page(self.hub, self.kind.name, cursor, most=MAX_PENDING, accepts=accepts)
            if page.gap and cursor == record.since:
                self._tell_gap(target, page.events[0].offset - 1 if page.events else until)
            for notice in page.events:
                target.caught_up += 1
                self._queue(target, OutgoingMessage(self, target, notice, replayed=True))
            cursor, more = page.cursor, page.more and split_cursor(page.cursor)[1] < until
            await self._outbox.room()

    async def _terminate(self, target: Target) -> None:
        """End a subscription whose principal lost access."""
        record = target.record
        error = {"code": FORBIDDEN, "message": "Forbidden", "data": {"reason": "Access revoked"}}
        await self._subscriptions.delete(record.name, record.id)
        await self._subscriptions.dismiss(record.principal, record.id)
        self._remove(record.id)
        self._outbox.add(OutgoingMessage(self, target, None, control={"type": "terminated", "error": error}))

    def _remove(self, id: str) -> None:
        target = self._targets.pop(id, None)
        if target is not None:
            target.removed = True
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
                    self._tell_gap(target, max(before, notice.offset - 1))
            if notice.kind == "event":
                self._count_fresh(notice.offset, 1)  # holds the position back until all are queued
                await self._spread(notice)
                self._count_fresh(notice.offset, -1)
                await self._outbox.room()
        # The feed fell behind: restart at the saved position.

    def _forget_epoch(self, epoch: str) -> None:
        """The store lost data, and offsets restarted. Send endpoints a `gap` for their pending events."""
        self._epoch = epoch
        self._fresh.clear()
        for target in self._targets.values():
            target.after, target.owed = 0, frozenset()
            for delivery in target.pending.values():
                delivery.fresh = False
            target.pending.clear()

    async def _spread(self, notice: Notice) -> None:
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
                and notice.offset not in target.owed
                and not target.removed
                and record.expires > now
                and self.kind.matches(payload, data, target.arguments, target.principal)
            ):
                self._count_fresh(notice.offset, 1)
                self._queue(target, OutgoingMessage(self, target, notice))
            if not number % _TURN:
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
            self._tell_gap(target, oldest)
        target.pending[delivery.notice.offset] = delivery
        self._outbox.add(delivery)

    def _tell_gap(self, target: Target, offset: int) -> None:
        if not target.gap:
            target.gap = True
            control = {"type": "gap", "cursor": position(self.hub, offset)}
            self._outbox.add(OutgoingMessage(self, target, None, control=control))

    def _count_fresh(self, offset: int, by: int) -> None:
        count = self._fresh.get(offset, 0) + by
        if count:
            self._fresh[offset] = count
        else:
            self._fresh.pop(offset, None)

    def _release_position(self, delivery: OutgoingMessage) -> None:
        """Let the position advance past a delivery that was settled or stored."""
        if not delivery.fresh:
            return
        delivery.fresh = False
        if delivery.replayed:
            delivery.target.caught_up -= 1
        elif delivery.notice is not None and delivery.notice.offset in self._fresh:
            self._count_fresh(delivery.notice.offset, -1)

    # Outcomes

    async def settle(self, delivery: OutgoingMessage, answer: AttemptResult) -> None:
        """Record the outcome of an attempt, and schedule the next one after a failure."""
        target, now = delivery.target, self._outbox.clock()
        self._note(target, answer, now)
        given_up = delivery.attempts >= ATTEMPTS or now - delivery.first > WINDOW
        if delivery.notice is None:
            if answer.final or given_up:
                target.gap = False
            else:
                self._outbox.add(delivery, self._outbox.delay(delivery.attempts))
            return
        if target.removed or target.pending.get(delivery.notice.offset) is not delivery:
            return
        was_owed = not delivery.fresh
        if answer.final or given_up:
            del target.pending[delivery.notice.offset]
            self._release_position(delivery)
            if was_owed:
                await self._save_owed(target)
            return
        delay = self._outbox.delay(delivery.attempts)
        saved = await self._save_owed(target, delivery, now + delay)
        if target.pending.get(delivery.notice.offset) is delivery and not target.removed:
            if saved:
                self._release_position(delivery)
            self._outbox.add(delivery, delay)

    async def _save_owed(self, target: Target, failed: OutgoingMessage | None = None, due: float = 0.0) -> bool:
        """Save the pending events of a subscription. Return False if the store is unavailable."""
        async with target.lock:
            if target.removed:
                return True
            owed = [
                UndeliveredEvent(offset, each.attempts, due if each is failed else self._outbox.clock(), each.first)
                for offset, each in target.pending.items()
                if not each.fresh or each is failed
            ]
            try:
                await self._subscriptions.put_owed(target.record, self._epoch, owed)
            except LocalError as error:
                _logger.debug("What the subscription %s is owed isn't in the store: %s", target.record.id, error)
                return False
            return True

    def _note(self, target: Target, answer: AttemptResult, now: float) -> None:
        before = target.status
        if answer.reason:
            target.status = replace(before, last_error=answer.reason, failed_since=before.failed_since or now)
        else:
            target.status = Status(now)
        if bool(before.last_error) != bool(target.status.last_error) or now - target.status_at > _STATUS_EVERY:
            target.dirty = True

    # Upkeep

    async def _keep(self) -> None:
        """Renew the lease and save the progress."""
        trouble = LogOnce(
            _logger,
            f"The progress of webhooks of {self.kind.name!r} can't be stored; retrying",
            f"The progress of webhooks of {self.kind.name!r} can be stored again.",
        )
        while not self._lapsed and not self._is_over():
            await asyncio.sleep(_FLUSH)
            with trouble:
                if not await self._renew():
                    return
                await self._flush()

    async def _flush(self) -> None:
        """Save all changes since the last time."""
        name, subscriptions, now = self.kind.name, self._subscriptions, self._outbox.clock()
        offset = min(self._fresh) - 1 if self._fresh else self._position
        cursor = f"{self._epoch}.{offset}"
        if cursor != self._saved:
            await subscriptions.put_position(name, cursor)
            self._saved = cursor
        revoked = await self._find_revoked()
        for target in list(self._targets.values()):
            record = target.record
            if record.expires <= now:
                self._changed.add(record.id)
                self._news.set()
            elif record.credential in revoked or not self._has_credential(target.principal):
                await self._terminate(target)
            elif record.since and not target.caught_up and offset >= split_cursor(record.since)[1]:
                await self._clear_initial_cursor(target)
            if target.dirty:
                target.dirty, target.status_at = False, now
                await subscriptions.put_status(record.id, target.status)
        await self._note_count()

    async def _find_revoked(self) -> set[str]:
        """Return the credentials that were revoked, if any may have been since the last time."""
        if not self._rechecks:
            return set()
        self._rechecks = False
        credentials = {target.record.credential for target in self._targets.values()} - {""}
        try:
            return {each for each in credentials if await self._is_revoked(each)}
        except BaseException:
            self._rechecks = True
            raise

    async def _note_count(self) -> None:
        count = len(self._targets)
        if count != self._counted:
            await self._subscriptions.put_count(self.kind.name, count)
            self._counted = count

    async def _clear_initial_cursor(self, target: Target) -> None:
        """Clear the initial cursor of a subscription. From now on, it has the position of the event type."""
        record, sealed = await self._subscriptions.get(self.kind.name, target.record.id)
        if record is None or not record.since:
            return
        begun = replace(record, since="", oldest=0.0)
        if await self._subscriptions.replace(begun, sealed):
            target.use(begun)


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
        self._sending: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start."""
        loop = asyncio.get_running_loop()
        self._sending = loop.create_task(self._outbox.run())
        self._tasks = [loop.create_task(job.run()) for job in self._jobs]

    async def close(self, seconds: float = 0.0) -> None:
        """Stop after waiting a few seconds for running deliveries. Idempotent."""
        if self._sending is None:
            return
        sending, self._sending = self._sending, None
        sending.cancel()
        for job in self._jobs:
            await job.save(seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(sending, *self._tasks, return_exceptions=True)
        await self._outbox.close()
        for job in self._jobs:
            await job.resign()
