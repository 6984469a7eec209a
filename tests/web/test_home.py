from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from cases import for_each
from http_peer import NO_TRUST, serve
from millstream import Server, Settings
from patience import WAIT

KEY = "a-key-for-the-pages-0123456789"
LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])


async def ask(
    server: Server, *asked: tuple[str, str], lane: bool = True, app: Any = None, **headers: str
) -> list[httpx2.Response]:
    """Each reply of a server that runs, maybe inside an application."""
    async with server.running(), serve(app or server, lane=lane) as running:
        url = f"http://127.0.0.1:{running.port}"
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=WAIT, verify=NO_TRUST) as client:
            return [await client.request(method, path) for method, path in asked]


async def replies(server: Server, *asked: tuple[str, str], **more: Any) -> Any:
    """Status and target of each reply."""
    return [(each.status_code, each.headers.get("location")) for each in await ask(server, *asked, **more)]


async def texts(server: Server, *paths: str, **more: Any) -> Any:
    """Status and text of each page."""
    return [(each.status_code, each.text) for each in await ask(server, *(("GET", each) for each in paths), **more)]


@LANES
async def test_root_path_is_a_page_or_redirects_to_one(*, lane: bool) -> None:
    asked = [("GET", "/"), ("HEAD", "/"), ("POST", "/"), ("GET", "/docs")]
    given = await replies(Server("shop", serve="rest"), *asked, lane=lane)
    assert given == [(303, "docs"), (303, "docs"), (404, None), (200, None)]
    asked[-1] = ("GET", "/connect")
    found = await ask(Server("shop", serve="web"), *asked, lane=lane)
    assert [each.status_code for each in found] == [200, 200, 404, 200]
    assert "Connect a client" in found[0].text
    assert found[0].content == found[3].content


async def test_connect_page_shows_how_callers_sign_in_and_which_pages_they_can_open() -> None:
    locked = Server("shop", serve="web", settings=Settings(auth_key=KEY, path="/shop/mcp"))
    [found] = await ask(locked, ("GET", "/connect/server"), authorization=f"Bearer {KEY}")
    assert (found.json()["path"], found.json()["keys"], found.json()["oauth"]) == ("/shop/mcp", True, False)
    assert set(found.json()["pages"]) == {"connect", "inspect", "dashboard", "docs", "chat"}
    for headers, pages in (({}, 5), ({"x-forwarded-for": "192.0.2.1"}, 2)):
        [found] = await ask(Server("shop", serve="web"), ("GET", "/connect/server"), **headers)
        assert (len(found.json()["pages"]), found.json()["keys"]) == (pages, False)


@LANES
async def test_root_path_does_not_redirect_users_without_access(*, lane: bool) -> None:
    paths = [("GET", "/"), ("GET", "/inspect")]
    forwarded = {"x-forwarded-for": "192.0.2.1"}
    open_to_all = Server("shop", serve="web")
    assert await replies(open_to_all, *paths, lane=lane, **forwarded) == [(200, None), (403, None)]
    locked = Server("shop", serve="web", settings=Settings(auth_key=KEY))
    assert await replies(locked, *paths, lane=lane) == [(401, None)] * 2
    assert await replies(locked, *paths, lane=lane, authorization=f"Bearer {KEY}") == [(200, None)] * 2


async def test_start_page_asks_users_to_sign_in_unless_they_are_signed_in() -> None:
    mcp = Server("shop", serve="web", settings=Settings(auth_key=KEY))
    async with mcp.running(), serve(mcp, lane=True) as running:
        url = f"http://127.0.0.1:{running.port}"
        async with httpx2.AsyncClient(base_url=url, headers={"origin": url}, timeout=WAIT, verify=NO_TRUST) as client:
            form = await client.get("/", headers={"accept": "text/html"})
            assert (form.status_code, 'name="next" value="/connect"' in form.text) == (401, True)
            signed_in = await client.post("/sign-in", data={"key": KEY, "next": "/connect"})
            assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/connect")
            assert (await client.get("/")).status_code == 200


