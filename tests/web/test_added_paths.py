import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount

from cases import for_each
from http_peer import NO_TRUST, listed_paths, serve
from millstream import Server, Settings, auth
from millstream._app.routes import LocalOnly, Routes
from millstream._app.server_process.asgi_application import prepare
from millstream._app.user_routes import UserRoutes, route_of
from millstream._http.message import HttpRequest
from millstream._http.message import Response as Reply
from millstream._parts import Route, RouteRegistry
from millstream._server.address import Address
from millstream._server.calls.services import UNLIMITED, ignore_message
from patience import WAIT
from processes import free_port, run_command
from workers_world import start_program, until_async

# A client that goes away while anyio opens a file leaves the file to Python, which closes it at once, and says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = "a-key-for-the-pages-0123456789"
LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])


@asynccontextmanager
async def asked(server: Server, *, lane: bool, app: Any = None, **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server that runs."""
    async with server.running() as runtime:
        prepare(server, runtime)
        async with serve(app or server, lane=lane) as running:
            base = f"http://127.0.0.1:{running.port}"
            async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=WAIT, verify=NO_TRUST) as client:
                yield client


def shop(**options: Any) -> tuple[Server, dict[str, asyncio.Event]]:
    """A server with pages, and what happened to them."""
    mcp, events = Server("shop", **options), {"background": asyncio.Event(), "left": asyncio.Event()}

    @mcp.route("/")
    async def home(request: Request) -> Response:
        return HTMLResponse("<h1>Shop</h1>" + "x" * 5000, headers={"x-shop": "1"})

    @mcp.route("/hooks/{name}/{number:int}", methods=["POST", "put"], public=True)
    async def hook(request: Request) -> Response:
        async def later() -> None:
            events["background"].set()

        told = {"path": request.path_params, "body": await request.json(), "query": dict(request.query_params)}
        return JSONResponse(told, 201, background=BackgroundTask(later))

    @mcp.route("/blocking")
    def blocking(request: Request) -> Response:
        principal = request.state.principal
        return PlainTextResponse("nobody" if principal is None else principal.subject)

    @mcp.route("/stream")
    async def stream(request: Request) -> Response:
        async def numbers() -> AsyncIterator[str]:
            try:
                for number in range(10_000_000):
                    yield f"{number}\n" * 1000
                    await asyncio.sleep(0)
            finally:
                events["left"].set()

        return StreamingResponse(numbers())

    @mcp.route("/short")
    async def short(request: Request) -> Response:
        return StreamingResponse(iter(["one", "two"]))

    return mcp, events


@LANES
async def test_programs_can_have_pages_and_webhooks(lane: bool) -> None:
    mcp, events = shop(settings=Settings(max_body=1000, compression="on"))
    async with asked(mcp, lane=lane) as client:
        page = await client.get("/")
        assert (page.text[:13], page.headers["content-type"], page.headers["x-shop"]) == (
            "<h1>Shop</h1>", "text/html; charset=utf-8", "1",
        )  # fmt: skip
        assert page.headers["content-encoding"] == "gzip"
        head = await client.head("/")
        assert (head.status_code, head.text, head.headers["x-shop"]) == (200, "", "1")
        hooked = await client.post("/hooks/payments/7?a=b", json={"paid": True})
        assert (hooked.status_code, hooked.json()) == (
            201, {"path": {"name": "payments", "number": 7}, "body": {"paid": True}, "query": {"a": "b"}},
        )  # fmt: skip
        await asyncio.wait_for(events["background"].wait(), WAIT)
        assert (await client.get("/blocking")).text == "nobody"
        assert (await client.get("/short")).text == "onetwo"
        assert (await client.head("/stream")).status_code == 200
        refused = await client.get("/hooks/payments/7")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST, PUT, OPTIONS")
        assert (await client.get("/hooks/payments/seven")).status_code == 404
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 421
        assert (await client.post("/hooks/a/1", content=b"x" * (mcp.settings.max_body + 1))).status_code == 413


@LANES
async def test_streams_end_when_their_reader_leaves(lane: bool, caplog: pytest.LogCaptureFixture) -> None:
    mcp, events = shop()
    async with asked(mcp, lane=lane) as client:
        async with client.stream("GET", "/stream") as reply:
            assert (await anext(reply.aiter_lines())) == "0"
        await asyncio.wait_for(events["left"].wait(), WAIT)
        assert (await client.get("/short")).text == "onetwo"
        assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


@LANES
async def test_pages_require_login_unless_public(lane: bool, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("app", "utf-8")
    mcp, _ = shop(auth=auth.keys(named_keys={"alice": KEY}))
    mcp.static("/app", tmp_path)
    mcp.static("/open", tmp_path, public=True)
    mcp.route("/sign-in-help")(home_page)

    @mcp.route("/price")
    async def price(request: Request) -> Response:
        return PlainTextResponse("7", headers={"Cache-Control": "private, max-age=60"})

    async with asked(mcp, lane=lane) as client:
        for path in ("/", "/blocking", "/app", "/app/", "/app/index.html", "/sign-in-help"):
            assert (await client.get(path)).status_code == 401, path
        opened = await client.get("/open/")
        assert (opened.text, opened.headers["cache-control"]) == ("app", "public, no-cache")
        hooked = await client.post("/hooks/a/1", json={})
        assert (hooked.status_code, hooked.headers.get("cache-control")) == (201, None)
        client.headers["authorization"] = f"Bearer {KEY}"
        for path, text, kept in (("/blocking", "alice", "private, no-cache"), ("/price", "7", "private, max-age=60")):
            private = await client.get(path)
            assert (private.text, private.headers["cache-control"]) == (text, kept)
        assert (await client.get("/app/")).text == "app"


@LANES
@pytest.mark.parametrize("show_errors", [True, False])
async def test_failing_pages_are_reported_like_tools(
    lane: bool, show_errors: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mcp = Server("shop", settings=Settings(show_errors=show_errors))

    @mcp.route("/fails")
    async def fails(request: Request) -> Response:
        raise ZeroDivisionError

    @mcp.route("/refuses")
    def refuses(request: Request) -> Response:
        raise HTTPException(403, "not for you", {"X-Why": "no"})

    @mcp.route("/nothing")
    async def nothing(request: Request) -> Any:
        return {"no": "response"}

    @mcp.route("/header")
    async def header(request: Request) -> Response:
        return PlainTextResponse("", headers={"x-evil": "a\r\nset-cookie: b"})

    @mcp.route("/breaks")
    async def breaks(request: Request) -> Response:
        def numbers() -> Any:
            yield "1" * 100_000
            raise ZeroDivisionError

        return StreamingResponse(numbers())

    async with asked(mcp, lane=lane) as client:
        for path in ("/fails", "/nothing", "/header"):
            failed = await client.get(path)
            assert (failed.status_code, "incident" in failed.text) == (500, not show_errors)
            assert "set-cookie" not in failed.headers
        assert ("ZeroDivisionError" in (await client.get("/fails")).text) is show_errors
        refused = await client.get("/refuses")
        assert (refused.status_code, refused.text, refused.headers["x-why"]) == (403, "not for you\n", "no")
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get("/breaks")
    for path in ("/fails", "/breaks"):
        record = next(each for each in caplog.records if f"'{path}' failed" in each.message)
        assert record.exc_info is not None
        assert "raise ZeroDivisionError" in logging.Formatter().formatException(record.exc_info)


@LANES
async def test_only_files_inside_the_folder_are_served(lane: bool, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (tmp_path / "secret").write_text("secret", "utf-8")
    for name, text in {
        "index.html": "start", "sub/index.html": "below", ".env": "KEY=1", ".git/config": "x", "a b.css": "p{}",
        "large.bin": "y" * 600_000,
    }.items():  # fmt: skip
        (folder / name).write_text(text, "utf-8")
    (folder / "link").symlink_to(tmp_path / "secret")
    mcp = Server("shop")
    mcp.static("/app/", folder, max_age=60)
    async with asked(mcp, lane=lane) as client:
        client.follow_redirects = True
        assert (await client.get("/app")).text == (await client.get("/app/index.html")).text == "start"
        assert (await client.get("/app/sub")).text == "below"
        assert (await client.get("/app/a%20b.css")).headers["content-type"].startswith("text/css")
        for path in (
            "/app/.env", "/app/.git/config", "/app/../secret", "/app/%2e%2e/secret", "/app/..%2fsecret", "/app/link",
            "/app/%00", "/app/" + "x" * 5000, "/app//etc/passwd", "/app/..%5csecret", "/application",
        ):  # fmt: skip
            request = httpx2.Request("GET", str(client.base_url) + path)
            request.url = request.url.copy_with(raw_path=path.encode())
            assert (await client.send(request)).status_code == 404, path
        whole = await client.get("/app/large.bin")
        assert (len(whole.content), whole.headers["cache-control"]) == (600_000, "private, max-age=60")
        assert whole.headers["x-content-type-options"] == "nosniff"
        again = await client.get("/app/large.bin", headers={"if-none-match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        part = await client.get("/app/large.bin", headers={"range": "bytes=10-19"})
        assert (part.status_code, part.text, part.headers["content-range"]) == (206, "y" * 10, "bytes 10-19/600000")
        many = ",".join(f"{2 * each}-{2 * each}" for each in range(100))
        assert (await client.get("/app/large.bin", headers={"range": f"bytes={many}"})).status_code == 200
        for path, length in (("/app/", "5"), ("/app/large.bin", None)):
            head = await client.head(path)
            assert (head.status_code, head.content, head.headers.get("content-length")) == (200, b"", length)
        assert (await client.post("/app/")).status_code == 405


@LANES
async def test_mounted_servers_bring_their_pages(lane: bool, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("files", "utf-8")
    inner, outer = Server("inner"), Server("outer")

    @inner.route("/page/{name}")
    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{request.path_params['name']} {request.url.path}")

    inner.static("/files", tmp_path)
    outer.mount(inner, prefix="in")
    async with asked(outer, lane=lane) as client:
        assert (await client.get("/in/page/x")).text == "x /in/page/x"
        assert (await client.get("/in/files/")).text == "files"
        assert (await client.get("/page/x")).status_code == 404
    host = Starlette(routes=[Mount("/mcp-server", app=outer)])
    async with asked(outer, lane=lane, app=host) as client:
        assert (await client.get("/mcp-server/in/page/x")).text == "x /mcp-server/in/page/x"
        assert (await client.get("/mcp-server/in/files/")).text == "files"
        client.follow_redirects = True
        assert (await client.get("/mcp-server/in/files")).text == "files"


async def test_reserved_and_invalid_paths_are_rejected() -> None:
    mcp = Server("taken", serve="all", auth=auth.keys("a-key-for-the-pages-0123456789"))
    async with mcp.running() as runtime:
        routes = runtime.serve_http()
        own = {path.replace("*", "x") for path in listed_paths(routes)} - {"/"}
    for path in own:
        with pytest.raises(ValueError, match="of Millstream's own"):
            Server("x").route(path)(home_page)
    for wrong in ("page", "/a?b", "/a b", "/ä", "/a#b", "/%41"):
        with pytest.raises(ValueError, match="isn't a path"):
            Server("x").route(wrong)(home_page)
    with pytest.raises(ValueError, match="methods must be"):
        Server("x").route("/a", methods=["FETCH"])(home_page)
    with pytest.raises(ValueError, match="no folder"):
        Server("x").static("/a", "nowhere")


async def home_page(request: Request) -> Response:
    return PlainTextResponse("")


def test_pages_cannot_use_reserved_paths() -> None:
    user = UserRoutes(
        [("", route_of("/token", home_page, methods=["GET"], public=True))], served=["/mcp"], show_errors=bool
    )
    with pytest.raises(ValueError, match=r"'/token' is one of Millstream's own paths"):
        routes_of(user)


async def test_replaced_pages_keep_mcp_and_login() -> None:
    paths = ["/mcp", "/talk/", "/token", "/health", "/health"]
    pages = [route_of(each, home_page, methods=["GET"], public=True, fixed=True) for each in paths]
    user = UserRoutes([("/in", each) for each in pages], served=["/mcp", "/talk"], show_errors=bool)
    routes = routes_of(user)
    found: list[int] = []
    for path in ("/mcp", "/token"):
        handler = routes.find("GET", path)
        assert handler is not None
        reply = await handler(HttpRequest("GET", path, (), {}))
        found.append(reply.status if isinstance(reply, Reply) else 0)
    assert found == [404, 204]
    assert routes.find("GET", "/health") is not ours


async def ours(request: HttpRequest) -> Reply:
    """Stand where a part serves a path."""
    return Reply(b"", 204)


def routes_of(user: UserRoutes) -> Routes:
    """The routes of a program beside those of a part that reserves one."""
    table = RouteRegistry()
    table.add("/token", Route({"GET": ours}, public=True, reserved=True))
    table.add("/health", Route({"GET": ours}, public=True))
    here_only = LocalOnly(None, ignore_message)
    user.join(table)
    return Routes(
        table,
        guard=None,
        here_only=here_only,
        limits=UNLIMITED,
        sockets=False,
        title="shop",
        addresses=[Address.main(Settings())],
    )


async def test_duplicate_and_late_paths_are_rejected() -> None:
    mcp, other = Server("one"), Server("other")
    mcp.route("/page")(home_page)
    mcp.route("/page", methods=["POST"])(home_page)
    with pytest.raises(ValueError, match="added twice"):
        mcp.route("/page")(home_page)
    other.route("/page")(home_page)
    with pytest.raises(ValueError, match="added twice"):
        mcp.mount(other)
    assert mcp.definition.mounted == []
    for prefix in ("assets", "dashboard", "tools"):
        with pytest.raises(ValueError, match="of Millstream's own"):
            mcp.mount(other, prefix=prefix)
    mcp.mount(other, prefix="other")
    with pytest.raises(ValueError, match="the MCP path"):
        Server("x", settings=Settings(path="/rpc")).route("/rpc")(home_page)
    with pytest.raises(ValueError, match="the MCP path"):
        Server("x", settings=Settings(sse_path="/stream")).route("/stream")(home_page)
    async with mcp.running():
        with pytest.raises(Exception, match="already running"):
            mcp.route("/late")(home_page)


@for_each(("settings", "path"), [({"sse_path": "/stream"}, "/stream"), ({"messages_path": "/say/"}, "/say")])
async def test_public_routes_do_not_open_moved_paths(settings: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueError, match=path):
        Server("shop", settings=Settings(**settings)).route(path, public=True)(home_page)
    late = Server("shop", auth=auth.keys(KEY), settings=Settings())
    late.route(path, public=True)(home_page)
    late.definition.configure(**settings)
    with pytest.raises(ValueError, match=path):
        async with asked(late, lane=True):
            pass


@LANES
async def test_private_folders_inside_public_ones_stay_private(lane: bool, tmp_path: Path) -> None:
    (tmp_path / "staff").mkdir()
    (tmp_path / "staff" / "plan").write_text("secret", "utf-8")
    (tmp_path / "page").write_text("open", "utf-8")
    mcp = Server("shop", auth=auth.keys(KEY))
    mcp.static("/site", tmp_path, public=True)
    mcp.static("/site/staff", tmp_path / "staff")
    async with asked(mcp, lane=lane) as client:
        assert (await client.get("/site/page")).text == "open"
        found = [
            (await client.get(f"/site{path}")).status_code for path in ("/staff/plan", "//staff/plan", "/%2fstaff/plan")
        ]
        assert found == [401, 404, 404]


async def test_one_callers_blocked_routes_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.0)
    ada, ben = ({"authorization": f"Bearer {name}{KEY}"} for name in ("ada-", "ben-"))
    mcp = Server("shop", auth=auth.keys(named_keys={"ada": f"ada-{KEY}", "ben": f"ben-{KEY}"}))
    finish = threading.Event()

    @mcp.route("/slow")
    def slow(request: Request) -> Response:
        finish.wait(WAIT)
        return PlainTextResponse("done")

    @mcp.route("/quick")
    def quick(request: Request) -> Response:
        return PlainTextResponse("hello")

    async with asked(mcp, lane=True) as client:
        assert [(await client.get("/quick", headers=each)).text for each in (ada, ben)] == ["hello"] * 2
        slow_ones = [asyncio.create_task(client.get("/slow", headers=ada)) for _ in range(60)]
        try:
            refused = await next(asyncio.as_completed(slow_ones))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert (await client.get("/quick", headers=ben)).text == "hello"
        finally:
            finish.set()
            await asyncio.gather(*slow_ones)


async def test_requests_wait_if_all_route_threads_are_busy() -> None:
    mcp, headers = Server("shop", auth=auth.keys(KEY)), {"authorization": f"Bearer {KEY}"}
    together = threading.Barrier(20, timeout=WAIT)

    @mcp.route("/slow")
    def slow(request: Request) -> Response:
        together.wait()
        return PlainTextResponse("done")

    async with asked(mcp, lane=True) as client:
        replies = await asyncio.gather(*(client.get("/slow", headers=headers) for _ in range(80)))
    assert {each.text for each in replies} == {"done"}


BLOCKING = """
import time
from pathlib import Path
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from millstream import Server

mcp = Server("shop")

def forever():
    Path(__file__).with_name("begun").touch()
    time.sleep(3600)

@mcp.route("/blocks")
def blocks(request):
    forever()

@mcp.route("/leaves-work")
async def leaves_work(request):
    return PlainTextResponse("later", background=BackgroundTask(forever))
"""


@pytest.mark.server
@pytest.mark.parametrize("path", ["/blocks", "/leaves-work"])
async def test_shutdown_does_not_wait_for_blocked_routes(path: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(BLOCKING, "utf-8")
    port = free_port()
    command, hurry = (
        run_command(str(tmp_path / "shop.py"), port),
        {**os.environ, "MILLSTREAM_DRAIN_TIMEOUT": "1"},
    )
    with start_program(command, port, tmp_path / "log", env=hurry) as served:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WAIT, verify=NO_TRUST) as client:
            asking = asyncio.create_task(client.get(path))
            await until_async((tmp_path / "begun").exists)
            served.process.terminate()
            assert await asyncio.to_thread(served.process.wait, WAIT) == 0
            await asyncio.gather(asking, return_exceptions=True)
