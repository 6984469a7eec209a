"""Headers that only the browser sets: the origin of a request, and cookies."""

from urllib.parse import urlsplit

from millstream._http.hosts import is_own_origin
from millstream._http.message import HttpRequest


def is_own(request: HttpRequest) -> bool:
    """Return whether a page of this origin sent the request.

    `Sec-Fetch-Site` takes precedence: a proxy may terminate TLS, so this server can't compare the scheme of `Origin`.
    """
    headers = request.headers
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if origin is None or site in (b"cross-site", b"same-site"):
        return site == b"same-origin"
    host = headers.get(b"host", b"")
    return origin.lower().partition(b"://")[2] == host.lower() != b"" or is_own_origin(origin, host, headers)


def not_own(request: HttpRequest) -> str:
    """Return why a form isn't accepted, unless `is_own`, and what to do."""
    origin, host = request.headers.get(b"origin"), request.headers.get(b"host", b"")
    text = "This request must be sent from this server's own page."
    if origin is None:
        return text
    return (
        f"{text} The page is at {origin[:200].decode('latin-1')!a}, but the request arrived for "
        f"{host[:200].decode('latin-1')!a}. A proxy in between has to pass on the name and port that the browser "
        "uses, in nginx with: proxy_set_header Host $http_host;"
    )


def is_at(request: HttpRequest, base: str) -> bool:
    """Return whether the browser uses the host of a callback, since cookies are bound to the host."""
    return request.headers.get(b"host", b"").decode("latin-1").lower() == urlsplit(base).netloc.lower()


def cookie_of(request: HttpRequest, name: str) -> str:
    """Return a cookie; empty if it's missing or repeated, because a sibling domain may have set one of them.

    Only spaces may surround a name (RFC 6265 §4.2.1). Accepting Python's other white space would let a sibling domain
    set a cookie that evades the rules of ``__Host-``.
    """
    raw = b"; ".join(value for each, value in request.raw_headers if each == b"cookie").decode("latin-1")
    found = [value for key, _, value in (part.strip(" \t").partition("=") for part in raw.split(";")) if key == name]
    return found[0] if len(found) == 1 else ""
