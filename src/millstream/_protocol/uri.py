"""URIs: a check for those that a program writes, and a normal form in which equivalent ones are equal.

Clients don't always send URIs as they were listed: clients built on pydantic's `AnyUrl` or on a browser's `URL`
normalize each one.
"""

import re
from contextlib import suppress
from functools import lru_cache
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from millstream._protocol.compose import has_long_runs

STRAY_PERCENT = "%(?![0-9A-Fa-f]{2})"
NOT_IN_URI = re.compile(rf"""[\x00-\x20"<>\\^`{{|}}\x7f-\x9f\ud800-\udfff]|{STRAY_PERCENT}""")
"""Characters that no URI (RFC 3986 §2) or IRI (RFC 3987 §2.2) can contain."""
_SAFE = "%" + "".join(each for each in map(chr, range(0x80)) if not NOT_IN_URI.match(each))
_ENCODED = re.compile("((?:%[0-9A-Fa-f]{2})+)")
_AUTHORITY = re.compile(r"(?:[^@]*@)?(\[[0-9A-Fa-f:.]+\]|[^:@\[\]]*)(?::(\d{0,5}))?")
"""User information, host, and port."""
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)((?s:.*))")
"""Scheme, authority, path, and query with fragment (RFC 3986 appendix B)."""
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443", "ftp": "21", "file": ""}
"""Schemes whose hosts are names in the DNS, and whose empty path is ``/``."""
_MAX_PORT = 0xFFFF
_MAX_NAME = 253
"""Maximum length of a name in the DNS."""
_DOTS = r".\u3002\uff0e\uff61"
_DNS_NAME = re.compile(rf"[^{_DOTS}]{{1,63}}(?:[{_DOTS}][^{_DOTS}]{{1,63}})*+[{_DOTS}]?")
"""Labels of at most the length that the DNS allows. Encoding a label takes quadratic time, or more."""
_MAX_REMEMBERED = 256
_LONG_RUNS = "it has too many combining marks in a row"


def check_uri(what: str, uri: str) -> None:
    """Check a URI from the program. Letters of any alphabet are fine, because clients encode them.

    Args:
        what: The item that has the URI, for the error.

    Raises:
        ValueError: It has no scheme, a host that isn't valid, or characters that a URI can't contain. The text explains
            what to write.
    """
    if problem := find_problem(uri):
        raise ValueError(f"{what} {uri!r}: {problem}.")


def find_problem(uri: str) -> str:
    """Return why text isn't a URI or IRI, or empty text."""
    parts = _PARTS.fullmatch(uri)
    if parts is None:
        return f"a URI must start with a scheme, as in 'shop://{quote(uri.lstrip('/:'), safe='/?=&%')}'"
    if bad := NOT_IN_URI.search(uri):
        instead = quote(bad[0], safe="", errors="ignore")
        return f"a URI can't contain {bad[0]!r}" + (f": write {instead!r} for it" if instead else "")
    scheme, authority, path, _ = parts.groups()
    found = _AUTHORITY.fullmatch(authority or "")
    if found is None or int(found[2] or 0) > _MAX_PORT:
        return f"{authority!r} after '//' must be a host, or a host and a port"
    if scheme.lower() == "file":
        return "" if path.startswith("/") or authority else "the URI of a file must start with 'file:///'"
    needs_host = scheme.lower() in _DEFAULT_PORTS and not found[1]
    return f"a URI with '{scheme}:' must have a host after '//'" if needs_host else ""


def split_url(url: str) -> SplitResult:
    """Split a URL from a peer, as `urlsplit` does, which composes the host.

    Raises:
        ValueError: It isn't a URL.
    """
    if has_long_runs(url):
        raise ValueError(_LONG_RUNS)
    return urlsplit(url)


def join_url(base: str, reference: str) -> str:
    """Resolve a reference from a peer against a URL, as `urljoin` does.

    Raises:
        ValueError: It isn't a reference.
    """
    if has_long_runs(base) or has_long_runs(reference):
        raise ValueError(_LONG_RUNS)
    return urljoin(base, reference)


