"""Gateways behind each other: calls and lists that would go in a circle are noticed.

Each gateway has an id. Calls carry the ids of the gateways that they passed, and each gateway announces its own and
those behind it. One that finds its own id refuses the call, or offers nothing of that upstream.
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
"""The member of `_meta` that carries ids, oldest first."""
CAPABILITY = "millstream.gateway"
"""The experimental capability that announces ids."""
MAX_HOPS = 8
"""Gateways that a call may pass."""
_MAX_IDS = 64

_decode_path = msgspec.json.Decoder(list[str]).decode


class Cycle(Exception):
    """A call has come back to a gateway that it passed, or passed too many of them."""


def identity(secret: bytes, server: str, places: Sequence[tuple[str, str]]) -> str:
    """Return the id of a gateway: the same for all of its workers, and after a restart.

    Args:
        secret: of the server.
        server: its name.
        places: name and target of each upstream.
    """
    return hmac.new(secret, encode([server, places]), hashlib.sha256).hexdigest()[:16]


def extend_path(raw: Raw | None, own: str) -> Raw:
    """Return the ids of a call that leaves a gateway.

    Args:
        raw: those that it came with, as JSON.
        own: the id of the gateway.

    Raises:
        Cycle: the call was here before, or there are too many ids.
    """
    try:
        path = [] if raw is None else _decode_path(raw)
    except (msgspec.DecodeError, RecursionError):
        path = []
    if own in path or len(path) >= MAX_HOPS:
        raise Cycle
    return Raw(encode([*(each[:32] for each in path), own]))


def announced_ids(capabilities: Mapping[str, Any]) -> list[str]:
    """Return the ids that an upstream announces: its own, and those of the gateways behind it."""
    experimental = capabilities.get("experimental")
    found = experimental.get(CAPABILITY) if is_object(experimental) else None
    ids = found.get("ids") if is_object(found) else None
    return [each[:32] for each in ids[:_MAX_IDS] if isinstance(each, str)] if is_array(ids) else []
