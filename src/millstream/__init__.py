"""Millstream: a server for MCP clients, and a client for MCP servers. See `Server` and `Client`."""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from os import sep

from millstream._version import __version__ as __version__

TYPE_CHECKING = False  # typing would import a file types.py of the program before `_find_shadow` is there
if TYPE_CHECKING:
    from typing import Any

    from millstream._app.definition import Info
    from millstream._app.server import Server
    from millstream._config import Settings
    from millstream._protocol.content import (
        Annotations,
        Audio,
        EmbeddedResource,
        Icon,
        Image,
        Message,
        ResourceContents,
        ResourceLink,
        Text,
        ToolAnnotations,
        ToolResultBlock,
        ToolUse,
    )
    from millstream._protocol.errors import Cancelled, Declined, LocalError, ProtocolError, ToolError
    from millstream._protocol.notifications import SampleResult
    from millstream._protocol.principal import Principal
    from millstream._server.calls.context import Context
    from millstream._server.calls.questions import Elicit, ElicitUrl, Roots, Sample
    from millstream._server.calls.sync_context import SyncContext
    from millstream._server.functions.dependencies import Depends
    from millstream._server.functions.description import Field
    from millstream._server.functions.engine import ToolResult
    from millstream.client._client import Client

_HOMES = {
    "Annotations": "_protocol.content",
    "Audio": "_protocol.content",
    "Cancelled": "_protocol.errors",
    "Client": "client._client",
    "Context": "_server.calls.context",
    "Declined": "_protocol.errors",
    "Depends": "_server.functions.dependencies",
    "Elicit": "_server.calls.questions",
    "ElicitUrl": "_server.calls.questions",
    "EmbeddedResource": "_protocol.content",
    "Field": "_server.functions.description",
    "Icon": "_protocol.content",
    "Image": "_protocol.content",
    "Info": "_app.definition",
    "LocalError": "_protocol.errors",
    "Message": "_protocol.content",
    "Principal": "_protocol.principal",
    "ProtocolError": "_protocol.errors",
    "ResourceContents": "_protocol.content",
    "ResourceLink": "_protocol.content",
    "Roots": "_server.calls.questions",
    "Sample": "_server.calls.questions",
    "SampleResult": "_protocol.notifications",
    "Server": "_app.server",
    "Settings": "_config",
    "SyncContext": "_server.calls.sync_context",
    "Text": "_protocol.content",
    "ToolAnnotations": "_protocol.content",
    "ToolError": "_protocol.errors",
    "ToolResult": "_server.functions.engine",
    "ToolResultBlock": "_protocol.content",
    "ToolUse": "_protocol.content",
}
"""Public name -> module. Modules are imported on first use, so that programs load only the modules that they use."""

_NEW = "For a new program: from millstream import Server."
_CLIENT = "Import it from millstream.client."
_CONTEXT = "Add a parameter to your function, `ctx: Context`, and read"
_ELSEWHERE = {
    "App": _NEW,
    "connect": "Write: from millstream.testing import connect.",
    "File": "Write EmbeddedResource, or a resource with ResourceLink.",
    **dict.fromkeys(("BlockingClient", "ClientError", "ServerError", "Options", "Question", "ToolFailed"), _CLIENT),
    **dict.fromkeys(("CurrentContext", "get_context"), "Add a parameter to your function: `ctx: Context`."),
    "FastMCP": f"{_NEW} For a program of the official SDK: from millstream.compat.fastmcp import FastMCP.",
    "MCPServer": _NEW,
    "get_access_token": f"{_CONTEXT} `ctx.principal`.",
    "get_http_headers": f"{_CONTEXT} `ctx.headers`.",
    "get_http_request": f"{_CONTEXT} `ctx.headers` and `ctx.principal`.",
    "McpError": "Use ProtocolError for methods and ToolError for tools.",
    "Middleware": "Import it from millstream.middleware.",
    "Millstream": _NEW,
    "run": "Write mcp.run().",
    "server": _NEW,
    **{name: f"Write @mcp.{name}, below mcp = Server(…)." for name in ("prompt", "resource", "tool")},
    "TokenVerifier": "Write auth=auth.oidc(…), auth.keys(…), or another method of millstream.auth.",
}
"""Names that aren't here -> what to write instead."""

__all__ = [
    "Annotations",
    "Audio",
    "Cancelled",
    "Client",
    "Context",
    "Declined",
    "Depends",
    "Elicit",
    "ElicitUrl",
    "EmbeddedResource",
    "Field",
    "Icon",
    "Image",
    "Info",
    "LocalError",
    "Message",
    "Principal",
    "ProtocolError",
    "ResourceContents",
    "ResourceLink",
    "Roots",
    "Sample",
    "SampleResult",
    "Server",
    "Settings",
    "SyncContext",
    "Text",
    "ToolAnnotations",
    "ToolError",
    "ToolResult",
    "ToolResultBlock",
    "ToolUse",
]


def __getattr__(name: str) -> "Any":
    home = _HOMES.get(name)
    if home is None:
        raise import_module("millstream._suggestions").missing_name(__name__, name, __all__, _ELSEWHERE)
    try:
        value = getattr(import_module(f"millstream.{home}"), name)
    except (ImportError, AttributeError) as exc:
        shadow = _find_shadow()
        if shadow is None:
            raise
        raise ImportError(f"Rename {shadow}.py. Python imports it in place of the module {shadow!r}.") from exc
    globals()[name] = value
    return value


def _find_shadow() -> str | None:
    """Return the name of an imported file in the program's folder that hides a module elsewhere."""
    for name, module in sys.modules.items():
        is_beside = getattr(module, "__file__", None) == f"{sys.path[0]}{sep}{name}.py"
        if is_beside and PathFinder.find_spec(name, sys.path[1:]):
            return name
    return None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
