"""``mcp.hub``: the hub of a server, for the program around it.

It can be used from the first line of a program to the last: before the first request, in the lifespan of the server
or of the application that it is mounted in, and after the server was idle for long. What needs the hub opens it.
"""

from typing import TYPE_CHECKING, Any

from millstream._app.runtimes import Runtimes
from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream.hub import Event, Hub, HubStats, Member, Published


class HubAccess:
    """What a program does with the hub. Arguments and errors are those of `Hub`."""

    __slots__ = ("_runtimes",)

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes

    async def _open(self) -> "Hub":
        hub = self._runtimes.hub
        if hub is None:
            hub = (await self._runtimes.start()).hub
        if hub is None:
            raise no_hub(self._runtimes.definition.name)
        return hub

    async def publish(self, channel: str, data: Any, *, event: str | None = None, id: str | None = None) -> "Published":
        """Publish to a channel, see `Hub.publish`."""
        return await (await self._open()).publish(channel, data, event=event, id=id)

    async def send(
        self,
        client_id: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        principal: "Principal | None" = None,
    ) -> "Published":
        """Publish to one client, see `Hub.send`."""
        return await (await self._open()).send(client_id, data, event=event, id=id, principal=principal)

    async def presence(self, channel: str) -> "list[Member]":
        """The clients on a channel, see `Hub.presence`."""
        return await (await self._open()).presence(channel)

    async def history(self, channel: str, count: int = 50) -> "list[Event]":
        """The newest events of a channel, see `Hub.history`."""
        return await (await self._open()).history(channel, count)

    def stats(self) -> "HubStats":
        """The state of this worker's part of the hub.

        Raises:
            LocalError: the hub has not been opened yet.
        """
        hub = self._runtimes.hub
        if hub is None:
            raise LocalError("The hub is not open here yet. The first request opens it, and so does a publication.")
        return hub.stats()


def no_hub(name: str) -> LocalError:
    """The error for a program that wants a hub from a server that serves none."""
    return LocalError(f'{name!r} serves no hub. Write Server({name!r}, serve="hub"), or run it with --serve hub.')
