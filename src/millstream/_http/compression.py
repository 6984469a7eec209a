"""gzip for large plain replies (RFC 9110 §12.5.3), and for event streams if configured.

Small replies, which are the common case, aren't compressed: the adapters check the length first.
"""

import zlib
from collections.abc import Mapping

from millstream._http.message import Response

FROM_BYTES = 4 * 1024
"""Shorter bodies are sent as they are."""

GZIP_HEAD = b"content-encoding: gzip\r\nvary: accept-encoding\r\n"

_LEVEL = 1
"""The lowest level, which shrinks JSON to a fifth at several hundred MB/s. Compression blocks the event loop."""
_KINDS = (b"content-type: application/json", b"content-type: text/", b"content-type: application/problem+json")


def compress(response: Response, headers: Mapping[bytes, bytes]) -> Response:
    """Compress a reply with a text type if the client accepts gzip."""
    if not (accepts_gzip(headers.get(b"accept-encoding", b"")) and response.head.startswith(_KINDS)):
        return response
    # A strong entity tag identifies the uncompressed bytes (RFC 9110 §8.8.3).
    head = response.head.replace(b'etag: "', b'etag: W/"') + GZIP_HEAD
    return Response(gzip_member(response.body), response.status, head)


def gzip_member(data: bytes) -> bytes:
    """Return a complete gzip member (RFC 1952 §2.2). Members can be concatenated, so all streams can share it."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def accepts_gzip(value: bytes) -> bool:
    """Return whether an `Accept-Encoding` header accepts gzip."""
    for item in value.lower().split(b","):
        name, _, parameters = item.partition(b";")
        if name.strip() == b"gzip":
            quality = parameters.partition(b"=")[2].strip()
            return quality.rstrip(b"0").rstrip(b".") not in {b"", b"0"} if quality else True
    return False
