"""What a caller reads when a call got no usable response."""

import logging
from http import HTTPStatus

from millstream import ProtocolError, ToolError
from millstream._gateway.errors import ClientRejected, InUse, NoCredentials
from millstream._gateway.log import logger
from millstream._gateway.rules.results import NoResponse
from millstream._gateway.upstreams.breaker import find_outage
from millstream._gateway.upstreams.upstream import Upstream
from millstream._http.client import UnsendableRequest
from millstream._protocol.redaction import redact_foreign
from millstream._server.calls.call import Call
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    RequestTimeout,
    SessionLost,
    TargetError,
    TooLarge,
    TooMuchArriving,
)
from millstream.client._endpoint import try_again
from millstream.client._recovery import UNREACHABLE
from millstream.protocol import (
    INTERNAL_ERROR,
    ToolUnavailable,
)


def refused_error(call: Call, upstream: Upstream, refusal: str) -> ToolError | ProtocolError:
    """Return the error for a call that isn't sent. See `Breaker.refusal`."""
    if upstream.breaker.is_open:
        upstream.lists.refresh()  # the upstream may be back
    text = f"The server {upstream.name!r} behind this gateway {refusal}"
    return ToolUnavailable(text) if call.method == "tools/call" else NoResponse(INTERNAL_ERROR, text)


def no_response_error(
    call: Call, upstream: Upstream, exc: ClientError, *, words: bool = True, ended: bool = False
) -> ToolError | ProtocolError:
    """Return the error for a call without a usable response. It doesn't reveal addresses or credentials.

    Args:
        exc: The reason why there was no response.
        words: Whether to add the reason that came with an HTTP status.
        ended: Whether the caller's session at the upstream has ended, too.
    """
    what = redact_foreign(f"{call.method:.200} {call.name:.200}")  # a relay passes on all methods
    why = redact_foreign(_describe_error(exc), exc.remedy)
    level, credentials = logging.WARNING, upstream.credentials
    is_denied = isinstance(exc, AccessDenied)
    is_callers = credentials is not None and (credentials.personal or bool(upstream.config.forward_headers))
    if is_denied and not is_callers:
        upstream.note_error(exc)
    # A 403 may depend on the arguments.
    if not (exc.status == HTTPStatus.FORBIDDEN or is_callers) if is_denied else isinstance(exc, _TROUBLES):
        upstream.breaker.begin_trouble(call, why)
        level = logging.DEBUG  # there's a line for the first one
    logger.log(level, "%s of the upstream %s failed: %s", what, upstream.name, why)
    refusal = _describe_for_caller(upstream, exc, words=words)
    if ended and not (isinstance(exc, ConnectionLost) and (upstream.processes or isinstance(exc, SessionLost))):
        refusal += " Its session with you and its state are lost."
    return refused_error(call, upstream, refusal)


_TROUBLES = InvalidResponse, NotMcp, RequestTimeout
"""Other errors whose cause isn't the call. What can't be reached is logged with the upstream's state."""


def describe_fault(upstream: Upstream) -> str:
    """Return why an upstream can't be used, as the end of a sentence for callers, or empty if that isn't known."""
    fault = upstream.lists.fault
    if isinstance(fault, UNREACHABLE):
        return "{0.what}. {0.remedy}".format(find_outage(fault, is_process=upstream.processes is not None))
    if isinstance(fault, AccessDenied | NoCredentials | NotMcp) or (isinstance(fault, ClientError) and fault.status):
        return _describe_for_caller(upstream, fault, words=True)
    return ""


def _describe_for_caller(upstream: Upstream, exc: ClientError, *, words: bool) -> str:
    has_replied = exc.reply is not None if isinstance(exc, AccessDenied) else exc.status
    if has_replied and words:
        return _describe_status(upstream, exc)
    more = _CONNECTION_ERRORS if upstream.processes is None else _PROCESS_ERRORS
    text = next((text.format(exc=exc) for kind, text in (*_ERRORS, *more) if isinstance(exc, kind)), "")
    if not text and isinstance(exc, ConnectFailed | TargetError):
        text = find_outage(exc, is_process=upstream.processes is not None).refusal
    return text or _INVALID


def _describe_error(exc: ClientError) -> str:
    """Describe an error to the operator. A client's error may name an option that only Python code can set."""
    if isinstance(exc, TooLarge) and not isinstance(exc, TooMuchArriving):
        return f"{exc.message} To allow more, set max_bytes for this upstream in a gateway file."
    return str(exc)


def _describe_status(upstream: Upstream, exc: ClientError) -> str:
    """Describe an upstream's HTTP error and how to fix it."""
    reason = f": {exc.detail}." if exc.detail else "."
    again = try_again(exc)
    if exc.status == HTTPStatus.UNAUTHORIZED or (exc.status == HTTPStatus.FORBIDDEN and not exc.detail):
        has_credentials = upstream.credentials is not None or bool(upstream.config.headers)
        text = _DENIED if has_credentials else "requires credentials. Its operator has to add them."
        reason = f" It responded with status {exc.status}{reason}"
    else:
        text = f"responded with status {exc.status}"
        if isinstance(exc, NotMcp) and exc.status in _ELSEWHERE:
            reason += f" {_CORRECT_URL}"
    return f"{text}{reason} {again}".rstrip()


_ELSEWHERE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE})
"""Status codes of servers that serve something else at a URL."""
_CORRECT_URL = "If it isn't starting up, the gateway's operator has to correct its URL."
_DENIED = "rejected the gateway's credentials. Its operator has to replace them."
_EFFECT = "The call may have taken effect. Check before you call again."
_Texts = tuple[tuple[type[ClientError], str], ...]
_PROCESS_ERRORS: _Texts = ((ConnectionLost, f"exited during the call and lost its state. {_EFFECT}"),)
_CONNECTION_ERRORS: _Texts = ((ConnectionLost, f"closed the connection during the call. {_EFFECT}"),)
_ERRORS: _Texts = (
    (SessionLost, "has ended its session with you and lost its state. Call again to start a new one."),
    (InUse, "is busy, not down: you're using {exc.holding}. {exc.advice}"),
    (RequestTimeout, f"didn't respond in time. {_EFFECT} A smaller request may succeed."),
    (
        ClientRejected,
        "has an authorization server that rejects this gateway's client. Its operator has to correct the client_id.",
    ),
    (
        NoCredentials,
        "needs credentials that its authorization server doesn't issue at the moment. The gateway's log says why.",
    ),
    (AccessDenied, _DENIED),
    (NotMcp, f"isn't an MCP server. {_CORRECT_URL}"),
    (UnsendableRequest, "didn't get this call. {exc.message}"),
    (TooMuchArriving, f"is sending too much data at once: {{exc.holding}}. {_EFFECT} Try again later."),
    (TooLarge, f"sent a response that's too large. {_EFFECT} Ask for less."),
)
_INVALID = "sent an invalid response. Trying again probably won't help; see the gateway's log for the reason."
