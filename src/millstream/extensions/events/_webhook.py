"""Webhooks: signed POST requests to callback URLs, the methods that manage the subscriptions, and their store.

Signatures follow Standard Webhooks:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. Any worker answers
`events/subscribe` and `events/unsubscribe`. The record of a subscription is sealed, because it contains the receiver's
secret.
"""

import hmac
import secrets
import ssl
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Literal
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import replace

from millstream import Principal, ProtocolError
from millstream.extensions import CallContext, Host, Share, format_time
from millstream.extensions.events._catalog import (
    CALLBACK_ENDPOINT_ERROR,
    NOT_FOUND,
    UNSUPPORTED_OPTION,
    EventCatalog,
    Reader,
    forbidden_error,
    invalid,
    limit_error,
)
from millstream.extensions.events._event_methods import (
    ReadParams,
    check_admission,
    open_reader,
    position,
    read_page,
)
from millstream.extensions.http_post import AddressCheck, PostFailed, Url, is_public, parse_url, post
from millstream.middleware import Limiter, Rate
from millstream.protocol import EVENTS, MALFORMED, Confidential, Json, decoder, encode
from millstream.stores import Map, StoreFull, read_again

VERIFIED_SECONDS = 24 * 3600.0
LEASE = 15.0
"""Seconds after which another worker can take over an unresponsive worker's deliveries."""
CHANGES = "events:changes"
"""The stream of changed subscriptions."""
_MAX_CHANGES = 1_000
_CHUNK = 200
_ATTEMPTS = 20


class WebhookSubscription(Confidential, Struct, frozen=True, array_like=True):
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
    principal: Principal
    """The subscriber, with the scopes at that time."""
    since: str = ""
    """The initial cursor: the current one, or an older one for a replay. Cleared when a worker has started."""
    oldest: float = 0.0
    """Unix time of the oldest event to replay."""
    old_secret: str = ""
    """The previous secret, which also signs until `old_until`."""
    old_until: float = 0.0
    credential: str = ""
    """Revocation id of the last refresh's token (see `Host.is_revoked`)."""
    has_message_ids: bool = False
    """Whether ``webhook-id`` identifies the message, not the event."""
    refreshed_at: float = 0.0
    """Unix time of the last `events/subscribe`."""

    def is_suspended(self, status: "Status") -> bool:
        """Return whether deliveries were suspended after the last refresh."""
        return status.suspended_at > self.refreshed_at

    def message_id(self, event_id: str) -> str:
        """Return the ``webhook-id`` of an event's message, the same for each attempt and after a restart."""
        if not self.has_message_ids:
            return event_id
        return f"msg_{sha256(f'{self.id} {event_id}'.encode()).hexdigest()[:32]}"


class Status(Struct, frozen=True, array_like=True):
    """Delivery status of a subscription."""

    last_delivery: float = 0.0
    last_error: str = ""
    failed_since: float = 0.0
    suspended_at: float = 0.0
    """Unix time at which deliveries were suspended, or 0. The next refresh resumes them."""


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


