"""The pages and their files: `_web/assets`, read once, and served with a strict policy.

A file ``NAME.html`` is served as ``/NAME``, and all others as ``/assets/FILE``. Fragments shared by all pages are in
`_web/parts`, and are inserted at ``<!-- part -->``; the navigation bar links only the pages that this server serves.
Pages reference files by relative paths (``assets/base.css``), so they work below any mount point. The policy forbids
files from other hosts, and inline scripts and styles.

Each reference has the digest of the file as its query, even in the imports of modules, so browsers may cache files for
a year. Pages preload all modules that they import at once, instead of discovering imports level by level: the imports
of the inspector are ten levels deep.

The inspector shows an app of a server (extension `io.modelcontextprotocol/ui`) in a document with its own URL, because
a `srcdoc` frame would inherit the page's policy, which blocks all apps. Its own policy gives it an opaque origin: the
app can't read the page, cookies, or storage, and can only connect to the domains that its resource declares. That
policy doesn't cover WebRTC, preconnect, and name lookups. `Connection-Allowlist` does, in browsers that support it
(Chrome 152 and later). The document receives the app's HTML as a message from the embedding page, which must be on this
server, and replaces itself with it.
"""

import hashlib
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response, query_values, refusal
from millstream._parts import WATCH, Route, RouteRegistry

_IMPORT = re.compile(rb'^((?:import|export|\})(?: [^"\n]+)? from |import )"(\.{1,2}/[\w./-]+\.js)', re.MULTILINE)

_JSDOC = re.compile(rb"^ */\*\*(?:(?!\*/).)*\*/\n", re.MULTILINE | re.DOTALL)
"""JSDoc of the pages' scripts. It isn't sent to browsers, because it's for developers and their type checker."""

_FILE = re.compile(rb'(?<=url\(")([\w./-]+)(?="\))')
"""A file that a style sheet loads."""


