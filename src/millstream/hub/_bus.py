"""Bridges between the hub and a message bus, based on FastStream's public interface.

Both directions deliver at least once. A message from the bus is acknowledged after the hub has stored its event. An
event from the hub counts as sent after the broker has confirmed it. One worker at a time sends events and saves its
position in the store.
"""

import asyncio
import hashlib
import os
import random
import re
import string
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging import getLogger
from typing import Any

import msgspec

from millstream._protocol.errors import LocalError, ToolError
from millstream._stores.base import Gap, Position, Store, read_offset
from millstream._stores.health import LogOnce
from millstream.hub._admission import check_target
from millstream.hub._channels import check_pattern, is_pattern, matches, split_pattern
from millstream.hub._event import MAX_ID, Event, unpack
from millstream.hub._hub import Hub
from millstream.hub._journal import JOURNAL
from millstream.hub._limits import InvalidName

PREFETCH = 32
"""Maximum unacknowledged messages per bridge and worker."""
ATTEMPTS = 8
"""Attempts to publish a message to the hub before it's returned to the broker."""
CLAIM_AFTER = 60_000
"""Milliseconds after which a worker claims unacknowledged messages of another worker in a Redis stream."""
_PAGE = 100
_CURSOR_TTL = 30 * 86400.0
_MAX_LINES = 20
"""Maximum number of rejected messages that a worker logs per bridge in `_PERIOD` seconds."""
_LOG_PERIOD = 60.0
_BROKERS = {"kafka": "KafkaBroker", "nats": "NatsBroker", "rabbit": "RabbitBroker", "redis": "RedisBroker"}
"""FastStream package -> its broker class. A package is imported only by programs that create such a broker."""
_ORIGIN = "millstream-hub"
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

_logger = getLogger("millstream.hub.bus")


class InboundBridge:
    """A bridge from a bus to the hub: ``mcp.hub.from_bus(broker, "orders.*", to="orders.{key}")``."""

    def __init__(
        self, broker: Any, subject: str, to: str, *, name: str, group: str, options: Mapping[str, Any]
    ) -> None:
        """Declare the subscriber on the broker. Arguments and errors are those of `HubAccess.from_bus`."""
        self.broker: Any = broker
        self.subject: str = subject
        self.to: str = to
        self._name = name
        self._kind = kind_of(broker)
        check_pattern(subject)
        keyed = is_pattern(subject) or self._kind == "kafka"
        check_template(to, ("key", "subject") if keyed else ("subject",))
        self._hub: Hub | None = None
        self._lock = asyncio.Lock()
        self._rejection_log = LineLimit()
        for subscriber in _subscribers(self._kind, broker, subject, group, dict(options)):
            subscriber(self._receive)

    def open(self, hub: Hub | None) -> None:
        """Publish to this hub. With None, messages are returned to the broker until another hub is opened."""
        self._hub = hub
        self._lock = asyncio.Lock()

    async def _receive(self, message: Any) -> None:
        async with self._lock:  # One at a time, to keep the order of the bus.
            if message.headers.get(_ORIGIN) == self._name:
                await message.ack()
                return
            try:
                channel, text = self._read(message)
                published = await self._publish(channel, text, message_id(self._kind, message))
            except (ToolError, ValueError) as error:
                self._rejection_log.log("Rejected a message from %r: %s", self.subject, error)
                # Redis has no dead-letter queue and would redeliver the message forever.
                await (message.ack() if self._kind == "redis" else message.reject())
            else:
                await (message.ack() if published else message.nack())

    def _read(self, message: Any) -> tuple[str, str]:
        """Return the channel and the data.

        Raises:
            InvalidName, ValueError: The message can't become an event.
        """
        subject, record_key = address_of(self._kind, message)
        key = key_of(self.subject, subject)
        if record_key is not None and not is_pattern(self.subject):
            key = record_key.decode()
            if "{key}" in self.to and "." in key:
                raise InvalidName(f"The key {key[:80]!r} contains a dot, which would split it into two segments.")
        channel = self.to.format(key=key, subject=subject)
        check_target(channel)
        return channel, bytes(message.body).decode()

    async def _publish(self, channel: str, text: str, id: str | None) -> bool:
        """Publish a message. Return False if the store stays unavailable. The caller's lock delays later messages."""
        for attempt in range(ATTEMPTS):
            hub = self._hub
            if hub is None:
                return False
            try:
                await hub.publish(channel, text, id=id)
            except LocalError as error:
                _logger.debug("The hub couldn't store an event of %r: %s", self.subject, error)
                await asyncio.sleep(backoff(attempt))
            else:
                return True
        return False