class SubscriptionStore(Struct):
    """The subscriptions of all workers."""

    _host: Host
    _map: Map
    _most: int
    """Maximum subscriptions in total."""
    _most_each: int
    """Maximum subscriptions per principal."""

    # Subscriptions

    async def get(self, name: str, id: str) -> tuple[WebhookSubscription | None, bytes | None]:
        """Return a subscription, and its sealed record for `replace`."""
        sealed = await self._map.get(_key(name, id))
        return self._open(id, sealed), sealed

    async def replace(self, new: WebhookSubscription, before: bytes | None) -> bool:
        """Save a subscription unless its record has changed since it was read. Return whether it was saved.

        Raises:
            StoreFull: The store is full.
        """
        sealed = self._host.seal(_encode(new), new.id)
        ttl = max(1.0, new.expires - self._host.now())
        return await self._map.compare_and_set(_key(new.name, new.id), before, sealed, ttl)

    async def delete(self, principal: Principal, name: str, id: str) -> bool:
        """Delete a subscription and its pending events. Return whether it existed."""
        kv = self._map
        found = await kv.delete(_key(name, id))
        await kv.delete(f"{_UNDELIVERED}{id}")
        await kv.delete(f"{_STATUS}{id}")
        await self.count_until(principal, id, 0.0)
        return found

    async def all(self, name: str) -> list[WebhookSubscription]:
        """Return the subscriptions of an event type. This scans the store."""
        keys = await self._map.keys(_key(name, ""))
        values = zip(keys, await self._get_many(keys), strict=True)
        found = [self._open(key.rpartition(".")[2], sealed) for key, sealed in values]
        return [each for each in found if each is not None]

    def _open(self, id: str, sealed: bytes | None) -> WebhookSubscription | None:
        decrypted = None if sealed is None else self._host.unseal(sealed, id)
        return None if decrypted is None else _decode_subscription(decrypted)

    async def _get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(keys), _CHUNK):
            found += await self._map.get_many(keys[start : start + _CHUNK])
        return found

    # Limits

    async def count_until(self, principal: Principal, id: str, expires: float, names: Sequence[str] = ()) -> None:
        """Count a subscription of a principal until it expires, or no longer if `expires` is 0.

        Raises:
            ProtocolError: RESOURCE_EXHAUSTED.
            StoreFull: The store is full.
        """
        kv, key = self._map, f"events:of.{principal.binding.hex()}"
        for attempt in range(_ATTEMPTS):
            before, now = await read_again(kv, key, attempt), self._host.now()
            saved = {} if before is None else _decode_expirations(before)
            expirations = {each: at for each, at in saved.items() if at > now}
            known = expirations.pop(id, None)
            if expires:
                if known is None and len(expirations) >= self._most_each:
                    raise limit_error("subscriptions", self._most_each)
                if known is None and await self.count(names) >= self._most:
                    raise limit_error("subscriptions", self._most)
                expirations[id] = expires
            elif known is None:
                return
            after = _encode(expirations) if expirations else None
            if await kv.compare_and_set(key, before, after, max(expirations.values(), default=now) - now + 1.0):
                return
        if expires:
            raise limit_error("subscriptions")

    async def count(self, names: Sequence[str]) -> int:
        """Return the number of subscriptions by event type, as last counted by the delivering workers."""
        counts = await self._map.get_many([f"events:count.{tag_of(name)}" for name in names])
        return sum(int(each) for each in counts if each is not None)

    async def put_count(self, name: str, count: int) -> None:
        """Save the number of subscriptions to an event type."""
        await self._map.put(f"events:count.{tag_of(name)}", b"%d" % count, VERIFIED_SECONDS)

    # Progress of deliveries

    async def position(self, name: str) -> str:
        """Return the delivery position of an event type as a cursor, or an empty string before the first delivery."""
        return (await self._map.get(f"events:cursor.{tag_of(name)}") or b"").decode()

    async def put_position(self, name: str, cursor: str) -> None:
        """Save the cursor up to which every event was accepted, dropped, or saved as pending."""
        await self._map.put(f"events:cursor.{tag_of(name)}", cursor.encode(), 30 * VERIFIED_SECONDS)

    async def find_undelivered(self, ids: Sequence[str]) -> dict[str, UndeliveredEvents]:
        """Return the pending events of each subscription that has any."""
        values = zip(ids, await self._get_many([f"{_UNDELIVERED}{id}" for id in ids]), strict=True)
        return {id: _decode_undelivered(value) for id, value in values if value is not None}

    async def put_undelivered(
        self, subscription: WebhookSubscription, epoch: str, events: list[UndeliveredEvent]
    ) -> None:
        """Save the pending events of a subscription."""
        key = f"{_UNDELIVERED}{subscription.id}"
        if not events:
            await self._map.delete(key)
            return
        ttl = max(1.0, subscription.expires - self._host.now())
        await self._map.put(key, _encode(UndeliveredEvents(epoch, events)), ttl)

    async def status(self, id: str) -> Status:
        """Return the delivery status of a subscription."""
        value = await self._map.get(f"{_STATUS}{id}")
        return Status() if value is None else _decode_status(value)

    async def put_status(self, id: str, status: Status) -> None:
        """Save the delivery status of a subscription."""
        await self._map.put(f"{_STATUS}{id}", _encode(status), VERIFIED_SECONDS)

    async def announce_change(self, name: str, id: str) -> None:
        """Notify the delivering worker of an event type that a subscription has changed."""
        data = f"{name}\0{id}".encode()
        await self._host.log.append(CHANGES, data, ttl=VERIFIED_SECONDS, max_entries=_MAX_CHANGES)


def tag_of(name: str) -> str:
    """Return the name of an event type as part of a key."""
    return sha256(name.encode()).hexdigest()[:16]


def _key(name: str, id: str) -> str:
    return f"events:sub.{tag_of(name)}.{id}"


_UNDELIVERED = "events:owed."
_STATUS = "events:status."
SECRET_PREFIX = "whsec_"  # noqa: S105  only the prefix
TIMEOUT = 5.0
"""Timeout of one attempt in seconds, including the connection."""
MAX_URL = 2048
RECEIVER_PATH = "/.well-known/mcp-webhook-receiver.json"

