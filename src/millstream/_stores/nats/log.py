"""The log in JetStream, with one JetStream stream per kind and one message per entry.

The subject of a message identifies the entry's stream, its index, whether it's the last one, and its topic:
``<namespace>.log.<kind>.<stream>.<index>.<end>.<first segment of the topic>.<topic>``. So a stream and an index are two
views of the same messages, and an entry has one position in both: the sequence in the JetStream stream, which increases
but isn't consecutive. Each view records a floor, up to which its entries are dropped. Messages that both views have
dropped are purged.

A new leader may briefly answer reads before it has applied everything that the last one acknowledged. If a read doesn't
find an entry that this worker has appended, received, read, or been asked to read after, it's repeated behind a
barrier: a leader that acknowledges a message has applied all messages before it. An index may have no recent entries,
so its readers look for the newest entry of its JetStream stream instead.

An ordered consumer delivers new entries: JetStream pushes them in order and numbers its messages. It receives the
topics that are listened to, and the marks of this worker. A mark is a message that this worker adds to the JetStream
stream. When the consumer receives it, it has received all entries before it. If a number or a heartbeat is missing, the
consumer is re-created after the last received entry, so no entry is skipped.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._recent import Recent
from millstream._stores.base import (
    INDEX_KINDS,
    PAGE_BYTES,
    Entry,
    EntryRepeated,
    Gap,
    Index,
    Position,
    StoreFull,
    StoreUnavailable,
    StreamSealed,
)
from millstream._stores.memory.log import REPEATED, kind_of, within
from millstream._stores.nats.link import (
    CONNECTION_ERRORS,
    TOO_LARGE,
    WRONG_LAST,
    JetStreamError,
    NatsLink,
    StreamMessage,
    read_token,
    token,
)
from millstream._stores.tail import Listeners
from millstream._tasks import Tasks, has_failed
from millstream._troubles import LogOnce

ROOM = 512 * 1024 * 1024
"""Maximum bytes per kind on each node."""
MAX_AGE = 31 * 86400.0
UNSEALED = frozenset({"bus:all", "hub:journal", "presence:events"})
"""Streams that are never sealed, and that all workers append to often. Only speed depends on this list: an append to
another stream carries two headers with which NATS checks for a seal.
"""
_TTL = "Millstream-TTL"
_INDEX_TTL = "Millstream-Index-TTL"
_ID = "Nats-Msg-Id"
_NO_INDEX = "-"
_MAX_VIEWS = 10_000
"""Maximum number of streams whose expiry a worker tracks."""
_MAX_SWEPT = 1_000
"""Maximum number of streams dropped per sweep."""
_AT_ONCE = 16
_LOOK_AGAIN = 60.0
_TRIM_EVERY = 64
_PART = 8
"""A stream is trimmed each time that its maximum length divided by this number has been appended."""
_LAG = 0.02
"""Seconds before a read from a lagging replica is repeated."""
_MAX_NEWEST = 10_000
"""Maximum number of subjects whose newest sequence a worker tracks."""


_HEARTBEAT = 1.0
_MAX_MISSED = 2.5
"""Heartbeat intervals without a message after which a consumer is treated as failed."""
WAIT_SECONDS = 5.0
"""Maximum time to wait for a consumer, or for a message that it should receive, in seconds."""
_FRESH_SECONDS = 1.0
"""Seconds after a message during which the consumer has little to scan."""
_PAUSE = 0.2
_MAX_FILTERS = 200
"""Maximum number of filters. Their cost in NATS grows quadratically. Beyond the maximum, filters are widened."""

_logger = logging.getLogger("millstream.stores")


class View(Struct, frozen=True):
    """The messages of a stream or an index."""

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

    def __init__(self, link: NatsLink, view: View, log: "NatsLog") -> None:
        """Start a consumer of a stream, for the listeners of a log."""
        self._link = link
        self._view = view
        self._log = log
        self._mark_subject = f"{link.address.namespace}.touch.{view.kind}.{secrets.token_hex(8)}"
        self.mark = partial(log.touch_subject, self._mark_subject, view, 0.0)
        """Adds a mark and returns its sequence."""
        self.created = asyncio.Event()
        """Set when the first consumer exists."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Is done while there is no consumer: from a failure until the next one is created."""
        self.failed.set_result(None)
        self._config: dict[str, Any] = {}
        self._name = ""
        self._filters = frozenset[str]()
        """The consumer's filters. Empty while they're unknown."""
        self._lock = asyncio.Lock()
        """Serializes changes to the filters."""
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
        """Stop reading, permanently."""
        self.restart()
        self._task.cancel()

    def restart(self) -> None:
        """Create the consumer again after a failure."""
        self._broken = True
        if not self.failed.done():
            self.failed.set_result(None)

    async def _run(self) -> None:
        trouble = LogOnce(
            self._link.troubles,
            "A stream can't be followed; retrying",
            "A stream can be followed again.",
            catches=Exception,
        )
        while True:
            with trouble:
                await self._consume(trouble)
            if trouble.lasts:
                await asyncio.sleep(_PAUSE)
            self._log.interrupt(self._view.name)

    async def _consume(self, trouble: LogOnce) -> None:
        """Follow the stream with one consumer, until it fails."""
        subscription: Subscription | None = None
        try:
            self._broken = False
            inbox = self._link.client.new_inbox()
            subscription = await self._link.subscribe(inbox, self._take)
            await self._create(inbox)
            # This consumer pushes entries appended since the last one failed, unless they were deleted.
            self._log.interrupt(self._view.name)
            self.created.set()
            trouble.end()
            await self._watch()
            await self._link.send(f"$JS.API.CONSUMER.DELETE.{self._view.stream}.{self._name}", b"")
        except (LocalError, TimeoutError) as exc:
            _logger.debug("Re-creating a NATS consumer: %s", exc)
            await asyncio.sleep(_PAUSE)
        finally:
            if subscription is not None:
                with suppress(*CONNECTION_ERRORS):
                    await subscription.unsubscribe()

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
        """Set the filters to the topics that currently have listeners."""
        async with self._lock:
            if self._filters == self._find_filters():
                return
            if self._received_at + _FRESH_SECONDS < asyncio.get_running_loop().time():
                # Without a mark, NATS would resume at the last entry that it sent, and send old entries of added
                # topics.
                await self.receive(await self.mark())
            try:
                await self._configure("update")
            except LocalError:
                self.restart()
                raise

    def _find_filters(self) -> frozenset[str]:
        """Return the subjects for marks and all followed topics, without overlaps."""
        topics = self._log.topics(self._view.name)
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
        """Wait until the consumer has received everything up to a sequence. A mark must follow it."""
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
        self._log.note(self._view, seq)
        if self.failed.done():  # topics may be missing, so the listeners will be notified to read the stream
            return
        topic = read_token(msg.subject.rpartition(".")[2])
        self._log.push(self._view.name, topic, Entry(Position(self._epoch, seq), msg.data))


