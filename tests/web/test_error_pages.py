import json
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
async def test_browsers_at_the_endpoint_see_how_to_use_it(path: str, way: str) -> None:
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
    assert (plain.status, plain.body) == (404, b"Not found. MCP is served at /mcp.\n")
    words = said(await get(Server("shop"), "/nothing", HTML, way))
    assert words.index("begin at the start page") < words.index("MCP is served at")
    part = await get(Server("shop"), "/dashboard", HTML, way)
    assert (part.status, "--serve web" in said(part)) == (404, True)
    page = await get(Server("shop"), "/", {**HTML, "host": "evil.example"}, way)
    assert (page.status, "evil.example" in said(page)) == (421, True)
    plain = await get(Server("shop"), "/", {**CURL, "host": "evil.example"}, way)
    assert (plain.status, plain.headers[b"content-type"]) == (421, b"text/plain; charset=utf-8")


async def test_browsers_without_access_get_a_page_with_advice() -> None:
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
        assert "In a browser, sign in" in said(metrics)
        entry = await world.ask(None, "GET", "/mcp", **HTML)
        assert (entry.status, "Connect a client" in said(entry)) == (200, True)


@for_each("way", ["lane", "asgi"])
async def test_error_pages_use_the_font_only_where_it_is_served(way: str) -> None:
    for parts, path, host, there in (
        ("web", "/nothing", "127.0.0.1", True),
        ("web", "/mcp", "127.0.0.1", True),
        ("web", "/", "evil.example", False),
        ("hub", "/nothing", "127.0.0.1", False),
    ):
        page = await get(Server("shop", serve=parts), path, {**HTML, "host": host}, way)
        assert (b"@font-face" in page.body) is there, (parts, path, host)
        said(page)


async def test_texts_of_callers_become_no_links() -> None:
    server = Server("shop", serve="web,rest")
    for path, link in (("/docs/", True), ("/Use%20/docs.", False), ("/tools/x.%20Use%20/docs.", False)):
        page = await get(server, path, HTML)
        assert (b'<a href="/docs">/docs</a>' in page.body) is link, path


@for_each("way", ["lane", "asgi"])
async def test_documents_mention_that_browsers_get_a_page_instead(way: str) -> None:
    for path in ("/", "/nothing", "/dashboard", "/message"):
        reply = await get(Server("shop"), path, CURL, way)
        assert (path, reply.status in (404, 405), reply.headers[b"vary"]) == (path, True, b"accept")


async def test_error_for_a_wrong_path_suggests_the_existing_one() -> None:
    server = Server("shop", serve="rest")
    hints = (("/docs/", "Use /docs."), ("/tools", "/tools/NAME"), ("/tools/", "/tools/NAME"), ("/mcp/tools", "/call"))
    for path, hint in hints:
        text = (await get(server, path, CURL)).body.decode()
        assert hint in text
        assert "--serve" not in text


async def test_error_pages_are_small_and_repeat_nothing() -> None:
    for path, once in (("/nothing", "found"), ("/message", "allowed")):
        page = await get(Server("shop"), path, HTML)
        assert len(page.body) < 6_000
        assert b"/*" not in page.body
        assert once not in said(page)
        assert "MCP is served at /mcp." in said(page)
    socket = await get(Server("shop", serve="hub"), "/ws", HTML)
    assert (socket.status, "This address isn&#x27;t a page" in said(socket)) == (426, True)


async def test_error_pages_have_the_design_tokens_that_they_use() -> None:
    for path in ("/nothing", "/mcp"):
        style = (await get(Server("shop"), path, HTML)).body.decode().partition("</style>")[0]
        assert set(re.findall(r"var\((--[\w-]+)", style)) == set(re.findall(r"(--[\w-]+):", style)) != set()


async def test_entry_page_shows_commands_with_the_sign_in_that_the_server_requires() -> None:
    async with run_guarded() as world:
        text = said(await world.ask(None, "GET", "/mcp", **HTML))
    assert '/mcp --header "Authorization: Bearer KEY"' in text
    assert "/mcp --auth KEY" in text
    assert "--auth" not in said(await get(Server("shop"), "/mcp", HTML))


