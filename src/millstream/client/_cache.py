"""Results that a server lets its clients keep for a while, until their time is up or something changes.

https://modelcontextprotocol.io/specification/2026-07-28/server/utilities/caching. They belong to one client, so to one
set of credentials: public and private ones are kept alike.
"""

import time
from collections import OrderedDict
from typing import Any

from millstream.client._incoming import Change

_ROOM = 512
"""Results that are kept."""
_LONGEST_MS = 24 * 3600 * 1000
_LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
}


class Cache:
    """The newest results, the least used of which go first."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, bytes], tuple[float, Any]] = OrderedDict()

    def get(self, method: str, params: bytes) -> Any:
        """The result, or None when there's none that is fresh."""
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
        """Keep a result for as long as the server says."""
        if ttl_ms <= 0:
            return
        self._entries[method, params] = (time.monotonic() + min(ttl_ms, _LONGEST_MS) / 1000, result)
        self._entries.move_to_end((method, params))
        while len(self._entries) > _ROOM:
            self._entries.popitem(last=False)

    def hear(self, change: Change, subscription: Any) -> None:
        """Forget what has changed."""
        for method, params in list(self._entries):
            if change.kind == "again" or _LISTS.get(method) == change.kind:
                del self._entries[method, params]
            elif change.kind == "resource" and method == "resources/read":
                del self._entries[method, params]  # an update may name a part of what was read
