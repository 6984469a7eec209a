"""The pages and what they load: files of `web/assets`, read once, served with a strict policy.

A page is a file ``NAME.html`` and is served as ``/NAME``; everything else is served as ``/assets/FILE``. Pages name
their files relatively (``assets/base.css``), so that they work below any mount point; each such name gets the digest
of the file as its query, and a request with that query may be kept for a year. No file of a page comes from another
host, and no script or style stands in a page: the policy forbids both.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from msgspec import Struct

from millstream.http.message import Handler, Request, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What is served, by the ending of its name. A file of another kind in the folder is not."""

_FOLDER = resources.files("millstream.web") / "assets"
_LINK = re.compile(rb'(?<=")assets/([\w.-]+)(?=")')
_FOREVER = b"cache-control: public, max-age=31536000, immutable\r\n"
_REVALIDATE = b"cache-control: no-cache\r\n"
_GUARDS = (
    f"content-security-policy: {POLICY}\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
    "cross-origin-opener-policy: same-origin\r\ncross-origin-resource-policy: same-origin\r\n"
).encode()
_MISSING = Response(b"Not found.\n", 404, b"content-type: text/plain; charset=utf-8\r\n" + _GUARDS)


class Asset(Struct, frozen=True):
    """One file, ready to be sent."""

    body: bytes
    digest: bytes
    """Hexadecimal, of the content; the entity tag and the version in links."""
    head: bytes


def page_names() -> list[str]:
    """Every page there is: ``docs`` for ``docs.html``."""
    return [path[1:] for path in _load() if path.count("/") == 1]


def pages() -> Mapping[str, Handler]:
    """The handlers for GET by path: one for each page, and one for each of the files they load."""
    return dict.fromkeys(_load(), get)


async def get(request: Request) -> Response:
    """`GET` of a page or of one of its files."""
    return asset(request.path, query=request.query, known=request.headers.get(b"if-none-match", b""))


def asset(path: str, *, query: bytes = b"", known: bytes = b"") -> Response:
    """The reply for the path of a page or file; 404 for any other.

    Args:
        path: ``/docs`` or ``/assets/base.css``.
        query: the digest with which a page names the file: the reply may then be kept for good.
        known: entity tags that the client holds (`If-None-Match`).
    """
    found = _load().get(path)
    if found is None:
        return _MISSING
    tag = b'"%b"' % found.digest
    head = b"etag: %b\r\n%b" % (tag, _FOREVER if query == found.digest else _REVALIDATE)
    if tag in known:
        return Response(b"", 304, head)
    return Response(found.body, 200, found.head + head)


@cache
def _load() -> dict[str, Asset]:
    """Every page and file by its path."""
    files = {each.name: each.read_bytes() for each in _FOLDER.iterdir() if each.name.rpartition(".")[2] in TYPES}
    loaded: dict[str, Asset] = {}
    for name, body in sorted(files.items()):
        stem, _, ending = name.rpartition(".")
        page = ending == "html"
        content = _LINK.sub(lambda link: _versioned(link, files), body) if page else body
        head = b"content-type: %b\r\n%b" % (TYPES[ending].encode(), _GUARDS)
        loaded[f"/{stem}" if page else f"/assets/{name}"] = Asset(content, _digest(content), head)
    return loaded


def _versioned(link: re.Match[bytes], files: Mapping[str, bytes]) -> bytes:
    """The link with the digest of its file, so that a changed file has another address.

    Raises:
        KeyError: the page names a file that does not exist.
    """
    return b"%b?%b" % (link[0], _digest(files[link[1].decode()]))


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()
