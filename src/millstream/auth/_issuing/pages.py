"""The pages of the authorization server: one asks, one says what is wrong, one leads on. They need no script.

Whatever comes from a client is escaped, and the policy allows nothing but our own style sheets. Links are relative, so
that the pages work below any path.
"""

from collections.abc import Iterable, Mapping
from html import escape

from msgspec import Struct

from millstream._http.message import Response
from millstream.auth._issuing.answers import NO_STORE
from millstream.auth._issuing.records import Asked, Client
from millstream.auth._issuing.redirects import form_target, is_app, is_identified, is_loopback, shown_host
from millstream.auth._issuing.ways import Upstream, User

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
{more}<link rel="stylesheet" href="{up}assets/tokens.css">
<link rel="stylesheet" href="{up}assets/base.css">
<link rel="stylesheet" href="{up}assets/sign-in.css">
</head>
<body>
<main class="ask card stack">
{body}
</main>
</body>
</html>
"""


class Shown(Struct, frozen=True):
    """What the page that asks shows."""

    server: str
    """What the server is called."""
    client: Client
    asked: Asked
    ticket: str
    words: Mapping[str, str]
    """Scope -> what it allows; of those that the client can get."""
    user: User | None = None
    """Who has signed in at this browser."""
    passwords: bool = False
    upstreams: tuple[Upstream, ...] = ()
    said: str = ""
    """What went wrong before."""
    name: str = ""
    """What was typed as a name then."""
    elsewhere: tuple[str, ...] = ()
    """Servers that the token would be for, where that is not just this one."""


def ask(shown: Shown, status: int = 200, head: bytes = b"") -> Response:
    """The page that asks: who wants what, who are you, do you agree."""
    client, uri = shown.client, shown.asked.redirect_uri
    name = client.name or "A program without a name"
    notice = f'<p class="notice bad" role="alert">{escape(shown.said)}</p>\n' if shown.said else ""
    body = (
        f"<h1><bdi>{escape(name)}</bdi> wants to use <bdi>{escape(shown.server)}</bdi></h1>\n"
        f"{notice}{_facts(shown)}{_scopes(shown)}"
        f'<form method="post" action="authorize" class="stack">\n'
        f'<input type="hidden" name="ticket" value="{escape(shown.ticket)}">\n'
        f"{_person(shown)}</form>\n"
    )
    return _page(f"{name} – {shown.server}", body, status, head, target=form_target(uri))


def _facts(shown: Shown) -> str:
    client, uri = shown.client, shown.asked.redirect_uri
    rows = {"Opens the app" if is_app(uri) else "Takes you back to": shown_host(uri)}
    if shown.elsewhere:
        rows = {"Would use": ", ".join(each.partition("://")[2] for each in shown.elsewhere), **rows}
    if client.source == "document":
        rows = {"Described by": client.id.partition("://")[2].partition("/")[0], **rows}
    facts = "".join(
        f"<div><dt>{each}</dt><dd><strong>{escape(said)}</strong></dd></div>" for each, said in rows.items()
    )
    warning = _warning(client, uri)
    more = f'<p class="soft small">{warning}</p>\n' if warning else ""
    return f'<div class="stack tight">\n<dl class="facts">{facts}</dl>\n{more}</div>\n'


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


def _scopes(shown: Shown) -> str:
    if not shown.words:
        return f"<p>It will use <bdi>{escape(shown.server)}</bdi> as you.</p>\n"
    items = "".join(f"<li>{escape(each)}</li>" for each in shown.words.values())
    return (
        f'<section class="stack tight" aria-labelledby="able"><h2 id="able">As you, it will be able to</h2>\n'
        f'<ul class="scopes">{items}</ul></section>\n'
    )


def _person(shown: Shown) -> str:
    deny = '<button name="answer" value="deny" formnovalidate>Deny</button>'
    if shown.user is not None:
        who = escape(shown.user.name or shown.user.subject)
        return (
            f"<p>You are signed in as <strong>{who}</strong>.</p>\n"
            f'<p class="answers"><button class="primary" name="answer" value="allow">Allow</button>{deny}</p>\n'
            '<p class="answers"><button class="quiet" name="answer" value="other">Use another account</button></p>\n'
        )
    parts: list[str] = []
    if shown.passwords:
        parts.append(
            '<div class="field"><label for="name">Name</label><input id="name" name="name" autocomplete="username" '
            f'autocapitalize="none" spellcheck="false" maxlength="128" required value="{escape(shown.name)}"></div>\n'
            '<div class="field"><label for="password">Password</label><input id="password" name="password" '
            'type="password" autocomplete="current-password" maxlength="1024" required></div>\n'
            '<p class="answers"><button class="primary" name="answer" value="allow">Sign in and allow</button>'
            f"{deny}</p>\n"
        )
    if shown.upstreams:
        parts.append('<p class="or soft small"><span>or</span></p>\n' if shown.passwords else "")
        parts += [_upstream(each) for each in shown.upstreams]
        parts.append('<p class="soft small">Continuing allows what is listed above.</p>\n')
    if not shown.passwords:
        parts.append(f'<p class="answers">{deny}</p>\n')
    return "".join(parts)


def _upstream(each: Upstream) -> str:
    label, name = escape(each.label), escape(each.name)
    return f'<p class="answers"><button name="way" value="{name}" formnovalidate>{label}</button></p>\n'


def wrong(title: str, text: str, status: int = 400, *, up: str = "") -> Response:
    """The page that says what is wrong. It leads nowhere: where to would be for the client to say."""
    body = f"<h1>{escape(title)}</h1>\n<p>{escape(text)}</p>\n"
    return _page(title, body, status, up=up)


def stop(answer: Response, host: str, text: str) -> Response:
    """The page in place of an answer that goes to an address which nobody has vouched for: the person decides."""
    url = answer.head.partition(b"location: ")[2].partition(b"\r\n")[0].decode("ascii")
    body = (
        f"<h1>This request can't be granted</h1>\n<p>{escape(text)}</p>\n"
        f'<p><a class="button" rel="noreferrer" href="{escape(url)}">Go back to {escape(host)}</a></p>\n'
    )
    return _page("This request can't be granted", body, 400)


def lead_on(url: str, label: str, head: bytes = b"") -> Response:
    """The page that leads to an upstream.

    A redirect would belong to the form that was sent, and the policy of its page allows no other place.
    """
    href = escape(url)
    body = f'<h1>One moment</h1>\n<p><a class="button primary" href="{href}">{escape(label)}</a></p>\n'
    return _page("One moment", body, 200, head, more=f'<meta http-equiv="refresh" content="0;url={href}">\n')


def words_of(scopes: Iterable[str], described: Mapping[str, str]) -> dict[str, str]:
    """Each scope in words; its own name where nobody has found any."""
    return {each: described.get(each, "") or each for each in scopes}


def _page(
    title: str, body: str, status: int, head: bytes = b"", *, target: str = "", up: str = "", more: str = ""
) -> Response:
    forms = f"'self' {target}".strip()
    lines = (
        "content-type: text/html; charset=utf-8\r\nx-content-type-options: nosniff\r\nx-frame-options: DENY\r\n"
        f"content-security-policy: default-src 'none'; style-src 'self'; form-action {forms}; base-uri 'none'; "
        "frame-ancestors 'none'\r\nreferrer-policy: same-origin\r\ncross-origin-opener-policy: same-origin\r\n"
    ).encode("ascii")
    text = _PAGE.format(title=escape(title), body=body, up=up, more=more)
    return Response(text.encode("utf-8", "replace"), status, lines + NO_STORE + head)
