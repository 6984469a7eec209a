"""`server/discover`: the first request of a per-request-era client. The result can be cached."""

from collections.abc import Mapping

from millstream._server.calls.call import Call
from millstream._server.dispatch import Handler
from millstream._server.features.capabilities import ServerDescription


class DiscoveryHandlers:
    """The handler of `server/discover`."""

    def __init__(self, announcement: ServerDescription) -> None:
        self._announcement = announcement

    def table(self) -> Mapping[str, Handler]:
        return {"server/discover": self.discover}

    async def discover(self, call: Call) -> bytes:
        """Return versions, capabilities, and instructions."""
        call.meta = self._announcement.discover_meta(call.revision)
        return self._announcement.discover(call.revision)
