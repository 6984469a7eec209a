"""One caller's share of a table, filled with the largest allowed entries, takes the documented memory: the growth of
the process is compared with the counted size.
"""

import asyncio
import base64
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from cases import for_each
from growth import MIB, measured
from hub_parts import Outlet, encode_line, open_hub
from millstream import Context, Principal, Server, Settings
from millstream.client import ServerError
from millstream.hub import LimitExceeded
from millstream.stores import StoreFull
from millstream.testing import connect
from patience import WAIT
from store_parts import MemoryStore
from wire import MemoryPipe, per_request, request, run_wire

EVE, ADA = Principal("eve"), Principal("ada")
INITIALIZE = {"protocolVersion": "2025-11-25", "clientInfo": {"name": "t", "version": "1"}}


def make_shop() -> Server:
    """Return a server with resources."""
    mcp = Server("shop", settings=Settings(secret_key="a key of this test that is long enough"))

    @mcp.resource("doc://{name}")
    def read(name: str) -> str:
        return name

    return mcp


async def until_refused(pipe: MemoryPipe, request: Callable[[int], Any]) -> Any:
    """Send requests until one is refused. Return the error."""
    reply: Any = {}
    numbers = itertools.count()
    while "error" not in reply:
        number = next(numbers)
        pipe.send(json.dumps({**request(number), "id": number}).encode())
        reply = json.loads(await pipe.receive())
    return reply["error"]


@for_each("form", ["{}", "doc://ééééééééééééééééééééééééééééééééééééééééééééééééé/{}"])
async def test_memory_for_watched_uris_matches_the_counted_size(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.calls.sessions.MAX_HELD", 8 * MIB)

    def listen(number: int) -> Any:
        uris = [form.format(f"{number}-{each}") for each in range(1000)]
        return per_request("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})

    async with make_shop().running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher, principal=EVE)
        with measured() as growth:
            error = await until_refused(pipe, listen)
            assert "memory" in error["message"]
        counted = runtime.services.client_memory.bytes.count(EVE.id)
        assert 3.5 * MIB < counted <= 4 * MIB
        assert growth.bytes == pytest.approx(counted, rel=0.25)
        other = MemoryPipe(runtime.dispatcher, principal=ADA)
        other.send(json.dumps(listen(0)).encode())
        assert b"acknowledged" in await other.receive()
        await other.close()
        await pipe.close()


async def test_memory_for_connection_sessions_matches_the_counted_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.calls.sessions.MAX_HELD", MIB)
    capabilities = {"experimental": {f"e{number}": {} for number in range(300)}}
    opening = {**INITIALIZE, "capabilities": capabilities}
    async with make_shop().running() as runtime:
        pipes: list[MemoryPipe] = []
        with measured() as growth:
            refused = ""
            while not refused:
                pipes.append(MemoryPipe(runtime.dispatcher, principal=EVE))
                pipes[-1].send(json.dumps(request("initialize", opening)).encode())
                refused = json.loads(await pipes[-1].receive()).get("error", {}).get("message", "")
            assert "memory" in refused
        counted = runtime.services.client_memory.bytes.count(EVE.id)
        assert 0.4 * MIB < counted <= 0.5 * MIB
        assert growth.bytes == pytest.approx(counted, rel=0.25)
        for each in pipes:
            await each.close()


@for_each("depth", [1, 3, 90])
async def test_memory_for_hub_patterns_matches_the_counted_size(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.hub._delivery._MAX_MEMORY", 8 * MIB)
    async with open_hub(max_connections=0) as hub:

        async def subscribe(number: int, principal: Principal) -> None:
            channels = [f"{number * 16 + each:x}" + ".a" * (depth - 1) + ".>" * (depth > 1) for each in range(16)]
            await hub.subscribe(channels, Outlet(), encode=encode_line, principal=principal)

        number, refused = 0, ""
        with measured() as growth:
            while not refused:
                number += 1
                try:
                    await subscribe(number, EVE)
                except LimitExceeded as error:
                    refused = error.scope
        assert refused == "bytes of your channels and patterns"
        assert growth.bytes < 4 * MIB * 1.25 + number * 4096  # and what each subscriber takes itself
        await subscribe(0, ADA)


@for_each(
    ("kind", "value", "times"),
    [
        (str, "x" * 100_000, 1),
        (list[int], [1_000] * 20_000, 6),
        (list[float], [1.5] * 20_000, 6.5),
        (list[dict[str, int]], [{}] * 30_000, 18),
    ],
)
async def test_memory_for_running_call_arguments_is_as_documented(kind: Any, value: Any, times: float) -> None:
    mcp = Server("shop", settings=Settings(secret_key="a key of this test that is long enough", max_call_bytes=MIB))
    started: list[str] = []

    async def work(a: Any) -> None:
        started.append("")
        await asyncio.Event().wait()

    work.__annotations__["a"] = kind
    mcp.tool(work)
    async with mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher, principal=EVE)
        body = per_request("tools/call", {"name": "work", "arguments": {"a": value}})
        runtime.services.bodies.maximum = runtime.services.bodies.each = MIB
        with measured() as growth:
            sent = 0
            while sent == len(started):
                sent += 1
                pipe.send(json.dumps({**body, "id": sent}).encode())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        refused = json.loads(await pipe.receive())
        assert (refused["id"], "Too many calls are running" in refused["error"]["message"]) == (sent, True)
        counted = runtime.services.bodies.count(EVE.id)
        assert 0.75 * MIB < counted <= MIB
        assert growth.bytes == pytest.approx(times * counted, rel=0.25)
        await pipe.close()


async def test_notifications_count_toward_the_limit_on_calls() -> None:
    started: list[str] = []

    async def work(call: Any) -> None:
        started.append("")
        await asyncio.Event().wait()

    mcp = Server("shop", settings=Settings(secret_key="a key of this test that is long enough", max_call_bytes=MIB))
    async with mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher, principal=EVE)
        runtime.services.bodies.maximum = runtime.services.bodies.each = MIB
        runtime.dispatcher.registry.notification_handlers["com.example/work"] = work
        pipe.send(json.dumps(request("initialize", INITIALIZE)).encode())
        await pipe.receive()
        params = {"objects": [1000] * 15_000}
        message = json.dumps({"jsonrpc": "2.0", "method": "com.example/work", "params": params}).encode()
        for _ in range(30):
            pipe.send(message)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 5 < len(started) < 15
        assert 0.8 * MIB < runtime.services.bodies.count(EVE.id) <= MIB
        await pipe.close()
    assert runtime.services.bodies.used == 0


