"""`/`: where a browser comes that knows only the address of the server."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount

from http_peer import NOBODY, serve
from millstream import Server, Settings
from millstream._app.serving.entry import prepare
from patience import WAIT

KEY = "a-key-for-the-pages-0123456789"
LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])


async def replies(server: Server, *asked: tuple[str, str], lane: bool = True, app: Any = None, **headers: str) -> Any:
    """Status and target of each reply of a server that runs."""
    async with server.running() as runtime:
        prepare(server, runtime)
        async with serve(app or server, lane=lane) as running:
            url = f"http://127.0.0.1:{running.port}"
            async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=WAIT, verify=NOBODY) as client:
                found = [await client.request(method, path) for method, path in asked]
    return [(each.status_code, each.headers.get("location")) for each in found]


@LANES
@pytest.mark.parametrize(("serve", "target"), [("web", "inspect"), ("rest", "docs")])
async def test_the_address_alone_leads_to_a_page(serve: str, target: str, *, lane: bool) -> None:
    """Our choice; RFC 9110 §15.4.4."""
    asked = [("GET", "/"), ("HEAD", "/"), ("POST", "/"), ("GET", f"/{target}")]
    given = await replies(Server("shop", serve=serve), *asked, lane=lane)
    assert given == [(303, target), (303, target), (405, None), (200, None)]


@LANES
async def test_the_address_alone_leads_nowhere_for_those_who_may_not_have_the_page(*, lane: bool) -> None:
    """The same rules as for the page: programs of this machine, or a credential."""
    paths = [("GET", "/"), ("GET", "/inspect")]
    forwarded = {"x-forwarded-for": "192.0.2.1"}
    assert await replies(Server("shop", serve="web"), *paths, lane=lane, **forwarded) == [(403, None)] * 2
    locked = Server("shop", serve="web", settings=Settings(auth_key=KEY))
    assert await replies(locked, *paths, lane=lane) == [(401, None)] * 2
    assert await replies(locked, *paths, lane=lane, authorization=f"Bearer {KEY}") == [(303, "inspect"), (200, None)]


async def test_the_address_alone_asks_people_to_sign_in_and_knows_who_has() -> None:
    """The form, and then the page that it leads to."""
    mcp = Server("shop", serve="web", settings=Settings(auth_key=KEY))
    async with mcp.running() as runtime:
        prepare(mcp, runtime)
        async with serve(mcp, lane=True) as running:
            url = f"http://127.0.0.1:{running.port}"
            async with httpx2.AsyncClient(base_url=url, headers={"origin": url}, timeout=WAIT, verify=NOBODY) as client:
                form = await client.get("/", headers={"accept": "text/html"})
                assert (form.status_code, 'name="next" value="/inspect"' in form.text) == (401, True)
                signed_in = await client.post("/sign-in", data={"key": KEY, "next": "/inspect"})
                assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/inspect")
                home = await client.get("/")
                assert (home.status_code, home.headers["location"]) == (303, "inspect")


@pytest.mark.parametrize("path", ["/", "/{rest:path}"])
async def test_a_page_of_the_programs_own_stays_at_the_address(path: str) -> None:
    """docs/how-to/own-routes.md."""
    mcp = Server("shop", serve="web")

    @mcp.route(path)
    async def home(request: Request) -> Response:
        return PlainTextResponse("home", 203)

    assert await replies(mcp, ("GET", "/")) == [(203, None)]


async def test_a_folder_of_the_programs_own_stays_at_the_address(tmp_path: Path) -> None:
    """docs/how-to/own-routes.md."""
    (tmp_path / "index.html").write_text("home")
    mcp = Server("shop", serve="web")
    mcp.static("/", tmp_path)
    assert await replies(mcp, ("GET", "/")) == [(200, None)]


async def test_without_pages_nothing_is_at_the_address_and_below_a_mount_point_it_leads_to_its_page() -> None:
    """The target is relative, so that it's right below any mount point."""
    assert await replies(Server("shop"), ("GET", "/")) == [(404, None)]
    mcp = Server("shop", serve="rest")
    assert await replies(mcp, ("GET", "/in/"), app=Starlette(routes=[Mount("/in", mcp)])) == [(303, "docs")]