def add_digests(files: Mapping[str, bytes], digest: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """Return the files with ``?DIGEST`` after each file name in imports and style sheets, and without JSDoc.

    A module's digest covers the digests of its imports, so a change reaches all modules that import it.

    Args:
        files: Content by name, such as ``shell/theme.js``. Imports must not be circular.
        digest: Returns the digest of a file's content.

    Raises:
        KeyError: A module imports a file that doesn't exist.
    """
    rewritten: dict[str, bytes] = {}
    digests: dict[str, bytes] = {}

    def rewrite(name: str) -> bytes:
        """Rewrite a file after the files that it loads and return its digest."""
        if name not in digests:
            body = files[name]
            if name.endswith(".js"):
                body = _IMPORT.sub(
                    lambda found: b'%b"%b?%b' % (found[1], found[2], rewrite(_target(name, found[2]))),
                    _JSDOC.sub(b"", body),
                )
            elif name.endswith(".css"):
                body = _FILE.sub(lambda found: b"%b?%b" % (found[1], rewrite(_target(name, found[1]))), body)
            rewritten[name], digests[name] = body, digest(body)
        return digests[name]

    for name in files:
        rewrite(name)
    return {name: rewritten[name] for name in files}


def imports_of(module: str, files: Mapping[str, bytes]) -> list[str]:
    """Return the transitive imports of a module, each once. Imports may have digests."""
    names = [module]
    for name in names:
        targets = dict.fromkeys(_target(name, found[2]) for found in _IMPORT.finditer(files[name]))
        names += [each for each in targets if each not in names]
    return names[1:]


def _target(name: str, imported: bytes) -> str:
    """Return the name of an imported file."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), imported.decode()))


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
}
"""Media types by file extension. Other files in the folder aren't served."""

PRIVATE = {"/dashboard": WATCH, "/gateway": WATCH, "/chat": "", "/inspect": ""}
"""Page -> its required scope. Without sign-in, only programs on this machine can reach these."""
_EMBEDDING_PAGES = {"inspect.html"}
"""Pages that embed the document of `show_app`."""
_FOLDER = Path(__file__).with_name("assets")
_PARTS = Path(__file__).with_name("parts")
_MODULE = re.compile(rb'<script type="module" src="assets/([\w./-]+)">')
_LINK = re.compile(rb'(?<=")assets/([\w./-]+)(?=")')
_PART = re.compile(rb"<!-- (\w+) -->")
_PAGE_LINK = re.compile(rb'[ \t]*<a href="(\w+)"[^\n]*\n')
_ACCOUNT = re.compile(rb'    <div id="account">.*?\n    </div>\n', re.DOTALL)
_FOREVER = b"cache-control: public, max-age=31536000, immutable\r\n"
_REVALIDATE = b"cache-control: no-cache\r\n"
_SECURITY_HEADERS = (
    f"content-security-policy: {POLICY}\r\nx-content-type-options: nosniff\r\nreferrer-policy: same-origin\r\n"
    "cross-origin-opener-policy: same-origin\r\ncross-origin-resource-policy: same-origin\r\n"
).encode()
_NOT_FOUND = Response(b"Not found.\n", 404, b"content-type: text/plain; charset=utf-8\r\n" + _SECURITY_HEADERS)


class Asset(Struct, frozen=True):
    """One file as it's sent."""

    body: bytes
    digest: bytes
    """Digest of the content, in hexadecimal: the entity tag, and the version in links."""
    head: bytes


def page_names() -> list[str]:
    """Return the names of all pages: ``docs`` for ``docs.html``."""
    return [name.removesuffix(".html") for name in _files() if name.endswith(".html")]


def pages(shown: Collection[str] | None = None) -> Mapping[str, Route]:
    """Return a route for each page and file, by path.

    Args:
        shown: Names of the pages to serve and link, by default all.
    """
    names = None if shown is None else frozenset(shown)
    handlers = {"GET": asset_handler(shown=names)}
    return {
        path: Route(handlers, public=True, charged="")
        if path.startswith("/assets/")
        else Route(handlers, scope=PRIVATE.get(path, ""), private=path in PRIVATE)
        for path in _load(names)
    }


def add_pages(routes: RouteRegistry, shown: Collection[str], *, account: bool) -> None:
    """Add a route for each page and file that doesn't have one yet.

    Args:
        routes: Routes of the server. The sign-in pages of an authorization server share some of the files.
        shown: Names of the pages.
        account: Whether people sign in. The bar then shows the user and a sign-out button.
    """
    for path, route in pages((*shown, "account") if account else shown).items():
        if path not in routes.exact or not path.startswith("/assets/"):
            routes.add(path, route)


_TO_DOCS = Response(b"", 303, b"location: docs\r\ncache-control: no-cache\r\n" + _SECURITY_HEADERS)


async def redirect_to_docs(request: HttpRequest) -> Response:
    """Redirect to the page of API documents, below any mount point (RFC 9110 §10.2.2)."""
    return _TO_DOCS


def asset_handler(path: str = "", *, shown: frozenset[str] | None = None) -> Handler:
    """Return the GET handler for a page or file. By default, it serves whichever file is requested."""

    async def get(request: HttpRequest) -> Response:
        known = request.headers.get(b"if-none-match", b"")
        return asset(path or request.path, query=request.query, known=known, shown=shown)

    return get


def asset(path: str, *, query: bytes = b"", known: bytes = b"", shown: frozenset[str] | None = None) -> Response:
    """Return the response for the path of a page or file; 404 for an unknown path.

    Args:
        path: ``/docs`` or ``/assets/base.css``.
        query: Query of the request. The file's digest makes the response cacheable for a year.
        known: Entity tags that the client has (`If-None-Match`).
        shown: Names of the served pages, or None for all.
    """
    found = _load(shown).get(path)
    return _NOT_FOUND if found is None else _respond(found, known, query)


async def hub_client(request: HttpRequest) -> Response:
    """Handle `GET` of the hub's client for programs and other pages. It has its JSDoc, because people copy it."""
    return _respond(_read_hub_client(), request.headers.get(b"if-none-match", b""))


@cache
def _read_hub_client() -> Asset:
    body = (_FOLDER / "hub.js").read_bytes()
    head = f"content-type: {TYPES['js']}\r\nx-content-type-options: nosniff\r\n"
    return Asset(body, _digest(body), head.encode())


def _respond(found: Asset, known: bytes, query: bytes = b"") -> Response:
    tag = b'"%b"' % found.digest
    head = b"etag: %b\r\n%b" % (tag, _FOREVER if query == found.digest else _REVALIDATE)
    if tag in known:
        return Response(b"", 304, head)
    return Response(found.body, 200, found.head + head)


@cache
def _files() -> dict[str, bytes]:
    """Return the content of every file by its name, such as ``shell/theme.js``."""
    found = [each for each in sorted(_FOLDER.rglob("*")) if each.suffix[1:] in TYPES]
    return add_digests({each.relative_to(_FOLDER).as_posix(): each.read_bytes() for each in found}, _digest)


@cache
def _load(shown: frozenset[str] | None) -> dict[str, Asset]:
    """Return the shown pages and all files by path."""
    files = _files()
    loaded: dict[str, Asset] = {}
    for name, body in files.items():
        stem, _, ending = name.rpartition(".")
        page = ending == "html"
        if page and shown is not None and stem not in shown:
            continue
        content = _assemble_page(stem, body, files, shown) if page else body
        headers = _SECURITY_HEADERS
        if name in _EMBEDDING_PAGES:
            headers = headers.replace(b"; connect-src", b"; frame-src 'self'; connect-src")
        head = b"content-type: %b\r\n%b" % (TYPES[ending].encode(), headers)
        loaded[f"/{stem}" if page else f"/assets/{name}"] = Asset(content, _digest(content), head)
    return loaded


def _assemble_page(name: str, body: bytes, files: Mapping[str, bytes], shown: frozenset[str] | None) -> bytes:
    """Return a page with shared fragments, versioned references, and preload links for indirectly imported modules."""

    def link(found: re.Match[bytes]) -> bytes:
        target = found[1].decode()
        if shown is not None and target not in shown:
            return b""
        return found[0].replace(b'">', b'" aria-current="page">', 1) if target == name else found[0]

    def part(found: re.Match[bytes]) -> bytes:
        text = (_PARTS / f"{found[1].decode()}.html").read_bytes().rstrip(b"\n")
        if shown is not None and "account" not in shown:
            text = _ACCOUNT.sub(b"", text)
        return _PAGE_LINK.sub(link, text) if found[1] == b"bar" else text

    whole = _PART.sub(part, body)
    named = [each.decode() for each in _MODULE.findall(whole)]
    others = dict.fromkeys(each for module in named for each in imports_of(module, files) if each not in named)
    preloads = "".join(f'  <link rel="modulepreload" href="assets/{each}">\n' for each in others)
    whole = whole.replace(b"</head>", preloads.encode() + b"</head>")
    # A changed file has a new URL.
    return _LINK.sub(lambda found: b"%b?%b" % (found[0], _digest(files[found[1].decode()])), whole)


@cache
def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


APP_PATH = "/inspect/app"
MAX_DOMAINS = 20
"""Maximum domains of each kind."""
_DOMAIN = re.compile(
    r"(?:https?|wss?)://(?:\*\.)?[A-Za-z0-9.-]{1,253}(?::\d{1,5})?|(?:https?|wss?)://\[[0-9a-fA-F:]+\](?::\d{1,5})?"
)
_KINDS = ("connect", "resource", "frame", "base")
_DOCUMENT = b"""<!doctype html>
<meta charset="utf-8">
<title>App</title>
<script>
addEventListener("message", function load({ source, data }) {
  if (source !== parent || typeof data?.html !== "string") return;
  removeEventListener("message", load);
  document.open();
  document.write(data.html);
  document.close();
});
parent.postMessage({ ready: true }, "*");
</script>
"""
_COMMON_HEADERS = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
_INVALID_DOMAINS = refusal(
    400, f"Domains must look like https://api.example.com, with at most {MAX_DOMAINS} of a kind."
)


def app_policy(domains: Mapping[str, Sequence[str]]) -> str:
    """Return the Content-Security-Policy of an app that declares these domains, by ``connect``, ``resource``, ``frame``
    and ``base``.
    """
    resources = " ".join(domains.get("resource", ()))

    def allow(*sources: str) -> str:
        return " ".join(each for each in sources if each) or "'none'"

    rules = {
        "default-src": "'none'",
        "script-src": allow("'unsafe-inline'", resources),
        "style-src": allow("'unsafe-inline'", resources),
        "img-src": allow("data: blob:", resources),
        "media-src": allow("data: blob:", resources),
        "font-src": allow("data:", resources),
        "connect-src": allow(*domains.get("connect", ())),
        "frame-src": allow(*domains.get("frame", ())),
        "base-uri": allow(*domains.get("base", ())),
        "object-src": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
        "sandbox": "allow-scripts",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _allowlist(domains: Mapping[str, Sequence[str]]) -> str:
    """Return the Connection-Allowlist of an app that declares these domains. Without a parameter, WebRTC is off."""
    reached = {
        f'"{re.sub("^ws", "http", each)}"' for kind, found in domains.items() if kind != "base" for each in found
    }
    return f"({' '.join(sorted(reached))});redirects=allow"  # `app_policy` checks the targets of redirects


async def show_app(request: HttpRequest) -> Response:
    """Handle `GET` of the document. The query contains the app's domains."""
    query = query_values(request.query)
    domains = {kind: query.get(kind, []) for kind in _KINDS}
    if any(len(each) > MAX_DOMAINS or not all(map(_DOMAIN.fullmatch, each)) for each in domains.values()):
        return _INVALID_DOMAINS
    head = (
        "content-type: text/html; charset=utf-8\r\n"
        f"content-security-policy: {app_policy(domains)}\r\nconnection-allowlist: {_allowlist(domains)}\r\n"
    )
    return Response(_DOCUMENT, 200, head.encode() + _COMMON_HEADERS)
