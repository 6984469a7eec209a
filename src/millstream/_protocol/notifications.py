"""Parameters of notifications in both directions, and progress tokens."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import MALFORMED, MAX_ID, RequestId, decoder
from millstream._protocol.messages import Json, Params, SubscriptionFilter
from millstream._protocol.metadata import ProgressToken


class CancelledNotificationParams(Params):
    """`notifications/cancelled`."""

    request_id: RequestId | UnsetType = UNSET
    reason: Any = None
    """A reason for the log. Nothing depends on it, so any type is accepted."""


class NotificationParams(Params):
    """Parameters of a notification without members. `_meta` can name a subscription."""

    meta: Json = field(default_factory=dict[str, Any], name="_meta")


class ProgressNotificationParams(Params):
    """`notifications/progress`."""

    progress_token: ProgressToken
    progress: float
    total: float | None = None
    message: str | None = None


class LoggingMessageNotificationParams(Params):
    """`notifications/message`."""

    level: str
    data: Any
    logger: str | None = None


class ResourceUpdatedNotificationParams(Params):
    """`notifications/resources/updated`."""

    uri: str
    meta: Json = field(default_factory=dict[str, Any], name="_meta")


class SubscriptionsAcknowledgedNotificationParams(Params):
    """`notifications/subscriptions/acknowledged`: the changes that the server will report."""

    notifications: SubscriptionFilter
    meta: Json = field(default_factory=dict[str, Any], name="_meta")


NOTIFICATIONS: Mapping[str, type[Struct]] = MappingProxyType(
    {
        "notifications/initialized": NotificationParams,
        "notifications/cancelled": CancelledNotificationParams,
        "notifications/progress": ProgressNotificationParams,
        "notifications/message": LoggingMessageNotificationParams,
        "notifications/tools/list_changed": NotificationParams,
        "notifications/prompts/list_changed": NotificationParams,
        "notifications/resources/list_changed": NotificationParams,
        "notifications/resources/updated": ResourceUpdatedNotificationParams,
        "notifications/roots/list_changed": NotificationParams,
        "notifications/subscriptions/acknowledged": SubscriptionsAcknowledgedNotificationParams,
    }
)
"""Notification method, of either side -> its parameters."""


class _TokenMeta(Struct, gc=False):
    token: int | str | UnsetType = field(default=UNSET, name="progressToken")


class _TokenParams(Struct, gc=False):
    meta: _TokenMeta | UnsetType = field(default=UNSET, name="_meta")


_decode_cancelled = decoder(CancelledNotificationParams)
_decode_token = decoder(_TokenParams)


def progress_token(params: bytes) -> ProgressToken | None:
    """Return the progress token of a request, or None if it's missing or has the wrong type.

    Raises:
        ProtocolError: INVALID_PARAMS, for a token that is too long.
    """
    if b'"progressToken"' not in params:
        return None
    try:
        meta = _decode_token(params).meta
    except MALFORMED:
        return None
    token = None if meta is UNSET or meta.token is UNSET else meta.token
    if isinstance(token, str) and len(token) > MAX_ID:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: a progress token must have at most {MAX_ID} characters")
    return token


def cancelled_id(params: bytes) -> RequestId | None:
    """Return the request id in `notifications/cancelled`, or None if the notification is malformed."""
    try:
        request_id: Any = _decode_cancelled(params or b"{}").request_id
    except MALFORMED:
        return None
    return None if request_id is UNSET else request_id
