"""The HTML pages of signing in. They work without scripts.

Jinja2 escapes everything that comes from outside, and the policy allows nothing but our own style sheets. Links of the
authorization server are relative, so its pages work below any path.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._http.message import HttpRequest, Response
from millstream.auth._authorization_server.answers import NO_STORE
from millstream.auth._authorization_server.login_methods import Upstream, User
from millstream.auth._authorization_server.records import AuthorizationRequest, Client
from millstream.auth._authorization_server.redirects import (
    form_target,
    is_app,
    is_identified,
    is_loopback,
    shown_host,
)

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_PAGES = {
    "/dashboard": "dashboard", "/gateway": "gateway", "/inspect": "inspector", "/docs": "docs", "/chat": "chat",
    "/connections": "connections",
}  # fmt: skip


class Shown(Struct, frozen=True):
    """What the consent page shows."""

    server: str
    """What the server is called."""
    client: Client
    authorization: AuthorizationRequest
    ticket: str
    words: Mapping[str, str]
    """Scope -> what it allows; of those that the client can get."""
    user: User | None = None
    """Who has signed in at this browser."""
    passwords: bool = False
    upstreams: tuple[Upstream, ...] = ()
    notice: str = ""
    """What went wrong before."""
    typed: str = ""
    """What was typed as a name then."""
    elsewhere: tuple[str, ...] = ()
    """Servers that the token would be for, where that is not just this one."""


class Offered(Struct, frozen=True):
    """The login methods of a server's own pages."""

    server: str
    """What the server is called."""
    passwords: bool = False
    """People have a name and password here."""
    logins: Mapping[str, str] = {}
    """Name -> what the button says."""
    credentials: bool = True
    """There are keys or tokens."""
    unknown: tuple[str, ...] = ()
    """Issuers of tokens where people can't be sent."""


# The authorization server


def consent(shown: Shown, status: int = 200, head: bytes = b"") -> Response:
    """Return the page that asks a person to sign in, and to let a client in."""
    client, uri = shown.client, shown.authorization.redirect_uri
    facts = {"Opens the app" if is_app(uri) else "Takes you back to": shown_host(uri)}
    if shown.elsewhere:
        facts = {"Would use": ", ".join(each.partition("://")[2] for each in shown.elsewhere), **facts}
    if client.source == "document":
        facts = {"Described by": client.id.partition("://")[2].partition("/")[0], **facts}
    values = {name: getattr(shown, name) for name in Shown.__struct_fields__}
    values |= {"facts": facts, "warning": _warning(client, uri)}
    return render("consent.html", status, head, target=form_target(uri), **values)


def _warning(client: Client, uri: str) -> str:
    if is_loopback(uri):
        return "It runs on your computer, where any program could use that name. Continue only if you just started it."
    if not is_identified(uri):
        return (
            "Your browser will open an app on your device, and any app could have taken that name. "
            "Continue only if you just started it."
        )
    return (
        "Nobody has checked its name. Continue only if you know this address." if client.source == "registered" else ""
    )


def wrong(title: str, text: str, status: int = 400, *, up: str = "") -> Response:
    """Return the page that says what is wrong. It has no link: the client would choose where to."""
    return render("message.html", status, root=up, title=title, text=text)


def stop(answer: Response, host: str, text: str) -> Response:
    """Return a page in place of a redirect to an address that no one has checked: the person decides."""
    url = answer.head.partition(b"location: ")[2].partition(b"\r\n")[0].decode("ascii")
    title = "This request can't be granted"
    return render("message.html", 400, title=title, text=text, href=url, label=f"Go back to {host}")


def lead_on(url: str, label: str, head: bytes = b"") -> Response:
    """Return the page that leads to an upstream.

    A redirect would belong to the form that was sent, and the policy of its page allows no other place.
    """
    return render("message.html", 200, head, title="One moment", leads_to=url, href=url, label=label, primary=True)


