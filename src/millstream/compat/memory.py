"""A client session to a server of the same process, as in the official SDK's ``mcp.shared.memory``.

Experimental: a minor version can change it. See Stability in the documentation.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel

from millstream.client import ServerError
from millstream.compat import types
from millstream.compat.fastmcp import FastMCP, McpError
from millstream.protocol import NEWEST_HANDSHAKE, Json
from millstream.testing import TestClient, connect

M = TypeVar("M", bound=BaseModel)


class ClientSession:
    """An initialized session, with the methods of the SDK's ``ClientSession``.

    Args:
        client: The connected client.
    """

    def __init__(self, client: TestClient) -> None:
        self._client = client

    async def _ask(self, result: type[M], method: str, **params: Any) -> M:
        try:
            return result.model_validate(await self._client.request(method, params))
        except ServerError as error:
            data = types.ErrorData(code=error.code, message=error.message, data=error.data)
            raise McpError(data) from None

    async def send_ping(self) -> types.EmptyResult:
        """Send a ping."""
        return await self._ask(types.EmptyResult, "ping")

    async def list_tools(self) -> types.ListToolsResult:
        """List the tools."""
        return await self._ask(types.ListToolsResult, "tools/list")

    async def call_tool(self, name: str, arguments: Json | None = None) -> types.CallToolResult:
        """Call a tool."""
        return await self._ask(types.CallToolResult, "tools/call", name=name, arguments=arguments or {})

    async def list_resources(self) -> types.ListResourcesResult:
        """List the resources."""
        return await self._ask(types.ListResourcesResult, "resources/list")

    async def list_resource_templates(self) -> types.ListResourceTemplatesResult:
        """List the resource templates."""
        return await self._ask(types.ListResourceTemplatesResult, "resources/templates/list")

    async def read_resource(self, uri: Any) -> types.ReadResourceResult:
        """Read a resource."""
        return await self._ask(types.ReadResourceResult, "resources/read", uri=str(uri))

    async def list_prompts(self) -> types.ListPromptsResult:
        """List the prompts."""
        return await self._ask(types.ListPromptsResult, "prompts/list")

    async def get_prompt(self, name: str, arguments: dict[str, str] | None = None) -> types.GetPromptResult:
        """Return the messages of a prompt."""
        return await self._ask(types.GetPromptResult, "prompts/get", name=name, arguments=arguments or {})


@asynccontextmanager
async def create_connected_server_and_client_session(
    server: FastMCP[Any], read_timeout_seconds: object = None, *, raise_exceptions: bool = False
) -> AsyncGenerator[ClientSession]:
    """Run a server in memory and connect to it: ``async with create_connected_server_and_client_session(mcp) as s:``.

    Args:
        server: The server.
        read_timeout_seconds: Ignored.
        raise_exceptions: Ignored.
    """
    async with connect(server.engine, revision=NEWEST_HANDSHAKE.date) as client:
        yield ClientSession(client)
