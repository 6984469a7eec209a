"""The presence of one worker without a hub, so tests of stores can change it."""

from typing import Any

import msgspec

from millstream.hub import HubLimits, Member
from millstream.hub._event import unpack
from millstream.hub._journal import Journal
from millstream.hub._presence import STREAM, Presence

__all__ = ["STREAM", "Clients", "announced"]


class Clients:
    """The clients that are connected to one worker."""

    def __init__(self, store: Any) -> None:
        self.presence = Presence(store, Journal(store, HubLimits(), store.time), store.time, _ignore)

    async def join(self, channel: str, client: str, name: str = "") -> None:
        """Add a connection of a client."""
        self.presence.connect((channel, client), Member(client, name))
        await self.presence.update((channel, client))

    async def leave(self, channel: str, client: str) -> None:
        """Remove a connection of a client, if it has one."""
        connections = self.presence._connections.get((channel, client), [])
        if connections:
            self.presence.disconnect((channel, client), connections[0])
        await self.presence.update((channel, client))

    async def on(self, channel: str) -> list[str]:
        """Return the names of the clients on a channel, or their ids if they have none."""
        return [member.name or member.client_id for member in await self.presence.members(channel)]


async def announced(store: Any) -> list[str]:
    """Return all arrivals and departures, such as ``join chat ann``."""
    events, position = list[str](), None
    while page := await store.log.read(STREAM, position):
        position = page[-1].position
        for entry in page:
            event = unpack(entry)
            client = msgspec.json.decode(event.data or b"", type=Member).client_id
            events.append(f"{event.event} {event.channel.removeprefix('$presence.')} {client}")
    return events


async def _ignore(position: object) -> None:
    """Don't wait until an event is delivered: nothing delivers it."""
