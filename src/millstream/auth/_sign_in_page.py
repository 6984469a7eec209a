"""What people see who sign in to the pages: a name and password, buttons for accounts elsewhere, a key or token.

None of it needs a script. What depends on the request is escaped; the policy allows nothing but our own style sheets.
"""

from collections.abc import Mapping
from html import escape
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._http.message import Request, Response

HEAD = (
    b"content-type: text/html; charset=utf-8\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n"
    b"content-security-policy: default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    b"base-uri 'none'; frame-ancestors 'none'\r\n"
    # Without an Origin, which other policies take away, nobody could tell whose form this is.
    b"referrer-policy: same-origin\r\ncross-origin-opener-policy: same-origin\r\n"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{more}<link rel="stylesheet" href="{root}/assets/tokens.css">
<link rel="stylesheet" href="{root}/assets/base.css">
<link rel="stylesheet" href="{root}/assets/sign-in.css">
</head>
<body>
<main class="ask card stack">
<h1>{heading}</h1>
{body}</main>
</body>
</html>
"""
_FORM = """<form method="post" action="{root}/sign-in" class="stack">
<input type="hidden" name="next" value="{page}">
{fields}</form>
"""
_CREDENTIAL = """<p class="field"><label for="key">Key or token</label>
<input id="key" type="password" name="key" {hint}required{focus}></p>
<p class="answers"><button{look}>{does}</button></p>
"""
_PERSON = """<p class="field"><label for="name">Name</label>
<input id="name" name="name" autocomplete="username" autocapitalize="none" spellcheck="false" maxlength="128" required
 value="{name}"{first}></p>
<p class="field"><label for="password">Password</label>
<input id="password" type="password" name="password" autocomplete="current-password" maxlength="1024" required
{then}></p>
<p class="answers"><button class="primary">Sign in</button></p>
"""
_WAY = '<p class="answers"><button{look} name="way" value="{name}">{label}</button></p>\n'
_OR = '<p class="or soft small"><span>or</span></p>\n'
_UNKNOWN = """<p class="soft small">People of {host} can't sign in on this page, because this server has no client id \
there. A token from there opens it.</p>
"""


class Offered(Struct, frozen=True):
    """The ways to sign in that a server has."""

    server: str
    """What the server is called."""
    passwords: bool = False
    """People have a name and password here."""
    ways: Mapping[str, str] = {}
    """Name -> what the button says."""
    credentials: bool = True
    """There are keys or tokens."""
    unknown: tuple[str, ...] = ()
    """Issuers of tokens where people can't be sent."""


_PAGES = {"/dashboard": "dashboard", "/inspect": "inspector", "/docs": "docs", "/chat": "chat"}


def form(request: Request, offered: Offered, page: str, said: str, status: int, *, typed: str = "") -> Response:
    """The page that asks who somebody is, who wants to open a page.

    Args:
        request: for it, or with the form.
        offered: the ways to sign in.
        page: the one that is wanted.
        said: what went wrong before.
        status: of the reply.
        typed: the name that was given before.
    """
    wanted = f" to open the {_PAGES[page]}" if page in _PAGES else ""
    server = escape(offered.server)
    title, heading = f"Sign in to {server}{wanted}", f"Sign in to <bdi>{server}</bdi>{wanted}"
    first, then = ("", "autofocus") if typed else (" autofocus", "")
    person = _PERSON.format(name=escape(typed), first=first, then=then)
    parts: list[str] = [person] if offered.passwords else []
    if offered.ways:
        look = "" if offered.passwords else ' class="primary"'
        parts.append(
            "".join(
                _WAY.format(look=look, name=escape(name), label=escape(label)) for name, label in offered.ways.items()
            )
        )
    if offered.credentials:
        # A password manager would take the key for a password of somebody.
        alone = not parts
        parts.append(
            _CREDENTIAL.format(
                hint='autocomplete="current-password" ' if alone else 'autocomplete="off" ',
                focus=" autofocus" if alone else "",
                look=' class="primary"' if alone else "",
                does="Sign in" if alone else "Use this key or token",
            )
        )
    root = escape(request.root_path)
    forms = _OR.join(_FORM.format(root=root, page=escape(page), fields=each) for each in parts)
    hints = "".join(_UNKNOWN.format(host=escape(urlsplit(each).netloc)) for each in offered.unknown)
    notice = f'<p class="notice bad" role="alert">{escape(said)}</p>\n' if said else ""
    body = f"{notice}{forms}{hints}"
    text = _PAGE.format(title=title, heading=heading, more="", root=root, body=body)
    return Response(text.encode("utf-8", "replace"), status, HEAD)


def arrived(request: Request, page: str, head: bytes) -> Response:
    """The page that leads on to the one that somebody wanted.

    It's for browsers that come from another site. They send a cookie with `SameSite=Strict` only when a page of ours
    leads them, and a redirect would still be the other site's.
    """
    root = escape(request.root_path)
    href = f"{root}{escape(page)}"
    more = f'<meta http-equiv="refresh" content="0;url={href}">\n'
    body = f'<p><a class="button primary" href="{href}">Continue</a></p>\n'
    title = "You are signed in"
    text = _PAGE.format(title=title, heading=title, more=more, root=root, body=body)
    return Response(text.encode(), 200, HEAD + head)


def turned_back(request: Request, page: str, text: str, status: int) -> Response:
    """The page for somebody who comes back from another site without being signed in there; it leads to ours."""
    root = escape(request.root_path)
    body = (
        f'<p class="notice bad" role="alert">{escape(text)}</p>\n'
        f'<p><a class="button primary" href="{root}{escape(page)}">Go back</a></p>\n'
    )
    title = "You aren't signed in"
    page_text = _PAGE.format(title=title, heading=title, more="", root=root, body=body)
    return Response(page_text.encode("utf-8", "replace"), status, HEAD)
