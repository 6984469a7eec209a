"""REST: a path for each tool, and their OpenAPI document and page."""

from millstream._app.parts import OwnPart
from millstream._parts import Host, Route


class RestPart(OwnPart):
    """Serves tools as plain HTTP."""

    name: str = "rest"

    async def open(self, host: Host) -> None:
        """Add the paths once HTTP is served."""
        host.on_http(lambda: self._serve(host))

    def _serve(self, host: Host) -> None:
        from millstream._transports.rest.routes import TOOLS_PATH, RestRoutes  # noqa: PLC0415  see the part of MCP
        from millstream._web.pages import add_pages, redirect_to  # noqa: PLC0415

        rest, routes = RestRoutes(host.dispatcher, events=host.hub is not None), host.routes
        routes.add("/mcp/tools/list", Route({"POST": rest.list_tools}))
        routes.add("/mcp/tools/call", Route({"POST": rest.call_tool}))
        routes.add("/openapi.json", Route({"GET": rest.describe}))
        routes.add_prefix(TOOLS_PATH, Route({"POST": rest.run_tool}))
        if "web" not in self.definition.parts:
            add_pages(routes, ("docs",))
            routes.home = "/docs", redirect_to("docs")