@for_each(("key", "size"), [(8, 0), (8, 100), (2_000, 16), (8, 100_000)])
async def test_memory_for_values_in_the_memory_store_matches_the_counted_size(key: int, size: int) -> None:
    store = MemoryStore(max_value_bytes=8 * MIB)
    with measured() as growth:
        for number in itertools.count():
            try:
                await store.kv.put(f"result:~eve.{number:0{key}}", bytes(size), 300.0)
            except StoreFull:
                break
    counted = store.kv.kinds["result"].shares["~eve"]
    assert 3.9 * MIB < counted <= 4.6 * MIB
    assert growth.bytes == pytest.approx(counted, rel=0.25)


async def test_memory_for_cached_list_pages_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.features.registry._MAX_PAGE_BYTES", MIB)
    mcp = Server("shop", settings=Settings(page_size=10, secret_key="a key of this test that is long enough"))
    for number in range(2_000):

        async def tool() -> str:
            return ""

        mcp.tool(tool, name=f"tool_{number:04}", description="d" * 1000)
    async with connect(mcp) as client:
        with measured() as growth:
            cursor, total = {}, 0
            while cursor is not None:
                page = await client.request("tools/list", cursor)
                total += len(json.dumps(page))
                cursor = {"cursor": page["nextCursor"]} if "nextCursor" in page else None
        assert total > 2 * MIB
        assert growth.bytes == pytest.approx(MIB, rel=0.25)


async def test_list_pages_that_callers_choose_are_not_cached() -> None:
    mcp = Server("shop", settings=Settings(page_size=100, secret_key="a key of this test that is long enough"))
    for number in range(400):

        async def tool() -> str:
            return ""

        mcp.tool(tool, name=f"tool_{number:03}", description="d" * 1000)
    async with connect(mcp) as client:

        async def page(name: str) -> Any:
            cursor = base64.urlsafe_b64encode(f"tools:{name}".encode()).decode()
            return await client.request("tools/list", {"cursor": cursor})

        for number in range(99, 400, 100):
            await page(f"tool_{number:03}")
        with measured() as growth:
            for number in range(300):
                await page(f"tool_{number:03}")
    assert growth.bytes < MIB  # a page has .1 MiB


