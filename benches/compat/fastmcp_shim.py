"""A pytest plugin: the server names of the package fastmcp are the door, and its client is itself."""

import importlib
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import fastmcp.exceptions
import mcp_types
from mcp.shared.message import SessionMessage

from benches.compat import values
from benches.compat.memory_session import streams_of
from millstream._transports.memory import MemoryPipe
from millstream.compat.fastmcp import _context as contexts
from millstream.compat.fastmcp import (
    _dependencies as dependencies,
)
from millstream.compat.fastmcp import _elicitation as elicitations
from millstream.compat.fastmcp import (
    _exceptions as exceptions,
)
from millstream.compat.fastmcp import (
    _guarding as guarding,
)
from millstream.compat.fastmcp import (
    _marking as marking,
)
from millstream.compat.fastmcp import (
    _middleware as middleware,
)
from millstream.compat.fastmcp import (
    _prompts as prompts,
)
from millstream.compat.fastmcp import (
    _resources as resources,
)
from millstream.compat.fastmcp import (
    _templates as templates,
)
from millstream.compat.fastmcp import (
    _tools as tools,
)
from millstream.compat.fastmcp import (
    standalone,
)
from millstream.compat.fastmcp._media import Audio, File, Image
from millstream.compat.fastmcp._server import StandaloneFastMCP
from millstream.compat.fastmcp._ways import STANDALONE

# Before anything of fastmcp imports them: one `ToolError` for the door and for fastmcp's client.
for _name in ("FastMCPError", "ToolError", "ResourceError", "PromptError", "ValidationError", "NotFoundError"):
    setattr(fastmcp.exceptions, _name, getattr(exceptions, _name))

values.use(mcp_types)


Tool = standalone.Tool


class Prompt(prompts.Prompt):
    """The door's prompt, made with fastmcp's ways."""

    @classmethod
    def from_function(cls, fn: Any, name: Any = None, **options: Any) -> Any:
        options.setdefault("ways", STANDALONE)
        return super().from_function(fn, name, **options)


class ResourceTemplate(templates.ResourceTemplate):
    """The door's template, made with fastmcp's ways."""

    @classmethod
    def from_function(cls, fn: Any, uri_template: str, name: Any = None, **options: Any) -> Any:
        options.setdefault("ways", STANDALONE)
        return super().from_function(fn, uri_template, name, **options)


def _named(*names: str) -> dict[str, Any]:
    return {name: getattr(standalone, name) for name in names}


