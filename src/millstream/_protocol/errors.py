"""Errors, classified by who caused them.

The codes are those of JSON-RPC and MCP (https://modelcontextprotocol.io/specification), and a few of our own.
"""

from collections.abc import Mapping
from typing import Any

from millstream._copies import CopyableError
from millstream._override import override

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
RESOURCE_NOT_FOUND = -32002
"""For handshake revisions. The per-request era uses INVALID_PARAMS."""
URL_ELICITATION_REQUIRED = -32042
"""For 2025-11-25 only."""
HEADER_MISMATCH = -32020
MISSING_CLIENT_CAPABILITY = -32021
REQUIRES_CAPABILITIES = "This tool requires a client that declares:"
"""Beginning of the tool error that replaces `MISSING_CLIENT_CAPABILITY` in older revisions."""
UNSUPPORTED_VERSION = -32022
RATE_LIMITED = -31429
INSUFFICIENT_SCOPE = -31403
OVERLOADED = -31503
"""Our own code, outside the range reserved by JSON-RPC, for the per-request era. Handshake revisions use `-32000`."""
SERVER_ERROR = -32000
"""The handshake-era code for errors without a code of their own."""
_STATUSES = {METHOD_NOT_FOUND: 404} | dict.fromkeys(
    (HEADER_MISMATCH, MISSING_CLIENT_CAPABILITY, UNSUPPORTED_VERSION), 400
)
"""Error code -> HTTP status in the per-request era, wherever the error is detected.

https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http
"""


class ProtocolError(CopyableError):
    """An error caused by the peer, sent as a JSON-RPC error: ``raise ProtocolError(-32602, "Unknown book")``.

    Args:
        code: The code (JSON-RPC 2.0 §5.1): -32602 for invalid parameters, or one of your own outside of -32768 to
            -32000.
        message: One sentence for the developer of the client.
        data: Any JSON-serializable value with details.
        status: The HTTP status. By default, the one that the code requires, or 200.
        head: Encoded header lines. An error with a `head` keeps its status in every revision, because clients handle
            the two together (401, 403, 429).
    """

    request_id: int | str | None = None
    """Id of a request that can't be read completely."""

    def __init__(self, code: int, message: str, data: Any = None, *, status: int = 0, head: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.status: int = status or _STATUSES.get(code, 200)
        self.head = head


class LocalError(CopyableError):
    """An error in this server or its program, never sent to the peer: ``raise LocalError("The disk is full.")``"""


class MissingExtra(ImportError):
    """An optional dependency isn't installed: ``MissingExtra("Redacting results", "redact")``."""

    def __init__(self, what: str, extra: str) -> None:
        self.what: str = f"{what} needs an extra package."
        """A sentence with the feature that needs the package."""
        self.remedy: str = f"pip install 'millstream[{extra}]'"
        """The command that installs it."""
        self._arguments = (what, extra)
        super().__init__(f"{self.what} Install it with: {self.remedy}")

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


class ToolError(CopyableError):
    """An error message for the model: ``raise ToolError("There is no such book.")`` ends the call with ``isError:
    true``.
    """


class ToolUnavailable(ToolError):
    """A tool error caused by the server, or by a server behind it: ``raise ToolUnavailable("The database is down")``.

    The model reads it like a `ToolError`. The dashboard and metrics count it as the server's error, not the caller's.
    """


class CustomResult(CopyableError):
    """Ends a call with a complete result of another type: ``raise CustomResult({"resultType": "task", "taskId":
    "7"})``.

    Clients reject result types that they don't know. Check the client's capabilities first.

    Args:
        result: All members of the result, including `resultType`.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__("The call ended with a custom result")
        self.result: Mapping[str, Any] = result


class Declined(CopyableError):
    """The user or client declined to answer a question: ``except Declined: return "Not ordered."``."""


class Cancelled(CopyableError):
    """The user dismissed a question without answering it: ``except Cancelled: return "Not now."``."""
