import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import msgspec
import pytest

from client.misbehaving_servers import DONE, ReceivedRequest, misbehaving, with_handshake
from gateway.content_server import make_library
from millstream import Server
from millstream._gateway.upstreams.lists import refresh_pause
from millstream._protocol.metadata import ORIGIN_KEY
from millstream._server.features.registry import Registry
from millstream.client import Client
from millstream.client._server_messages import Change
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

SHOP = Path(__file__).parents[2] / "client" / "shop.py"


def make_gateway(target: Any, store: str = "", **options: Any) -> Server:
    mcp = Server("front", store=store)
    mcp.upstream("shop", target, **{"start_timeout": WAIT, **options})
    return mcp


async def test_lists_are_served_from_the_store_during_an_outage(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'gateway.db'}"
    port = free_port()
    with run_server(run_command(str(SHOP), port), port, tmp_path / "first"):
        target = f"http://127.0.0.1:{port}/mcp"
        async with Client(make_gateway(target, store), timeout=WAIT) as client:
            before = [tool.name for tool in await client.tools()]
            assert "shop_count" in before
    mcp = make_gateway(target, store, start_timeout=0.0)
    async with Client(mcp, timeout=WAIT) as client:
        assert [tool.name for tool in await client.tools()] == before
        assert client.instructions.endswith("Sell books.")
        for _ in range(8):
            result = await client.call("shop_count", a=1, b=2, raise_on_error=False)
            assert result.is_error
            assert "'shop' behind this gateway" in result.text
            assert str(port) not in result.text
        assert "shop" in (await _ready(mcp))
        with run_server(run_command(str(SHOP), port), port, tmp_path / "second"):
            async with asyncio.timeout(WAIT):
                while True:
                    result = await client.call("shop_count", a=1, b=2, raise_on_error=False)
                    if not result.is_error and await _ready(mcp) == "ok\n":
                        break
                    await asyncio.sleep(0.05)


