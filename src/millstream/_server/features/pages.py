"""One page of a list, encoded. A cursor names the last item of a page, so any worker can continue a listing."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from millstream._protocol import revisions
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._protocol.revisions import Revision

_MEMBERS = {"tools": "tools", "resources": "resources", "templates": "resourceTemplates", "prompts": "prompts"}
"""Kind -> member of the list result."""


def page_of(
    kind: str,
    items: Mapping[str, Any],
    revision: Revision,
    cursor: str | None,
    *,
    size: int,
    ttl_ms: int,
    private: bool,
) -> bytes:
    """Return the members of one page.

    Args:
        kind: The kind of items.
        items: All items visible to the caller, by name.
        revision: The client's revision.
        cursor: The end of the last page.
        size: Items per page.
        ttl_ms: How long a client can cache the page.
        private: Whether only the caller can cache it.

    Raises:
        ProtocolError: INVALID_PARAMS, for an unknown cursor.
    """
    names = list(items)
    start = 0 if cursor is None else _start(kind, names, cursor)
    shown = names[start : start + size]
    describe = revisions.tool if kind == "tools" else revisions.project_item
    result: dict[str, Any] = {_MEMBERS[kind]: [describe(items[name].describe(), revision) for name in shown]}
    if start + size < len(names):
        result["nextCursor"] = base64.urlsafe_b64encode(f"{kind}:{shown[-1]}".encode()).decode()
    if revision.result_type:
        result |= {"ttlMs": ttl_ms, "cacheScope": "private" if private else "public"}
    return encode(result)[1:-1]


def _start(kind: str, names: Iterable[str], cursor: str) -> int:
    try:
        found, _, name = base64.b64decode(cursor, b"-_", validate=True).decode().partition(":")
        if found == kind:
            return list(names).index(name) + 1
    except (ValueError, binascii.Error):
        pass
    raise ProtocolError(INVALID_PARAMS, "Invalid cursor. List again from the start.")
