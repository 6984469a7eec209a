"""Errors between a client and a server, and the client's log. Messages are one or two sentences that a person can act
on.

`ServerError` means that the server responded with an error, and `ToolFailed` that a tool did. Most others mean that
there was no usable response.
"""

import logging
from contextvars import ContextVar
from typing import Any

from millstream._http.client import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    TargetError,
    TlsFailed,
    TooLarge,
    TooMuchArriving,
    UnsendableRequest,
)

__all__ = [  # the imported ones; all others are defined here
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "InvalidResponse",
    "TargetError",
    "TlsFailed",
    "TooLarge",
    "TooMuchArriving",
    "UnsendableRequest",
]

SERVER: ContextVar[str] = ContextVar("millstream_server", default="")
"""The program's name for the server that a task talks to. Tasks that this one starts have it, too."""


def client_logger(name: str) -> logging.Logger:
    """Return a logger whose records have the field `upstream`, if `SERVER` is set."""
    logger = logging.getLogger(name)
    logger.addFilter(_add_server)
    return logger


def _add_server(record: logging.LogRecord) -> bool:
    if name := SERVER.get():
        record.upstream = name
    return True


class NotMcp(ClientError):
    """The URL responds, but isn't an MCP server. ``except NotMcp: url += "/mcp"``"""

    reply: object = None
    """The redirect that wasn't followed, if it was one, for the gateway."""


class AccessDenied(ClientError):
    """The server requires other credentials (401) or more permissions (403), or a sign-in failed.

    Example:
        ``except AccessDenied: ask_for_another_key()``

    Args:
        message: What was rejected.
        status: The HTTP status, 401 or 403.
        challenge: The `WWW-Authenticate` header (RFC 9110 §11.6.1), if there was one.
        remedy: What to do, in one sentence.
    """

    def __init__(self, message: str, status: int = 401, challenge: str = "", *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.challenge = challenge
        """The `WWW-Authenticate` header."""
        self.reply: object = None
        """The response, if there was one, for the gateway."""


class SessionLost(ConnectionLost):
    """The session has expired on the server. Connect again. ``except SessionLost: await connect_again()``"""


class RequestTimeout(ClientError, TimeoutError):
    """The server didn't respond within the timeout. ``except RequestTimeout: result = None``"""


class UnknownVersion(ClientError):
    """The client and the server don't have a protocol revision in common.

    Example:
        ``except UnknownVersion: revision = None``
    """


class NotSupported(ClientError):
    """The revision or transport of this connection doesn't support the operation.

    Example:
        ``except NotSupported: changes = None``
    """


class ToolFailed(ClientError):
    """The tool reported an error, or an argument is wrong: ``except ToolFailed as error: print(error)``.

    Args:
        message: The text of the tool's error.
        result: The full `Result`.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result
        """The full `Result`, including structured content."""


class ServerError(ClientError):
    """The server responded with a JSON-RPC error: ``except ServerError as error: print(error.code)``.

    Args:
        code: The JSON-RPC code.
        message: The server's message.
        data: The server's details, any JSON value.
        remedy: What to do, in one sentence.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, remedy: str = "") -> None:
        super().__init__(f"{message} ({code}).", remedy=remedy) if remedy else super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class SkillMismatch(ClientError):
    """A skill file differs from the server's manifest. Don't use it. ``except SkillMismatch: skill = None``"""


class TooManyMessages(ClientError):
    """The server sends messages faster than your handlers process them.

    ``except TooManyMessages: await connect_again()``
    """
