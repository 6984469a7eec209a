"""The server's description of itself, for `initialize` and `server/discover`. It's encoded once per revision and
cached.

It depends on name, instructions, capabilities, and cache hints. Capabilities are only added, so their count shows
whether the cache is stale; other changes clear it.
"""

from typing import Any

from millstream._protocol import revisions
from millstream._protocol.handshake import initialize_result
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import SERVER_KEY
from millstream._protocol.revisions import PER_REQUEST, Revision
from millstream._server.features.registry import DISCOVER, Registry

_DISCOVER_TTL_MS = 3_600_000
"""Cache hint of `server/discover`."""


class ServerDescription:
    """The results of `initialize` and `server/discover` for one server."""

    def __init__(self, registry: Registry, info: dict[str, Any], instructions: str) -> None:
        # Configuration
        self._registry = registry
        self._info = info
        self.instructions: str = instructions
        """Instructions for the client's model. Call `forget` after a change."""
        # Prepared
        self._made: dict[tuple[str, str, bool], bytes] = {}
        self._cached_count = 0
        """Number of capabilities when the cache was filled."""

    def forget(self) -> None:
        """Clear the cache, because the instructions or the value of a capability have changed."""
        self._made.clear()

    def initialize(self, revision: Revision, *, streams: bool = True) -> bytes:
        """Return the result of `initialize`. `streams` is as for `Registry.capabilities`."""
        made = self._cache()
        key = ("initialize", revision.date, streams)
        if key not in made:
            offered = self._registry.capabilities(revision, streams=streams)
            made[key] = initialize_result(revision, offered, self._info, self.instructions)
        return made[key]

    def discover(self, revision: Revision) -> bytes:
        """Return the members of the result of `server/discover`."""
        made = self._cache()
        key = ("server/discover", revision.date, True)
        if key not in made:
            registry = self._registry
            ttl_ms, private = registry.cache_hint(DISCOVER, _DISCOVER_TTL_MS, private=registry.private)
            result: dict[str, Any] = {
                "supportedVersions": list(PER_REQUEST),
                "capabilities": registry.capabilities(revision),
                "ttlMs": ttl_ms,
                "cacheScope": "private" if private else "public",
            }
            if self.instructions:
                result["instructions"] = self.instructions
            made[key] = encode(result)[1:-1]
        return made[key]

    def discover_meta(self, revision: Revision) -> dict[str, Any]:
        """Return the `_meta` of that result, with all information about the server. Other results repeat only the
        name.
        """
        return {SERVER_KEY: revisions.implementation(self._info, revision)}

    def _cache(self) -> dict[tuple[str, str, bool], bytes]:
        """Return the cache for the current capabilities."""
        if self._cached_count != self._registry.capability_count:
            self._made.clear()
            self._cached_count = self._registry.capability_count
        return self._made
