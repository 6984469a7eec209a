"""Millstream: one server for every MCP client, and one client for every MCP server. See `Server` and `Client`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.app.info import Info
    from millstream.app.server import Server
    from millstream.client.client import Client
    from millstream.config import Settings
    from millstream.protocol.content import (
        Annotations,
        Audio,
        EmbeddedResource,
        Icon,
        Image,
        Message,
        ResourceLink,
        Text,
        ToolAnnotations,
    )
    from millstream.protocol.errors import Cancelled, Declined, ProtocolError, ToolError
    from millstream.protocol.principal import Principal
    from millstream.server.calls.context import Context
    from millstream.server.calls.sync_context import SyncContext
    from millstream.server.functions.dependencies import Depends
    from millstream.server.functions.fields import Field
    from millstream.server.functions.results import ToolResult
    from millstream.server.questions.questions import Elicit, Roots, Sample

__version__ = "0.1.0"

_HOMES = {
    "Annotations": "protocol.content",
    "Audio": "protocol.content",
    "Cancelled": "protocol.errors",
    "Client": "client.client",
    "Context": "server.calls.context",
    "Declined": "protocol.errors",
    "Depends": "server.functions.dependencies",
    "Elicit": "server.questions.questions",
    "EmbeddedResource": "protocol.content",
    "Field": "server.functions.fields",
    "Icon": "protocol.content",
    "Image": "protocol.content",
    "Info": "app.info",
    "Message": "protocol.content",
    "Principal": "protocol.principal",
    "ProtocolError": "protocol.errors",
    "ResourceLink": "protocol.content",
    "Roots": "server.questions.questions",
    "Sample": "server.questions.questions",
    "Server": "app.server",
    "Settings": "config",
    "SyncContext": "server.calls.sync_context",
    "Text": "protocol.content",
    "ToolAnnotations": "protocol.content",
    "ToolError": "protocol.errors",
    "ToolResult": "server.functions.results",
}
"""Public name -> module. Loaded at first use, so that a program pays for what it uses."""

__all__ = [
    "Annotations",
    "Audio",
    "Cancelled",
    "Client",
    "Context",
    "Declined",
    "Depends",
    "Elicit",
    "EmbeddedResource",
    "Field",
    "Icon",
    "Image",
    "Info",
    "Message",
    "Principal",
    "ProtocolError",
    "ResourceLink",
    "Roots",
    "Sample",
    "Server",
    "Settings",
    "SyncContext",
    "Text",
    "ToolAnnotations",
    "ToolError",
    "ToolResult",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'millstream' has no attribute {name!r}")
    value = getattr(import_module(f"millstream.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
