"""Webhooks: signed POST requests to callback URLs, and the methods that manage the subscriptions.

Signatures follow Standard Webhooks:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. Any worker answers
`events/subscribe` and `events/unsubscribe`.
"""

import asyncio
import binascii
import hmac
import secrets
import ssl
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Sequence
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
from millstream.extensions.events._event_methods import Reader, check_admission, oldest_time
from millstream.extensions.events._feed import position, read_page, split_cursor
from millstream.extensions.events._subscriptions import (
    Status,
    SubscriptionStore,
    WebhookSubscription,
    rotate_secret,
    subscription_id,
)
from millstream.extensions.http_post import AddressCheck, PostFailed, Url, is_public, parse_url, post
from millstream.protocol import MALFORMED, decoder

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
_ATTEMPTS = 5

_encode = msgspec.json.Encoder().encode


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


class WebhookMethods:
    """The methods that change webhook subscriptions.

    Args:
        catalog: The event types.
        host: The running server.
        subscriptions: The store of subscriptions.
        sender: Sends the challenges.
        max_ttl: Maximum lifetime of a subscription, in seconds.
    """

    def __init__(
        self,
        catalog: EventCatalog,
        host: ServerHost,
        subscriptions: SubscriptionStore,
        sender: WebhookSender,
        *,
        max_ttl: float,
    ) -> None:
        self._catalog = catalog
        self._hub = host.hub
        self._host = host
        self._subscriptions = subscriptions
        self._sender = sender
        self._max_ttl = max_ttl
        self._verifications = Share(_MAX_VERIFICATIONS)
        self._recent_verifications: dict[str, deque[tuple[float, str]]] = {}
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
        check_admission(self._hub, kind.name, principal)
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
        hub = self._hub
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
                _encode({"type": "verification", "challenge": challenge}),
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
