"""Errors, separated by who caused them, and JSON-RPC error codes (https://modelcontextprotocol.io/specification)."""

from collections.abc import Mapping
from typing import Any

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
"""Beginning of the tool error that replaces this code in older revisions."""
UNSUPPORTED_VERSION = -32022
RATE_LIMITED = -31429
INSUFFICIENT_SCOPE = -31403
OVERLOADED = -31503
"""Our own code, outside the range reserved by JSON-RPC, for the per-request era. Handshake revisions use `-32000`."""
SERVER_ERROR = -32000
"""The handshake-era code for errors without a code of their own."""


_BAD_REQUESTS = frozenset({HEADER_MISMATCH, MISSING_CLIENT_CAPABILITY, UNSUPPORTED_VERSION})
"""Codes that the per-request era always sends with status 400, even if a handler raises them.

https://modelcontextprotocol.io/specification/2026-07-28/basic/transports
"""

MAX_SHOWN = 200
"""Maximum number of characters of a peer's text that an error repeats, so long input doesn't make long errors."""


def shorten(text: str, most: int = MAX_SHOWN) -> str:
    """Return the beginning of a peer's text for an error message, or all of it if it's short."""
    return text if len(text) <= most else f"{text[:most]}…"


class ProtocolError(Exception):
    """An error caused by the peer, sent as a JSON-RPC error: ``raise ProtocolError(-32602, "Unknown book")``.

    On HTTP, `status` is the response status, by default 400 for codes that
    require it, and 200 for others.
    `head` holds encoded header lines. An error with a `head` keeps its status in every revision, because clients handle
    the two together (401, 403, 429).
    """

    def __init__(self, code: int, message: str, data: Any = None, *, status: int = 0, head: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.status: int = status or (400 if code in _BAD_REQUESTS else 200)
        self.head = head


class LocalError(Exception):
    """An error caused by this server or its program. It's never sent to the peer."""


class MissingExtra(ImportError):
    """An optional dependency isn't installed: ``MissingExtra("millstream.compat", "pydantic")``."""

    def __init__(self, what: str, extra: str) -> None:
        self.what = f"{what} needs an extra package."
        """A sentence with the feature that needs the package."""
        self.remedy = f"pip install 'millstream[{extra}]'"
        """The command that installs it."""
        super().__init__(f"{self.what} Install it with: {self.remedy}")


class ToolError(Exception):
    """An error message for the model: ``raise ToolError("There is no such book.")`` ends the call with ``isError:
    true``.
    """


class CustomResult(Exception):
    """Ends a call with a complete result of another type: ``raise CustomResult({"resultType": "task", "taskId":
    "7"})``.

    Clients reject result types that they don't know. Check the client's capabilities first.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__("The call ended with a custom result")
        self.result: Mapping[str, Any] = result


class Declined(Exception):
    """The user or client declined to answer a question: ``except Declined: return "Not ordered."``."""


class Cancelled(Exception):
    """The user dismissed a question without an answer: ``except Cancelled: return "Not now."``."""
