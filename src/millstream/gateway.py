"""The gateway: offers other MCP servers and HTTP APIs as part of this server.

``Server.upstream`` adds one. Import `UpstreamConfig` to write a list of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream._gateway.apis.items import RouteKind, RouteMap
    from millstream._gateway.options.api import OpenApi
    from millstream._gateway.options.credentials import (
        Secret,
        bearer,
        client_credentials,
        per_user_oauth,
        static_headers,
        token_exchange,
    )
    from millstream._gateway.options.policy import (
        ApprovalPolicy,
        GroupPolicy,
        PromptPolicy,
        Redaction,
        ResourcePolicy,
        ToolPolicy,
        UpstreamPolicy,
    )
    from millstream._gateway.options.sets import SetConfig
    from millstream._gateway.options.upstream import UpstreamConfig

_HOMES = {
    "ApprovalPolicy": "options.policy",
    "GroupPolicy": "options.policy",
    "OpenApi": "options.api",
    "PromptPolicy": "options.policy",
    "Redaction": "options.policy",
    "ResourcePolicy": "options.policy",
    "RouteKind": "apis.items",
    "RouteMap": "apis.items",
    "Secret": "options.credentials",
    "SetConfig": "options.sets",
    "ToolPolicy": "options.policy",
    "UpstreamConfig": "options.upstream",
    "UpstreamPolicy": "options.policy",
    "bearer": "options.credentials",
    "client_credentials": "options.credentials",
    "per_user_oauth": "options.credentials",
    "static_headers": "options.credentials",
    "token_exchange": "options.credentials",
}
"""Public name -> module, imported on first use."""

__all__ = [
    "ApprovalPolicy",
    "GroupPolicy",
    "OpenApi",
    "PromptPolicy",
    "Redaction",
    "ResourcePolicy",
    "RouteKind",
    "RouteMap",
    "Secret",
    "SetConfig",
    "ToolPolicy",
    "UpstreamConfig",
    "UpstreamPolicy",
    "bearer",
    "client_credentials",
    "per_user_oauth",
    "static_headers",
    "token_exchange",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise import_module("millstream._protocol.errors").missing_name(__name__, name, __all__, {})
    value = getattr(import_module(f"millstream._gateway.{home}"), name)
    globals()[name] = value
    return value
