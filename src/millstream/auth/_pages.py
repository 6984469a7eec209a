"""The HTML pages for signing in, which work without scripts, and the headers that only the browser sets.

Jinja2 escapes all untrusted text, and the content security policy allows no scripts. The links of the authorization
server are relative, so its pages work under any path.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from millstream._http.hosts import is_own_origin
from millstream._http.message import HttpRequest, Response
from millstream.auth._authorization_server.records import (
    NO_STORE,
)

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def is_same_origin(request: HttpRequest) -> bool:
    """Return whether a page of this origin sent the request: ``if not is_same_origin(request): …`` before a form acts.

    `Sec-Fetch-Site` takes precedence: a proxy may terminate TLS, so this server can't compare the scheme of `Origin`.
    """
    headers = request.headers
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if origin is None or site in (b"cross-site", b"same-site"):
        return site == b"same-origin"
    host = headers.get(b"host", b"")
    return origin.lower().partition(b"://")[2] == host.lower() != b"" or is_own_origin(origin, host, headers)


def cross_origin_text(request: HttpRequest) -> str:
    """Explain why a form isn't accepted and how to fix it: ``refusal(403, cross_origin_text(request))``.

    Args:
        request: A request that isn't `is_same_origin`.
    """
    origin, host = request.headers.get(b"origin"), request.headers.get(b"host", b"")
    text = "This request must be sent from this server's own page."
    if origin is None:
        return text
    return (
        f"{text} The page is at {origin[:200].decode('latin-1')!a}, but the request arrived for "
        f"{host[:200].decode('latin-1')!a}. A proxy in between must forward the host name and port that the "
        "browser uses. In nginx: proxy_set_header Host $http_host;"
    )


def is_at_host(request: HttpRequest, base: str) -> bool:
    """Return whether the browser uses the host of a callback: ``is_at_host(request, "https://shop.example.com")``.

    Cookies are bound to the host, so a sign-in that begins at another one can't be finished.

    Args:
        request: The request that begins the sign-in.
        base: URL of the callback.
    """
    return request.headers.get(b"host", b"").decode("latin-1").lower() == urlsplit(base).netloc.lower()


def get_cookie(request: HttpRequest, name: str) -> str:
    """Return a cookie, or empty if it's missing or repeated, because a sibling domain may have set one of them.

    ``get_cookie(request, "__Host-shop")``

    Only spaces and tabs may surround a name (RFC 6265 §5.2). Accepting Python's other white space would let a sibling
    domain set a cookie that evades the rules of ``__Host-``.

    Args:
        name: Name of the cookie.
    """
    raw = b"; ".join(value for each, value in request.raw_headers if each == b"cookie").decode("latin-1")
    found = [value for key, _, value in (part.strip(" \t").partition("=") for part in raw.split(";")) if key == name]
    return found[0] if len(found) == 1 else ""


def browser_cookie(
    request: HttpRequest, name: str, seconds: float, *, path: str = "/", secure: bool
) -> tuple[str, bytes]:
    """Return a random id of the browser, and the header line that stores it: ``browser_cookie(request, "id", 60, …)``.

    Only the browser that began a sign-in with this id may finish it.

    Args:
        name: Name of the cookie.
        seconds: Lifetime of the cookie.
        path: Path of the cookie.
        secure: Whether browsers use https.
    """
    value = get_cookie(request, name)
    value = value if len(value) == _ID_LENGTH else token_urlsafe(32)
    # Lax, because the callback is a navigation from another site. `is_same_origin` protects all other requests.
    flags = f"Path={path}; Max-Age={seconds:.0f}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
    return value, f"set-cookie: {name}={value}; {flags}\r\n".encode("latin-1")


_ID_LENGTH = 43
_MAX_QUOTED = 400


def wrong(title: str, text: str, status: int = 400, *, up: str = "") -> Response:
    """Return an error page. It has no link, because its target would come from the client."""
    return render("message.html", status, root=up, title=title, text=text)


def stop(answer: Response, host: str, text: str) -> Response:
    """Return a page that shows where a redirect to an unverified address leads, and lets the user decide."""
    url = answer.head.partition(b"location: ")[2].partition(b"\r\n")[0].decode("ascii")
    title = "This request can't be granted"
    return render("message.html", 400, title=title, text=text, href=url, label=f"Go back to {host}")


def redirect_page(url: str, label: str, head: bytes = b"") -> Response:
    """Return a page that redirects to another site's sign-in: ``redirect_page(pending.url, "Continue to GitHub")``.

    The page's policy would block a direct redirect after a form, because it applies to the form's target.

    Args:
        url: URL of the sign-in.
        label: Text of the link.
        head: Additional header lines.
    """
    return render("message.html", 200, head, title="One moment", leads_to=url, href=url, label=label, primary=True)


def continue_page(request: HttpRequest, page: str, head: bytes = b"", *, title: str = "You are signed in") -> Response:
    """Return the page that continues after a sign-in elsewhere: ``continue_page(request, "/shop")``.

    A redirect would still be treated as coming from the other site, and browsers would omit the cookie
    (`SameSite=Strict`).

    Args:
        request: Request of the callback.
        page: Path of the page to open.
        head: Additional header lines.
        title: Title of the page.
    """
    href = request.root_path + page
    return render(
        "message.html",
        200,
        head,
        images=IMAGES,
        root=f"{request.root_path}/",
        title=title,
        leads_to=href,
        href=href,
        label="Continue",
        primary=True,
    )


def not_signed_in_page(request: HttpRequest, page: str, notice: str, status: int) -> Response:
    """Return the page for a user who returns from another site without a session.

    ``not_signed_in_page(request, "/shop", "Sign in again.", 403)``

    Args:
        request: Request of the callback.
        page: Path of the page to go back to.
        notice: What happened.
        status: Status of the response.
    """
    return render(
        "message.html",
        status,
        images=IMAGES,
        root=f"{request.root_path}/",
        title="You aren't signed in",
        notice=notice,
        href=request.root_path + page,
        label="Go back",
        primary=True,
    )


def quote_foreign(text: str) -> str:
    """Return text that may quote another server, printable and shortened: ``quote_foreign(str(error))``."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= _MAX_QUOTED else f"{plain[:_MAX_QUOTED]}…"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  loaded with the first page

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