class OutboundBridge:
    """A bridge from the hub to a bus: ``mcp.hub.to_bus(broker, "orders.*", to="orders.{key}")``."""

    def __init__(
        self, broker: Any, channels: str, to: str, *, name: str, group: str, options: Mapping[str, Any]
    ) -> None:
        """Check the arguments. Arguments and errors are those of `HubAccess.to_bus`."""
        self.broker: Any = broker
        self.channels: str = channels
        self.to: str = to
        self._kind = kind_of(broker)
        check_pattern(channels)
        if channels.startswith("$"):
            raise InvalidName(f"Channels that start with $ are reserved for the hub: {channels!r}.")
        check_template(to, ("key", "channel") if is_pattern(channels) else ("channel",))
        self._name = name
        self._options = _with_stream(self._kind, dict(options))
        self._rejection_log = LineLimit()
        digest = hashlib.sha256(f"{group} {self._kind} {channels} {to}".encode()).hexdigest()[:16]
        self._lease_key = f"bridge:lease.{digest}"
        self._cursor_key = f"bridge:cursor.{digest}"
        self._start_position: Position | None = None

    async def open(self, store: Store) -> None:
        """Save the end of the journal as the position, unless a position is already saved. Later events are sent even
        if the bus isn't reachable yet.

        Raises:
            LocalError: The store didn't respond.
        """
        newest = await store.log.newest(JOURNAL, 1)
        self._start_position = newest[-1].position if newest else None
        if self._start_position is not None:
            await store.kv.compare_and_set(self._cursor_key, None, _pack(self._start_position), _CURSOR_TTL)

    async def run(self, store: Store) -> None:
        """Send events while this worker has the lease, until cancelled."""
        attempt = 0
        outage = LogOnce(
            _logger, f"Events of {self.channels!r} can't be sent to the bus; retrying",
            f"Events of {self.channels!r} can be sent to the bus again.",
        )  # fmt: skip
        try:
            while True:
                with outage:
                    await self._forward(store)
                attempt = attempt + 1 if outage.lasts else 0
                await asyncio.sleep(backoff(attempt) if outage.lasts else store.workers.lease / 3)
        finally:
            if store.shared:
                me = store.workers.me.encode()
                with suppress(LocalError):
                    await store.kv.compare_and_set(self._lease_key, me, None, 1.0)

    async def _acquire_lease(self, store: Store) -> bool:
        """Acquire or renew the lease. Return whether this worker has it."""
        if not store.shared:
            return True
        me, lease = store.workers.me.encode(), store.workers.lease
        return await store.kv.compare_and_set(self._lease_key, me, me, lease) or (
            await store.kv.compare_and_set(self._lease_key, None, me, lease)
        )

    async def _forward(self, store: Store) -> None:
        """Send stored and new events of the journal while this worker has the lease."""
        if not await self._acquire_lease(store):
            return
        wakeup = asyncio.Event()
        stop = store.log.listen(JOURNAL, lambda _: wakeup.set(), interrupted=wakeup.set)
        try:
            await store.log.wait_until_listening(JOURNAL)
            position = await self._start(store)
            while await self._acquire_lease(store):
                wakeup.clear()
                try:
                    page = await store.log.read(JOURNAL, position, _PAGE)
                except Gap as loss:
                    position = loss.resume_from(position)
                    _logger.warning(
                        "Events of %r may be missing on the bus, because the journal dropped them.", self.channels
                    )
                    continue
                for entry in page:
                    await self._send(unpack(entry.data, entry.position.epoch, entry.position.offset))
                if page:
                    position = page[-1].position
                    await self._save(store, position)
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(store.workers.lease / 3):
                            await wakeup.wait()
        finally:
            stop()

    async def _start(self, store: Store) -> Position | None:
        """Return the saved position, or the end of the journal at startup if the store has lost it."""
        saved = await store.kv.get(self._cursor_key)
        if saved is None:
            return self._start_position
        epoch, _, digits = saved.decode().rpartition(".")
        return Position(epoch, read_offset(digits) or 1)

    async def _save(self, store: Store, position: Position) -> None:
        await store.kv.put(self._cursor_key, _pack(position), _CURSOR_TTL)

    async def _send(self, event: Event) -> None:
        if not matches(self.channels, event.channel) or event.data is None:
            return
        subject = self.to.format(key=key_of(self.channels, event.channel), channel=event.channel)
        if self._kind == "kafka" and not _TOPIC.fullmatch(subject):
            self._rejection_log.log(
                "Didn't send an event of %r: %s", event.channel, "Kafka has no topic with that name"
            )
            return
        headers = {_ORIGIN: self._name, "millstream-channel": event.channel, "millstream-event-id": event.id}
        if event.event is not None:
            headers["millstream-event"] = event.event
        body, options = parse_body(event.data), dict(self._options)
        if self._kind == "nats":
            # JetStream deduplicates by the first header, and FastStream reads the id from the second.
            headers |= {"Nats-Msg-Id": event.id, "message_id": event.id}
            options["subject"] = subject
        elif self._kind == "rabbit":
            options |= {"routing_key": subject, "message_id": event.id}
        else:
            options["topic" if self._kind == "kafka" else "stream"] = subject
        try:
            await self.broker.publish(body, headers=headers, **options)
        except Exception as error:  # each client library has its own errors, and all of them call for a retry
            raise LocalError(f"{type(self.broker).__name__} rejected an event: {error!r:.300}") from error