class TrimMark(Struct, frozen=True, array_like=True):
    """The end of a view's dropped part."""

    seq: int = 0
    """The last dropped sequence."""
    following: int = 0
    """The first sequence that remained, or 0 if none did. In that case, no older position is valid."""


class _ViewCache(Struct):
    """The cached state of a stream that a worker appends to."""

    until: float
    appended: int = 0
    """Appends of this worker since the stream was trimmed."""


_encode_floor = msgspec.msgpack.Encoder().encode
_decode_floor = msgspec.msgpack.Decoder(TrimMark).decode


class NatsLog(Listeners[Entry]):
    """`Log` in JetStream."""

    def __init__(self, link: NatsLink) -> None:
        super().__init__()
        self._link = link
        self._namespace = link.address.namespace
        self._consumers: dict[str, Consumer] = {}
        """Consumers by stream."""
        link.outages.watch(self._restart)
        self._seen: Recent[str, int] = Recent(_MAX_NEWEST)
        """The newest known sequence by subject of the view."""
        self._newest_seqs: dict[str, int] = {}
        """The newest known sequence by JetStream stream."""
        self._views: Recent[tuple[str, str], _ViewCache] = Recent(_MAX_VIEWS)
        self._trims = Tasks()

    async def close(self) -> None:
        """Stop listening and trimming and clear the caches."""
        self.remove_listeners()
        for consumer in self._consumers.values():
            consumer.stop()
        self._consumers.clear()
        trims, self._trims = self._trims, Tasks()
        await trims.close()
        self._views.clear()
        self._seen.clear()
        self._newest_seqs.clear()

    # Appending

    async def append(
        self,
        stream: str,
        data: bytes,
        *,
        ttl: float,
        max_entries: int,
        index: Index | None = None,
        seal: bool = False,
        once: str = "",
        owner: str = "",
        topic: str = "",
    ) -> Position:
        link, view = self._link, self._main(stream)
        if len(data) > link.max_bytes:
            raise StoreFull(
                f"The entry is {len(data)} bytes, but the NATS server allows at most {link.max_bytes} bytes."
            )
        place, first = token(index.stream) if index is not None else _NO_INDEX, token(topic.partition(".")[0])
        subject = f"{view.base}.{place}.{'end' if seal else 'entry'}.{first}.{token(topic)}"
        headers = self._headers(view, ttl, index, once)
        known, seq, repeated = await self._begin(view), 0, False
        while not seq:
            try:
                seq, repeated = await self._publish(view, subject, data, dict(headers))
            except JetStreamError as exc:
                if exc.code == TOO_LARGE:
                    raise StoreFull("The entry exceeds the size that the NATS server allows.") from exc
                if exc.code not in WRONG_LAST:
                    raise
                if await self._is_sealed(view):
                    raise StreamSealed("The stream has ended.") from exc
                await asyncio.sleep(_LAG)
        if once and repeated:
            raise EntryRepeated(REPEATED)
        known.until = max(known.until, link.time() + ttl)
        self._count(view, seq, max_entries)
        if index is not None:
            self._count(self._index(index.stream, view.kind), seq, index.max_entries)
        return Position(link.epoch, seq)

    async def _publish(self, view: View, subject: str, data: bytes, headers: dict[str, str]) -> tuple[int, bool]:
        return await self._link.publish(view.stream, subject, data, headers, config=lambda: self._config(view.kind))

    def _headers(self, view: View, ttl: float, index: Index | None, once: str) -> dict[str, str]:
        """Return the headers of an entry."""
        headers = {_TTL: repr(ttl)}
        if once:
            headers[_ID] = sha256(f"{view.name}\0{once}".encode()).hexdigest()[:32]
        if index is not None:
            headers[_INDEX_TTL] = repr(index.ttl)
        if view.name not in UNSEALED:
            headers["Nats-Expected-Last-Subject-Sequence"] = "0"
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = view.seal
        return headers

    def note(self, view: View, seq: int) -> None:
        """Remember the newest sequence of a view."""
        if seq > self._seen.get(view.subject, 0):
            self._seen.keep(view.subject, seq)
            self._newest_seqs[view.stream] = max(seq, self._newest_seqs.get(view.stream, 0))

    async def _begin(self, view: View) -> _ViewCache:
        """Delete what remains of an expired stream. Return this worker's cached state of the view."""
        key = (view.name, view.kind)
        known = self._views.get(key)
        if known is None or known.until <= self._link.time():
            last, lives = await self._find(view, view.subject)
            if last is not None and not lives:
                await self._raise_floor(view, TrimMark(last.seq))
            known = self._views.setdefault(key, _ViewCache(0.0))
        self._views.keep(key, known)
        return known

    async def _is_sealed(self, view: View) -> bool:
        """Return whether a live stream is sealed. Remove the seal of an expired stream."""
        end, lives = await self._find(view, view.seal)
        if end is None or lives:
            return lives
        await self._raise_floor(view, TrimMark(end.seq))
        await self._link.purge(view.stream, view.seal, before=end.seq + 1)
        return False

    def _count(self, view: View, seq: int, most: int) -> None:
        """Count an append, and trim the view in the background when due."""
        self.note(view, seq)
        known = self._views.setdefault((view.name, view.kind), _ViewCache(0.0))
        known.appended += 1
        if known.appended >= max(_TRIM_EVERY, most // _PART):
            known.appended = 0
            self._trims.spawn(self._trim(view, most)).add_done_callback(has_failed)  # retried after further appends

    async def _trim(self, view: View, most: int) -> None:
        """Raise the floor of a view to just below its newest entries."""
        last, floor = await self._ends(view)
        if last is None:
            return
        low = floor.seq + 1
        begin = await self._begin_of_newest(view, low, last.seq, most)
        if begin > low:
            await self._raise_floor(view, TrimMark(begin - 1, begin))

    async def _raise_floor(self, view: View, floor: TrimMark) -> None:
        """Record the floor of a view and purge messages that no other view needs."""
        link, subject = self._link, self._beside("floor", view)
        while True:
            found = await link.last(view.stream, subject)
            now = TrimMark() if found is None else _decode_floor(found.data)
            if now.seq > floor.seq or (now.seq == floor.seq and (floor.following or not now.following)):
                return
            headers = {"Nats-Expected-Last-Subject-Sequence": str(found.seq if found else 0), "Nats-Rollup": "sub"}
            try:
                await self._publish(view, subject, _encode_floor(floor), headers)
                break
            except JetStreamError as exc:
                if exc.code not in WRONG_LAST:
                    raise
        await self._purge(view, floor.seq)

    async def _purge(self, view: View, upto: int) -> None:
        """Delete messages up to a sequence that no view needs anymore."""
        link = self._link
        if view.ttl != _INDEX_TTL:
            await link.purge(view.stream, f"{view.base}.{_NO_INDEX}.>", before=upto + 1)
            return
        # Purge an index stream by stream, each only up to that stream's own floor.
        for subject in await link.subjects(view.stream, view.subject):
            main = self._main(read_token(subject.split(".")[3]))
            both = min(upto, (await self._floor(main)).seq)
            if both:
                await link.purge(view.stream, subject, before=both + 1)

    # Reading

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        link = self._link
        at = after.offset if after is not None and after.epoch == link.epoch else 0
        view, last, floor = await self._look(stream, at)
        if last is None:
            if after is None:
                return []
            raise Gap(link.epoch, None)
        # Also read the entry at the position. If it exists, no later entry is missing.
        expected, found = at if at > floor.seq else floor.following, list[StreamMessage]()
        if after is None or (at and expected and floor.seq <= at <= last.seq):
            found = await self._read(view, max(at, floor.seq + 1), last.seq, limit + 1, max_bytes)
        if after is not None:
            if not found or found[0].seq != expected:
                oldest = await link.first(view.stream, view.subject, floor.seq + 1)
                newest = Position(link.epoch, last.seq)
                raise Gap(link.epoch, Position(link.epoch, oldest.seq) if oldest else None, newest)
            if expected == at:
                found = found[1:]
        return within(map(self._entry, found[:limit]), max_bytes)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        view, last, floor = await self._look(stream)
        if last is None:
            return []
        if limit == 1:
            return [self._entry(last)]
        begin = await self._begin_of_newest(view, floor.seq + 1, last.seq, limit)
        found: list[StreamMessage] = []
        while not found or found[-1].seq < last.seq:
            found += await self._read(view, found[-1].seq + 1 if found else begin, last.seq, limit, max_bytes)
            del found[:-limit]
        return within(map(self._entry, reversed(found)), max_bytes)[::-1]

    async def _begin_of_newest(self, view: View, low: int, last: int, limit: int) -> int:
        """Return the sequence of a message from which on at least `limit` messages remain, but seldom twice as many.

        If that may be the oldest message, return `low`.
        """
        span = limit
        while last - span > low:
            begin, count = await self._link.count_from(view.stream, view.subject, last - span)
            if count >= limit:
                return begin
            span *= 2
        return low

    async def _read(self, view: View, begin: int, last: int, count: int, max_bytes: int) -> list[StreamMessage]:
        """Return messages from `begin` up to `count`, `max_bytes`, or the sequence `last` reported by the leader."""
        link, found, size, tries = self._link, list[StreamMessage](), 0, 0
        while True:
            page = await link.batch(view.stream, view.subject, begin, count - len(found), max_bytes - size + 65536)
            found += page
            size += sum(len(message.data) for message in page)
            if len(found) >= count or size >= max_bytes or (found and found[-1].seq >= last):
                return found
            if page:
                begin = page[-1].seq + 1
                continue
            tries += 1
            if tries > 3 and await link.first(view.stream, view.subject, begin) is None:
                return found  # trimmed since the leader answered
            if tries > 500:
                raise StoreUnavailable("No replica of the NATS store has caught up.")
            await asyncio.sleep(_LAG)

    def _entry(self, message: StreamMessage) -> Entry:
        return Entry(Position(self._link.epoch, message.seq), message.data)

    async def _look(self, name: str, at_least: int = 0) -> tuple[View, StreamMessage | None, TrimMark]:
        """Return a view, its newest message (None if the stream is unknown), and its floor.

        The newest message is at or after the sequence `at_least` if such a message was acknowledged.
        """
        kind = kind_of(name)
        for view in (self._main(name), self._index(name, token(INDEX_KINDS.get(kind, kind)))):
            last, floor = await self._newest(view, at_least)
            if last is not None:
                lives = last.seq > floor.seq and await self._lives(view, last)
                return view, last if lives else None, floor
        return self._main(name), None, TrimMark()

    async def _newest(self, view: View, at_least: int) -> tuple[StreamMessage | None, TrimMark]:
        seen, known = self._seen.get(view.subject, 0), self._newest_seqs.get(view.stream, 0)
        late = (
            known
            and view.ttl == _INDEX_TTL
            and not await self._link.first(view.stream, f"{self._namespace}.log.>", known)
        )
        last, floor = await self._ends(view)
        newest = max(floor.seq, last.seq if last is not None else 0)
        if late or newest < seen or (last is not None and newest < at_least):
            await self.touch_subject(f"{self._namespace}.touch.{view.kind}.{token('')}", view, 0.0)
            last, floor = await self._ends(view)
            if max(floor.seq, last.seq if last is not None else 0) < seen == self._seen.get(view.subject):
                del self._seen[view.subject]  # JetStream dropped it to free space
        if last is not None:
            self.note(view, last.seq)
        return last, floor

    async def _find(self, view: View, subject: str) -> tuple[StreamMessage | None, bool]:
        """Return the newest message of a view's subject, and whether it's live and above the floor."""
        last, floor = await asyncio.gather(self._link.last(view.stream, subject), self._floor(view))
        return last, last is not None and last.seq > floor.seq and await self._lives(view, last)

    async def _ends(self, view: View) -> tuple[StreamMessage | None, TrimMark]:
        return await asyncio.gather(self._link.last(view.stream, view.subject), self._floor(view))

    async def _lives(self, view: View, last: StreamMessage) -> bool:
        """Return whether a view is still live."""
        now, until = self._link.time(), last.at + float(last.headers[view.ttl])
        if until > now:
            return True
        touched = await self._link.last(view.stream, self._beside("touch", view))
        return touched is not None and touched.at + float(touched.headers[_TTL]) > now

    async def _floor(self, view: View) -> TrimMark:
        found = await self._link.last(view.stream, self._beside("floor", view))
        return TrimMark() if found is None else _decode_floor(found.data)

    async def touch(self, stream: str, ttl: float) -> bool:
        view, last, _ = await self._look(stream)
        if last is None:
            return False
        await self.touch_subject(self._beside("touch", view), view, ttl)
        return True

    async def touch_subject(self, subject: str, view: View, ttl: float) -> int:
        """Add an empty entry, such as a mark, and return its sequence number. The JetStream stream exists then."""
        headers = {_TTL: repr(ttl), "Nats-TTL": str(int(ttl) + 2), "Nats-Rollup": "sub"}
        seq, _ = await self._publish(view, subject, b"", headers)
        return seq

    async def trim(self, stream: str) -> None:
        view, last, _ = await self._look(stream)
        if last is not None:
            await self._raise_floor(view, TrimMark(last.seq))
            if view.ttl != _INDEX_TTL:
                await self._is_sealed(view)

    # Listening

    @override
    def _follow(self, channel: str) -> None:
        stream = channel.partition("\0")[0]
        if stream not in self._consumers:
            self._consumers[stream] = Consumer(self._link, self._main(stream), self)

    @override
    def _leave(self, channel: str) -> None:
        stream = channel.partition("\0")[0]
        if not self.topics(stream) and stream in self._consumers:
            self._consumers.pop(stream).stop()

    async def wait_until_listening(self, stream: str) -> Position | None:
        consumer = self._consumers.get(stream)
        if consumer is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await consumer.created.wait()
        if self.topics(stream) == {None}:
            return None
        failed: asyncio.Future[Any] = consumer.failed
        work = asyncio.create_task(self._settle(consumer, stream))
        work.add_done_callback(has_failed)
        try:
            await asyncio.wait([failed, work], return_when=asyncio.FIRST_COMPLETED)
            # A consumer that's created again notifies its listeners, which then read the stream.
            return None if failed.done() else work.result()
        finally:
            work.cancel()

    async def _settle(self, consumer: Consumer, stream: str) -> Position | None:
        await consumer.set_filters()
        # A new leader may not know the newest entry yet. One that has acknowledged a mark does.
        mark = await consumer.mark()
        _, last, _ = await self._look(stream)
        if last is None:
            return None
        if last.seq > max(mark, consumer.seq):
            await consumer.mark()
        await consumer.receive(last.seq)
        return Position(self._link.epoch, last.seq)

    def _restart(self) -> None:
        for consumer in self._consumers.values():
            consumer.restart()

    # Sweeping

    async def sweep(self) -> None:
        """Drop streams of this worker that have expired."""
        now = self._link.time()
        expired = [key for key, known in self._views.items() if known.until and known.until < now]
        for start in range(0, min(len(expired), _MAX_SWEPT), _AT_ONCE):
            await asyncio.gather(*(self._expire(key, now) for key in expired[start : start + _AT_ONCE]))

    async def _expire(self, key: tuple[str, str], now: float) -> None:
        known, view = self._views.pop(key, None), self._main(key[0])
        last, lives = await self._find(view, view.subject)
        if known is None or last is None:
            return
        if lives:  # another worker has appended, or touched it
            self._views.setdefault(key, _ViewCache(now + _LOOK_AGAIN, known.appended))
        else:
            await self._raise_floor(view, TrimMark(last.seq))
            await self._is_sealed(view)

    # Names

    def _main(self, name: str) -> View:
        kind = token(kind_of(name))
        subject = f"{self._namespace}.log.{kind}.{token(name)}.>"
        return View(name, f"{self._namespace}-log-{kind}", kind, subject, _TTL)

    def _index(self, name: str, home: str) -> View:
        subject = f"{self._namespace}.log.{home}.*.{token(name)}.>"
        return View(name, f"{self._namespace}-log-{home}", home, subject, _INDEX_TTL)

    def _beside(self, what: str, view: View) -> str:
        """Return the subject of a view's metadata record."""
        return f"{self._namespace}.{what}.{view.kind}.{token(view.name)}"

    def _config(self, kind: str) -> dict[str, Any]:
        return {
            "subjects": [f"{self._namespace}.{each}.{kind}.>" for each in ("log", "floor", "touch")],
            "max_bytes": ROOM,
            "max_age": int(MAX_AGE * 1e9),
            "discard": "old",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
        }
