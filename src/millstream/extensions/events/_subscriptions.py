"""Webhook subscriptions in the store, readable and writable by all workers.

The record of a subscription is sealed, because it contains the receiver's secret.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream import Principal
from millstream.extensions import ServerHost
from millstream.extensions.events._catalog import limit_error
from millstream.stores import Claim, Entry, StoreFull, read_again

VERIFIED_SECONDS = 24 * 3600.0
LEASE = 15.0
"""Seconds after which another worker may take over the deliveries of an unresponsive one."""
CHANGES = "events:changes"
"""The stream of changed subscriptions."""
_MAX_CHANGES = 1_000
_CHUNK = 200
_ATTEMPTS = 20


class WebhookSubscription(Struct, frozen=True, array_like=True):
    """One webhook subscription."""

    id: str
    name: str
    """Name of the event type."""
    arguments: bytes
    """Canonical JSON."""
    url: str
    secret: str
    expires: float
    """Unix time."""
    subject: str
    issuer: str
    client: str
    scopes: frozenset[str]
    since: str = ""
    """The initial cursor: the current one, or an older one for a replay. Cleared once a worker has started."""
    oldest: float = 0.0
    """Unix time of the oldest event to replay."""
    old_secret: str = ""
    """The previous secret, which also signs until `old_until`."""
    old_until: float = 0.0
    credential: str = ""
    """Revocation id of the last refresh's token, see `ServerHost.is_revoked`."""

    @property
    def principal(self) -> Principal:
        """The subscriber, with the scopes at that time."""
        return Principal(self.subject, self.issuer, self.client, self.scopes)


class Status(Struct, frozen=True, array_like=True):
    """Delivery status of a subscription."""

    last_delivery: float = 0.0
    last_error: str = ""
    failed_since: float = 0.0


class UndeliveredEvent(Struct, frozen=True, array_like=True):
    """An event that was sent, but that the endpoint hasn't accepted."""

    offset: int
    attempts: int
    due: float
    first: float
    """Unix time of the first attempt."""


class UndeliveredEvents(Struct, frozen=True, array_like=True):
    """The pending events of one subscription."""

    epoch: str
    events: list[UndeliveredEvent]


_encode = msgspec.msgpack.Encoder().encode
_decode_subscription = msgspec.msgpack.Decoder(WebhookSubscription).decode
_decode_status = msgspec.msgpack.Decoder(Status).decode
_decode_undelivered = msgspec.msgpack.Decoder(UndeliveredEvents).decode
_decode_expirations = msgspec.msgpack.Decoder(dict[str, float]).decode


def subscription_id(principal: Principal, url: str, name: str, arguments: bytes) -> str:
    """Return the id of a subscription, derived from its key. It's a routing handle, not a secret."""
    parts = (principal.binding, url.encode(), name.encode(), arguments)
    digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).hexdigest()
    return f"sub_{digest[:32]}"


