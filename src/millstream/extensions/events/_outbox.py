"""Messages to webhook endpoints, and their schedule on one worker.

An `Outbox` limits how many messages are sent at the same time, in total, to each host, and for each principal.
"""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct, field

from millstream import Principal
from millstream.extensions import Share, cancel_all
from millstream.extensions.events._catalog import MAX_BODY, EventType, Reader, logger
from millstream.extensions.events._event_methods import occurrence, position
from millstream.extensions.events._webhook import AttemptResult, Status, WebhookSender, WebhookSubscription
from millstream.extensions.http_post import Url
from millstream.hub import Event, Hub
from millstream.protocol import Json, encode

MAX_QUEUED = 256 * 1024 * 1024
"""Maximum bytes of one worker's pending deliveries, half of it per principal. One principal alone can't make others
lose events.
"""
_DELIVERY_BYTES = 1024
"""Approximate size of a pending delivery without the event's data, in bytes."""
IN_FLIGHT = 64
IN_FLIGHT_PER_HOST = 32
"""Maximum concurrent deliveries to one host and port."""
_FIRST_DELAY = 5.0
SUSPENSION_WINDOW = 3600.0
"""Seconds after which an endpoint's attempts are counted from zero."""
SUSPENSION_ATTEMPTS = 100
"""Minimum attempts in a window before deliveries to an endpoint can be suspended."""
SUSPENSION_FAILURES = 0.95
"""Share of failed attempts above which deliveries are suspended."""


def retry_delay(attempts: int) -> float:
    """Return the delay before the next attempt, with jitter: about 5, 20, 80, and 320 seconds."""
    return _FIRST_DELAY * float(4 ** (attempts - 1)) * random.uniform(0.75, 1.25)  # noqa: S311  jitter


Place = tuple[tuple[str, int], str]
"""The host and port of an endpoint, and the id of a principal."""


class Target(Struct, eq=False):
    """A subscription on the worker that delivers to it."""

    record: WebhookSubscription
    reader: Reader
    after: int
    """Events up to this offset aren't delivered."""
    url: Url
    pending: dict[int, "OutgoingMessage"] = {}
    """Offset -> event that the endpoint hasn't accepted yet."""
    gap: "OutgoingMessage | None" = None
    """The `gap` that the endpoint hasn't accepted yet."""
    undelivered_offsets: frozenset[int] = frozenset()
    """Offsets of the events that were pending at the start. The channel's replay may repeat some of them."""
    timeouts: int = 0
    """Consecutive timeouts. While there are any, the endpoint gets only the `probe`."""
    attempts: int = 0
    """Attempts since the start of the window, which ends at `window_end`."""
    failures: int = 0
    window_end: float = 0.0
    probe: "OutgoingMessage | None" = None
    is_removed: bool = False
    status: Status = Status()
    status_saved_at: float = 0.0
    has_unsaved_status: bool = False
    has_unsaved_events: bool = False

    @property
    def principal(self) -> Principal:
        return self.record.principal

    @property
    def place(self) -> Place:
        return (self.url.host, self.url.port), self.principal.id

    @property
    def is_suspended(self) -> bool:
        return self.record.is_suspended(self.status)

    @property
    def is_ready(self) -> bool:
        """Whether the endpoint gets every message, without waiting for a probe or a refresh."""
        return not self.timeouts and not self.is_suspended

    def count_attempt(self, failed: bool, now: float) -> bool:
        """Count an attempt. Return whether too many have failed to continue."""
        if now >= self.window_end:
            self.attempts = self.failures = 0
            self.window_end = now + SUSPENSION_WINDOW
        self.attempts += 1
        self.failures += failed
        return self.attempts >= SUSPENSION_ATTEMPTS and self.failures > SUSPENSION_FAILURES * self.attempts

    def messages(self) -> list["OutgoingMessage"]:
        """Return the messages that the endpoint hasn't accepted yet, oldest first."""
        events = [self.pending[offset] for offset in sorted(self.pending)]
        return events if self.gap is None else [*events, self.gap]


class DeliveryJob(Protocol):
    """The deliveries of one event type, as far as an outbox uses them."""

    kind: EventType

    @property
    def hub(self) -> Hub:
        """The hub of the events."""
        ...

    def has_lease(self) -> bool:
        """Return whether this worker is still allowed to deliver."""
        ...

    def settle(self, message: "OutgoingMessage", answer: AttemptResult) -> None:
        """Record the outcome of an attempt."""


