"""gzip for large plain replies (RFC 9110 §12.5.3). Event streams are not touched: proxies would hold them back.

Small replies are not worth it, and a call of the hot path is small: the adapters look at the length first.
"""

import zlib
from collections.abc import Mapping

from millstream.http import Response

FROM_BYTES = 4 * 1024
"""Shorter bodies are sent as they are."""

_LEVEL = 1
"""JSON shrinks to a fifth at the lowest level already, at several hundred MB/s: the event loop waits for it."""
_KINDS = (b"content-type: application/json", b"content-type: text/", b"content-type: application/problem+json")


def compressed(response: Response, headers: Mapping[bytes, bytes]) -> Response:
    """The reply as gzip, where the client takes that and the type is text."""
    if not (_accepts(headers.get(b"accept-encoding", b"")) and response.head.startswith(_KINDS)):
        return response
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    body = packer.compress(response.body) + packer.flush()
    return Response(body, response.status, response.head + b"content-encoding: gzip\r\nvary: accept-encoding\r\n")


def _accepts(value: bytes) -> bool:
    for item in value.lower().split(b","):
        name, _, parameters = item.partition(b";")
        if name.strip() == b"gzip":
            quality = parameters.partition(b"=")[2].strip()
            return quality.rstrip(b"0").rstrip(b".") not in {b"", b"0"} if quality else True
    return False
