"""What can go wrong between a client and a server. Each error is one sentence that a person can act on.

`Failure` is an answer: the server refused. All others mean that there was no answer, or none that counts.
"""

from typing import Any


class ClientError(Exception):
    """The base of everything that a client raises. ``except ClientError as error: print(error)``"""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}" if remedy else message)
        self.message = message
        """What happened, without what to do about it."""
        self.remedy = remedy
        """What to do about it; empty if the message says it, or if it isn't known."""


class TargetError(ClientError):
    """It isn't clear which server you mean, or it can't be started. ``except TargetError as error: print(error)``"""


class ConnectFailed(ClientError):
    """There's no connection: no such host, nobody listens, or the server didn't start.

    Example:
        ``except ConnectFailed: start_the_server()``
    """


class TlsFailed(ConnectFailed):
    """The server's certificate isn't trusted, or it doesn't speak TLS at that port.

    Example:
        ``except TlsFailed: options = Options(tls=context)``
    """


class NotMcp(ClientError):
    """Something answers at this URL, but it isn't an MCP server. ``except NotMcp: url += "/mcp"``"""


class AccessDenied(ClientError):
    """401 or 403: the server wants other credentials, or more rights. ``except AccessDenied: ask_for_another_key()``"""

    def __init__(self, message: str, status: int, challenge: str = "", *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.challenge = challenge
        """The `WWW-Authenticate` header."""


class ConnectionLost(ClientError):
    """The connection ended before the answer came. ``except ConnectionLost: did_it_run = None``"""


class SessionLost(ConnectionLost):
    """The server has forgotten the session; a new handshake is needed. ``except SessionLost: await connect_again()``"""


class NoAnswer(ClientError, TimeoutError):
    """The server took longer than the timeout allows. ``except NoAnswer: result = None``"""


class TooLarge(ClientError):
    """The server sent more than the client is ready to keep. ``except TooLarge: options = Options(max_bytes=2**30)``"""


class BadAnswer(ClientError):
    """The server broke the protocol: unreadable JSON, another request's id, a result of the wrong shape.

    Example:
        ``except BadAnswer as error: report(error)``
    """


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
    """The tool ran and reported an error, where a value was asked for. ``except ToolFailed as error: print(error)``"""


class Failure(ClientError):
    """The server answered with a JSON-RPC error: ``except Failure as error: print(error.code)``."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class Flood(ClientError):
    """The server says more than your handlers can take. ``except Flood: await connect_again()``"""
