"""Delivery of new entries by ordered consumers. JetStream pushes entries in order and numbers its messages.

If a number or a heartbeat is missing, the consumer is re-created after the last received entry, so no entry is skipped.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Position
from millstream._stores.nats.link import CONNECTION_ERRORS, NatsLink
from millstream._stores.tail import Topics, Watchers

_HEARTBEAT = 1.0
_MAX_MISSED = 2.5
"""Heartbeat intervals without a message after which a consumer counts as failed."""
_PAUSE = 0.2

_logger = logging.getLogger("millstream.stores")


class _Consumer:
    """The consumer of one subject, for all its listeners in this worker."""

    def __init__(
        self,
        link: NatsLink,
        stream: str,
        subject: str,
        ensure: Callable[[], Awaitable[None]],
        note: Callable[[str, int], None],
    ) -> None:
        # Configuration
        self._link = link
        self._note = note
        self._stream = stream
        self._subject = subject
        self._ensure = ensure
        # Process
        self.listeners = Topics[Entry]()
        self.interrupted = Watchers()
        self.ready = asyncio.Event()
        self._seq = 0
        """The sequence of the last entry."""
        self._number = 0
        """The number of the current consumer's last message."""
        self._broken = asyncio.Event()
        self._alive = False
        """Whether the consumer has sent anything since the last check."""
        self._epoch = ""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop permanently."""
        self.listeners.clear()
        self.interrupted.clear()
        self._task.cancel()

    def restart(self) -> None:
        """Re-create the consumer after a lost connection."""
        self._broken.set()

    async def _run(self) -> None:
        while True:
            subscription: Subscription | None = None
            try:
                self._broken.clear()
                inbox = self._link.client.new_inbox()
                subscription = await self._link.subscribe(inbox, self._take)
                name = await self._create(inbox)
                self.ready.set()
                await self._watch()
                with suppress(LocalError):
                    await self._link.api(f"CONSUMER.DELETE.{self._stream}.{name}")
            except LocalError as exc:
                _logger.debug("Re-creating a NATS consumer: %s", exc)
                await asyncio.sleep(_PAUSE)
            finally:
                if subscription is not None:
                    with suppress(*CONNECTION_ERRORS):
                        await subscription.unsubscribe()
            # The new consumer pushes entries appended since then, unless they were deleted.
            self.interrupted.notify()

    async def _create(self, inbox: str) -> str:
        await self._ensure()
        # Don't use the policy `new`: a restarted node re-creates the consumer and would skip entries.
        if self._epoch != self._link.epoch or not self._seq:
            last = await self._link.last(self._stream, self._subject)
            self._epoch, self._seq = self._link.epoch, last.seq if last is not None else 0
        self._number = 0
        config: dict[str, Any] = {
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "filter_subject": self._subject,
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(30e9),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._seq + 1,
        }
        body = {"stream_name": self._stream, "config": config}
        made = await self._link.api(f"CONSUMER.CREATE.{self._stream}", body)
        return str(made["name"])

    async def _watch(self) -> None:
        """Wait until the consumer fails or its heartbeat is missing."""
        while not self._broken.is_set():
            self._alive = False
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT * _MAX_MISSED):
                    await self._broken.wait()
            if not self._alive:
                return

    async def _take(self, msg: Msg) -> None:
        self._alive = True
        headers = msg.headers or {}
        if "Status" in headers:
            if msg.reply:  # flow control
                with suppress(LocalError):
                    await self._link.send(msg.reply, b"")
            elif int(headers.get("Nats-Last-Consumer", self._number)) != self._number:
                self._broken.set()
            return
        if self._broken.is_set():
            return
        parts = msg.reply.split(".")
        seq, number = (int(each) for each in (parts[5:7] if len(parts) == 9 else parts[7:9]))
        if number != self._number + 1:
            self._broken.set()
            return
        self._number = number
        if seq > self._seq:
            self._seq = seq
            self._note(self._subject, seq)
            self.listeners.notify("", Entry(Position(self._epoch, seq), msg.data))


class LogListeners:
    """All consumers of one worker."""

    def __init__(self, link: NatsLink, note: Callable[[str, int], None]) -> None:
        """Create listeners that call `note` with the subject and sequence of each entry first."""
        self._link = link
        self._note = note
        self._consumers: dict[str, _Consumer] = {}
        link.outages.add(self._restart)

    def add(
        self,
        stream: str,
        subject: str,
        hear: Callable[[Entry], None],
        interrupted: Callable[[], None] | None,
        ensure: Callable[[], Awaitable[None]],
    ) -> Callable[[], None]:
        """Call `hear` with each entry of a subject. Return a function that stops it."""
        consumer = self._consumers.get(subject)
        if consumer is None:
            consumer = self._consumers[subject] = _Consumer(self._link, stream, subject, ensure, self._note)
        stop_hearing = consumer.listeners.add("", hear)
        stop_interrupting = consumer.interrupted.add(interrupted)

        def stop() -> None:
            stop_hearing()
            stop_interrupting()
            if "" not in consumer.listeners and self._consumers.get(subject) is consumer:
                del self._consumers[subject]
                consumer.stop()

        return stop

    async def ready(self, subject: str) -> None:
        """Wait until the consumer exists. Return immediately if the subject has no listeners."""
        consumer = self._consumers.get(subject)
        if consumer is not None:
            await consumer.ready.wait()

    def _restart(self) -> None:
        for consumer in self._consumers.values():
            consumer.restart()

    def close(self) -> None:
        """Stop all consumers."""
        for consumer in list(self._consumers.values()):
            consumer.stop()
        self._consumers.clear()
