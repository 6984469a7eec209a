"""Webhooks: signed POST requests to callback URLs, the methods that manage the subscriptions, and their store.

Signatures follow Standard Webhooks:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. Any worker answers
`events/subscribe` and `events/unsubscribe`. The record of a subscription is sealed, because it contains the receiver's
secret.
"""

import asyncio
import binascii
import hmac
import secrets
import ssl
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field
from msgspec.structs import replace

from millstream import Principal
from millstream.extensions import CallContext, ServerHost, Share
from millstream.extensions.events._catalog import (
    Arguments,
    EventCatalog,
    EventType,
    callback_failed,
    forbidden_error,
    invalid,
    limit_error,
    timestamp,
    unknown_subscription,
    unsupported_error,
)
from millstream.extensions.events._event_methods import (
    Reader,
    check_admission,
    oldest_time,
    position,
    read_page,
    split_cursor,
)
from millstream.extensions.http_post import AddressCheck, PostFailed, Url, is_public, parse_url, post
from millstream.protocol import MALFORMED, decoder, encode
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


SECRET_PREFIX = "whsec_"  # noqa: S105  only the prefix
TIMEOUT = 5.0
"""Timeout of one attempt in seconds, including the connection."""
MAX_URL = 2048

Reason = Literal["", "connection_refused", "timeout", "tls_error", "http_4xx", "http_5xx", "challenge_failed"]
"""Reasons for a failed attempt: categories that reveal nothing about internal addresses."""


class AttemptResult(Struct, frozen=True):
    """The result of one attempt."""

    status: int = 0
    """HTTP status; 0 without a response."""
    reason: Reason = ""
    """Reason for a failure; empty if the endpoint accepted the message."""
    body: bytes = b""

    @property
    def final(self) -> bool:
        """Whether to stop: the endpoint accepted the message, or never will (410, 413)."""
        return not self.reason or self.status in (410, 413)


def read_secret(text: str) -> bytes:
    """Return the key of a ``whsec_…`` secret.

    Raises:
        ProtocolError: INVALID_PARAMS; it isn't base64 of 24 to 64 bytes.
    """
    key = b""
    if text.startswith(SECRET_PREFIX) and len(text) <= 128:
        try:
            key = b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
    if not 24 <= len(key) <= 64:
        raise invalid("delivery.secret must be whsec_ followed by base64 of 24 to 64 bytes")
    return key


def read_url(text: str) -> Url:
    """Return the parts of a callback URL.

    Raises:
        ProtocolError: INVALID_PARAMS; it isn't an https URL, or it contains a user name or a fragment.
    """
    wrong = invalid("delivery.url must be an https URL without user name and fragment")
    if len(text) > MAX_URL or not text.isascii():
        raise wrong
    try:
        url, parts = parse_url(text), urlsplit(text)
    except ValueError:
        raise wrong from None
    if url.scheme != "https" or "@" in parts.netloc or parts.fragment:
        raise wrong
    return url


def sign(message_id: str, seconds: int, body: bytes, keys: Sequence[bytes]) -> str:
    """Return the value of ``webhook-signature``: one signature for each key."""
    signed = b"%b.%d.%b" % (message_id.encode(), seconds, body)
    return " ".join("v1," + b64encode(hmac.digest(key, signed, sha256)).decode() for key in keys)


class WebhookSender(Struct, frozen=True):
    """Sends signed messages."""

    judge: AddressCheck = is_public
    """Returns whether an address is allowed."""
    tls: ssl.SSLContext | None = None
    """Context with the trusted certificates; the system's by default."""

    async def send(
        self,
        url: Url,
        body: bytes,
        *,
        message_id: str,
        subscription: str,
        keys: Sequence[bytes],
        now: float,
        owner: str,
    ) -> AttemptResult:
        """POST a message and return the outcome, including failures of the endpoint.

        Args:
            url: URL of the endpoint.
            body: JSON body.
            message_id: Id of the message, the same for each attempt.
            subscription: Id of the subscription.
            keys: Signing keys, newest first.
            now: Current Unix time.
            owner: The principal.
        """
        headers = {
            "content-type": "application/json",
            "user-agent": "millstream",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": sign(message_id, int(now), body, keys),
            "x-mcp-subscription-id": subscription,
        }
        try:
            reply = await post(url, headers, body, judge=self.judge, tls=self.tls, seconds=TIMEOUT, owner=owner)
        except PostFailed as failed:
            return AttemptResult(reason=failed.reason)
        if 200 <= reply.status < 300:
            return AttemptResult(reply.status, "", reply.body)
        return AttemptResult(reply.status, "http_5xx" if reply.status >= 500 else "http_4xx")


