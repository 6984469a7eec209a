"""A signed POST to a callback URL, according to Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

import binascii
import hmac
import ssl
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from millstream.extensions.events._errors import invalid
from millstream.extensions.http_post import AddressCheck, PostFailed, Url, is_public, parse_url, post

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


class WebhookSender:
    """Sends signed messages.

    Args:
        judge: returns whether an address is allowed.
        tls: context with the trusted certificates; the system's by default.
    """

    def __init__(self, *, judge: AddressCheck = is_public, tls: ssl.SSLContext | None = None) -> None:
        self._judge = judge
        self._tls = tls

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
            message_id: id of the message, the same for each attempt.
            subscription: id of the subscription.
            keys: signing keys, newest first.
            now: current Unix time.
            owner: the principal.
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
            reply = await post(url, headers, body, judge=self._judge, tls=self._tls, seconds=TIMEOUT, owner=owner)
        except PostFailed as failed:
            return AttemptResult(reason=failed.reason)
        if 200 <= reply.status < 300:
            return AttemptResult(reply.status, "", reply.body)
        return AttemptResult(reply.status, "http_5xx" if reply.status >= 500 else "http_4xx")
