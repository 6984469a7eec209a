"""The gateway: offers other MCP servers and HTTP APIs as part of this server.

``Server.upstream`` adds one. Import `UpstreamConfig` to write a list of them.
"""

from typing import TYPE_CHECKING, Any

from millstream._lazy import import_name

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
    "ApprovalPolicy": "._gateway.options.policy",
    "GroupPolicy": "._gateway.options.policy",
    "OpenApi": "._gateway.options.api",
    "PromptPolicy": "._gateway.options.policy",
    "Redaction": "._gateway.options.policy",
    "ResourcePolicy": "._gateway.options.policy",
    "RouteKind": "._gateway.apis.items",
    "RouteMap": "._gateway.apis.items",
    "Secret": "._gateway.options.credentials",
    "SetConfig": "._gateway.options.sets",
    "ToolPolicy": "._gateway.options.policy",
    "UpstreamConfig": "._gateway.options.upstream",
    "UpstreamPolicy": "._gateway.options.policy",
    "bearer": "._gateway.options.credentials",
    "client_credentials": "._gateway.options.credentials",
    "per_user_oauth": "._gateway.options.credentials",
    "static_headers": "._gateway.options.credentials",
    "token_exchange": "._gateway.options.credentials",
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
    return import_name(__name__, _HOMES, name)
