"""Errors of the events extension.

The codes are those that SEP-3415 requests. They are provisional until it's accepted.
"""

from typing import Any

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError

NOT_FOUND = -32023
FORBIDDEN = -32024
RESOURCE_EXHAUSTED = -32025
UNSUPPORTED_OPTION = -32026
CALLBACK_ENDPOINT_ERROR = -32027


def invalid(reason: str) -> ProtocolError:
    """Return the error for an invalid request."""
    return ProtocolError(INVALID_PARAMS, f"Invalid params: {reason}")


def unknown_event(name: str) -> ProtocolError:
    """Return the error for an event type that doesn't exist or is hidden from the caller."""
    return ProtocolError(NOT_FOUND, f"There is no event {name[:200]!r}", {"kind": "event"})


def unknown_subscription() -> ProtocolError:
    """Return the error for ending a subscription that doesn't exist."""
    return ProtocolError(NOT_FOUND, "There is no such subscription", {"kind": "subscription"})


def forbidden_error(reason: str) -> ProtocolError:
    """Return the error for a caller without permission to subscribe."""
    return ProtocolError(FORBIDDEN, f"Forbidden: {reason}", {"reason": reason})


def limit_error(limit: str, most: int | None = None) -> ProtocolError:
    """Return the error for a limit of the server."""
    data: dict[str, Any] = {"limit": limit} if most is None else {"limit": limit, "max": most}
    return ProtocolError(RESOURCE_EXHAUSTED, f"A limit of the server was reached: {limit}", data)


def unsupported_error(feature: str, value: str) -> ProtocolError:
    """Return the error for an option that the event type doesn't support."""
    return ProtocolError(UNSUPPORTED_OPTION, f"Not supported: {feature} {value}", {"feature": feature, "value": value})


def callback_failed(reason: str) -> ProtocolError:
    """Return the error for a callback URL that failed verification. The reason is a category, never a response."""
    return ProtocolError(CALLBACK_ENDPOINT_ERROR, f"The callback endpoint failed: {reason}", {"reason": reason})