def _pack(position: Position) -> bytes:
    return f"{position.epoch}.{position.offset}".encode()


Bridge = InboundBridge | OutboundBridge


class LineLimit:
    """A rate limit for log lines that counts the omitted ones."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._began = -_LOG_PERIOD
        self._lines = 0

    def log(self, what: str, subject: str, reason: object) -> None:
        """Log a line unless the limit is reached."""
        now = self._clock() if self._clock is not None else asyncio.get_running_loop().time()
        if now - self._began >= _LOG_PERIOD:
            if self._lines > _MAX_LINES:
                _logger.warning("Omitted %d more lines about %r.", self._lines - _MAX_LINES, subject)
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= _MAX_LINES:
            _logger.warning(what, subject, str(reason)[:300])


# Names


def kind_of(broker: object) -> str:
    """Return the FastStream package of a broker.

    Raises:
        TypeError: The broker isn't supported.
    """
    for kind, name in _BROKERS.items():
        module = sys.modules.get(f"faststream.{kind}")
        if module is not None and isinstance(broker, getattr(module, name)):
            return kind
    supported = ", ".join(f"faststream.{kind}.{name}" for kind, name in _BROKERS.items())
    raise TypeError(f"A message bus must be a broker ({supported}), not {type(broker)}.")


def check_template(to: str, fields: tuple[str, ...]) -> None:
    """Check the template for names on the destination side.

    Raises:
        ValueError: The template has unknown fields or produces an invalid name.
    """
    try:
        parsed = list(string.Formatter().parse(to))
    except ValueError as error:
        raise ValueError(f"{to!r} isn't a valid name template: {error}. Use fields such as {{key}}.") from error
    for _, field, form, conversion in parsed:
        if field is not None and (field not in fields or form or conversion):
            allowed = " and ".join(f"{{{each}}}" for each in fields)
            hint = ". A key needs a wildcard in the source's name" if field == "key" else ""
            raise ValueError(f"{to!r} can use the fields {allowed}, not {{{field}}}{hint}.")
    check_target(to.format(**dict.fromkeys(fields, "key")))


def key_of(pattern: str, name: str) -> str:
    """Return the segments of a name from the pattern's first wildcard on, or an empty string without a wildcard.

    Raises:
        InvalidName: The pattern doesn't match the name.
    """
    if not matches(pattern, name):
        raise InvalidName(f"The pattern {pattern!r} doesn't match {name[:200]!r}.")
    segments, rest = split_pattern(pattern)
    parts = name.split(".")
    keys = [part for segment, part in zip(segments, parts, strict=False) if segment == "*"]
    return ".".join(keys + parts[len(segments) :] if rest else keys)


def check_loop(bridges: "list[Bridge]", new: "Bridge") -> None:
    """Refuse a bridge that would send events back to their source.

    Raises:
        ValueError: The new bridge and another one form a loop.
    """
    for each in bridges:
        inbound, outbound = (each, new) if isinstance(each, InboundBridge) else (new, each)
        if not isinstance(inbound, InboundBridge) or not isinstance(outbound, OutboundBridge):
            continue
        channel = inbound.to.format(key="key", subject=inbound.subject.replace("*", "key").replace(">", "key"))
        subject = outbound.to.format(key="key", channel=channel)
        if (
            inbound.broker is outbound.broker
            and matches(outbound.channels, channel)
            and matches(inbound.subject, subject)
        ):
            raise ValueError(
                f"from_bus publishes {inbound.subject!r} to channels that to_bus sends to {outbound.to!r}, so "
                "every message would loop. Use other names for one of them."
            )


def backoff(attempt: int) -> float:
    """Return the delay before the next attempt, with jitter."""
    return random.uniform(0.5, 1.0) * min(0.1 * (1 << min(attempt, 10)), 5.0)  # noqa: S311  no secret


def parse_body(data: bytes) -> Any:
    """Return the body as FastStream encodes it: JSON text for an object or list, otherwise the text."""
    if data[:1] in (b"{", b"["):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(data)
    return data.decode()


# Differences between brokers


def address_of(kind: str, message: Any) -> tuple[str, bytes | None]:
    """Return the subject of a message, and its key if the broker has keys."""
    raw = message.raw_message
    if kind == "kafka":
        return raw.topic, raw.key or b""
    if kind == "redis":
        return raw["channel"], None
    return raw.routing_key if kind == "rabbit" else raw.subject, None


def message_id(kind: str, message: Any) -> str | None:
    """Return an id that is the same for each delivery of a message, or None."""
    raw = message.raw_message
    found: str | None
    if kind == "kafka":
        found = f"{raw.topic}/{raw.partition}/{message.message_id}"
    elif kind == "redis":
        found = f"{raw['channel']}/{raw['message_ids'][0].decode()}"
    elif kind == "rabbit":
        found = raw.message_id  # FastStream generates an id if the publisher set none
    else:
        found = message.headers.get("Nats-Msg-Id") or f"{raw.metadata.stream}/{raw.metadata.sequence.stream}"
    if found and (len(found) > MAX_ID or not found.isprintable()):
        return hashlib.sha256(found.encode()).hexdigest()
    return found or None


async def _keep_raw(message: Any) -> Any:
    """Pass the undecoded message to the handler, with its body as bytes."""
    return message


def _subscribers(kind: str, broker: Any, subject: str, group: str, options: dict[str, Any]) -> list[Any]:
    """Declare consumers of a subject, shared by a group's workers, with manual acknowledgment and bounded prefetch."""
    from faststream import AckPolicy  # noqa: PLC0415  the extra

    name = (
        f"{group}-{re.sub('[^A-Za-z0-9]+', '-', subject).strip('-')}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"
    )
    common: dict[str, Any] = {"ack_policy": AckPolicy.MANUAL, "decoder": _keep_raw, "no_reply": True}
    if kind == "nats":
        from faststream.nats import PullSub  # noqa: PLC0415

        durable = {"durable": name, "pull_sub": PullSub(batch_size=PREFETCH)}
        return [broker.subscriber(subject, **common, **durable | _with_stream(kind, options))]
    if kind == "rabbit":
        from faststream.rabbit import Channel, RabbitQueue  # noqa: PLC0415

        queue = RabbitQueue(name, durable=True, routing_key=subject.replace(">", "#"))
        binding = {"queue": queue, "channel": Channel(prefetch_count=PREFETCH)}
        return [broker.subscriber(**common, **binding | _with_stream(kind, options))]
    if kind == "kafka":
        read = {"group_id": group, "auto_offset_reset": "earliest"} | options
        if is_pattern(subject):
            return [broker.subscriber(pattern=_regex(subject), **common, **read)]
        return [broker.subscriber(subject, **common, **read)]
    from faststream.redis import StreamSub  # noqa: PLC0415

    if is_pattern(subject):
        raise ValueError(
            f"Redis streams have no wildcards, so {subject!r} can't be used. Bridge each stream by its name."
        )
    consumer = f"{os.uname().nodename if hasattr(os, 'uname') else 'worker'}-{os.getpid()}"
    streams = (
        StreamSub(subject, group=group, consumer=consumer, max_records=PREFETCH),
        StreamSub(subject, group=group, consumer=consumer, max_records=PREFETCH, min_idle_time=CLAIM_AFTER),
    )
    return [broker.subscriber(stream=each, **common, **options) for each in streams]


def _with_stream(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with durable storage: a NATS stream or a RabbitMQ exchange.

    Raises:
        ValueError: No stream is named.
    """
    if kind == "nats" and "stream" not in options:
        raise ValueError('NATS stores messages only in a stream. Name one: stream="ORDERS".')
    if kind == "rabbit" and "exchange" not in options:
        from faststream.rabbit import ExchangeType, RabbitExchange  # noqa: PLC0415

        return options | {"exchange": RabbitExchange("amq.topic", type=ExchangeType.TOPIC, declare=False)}
    return options


def _regex(subject: str) -> str:
    """Return a regular expression for the topics that a pattern matches."""
    parts = {"*": "[^.]+", ">": ".+"}
    return "^" + r"\.".join(parts.get(each) or re.escape(each) for each in subject.split(".")) + "$"
