import re
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from auth.test_sign_in import OWN, cookie
from auth_world import BOB, make_server, run_guarded
from cases import for_each
from millstream import Server
from wire import Reply, run_wire

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
CURL = {"accept": "*/*"}


def said(reply: Reply) -> str:
    """Return the heading and the paragraphs of a page, checking that it's one, and that it runs nothing."""
    assert reply.headers[b"content-type"] == b"text/html; charset=utf-8"
    policy = reply.headers[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    return " ".join(re.findall(r"<(?:h1|p|a|pre)\b[^>]*>([^<]+)", reply.body.decode()))


async def get(server: Server, path: str, headers: dict[str, str], way: str = "lane") -> Reply:
    """Open a path."""
    async with run_wire(server, way) as wire:
        return await wire.ask("GET", path, {"host": "127.0.0.1", **headers})


@for_each("way", ["lane", "asgi"])
@for_each("path", ["/", "/mcp"])
async def test_browsers_at_the_servers_address_read_how_to_use_it(path: str, way: str) -> None:
    page = await get(Server("Book <shop>"), path, HTML, way)
    assert page.status == 200
    text = said(page)
    assert "Book &lt;shop&gt;" in text
    assert "claude mcp add --transport http book-shop http://127.0.0.1/mcp" in text
    assert b"vary" in page.headers
    plain = await get(Server("Book <shop>"), path, {"accept": "application/json"}, way)
    assert plain.headers[b"content-type"] != page.headers[b"content-type"]
    assert plain.status == (404 if path == "/" else 406)


@for_each("way", ["lane", "asgi"])
async def test_unknown_paths_and_hosts_are_pages_for_browsers_only(way: str) -> None:
    page = await get(Server("shop"), "/nothing", HTML, way)
    assert (page.status, "There&#x27;s no such page" in said(page)) == (404, True)
    plain = await get(Server("shop"), "/nothing", CURL, way)
    assert (plain.status, plain.body) == (404, b"Not found.\n")
    part = await get(Server("shop"), "/dashboard", HTML, way)
    assert (part.status, "--serve web" in said(part)) == (404, True)
    page = await get(Server("shop"), "/", {**HTML, "host": "evil.example"}, way)
    assert (page.status, "evil.example" in said(page)) == (421, True)
    plain = await get(Server("shop"), "/", {**CURL, "host": "evil.example"}, way)
    assert (plain.status, plain.headers[b"content-type"]) == (421, b"text/plain; charset=utf-8")


async def test_browsers_without_access_read_what_to_do() -> None:
    async with run_guarded() as world:
        jar = await cookie(world, BOB)
        page = await world.ask(None, "GET", "/dashboard", cookie=jar, sec_fetch_site="none", **HTML)
        assert (page.status, b"insufficient_scope" in page.headers[b"www-authenticate"]) == (403, True)
        text = said(page)
        for part in ("millstream:watch", "another account", "Sign in", "Start page"):
            assert part in text
        plain = await world.ask(None, "GET", "/dashboard", cookie=jar, sec_fetch_site="none", **CURL)
        assert plain.headers[b"content-type"] == b"application/problem+json"
        metrics = await world.ask(None, "GET", "/metrics", **HTML)
        assert (metrics.status, metrics.headers[b"www-authenticate"]) == (401, b"Bearer")
        assert "People sign in" in said(metrics)
        entry = await world.ask(None, "GET", "/mcp", **HTML)
        assert (entry.status, "Connect a client" in said(entry)) == (200, True)


def add_routes(server: Server) -> Server:
    """Add pages of a program, some of which fail."""

    def put(path: str, answer: Callable[[], Response], **options: Any) -> None:
        @server.route(path, methods=["GET", "POST"], **options)
        async def route(request: Request) -> Response:
            return answer()

    def missing() -> Response:
        raise HTTPException(404, "There is no note <7>.")

    put("/plain", lambda: PlainTextResponse("mine", 418))
    put("/missing", missing)
    put("/open", lambda: PlainTextResponse("mine", 401), public=True)
    return server


async def test_responses_of_the_program_stay_as_they_are() -> None:
    async with run_guarded(add_routes(make_server())) as world:
        jar = await cookie(world)
        for path, status in (("/plain", 418), ("/open", 401)):
            reply = await world.ask(None, "GET", path, cookie=jar, **OWN, **HTML)
            assert (reply.status, reply.body) == (status, b"mine")
        missing = await world.ask(None, "GET", "/missing", cookie=jar, **OWN, **HTML)
        assert (missing.status, "There is no note &lt;7&gt;." in said(missing)) == (404, True)
        plain = await world.ask(None, "GET", "/missing", cookie=jar, **OWN)
        assert (plain.status, plain.body) == (404, b"There is no note <7>.\n")


async def test_forms_explain_when_the_user_is_signed_out_or_in_another_browser() -> None:
    async with run_guarded(add_routes(make_server())) as world:
        out = await world.ask(None, "POST", "/plain", b"x=1", **OWN, **HTML)
        assert (out.status, "Sign in" in said(out)) == (401, True)
        jar = await cookie(world)
        elsewhere = await world.ask(None, "POST", "/plain", b"x=1", cookie=jar, sec_fetch_site="same-site", **HTML)
        assert elsewhere.status == 403
        assert "must be sent from this server&#x27;s own page" in said(elsewhere)