async def _ready(mcp: Server) -> str:
    transport = httpx2.ASGITransport(mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        return (await http.get("/readyz")).text


async def test_lists_are_updated_when_the_upstream_changes_them() -> None:
    upstream = make_library()
    for revision in ("2025-11-25", "2026-07-28"):
        async with (
            asyncio.timeout(WAIT),
            Client(make_gateway(upstream, revision=revision), revision=revision, timeout=WAIT) as client,
            client.watch(tools=True, prompts=True) as changes,
        ):

            @upstream.tool
            def added() -> str:
                """Be added while the gateway runs."""
                return "added"

            assert await anext(changes) == Change("tools")
            assert "shop_added" in {tool.name for tool in await client.tools(fresh=True)}
            assert (await client.call("shop_added")).text == "added"
            upstream.remove_tool("added")
            assert await anext(changes) == Change("tools")
            assert "shop_added" not in {tool.name for tool in await client.tools(fresh=True)}


async def test_disabled_tools_stay_disabled_when_the_upstream_redefines_them() -> None:
    upstream = Server("shop")
    upstream.tool(lambda: "", name="sell", description="Sell a book.")
    mcp = make_gateway(upstream)
    async with (
        asyncio.timeout(WAIT),
        Client(mcp, timeout=WAIT) as client,
        client.watch(tools=True) as changes,
    ):
        mcp.disable("tool", "shop_sell")
        upstream.remove_tool("sell")
        upstream.tool(lambda: "", name="sell", description="Sell a record.")
        upstream.tool(lambda: "", name="buy")
        while "shop_buy" not in {tool.name for tool in await client.tools(fresh=True)}:
            await anext(changes)
        assert {tool.name for tool in await client.tools(fresh=True)} == {"shop_buy"}
        mcp.enable("tool", "shop_sell")
        found = {tool.name: tool.description for tool in await client.tools(fresh=True)}
        assert found["shop_sell"] == "Sell a record."


async def test_lists_are_read_again_after_the_upstream_restarted() -> None:
    """It doesn't announce changes, and has lost its sessions."""
    running, offered = "first", "old"

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method not in ("initialize", "server/discover") and asked.headers.get("mcp-session-id") != running:
            await asked.reply(b"", status="404 Not Found")
        elif asked.method == "tools/list":
            await asked.result({"tools": [{"name": offered, "inputSchema": {"type": "object"}}]})
        elif asked.method == "tools/call":
            await asked.result(DONE)
        else:
            await with_handshake(behave, running)(asked)

    async with misbehaving(behave) as upstream:
        gateway = make_gateway(upstream.url, isolation="shared")
        async with asyncio.timeout(WAIT), Client(gateway) as client, client.watch(tools=True) as changes:
            await client.call("shop_old")
            running, offered = "second", "new"
            await client.call("shop_old")
            assert await anext(changes) == Change("tools")
            assert [tool.name for tool in await client.tools(fresh=True)] == ["shop_new"]


async def test_lists_are_not_refetched_for_every_lost_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._gateway.upstreams.lists.refresh_pause", lambda seconds: 0)
    monkeypatch.setattr("millstream._gateway.upstreams.lists._MIN_REFRESH", WAIT)
    opened: list[str] = []
    used: set[str] = set()

    async def behave(asked: ReceivedRequest) -> None:
        session = asked.headers.get("mcp-session-id", "")
        if asked.method == "initialize":
            opened.append(str(len(opened)))
            await with_handshake(behave, opened[-1])(asked)
        elif asked.method in ("tools/list", "tools/call") and session in used:
            await asked.reply(b"", status="404 Not Found")
        elif asked.method == "tools/list":
            used.add(session)
            await asked.result({"tools": [{"name": "tool", "inputSchema": {"type": "object"}}]})
        elif asked.method == "tools/call":
            used.add(session)
            await asked.result(DONE)
        else:
            await with_handshake(behave, session)(asked)

    async with misbehaving(behave) as upstream:
        async with Client(make_gateway(upstream.url), timeout=WAIT) as client:
            for _ in range(20):
                await client.call("shop_tool")
        lists = [each for each in upstream.requests if each.method == "tools/list"]
    assert len(opened) >= 20
    assert len(lists) < 8


def test_continually_changing_lists_are_refreshed_at_most_once_a_second() -> None:
    assert [refresh_pause(each) for each in (0.01, 0.5, 60)] == [1, 2, 5]


async def test_upstreams_with_many_tools_create_no_type_for_each_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, defined = Server("upstream"), list[str]()
    for number in range(20):
        upstream.tool(lambda city: f"sunny in {city}", name=f"weather_{number}")
    define = msgspec.defstruct

    def count(name: str, *args: Any, **options: Any) -> Any:
        defined.append(name)
        return define(name, *args, **options)

    async with upstream.running():
        monkeypatch.setattr("msgspec.defstruct", count)
        async with Client(make_gateway(upstream), timeout=WAIT) as client:
            assert (await client.call("shop_weather_7", city="Rome")).text == "sunny in Rome"
            assert len(defined) < 20


def test_replaced_lists_leave_nothing_behind() -> None:
    registry = Registry(page_size=10, list_ttl_ms=0)
    sizes = set[int]()
    for number in range(3):
        removed, added = list(registry.prompts), f"prompt_{number}"
        registry.exchange(
            "prompts", removed, {added: SimpleNamespace(scopes=frozenset[str](), visible=None, long_name="")}
        )
        sizes.add(sum(len(each) for each in vars(registry).values() if isinstance(each, dict)))
    assert len(sizes) == 1


async def test_conflicting_names_are_rejected_with_both_sources() -> None:
    mcp = make_gateway(make_library(), prefix="")

    @mcp.tool
    def length() -> str:
        """Use a name of the upstream."""
        return "mine"

    with pytest.raises(ValueError, match="This server and the upstream 'shop' both have a tool 'length'"):
        async with mcp.running():
            pass
    for second in ("Shop", "other"):
        mcp = make_gateway(make_library())
        mcp.upstream(second, make_library(), prefix="sHop")
        with pytest.raises(ValueError, match=f"'shop' and '{second}' have the same prefix"):
            async with mcp.running():
                pass
    mcp = make_gateway(make_library(), prefix="no spaces")
    with pytest.raises(ValueError, match="produces names that some clients can't call"):
        async with mcp.running():
            pass


ODD = """
import json, sys
deep = {}
for _ in range(200): deep = {"a": deep}
TOOLS = [{"name": "good", "inputSchema": {"type": "object"}, "_meta": {"x": 1}, "future": [1]},
         {"name": "deep", "inputSchema": deep}, {"name": "wide", "inputSchema": {"description": "x" * 300000}},
         {"name": 7, "inputSchema": {}}, {"name": "bare"}, "text", None]
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), None
    if method == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "odd"}}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call":
        result = {"content": "nothing of the kind", "isError": 3}
    if "id" in message:
        answer = {"result": result} if result else {"error": {"code": -32601, "message": "no"}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""


CHANGING = """
import json, sys
def send(**message): print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
era, subscription, names = sys.argv[1], None, ["early"]
for line in sys.stdin:
    message = json.loads(line)
    method, about = message.get("method"), {"_meta": {"io.modelcontextprotocol/subscriptionId": subscription}}
    result = {"resultType": "complete", "capabilities": {"tools": {"listChanged": True}}}
    if method == ("server/discover" if era > "2026" else "initialize"):
        result |= {"supportedVersions": [era], "protocolVersion": era, "serverInfo": {"name": "s"}}
    elif method == "subscriptions/listen":
        about["_meta"] = {"io.modelcontextprotocol/subscriptionId": (subscription := message["id"])}
        send(method="notifications/subscriptions/acknowledged", params=about)
        continue
    elif method == "tools/list":
        result["tools"] = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
        if len(names) == 1:
            names.append("late")
            if subscription or era < "2026":
                send(method="notifications/tools/list_changed", params=about if subscription else {})
    else:
        result = None
    if "id" in message:
        answer = {"result": result} if result else {"error": {"code": -32601, "message": "no"}}
        send(id=message["id"], **answer)
"""


async def test_change_during_the_first_listing_is_not_missed() -> None:
    for era in ("2025-11-25", "2026-07-28"):
        mcp = make_gateway([sys.executable, "-c", CHANGING, era], refresh_seconds=3600)
        async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client, client.watch() as changes:
            while len(await client.tools(fresh=True)) < 2:
                await anext(changes)


EMPTY_AT_FIRST = """
import json, sys
def send(**message): print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
has_document = False
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), None
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
    elif method == "notifications/initialized":
        send(method="notifications/tools/list_changed")
    elif method == "tools/list":
        result = {"tools": [{"name": "late", "inputSchema": {"type": "object"}}]}
        if not has_document:
            send(method="notifications/resources/list_changed")
        has_document = True
    elif method == "resources/list":
        result = {"resources": [{"uri": "doc://1", "name": "one"}]}
    if "id" in message:
        answer = {"error": {"code": -32601, "message": "no"}} if result is None else {"result": result}
        send(id=message["id"], **answer)
