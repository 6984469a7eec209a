"""Parsing of `Accept` and `Content-Type` for the types that this server supports (RFC 9110 §8.3, §12.5.1)."""

from collections.abc import Mapping

from msgspec import Struct


class AcceptedTypes(Struct, frozen=True, gc=False):
    """The reply types, of the two that the server sends, that a client accepts."""

    json: bool
    stream: bool
    page: bool = False
    """Whether the request is a browser navigation: it lists HTML and would also accept a stream."""


_ANY = AcceptedTypes(True, True)
_MEMO_SIZE = 256
_cache: dict[bytes | None, AcceptedTypes] = {None: _ANY}
known_accept = _cache.get
"""Returns the cached result for an `Accept` value. Hot paths check it before `parse_accept`."""


def parse_accept(value: bytes | None) -> AcceptedTypes:
    """Return the reply types that an `Accept` header allows. Without the header, all are allowed; quality 0 excludes a
    type.
    """
    known = _cache.get(value)
    if known is None:
        if len(_cache) >= _MEMO_SIZE:
            _cache.clear()
        known = _cache[value] = _ANY if value is None else _parse(value)
    return known


def _parse(value: bytes) -> AcceptedTypes:
    json = stream = page = named = False
    for item in value.lower().split(b","):
        name, _, parameters = item.partition(b";")
        if any(_is_excluded(parameter) for parameter in parameters.split(b";")):
            continue
        name = name.strip()
        json = json or name in {b"application/json", b"application/*", b"*/*"}
        stream = stream or name in {b"text/event-stream", b"text/*", b"*/*"}
        page, named = page or name == b"text/html", named or name == b"text/event-stream"
    return AcceptedTypes(json, stream, page and stream and not named)


def _is_excluded(parameter: bytes) -> bool:
    name, _, value = parameter.strip().partition(b"=")
    return name.strip() == b"q" and value.strip().rstrip(b"0").rstrip(b".") in {b"", b"0"} and value.strip() != b""


def carries_json(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a body is declared as uncompressed JSON."""
    declared = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return declared == b"application/json" and headers.get(b"content-encoding", b"identity") == b"identity"
