"""The gateway: offers other MCP servers and HTTP APIs as part of this server.

``Server.upstream`` adds one. Import `UpstreamConfig` to write a list of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.gateway._approval import ApprovalPolicy
    from millstream.gateway._credentials import (
        Secret,
        bearer,
        client_credentials,
        per_user_oauth,
        static_headers,
        token_exchange,
    )
    from millstream.gateway._openapi_tools import OpenApi, RouteKind, RouteMap
    from millstream.gateway._policy import GroupPolicy, PromptPolicy, ResourcePolicy, ToolPolicy, UpstreamPolicy
    from millstream.gateway._results import Redaction
    from millstream.gateway._sets import SetConfig
    from millstream.gateway._upstream_config import UpstreamConfig

_HOMES = {
    "ApprovalPolicy": "_approval",
    "GroupPolicy": "_policy",
    "OpenApi": "_openapi_tools",
    "PromptPolicy": "_policy",
    "Redaction": "_results",
    "ResourcePolicy": "_policy",
    "RouteKind": "_openapi_tools",
    "RouteMap": "_openapi_tools",
    "Secret": "_credentials",
    "SetConfig": "_sets",
    "ToolPolicy": "_policy",
    "UpstreamConfig": "_upstream",
    "UpstreamPolicy": "_policy",
    "bearer": "_credentials",
    "client_credentials": "_credentials",
    "per_user_oauth": "_credentials",
    "static_headers": "_credentials",
    "token_exchange": "_credentials",
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
    value = getattr(import_module(f"millstream.gateway.{home}"), name)
    globals()[name] = value
    return value
