"""Routes of a program for another library, where several servers have some."""

from typing import Any

import httpx2
from starlette.responses import PlainTextResponse

from millstream.compat.fastmcp import standalone


async def test_routes_of_mounted_servers_keep_their_paths_and_the_first_of_two_stays() -> None:
    """As in the application, whose routes come in the order of the servers."""
    outer, inner = standalone.FastMCP("outer"), standalone.FastMCP("inner")

    def says(text: str) -> Any:
        async def page(request: Any) -> PlainTextResponse:
            return PlainTextResponse(text)

        return page

    outer.custom_route("/health", methods=["GET"])(says("outer"))
    inner.custom_route("/health", methods=["GET"])(says("inner"))
    inner.custom_route("/more", methods=["GET"])(says("more"))
    inner.custom_route("/mcp", methods=["POST"])(says("in the way"))
    outer.mount(inner, "in")
    for app in (outer.engine, outer.http_app()):
        async with (
            outer.session_manager.run(),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1") as http,
        ):
            assert (await http.get("/health")).text == "outer"
            assert (await http.get("/more")).text == "more"
            assert (await http.get("/in/more")).status_code == 404
            assert "in the way" not in (await http.post("/mcp", json={})).text
