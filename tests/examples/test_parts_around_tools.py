import logging
from pathlib import Path

import httpx2
import pytest

from examples import docs_folder, guards, orders_db, shop_site, zipped
from millstream import Server
from millstream.testing import ServerError, connect


async def test_calls_are_timed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shop")
    async with connect(guards.mcp) as client:
        assert (await client.call("order", isbn="1")).text == "1 of 1"
    assert "order took" in caplog.text


async def test_middleware_rejects_and_changes_arguments(caplog: pytest.LogCaptureFixture) -> None:
    for is_open, said in ((True, "Thank you! 1 of 9780"), (False, "The shop is closed. Try again tomorrow.")):
        mcp = Server("shop", middleware=[guards.Audit(), guards.OpeningHours(is_open=is_open)])
        mcp.tool(guards.order)
        mcp.tool(name="_hidden")(guards.order)
        async with connect(mcp) as client:
            assert [each["name"] for each in (await client.request("tools/list"))["tools"]] == ["order"]
            assert (await client.call("order", isbn="97-80", raise_on_error=False)).text == said
            with pytest.raises(ServerError):
                await client.call("nothing")
    assert "tools/call failed: Unknown tool: 'nothing'" in caplog.text


async def test_orders_are_committed_per_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect(orders_db.mcp) as client:
        (order, mine) = (await client.request("tools/list"))["tools"]
        assert (list(order["inputSchema"]["properties"]), list(mine["inputSchema"]["properties"])) == (["isbn"], [])
        await client.call("order", isbn="1")
    async with connect(orders_db.mcp) as client:
        assert (await client.call("my_orders")).data == ["1"]


async def test_shop_serves_a_site_and_receives_webhooks() -> None:
    transport = httpx2.ASGITransport(shop_site.mcp)  # type: ignore[arg-type]
    client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    async with shop_site.mcp.lifespan(), client as http:
        heard = await http.post("/hooks/bank", json={"order": "7"})
        assert heard.json() == {"heard_from": "bank"}
        assert "1 orders are paid" in (await http.get("/")).text
        assert "The shop" in (await http.get("/app/")).text
    async with connect(shop_site.mcp) as peer:
        assert (await peer.call("is_paid", order="7")).data is True


async def test_http_middleware_wraps_the_server() -> None:
    transport = httpx2.ASGITransport(zipped.app)
    client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    async with zipped.app.router.lifespan_context(zipped.app), client as http:
        reply = await http.post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "catalog"}},
            headers={"accept": "application/json"},
        )
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.json()["result"]["content"][0]["text"].count("a book") == 1000


async def test_folder_resources_can_be_read_by_tools() -> None:
    async with connect(docs_folder.mcp) as client:
        (listed,) = await client.read("docs://")
        assert '"docs://index.html"' in (listed.text or "")
        (page,) = await client.read("docs://index.html")
        assert page.mime_type == "text/html"
        assert (await client.call("title", path="index.html")).text == (page.text or "").splitlines()[0]
