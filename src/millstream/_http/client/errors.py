"""Errors of the outbound HTTP engine. Each text says what happened and what to do."""


class ClientError(Exception):
    """The base of everything that a client raises. ``except ClientError as error: print(error)``"""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}" if remedy else message)
        self.message = message
        """The error, without advice."""
        self.remedy = remedy
        """The advice, or an empty string."""


class TargetError(ClientError):
    """The target is ambiguous or can't be started: ``except TargetError as error: print(error)``."""


class ConnectFailed(ClientError):
    """There's no connection: no such host, a closed port, or the server didn't start.

    Example:
        ``except ConnectFailed: start_the_server()``
    """


class TlsFailed(ConnectFailed):
    """The server's certificate isn't trusted, or it doesn't speak TLS at that port.

    Example:
        ``except TlsFailed: options = Options(tls=context)``
    """


class ConnectionLost(ClientError):
    """The connection ended before the answer arrived. ``except ConnectionLost: did_it_run = None``"""


class TooLarge(ClientError):
    """The server sent more than the client accepts. ``except TooLarge: options = Options(max_bytes=2**30)``"""


class TooMuchArriving(TooLarge):
    """Unfinished messages take up too many bytes, for one server or one of several callers.

    Args:
        holding: Which messages take how many bytes of how many.
    """

    def __init__(self, holding: str) -> None:
        super().__init__(f"The server is sending too much at a time: {holding}. Try again later.")
        self.holding: str = holding


class BadAnswer(ClientError):
    """The server broke the protocol: unreadable JSON, another request's id, a result of the wrong shape.

    Example:
        ``except BadAnswer as error: report(error)``
    """
