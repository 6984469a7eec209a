"""The middleware of a server around what is mounted on it: a guard of the whole stands in front of its parts, too."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS
from millstream._server.features.hooks import Hooks, Next
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._functions import inside
from millstream.compat.fastmcp._items import contents, refusing, telling, written_prompt
from millstream.compat.fastmcp._middleware import Asked, run_through
from millstream.compat.fastmcp._prompts import PromptResult
from millstream.compat.fastmcp._tools import ToolResult

if TYPE_CHECKING:
    from millstream.compat.fastmcp._calling import Calling


class Outer:
    """The hooks that our engine puts around the items of mounted servers; those of its own, a server runs inside."""

    def __init__(self, server: "Calling", home: object, middleware: Sequence[Any]) -> None:
        self._server = server
        self._home = home
        self._middleware = middleware
        """More may come."""

    def hooks(self) -> Hooks:
        """For the definition of the server."""
        return Hooks(self._home, call=(self.on_call,), read=(self.on_read,), prompt=(self.on_prompt,))

    async def on_call(self, request: Any, next: Next) -> Any:
        """Around a tool."""
        if not self._middleware:
            return await next(request)

        async def work(asked: Asked) -> Any:
            if asked.name != request.name:
                owner, tool = self._server.tool_and_owner(asked.name)
                return await owner.run_tool(tool, asked.arguments or {}, self._context(request))
            request.arguments = asked.arguments or {}
            return await next(request)

        with telling():
            result = await self._around(request, "tools/call", Asked(request.name, request.arguments), work)
        if isinstance(result, ToolResult):
            return result
        return self._server.tool_and_owner(request.name)[1].converted(result)

    async def on_read(self, request: Any, next: Next) -> Any:
        """Around a resource."""
        if not self._middleware:
            return await next(request)
        uri: str = request.name
        result = await self._refusing(request, "resources/read", Asked(uri=uri), next, INTERNAL_ERROR)
        return contents(result, uri, request.call)

    async def on_prompt(self, request: Any, next: Next) -> Any:
        """Around a prompt."""
        if not self._middleware:
            return await next(request)
        asked = Asked(request.name, request.arguments)
        result = await self._refusing(request, "prompts/get", asked, next, INVALID_PARAMS)
        return written_prompt(result, request.call) if isinstance(result, PromptResult) else result

    async def _refusing(self, request: Any, method: str, asked: Asked, next: Next, code: int) -> Any:
        async def work(after: Asked) -> Any:
            if after.arguments is not None:
                request.arguments = after.arguments
            return await next(request)

        with refusing(code):
            return await self._around(request, method, asked, work)

    async def _around(self, request: Any, method: str, asked: Asked, work: Any) -> Any:
        context = self._context(request)
        with inside(context):
            return await run_through(self._middleware, method, asked, context, work)

    def _context(self, request: Any) -> Context[Any, Any, Any]:
        return Context(self._server, call=request.call, home=self._home)
