"""The refusals that several handlers of the MCP endpoint share, as HTTP replies with a JSON-RPC error."""

from millstream._http.message import Response
from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, ProtocolError
from millstream._protocol.jsonrpc import RequestId, error_message

SESSION_NOT_FOUND = -32001
"""What clients are used to in the body of the 404; they act on the status."""


def refusal(status: int, code: int, message: str, *, head: bytes = b"") -> Response:
    """A JSON-RPC error without an id as an HTTP reply."""
    return Response(error_message(None, code, message), status, b"content-type: application/json\r\n" + head)


def refused(exc: ProtocolError, request_id: RequestId | None = None) -> Response:
    """An error as an HTTP reply; one that may pass says when to try again."""
    head = b"content-type: application/json\r\n" + (b"retry-after: 1\r\n" if exc.status == 503 else b"")
    return Response(error_message(request_id, exc.code, exc.message, exc.data), exc.status, head)


WRONG_TYPE = refusal(415, INVALID_REQUEST, "Unsupported media type: send content-type application/json")
NO_STREAM = refusal(406, INVALID_REQUEST, "Not acceptable: a GET is answered as text/event-stream")
TOO_MANY_STREAMS = refusal(
    503, SERVER_ERROR, "Too many open streams: close some, or try again later", head=b"retry-after: 5\r\n"
)


def unknown_session() -> ProtocolError:
    """The refusal for a session that is not there (any more)."""
    text = "Session not found: initialize again, without Mcp-Session-Id"
    return ProtocolError(SESSION_NOT_FOUND, text, status=404)


def missing_session() -> ProtocolError:
    """The refusal for a request that needs a session and names none."""
    text = "Bad request: Mcp-Session-Id is missing. Send the id that initialize returned"
    return ProtocolError(INVALID_REQUEST, text, status=400)