def encode_host(host: str) -> str:
    """Return a host in ASCII (RFC 3490 §4).

    Raises:
        ValueError: It isn't a name in the DNS.
    """
    if host and (len(host) > _MAX_NAME or not _DNS_NAME.fullmatch(host)):
        raise ValueError("its host isn't a name in the DNS")
    return host.encode("idna").decode()


def normalize_uri(uri: str) -> str:
    """Normalize a URI with the syntax-based and scheme-based rules (RFC 3986 §6.2.2 and §6.2.3).

    Scheme and host are lower case, only characters that require it are percent-encoded, dot segments are resolved, and
    default ports are left out. Text that isn't a URI is returned unchanged.

    Example:
        >>> normalize_uri("HTTPS://Example.com:443/%7Ea/../ä")
        'https://example.com/%C3%A4'
    """
    return _remembered(uri) if len(uri) <= _MAX_REMEMBERED else _normalize(uri)


def _normalize(uri: str) -> str:
    parts = _PARTS.fullmatch(uri)
    if parts is None:
        return uri
    scheme, authority, path, rest = parts.groups()
    scheme = scheme.lower()
    try:
        path, rest = _encode(path), _encode(rest)
        if scheme in _DEFAULT_PORTS:  # browsers encode it there
            query, fragment, after = rest.partition("#")
            rest = query.replace("'", "%27") + fragment + after
        if scheme == "file" and (authority or "").lower() in ("", "localhost") and path.startswith("/"):
            authority = ""  # RFC 8089 §2: the host is optional, and this machine by default
        if path.startswith("/"):
            path = _without_dots(path)
        if scheme == "file" and path.startswith("//"):  # browsers drop empty segments there
            path = f"/{path.lstrip('/')}"
        if authority is None:
            return f"{scheme}:{'/.' if path.startswith('//') else ''}{path}{rest}"
        return f"{scheme}://{_normalize_authority(authority, scheme)}{path or '/' * (scheme in _DEFAULT_PORTS)}{rest}"
    except UnicodeEncodeError:
        return uri


_remembered = lru_cache(4096)(_normalize)


def _normalize_authority(authority: str, scheme: str) -> str:
    user, at, place = authority.rpartition("@")
    host, colon, port = place.rpartition(":")
    if not colon or not (port.isdigit() or not port) or (host.startswith("[") and not host.endswith("]")):
        host, port = place, ""
    host = _encode(host)
    if scheme in _DEFAULT_PORTS and "%" in host and (name := unquote(host)).isprintable():
        with suppress(ValueError):  # otherwise, it isn't a DNS name
            host = _encode(encode_host(name))
    # Only the letters of percent-encoded octets are upper case.
    host = "".join(each if at % 2 else each.lower() for at, each in enumerate(_ENCODED.split(host)))
    port = "" if f"{port:0>1}".lstrip("0") == _DEFAULT_PORTS.get(scheme) else port.lstrip("0") or port[-1:]
    return f"{_encode(user)}{at if user else ''}{host}{':' if port else ''}{port}"


def _encode(text: str) -> str:
    """Return a part of a URI with the percent-encoding that it needs and none for unreserved characters."""
    if "%" in text:
        # `quote` knows the unreserved ones. It encodes the others again, as upper case.
        text = _ENCODED.sub(lambda found: quote(bytes.fromhex(found[1].replace("%", "")), safe=""), text)
    if text.isascii() and not NOT_IN_URI.search(text):
        return text
    return quote(text, safe=_SAFE)


def _without_dots(path: str) -> str:
    """Resolve the segments ``.`` and ``..`` (RFC 3986 §5.2.4)."""
    if "/." not in path:
        return path
    found: list[str] = []
    *segments, last = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del found[-1:]
        elif segment != ".":
            found.append(segment)
    if last == "..":
        del found[-1:]
    return "/" + "".join(f"{each}/" for each in found) + ("" if last in (".", "..") else last)
