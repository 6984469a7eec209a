"""The other side of the protocol: one client for servers of every revision and transport. See `Client`.

``from millstream.client import Options, OAuth`` loads what is named, and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.client.blocking import BlockingClient
    from millstream.client.client import Client
    from millstream.client.errors import (
        AccessDenied,
        BadAnswer,
        ClientError,
        ConnectFailed,
        ConnectionLost,
        Failure,
        Flood,
        NoAnswer,
        NotMcp,
        SessionLost,
        TargetError,
        TlsFailed,
        TooLarge,
        ToolFailed,
        UnknownVersion,
        Unsupported,
    )
    from millstream.client.oauth.flow import OAuth
    from millstream.client.options import Options
    from millstream.client.questions import Question
    from millstream.client.results import Result

_HOMES = {
    "AccessDenied": "errors",
    "BadAnswer": "errors",
    "BlockingClient": "blocking",
    "Client": "client",
    "ClientError": "errors",
    "ConnectFailed": "errors",
    "ConnectionLost": "errors",
    "Failure": "errors",
    "Flood": "errors",
    "NoAnswer": "errors",
    "NotMcp": "errors",
    "OAuth": "oauth.flow",
    "Options": "options",
    "Question": "questions",
    "Result": "results",
    "SessionLost": "errors",
    "TargetError": "errors",
    "TlsFailed": "errors",
    "ToolFailed": "errors",
    "TooLarge": "errors",
    "UnknownVersion": "errors",
    "Unsupported": "errors",
}
"""Public name -> module. Loaded at first use: a program with a client needn't have the OAuth flow."""

__all__ = [
    "AccessDenied",
    "BadAnswer",
    "BlockingClient",
    "Client",
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "Failure",
    "Flood",
    "NoAnswer",
    "NotMcp",
    "OAuth",
    "Options",
    "Question",
    "Result",
    "SessionLost",
    "TargetError",
    "TlsFailed",
    "TooLarge",
    "ToolFailed",
    "UnknownVersion",
    "Unsupported",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'millstream.client' has no attribute {name!r}")
    value = getattr(import_module(f"millstream.client.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
