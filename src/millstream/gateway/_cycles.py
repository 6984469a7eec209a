"""Detection of loops between gateways.

Each gateway has an id. A call carries the ids of the gateways that it passed, and a gateway that finds its own id
refuses the call. Each gateway announces its id, and by prefix the ids of the gateways among its upstreams. A gateway
that finds its own id offers nothing with this prefix, so a false id costs only the items of the server that claims it.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw

from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, decoder, encode
from millstream.gateway._names import Names

PATH = "millstream.gateway/path"
"""Member of `_meta` with the ids, oldest first."""
CAPABILITY = "millstream.gateway"
"""Experimental capability with an `Announcement`."""
MAX_HOPS = 8
"""Maximum gateways that a call may pass."""
_MAX_ID = 32
_MAX_ANNOUNCEMENT = 64 * 1024
"""Maximum bytes of an upstream's announcement; a larger one is ignored."""

Announcement = dict[str, Any]
"""`id` of a gateway, and `upstreams`: prefix -> the announcement of a gateway among them."""

_decode_path = decoder(list[str])


class Cycle(Exception):
    """A call returned to a gateway that it had passed, or passed too many gateways."""


def identity(secret: bytes, server: str, targets: Sequence[tuple[str, str]]) -> str:
    """Return the id of a gateway, which is the same for all of its workers and after a restart.

    Args:
        secret: secret of the server.
        server: name of the server.
        targets: name and target of each upstream.
    """
    return hmac.new(secret, encode([server, targets]), hashlib.sha256).hexdigest()[:16]


def extend_path(raw: Raw | None, gateway_id: str) -> Raw:
    """Append this gateway's id to the path of a call.

    Args:
        raw: path of the incoming call, as JSON.
        gateway_id: id of this gateway.

    Raises:
        Cycle: the call has already passed this gateway, or the path is too long.
    """
    try:
        path = [] if raw is None else _decode_path(raw)
    except MALFORMED:
        path = []
    if gateway_id in path or len(path) >= MAX_HOPS:
        raise Cycle
    return Raw(encode([*(each[:_MAX_ID] for each in path), gateway_id]))


def read_announcement(capabilities: Mapping[str, Any], gateway_id: str) -> Announcement:
    """Return what an upstream announces; empty unless it's a gateway. Gateways behind `gateway_id` are left out."""
    found = members(members(capabilities.get("experimental")).get(CAPABILITY))
    return _read(found, gateway_id, MAX_HOPS) if len(encode(found)) <= _MAX_ANNOUNCEMENT else {}


def _read(found: Mapping[str, Any], gateway_id: str, hops: int) -> Announcement:
    if not hops or not isinstance(found.get("id"), str):
        return {}
    behind = members(found.get("upstreams")) if found["id"] != gateway_id else {}
    upstreams = {
        prefix: read for prefix, each in behind.items() if (read := _read(members(each), gateway_id, hops - 1))
    }
    return {"id": found["id"][:_MAX_ID], "upstreams": upstreams}


def find_loops(announcement: Announcement, gateway_id: str) -> list[tuple[str, ...]]:
    """Return the prefixes, outermost first, of the items of an upstream that come from this gateway."""
    if announcement.get("id") == gateway_id:
        return [()]
    upstreams = announcement.get("upstreams", {}).items()
    return [(prefix, *rest) for prefix, each in upstreams for rest in find_loops(each, gateway_id)]


def leads_back(loops: Sequence[tuple[str, ...]], name: str, *, is_uri: bool) -> bool:
    """Return whether an item of an upstream has one of the prefixes of `find_loops`."""
    return any(_has_prefixes(prefixes, name, is_uri) for prefixes in loops)


def _has_prefixes(prefixes: Sequence[str], name: str, is_uri: bool) -> bool:
    if not is_uri:
        return name.startswith("".join(Names(prefix).name("") for prefix in prefixes))
    uri: str | None = name
    for prefix in prefixes:
        uri = None if uri is None else Names(prefix).original_uri(uri)
    return uri is not None