class OutgoingMessage(Struct, eq=False):
    """One message for one subscription."""

    job: DeliveryJob
    """Sends the message."""
    target: Target
    content: Event | Json
    """An event, or a control message."""
    is_replay: bool = False
    """Whether it belongs to the subscription's initial replay."""
    attempts: int = 0
    first_attempt_at: float = 0.0
    """Unix time of the first attempt."""
    timer: asyncio.TimerHandle | None = None
    """Starts the next attempt."""
    is_running: bool = False
    is_stored: bool = False
    """Whether the store has the message. Until then, the event type's position doesn't advance past it."""
    due: float = 0.0
    """Unix time of the next attempt, or of the event."""
    id: str = ""
    offset: int = -1

    def __post_init__(self) -> None:
        content = self.content
        if isinstance(content, Event):
            self.id = self.target.record.message_id(content.id)
            self.offset, self.due = content.offset, content.timestamp
        else:
            self.id = f"msg_{content['type']}_{secrets.token_hex(12)}"

    @property
    def is_termination(self) -> bool:
        """Whether it tells the endpoint that the subscription has ended."""
        return not isinstance(self.content, Event) and self.content["type"] == "terminated"

    @property
    def size(self) -> int:
        """Bytes that the event counts as."""
        data = self.content.data if isinstance(self.content, Event) else None
        return len(data or b"") + _DELIVERY_BYTES

    def body(self) -> bytes:
        """Return the JSON body of the request to the webhook."""
        if not isinstance(self.content, Event):
            return encode(self.content)
        # All events up to this offset are settled when this one is.
        settled = min((each - 1 for each in self.target.pending if each < self.offset), default=self.offset)
        return encode(occurrence(self.target.reader, self.content, position(self.job.hub, settled)))


class Outbox(Struct):
    """The scheduled and running deliveries of one worker."""

    _sender: WebhookSender
    """Sends one message."""
    clock: Callable[[], float]
    """Unix time."""
    delay: Callable[[int], float] = retry_delay
    """Returns the seconds before the next attempt, by the number of attempts so far."""
    share: Share = field(default_factory=lambda: Share(MAX_QUEUED))
    """Bytes of pending deliveries by principal. An event that several subscriptions wait for counts for each."""
    _due: dict[Place, dict[OutgoingMessage, None]] = {}
    """Deliveries that are due, the longest waiting first."""
    _running: dict[asyncio.Task[None], OutgoingMessage] = {}
    _running_counts: Counter[object] = field(default_factory=Counter[object])
    """Running deliveries by host, by principal, and by both."""
    _start: asyncio.Handle | None = None
    _is_closed: bool = False

    def schedule(self, message: OutgoingMessage, delay: float = 0.0) -> None:
        """Send a message after a delay in seconds, unless an attempt is running."""
        self.cancel(message)
        if message.is_running:
            return
        if delay > 0:
            message.due = self.clock() + delay
            message.timer = asyncio.get_running_loop().call_later(delay, self.schedule, message)
        else:
            self._due.setdefault(message.target.place, {})[message] = None
            self._wake()

    def cancel(self, message: OutgoingMessage) -> None:
        """Don't start another attempt of a message."""
        if message.timer is not None:
            message.timer.cancel()
            message.timer = None
        place = message.target.place
        due = self._due.get(place, {})
        if message in due:
            del due[message]
            if not due:
                del self._due[place]

    def _wake(self) -> None:
        if self._start is None and not self._is_closed:
            self._start = asyncio.get_running_loop().call_soon(self._start_due)

    def _start_due(self) -> None:
        """Start as many due deliveries as the limits allow, in turn by host and principal."""
        self._start = None
        started = not self._is_closed
        while started:
            started = False
            for place in list(self._due):
                if len(self._running) >= IN_FLIGHT:
                    return
                started |= self._start_one(place)

    def _start_one(self, place: Place) -> bool:
        """Start the first delivery of a principal to a host, if the principal is below its limits.

        A principal may have fewer running deliveries than there are free slots, in total and for the host. So one
        principal's slow endpoints never take the last slot, and several principals share the slots equally.
        """
        counts, (host, owner) = self._running_counts, place
        if counts[owner] >= IN_FLIGHT - len(self._running) or counts[place] >= IN_FLIGHT_PER_HOST - counts[host]:
            return False
        due = self._due.pop(place)
        message = next(iter(due))
        del due[message]
        if due:
            self._due[place] = due
        if not message.job.has_lease():
            return True
        message.is_running = True
        counts.update((host, owner, place))
        task = asyncio.create_task(self._attempt(message))
        self._running[task] = message
        task.add_done_callback(self._on_delivery_done)
        return True

    def _on_delivery_done(self, task: asyncio.Task[None]) -> None:
        message = self._running.pop(task)
        place = message.target.place
        for key in (*place, place):
            self._running_counts[key] -= 1
            if not self._running_counts[key]:
                del self._running_counts[key]
        self._wake()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A webhook delivery failed", exc_info=error)

    async def _attempt(self, message: OutgoingMessage) -> None:
        now, target = self.clock(), message.target
        message.first_attempt_at = message.first_attempt_at or now
        message.attempts += 1
        body = message.body()
        try:
            if len(body) > MAX_BODY:
                logger.warning("The event %s of %r is too large for webhooks", message.id, message.job.kind.name)
                answer = AttemptResult(413, "http_4xx")
            else:
                answer = await self._sender.send(target.record, target.url, message.id, body, now)
        finally:
            message.is_running = False
        message.job.settle(message, answer)

    async def close(self, seconds: float = 0.0) -> None:
        """Start no further deliveries, wait up to `seconds` for running ones, and stop the rest. Idempotent."""
        self._is_closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        await cancel_all(*self._running)
