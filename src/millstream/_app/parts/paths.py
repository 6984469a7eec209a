"""Paths and folders of the program's own."""

from millstream._app.parts import OwnPart
from millstream._parts import Host


class PathsPart(OwnPart):
    """Adds what the program registered by ``@mcp.route`` and ``mcp.static`` to the paths of the parts before it."""

    name: str = "paths"

    async def open(self, host: Host) -> None:
        """Add the paths once HTTP is served: the lifespan may register some."""
        host.on_http(lambda: self._serve(host))

    def _serve(self, host: Host) -> None:
        definition, settings = self.definition, host.settings
        if any(definition.paths()):
            from millstream._app.user_routes import UserRoutes  # noqa: PLC0415  it loads Starlette

            user = UserRoutes(
                definition.paths(), served=settings.mcp_paths, show_errors=lambda: definition.settings.show_errors
            )
            user.join(host.routes)
