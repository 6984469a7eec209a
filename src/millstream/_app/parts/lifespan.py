"""The lifespans of the program: the server's, then those of mounted servers.

The program's own paths and folders.
"""

from typing import Any

from millstream._app.definition import Definition, on_each_worker
from millstream._app.parts import OwnPart
from millstream._parts import Host


class LifespanPart(OwnPart):
    """Runs the lifespans around the parts that open later. The hub is already open, so they can publish."""

    name: str = "lifespan"

    async def open(self, host: Host) -> None:
        """Enter the lifespans, which may register items and set the instructions.

        Raises:
            ValueError: A registered item can't work.
        """
        host.runs_while_idle |= self.definition.has_lifespan()
        values: dict[Definition, Any] = {}
        host.services.lifespan_of = lambda home: home.nearest(values)

        async def enter(definition: Definition) -> None:
            if definition.lifespan is not None and definition not in values:
                with on_each_worker():
                    values[definition] = await host.stack.enter_async_context(definition.lifespan())
            for mounted in definition.mounted:
                await enter(mounted)

        await enter(self.definition)
        host.dispatcher.instruct(self.definition.instructions)
        self.definition.registry.check_completers()


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
