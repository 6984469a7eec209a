"""Script injection (CVE-2025-62800): pages contain no input from peers, only pages are HTML, and pages run only scripts
from our own files. tests/pages/test_script_injection.py tests this in a browser.
"""

import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from auth_world import ALICE, ROOT, make_server, run_guarded
from cases import for_each
from four_workers import ON_FOUR
from millstream import Info, Server, Settings
from wire import run_wire

PAGES = ["/connect", "/docs", "/dashboard", "/chat", "/inspect"]
PAYLOADS = [
    "<script>owned()</script>", "\"><img src=x onerror=owned()>", "javascript:owned()", "'-owned()-'",
    "</title><svg onload=owned()>", "{{constructor.constructor('owned()')()}}", "<!--", "]]>",
    "\u2028owned()", "<base href=//evil.example>",
]  # fmt: skip

REFERER = PAYLOADS[0].encode()


class Marks(HTMLParser):
    """Collects everything in a page that could run a script."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._script = tag == "script"
        if tag == "script" and not re.fullmatch(r"assets/[\w./-]+\?[0-9a-f]{16}", given.get("src") or ""):
            self.found.append(f"script {attrs}")
        if tag in ("base", "iframe", "object", "embed", "meta") and given.get("http-equiv"):
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").strip().lower().startswith("javascript:"):
                self.found.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.found.append("inline script")
        self._script = False


def policy(headers: dict[bytes, bytes]) -> dict[str, str]:
    """Return the content security policy as a mapping."""
    parts = headers[b"content-security-policy"].decode().split(";")
    return {name: rest for name, _, rest in (part.strip().partition(" ") for part in parts)}


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("page", PAGES)
async def test_page_markup_does_not_depend_on_input(page: str, way: str) -> None:
    bodies = set()
    for name in ("plain", PAYLOADS[0], PAYLOADS[1]):
        server = Server("s", serve="all", info=Info(title=name), instructions=name, settings=Settings())
        server.tool(name="a", title=name, description=name)(lambda: "x")
        async with run_wire(server, way) as wire:
            for query in ("", *(f"?next={quote(each)}&{quote(each)}=1" for each in PAYLOADS)):
                reply = await wire.ask("GET", page + query, [(b"host", b"127.0.0.1"), (b"referer", REFERER)])
                assert reply.status == 200
                bodies.add(reply.body)
                rules = policy(reply.headers)
                assert rules["default-src"] == "'none'"
                assert rules["script-src"] == "'self'"
                assert (rules["base-uri"], rules["frame-ancestors"]) == ("'none'", "'none'")
                assert not any("unsafe" in rule or "*" in rule for rule in rules.values())
    (body,) = bodies
    marks = Marks()
    marks.feed(body.decode())
    assert marks.found == []


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_sign_in_form_has_no_script_and_echoes_only_an_encoded_address(way: str) -> None:
    async with run_guarded(make_server(), way=way) as world:
        for payload in PAYLOADS:
            reply = await world.ask(None, "GET", f"/dashboard?x={quote(payload)}", accept="text/html")
            assert reply.status == 401
            marks = Marks()
            marks.feed(reply.body.decode())
            assert (marks.found, b"<script" in reply.body) == ([], False)
            # The form leads back to the address, in which everything is percent-encoded.
            assert reply.body.count(b"owned") == reply.body.count(quote(payload).encode()) * payload.count("owned")
            assert payload.encode() not in reply.body
            assert policy(reply.headers)["default-src"] == "'none'"


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("key", [None, ALICE, ROOT])
async def test_other_replies_are_never_html(key: str | None, way: str) -> None:
    async with run_guarded(make_server(), way=way) as world:
        for payload in PAYLOADS:
            said = quote(payload, safe="")
            for method, path, body in (
                ("GET", f"/{said}", b""),
                ("GET", f"/assets/{said}", b""),
                ("POST", f"/tools/{said}", b"{}"),
                ("POST", "/mcp/tools/call", b'{"name":"<script>owned()</script>"}'),
                ("POST", "/mcp", b"<script>owned()</script>"),
                ("GET", f"/.well-known/oauth-protected-resource/{said}", b""),
                ("POST", f"/messages/?session_id={said}", b"{}"),
            ):
                reply = await world.ask(key, method, path, body, content_type="application/json", accept="text/html")
                kind = reply.headers.get(b"content-type", b"")
                assert b"html" not in kind, (path, kind)
                assert kind or not reply.body, path
