"""A pytest plugin: ``mcp.server.fastmcp`` is the door, and the rest of the official SDK 1.x is itself.

The client, the types and the exceptions stay those of the SDK. What the tests ask of private attributes is answered
from what the door keeps in their place.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import mcp.client.session
import mcp.server.elicitation
import mcp.shared.memory
import mcp.types
from mcp.shared.message import SessionMessage

import millstream.compat.fastmcp as door
from benches.compat import sdk_parts, values
from benches.compat.memory_session import streams_of
from millstream.compat.fastmcp import _exceptions as exceptions
from millstream.compat.fastmcp import _media as media
from millstream.compat.fastmcp import _prompts as prompts
from millstream.compat.fastmcp import _resources as resources
from millstream.compat.fastmcp import _settings as settings
from millstream.compat.fastmcp import _templates as templates
from millstream.compat.fastmcp import _tools as tools
from millstream.compat.fastmcp._server import FastMCP


def _module(name: str, **names: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(names)
    made.__path__ = []
    sys.modules[name] = made
    parent, _, own = name.rpartition(".")
    setattr(sys.modules[parent], own, made)


def _public(module: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


values.use(mcp.types)
_module("mcp.server.fastmcp", **{name: getattr(door, name) for name in door.__all__} | {"Icon": mcp.types.Icon})
_module("mcp.server.fastmcp.server", FastMCP=FastMCP, Context=door.Context, Settings=settings.Settings)
_module("mcp.server.fastmcp.exceptions", **_public(exceptions))
_module("mcp.server.fastmcp.utilities")
_module(
    "mcp.server.fastmcp.utilities.func_metadata",
    func_metadata=sdk_parts.func_metadata,
    FuncMetadata=sdk_parts.FuncMetadata,
    ArgModelBase=object,
)
_module("mcp.server.fastmcp.utilities.types", Image=media.Image, Audio=media.Audio)
_module("mcp.server.fastmcp.prompts", **_public(prompts))
_module("mcp.server.fastmcp.prompts.base", **_public(prompts), TextContent=mcp.types.TextContent)
_module(
    "mcp.server.fastmcp.resources",
    **_public(resources),
    ResourceTemplate=templates.ResourceTemplate,
    ResourceManager=sdk_parts.ResourceManager,
)
_module("mcp.server.fastmcp.prompts.manager", PromptManager=sdk_parts.PromptManager)
_module("mcp.server.fastmcp.tools", **_public(tools), ToolManager=sdk_parts.ToolManager)
_module("mcp.server.fastmcp.tools.base", **_public(tools))
for _name in ("AcceptedElicitation", "DeclinedElicitation", "CancelledElicitation", "AcceptedUrlElicitation"):
    setattr(mcp.server.elicitation, _name, getattr(door, _name))


def _parts(server: Any) -> dict[str, Any]:
    return {
        "_mcp_server": server,
        "_tool_manager": sdk_parts.ToolManager(server=server),
        "_resource_manager": sdk_parts.ResourceManager(server=server),
        "_prompt_manager": sdk_parts.PromptManager(server=server),
    }


def _private(name: str) -> property:
    return property(lambda server: _parts(server)[name])


for _name in ("_mcp_server", "_tool_manager", "_resource_manager", "_prompt_manager"):
    setattr(FastMCP, _name, _private(_name))


@asynccontextmanager
async def _connected(
    server: Any, read_timeout_seconds: Any = None, *callbacks: Any, raise_exceptions: bool = False, **more: Any
) -> AsyncGenerator[Any]:
    parse = mcp.types.JSONRPCMessage.model_validate_json

    def dump(sent: Any) -> bytes:
        return sent.message.model_dump_json(by_alias=True, exclude_none=True).encode()

    async with (
        streams_of(server.engine, SessionMessage, parse, dump) as (read, write),
        mcp.client.session.ClientSession(read, write, read_timeout_seconds, *callbacks, **more) as client,
    ):
        result = await client.initialize()

        async def again() -> Any:
            return result  # the SDK's servers let a client initialize twice, and its tests do

        client.initialize = again
        yield client


mcp.shared.memory.create_connected_server_and_client_session = _connected
