"""Filters of notifications, in both directions and on both sides: extensions see, change, or drop them."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.jsonrpc import MALFORMED, Envelope, decoder, encode, notification_message
from millstream._protocol.principal import Principal

_HEAD = b'{"jsonrpc":"2.0","method":'
"""The beginning of each notification that this side sends. A request has its id there."""


class NotificationMessage(Struct):
    """A notification that comes in or goes out. See `Extension.filter_notification`."""

    method: str
    params: dict[str, Any]
    incoming: bool
    principal: Principal | None = None
    """The peer, on a server where callers sign in."""


NotificationFilter = Callable[[NotificationMessage], NotificationMessage | None]
"""Returns the notification, a changed one, or None to drop it. It must not block."""


class _SentMessage(Struct, gc=False):
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decode_outgoing = decoder(_SentMessage)
_decode_params = decoder(dict[str, Any])


class NotificationFilters:
    """The filters of one server or client.

    Args:
        failed: Called as ``failed(method, error)`` if a filter raises. The notification is dropped.
    """

    __slots__ = ("_failed", "_filters")

    def __init__(self, failed: Callable[[str, Exception], None]) -> None:
        self._failed = failed
        self._filters: list[NotificationFilter] = []

    def __len__(self) -> int:
        return len(self._filters)

    def add(self, each: NotificationFilter) -> None:
        """Add an innermost filter: it runs last for incoming notifications and first for outgoing ones."""
        self._filters.append(each)

    def remove(self, each: NotificationFilter) -> None:
        """Remove a filter."""
        self._filters.remove(each)

    def filter_incoming(self, message: Envelope, principal: Principal | None = None) -> Envelope | None:
        """Return a notification of the peer after filtering, or None to drop it."""
        passed = self._pass(message.method, message.params, principal, incoming=True)
        if passed is None:
            return None
        method, params = passed
        return msgspec.structs.replace(message, method=method, params=encode(params))

    def filter_outgoing(self, message: bytes, principal: Principal | None = None) -> bytes:
        """Return a message after filtering, or empty bytes to drop it. Requests and answers aren't filtered."""
        if not message.startswith(_HEAD):
            return message
        sent = _decode_outgoing(message)
        passed = self._pass(sent.method, bytes(sent.params), principal, incoming=False)
        return b"" if passed is None else notification_message(*passed)

    def _pass(
        self, method: str, params: bytes, principal: Principal | None, *, incoming: bool
    ) -> tuple[str, dict[str, Any]] | None:
        try:
            message = NotificationMessage(method, _decode_params(params or b"{}"), incoming, principal)
        except MALFORMED:
            return None  # params are an object, or missing
        try:
            for each in self._filters if incoming else reversed(self._filters):
                kept = each(message)
                if kept is None:
                    return None
                message = kept
        except Exception as error:
            self._failed(method, error)
            return None
        return message.method, message.params