@for_each("way", ["lane", "asgi"])
async def test_head_request_for_a_stream_opens_none(way: str) -> None:
    server = Server("shop", serve="hub")
    async with run_wire(server, way) as wire:
        for path in ("/mcp", "/mcp/", "/sse", "/events", "/mcp/sse/ann"):
            reply = await wire.ask("HEAD", path, {"host": "127.0.0.1", **CURL})
            assert (reply.status, reply.headers[b"content-type"]) == (200, b"text/event-stream")
            assert b"content-length" not in reply.headers
        page = await wire.ask("HEAD", "/mcp", {"host": "127.0.0.1", **HTML})
        assert (page.status, page.headers[b"content-type"], page.body) == (200, b"text/html; charset=utf-8", b"")
        health = await wire.ask("GET", "/health", {"host": "127.0.0.1"})
        assert json.loads(health.body)["streams"] == 0
    async with run_guarded() as world:
        assert (await world.ask(None, "HEAD", "/mcp")).status == 401


async def test_options_without_a_preflight_list_the_methods() -> None:
    """RFC 9110 §9.3.7."""
    async with run_wire(Server("shop", serve="all"), "lane") as wire:
        for path in ("/mcp", "/sse", "/publish", "/health"):
            reply = await wire.ask("OPTIONS", path, {"host": "127.0.0.1"})
            assert (reply.status, reply.headers[b"allow"].endswith(b"OPTIONS"), reply.body) == (204, True, b"")
        assert (await wire.ask("OPTIONS", "/no-such-path", {"host": "127.0.0.1"})).status == 404


async def test_errors_for_invalid_messages_show_the_missing_member() -> None:
    headers = {"host": "127.0.0.1", "accept": "*/*", "content-type": "application/json"}
    server = Server("shop")

    @server.tool
    def stock(title: str) -> int:
        """Return the number of copies."""
        return len(title)

    async with run_wire(server, "lane") as wire:
        for body, hint in ((b"", "the body is empty"), (b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', '"name"')):
            reply = await wire.ask("POST", "/mcp", headers, body)
            assert hint in json.loads(reply.body)["error"]["message"]
        form = await wire.ask("POST", "/mcp", {**headers, "content-type": "application/x-www-form-urlencoded"}, b"{}")
        assert "JSON-RPC message with content-type application/json" in form.body.decode()


def add_routes(server: Server) -> Server:
    """Add pages of a program, some of which fail."""

    def put(path: str, answer: Callable[[], Response], **options: Any) -> None:
        @server.route(path, methods=["GET", "POST"], **options)
        async def route(request: Request) -> Response:
            return answer()

    def missing() -> Response:
        raise HTTPException(404, "There is no note <7>.")

    put("/plain", lambda: PlainTextResponse("mine", 418))

    def sold() -> Response:
        raise HTTPException(404, "Order not found. It was sold.")

    put("/missing", missing)
    put("/sold", sold)
    put("/open", lambda: PlainTextResponse("mine", 401), public=True)
    return server


async def test_program_responses_stay_unchanged() -> None:
    async with run_guarded(add_routes(make_server())) as world:
        jar = await cookie(world)
        for path, status in (("/plain", 418), ("/open", 401)):
            reply = await world.ask(None, "GET", path, cookie=jar, **OWN, **HTML)
            assert (reply.status, reply.body) == (status, b"mine")
        missing = await world.ask(None, "GET", "/missing", cookie=jar, **OWN, **HTML)
        assert (missing.status, "There is no note &lt;7&gt;." in said(missing)) == (404, True)
        sold = await world.ask(None, "GET", "/sold", cookie=jar, **OWN, **HTML)
        assert "Order not found. It was sold." in said(sold)
        assert b'href="/">Start page' in sold.body
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
