"""What functions can ask for besides their arguments."""

from collections.abc import Collection
from functools import partial
from typing import Any

from millstream.compat.fastmcp._injection import Depends, Injected, current
from millstream.compat.fastmcp._sign_in import get_access_token


def get_context() -> Any:
    """The context of the call that runs.

    Raises:
        RuntimeError: none runs.
    """
    found = current.get(None)
    if found is None:
        raise RuntimeError("No active context found.")
    return found


def get_server() -> Any:
    """The server whose function runs. Raises RuntimeError as `get_context` does."""
    return get_context().fastmcp


def get_http_request() -> Any:
    """The HTTP request of the call that runs.

    Raises:
        RuntimeError: there is none.
    """
    context = current.get(None)
    request = None if context is None else context.request
    if request is None:
        raise RuntimeError("No active HTTP request found.")
    return request


def get_http_headers(include_all: bool = False, include: Collection[str] | None = None) -> dict[str, str]:
    """HTTP headers of the call that runs, lower-case names; empty without.

    Args:
        include_all: also those that must not be passed on to other servers.
        include: names of such headers that are wanted nevertheless.
    """
    context = current.get(None)
    try:
        headers = {} if context is None else dict(context.headers)
    except ValueError:
        return {}
    hidden = frozenset[str]() if include_all else _OWN - {name.lower() for name in include or ()}
    return {name: value for name, value in headers.items() if name not in hidden}


_OWN = frozenset(
    ("host", "content-length", "content-type", "connection", "transfer-encoding", "accept", "authorization", "upgrade",
     "te", "keep-alive", "expect", "mcp-session-id", "proxy-authorization", "proxy-authenticate", "proxy-connection",
     "cookie")
)  # fmt: skip


def CurrentContext() -> Any:  # noqa: N802  read as a type
    """A parameter's default: the context of the call."""
    return Injected(get_context)


def CurrentFastMCP() -> Any:  # noqa: N802  read as a type
    """A parameter's default: the server."""
    return Injected(get_server)


def CurrentRequest() -> Any:  # noqa: N802  read as a type
    """A parameter's default: the HTTP request of the call."""
    return Injected(get_http_request)


def CurrentHeaders() -> Any:  # noqa: N802  read as a type
    """A parameter's default: the HTTP headers of the call."""
    return Injected(partial(get_http_headers, include_all=True))


def CurrentAccessToken() -> Any:  # noqa: N802  read as a type
    """A parameter's default: the token of the call."""
    return Injected(get_access_token)


__all__ = [
    "CurrentAccessToken",
    "CurrentContext",
    "CurrentFastMCP",
    "CurrentHeaders",
    "CurrentRequest",
    "Depends",
    "get_access_token",
    "get_context",
    "get_http_headers",
    "get_http_request",
    "get_server",
]