async def test_cursor_has_only_one_valid_encoding() -> None:
    mcp = Server("shop", settings=Settings(page_size=1, secret_key="a key of this test that is long enough"))
    for name in ("aa", "b"):

        async def tool() -> str:
            return ""

        mcp.tool(tool, name=name)
    async with connect(mcp) as client:
        cursor = (await client.request("tools/list", {}))["nextCursor"]
        assert cursor.endswith("=")
        last = cursor.rstrip("=")[-1]
        other = cursor.replace(f"{last}=", f"{chr(ord(last) + 1)}=")
        assert base64.urlsafe_b64decode(other) == base64.urlsafe_b64decode(cursor)
        assert await client.request("tools/list", {"cursor": cursor})
        with pytest.raises(ServerError, match="Invalid cursor"):
            await client.request("tools/list", {"cursor": other})


async def test_dashboard_stores_only_the_beginning_of_long_names() -> None:
    mcp = Server("shop", serve="all", settings=Settings(secret_key="a key of this test that is long enough"))
    calls = [("resources/read", {"uri": "x"}), ("prompts/get", {"name": "x"}), ("x", {}), ("tools/call", {"name": "x"})]
    capabilities = {"experimental": {"x" * 100_000: {}}}

    async with mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        with measured() as growth:
            for number in range(100):
                method, params = calls[number % 4]
                long = dict.fromkeys(params, f"{number}" + 200000 * "x")
                body = per_request(method if params else f"{number}" + 200_000 * "x", long)
                body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities
                pipe.send(json.dumps(body).encode())
                await pipe.receive()
        assert growth.bytes < MIB
        await pipe.close()


async def test_client_names_are_cut_in_both_eras() -> None:
    mcp = Server("shop", settings=Settings(secret_key="a key of this test that is long enough"))

    @mcp.tool
    async def name_client(ctx: Context) -> str:
        return f"{ctx.client.name} {ctx.client.version}"

    long = {"name": "n" * 1_000, "version": "v" * 1_000}
    async with mcp.running() as runtime:
        new, old = MemoryPipe(runtime.dispatcher), MemoryPipe(runtime.dispatcher)
        body = per_request("tools/call", {"name": "name_client"})
        body["params"]["_meta"]["io.modelcontextprotocol/clientInfo"] = long
        new.send(json.dumps(body).encode())
        found = [json.loads(await new.receive())]
        old.send(json.dumps(request("initialize", {**INITIALIZE, "clientInfo": long})).encode())
        await old.receive()
        old.send(json.dumps(request("tools/call", {"name": "name_client"})).encode())
        found.append(json.loads(await old.receive()))
        for each in found:
            assert each["result"]["content"][0]["text"] == f"{'n' * 256} {'v' * 256}"
        await new.close()
        await old.close()


async def test_dashboard_keeps_the_beginning_of_long_client_names() -> None:
    mcp = Server("shop", serve="all", settings=Settings(secret_key="a key of this test that is long enough"))
    async with mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        with measured() as growth:
            for number in range(50):
                body = per_request("tools/list", {})
                body["params"]["_meta"]["io.modelcontextprotocol/clientInfo"] = {
                    "name": f"{number}" + 100_000 * "n",
                    "version": f"{number}" + 100_000 * "v",
                }
                pipe.send(json.dumps(body).encode())
                await pipe.receive()
        assert growth.bytes < MIB
        await pipe.close()


async def test_gateway_keeps_no_client_info_of_calls_that_have_ended() -> None:
    inner, outer = Server("inner"), Server("outer")

    @inner.tool
    def add(a: int) -> int:
        return a

    async with run_wire(inner, "own") as wire:
        assert wire.running is not None
        outer.upstream("there", f"http://127.0.0.1:{wire.running.port}/mcp", start_timeout=WAIT, timeout=WAIT)
        async with outer.running() as runtime:
            pipe = MemoryPipe(runtime.dispatcher, principal=EVE)

            async def call(number: int) -> None:
                body = per_request("tools/call", {"name": "there_add", "arguments": {"a": number}})
                about = {"name": f"{number}", "version": "1", "title": 200_000 * "t"}
                body["params"]["_meta"]["io.modelcontextprotocol/clientInfo"] = about
                pipe.send(json.dumps(body).encode())
                assert json.loads(await pipe.receive())["result"]["content"][0]["text"] == str(number)

            await call(0)  # connects
            with measured() as growth:
                for number in range(1, 41):
                    await call(number)
            assert growth.bytes < 2 * MIB
            await pipe.close()
