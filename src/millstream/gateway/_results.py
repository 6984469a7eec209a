"""Conversion of upstream results: removes members that each server sets itself, and adds the prefix to URIs.

Only members that change are decoded. Content, including binary data, isn't re-encoded.
"""

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from millstream._protocol.errors import INTERNAL_ERROR, ProtocolError, ToolError
from millstream._protocol.jsonrpc import decoder, encode
from millstream._protocol.metadata import SERVER_KEY

if TYPE_CHECKING:
    from millstream._server.calls.call import Call

Rename = Callable[[str], str]
"""Returns the URI that clients of the gateway use."""
Members = dict[str, Raw]
MalformedResult = (ValueError, RecursionError)
"""Exceptions raised for a malformed result."""

_COMPLETE = Raw(b'"complete"')
_COMPLETE_TYPES = (bytes(_COMPLETE), b"null")
_OPEN, _NULL = ord("["), ord("n")
_MAX_CACHED_META = 512
MAX_BLOCKS = 10_000
"""Maximum blocks of one result. Converting this many takes about 100 ms."""
_NO_ITEMS = Raw(b"[]")
_decode_members = decoder(Members)
_decode_items = decoder(list[Raw])
_decode_several = decoder(list[Members])
_decode_meta = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_text = decoder(str)


def split_result(result: bytes, array: str, drop: Collection[str] = ()) -> tuple[bytes, dict[str, Any] | None]:
    """Return the members of a result without its type and `_meta`, and the members of `_meta` beyond the server's name.

    Args:
        result: JSON object.
        array: member that must be an array, and is added if missing; empty for none.
        drop: members to leave out.

    Raises:
        ValueError, RecursionError: the result is malformed.
    """
    found = _decode_members(result)
    if bytes(found.pop("resultType", _COMPLETE)) not in _COMPLETE_TYPES:
        raise ValueError("its resultType is unknown")
    if array and (opening := memoryview(found.setdefault(array, _NO_ITEMS))[0]) != _OPEN:
        if opening != _NULL:
            raise ValueError(f"{array} must be an array")
        found[array] = _NO_ITEMS
    if array and len(_decode_items(found[array])) > MAX_BLOCKS:
        raise ValueError(f"it has more than {MAX_BLOCKS:,} blocks")
    meta = found.pop("_meta", None)
    for each in drop:
        found.pop(each, None)
    own_meta: dict[str, Any] | None = None
    if meta is not None:
        raw = bytes(meta)
        own_meta = _read_meta(raw) if len(raw) > _MAX_CACHED_META else _cached_meta(raw)
    return encode(found)[1:-1], own_meta


def _read_meta(meta: bytes) -> dict[str, Any] | None:
    members: dict[str, Any] = _decode_meta(meta) or {}
    members.pop(SERVER_KEY, None)
    return members or None


_cached_meta = lru_cache(256)(_read_meta)
"""Cached, because most results of an upstream have the same `_meta`."""


def has_uris(members: bytes) -> bool:
    """Return whether members of a result may contain URIs. Their names may be escaped."""
    return b'"uri"' in members or b"\\u" in members


def tool_uris(members: bytes, rename: Rename) -> bytes:
    """Rename the URIs of resource links and embedded resources in a tool's result."""
    found = _decode_members(b"{%b}" % members)
    if "content" in found:
        found["content"] = Raw(encode([_block(each, rename) for each in _decode_several(found["content"])]))
    return encode(found)[1:-1]


def message_uris(members: bytes, rename: Rename) -> bytes:
    """Rename the URIs in a prompt's result."""
    found = _decode_members(b"{%b}" % members)
    messages = _decode_several(found["messages"]) if "messages" in found else []
    for message in messages:
        if "content" in message and bytes(message["content"]).startswith(b"{"):
            message["content"] = Raw(encode(_block(_decode_members(message["content"]), rename)))
    found["messages"] = Raw(encode(messages))
    return encode(found)[1:-1]


def resource_uris(members: bytes, rename: Rename) -> bytes:
    """Rename the URIs in the contents of a resource."""
    found = _decode_members(b"{%b}" % members)
    if "contents" in found:
        found["contents"] = Raw(encode([_rename_item(each, rename) for each in _decode_several(found["contents"])]))
    return encode(found)[1:-1]


def _block(block: Members, rename: Rename) -> Members:
    kind = _decode_text(block["type"]) if "type" in block else ""
    if kind == "resource_link":
        return _rename_item(block, rename)
    if kind == "resource" and "resource" in block:
        return {**block, "resource": Raw(encode(_rename_item(_decode_members(block["resource"]), rename)))}
    return block


def _rename_item(item: Members, rename: Rename) -> Members:
    return {**item, "uri": Raw(encode(rename(_decode_text(item["uri"]))))} if "uri" in item else item


def call_error(call: "Call", text: str) -> ToolError | ProtocolError:
    """Return the error of a call that has no result from its upstream."""
    return ToolError(text) if call.method == "tools/call" else ProtocolError(INTERNAL_ERROR, text)
