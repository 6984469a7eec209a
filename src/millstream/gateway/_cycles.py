"""Detection of loops between gateways.

Each gateway has an id. A call carries the ids of the gateways that it passed, and each gateway announces its own id and
those behind it. A gateway that finds its own id refuses the call, or offers nothing of that upstream.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import encode

PATH = "millstream.gateway/path"
"""Member of `_meta` with the ids, oldest first."""
CAPABILITY = "millstream.gateway"
"""Experimental capability that announces ids."""
MAX_HOPS = 8
"""Maximum gateways that a call may pass."""
_MAX_IDS = 64

_decode_path = msgspec.json.Decoder(list[str]).decode


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
    except (msgspec.DecodeError, RecursionError):
        path = []
    if gateway_id in path or len(path) >= MAX_HOPS:
        raise Cycle
    return Raw(encode([*(each[:32] for each in path), gateway_id]))


def announced_ids(capabilities: Mapping[str, Any]) -> list[str]:
    """Return the ids that an upstream announces: its own, and those of the gateways behind it."""
    experimental = capabilities.get("experimental")
    found = experimental.get(CAPABILITY) if is_object(experimental) else None
    ids = found.get("ids") if is_object(found) else None
    return [each[:32] for each in ids[:_MAX_IDS] if isinstance(each, str)] if is_array(ids) else []