Reason = Literal["", "connection_refused", "timeout", "tls_error", "http_4xx", "http_5xx", "challenge_failed"]
"""Categories of failed attempts. They don't reveal anything about internal addresses."""


class AttemptResult(Struct, frozen=True):
    """The result of one attempt."""

    status: int = 0
    """HTTP status, or 0 without a response."""
    reason: Reason = ""
    """Reason for a failure, or empty if the endpoint accepted the message."""
    body: bytes = b""

    @property
    def final(self) -> bool:
        """Whether to stop: the endpoint accepted the message, or never will (410, 413)."""
        return not self.reason or self.status in (410, 413)


def read_secret(text: str) -> bytes:
    """Return the key of a ``whsec_…`` secret.

    Raises:
        ProtocolError: INVALID_PARAMS. It isn't base64 of 24 to 64 bytes.
    """
    key = b""
    with suppress(ValueError):
        key = b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    if not text.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise invalid("delivery.secret must be whsec_ followed by base64 of 24 to 64 bytes")
    return key


def read_url(text: str) -> Url:
    """Return the parts of a callback URL.

    Raises:
        ProtocolError: INVALID_PARAMS. It isn't an https URL, or it contains a user name or a fragment.
    """
    with suppress(ValueError):
        url = parse_url(text)
        if url.scheme == "https" and len(text) <= MAX_URL and text.isascii() and "#" not in text:
            return url
    raise invalid("delivery.url must be an https URL without a user name or fragment")


class WebhookSender(Struct, frozen=True):
    """Sends signed messages."""

    judge: AddressCheck = is_public
    """Returns whether an address is allowed."""
    tls: ssl.SSLContext | None = None
    """Context with the trusted certificates, by default the system's."""

    async def send(
        self, subscription: WebhookSubscription, url: Url, message_id: str, body: bytes, now: float
    ) -> AttemptResult:
        """POST a message and return the outcome, including failures of the endpoint.

        Args:
            subscription: The subscription, with its secrets and its principal, whose share the request uses.
            url: URL of the endpoint.
            message_id: Id of the message, the same for each attempt.
            body: JSON body.
            now: Current Unix time.
        """
        signed = b"%b.%d.%b" % (message_id.encode(), now, body)
        keys = subscription.secret, subscription.old_secret if now < subscription.old_until else ""
        signatures = [hmac.digest(read_secret(each), signed, sha256) for each in keys if each]
        headers = {
            "content-type": "application/json",
            "user-agent": "millstream",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": " ".join(f"v1,{b64encode(each).decode()}" for each in signatures),
            "x-mcp-subscription-id": subscription.id,
        }
        owner = subscription.principal.id
        try:
            reply = await post(url, headers, body, judge=self.judge, tls=self.tls, seconds=TIMEOUT, owner=owner)
        except PostFailed as failed:
            return AttemptResult(reason=failed.reason)
        if 200 <= reply.status < 300:
            return AttemptResult(reply.status, "", reply.body)
        return AttemptResult(reply.status, "http_5xx" if reply.status >= 500 else "http_4xx")

    async def is_declared_receiver(self, url: Url, owner: Principal) -> bool:
        """Return whether the origin of an endpoint declares, at its well-known path, that the endpoint accepts
        deliveries.

        Args:
            url: URL of the endpoint.
            owner: The principal whose share the request uses.
        """
        with suppress(PostFailed, *MALFORMED):
            well_known = parse_url(url.origin + RECEIVER_PATH)
            headers = {"accept": "application/json", "user-agent": "millstream"}
            reply = await post(
                well_known, headers, b"", method="GET", judge=self.judge, tls=self.tls, seconds=TIMEOUT, owner=owner.id
            )
            if reply.status == 200:
                return any(_covers(each, url.target) for each in _decode_receivers(reply.body).receivers)
        return False


def _covers(prefix: str, target: str) -> bool:
    """Return whether a declared path covers the path of a URL, which must be in its normal form."""
    path = target.partition("?")[0]
    decoded = unquote(path)
    if not prefix.startswith("/") or "\\" in decoded or not {".", ".."}.isdisjoint(decoded.split("/")):
        return False
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


MIN_TTL = 60.0
DEFAULT_TTL = 3600.0
SECRET_GRACE = 900.0
"""Seconds after a rotation during which the old secret also signs."""
_MAX_VERIFICATIONS = 16
"""Maximum concurrent verifications on a worker, half of them per principal."""
_MAX_VERIFICATIONS_PER_HOST = 300
"""Maximum verifications per host, worker, and minute, half of them per principal."""


