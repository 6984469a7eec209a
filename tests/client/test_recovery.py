"""What a failure means: the table of the steps that can succeed after it."""

import pytest

from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    RequestTimeout,
    ServerError,
    UnknownVersion,
)
from millstream.client._recovery import Attempt, Recovery, plan_recovery

FIRST, AGAIN = Attempt(is_first=True), Attempt()
SSE = Attempt(sse=True)
KNOWN_HANDSHAKE = Attempt(began_with_handshake=True)
CONNECTED = Attempt(is_connected=True)


def with_status(error: ClientError, status: int) -> ClientError:
    error.status = status
    return error


def after_waiting(error: ConnectFailed) -> ConnectFailed:
    error.__cause__ = TimeoutError()
    return error


TABLE: list[tuple[BaseException, Attempt, Recovery]] = [
    # The server is down, or restarts behind a proxy.
    (ConnectFailed("refused"), FIRST, Recovery.RETRY_LATER),
    (ConnectFailed("refused"), SSE, Recovery.RETRY_LATER),
    (ConnectionLost("503"), AGAIN, Recovery.RETRY_LATER),
    (RequestTimeout("late"), AGAIN, Recovery.RETRY_LATER),
    # Another transport is at the URL.
    (with_status(NotMcp("405"), 405), FIRST, Recovery.OTHER_TRANSPORT),
    (with_status(NotMcp("405"), 405), AGAIN, Recovery.OTHER_TRANSPORT),
    (with_status(NotMcp("no event stream"), 400), SSE, Recovery.OTHER_TRANSPORT),
    (after_waiting(ConnectFailed("no headers")), SSE, Recovery.OTHER_TRANSPORT),
    (ConnectionLost("reset"), FIRST, Recovery.OTHER_TRANSPORT),
    (InvalidResponse("HTML"), AGAIN, Recovery.OTHER_TRANSPORT),
    # The server has another era.
    (ServerError(-32601, "no initialize"), KNOWN_HANDSHAKE, Recovery.OTHER_ERA),
    (UnknownVersion("2030-01-01"), KNOWN_HANDSHAKE, Recovery.OTHER_ERA),
    (ConnectionLost("exited"), Attempt(has_ended=True), Recovery.OTHER_ERA),
    (ConnectionLost("exited"), Attempt(has_ended=True, is_pinned=True), Recovery.RETRY_LATER),
    (ServerError(-32601, "no initialize"), AGAIN, Recovery.GIVE_UP),
    # A request fails after the negotiation.
    (ServerError(-32600, "Bad Request: Missing session ID"), CONNECTED, Recovery.NEGOTIATE),
    (ServerError(-32000, "Bad Request: Server not initialized"), CONNECTED, Recovery.NEGOTIATE),
    (ServerError(-32022, "Unsupported protocol version"), CONNECTED, Recovery.NEGOTIATE),
    (with_status(NotMcp("405"), 405), CONNECTED, Recovery.NEGOTIATE),
    (ServerError(-32602, "Unknown tool"), CONNECTED, Recovery.GIVE_UP),
    (InvalidResponse("id"), CONNECTED, Recovery.GIVE_UP),
    (ConnectionLost("reset"), CONNECTED, Recovery.RETRY_LATER),
    # Someone has to act.
    (AccessDenied("401"), AGAIN, Recovery.GIVE_UP),
    (AccessDenied("401"), CONNECTED, Recovery.GIVE_UP),
]


@pytest.mark.parametrize(("error", "attempt", "expected"), TABLE)
def test_failure_leads_to_the_step_that_can_succeed(error: BaseException, attempt: Attempt, expected: Recovery) -> None:
    assert plan_recovery(error, attempt) is expected