MIN_TTL = 60.0
DEFAULT_TTL = 3600.0
SECRET_GRACE = 900.0
"""Seconds after a rotation during which the old secret also signs."""
_MAX_VERIFICATIONS = 16
"""Maximum concurrent verifications on a worker, half of them per principal."""
_MAX_VERIFICATIONS_PER_HOST = 300
"""Maximum verifications of one host by a worker in `_PERIOD` seconds, half of them per principal."""
_PERIOD = 60.0
_MAX_HOSTS = 4096


class _Echo(Struct):
    challenge: str = ""


_decode_echo = decoder(_Echo)


class DeliveryParams(Struct):
    url: str
    mode: str = "webhook"
    secret: str = ""


class SubscribeParams(Struct, rename="camel"):
    """Params of `events/subscribe` and `events/unsubscribe`."""

    name: str
    delivery: DeliveryParams
    arguments: Raw = field(default_factory=lambda: Raw(b""))
    cursor: str | None = None
    max_age_ms: int | None = None
    ttl_ms: float | UnsetType | None = UNSET


class WebhookMethods(Struct, eq=False):
    """The methods that change webhook subscriptions."""

    _catalog: EventCatalog
    _host: ServerHost
    _subscriptions: SubscriptionStore
    _sender: WebhookSender
    """Sends the challenges."""
    _max_ttl: float
    """Maximum lifetime of a subscription, in seconds."""
    _verifications: Share = field(default_factory=lambda: Share(_MAX_VERIFICATIONS))
    _recent_verifications: dict[str, deque[tuple[float, str]]] = {}
    """Host -> times and principals of its recent challenges."""

    async def subscribe(self, params: SubscribeParams, ctx: CallContext) -> dict[str, Any]:
        """Create a subscription, or refresh the existing one with the same key.

        Raises:
            ProtocolError: The caller lacks permission, the request is invalid, or a limit or the endpoint prevents it.
        """
        principal, kind, arguments, id = self._key(params, ctx)
        url, secret = params.delivery.url, params.delivery.secret
        read_secret(secret)
        now = self._host.now()
        expires = min(now + self._choose_ttl(params.ttl_ms), principal.expires_at)
        oldest = oldest_time(params.max_age_ms, params.cursor, now)
        check_admission(self._host.hub, kind.name, principal)
        existing, _ = await self._subscriptions.get(kind.name, id)
        await self._subscriptions.admit(principal, id, expires, [each.name for each in self._catalog])
        try:
            if not await self._subscriptions.is_verified(principal, url):
                await self._verify(principal.id, url, secret, id)
                await self._subscriptions.mark_verified(principal, url)
            since, truncated = await self._start(kind, arguments, params.cursor or "", oldest, principal)
        except BaseException:
            if existing is None:
                await self._subscriptions.discount(principal, id)
            raise
        fresh = WebhookSubscription(
            id,
            kind.name,
            arguments.canonical,
            url,
            secret,
            expires,
            principal.subject,
            principal.issuer,
            principal.client,
            principal.scopes,
            since,
            oldest,
            credential=self._host.revocation_id(principal),
        )
        existing = await self._write(fresh, now)
        await self._subscriptions.announce_change(kind.name, id)
        granted: dict[str, Any] = {"id": id, "refreshBefore": timestamp(expires)}
        if existing is None:
            return {**granted, "cursor": since, "truncated": truncated}
        status = await self._subscriptions.status(id)
        return {
            **granted,
            "cursor": await self._watermark(existing, since),
            "truncated": False,
            "deliveryStatus": _describe_status(status),
        }

    async def unsubscribe(self, params: SubscribeParams, ctx: CallContext) -> dict[str, Any]:
        """End a subscription.

        Raises:
            ProtocolError: NOT_FOUND; there is no subscription with this key.
        """
        principal, kind, _, id = self._key(params, ctx)
        found = await self._subscriptions.delete(kind.name, id)
        await self._subscriptions.discount(principal, id)
        await self._subscriptions.announce_change(kind.name, id)
        if not found:
            raise unknown_subscription()
        return {}

    def _key(self, params: SubscribeParams, ctx: CallContext) -> tuple[Principal, EventType, Arguments, str]:
        principal = ctx.principal
        if principal is None:
            raise forbidden_error("webhooks require an authenticated caller")
        kind = self._catalog.visible(params.name, ctx.scopes)
        if params.delivery.mode != "webhook":
            raise unsupported_error("deliveryMode", params.delivery.mode[:50])
        read_url(params.delivery.url)
        arguments = kind.read_arguments(params.arguments)
        return (
            principal,
            kind,
            arguments,
            subscription_id(principal, params.delivery.url, kind.name, arguments.canonical),
        )

    def _choose_ttl(self, ttl_ms: float | UnsetType | None) -> float:
        """Return the lifetime of a subscription in seconds. Every subscription expires."""
        if ttl_ms is UNSET:
            return min(DEFAULT_TTL, self._max_ttl)
        if ttl_ms is None:
            return self._max_ttl
        if not ttl_ms > 0:
            raise invalid("ttlMs must be a positive number of milliseconds, or null")
        return min(max(ttl_ms / 1000, MIN_TTL), self._max_ttl)

    async def _start(
        self, kind: EventType, arguments: Arguments, cursor: str, too_old: float, principal: Principal
    ) -> tuple[str, bool]:
        """Return the cursor to start after, and whether events before it are missing."""
        hub = self._host.hub
        if not cursor:
            return position(hub, split_cursor(hub.last_event_id())[1]), False
        reader = Reader(kind, arguments, principal, too_old)
        page = await read_page(hub, kind.name, cursor, most=1, accepts=reader.accepts)
        if page.gap or reader.has_skipped:
            return (position(hub, page.events[0].offset - 1) if page.events else page.cursor), True
        return cursor, False

    async def _write(self, fresh: WebhookSubscription, now: float) -> WebhookSubscription | None:
        """Save a subscription. Return the one that it replaces."""
        for _ in range(_ATTEMPTS):
            before, sealed = await self._subscriptions.get(fresh.name, fresh.id)
            new = fresh
            if before is not None:
                new = replace(
                    rotate_secret(before, fresh.secret, now + SECRET_GRACE),
                    expires=fresh.expires,
                    scopes=fresh.scopes,
                    credential=fresh.credential,
                )
            if await self._subscriptions.replace(new, sealed):
                return before
        raise limit_error("subscriptions")

    async def _watermark(self, existing: WebhookSubscription, since: str) -> str:
        """Return the cursor up to which every event was accepted or dropped."""
        if existing.since:
            return existing.since
        undelivered = (await self._subscriptions.find_undelivered([existing.id])).get(existing.id)
        if undelivered is not None and undelivered.events:
            return f"{undelivered.epoch}.{min(each.offset for each in undelivered.events) - 1}"
        return await self._subscriptions.position(existing.name) or since

    async def _verify(self, owner: str, url: str, secret: str, id: str) -> None:
        """Check with a challenge that the endpoint agrees to receive deliveries.

        Raises:
            ProtocolError: CALLBACK_ENDPOINT_ERROR, or RESOURCE_EXHAUSTED after too many challenges.
        """
        target, now = read_url(url), asyncio.get_running_loop().time()
        recent = self._recent_verifications.setdefault(target.host, deque())
        while recent and recent[0][0] <= now - _PERIOD:
            recent.popleft()
        owned = sum(each == owner for _, each in recent)
        if len(recent) >= _MAX_VERIFICATIONS_PER_HOST or owned >= _MAX_VERIFICATIONS_PER_HOST // 2:
            raise limit_error("verifications of this host", _MAX_VERIFICATIONS_PER_HOST // 2)
        if not self._verifications.take(owner):
            raise limit_error("verifications", self._verifications.each)
        recent.append((now, owner))
        if len(self._recent_verifications) > _MAX_HOSTS:
            self._recent_verifications.pop(next(iter(self._recent_verifications)))
        challenge = secrets.token_urlsafe(32)
        try:
            answer = await self._sender.send(
                target,
                encode({"type": "verification", "challenge": challenge}),
                message_id=f"msg_verification_{secrets.token_hex(12)}",
                subscription=id,
                keys=(read_secret(secret),),
                now=self._host.now(),
                owner=owner,
            )
        finally:
            self._verifications.leave(owner)
        if answer.reason:
            raise callback_failed(answer.reason if not answer.status else "challenge_failed")
        try:
            echo = _decode_echo(answer.body).challenge
        except MALFORMED:
            echo = ""
        if not hmac.compare_digest(echo.encode(), challenge.encode()):
            raise callback_failed("challenge_failed")


def _describe_status(status: Status) -> dict[str, Any]:
    described: dict[str, Any] = {
        "active": True,
        "lastDeliveryAt": timestamp(status.last_delivery) if status.last_delivery else None,
        "lastError": status.last_error or None,
    }
    return {**described, "failedSince": timestamp(status.failed_since)} if status.failed_since else described
