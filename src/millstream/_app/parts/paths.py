"""The program's own paths and folders."""

from millstream._app.parts import OwnPart
from millstream._parts import Host


class PathsPart(OwnPart):
    """Adds the routes of ``@mcp.route`` and ``mcp.static`` to the paths of earlier parts."""

    name: str = "paths"

    async def open(self, host: Host) -> None:
        """Add the paths once HTTP is served, because the lifespan may register some."""
        host.on_http(lambda: self._serve(host))

    def _serve(self, host: Host) -> None:
        definition, settings = self.definition, host.settings
        if any(definition.paths()):
            from millstream._app.user_routes import UserRoutes  # noqa: PLC0415  it loads Starlette

            user = UserRoutes(
                definition.paths(), served=settings.mcp_paths, show_errors=lambda: definition.settings.show_errors
            )
            user.join(host.routes)
