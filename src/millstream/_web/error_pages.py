"""Pages for people who open an address that isn't a page, or that rejects them.

Programs get the plain response. The pages include their style, because they also appear where no other path is served,
such as under a wrong Host.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from html import escape
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import msgspec

from millstream._http.message import HttpRequest, Response

_FOLDER = Path(__file__).parent
_TITLES = {
    401: "Sign in first",
    403: "You don't have access",
    404: "There's no such page",
    405: "This address isn't a page",
    406: "This address isn't a page",
    421: "The server doesn't know this address",
    426: "This address isn't a page",
    429: "Wait a little",
    503: "The server is busy",
}
_ADVICE = {
    401: "This address is for programs. In a browser, sign in on one of the pages.",
    403: "Sign in with another account, or ask this server's operator for access.",
    404: "Check the address, or begin at the start page.",
}
_SAID = re.compile(r"^(?:not found|method not allowed)(?:\.\s*|$)", re.IGNORECASE)
"""The first sentence of a text for programs, which is also in the page's title."""
_TOKEN = re.compile(r"(--[\w-]+):\s[^;]+;")
"""Matches a design token."""
_CODE = re.compile("`([^`]+)`")
_OTHER_PATH = re.compile(r"(?<=Use )(/\w[\w/-]*)(?=\.(?: |<))")
"""Matches the path that the text for an unknown one suggests."""
FONT = "/assets/vendor/inter.woff2"


def error_page(
    request: HttpRequest,
    reply: Response,
    server: str = "",
    links: Mapping[str, str] | None = None,
    *,
    font: bool = False,
) -> Response:
    """Return an error as a page, with its header lines. Other responses are returned unchanged.

    Args:
        request: Request of a browser.
        reply: The response for programs.
        server: Name of the server.
        links: Paths of helpful pages, by label.
        font: Whether the server serves `FONT`.
    """
    kind, _, head = reply.head.partition(b"\r\n")
    if reply.status < 400 or b"html" in kind:
        return reply
    title = _TITLES.get(reply.status) or HTTPStatus(reply.status).phrase
    texts = [text] if (text := _SAID.sub("", _text_of(reply.body))) else []
    # Other refusals with 403 say what to do.
    if reply.status in _ADVICE and (reply.status != 403 or b"insufficient_scope" in head):
        # A person at a wrong address wants the start page, and only then the address of MCP.
        texts.insert(0 if text.startswith("MCP ") else len(texts), _ADVICE[reply.status])
    body = _CODE.sub(r"<code>\1</code>", "".join(f"<p>{escape(each)}</p>" for each in texts))
    body = _OTHER_PATH.sub(r'<a href="\1">\1</a>', body)
    head = head.replace(b"vary: accept\r\n", b"")
    return _page(request, reply.status, title, server, body, links=links or {}, head=head, font=font)


def entry_page(
    request: HttpRequest, path: str, server: str, links: Mapping[str, str], *, sign_in: str = "", font: bool = False
) -> Response:
    """Return the page that explains how to use the server, shown at the MCP path, and at ``/`` if the server has no
    pages.

    Args:
        request: Request of a browser.
        path: Path of MCP.
        server: Name of the server.
        links: Paths of the server's pages, by label.
        sign_in: Command-line option with which callers sign in: ``--auth KEY``, ``--login``, or none.
        font: Whether the server serves `FONT`.
    """
    host = request.headers.get(b"host", b"").decode("latin-1")
    name = re.sub(r"[^a-z0-9]+", "-", server.lower()).strip("-") or "server"
    url = escape(f"{request.scheme}://{host}{request.root_path}{path}")
    header = ' --header "Authorization: Bearer KEY"'
    notes = {
        "--auth KEY": "<code>KEY</code> is your key. This server's operator can give you one.",
        "--login": f"Claude Code opens a browser to sign in. With a key, add <code>{header[1:]}</code> instead.",
    }
    body = Template(_part("entry.html")).substitute(
        url=url,
        name=name,
        header=header if sign_in == "--auth KEY" else "",
        option=f" {sign_in}" if sign_in else "",
        note=f'\n<p class="soft small">{notes[sign_in]}</p>' if sign_in else "",
    )
    return _page(request, 200, server, "MCP server", body, links=links, font=font)


def _page(
    request: HttpRequest,
    status: int,
    title: str,
    server: str,
    body: str,
    *,
    links: Mapping[str, str],
    head: bytes = b"",
    font: bool,
) -> Response:
    root = request.root_path
    buttons = "".join(
        f'<a class="button" href="{escape(root + path)}">{escape(label)}</a>' for label, path in links.items()
    )
    style = _style()
    if font:
        url = quote(root + FONT)
        style += f'@font-face{{font-family:"Inter Variable";font-weight:100 900;font-display:fallback;src:url({url})}}'
    text = Template(_part("message.html")).substitute(
        title=escape(title), server=escape(server), body=body, links=buttons, style=style
    )
    digest = b64encode(sha256(style.encode()).digest()).decode()
    lines = (
        "content-type: text/html; charset=utf-8\r\nx-content-type-options: nosniff\r\nreferrer-policy: same-origin\r\n"
        f"content-security-policy: default-src 'none'; style-src 'sha256-{digest}'; img-src data:; font-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\nvary: accept\r\n"
    )
    return Response(text.encode("utf-8", "replace"), status, lines.encode() + head)


@cache
def _part(name: str) -> str:
    return (_FOLDER / "parts" / name).read_text("utf-8")


@cache
def _style() -> str:
    tokens, rules = ((_FOLDER / "assets" / name).read_text("utf-8") for name in ("tokens.css", "basics.css"))
    used = "".join(each[0] for each in _TOKEN.finditer(tokens) if f"var({each[1]})" in rules)
    return f":root{{color-scheme: light dark;{used}}}\n{rules}"


def _text_of(body: bytes) -> str:
    """Return the text of a plain response, a problem (RFC 9457), or a JSON-RPC error."""
    try:
        found: Any = msgspec.json.decode(body)
        return str(found["detail"] if "detail" in found else found["error"]["message"])
    except (msgspec.DecodeError, LookupError, TypeError):
        return body.decode("utf-8", "replace").strip()
