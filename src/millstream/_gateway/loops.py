"""Detection of loops between gateways.

Each gateway has an id. A call contains the ids of the gateways that it passed through, and a gateway that finds its own
id rejects the call. Each gateway announces its id, and by prefix the ids of the gateways among its upstreams. A gateway
that finds its own id doesn't offer items with this prefix, so a false id affects only the items of the server that
claims it.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec import Raw

from millstream._gateway.names import Names
from millstream.protocol import MALFORMED, Json, decoder, encode, members

PATH = "millstream.gateway/path"
"""Member of `_meta` with the ids, oldest first."""


CAPABILITY = "millstream.gateway"
"""Experimental capability with an `Announcement`."""


STARTING = "starting"
"""Member of an announcement: the number of upstreams that haven't returned their first lists yet, nor failed."""


MAX_HOPS = 8
"""Maximum gateways that a call may pass."""


MAX_LOOPS = 64
"""Maximum loops to this gateway to compare with each upstream item. Calls through other loops end in `extend_path`.
"""


_MAX_ID = 32


_MAX_ANNOUNCEMENT = 64 * 1024
"""Maximum size of an upstream's announcement, in bytes. A larger one is ignored."""


Announcement = Json
"""`id` of a gateway, and `upstreams`: prefix -> the announcement of a gateway among them."""


_decode_path = decoder(list[str])


class GatewayLoop(Exception):
    """A call returned to a gateway that it had passed, or passed too many gateways."""


def identity(secret: bytes, server: str, targets: Sequence[tuple[str, str]]) -> str:
    """Return the id of a gateway, which is the same for all of its workers and after a restart.

    Args:
        secret: Secret of the server.
        server: Name of the server.
        targets: Name and target of each upstream.
    """
    return hmac.new(secret, encode([server, targets]), hashlib.sha256).hexdigest()[:16]


def extend_path(raw: Raw | None, gateway_id: str) -> Raw:
    """Append this gateway's id to the path of a call.

    Args:
        raw: Path of the incoming call, as JSON.
        gateway_id: Id of this gateway.

    Raises:
        GatewayLoop: The call has already passed this gateway, or the path is too long.
    """
    try:
        path = [] if raw is None else _decode_path(raw)
    except MALFORMED:
        path = []
    if gateway_id in path or len(path) >= MAX_HOPS:
        raise GatewayLoop
    return Raw(encode([*(each[:_MAX_ID] for each in path), gateway_id]))


def read_announcement(capabilities: Mapping[str, Any], gateway_id: str) -> Announcement:
    """Return an upstream's announcement, or an empty one if it isn't a gateway. Gateways behind `gateway_id` are left
    out."""
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


def find_loops(announcement: Announcement, gateway_id: str) -> list[tuple[Names, ...]]:
    """Return the prefixes of an upstream's items that come from this gateway, outermost first, at most `MAX_LOOPS`."""
    return list(islice(_loops(announcement, gateway_id), MAX_LOOPS))


def _loops(announcement: Announcement, gateway_id: str) -> Iterator[tuple[Names, ...]]:
    if announcement.get("id") == gateway_id:
        yield ()
    for prefix, each in announcement.get("upstreams", {}).items():
        for rest in _loops(each, gateway_id):
            yield (Names(prefix), *rest)


def leads_back(loops: Iterable[Iterable[Names]], kind: str, name: str) -> bool:
    """Return whether an upstream's item has one of the prefixes from `find_loops`."""
    for prefixes in loops:
        original: str | None = name
        for names in prefixes:
            original = None if original is None else names.original(kind, original)
        if original is not None:
            return True
    return False
