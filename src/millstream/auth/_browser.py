"""What a browser says of a request by itself: whose page makes it, and which cookies it has."""

from millstream._http.message import Request


def is_own(request: Request) -> bool:
    """Whether a page of this very origin makes the request, by the word of the browser."""
    headers = request.headers
    origin = headers.get(b"origin")
    if origin is not None:
        return origin.lower().partition(b"://")[2] == headers.get(b"host", b"").lower() != b""
    return headers.get(b"sec-fetch-site") == b"same-origin"


def cookie_of(request: Request, name: str) -> str:
    """A cookie; empty when there is none, or more than one of the name: a neighbor domain may have set the other."""
    raw = b"; ".join(value for each, value in request.raw_headers if each == b"cookie").decode("latin-1")
    found = [value for key, _, value in (part.strip().partition("=") for part in raw.split(";")) if key == name]
    return found[0] if len(found) == 1 else ""
