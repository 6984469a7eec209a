"""Error codes of the events extension, and the refusals that carry them.

The codes are those that SEP-3415 requests. They are provisional until the SEP is accepted.
"""

from typing import Any

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError

NOT_FOUND = -32023
FORBIDDEN = -32024
RESOURCE_EXHAUSTED = -32025
UNSUPPORTED = -32026
CALLBACK_ENDPOINT_ERROR = -32027


def invalid(why: str) -> ProtocolError:
    """Return the refusal of a request that is wrong in itself."""
    return ProtocolError(INVALID_PARAMS, f"Invalid params: {why}")


def unknown_event(name: str) -> ProtocolError:
    """Return the refusal of an event type that doesn't exist, or that the caller may not see."""
    return ProtocolError(NOT_FOUND, f"There is no event {name[:200]!r}", {"kind": "event"})


def unknown_subscription() -> ProtocolError:
    """Return the refusal to end a subscription that doesn't exist."""
    return ProtocolError(NOT_FOUND, "There is no such subscription", {"kind": "subscription"})


def forbidden(reason: str) -> ProtocolError:
    """Return the refusal of a caller that may not subscribe."""
    return ProtocolError(FORBIDDEN, f"Forbidden: {reason}", {"reason": reason})


def exhausted(limit: str, most: int | None = None) -> ProtocolError:
    """Return the refusal where a limit of the server is reached."""
    data: dict[str, Any] = {"limit": limit} if most is None else {"limit": limit, "max": most}
    return ProtocolError(RESOURCE_EXHAUSTED, f"A limit of the server is reached: {limit}", data)


def unsupported(feature: str, value: str) -> ProtocolError:
    """Return the refusal of an option that the event type doesn't offer."""
    return ProtocolError(UNSUPPORTED, f"Not supported: {feature} {value}", {"feature": feature, "value": value})


def callback_failed(reason: str) -> ProtocolError:
    """Return the refusal of a callback URL that failed its verification. The reason is a category, never an answer."""
    return ProtocolError(CALLBACK_ENDPOINT_ERROR, f"The callback endpoint failed: {reason}", {"reason": reason})
