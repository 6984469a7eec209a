"""HTTP error responses that several handlers of the MCP endpoint share, with JSON-RPC errors."""

from millstream._http.message import TEXT_HEAD, Response, parse_accept
from millstream._protocol.errors import INVALID_REQUEST, OVERLOADED, SERVER_ERROR, ProtocolError
from millstream._protocol.jsonrpc import RequestId, error_message

SESSION_NOT_FOUND = -32001
"""The usual code in the body of the 404. Clients act on the status."""


def refusal(status: int, code: int, message: str, *, head: bytes = b"") -> Response:
    """Return an HTTP response with a JSON-RPC error without an id."""
    return Response(error_message(None, code, message), status, b"content-type: application/json\r\n" + head)


def error_response(exc: ProtocolError, request_id: RequestId | None = None) -> Response:
    """Return an error as an HTTP response. A temporary error includes a retry time."""
    head = b"content-type: application/json\r\n" + (b"retry-after: 1\r\n" if exc.status == 503 else b"")
    return Response(error_message(request_id, exc.code, exc.message, exc.data), exc.status, head)


WRONG_TYPE = refusal(415, INVALID_REQUEST, "Unsupported media type. Send content-type application/json.")
_NO_STREAM = refusal(406, INVALID_REQUEST, "Not acceptable. A GET is answered with text/event-stream.")
_FOR_CLIENTS = Response(
    b"This is the address of an MCP server. Add it to an MCP client, or look at it with: millstream list URL\n",
    406,
    TEXT_HEAD,
)
"""For browsers, which can't show the stream."""
TOO_MANY_STREAMS = refusal(
    503, SERVER_ERROR, "Too many open streams. Close some, or try again later.", head=b"retry-after: 5\r\n"
)


def no_stream(accept: bytes | None) -> Response | None:
    """Return the error for a GET by a client that can't read a stream, or by a browser; None for others."""
    known = parse_accept(accept)
    if known.page:
        return _FOR_CLIENTS
    return None if known.stream else _NO_STREAM


def too_many_streams() -> ProtocolError:
    """Return the error for a subscription above the cap of streams."""
    return ProtocolError(OVERLOADED, "Too many open streams. Close some, or try again later.", status=503)


def unknown_session() -> ProtocolError:
    """Return the error for a session that doesn't exist or has ended."""
    text = "Session not found. Initialize again, without Mcp-Session-Id."
    return ProtocolError(SESSION_NOT_FOUND, text, status=404)


def missing_session() -> ProtocolError:
    """Return the error for a request without the session that it needs."""
    text = "Bad request: Mcp-Session-Id is missing. Send the id from the result of initialize."
    return ProtocolError(INVALID_REQUEST, text, status=400)
