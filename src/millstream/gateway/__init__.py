"""The gateway: offers other MCP servers and HTTP APIs as part of this server.

``Server.upstream`` adds one. Import `UpstreamConfig` to write a list of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.gateway.credentials.options import (
        Secret,
        bearer,
        client_credentials,
        per_user_oauth,
        static_headers,
        token_exchange,
    )
    from millstream.gateway.openapi import OpenApi
    from millstream.gateway.policy import PromptPolicy, ResourcePolicy, ToolPolicy, UpstreamPolicy
    from millstream.gateway.redaction import Redaction
    from millstream.gateway.upstream import UpstreamConfig

_HOMES = {
    "OpenApi": "openapi",
    "PromptPolicy": "policy",
    "Redaction": "redaction",
    "ResourcePolicy": "policy",
    "Secret": "credentials.options",
    "ToolPolicy": "policy",
    "UpstreamConfig": "upstream",
    "UpstreamPolicy": "policy",
    "bearer": "credentials.options",
    "client_credentials": "credentials.options",
    "per_user_oauth": "credentials.options",
    "static_headers": "credentials.options",
    "token_exchange": "credentials.options",
}
"""Public name -> module, imported on first use."""

__all__ = [
    "OpenApi",
    "PromptPolicy",
    "Redaction",
    "ResourcePolicy",
    "Secret",
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
        raise AttributeError(f"module 'millstream.gateway' has no attribute {name!r}")
    value = getattr(import_module(f"millstream.gateway.{home}"), name)
    globals()[name] = value
    return value
