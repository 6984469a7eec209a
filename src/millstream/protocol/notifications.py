"""What clients send besides requests: cancellations, and the progress token of a handshake-era request."""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from millstream.protocol.jsonrpc import RequestId
from millstream.protocol.metadata import ProgressToken


class _Cancelled(Struct, rename="camel", gc=False):
    request_id: RequestId | UnsetType = UNSET


class _TokenMeta(Struct, gc=False):
    token: ProgressToken | UnsetType = msgspec.field(default=UNSET, name="progressToken")


class _TokenParams(Struct, gc=False):
    meta: _TokenMeta | UnsetType = msgspec.field(default=UNSET, name="_meta")


_decode_cancelled = msgspec.json.Decoder(_Cancelled).decode
_decode_token = msgspec.json.Decoder(_TokenParams).decode


def progress_token(params: bytes) -> ProgressToken | None:
    """The progress token of a request; one of a wrong type counts as none."""
    if b'"progressToken"' not in params:
        return None
    try:
        meta = _decode_token(params).meta
    except msgspec.DecodeError:
        return None
    return meta.token if meta is not UNSET and meta.token is not UNSET else None


def cancelled_id(params: bytes) -> RequestId | None:
    """The request that `notifications/cancelled` names; None for a malformed one, which is ignored."""
    try:
        request_id: Any = _decode_cancelled(params or b"{}").request_id
    except msgspec.DecodeError:
        return None
    return None if request_id is UNSET else request_id