@cache
def _template(name: str | Path) -> "Template":
    if isinstance(name, str):
        return _environment().get_template(name)
    return _environment().from_string(name.read_text("utf-8"))


def brand(server: str, icon: str) -> Mapping[str, Any]:
    """Return a server's name and its icon or first letter, for its pages."""
    letter = next((each.upper() for each in server if each.isalnum()), "")
    return {"server": server, "icon": icon, "letter": letter}


DATA = "img-src 'self' data:; "
IMAGES = "img-src 'self'; "
"""Image policy of the server's own pages, which may have an icon."""
_DEFAULTS: Mapping[str, Any] = {
    "root": "",
    "title": "",
    "text": "",
    "notice": "",
    "leads_to": "",
    "href": "",
    "label": "",
    "primary": False,
    "icon": "",
    "letter": "",
    "focused": False,
}


def render(
    template: str | Path, status: int, head: bytes = b"", *, leaves: bool = False, images: str = "", **values: Any
) -> Response:
    """Return a page: ``render(Path("shop.html"), 200, images=IMAGES, books=books)``.

    Args:
        template: Name of a template in this package, or path of a template that extends one.
        status: Status of the response.
        head: Additional header lines.
        leaves: Whether a form leads to another site. Browsers apply `form-action` to all redirects that follow, and
            that site may redirect to an app or a third site, so the page's policy leaves it out.
        images: Image directive of the content security policy.
        values: Variables of the template.
    """
    forms = "" if leaves else "form-action 'self'; "
    lines = (
        "content-type: text/html; charset=utf-8\r\nx-content-type-options: nosniff\r\nx-frame-options: DENY\r\n"
        f"content-security-policy: default-src 'none'; style-src 'self'; font-src 'self'; {images}"
        f"{forms}base-uri 'none'; "
        # Stricter referrer policies remove Origin, and the server needs it to recognize its own forms.
        "frame-ancestors 'none'\r\nreferrer-policy: same-origin\r\ncross-origin-opener-policy: same-origin\r\n"
    ).encode("ascii")
    text = _template(template).render({**_DEFAULTS, **values})
    return Response(text.encode("utf-8", "replace"), status, lines + NO_STORE + head)
