"""Delivery of new entries by an ordered consumer. JetStream pushes entries in order and numbers its messages.

The consumer receives the topics that are listened to, and the marks of this worker. A mark is a message that this
worker adds to the JetStream stream. When the consumer receives it, it has received all entries before it. If a number
or a heartbeat is missing, the consumer is re-created after the last received entry, so no entry is skipped.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Position
from millstream._stores.nats.link import JetStreamError, NatsLink, token
from millstream._stores.tail import Topics, Watchers
from millstream._tasks import has_failed

_HEARTBEAT = 1.0
_MAX_MISSED = 2.5
"""Heartbeat intervals without a message after which a consumer counts as failed."""
_PAUSE = 0.2
_MAX_FILTERS = 100
"""Maximum number of filters, whose cost for NATS grows with their square. Above it, they're made wider."""
_ALL = ""
_NONE = "."

_logger = logging.getLogger("millstream.stores")


class Consumer:
    """The consumer of one stream, for all its listeners in this worker."""

    def __init__(
        self,
        link: NatsLink,
        stream: str,
        base: str,
        mark_subject: str,
        mark: Callable[[str], Awaitable[int]],
        note: Callable[[int], None],
    ) -> None:
        """Start a consumer.

        Args:
            link: The connection.
            stream: The JetStream stream.
            base: The beginning of the subjects of the entries.
            mark_subject: The subject of this consumer's marks.
            mark: Adds a mark to the JetStream stream, and returns its sequence. The JetStream stream then exists.
            note: Called with the sequence of each entry, before the listeners.
        """
        # Configuration
        self._link = link
        self._stream = stream
        self._base = base
        self._mark_subject = mark_subject
        self._mark = mark
        self._note = note
        # Process
        self._listeners = Topics[Entry]()
        self._interrupted = Watchers()
        self.filters_by_topic = False
        """Whether a topic was ever listened to."""
        self._filters = frozenset[str]()
        """The filters of the consumer."""
        self.settled = asyncio.Event()
        """Whether the current consumer has the filters for all listeners."""
        self._seq = 0
        """The sequence of the last entry or mark."""
        self._number = 0
        """The number of the current consumer's last message."""
        self._broken = False
        self._changed = asyncio.Event()
        """Set when listeners have changed, or when the consumer is broken."""
        self._silent_at = 0.0
        """Time of the event loop at which a consumer that sends nothing counts as failed."""
        self._epoch = ""
        self._marks: dict[int, asyncio.Future[int]] = {}
        """By sequence: the sequence, or 0 if the consumer failed before it received the mark."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(has_failed)

    @property
    def is_used(self) -> bool:
        """Whether there are listeners."""
        return len(self._listeners) > 0

    def add(
        self, topic: str | None, hear: Callable[[Entry], None], interrupted: Callable[[], None] | None
    ) -> Callable[[], None]:
        """Call `hear` with each entry of a topic, as `Log.listen` does. Return a function that stops it."""
        self.filters_by_topic = self.filters_by_topic or topic is not None
        key = _key_for(topic)
        self._change(key)
        stop_hearing = self._listeners.add(key, hear)
        stop_interrupting = self._interrupted.add(interrupted)

        def stop() -> None:
            stop_hearing()
            stop_interrupting()
            self._change(key)

        return stop

    def stop(self) -> None:
        """Stop permanently."""
        self._listeners.clear()
        self._interrupted.clear()
        self._task.cancel()

    def restart(self) -> None:
        """Re-create the consumer after a lost connection."""
        self._broken = True
        self.settled.clear()
        self._changed.set()

    def _change(self, key: str) -> None:
        """Prepare for a topic that's followed now, or isn't anymore."""
        if key not in self._listeners:
            self.settled.clear()
            self._changed.set()

    async def _run(self) -> None:
        repeated = False
        while True:
            subscription: Subscription | None = None
            try:
                self._broken = False
                inbox = self._link.client.new_inbox()
                subscription = await self._link.subscribe(inbox, self._take)
                config, name = await self._create(inbox)
                if repeated:
                    # This consumer pushes entries appended since the last one ended, unless they were deleted.
                    self._interrupted.notify()
                repeated = True
                await self._follow(config, name)
            except (LocalError, JetStreamError, nats.errors.Error, OSError) as exc:
                _logger.debug("Re-creating a NATS consumer: %s", exc)
                await asyncio.sleep(_PAUSE)
            finally:
                self.settled.clear()
                for arrived in self._marks.values():
                    if not arrived.done():
                        arrived.set_result(0)
                if subscription is not None:
                    with suppress(nats.errors.Error, OSError):
                        await subscription.unsubscribe()

    async def _create(self, inbox: str) -> tuple[dict[str, Any], str]:
        """Create a consumer. Return its configuration and its name."""
        at = await self._mark(self._mark_subject)
        # Don't use the policy `new`: a restarted node re-creates the consumer and would skip entries.
        if self._epoch != self._link.epoch or not self._seq:
            self._epoch, self._seq = self._link.epoch, at
        self._number = 0
        config: dict[str, Any] = {
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(30e9),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._seq + 1,
        }
        return config, await self._configure(self._stream, config)

    async def _configure(self, path: str, config: dict[str, Any]) -> str:
        """Create or update a consumer with the filters for all listeners. Return its name."""
        filters = self._find_filters()
        body = {"stream_name": self._stream, "config": {**config, "filter_subjects": sorted(filters)}}
        made = await self._link.api(f"CONSUMER.CREATE.{path}", body)
        self._filters = filters
        if filters == self._find_filters() and not self._broken:
            self.settled.set()
        else:
            self._changed.set()
        return str(made["name"])

    async def _follow(self, config: dict[str, Any], name: str) -> None:
        """Keep the filters current until the consumer fails or its heartbeat is missing."""
        self._expect()
        while not self._broken:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._silent_at):
                    await self._changed.wait()
            if self._silent_at <= asyncio.get_running_loop().time():
                break
            self._changed.clear()
            # Without the mark, the consumer would continue where it last was, with older entries of added topics.
            if self._filters != self._find_filters() and await self.reach_mark():
                await self._configure(f"{self._stream}.{name}", config)
            elif not self._broken:
                self.settled.set()
        with suppress(JetStreamError, LocalError):
            await self._link.api(f"CONSUMER.DELETE.{self._stream}.{name}")

    def _find_filters(self) -> frozenset[str]:
        """Return the subjects of everything that's listened to, and of the marks. None overlaps another."""
        keys = {key for key in self._listeners if key != _NONE}
        firsts = {f"{key.partition('.')[0]}." for key in keys}
        if _ALL in keys or len(firsts) > _MAX_FILTERS:
            keys = {_ALL}
        elif len(keys) > _MAX_FILTERS:
            keys = firsts
        wide = {key for key in keys if key.endswith(".")}
        filters = {f"{self._base}.*.*.{key}>" for key in wide} | {
            f"{self._base}.*.*.{key}" for key in keys - wide - {_ALL} if f"{key.partition('.')[0]}." not in wide
        }
        return frozenset(filters | {self._mark_subject} | ({f"{self._base}.>"} if _ALL in keys else set()))

    async def reach(self) -> int:
        """Wait until a consumer has received everything that was appended before. Return that position."""
        while not (at := await self.reach_mark()):
            await self.settled.wait()
        return at

    async def reach_mark(self) -> int:
        """Wait until the consumer has received everything that was appended before. Return that position, or 0."""
        seq = await self._mark(self._mark_subject)
        if seq <= self._seq:
            return seq
        arrived = self._marks.setdefault(seq, asyncio.get_running_loop().create_future())
        await asyncio.wait([arrived], timeout=_HEARTBEAT * _MAX_MISSED)
        self._marks.pop(seq, None)
        if not arrived.done():
            self.restart()
            return 0
        return arrived.result()

    def _expect(self) -> None:
        """Expect a message or a heartbeat."""
        self._silent_at = asyncio.get_running_loop().time() + _HEARTBEAT * _MAX_MISSED

    async def _take(self, msg: Msg) -> None:
        self._expect()
        headers = msg.headers or {}
        if "Status" in headers:
            if msg.reply:  # flow control
                with suppress(nats.errors.Error, OSError):
                    await msg.respond(b"")
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
        if seq <= self._seq:
            return
        self._seq = seq
        if msg.subject != self._mark_subject:
            self._deliver(msg, seq)
            return
        for at, arrived in self._marks.items():
            if at <= seq and not arrived.done():
                arrived.set_result(at)

    def _deliver(self, msg: Msg, seq: int) -> None:
        self._note(seq)
        entry, (_, first, topic) = Entry(Position(self._epoch, seq), msg.data), msg.subject.rsplit(".", 2)
        for key in (_ALL, f"{first}.", f"{first}.{topic}"):
            self._listeners.notify(key, entry)


def _key_for(topic: str | None) -> str:
    """Return the key of the listeners to a topic, or to all topics with a first segment."""
    if topic is None:
        return _ALL
    if not topic:
        return _NONE
    first = token(topic.partition(".")[0])
    return f"{first}." if topic.endswith(".") else f"{first}.{token(topic)}"