@for_each("path", ["/", "/{rest:path}"])
async def test_page_that_the_program_serves_at_the_root_is_not_replaced(path: str) -> None:
    mcp = Server("shop", serve="web")

    @mcp.route(path)
    async def home(request: Request) -> Response:
        return PlainTextResponse("home", 203)

    assert await replies(mcp, ("GET", "/")) == [(203, None)]


async def test_folder_that_the_program_serves_at_the_root_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("home")
    mcp = Server("shop", serve="web")
    mcp.static("/", tmp_path)
    assert await replies(mcp, ("GET", "/")) == [(200, None)]


@LANES
async def test_root_path_shows_the_mcp_url_if_pages_are_disabled(*, lane: bool) -> None:
    for settings, where in ((Settings(), "/mcp"), (Settings(path="/shop/mcp", auth_key=KEY), "/shop/mcp")):
        found = await texts(Server("shop", settings=settings), "/", "/nowhere", lane=lane)
        told = f"MCP is served at {where}. Give that address to an MCP client.\n"
        assert found == [(404, told), (404, f"Not found. MCP is served at {where}.\n")]


@LANES
async def test_oauth_paths_of_a_server_with_keys_ask_for_the_key(*, lane: bool) -> None:
    """Clients without a key try OAuth, and show people what these paths say."""
    paths = ("/register", "/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource/mcp")
    found = await texts(Server("shop", settings=Settings(auth_key=KEY)), *paths, lane=lane)
    said = (
        "Not found. This server needs a key, not OAuth: send the header Authorization: Bearer, followed by your key.\n"
    )
    assert found == [(404, said)] * 3
    assert (await texts(Server("shop"), "/register", lane=lane))[0][1].endswith("MCP is served at /mcp.\n")


async def test_misspelled_paths_suggest_the_right_one() -> None:
    """Paths of the program may be private, so they aren't suggested."""
    mcp = Server("shop", serve="all")

    @mcp.route("/ledger")
    async def ledger(request: Request) -> Response:
        return PlainTextResponse("ledger")

    found = await texts(mcp, "/event", "/dashbord/", "/doc", "/ledgers", "/nope", "/foo", "/contact")
    hints = ["Use /events.", "Use /dashboard.", "Use /docs.", *["MCP is served at /mcp."] * 4]
    assert found == [(404, f"Not found. {hint}\n") for hint in hints]
    ((_, told),) = await texts(Server("shop"), "/event")
    assert "doesn't serve /events. Start it with --serve hub" in told


async def outer(request: Request) -> Response:
    """A page of the application around the server."""
    return PlainTextResponse("outer")


async def test_mount_point_shows_the_mcp_url_and_hides_no_other_route(tmp_path: Path) -> None:
    told = "MCP is served at /in/mcp. Give that address to an MCP client.\n"
    mcp = Server("shop")
    app = Starlette(routes=[Route("/", outer), Mount("/in", mcp)])
    assert await texts(mcp, "/", "/in/", app=app) == [(200, "outer"), (404, told)]
    wrong = (("GET", "/in/rpc"), ("POST", "/in/mcp/sse"), ("HEAD", "/in/rpc"), ("GET", "/in/message"))
    for each in await ask(mcp, *wrong, app=app):
        assert each.status_code in (404, 405)
        assert each.request.method == "HEAD" or "MCP is served at /in/mcp." in each.text
    app = Starlette(routes=[Route("/page", outer), Mount("/", mcp)])
    assert await texts(mcp, "/page", "/", app=app) == [(200, "outer"), (404, told.replace("/in", ""))]
    (tmp_path / "index.html").write_text("home")
    mcp = Server("shop")
    mcp.static("/", tmp_path)
    assert await texts(mcp, "/", lane=True) == [(200, "home")]
    assert await replies(Server("shop"), ("HEAD", "/"), ("POST", "/"), ("OPTIONS", "/")) == [(404, None)] * 3


async def test_root_path_without_pages_is_empty_and_mount_points_link_to_their_page() -> None:
    assert await replies(Server("shop"), ("GET", "/")) == [(404, None)]
    mcp = Server("shop", serve="rest")
    assert await replies(mcp, ("GET", "/in/"), app=Starlette(routes=[Mount("/in", mcp)])) == [(303, "docs")]