"""


async def test_first_items_that_a_session_announces_later_are_listed() -> None:
    mcp = make_gateway([sys.executable, "-c", EMPTY_AT_FIRST], refresh_seconds=3600)
    async with asyncio.timeout(WAIT), mcp.running():
        has_document = False
        while not has_document:
            async with Client(mcp, timeout=WAIT) as client:
                has_document = len(await client.resources()) == 1
                tools = [each.name for each in await client.tools()]
        assert tools == ["shop_late"]


async def test_unusable_descriptions_are_dropped() -> None:
    async with Client(make_gateway([sys.executable, "-c", ODD]), timeout=WAIT) as client:
        tool, bare = (await client.request("tools/list"))["tools"]
        origin = {ORIGIN_KEY: ["shop"]}
        named = {"name": "shop_good", "_meta": {"x": 1, **origin}, "future": [1]}
        assert tool == {**named, "inputSchema": {"type": "object"}}
        assert bare == {"name": "shop_bare", "_meta": origin, "inputSchema": {"type": "object"}}
        result = await client.call("shop_good", raise_on_error=False)
        assert result.is_error


async def test_gateway_runs_in_one_event_loop() -> None:
    mcp = Server("front")
    mcp.upstream("shop", [sys.executable, "-c", ODD], start_timeout=WAIT)

    def second() -> None:
        async def start() -> None:
            async with mcp.running():
                pass

        asyncio.run(start())

    async with mcp.running():
        with pytest.raises(ValueError, match="it can run in only one"):
            await asyncio.to_thread(second)
