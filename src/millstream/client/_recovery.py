"""What a failure of a connection means: which step can succeed after it.

A server can be replaced at any time by one with another transport, revision, or session, so nothing that was learned
about it before a failure is certain afterwards. What a rejected credential means, its source decides.
"""

from enum import Enum

from msgspec import Struct

from millstream._protocol.errors import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    SERVER_ERROR,
    UNSUPPORTED_VERSION,
)
from millstream._protocol.json_schema import members
from millstream.client._errors import (
    AccessDenied,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    RequestTimeout,
    ServerError,
    TargetError,
    UnknownVersion,
)

_SESSION_NOT_FOUND = -32001
"""Code of the TypeScript SDK's server for an unknown session."""
ONLY_SESSION = (
    "It allows one session, which another client has or had, such as another worker or an earlier run. Restart the "
    "server, or let it allow several sessions."
)
"""What to do about such a server."""
_OUTDATED = frozenset({INVALID_REQUEST, UNSUPPORTED_VERSION, SERVER_ERROR, _SESSION_NOT_FOUND})
"""Codes with which servers reject requests of a session or revision that they don't have."""
NO_HANDSHAKE = InvalidResponse, ServerError, NotMcp, UnknownVersion
"""Errors of a server that doesn't support the handshake: ``except NO_HANDSHAKE: …``."""
UNREACHABLE = ConnectFailed, ConnectionLost, RequestTimeout, TargetError
"""Errors of a server that can't be reached, or doesn't respond."""


class Recovery(Enum):
    """The step that can succeed after a failure."""

    OTHER_ERA = "connect again, with the other kind of first request"
    OTHER_TRANSPORT = "connect again, over the other transport"
    NEGOTIATE = "connect again if the server rejects its simplest request too"
    RETRY_LATER = "try again later"
    GIVE_UP = "report the error"


class Attempt(Struct, frozen=True, kw_only=True):
    """The attempt that failed."""

    is_connected: bool = False
    """Whether the request was sent after the negotiation."""
    sse: bool = False
    """Whether it was over HTTP+SSE."""
    is_first: bool = False
    """Whether there has been no connection to the server before."""
    is_pinned: bool = False
    """Whether the caller requires one revision."""
    began_with_handshake: bool = False
    """Whether the first request was `initialize`."""
    has_ended: bool = False
    """Whether the server ended the connection, for example because it exits on an unknown method."""


def plan_recovery(error: BaseException, attempt: Attempt) -> Recovery:
    """Return the step that can succeed after a failed attempt: ``plan_recovery(error, Attempt(sse=True))``.

    `Recovery.OTHER_ERA` comes before `Recovery.OTHER_TRANSPORT`: the caller of one attempt asks only for the steps that
    it can take.

    Args:
        error: The failure.
        attempt: What failed.
    """
    if isinstance(error, AccessDenied):
        return Recovery.GIVE_UP  # a person or the operator has to act
    if attempt.is_connected:
        return _plan_for_connected(error)
    if not attempt.is_pinned and (
        attempt.has_ended
        if isinstance(error, ConnectionLost)
        else attempt.began_with_handshake and isinstance(error, NO_HANDSHAKE)
    ):
        return Recovery.OTHER_ERA
    return _plan_transport(error, attempt)


def _plan_for_connected(error: BaseException) -> Recovery:
    if isinstance(error, UNREACHABLE):
        return Recovery.RETRY_LATER
    if isinstance(error, ServerError):
        return Recovery.NEGOTIATE if error.code in _OUTDATED else Recovery.GIVE_UP
    # A status without a JSON-RPC error: another transport or server is at the URL now.
    return Recovery.NEGOTIATE if isinstance(error, NotMcp) and error.status else Recovery.GIVE_UP


def _plan_transport(error: BaseException, attempt: Attempt) -> Recovery:
    if isinstance(error, ConnectFailed):
        # Some servers of Streamable HTTP delay the headers of a stream until its first event.
        waited = attempt.sse and isinstance(error.__cause__, TimeoutError)
        return Recovery.OTHER_TRANSPORT if waited else Recovery.RETRY_LATER
    if isinstance(error, ConnectionLost):
        # Once there has been a connection, it's a proxy that closes this one, because the server behind it restarts.
        return Recovery.OTHER_TRANSPORT if attempt.is_first else Recovery.RETRY_LATER
    if isinstance(error, UNREACHABLE):
        return Recovery.RETRY_LATER
    replaced = isinstance(error, NotMcp | InvalidResponse)
    return Recovery.OTHER_TRANSPORT if replaced or attempt.sse else Recovery.GIVE_UP


def has_only_session(error: Exception) -> bool:
    """Return whether a server refused `initialize` because it allows one session, which is open or has ended, as a
    server of the TypeScript SDK with one transport does.
    """
    return isinstance(error, ServerError) and (
        (error.code == INVALID_REQUEST and "Server already initialized" in error.message)
        or (error.code == _SESSION_NOT_FOUND and error.message == "Session not found")
    )


def lacks_handshake(error: Exception) -> bool:
    """Return whether an error of `initialize` means that there's no handshake, not that the client is rejected."""
    if not isinstance(error, ServerError):
        return True
    unsupported = error.code == INVALID_PARAMS and "supported" in members(error.data)
    return unsupported or error.code in (METHOD_NOT_FOUND, UNSUPPORTED_VERSION)
