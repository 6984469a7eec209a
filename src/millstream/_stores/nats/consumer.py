"""Delivery of new entries by an ordered consumer. JetStream pushes entries in order and numbers its messages.

The consumer receives the topics that are listened to, and the marks of this worker. A mark is a message that this
worker adds to the JetStream stream. When the consumer receives it, it has received all entries before it. If a number
or a heartbeat is missing, the consumer is re-created after the last received entry, so no entry is skipped.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Position
from millstream._stores.nats.link import CONNECTION_ERRORS, NatsLink, read_token, token
from millstream._stores.tail import Listeners

_HEARTBEAT = 1.0
_MAX_MISSED = 2.5
"""Heartbeat intervals without a message after which a consumer counts as failed."""
WAIT_SECONDS = 5.0
"""Maximum time to wait for a consumer, or for a message that it should receive, in seconds."""
_FRESH_SECONDS = 1.0
"""Seconds after a message for which the consumer has little to look through."""
_PAUSE = 0.2
_MAX_FILTERS = 200
"""Maximum number of filters, whose cost for NATS grows with their square. Above it, they're made wider."""

_logger = logging.getLogger("millstream.stores")


class View(Struct, frozen=True):
    """The messages of a stream, or of an index."""

    name: str
    stream: str
    """The JetStream stream."""
    kind: str
    subject: str
    ttl: str
    """The name of the header with the view's time to live."""

    @property
    def base(self) -> str:
        return self.subject.removesuffix(".>")

    @property
    def seal(self) -> str:
        """The subject of a stream's last message."""
        return f"{self.base}.*.end.*.*"