_PATCHED: dict[str, dict[str, Any]] = {
    "fastmcp.server.server": {"FastMCP": StandaloneFastMCP, "create_proxy": standalone.create_proxy},
    "fastmcp.server": {"FastMCP": StandaloneFastMCP, "create_proxy": standalone.create_proxy},
    "fastmcp.server.providers.proxy": {
        "FastMCPProxy": standalone.FastMCPProxy,
        "ProxyClient": standalone.ProxyClient,
        "ProxyProvider": standalone.ProxyProvider,
        "StatefulProxyClient": standalone.StatefulProxyClient,
    },
    "fastmcp.server.providers.openapi": {
        name: getattr(standalone, name)
        for name in (
            "MCPType",
            "RouteMap",
            "OpenAPIProvider",
            "OpenAPITool",
            "OpenAPIResource",
            "OpenAPIResourceTemplate",
        )
    },
    "fastmcp.server.providers.openapi.routing": {"MCPType": standalone.MCPType, "RouteMap": standalone.RouteMap},
    "fastmcp.server.context": {"Context": contexts.Context},
    "fastmcp.server.dependencies": {name: getattr(dependencies, name) for name in dependencies.__all__},
    "fastmcp.dependencies": {name: getattr(dependencies, name) for name in dependencies.__all__},
    "fastmcp.server.elicitation": {
        name: getattr(elicitations, name)
        for name in ("AcceptedElicitation", "DeclinedElicitation", "CancelledElicitation")
    },
    "fastmcp.server.middleware.middleware": {
        "Middleware": middleware.Middleware,
        "MiddlewareContext": middleware.MiddlewareContext,
    },
    "fastmcp.server.middleware": {
        "Middleware": middleware.Middleware,
        "MiddlewareContext": middleware.MiddlewareContext,
    },
    "fastmcp.tools.base": {"Tool": Tool, "ToolResult": tools.ToolResult},
    "fastmcp.server.middleware.timing": _named("TimingMiddleware", "DetailedTimingMiddleware"),
    "fastmcp.server.middleware.logging": _named("LoggingMiddleware", "StructuredLoggingMiddleware"),
    "fastmcp.server.middleware.error_handling": _named("ErrorHandlingMiddleware", "RetryMiddleware"),
    "fastmcp.server.middleware.rate_limiting": {
        **_named("RateLimitError", "RateLimitingMiddleware", "SlidingWindowRateLimitingMiddleware"),
        "TokenBucketRateLimiter": guarding.TokenBucketRateLimiter,
        "SlidingWindowRateLimiter": guarding.SlidingWindowRateLimiter,
    },
    "fastmcp.tools.function_tool": {"FunctionTool": Tool, "ToolMeta": marking.ToolMeta, **_named("tool")},
    "fastmcp.tools.tool_transform": _named("ArgTransform", "TransformedTool", "forward", "forward_raw"),
    "fastmcp.tools": {
        "ToolResult": tools.ToolResult,
        **_named("Tool", "FunctionTool", "tool", "forward", "forward_raw"),
    },
    "fastmcp.resources.base": {
        name: getattr(resources, name) for name in ("Resource", "ResourceContent", "ResourceResult")
    },
    "fastmcp.resources.function_resource": {
        "FunctionResource": resources.FunctionResource,
        "ResourceMeta": marking.ResourceMeta,
        **_named("resource"),
    },
    "fastmcp.resources.template": {"ResourceTemplate": ResourceTemplate},
    "fastmcp.resources.types": {
        name: getattr(resources, name)
        for name in ("TextResource", "BinaryResource", "FileResource", "DirectoryResource", "HttpResource")
    },
    "fastmcp.resources": {
        **{
            name: getattr(standalone, name)
            for name in standalone.__all__
            if "Resource" in name and name != "ResourceError"
        },
        **_named("resource"),
        "ResourceTemplate": ResourceTemplate,
        "BinaryResource": resources.BinaryResource,
        "DirectoryResource": resources.DirectoryResource,
        "HttpResource": resources.HttpResource,
    },
    "fastmcp.prompts.base": {"Prompt": Prompt, "Message": prompts.Message, "PromptResult": prompts.PromptResult},
    "fastmcp.prompts.function_prompt": {"FunctionPrompt": Prompt, "PromptMeta": marking.PromptMeta, **_named("prompt")},
    "fastmcp.prompts": {
        "Prompt": Prompt,
        "Message": prompts.Message,
        "PromptResult": prompts.PromptResult,
        **_named("prompt"),
    },
    "fastmcp.utilities.types": {"Image": Image, "Audio": Audio, "File": File},
}

for _name in _PATCHED:
    importlib.import_module(_name)
for _name, _members in _PATCHED.items():
    for _member, _value in _members.items():
        setattr(sys.modules[_name], _member, _value)


class _LowLevel:
    """What fastmcp's in-memory transport runs."""

    def __init__(self, server: Any) -> None:
        self._server = server

    async def __aenter__(self) -> Any:
        self._open = streams_of(
            self._server.engine,
            SessionMessage,
            mcp_types.jsonrpc_message_adapter.validate_json,
            lambda sent: sent.message.model_dump_json(by_alias=True, exclude_none=True).encode(),
        )
        return await self._open.__aenter__()

    async def __aexit__(self, *exc: object) -> Any:
        return await self._open.__aexit__(*exc)

    def create_initialization_options(self, **options: Any) -> None:
        """Nothing that the door needs."""

    async def run(self, read: Any, write: Any, options: Any = None, **more: Any) -> None:
        """Serve these streams until they end."""
        runtime = await self._server.engine.start(supervised=True)
        pipe = MemoryPipe(runtime.dispatcher)

        async def speak() -> None:
            while True:
                message = mcp_types.jsonrpc_message_adapter.validate_json(await pipe.receive())
                await write.send(SessionMessage(message))

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(speak)
                async for message in read:
                    pipe.send(message.message.model_dump_json(by_alias=True, exclude_none=True).encode())
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await pipe.close()


@asynccontextmanager
async def _running(server: Any) -> AsyncGenerator[None]:
    async with server.session_manager.run():
        yield


StandaloneFastMCP._mcp_server = property(_LowLevel)  # type: ignore[attr-defined]
StandaloneFastMCP._lifespan_manager = _running  # type: ignore[attr-defined]
