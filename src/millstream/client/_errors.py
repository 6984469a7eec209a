"""What can go wrong between a client and a server. Each error is one sentence that a person can act on.

`Failure` is an answer: the server refused. All others mean that there was no answer, or none that counts.
"""

from typing import Any

from millstream._http.client.errors import (
    BadAnswer,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    TargetError,
    TlsFailed,
    TooLarge,
)

__all__ = [
    "AccessDenied", "BadAnswer", "ClientError", "ConnectFailed", "ConnectionLost", "Failure", "Flood", "NoAnswer",
    "NotMcp", "SessionLost", "TargetError", "TlsFailed", "TooLarge", "ToolFailed", "UnknownVersion", "Unsupported",
]  # fmt: skip


class NotMcp(ClientError):
    """Something answers at this URL, but it isn't an MCP server. ``except NotMcp: url += "/mcp"``"""


class AccessDenied(ClientError):
    """401 or 403: the server wants other credentials, or more rights. ``except AccessDenied: ask_for_another_key()``"""

    def __init__(self, message: str, status: int, challenge: str = "", *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.challenge = challenge
        """The `WWW-Authenticate` header."""


class SessionLost(ConnectionLost):
    """The server has forgotten the session; a new handshake is needed. ``except SessionLost: await connect_again()``"""


class NoAnswer(ClientError, TimeoutError):
    """The server took longer than the timeout allows. ``except NoAnswer: result = None``"""


class UnknownVersion(ClientError):
    """The client and the server have no revision of the protocol in common.

    Example:
        ``except UnknownVersion: revision = None``
    """


class Unsupported(ClientError):
    """The revision or transport of this connection doesn't have what you asked for.

    Example:
        ``except Unsupported: changes = None``
    """


class ToolFailed(ClientError):
    """The tool ran and reported an error: ``except ToolFailed as error: print(error)``."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result
        """The whole `Result`, for what it holds beside text."""


class Failure(ClientError):
    """The server answered with a JSON-RPC error: ``except Failure as error: print(error.code)``."""

    def __init__(self, code: int, message: str, data: Any = None, *, remedy: str = "") -> None:
        super().__init__(f"{message} ({code}).", remedy=remedy) if remedy else super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class Flood(ClientError):
    """The server says more than your handlers can take. ``except Flood: await connect_again()``"""
