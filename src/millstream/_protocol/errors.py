"""Errors by whose fault they are, and the JSON-RPC codes of every revision (https://modelcontextprotocol.io/specification)."""

from collections.abc import Mapping
from typing import Any

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
RESOURCE_NOT_FOUND = -32002
"""Handshake revisions only; the per-request era says INVALID_PARAMS."""
URL_ELICITATION_REQUIRED = -32042
"""2025-11-25 only."""
HEADER_MISMATCH = -32020
MISSING_CLIENT_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
RATE_LIMITED = -31429
INSUFFICIENT_SCOPE = -31403
OVERLOADED = -31503
"""Ours: outside the range that JSON-RPC reserves, as the per-request era wants. Handshake revisions say `-32000`."""
SERVER_ERROR = -32000
"""The code that clients of the handshake era expect for errors without one of their own."""


MAX_SHOWN = 200
"""Characters of a peer's own text that an error repeats: what a refusal costs doesn't grow with what is refused."""


def shorten(text: str, most: int = MAX_SHOWN) -> str:
    """The beginning of a peer's own text, for an error; all of it if it is short."""
    return text if len(text) <= most else f"{text[:most]}…"


class ProtocolError(Exception):
    """The peer's fault: becomes a JSON-RPC error, as ``raise ProtocolError(-32602, "Unknown book")``.

    Where a transport has them, `status` is the HTTP status, and `head` holds finished header lines. An error with a
    head has its status in every revision, because clients act on the two together (401, 403, 429).
    """

    def __init__(self, code: int, message: str, data: Any = None, *, status: int = 200, head: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.status = status
        self.head = head


class LocalError(Exception):
    """Our fault, or the fault of the program that uses us: never shown to the peer."""


class MissingExtra(ImportError):
    """A package of an extra isn't installed: ``MissingExtra("millstream.compat", "pydantic")``."""

    def __init__(self, what: str, extra: str) -> None:
        self.what = f"{what} needs an extra package."
        """What can't be done without it."""
        self.remedy = f"pip install 'millstream[{extra}]'"
        """The command that installs it."""
        super().__init__(f"{self.what} Install it with: {self.remedy}")


class ToolError(Exception):
    """Text for the model: ``raise ToolError("There is no such book.")`` ends the call with ``isError: true``."""


class CustomResult(Exception):
    """Ends a call with a whole result of another type: ``raise CustomResult({"resultType": "task", "taskId": "7"})``.

    Clients reject a type of result that they don't know, so check first what the client declared.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__("A result of another type ends the call")
        self.result: Mapping[str, Any] = result


class Declined(Exception):
    """The person (or their client) declined to answer: ``except Declined: return "Not ordered."``."""


class Cancelled(Exception):
    """The person dismissed the question without answering: ``except Cancelled: return "Not now."``."""
