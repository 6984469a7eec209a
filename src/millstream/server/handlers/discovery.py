"""`server/discover`: what a client of the per-request era asks first. Cacheable, never an error when well-formed."""

from collections.abc import Mapping
from typing import Any

from millstream.protocol.jsonrpc import encode
from millstream.protocol.revisions import PER_REQUEST
from millstream.server.call import Call
from millstream.server.dispatch import Handler
from millstream.server.registry import Registry
from millstream.server.services import Services


class DiscoveryHandlers:
    """The handler of `server/discover`."""

    __slots__ = ("_instructions", "_registry", "_ttl_ms")

    def __init__(self, registry: Registry, services: Services, info: dict[str, Any], instructions: str) -> None:
        self._registry = registry
        self._instructions = instructions
        self._ttl_ms = services.settings.discover_ttl_ms

    def table(self) -> Mapping[str, Handler]:
        """Handlers by method."""
        return {"server/discover": self.discover}

    async def discover(self, call: Call) -> bytes:
        """Versions, capabilities, instructions."""
        result: dict[str, Any] = {
            "supportedVersions": list(PER_REQUEST),
            "capabilities": self._registry.capabilities(call.revision),
            "ttlMs": self._ttl_ms,
            "cacheScope": "public",
        }
        if self._instructions:
            result["instructions"] = self._instructions
        return encode(result)[1:-1]