class _Echo(Struct):
    challenge: str = ""


_decode_echo = decoder(_Echo)


class _Receivers(Struct):
    """The document of an origin that accepts webhooks."""

    receivers: list[str] = []


_decode_receivers = decoder(_Receivers)


class DeliveryParams(Confidential, Struct):
    url: str
    mode: str = "webhook"
    secret: str = ""


class SubscribeParams(ReadParams, kw_only=True):
    """Params of `events/subscribe` and `events/unsubscribe`."""

    delivery: DeliveryParams
    ttl_ms: float | UnsetType | None = UNSET


class WebhookMethods(Struct):
    """The methods that change webhook subscriptions."""

    _catalog: EventCatalog
    _host: Host
    _subscriptions: SubscriptionStore
    _sender: WebhookSender
    """Sends the challenges."""
    _max_ttl: float
    """Maximum lifetime of a subscription, in seconds."""
    _verifications: Share = field(default_factory=lambda: Share(_MAX_VERIFICATIONS))
    _host_limit: Limiter = field(
        default_factory=lambda: Limiter("verifications", Rate(_MAX_VERIFICATIONS_PER_HOST, 60))
    )
    _owner_limit: Limiter = field(
        default_factory=lambda: Limiter("verifications", Rate(_MAX_VERIFICATIONS_PER_HOST // 2, 60))
    )

    async def subscribe(self, params: SubscribeParams, ctx: CallContext) -> Json:
        """Create a subscription, or refresh the existing one with the same key.

        Raises:
            ProtocolError: The caller lacks permission, the request is invalid, or a limit or the endpoint prevents it.
        """
        principal, reader, id = self._key(params, ctx)
        read_secret(params.delivery.secret)
        subscriptions, now = self._subscriptions, self._host.now()
        expires = min(now + self._choose_ttl(params.ttl_ms), principal.expires_at)
        check_admission(self._host.hub, reader)
        fresh = WebhookSubscription(
            id,
            params.name,
            reader.arguments.canonical,
            params.delivery.url,
            params.delivery.secret,
            expires,
            Principal(principal.subject, principal.issuer, principal.client, principal.scopes),
            oldest=reader.oldest,
            credential=self._host.revocation_id(principal),
            has_message_ids=EVENTS in ctx.client.extensions,
            refreshed_at=now,
        )
        existing, _ = await subscriptions.get(params.name, id)
        try:
            await subscriptions.count_until(principal, id, expires, [each.name for each in self._catalog])
            await self._verify(fresh)
            since, truncated = await self._start(reader, params.cursor or "")
            existing = await self._write(replace(fresh, since=since), now)
        except BaseException as error:
            if existing is None:
                await subscriptions.count_until(principal, id, 0.0)
            if isinstance(error, StoreFull):
                raise limit_error("subscriptions") from error
            raise
        await subscriptions.announce_change(params.name, id)
        granted: Json = {"id": id, "refreshBefore": format_time(expires)}
        if existing is None:
            return {**granted, "cursor": since, "truncated": truncated}
        return {
            **granted,
            "cursor": await self._watermark(existing, since),
            "truncated": False,
            "deliveryStatus": _describe_status(existing, await subscriptions.status(id)),
        }

    async def unsubscribe(self, params: SubscribeParams, ctx: CallContext) -> Json:
        """End a subscription.

        Raises:
            ProtocolError: NOT_FOUND, if there is no subscription with this key. The caller lacks permission, or the
                request is invalid.
        """
        principal, _, id = self._key(params, ctx)
        found = await self._subscriptions.delete(principal, params.name, id)
        await self._subscriptions.announce_change(params.name, id)
        if not found:
            raise ProtocolError(NOT_FOUND, "There is no such subscription.", {"kind": "subscription"})
        return {}

    def _key(self, params: SubscribeParams, ctx: CallContext) -> tuple[Principal, Reader, str]:
        """Return the caller, the reader, and the id of the subscription, which is a routing handle, not a secret."""
        principal, mode, url = ctx.principal, params.delivery.mode[:50], params.delivery.url
        if principal is None:
            raise forbidden_error("webhooks require an authenticated caller")
        reader = open_reader(self._catalog, params, ctx, self._host.now())
        if mode != "webhook":
            data = {"feature": "deliveryMode", "value": mode}
            raise ProtocolError(UNSUPPORTED_OPTION, f"Not supported: deliveryMode {mode}", data)
        read_url(url)
        parts = (principal.binding, url.encode(), params.name.encode(), reader.arguments.canonical)
        digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).hexdigest()
        return principal, reader, f"sub_{digest[:32]}"

    def _choose_ttl(self, ttl_ms: float | UnsetType | None) -> float:
        """Return the lifetime of a subscription in seconds. Every subscription expires."""
        if ttl_ms is UNSET:
            return min(DEFAULT_TTL, self._max_ttl)
        if ttl_ms is None:
            return self._max_ttl
        if not ttl_ms > 0:
            raise invalid("ttlMs must be a positive number of milliseconds, or null")
        return min(max(ttl_ms / 1000, MIN_TTL), self._max_ttl)

    async def _start(self, reader: Reader, cursor: str) -> tuple[str, bool]:
        """Return the cursor to start after, and whether events before it are missing."""
        hub = self._host.hub
        if not cursor:
            return hub.last_event_id(), False
        page = await read_page(hub, reader.kind.name, cursor, most=1, accepts=reader.accepts)
        if page.gap or reader.has_skipped:
            return (position(hub, page.events[0].offset - 1) if page.events else page.cursor), True
        return cursor, False

    async def _write(self, fresh: WebhookSubscription, now: float) -> WebhookSubscription | None:
        """Save a subscription and return the one it replaces. Deliveries are signed with both secrets for a while."""
        for _ in range(_ATTEMPTS):
            before, sealed = await self._subscriptions.get(fresh.name, fresh.id)
            new = fresh
            if before is not None:
                new = replace(
                    before,
                    expires=fresh.expires,
                    principal=fresh.principal,
                    credential=fresh.credential,
                    has_message_ids=fresh.has_message_ids,
                    refreshed_at=fresh.refreshed_at,
                )
                if fresh.secret != before.secret:
                    new = replace(new, secret=fresh.secret, old_secret=before.secret, old_until=now + SECRET_GRACE)
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

    async def _verify(self, subscription: WebhookSubscription) -> None:
        """Check that the endpoint agrees to receive deliveries, unless it has done so recently.

        It agrees by responding to a challenge. If it responds with something else, the document
        `/.well-known/mcp-webhook-receiver.json` of its origin may declare that it agrees.

        Raises:
            ProtocolError: CALLBACK_ENDPOINT_ERROR, or RESOURCE_EXHAUSTED after too many challenges.
        """
        owner, url, challenge = subscription.principal, read_url(subscription.url), secrets.token_urlsafe(32)
        key = f"events:verified.{sha256(owner.binding + subscription.url.encode()).hexdigest()[:32]}"
        if await self._host.map.get(key) is not None:
            return
        if not self._verifications.take(owner.id):
            raise limit_error("verifications", self._verifications.each)
        try:
            self._count_verification(url, owner)
            body = encode({"type": "verification", "challenge": challenge})
            message_id = f"msg_verification_{secrets.token_hex(12)}"
            answer = await self._sender.send(subscription, url, message_id, body, self._host.now())
            echo = ""
            with suppress(*MALFORMED):
                echo = _decode_echo(answer.body).challenge
            agrees = hmac.compare_digest(echo.encode(), challenge.encode())
            if not agrees and answer.status:
                self._count_verification(url, owner)
                agrees = await self._sender.is_declared_receiver(url, owner)
        finally:
            self._verifications.leave(owner.id)
        if not agrees:
            # The reason is a category, never a response.
            reason = "challenge_failed" if answer.status else answer.reason
            raise ProtocolError(CALLBACK_ENDPOINT_ERROR, f"The callback endpoint failed: {reason}", {"reason": reason})
        await self._host.map.put(key, b"1", VERIFIED_SECONDS)

    def _count_verification(self, url: Url, owner: Principal) -> None:
        """Count one request to an endpoint that hasn't agreed yet.

        Raises:
            ProtocolError: RESOURCE_EXHAUSTED.
        """
        if self._owner_limit.take(f"{url.host} {owner.id}") > 0 or self._host_limit.take(url.host) > 0:
            raise limit_error("verifications of this host", _MAX_VERIFICATIONS_PER_HOST // 2)


def _describe_status(existing: WebhookSubscription, status: Status) -> Json:
    """Return the delivery status before a refresh."""
    described: Json = {
        "active": not existing.is_suspended(status),
        "lastDeliveryAt": format_time(status.last_delivery) if status.last_delivery else None,
        "lastError": status.last_error or None,
    }
    return {**described, "failedSince": format_time(status.failed_since)} if status.failed_since else described
