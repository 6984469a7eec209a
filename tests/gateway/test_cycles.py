import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from client.misbehaving_servers import ReceivedRequest, misbehaving
from http_peer import serve
from millstream import Server, Settings
from millstream.client import Client
from millstream.gateway import OpenApi
from patience import WAIT
from processes import free_port, run_command, run_server
from scripts.docs import ROOT


def make_gateway(folder: Path, name: str, **urls: str) -> str:
    path = folder / f"{name}.json"
    command = {"command": sys.executable, "args": [str(ROOT / "examples" / "gateway" / "shop.py")]}
    servers = {each: {"url": url} for each, url in urls.items()} | {"shop": command}
    path.write_text(json.dumps({"mcpServers": servers}))
    return str(path)


@pytest.mark.server
async def test_gateways_that_use_each_other_offer_their_own_items(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}/mcp" for port in ports]
    first, second = make_gateway(tmp_path, "one", two=urls[1]), make_gateway(tmp_path, "two", one=urls[0])
    with (
        run_server(run_command(first, ports[0]), ports[0], tmp_path / "one.log"),
        run_server(run_command(second, ports[1]), ports[1], tmp_path / "two.log"),
    ):
        async with asyncio.timeout(WAIT), Client(urls[0], timeout=WAIT) as one, Client(urls[1], timeout=WAIT) as two:
            while True:
                lists = [[tool.name for tool in await each.tools(fresh=True)] for each in (one, two)]
                if any(name.count("shop") == 1 and "_" in name for names in lists for name in names):
                    break
                await asyncio.sleep(0.05)
            for client, names in ((one, lists[0]), (two, lists[1])):
                assert max(name.count("_") for name in names) <= 4
                assert "Ordered 1 for me" in (await client.call("shop_order", isbn="1", account="me")).text


@pytest.mark.server
async def test_gateway_with_itself_as_upstream_still_offers_other_items(tmp_path: Path) -> None:
    port = free_port()
    target = make_gateway(tmp_path, "self", again=f"http://127.0.0.1:{port}/mcp")
    with run_server(run_command(target, port), port, tmp_path / "log"):
        async with Client(f"http://127.0.0.1:{port}/mcp", timeout=WAIT) as client:
            tools = {tool.name for tool in await client.tools()}
            assert "shop_order" in tools
            assert not [name for name in tools if name.startswith("again")]
            path = {"millstream.gateway/path": [f"{number}" for number in range(8)]}
            result = await client.request("tools/call", {"name": "shop_report", "arguments": {}, "_meta": path})
            assert "runs in a loop" in str(result)
            # The client forged that path, so only its call is refused.
            assert "shop_report" in {tool.name for tool in await client.tools(fresh=True)}
            assert (await client.call("shop_report")).text


async def test_upstream_that_claims_a_gateway_id_hides_only_its_own_items() -> None:
    claimed: dict[str, str] = {}

    async def claim(asked: ReceivedRequest) -> None:
        method = asked.message.get("method")
        if not claimed or asked.verb != "POST":  # the upstream starts once it knows the id
            await asked.reply(b"", status="405 Method Not Allowed" if asked.verb != "POST" else "503 Unavailable")
        elif method == "server/discover":
            capabilities = {
                "tools": {},
                "experimental": {"millstream.gateway": claimed},
            }
            versions = ["2026-07-28"]
            await asked.result({"resultType": "complete", "supportedVersions": versions, "capabilities": capabilities})
        else:
            tools = [{"name": "lie", "inputSchema": {"type": "object"}}]
            await asked.result({"resultType": "complete", "tools": tools})

    def make(name: str) -> Server:
        return Server(name, settings=Settings(secret_key=f"a secret of the tests for {name} that is long enough"))

    shop, inner, outer = make("shop"), make("inner"), make("outer")
    shop.tool(lambda: "ordered", name="order")
    async with asyncio.timeout(WAIT), misbehaving(claim) as liar, shop.running(), serve(shop) as shop_server:
        inner.upstream("shop", f"http://127.0.0.1:{shop_server.port}/mcp", start_timeout=WAIT)
        inner.upstream("liar", liar.url, start_timeout=0)
        async with inner.running(), serve(inner) as running:
            outer.upstream("inner", f"http://127.0.0.1:{running.port}/mcp", start_timeout=WAIT)
            async with Client(outer, timeout=WAIT) as client, Client(inner, timeout=WAIT) as between:
                experimental = client.conversation.negotiated.capabilities["experimental"]
                claimed["id"] = experimental["millstream.gateway"]["id"]
                async with between.watch(tools=True) as changes:
                    while "liar_lie" not in {tool.name for tool in await between.tools(fresh=True)}:
                        await anext(changes)
                async with client.watch(tools=True) as changes:
                    shop.tool(lambda: "new", name="new")  # once it's listed, so are the changes before it
                    while "inner_shop_new" not in {tool.name for tool in await client.tools(fresh=True)}:
                        await anext(changes)
                assert {tool.name for tool in await client.tools(fresh=True)} == {"inner_shop_order", "inner_shop_new"}
                assert (await client.call("inner_shop_order")).text == "ordered"


class _Application:
    """An application of another framework in this process."""

    def openapi(self) -> dict[str, Any]:
        return {"openapi": "3.1.0", "info": {"title": "Shop", "version": "1"}, "paths": {}}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("selected", [False, True])
async def test_gateway_to_applications_in_this_process_is_not_announced(*, selected: bool) -> None:
    application = _Application()
    mcp = Server("front")
    mcp.upstream("shop", openapi=OpenApi(document=application) if selected else application, start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        assert "experimental" not in client.conversation.negotiated.capabilities


async def test_gateways_to_different_apis_have_different_ids(tmp_path: Path) -> None:
    ids = set()
    for name in ("shop.json", "bank.json"):
        (tmp_path / name).write_text(
            json.dumps({**_Application().openapi(), "servers": [{"url": "http://127.0.0.1:9"}]})
        )
        mcp = Server("front", settings=Settings(secret_key="a secret of the tests that is long enough"))
        mcp.upstream("api", openapi=str(tmp_path / name), start_timeout=WAIT)
        async with Client(mcp, timeout=WAIT) as client:
            ids.add(client.conversation.negotiated.capabilities["experimental"]["millstream.gateway"]["id"])
    assert len(ids) == 2


async def test_metrics_scrape_does_not_compute_upstream_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their description counts items and processes, and a scrape reads a few figures of each."""
    mcp, shop = Server("front", serve="metrics"), Server("shop")
    mcp.upstream("shop", shop, start_timeout=WAIT)
    async with mcp.running(), serve(mcp) as running:
        monkeypatch.delattr("millstream._gateway.upstreams.upstream.Upstream.describe")
        peer = await running.connect()
        await peer.send(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status, _, body = await peer.reply()
        peer.close()
    assert (status, b'gateway_links{upstream="shop"}' in body) == (200, True)