class SubscriptionStore:
    """The subscriptions of all workers.

    Args:
        host: The running server.
        most: Maximum subscriptions in total.
        most_each: Maximum subscriptions of one principal.
    """

    def __init__(self, host: ServerHost, *, most: int, most_each: int) -> None:
        self._host = host
        self._map = host.map
        self._most = most
        self._most_each = most_each

    # Subscriptions

    async def get(self, name: str, id: str) -> tuple[WebhookSubscription | None, bytes | None]:
        """Return a subscription, and its sealed record for `replace`."""
        sealed = await self._map.get(_key(name, id))
        return self._open(id, sealed), sealed

    async def replace(self, new: WebhookSubscription, before: bytes | None) -> bool:
        """Save a subscription unless its record has changed since it was read. Return whether it was saved.

        Raises:
            ProtocolError: RESOURCE_EXHAUSTED; the store is full.
        """
        sealed = self._host.seal(_encode(new), new.id)
        ttl = max(1.0, new.expires - self._host.now())
        try:
            return await self._map.compare_and_set(_key(new.name, new.id), before, sealed, ttl)
        except StoreFull as error:
            raise limit_error("subscriptions") from error

    async def delete(self, name: str, id: str) -> bool:
        """Delete a subscription and its pending events. Return whether it existed."""
        kv = self._map
        found = await kv.delete(_key(name, id))
        await kv.delete(_undelivered_key(id))
        await kv.delete(_status_key(id))
        return found

    async def all(self, name: str) -> list[WebhookSubscription]:
        """Return the subscriptions of an event type. This scans the store."""
        keys = await self._map.keys(f"events:sub.{_tag(name)}.")
        found: list[WebhookSubscription] = []
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            for key, sealed in zip(chunk, await self._map.get_many(chunk), strict=True):
                subscription = self._open(key.rpartition(".")[2], sealed)
                if subscription is not None:
                    found.append(subscription)
        return found

    def _open(self, id: str, sealed: bytes | None) -> WebhookSubscription | None:
        if sealed is None:
            return None
        decrypted = self._host.unseal(sealed, id)
        return None if decrypted is None else _decode_subscription(decrypted)

    # Limits

    async def admit(self, principal: Principal, id: str, expires: float, names: Sequence[str]) -> None:
        """Add a subscription to the count of its principal.

        Raises:
            ProtocolError: RESOURCE_EXHAUSTED.
        """
        kv, key = self._map, f"events:of.{principal.binding.hex()}"
        for attempt in range(_ATTEMPTS):
            before = await read_again(kv, key, attempt)
            expirations, now = self._read_expirations(before)
            if id not in expirations:
                if len(expirations) >= self._most_each:
                    raise limit_error("subscriptions", self._most_each)
                if await self.count(names) >= self._most:
                    raise limit_error("subscriptions", self._most)
            expirations[id] = expires
            try:
                if await kv.compare_and_set(key, before, _encode(expirations), max(expirations.values()) - now + 1.0):
                    return
            except StoreFull as error:
                raise limit_error("subscriptions") from error
        raise limit_error("subscriptions")

    async def discount(self, principal: Principal, id: str) -> None:
        """Remove a subscription from the count of its principal."""
        kv, key = self._map, f"events:of.{principal.binding.hex()}"
        for attempt in range(_ATTEMPTS):
            before = await read_again(kv, key, attempt)
            expirations, now = self._read_expirations(before)
            if expirations.pop(id, None) is None:
                return
            after = _encode(expirations) if expirations else None
            if await kv.compare_and_set(key, before, after, max(expirations.values(), default=now) - now + 1.0):
                return

    def _read_expirations(self, record: bytes | None) -> tuple[dict[str, float], float]:
        """Return the expirations of a principal's subscriptions, and the present time."""
        now, saved = self._host.now(), {} if record is None else _decode_expirations(record)
        return {id: at for id, at in saved.items() if at > now}, now

    async def count(self, names: Sequence[str]) -> int:
        """Return the number of subscriptions by event type, as last counted by the delivering workers."""
        counts = await self._map.get_many([f"events:count.{_tag(name)}" for name in names])
        return sum(int(each) for each in counts if each is not None)

    async def put_count(self, name: str, count: int) -> None:
        """Save the number of subscriptions of an event type."""
        await self._map.put(f"events:count.{_tag(name)}", b"%d" % count, VERIFIED_SECONDS)

    # Verified endpoints

    async def is_verified(self, principal: Principal, url: str) -> bool:
        """Return whether an endpoint has confirmed the subscriptions of a principal."""
        return await self._map.get(_verified_key(principal, url)) is not None

    async def mark_verified(self, principal: Principal, url: str) -> None:
        """Record that an endpoint has confirmed the subscriptions of a principal."""
        await self._map.put(_verified_key(principal, url), b"1", VERIFIED_SECONDS)

    # Progress of deliveries

    async def position(self, name: str) -> str:
        """Return the delivery position of an event type as a cursor; empty before the first delivery."""
        return (await self._map.get(f"events:cursor.{_tag(name)}") or b"").decode()

    async def put_position(self, name: str, cursor: str) -> None:
        """Save the cursor up to which every event was accepted, dropped, or saved as pending."""
        await self._map.put(f"events:cursor.{_tag(name)}", cursor.encode(), 30 * VERIFIED_SECONDS)

    async def find_undelivered(self, ids: Sequence[str]) -> dict[str, UndeliveredEvents]:
        """Return the pending events of each subscription that has any."""
        found: dict[str, UndeliveredEvents] = {}
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            for id, value in zip(chunk, await self._map.get_many([_undelivered_key(id) for id in chunk]), strict=True):
                if value is not None:
                    found[id] = _decode_undelivered(value)
        return found

    async def put_undelivered(
        self, subscription: WebhookSubscription, epoch: str, events: list[UndeliveredEvent]
    ) -> None:
        """Save the pending events of a subscription."""
        if not events:
            await self._map.delete(_undelivered_key(subscription.id))
            return
        ttl = max(1.0, subscription.expires - self._host.now())
        await self._map.put(_undelivered_key(subscription.id), _encode(UndeliveredEvents(epoch, events)), ttl)

    async def status(self, id: str) -> Status:
        """Return the delivery status of a subscription."""
        value = await self._map.get(_status_key(id))
        return Status() if value is None else _decode_status(value)

    async def put_status(self, id: str, status: Status) -> None:
        """Save the delivery status of a subscription."""
        await self._map.put(_status_key(id), _encode(status), VERIFIED_SECONDS)

    # Leases

    async def lead(self, name: str) -> bool:
        """Take or renew the lease for the deliveries of an event type. Return whether this worker has it."""
        return not self._host.shared or await self._claim(name).keep()

    async def resign(self, name: str) -> None:
        """Release the lease."""
        if self._host.shared:
            await self._claim(name).leave()

    def _claim(self, name: str) -> Claim:
        return Claim(self._map, f"events:lease.{_tag(name)}", LEASE, owner=self._host.worker.encode())

    # Changes

    async def announce_change(self, name: str, id: str) -> None:
        """Notify the delivering worker of an event type that a subscription has changed."""
        data = f"{name}\0{id}".encode()
        await self._host.log.append(CHANGES, data, ttl=VERIFIED_SECONDS, max_entries=_MAX_CHANGES)

    def listen(self, on_change: Callable[[Entry], None], interrupted: Callable[[], None]) -> Callable[[], None]:
        """Call `on_change` for each change, and `interrupted` if changes may be missing. Return a stop function."""
        return self._host.log.listen(CHANGES, on_change, interrupted=interrupted)

    async def wait_until_listening(self) -> None:
        """Wait until all future changes by any worker will be received."""
        await self._host.log.wait_until_listening(CHANGES)


def rotate_secret(before: WebhookSubscription, secret: str, until: float) -> WebhookSubscription:
    """Return a subscription with a new secret. The old one also signs, until a Unix time."""
    if secret == before.secret:
        return before
    return replace(before, secret=secret, old_secret=before.secret, old_until=until)


def _tag(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:16]


def _key(name: str, id: str) -> str:
    return f"events:sub.{_tag(name)}.{id}"


def _undelivered_key(id: str) -> str:
    return f"events:owed.{id}"


def _status_key(id: str) -> str:
    return f"events:status.{id}"


def _verified_key(principal: Principal, url: str) -> str:
    return f"events:verified.{sha256(principal.binding + url.encode()).hexdigest()[:32]}"
