"""`server/discover`: a client of the per-request era asks this first. The answer can be cached and isn't an error."""

from collections.abc import Mapping

from millstream._server.calls.call import Call
from millstream._server.dispatch import Handler
from millstream._server.features.capabilities import ServerDescription


class DiscoveryHandlers:
    """The handler of `server/discover`."""

    __slots__ = ("_announcement",)

    def __init__(self, announcement: ServerDescription) -> None:
        self._announcement = announcement

    def table(self) -> Mapping[str, Handler]:
        return {"server/discover": self.discover}

    async def discover(self, call: Call) -> bytes:
        """Versions, capabilities, instructions."""
        call.meta = self._announcement.discover_meta(call.revision)
        return self._announcement.discover(call.revision)
