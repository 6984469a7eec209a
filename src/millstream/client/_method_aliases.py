"""Aliases of `Client` methods, under the names that other MCP libraries use."""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from millstream._protocol.content import ResourceContents
from millstream._protocol.notifications import (
    GetPromptResult,
    PromptDescription,
    ResourceDescription,
    TemplateDescription,
    ToolDescription,
)
from millstream.client._results import Result

if TYPE_CHECKING:
    from millstream.client._client import Client

_ELSEWHERE = {
    "close": "Leave the block: `async with Client(…) as client:` closes it.",
    "connect": "Write `async with Client(…) as client:`.",
    "initialize": "`async with Client(…)` does that; see `server`, `capabilities`, and `revision`.",
    "initialize_result": "See `server`, `capabilities`, `instructions`, and `revision`.",
    "invoke": "Write `await client.call(name, arguments)`.",
    "is_connected": "A client is connected inside `async with Client(…) as client:`.",
    "send_ping": "Write `await client.ping()`.",
    "send_request": "Write `await client.request(method, params)`.",
    "send_roots_list_changed": "Write `await client.roots_changed()`.",
    "session": "The client has the session's methods: `await client.call(name, arguments)`.",
    "set_logging_level": "Write `await client.set_log_level(level)`.",
    "subscribe_resource": "Write `async with client.watch(uri) as changes:`.",
}
"""Name in other packages -> what to write here."""


class ClientAliases:
    """Base class of `Client`. New programs should use the short names: `call`, `tools`, `read`, `prompt`."""

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 0,
        raise_on_error: bool = True,
    ) -> Result:
        """Call a tool; alias of `call`: ``await client.call_tool("add", {"a": 1})``."""
        return await cast("Client", self).call(name, arguments or {}, timeout=timeout, raise_on_error=raise_on_error)

    async def list_tools(self) -> list[ToolDescription]:
        """Return all tools; see `tools`."""
        return await cast("Client", self).tools()

    async def list_resources(self) -> list[ResourceDescription]:
        """Return all resources; see `resources`."""
        return await cast("Client", self).resources()

    async def list_resource_templates(self) -> list[TemplateDescription]:
        """Return all resource templates; see `templates`."""
        return await cast("Client", self).templates()

    async def list_prompts(self) -> list[PromptDescription]:
        """Return all prompts; see `prompts`."""
        return await cast("Client", self).prompts()

    async def read_resource(self, uri: str) -> list[ResourceContents]:
        """Read a resource; alias of `read`."""
        return await cast("Client", self).read(str(uri))

    async def get_prompt(self, name: str, arguments: Mapping[str, str] | None = None) -> GetPromptResult:
        """Return the messages of a prompt; alias of `prompt`."""
        return await cast("Client", self).prompt(name, arguments)

    def __enter__(self) -> NoReturn:
        """Reject a plain ``with``.

        Raises:
            TypeError: always; the message says what to use instead.
        """
        raise TypeError(
            "Client is asynchronous: write `async with Client(…)`, or use BlockingClient of millstream.client."
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        """Do nothing, because `__enter__` never returns."""

    if not TYPE_CHECKING:  # type checkers would accept every name

        def __getattr__(self, name: str) -> Any:
            from millstream._protocol.errors import no_attribute  # noqa: PLC0415  only after a mistake

            raise no_attribute(self, name, _ELSEWHERE)
