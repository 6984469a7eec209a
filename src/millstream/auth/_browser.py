"""What a browser says of a request by itself: whose page makes it, and which cookies it has."""

from millstream._http.message import HttpRequest


def is_own(request: HttpRequest) -> bool:
    """Whether a page of this very origin makes the request, by the word of the browser. Only the browser knows whether
    the page came by the same scheme: a proxy may have taken TLS off.
    """
    headers = request.headers
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if origin is None or site in (b"cross-site", b"same-site"):
        return site == b"same-origin"
    return origin.lower().partition(b"://")[2] == headers.get(b"host", b"").lower() != b""


def cookie_of(request: HttpRequest, name: str) -> str:
    """A cookie; empty when there is none, or more than one of the name: a neighbor domain may have set the other.

    Only blanks stand around a name (RFC 6265 §4.2.1). With whatever else Python takes for white space in front of it, a
    neighbor domain could set one that browsers don't hold to the rules of ``__Host-``.
    """
    raw = b"; ".join(value for each, value in request.raw_headers if each == b"cookie").decode("latin-1")
    found = [value for key, _, value in (part.strip(" \t").partition("=") for part in raw.split(";")) if key == name]
    return found[0] if len(found) == 1 else ""
