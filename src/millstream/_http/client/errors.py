"""Errors of outbound requests, which describe the problem and a remedy."""

from millstream._copies import CopyableError


class ClientError(CopyableError):
    """The base class of client errors. ``except ClientError as error: print(error)``

    Args:
        message: What happened.
        remedy: What to do, in one sentence.
    """

    status: int = 0
    """The HTTP status, if the server responded with an error, or 0."""
    detail: str = ""
    """The reason that came with the status, shortened."""
    retry_after: float | None = None
    """Seconds after which the server allows another try, if it specified that."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}" if remedy else message)
        self.message = message
        """The error, without advice."""
        self.remedy = remedy
        """The advice, or an empty string."""


class TargetError(ClientError):
    """The target is ambiguous or can't be started: ``Client("no-such-program")``."""


class UnsendableRequest(ClientError):
    """The request can't be sent, because a value in its head isn't allowed there.

    Example:
        ``except UnsendableRequest as error: print(error)``
    """


class ConnectFailed(ClientError):
    """The connection failed: the host is unknown, the port is closed, or the server didn't start.

    Example:
        ``except ConnectFailed: start_the_server()``
    """


class TlsFailed(ConnectFailed):
    """The server's certificate isn't trusted, or the server doesn't use TLS on that port.

    Example:
        ``except TlsFailed: options = Options(tls=context)``
    """


class ConnectionLost(ClientError):
    """The connection closed before the response arrived. ``except ConnectionLost: did_it_run = None``"""


class TooLarge(ClientError):
    """The server sent more than the client accepts. ``except TooLarge: options = Options(max_bytes=2**30)``"""


class TooMuchArriving(TooLarge):
    """Unfinished messages take up too many bytes, for one server or one of several callers.

    ``except TooMuchArriving as error: print(error.holding)``

    Args:
        holding: The messages, with their bytes and the maximum, as text.
    """

    def __init__(self, holding: str) -> None:
        super().__init__(f"The server is sending too much data at once: {holding}. Try again later.")
        self.holding: str = holding


class InvalidResponse(ClientError):
    """The server broke the protocol: unreadable JSON, another request's id, a result of the wrong shape.

    Example:
        ``except InvalidResponse as error: report(error)``
    """