class Consumer:
    """The consumer of one stream, for all its listeners in this worker."""

    def __init__(
        self,
        link: NatsLink,
        view: View,
        listeners: Listeners[Entry],
        touch: Callable[[str, View, float], Awaitable[int]],
        note: Callable[[View, int], None],
    ) -> None:
        """Start a consumer.

        Args:
            link: The connection.
            view: The stream.
            listeners: The listeners to this stream and others.
            touch: Adds a message with a subject, and returns its sequence. The JetStream stream then exists.
            note: Called with the sequence of each entry, before the listeners.
        """
        # Configuration
        self._link = link
        self._view = view
        self._listeners = listeners
        self._note = partial(note, view)
        self._mark_subject = f"{link.address.namespace}.touch.{view.kind}.{secrets.token_hex(8)}"
        self.mark = partial(touch, self._mark_subject, view, 0.0)
        """Adds a mark, and returns its sequence."""
        # Process
        self.created = asyncio.Event()
        """Set when the first consumer exists."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the current consumer has failed, and until there's a new one."""
        self.failed.set_result(None)
        self._config: dict[str, Any] = {}
        self._name = ""
        self._filters = frozenset[str]()
        """The filters of the consumer; empty while they're unknown."""
        self._lock = asyncio.Lock()
        """Serializes changes of the filters."""
        self.seq = 0
        """The sequence of the last entry or mark."""
        self._number = 0
        """The number of the current consumer's last message."""
        self._broken = False
        self._alive = False
        """Whether the consumer has sent anything since the last check."""
        self._epoch = ""
        self._received = asyncio.Event()
        self._received_at = 0.0
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop permanently."""
        self.restart()
        self._task.cancel()

    def restart(self) -> None:
        """Re-create the consumer, because it has failed."""
        self._broken = True
        if not self.failed.done():
            self.failed.set_result(None)

    async def _run(self) -> None:
        while True:
            subscription: Subscription | None = None
            try:
                self._broken = False
                inbox = self._link.client.new_inbox()
                subscription = await self._link.subscribe(inbox, self._take)
                await self._create(inbox)
                # This consumer pushes entries appended since the last one failed, unless they were deleted.
                self._listeners.interrupt(self._view.name)
                self.created.set()
                await self._watch()
                await self._link.send(f"$JS.API.CONSUMER.DELETE.{self._view.stream}.{self._name}", b"")
            except (LocalError, TimeoutError) as exc:
                _logger.debug("Re-creating a NATS consumer: %s", exc)
                await asyncio.sleep(_PAUSE)
            finally:
                if subscription is not None:
                    with suppress(*CONNECTION_ERRORS):
                        await subscription.unsubscribe()
            self._listeners.interrupt(self._view.name)

    async def _create(self, inbox: str) -> None:
        at = await self.mark()
        # Don't use the policy `new`: a restarted node re-creates the consumer and would skip entries.
        if self._epoch != self._link.epoch or not self.seq:
            self._epoch, self.seq = self._link.epoch, at
        self._number = 0
        self._config = {
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(30e9),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.seq + 1,
        }
        async with asyncio.timeout(WAIT_SECONDS):  # NATS may have chosen a node that has just failed
            await self._configure("create")
            while self._filters != self._find_filters():
                await self._configure("update")
        self.failed = asyncio.get_running_loop().create_future()
        if self._broken:
            self.restart()

    async def _configure(self, action: str) -> None:
        """Create or update the consumer with filters for all listeners."""
        filters, self._filters = self._find_filters(), frozenset[str]()
        config = {**self._config, "filter_subjects": sorted(filters)}
        body = {"stream_name": self._view.stream, "config": config, "action": action}
        path = f"{self._view.stream}.{self._name}" if action == "update" else self._view.stream
        self._name = (await self._link.api(f"CONSUMER.CREATE.{path}", body))["name"]
        self._filters = filters

    async def _watch(self) -> None:
        """Wait until the consumer fails or its heartbeat is missing."""
        while not self.failed.done():
            self._alive = False
            await asyncio.wait([self.failed], timeout=_HEARTBEAT * _MAX_MISSED)
            if not self._alive:
                self.restart()

    async def set_filters(self) -> None:
        """Filter by the topics that are listened to now."""
        async with self._lock:
            if self._filters == self._find_filters():
                return
            if self._received_at + _FRESH_SECONDS < asyncio.get_running_loop().time():
                # Without a mark, NATS would continue where it last sent something, with old entries of added topics.
                await self.receive(await self.mark())
            try:
                await self._configure("update")
            except LocalError:
                self.restart()
                raise

    def _find_filters(self) -> frozenset[str]:
        """Return the subjects of everything that's listened to, and of the marks. None overlaps another."""
        topics = self._listeners.topics(self._view.name)
        named = {topic for topic in topics if topic}
        firsts = {f"{topic.partition('.')[0]}." for topic in named}
        if None in topics or len(firsts) > _MAX_FILTERS:
            return frozenset((self._mark_subject, f"{self._view.base}.>"))
        if len(named) > _MAX_FILTERS:
            named = firsts
        wide = {topic for topic in named if topic.endswith(".")}
        filters = {self._mark_subject}
        for topic in named:
            first, _, _ = topic.partition(".")
            if topic in wide or f"{first}." not in wide:
                filters.add(f"{self._view.base}.*.*.{token(first)}.{'>' if topic in wide else token(topic)}")
        return frozenset(filters)

    async def receive(self, seq: int) -> None:
        """Wait until the consumer has received everything up to a sequence, because there is a mark behind it."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while self.seq < seq:
                    self._received.clear()
                    await self._received.wait()
        except TimeoutError:
            self.restart()

    async def _take(self, msg: Msg) -> None:
        self._alive = True
        headers = msg.headers or {}
        if "Status" in headers:
            if reply := msg.reply or headers.get("Nats-Consumer-Stalled"):  # flow control
                with suppress(LocalError):
                    await self._link.send(reply, b"")
            elif int(headers.get("Nats-Last-Consumer", self._number)) != self._number:
                self.restart()
            return
        if self._broken:
            return
        parts = msg.reply.split(".")
        seq, number = (int(each) for each in (parts[5:7] if len(parts) == 9 else parts[7:9]))
        if number != self._number + 1:
            self.restart()
            return
        self._number = number
        if seq <= self.seq:
            return
        self.seq = seq
        self._received.set()
        self._received_at = asyncio.get_running_loop().time()
        if msg.subject == self._mark_subject:
            return
        self._note(seq)
        if self.failed.done():  # topics may be missing, so the listeners will be told to read
            return
        topic = read_token(msg.subject.rpartition(".")[2])
        self._listeners.push(self._view.name, topic, Entry(Position(self._epoch, seq), msg.data))
