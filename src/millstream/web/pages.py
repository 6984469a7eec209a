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

from millstream.http import Handler, Request, Response

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
    return sorted(each.name.removesuffix(".html") for each in _FOLDER.iterdir() if each.name.endswith(".html"))


def pages() -> Mapping[str, Handler]:
    """The handlers for GET by path: one for each page, and one for each of the files they load."""
    files = [each.name for each in _FOLDER.iterdir() if each.name.rpartition(".")[2] in TYPES.keys() - {"html"}]
    return {f"/{name}": get for name in page_names()} | {f"/assets/{name}": get for name in sorted(files)}


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
    folder, _, name = path.rpartition("/")
    found = _load(f"{name}.html") if folder == "" else _load(name) if folder == "/assets" else None
    if found is None:
        return _MISSING
    tag = b'"%b"' % found.digest
    head = b"etag: %b\r\n%b" % (tag, _FOREVER if query == found.digest else _REVALIDATE)
    if tag in known:
        return Response(b"", 304, head)
    return Response(found.body, 200, found.head + head)


@cache
def _read(name: str) -> bytes | None:
    """A file of the folder; `None` for a name that is no file there or of no kind that is served."""
    if name.rpartition(".")[2] not in TYPES or not re.fullmatch(r"[\w-]+(?:\.[\w-]+)+", name):
        return None
    file = _FOLDER / name
    return file.read_bytes() if file.is_file() else None


@cache
def _load(name: str) -> Asset | None:
    body = _read(name)
    if body is None:
        return None
    body = _LINK.sub(_versioned, body)
    kind = TYPES[name.rpartition(".")[2]]
    return Asset(body, _digest(body), b"content-type: %b\r\n%b" % (kind.encode(), _GUARDS))


def _versioned(link: re.Match[bytes]) -> bytes:
    """The link with the digest of its file, so that a changed file has another address."""
    file = _load(link[1].decode())
    return link[0] if file is None else b"%b?%b" % (link[0], file.digest)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()
