"""``mcp.hub``: the hub of a server, for its program.

It's usable at any time: before the first request, in the lifespan of the server or of the application that it's mounted
in, and after a long idle time. The first use opens the hub.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from millstream._app.runtimes import Runtimes
from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream.hub import Event, Hub, HubStats, Member, PublishResult


class HubAccess:
    """The hub for programs. Arguments and errors are those of `Hub`."""

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes

    async def _open(self) -> "Hub":
        hub = self._runtimes.hub
        if hub is None:
            hub = (await self._runtimes.start()).hub
        if hub is None:
            raise no_hub(self._runtimes.definition.name)
        return hub

    async def publish(
        self, channel: str, data: Any, *, event: str | None = None, id: str | None = None
    ) -> "PublishResult":
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
    ) -> "PublishResult":
        """Publish to one client, see `Hub.send`."""
        return await (await self._open()).send(client_id, data, event=event, id=id, principal=principal)

    async def presence(self, channel: str) -> "list[Member]":
        """Return the clients on a channel, see `Hub.presence`."""
        return await (await self._open()).presence(channel)

    async def history(self, channel: str, count: int = 50) -> "list[Event]":
        """Return the newest events of a channel, see `Hub.history`."""
        return await (await self._open()).history(channel, count)

    async def listen(self, pattern: str, *, name: str = "") -> "AsyncGenerator[Event, None]":
        """Yield the events of a channel or pattern, see `Hub.listen`."""
        async with aclosing((await self._open()).listen(pattern, name=name)) as events:
            async for event in events:
                yield event

    def stats(self) -> "HubStats":
        """Return the statistics of this worker's part of the hub.

        Raises:
            LocalError: The hub hasn't been opened yet.
        """
        hub = self._runtimes.hub
        if hub is None:
            raise LocalError("The hub isn't open here yet. The first request or publication opens it.")
        return hub.stats()


def no_hub(name: str) -> LocalError:
    """Return the error for a program that uses the hub of a server without one."""
    return LocalError(f'{name!r} serves no hub. Write Server({name!r}, serve="hub"), or run it with --serve hub.')
