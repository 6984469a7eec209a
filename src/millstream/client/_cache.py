"""A cache of results that carry a time to live, emptied when the server reports a change.

See https://modelcontextprotocol.io/specification/2026-07-28/server/utilities/caching. Each client has its own
cache, so public and private results are treated the same.
"""

import time
from collections import OrderedDict
from typing import Any

from millstream.client._server_messages import Change

_MAX_ENTRIES = 512
"""Maximum number of cached results."""
_MAX_TTL_MS = 24 * 3600 * 1000
_LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
}


class Cache:
    """A least-recently-used cache of results."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, bytes], tuple[float, Any]] = OrderedDict()

    def get(self, method: str, params: bytes) -> Any:
        """Return the cached result, or None if it's missing or stale."""
        found = self._entries.get((method, params))
        if found is None:
            return None
        until, result = found
        if until <= time.monotonic():
            del self._entries[method, params]
            return None
        self._entries.move_to_end((method, params))
        return result

    def put(self, method: str, params: bytes, result: Any, ttl_ms: int) -> None:
        """Cache a result for `ttl_ms` milliseconds."""
        if ttl_ms <= 0:
            return
        self._entries[method, params] = (time.monotonic() + min(ttl_ms, _MAX_TTL_MS) / 1000, result)
        self._entries.move_to_end((method, params))
        while len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)

    def invalidate(self, change: Change, subscription: Any) -> None:
        """Drop the results that a change affects."""
        for method, params in list(self._entries):
            if change.kind == "again" or _LISTS.get(method) == change.kind:
                del self._entries[method, params]
            elif change.kind == "resource" and method == "resources/read":
                del self._entries[method, params]  # An update may be for a part of the cached resource.
