"""Requests as bytes. The heads that it writes are checked, so text that a caller, a document, or a peer chooses can't
become another line of one.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

from millstream._http.client.errors import UnsendableRequest

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  RFC 9110 §5.6.2
_FRAMING = "(?!(?i:content-length|transfer-encoding):)"
"""Matches unless the header delimits the request. `encode_request` writes such headers."""
_are_lines = re.compile(rf"(?:{_FRAMING}{_TOKEN}: [\t\x20-\x7e\x80-\xff]*\r\n)*").fullmatch
_are_part_lines = re.compile(rf"(?:{_TOKEN}: [^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*\r\n)*").fullmatch
"""RFC 7578 §5.1 allows UTF-8 in the head of a part."""
_is_start = re.compile(rf"{_TOKEN} [\x21-\x7e]+").fullmatch
_line = "%s: %s\r\n".__mod__
_HAS_BODY = frozenset({"POST", "PUT", "PATCH"})


def encode_headers(headers: Mapping[str, str]) -> str:
    """Return header lines (RFC 9110 §5): ``encode_headers({"accept": "text/plain"})``.

    Args:
        headers: Value of each header.

    Raises:
        UnsendableRequest: A name isn't a token or is written by `encode_request`, or a value has characters that aren't
            allowed in headers.
    """
    return _encode_lines(headers.items(), "".join(headers), _are_lines)


def encode_raw_headers(headers: Collection[tuple[bytes, bytes]]) -> str:
    """Return header lines for received headers, whose names may repeat. See `encode_headers`."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return _encode_lines(pairs, "".join([name for name, _ in pairs]), _are_lines)


def encode_part(headers: Mapping[str, str], content: bytes) -> bytes:
    """Return a part of a multipart body (RFC 7578), without its boundary.

    Raises:
        UnsendableRequest: A header has characters that aren't allowed there.
    """
    return b"%b\r\n%b" % (_encode_lines(headers.items(), "".join(headers), _are_part_lines).encode(), content)


def _encode_lines(pairs: Collection[tuple[str, str]], names: str, fits: Callable[[str], object]) -> str:
    text = "".join(map(_line, pairs))
    # A line break in a name or value would add a line, and a colon in a name would move the value's beginning.
    if text.count("\n") != len(pairs) or ":" in names or fits(text) is None:
        _refuse(pairs, fits)
    return text


def encode_request(method: str, target: str, head: str, body: bytes = b"") -> bytes:
    """Return a request.

    Args:
        method: HTTP method.
        target: Path and query, or another form of a target (RFC 9112 §3.2).
        head: Header lines from `encode_headers`, without the length of the body.

    Raises:
        UnsendableRequest: The method isn't a token, or the target has characters that aren't allowed there.
    """
    start = encode_start(method, target, head)
    return add_body(start, body) if body or method in _HAS_BODY else start + b"\r\n"


def encode_start(method: str, target: str, head: str) -> bytes:
    """Return the beginning of requests that differ only in their bodies. See `encode_request` and `add_body`."""
    start = f"{method} {target}"
    if _is_start(start) is None:
        what = "path or query" if re.fullmatch(_TOKEN, method) else f"HTTP method {method!r:.100}"
        raise UnsendableRequest(f"The {what} contains characters that aren't allowed there.")
    return f"{start} HTTP/1.1\r\n{head}".encode("latin-1")


def add_body(start: bytes, body: bytes) -> bytes:
    """Return a request from the result of `encode_start`."""
    # Without a length, a server would read the body as another request.
    return b"%bContent-Length: %d\r\n\r\n%b" % (start, len(body), body)


def _refuse(headers: Collection[tuple[str, str]], fits: Callable[[str], object]) -> NoReturn:
    """Raise the error for the first header that can't be sent."""
    for name, value in headers:
        if re.fullmatch(f"{_FRAMING}{_TOKEN}:", f"{name}:") is None:
            raise UnsendableRequest(f"{name!r:.100} can't be sent as the name of a header.")
        if fits(f"x: {value}\r\n") is None or "\n" in value:
            raise UnsendableRequest(f"The header {name:.100} contains characters that aren't allowed in headers.")
    raise UnsendableRequest("The headers contain characters that aren't allowed in headers.")