def words_of(scopes: Iterable[str], described: Mapping[str, str]) -> dict[str, str]:
    """Return each scope in words, or by its name where there are none."""
    return {each: described.get(each, "") or each for each in scopes}


# The server's own pages


def sign_in(
    request: HttpRequest, offered: Offered, page: str, notice: str, status: int, *, typed: str = ""
) -> Response:
    """Return the sign-in form.

    Args:
        request: for a page, or with the form.
        offered: the login methods.
        page: the one that is wanted.
        notice: what went wrong before.
        status: of the reply.
        typed: the name that was given before.
    """
    purpose = f" to open the {_PAGES[page]}" if page in _PAGES else ""
    unknown = [urlsplit(each).netloc for each in offered.unknown]
    return render(
        "sign_in.html", status, root=f"{request.root_path}/", offered=offered, page=page, notice=notice, typed=typed,
        purpose=purpose, unknown=unknown, images=IMAGES,
    )  # fmt: skip


def arrived(request: HttpRequest, page: str, head: bytes) -> Response:
    """Return the page that leads on to the one that the person wanted.

    It's for browsers that come from another site. They send a cookie with `SameSite=Strict` only when a page of ours
    leads them, and a redirect would still be the other site's.
    """
    root, href = f"{request.root_path}/", request.root_path + page
    title = "You are signed in"
    return render(
        "message.html",
        200,
        head,
        images=IMAGES,
        root=root,
        title=title,
        leads_to=href,
        href=href,
        label="Continue",
        primary=True,
    )


def continue_at(request: HttpRequest, page: str) -> Response:
    """Return the page that leads a browser that comes from another site on to a page of ours, with its cookies."""
    root, href = f"{request.root_path}/", request.root_path + page
    return render(
        "message.html", 200, images=IMAGES, root=root, title="One moment", leads_to=href, href=href, label="Continue",
        primary=True,
    )  # fmt: skip


def turned_back(request: HttpRequest, page: str, notice: str, status: int) -> Response:
    """Return the page for a person who comes back from another site without being signed in there."""
    root, href = f"{request.root_path}/", request.root_path + page
    title = "You aren't signed in"
    return render(
        "message.html",
        status,
        images=IMAGES,
        root=root,
        title=title,
        notice=notice,
        href=href,
        label="Go back",
        primary=True,
    )


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  only for those who see a page

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        auto_reload=False,
    )  # fmt: skip


@cache
def _template(name: str | Path) -> "Template":
    if isinstance(name, str):
        return _environment().get_template(name)
    return _environment().from_string(name.read_text("utf-8"))


IMAGES = "img-src 'self'; "
"""The pages of the server itself may have an icon."""
_DEFAULTS: Mapping[str, Any] = {
    "root": "", "title": "", "text": "", "notice": "", "leads_to": "", "href": "", "label": "", "primary": False,
}  # fmt: skip


def render(
    template: str | Path, status: int, head: bytes = b"", *, target: str = "", images: str = "", **values: Any
) -> Response:
    """Return a page.

    Args:
        template: its name among the templates here, or the path of a template elsewhere that extends one of these.
        status: of the reply.
        head: further header lines.
        target: where forms lead besides this server.
        images: what the policy says of images.
        values: of the template.
    """
    forms = f"'self' {target}".strip()
    lines = (
        "content-type: text/html; charset=utf-8\r\nx-content-type-options: nosniff\r\nx-frame-options: DENY\r\n"
        f"content-security-policy: default-src 'none'; style-src 'self'; {images}form-action {forms}; base-uri 'none'; "
        # Without an Origin, which other referrer policies take away, the server couldn't tell whose form this is.
        "frame-ancestors 'none'\r\nreferrer-policy: same-origin\r\ncross-origin-opener-policy: same-origin\r\n"
    ).encode("ascii")
    text = _template(template).render({**_DEFAULTS, **values})
    return Response(text.encode("utf-8", "replace"), status, lines + NO_STORE + head)
