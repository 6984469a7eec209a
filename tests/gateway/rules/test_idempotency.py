"""Calls of an upstream's tools that run once."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI

import http_peer
from cases import for_each
from client.misbehaving_servers import OFFER, ReceivedRequest, misbehaving
from fleet import Worker, fleet, until
from millstream import Client, Context, Server, Settings, ToolError
from millstream.client import ToolFailed
from millstream.gateway import OpenApi, ToolPolicy, UpstreamPolicy
from patience import WAIT
from wire import Json, per_request, routing

KEY = "millstream/idempotencyKey"
REVISIONS = ["2025-06-18", "2025-11-25", "2026-07-28"]
WINDOW = UpstreamPolicy(tools={"*": ToolPolicy(idempotency="10m")})
APPROVED = UpstreamPolicy(tools={"*": ToolPolicy(idempotency="10m", approve=True)})
REPEATED = "It didn't run again.]\n"
YES: Json = {"action": "accept", "content": {"value": "red"}}


class Shop:
    """An upstream that records what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.release = asyncio.Event()
        self.release.set()
        self.server = Server("shop")
        self.server.tool(self.order)
        self.server.tool(self.wrap)
        self.server.tool(self.refuse)
        self.server.tool(self.bind, task="allowed")

    async def order(self, book: str) -> str:
        """Order a book."""
        self.calls.append(book)
        await self.release.wait()
        return f"ordered {book}"

    async def wrap(self, book: str, ctx: Context) -> str:
        """Ask for the paper."""
        self.calls.append(book)
        return f"{book} in {await ctx.elicit('Which paper?', str)}"

    async def refuse(self, book: str) -> str:
        """Fail."""
        self.calls.append(book)
        raise ToolError("Sold out.")

    async def bind(self, book: str) -> str:
        """Bind a book."""
        self.calls.append(book)
        return f"bound {book}"

    def front(self, policy: UpstreamPolicy = WINDOW, **options: Any) -> Server:
        """Return a gateway to it."""
        front = Server("front", settings=Settings(secret_key="k" * 40))
        front.upstream("s", **{"target": self.server, "start_timeout": WAIT, "policy": policy, **options})
        return front


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def call(client: Client, name: str, **arguments: Any) -> str:
    """Return the text of a result or error."""
    try:
        return (await client.call(name, arguments)).text
    except ToolFailed as exc:
        return str(exc)


async def send(
    worker: Worker, tool: str = "s_order", then: Mapping[str, Any] = {}, key: str = "", *, asks: bool = True
) -> Json:
    """Return the result of a call in the per-request era. `then` has the members that continue one."""
    able: Json = {"elicitation": {"form": {}}} if asks else {}
    message = per_request("tools/call", {"name": tool, "arguments": {"book": "Dune"}, **then}, **able)
    if key:
        message["params"]["_meta"][KEY] = key
    reply = await worker.post(message, routing("tools/call", tool))
    found: Json = json.loads(await reply.body())["result"]
    return found


def answer(asked: Json) -> Json:
    """Return the members of a retry with one answer to every question."""
    return {"inputResponses": dict.fromkeys(asked["inputRequests"], YES), "requestState": asked["requestState"]}


def text(result: Json) -> str:
    """Return the texts of a result."""
    return "\n".join(each["text"] for each in result["content"])


@for_each("prefix", ["s", ""])
@for_each("revision", REVISIONS)
async def test_repeat_gets_the_first_result(shop: Shop, revision: str, prefix: str) -> None:
    shop.calls.clear()
    name = f"{prefix}_" if prefix else ""
    async with Client(shop.front(prefix=prefix), revision=revision, timeout=WAIT) as client:
        assert await call(client, f"{name}order", book="Dune") == "ordered Dune"
        assert (await call(client, f"{name}order", book="Dune")).endswith(f"{REPEATED}ordered Dune")
        assert await call(client, f"{name}refuse", book="Emma") == "Sold out."
        assert (await call(client, f"{name}refuse", book="Emma")).endswith(f"{REPEATED}Sold out.")
    assert shop.calls == ["Dune", "Emma"]


async def test_tools_announce_the_name_of_the_key(shop: Shop) -> None:
    async with Client(shop.front(), timeout=WAIT) as client:
        assert all((tool.meta or {})[KEY] is True for tool in await client.list_tools())


async def test_identical_calls_at_once_are_sent_once(shop: Shop) -> None:
    shop.release.clear()
    async with asyncio.timeout(WAIT), shop.server.running(), fleet(shop.front) as workers:
        calls = [asyncio.create_task(send(workers[each % 2])) for each in range(12)]
        await until(lambda: shop.calls)
        shop.release.set()
        results = await asyncio.gather(*calls)
    assert shop.calls == ["Dune"]
    assert all(text(each).endswith("ordered Dune") for each in results)


TOOLS = {"tools": [{"name": "order", "inputSchema": {"type": "object"}}]}


@for_each("worker", [0, 1])
@for_each(("policy", "asks"), [(WINDOW, True), (WINDOW, False), (APPROVED, True)])
async def test_call_whose_upstream_was_lost_is_not_repeated(policy: UpstreamPolicy, worker: int, *, asks: bool) -> None:
    calls: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            calls.append(asked.method)
            raise ConnectionError
        await asked.result({"server/discover": OFFER, "tools/list": TOOLS}.get(asked.method, {}))

    async with (
        asyncio.timeout(WAIT),
        misbehaving(behave) as server,
        fleet(lambda: Shop().front(policy, target=server.url)) as workers,
    ):
        then = answer(await send(workers[0])) if policy is APPROVED else {}
        assert "The call may have taken effect." in text(await send(workers[worker], then=then, asks=asks))
        for each in workers:
            assert "its outcome is unknown" in text(await send(each, asks=asks))
            assert "its outcome is unknown" in text(await send(each, then=then, asks=asks))
    assert len(calls) == 1


async def test_lost_call_of_an_open_connection_is_not_repeated() -> None:
    calls: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            calls.append(asked.method)
            if len(calls) > 1:
                raise ConnectionError
        found = {"server/discover": OFFER, "tools/list": TOOLS, "tools/call": {"content": []}}
        await asked.result(found.get(asked.method, {}))

    async with (
        asyncio.timeout(WAIT),
        misbehaving(behave) as server,
        fleet(lambda: Shop().front(target=server.url), 1) as (one,),
    ):
        await send(one, key="another call", asks=False)
        assert "The call may have taken effect." in text(await send(one, asks=False))
        assert "its outcome is unknown" in text(await send(one, asks=False))
    assert len(calls) == 2


async def test_call_that_an_unreachable_upstream_never_got_can_be_repeated(shop: Shop) -> None:
    async with asyncio.timeout(WAIT), AsyncExitStack() as behind:
        served = await behind.enter_async_context(http_peer.serve(shop.server))
        front = shop.front(target=f"http://127.0.0.1:{served.port}/mcp")
        async with Client(front, timeout=WAIT) as client:
            assert await call(client, "s_order", book="Emma") == "ordered Emma"
            await behind.aclose()
            for _ in range(3):
                assert "unknown" not in await call(client, "s_order", book="Dune")
    assert shop.calls == ["Emma"]


async def test_caller_who_leaves_does_not_cancel_the_call(shop: Shop) -> None:
    shop.release.clear()
    async with asyncio.timeout(WAIT), shop.server.running(), fleet(shop.front) as (one, two):
        leaving = asyncio.create_task(send(one))
        await until(lambda: shop.calls)
        await one.http.close()
        await asyncio.gather(leaving, return_exceptions=True)
        shop.release.set()
        assert text(await send(two)).endswith("ordered Dune")
    assert shop.calls == ["Dune"]


async def test_record_is_looked_up_before_a_person_is_asked(shop: Shop) -> None:
    async with asyncio.timeout(WAIT), shop.server.running(), fleet(lambda: shop.front(APPROVED)) as (one, two):
        asked = await send(one)
        assert "is waiting for an answer" in text(await send(two))
        assert text(await send(two, then=answer(asked))) == "ordered Dune"
        for each in (one, two):
            assert text(await send(each)).endswith(f"{REPEATED}ordered Dune")
            assert text(await send(each, then=answer(asked))).endswith(f"{REPEATED}ordered Dune")
        assert shop.calls == ["Dune"]
        assert "inputRequests" in await send(one, key="k2")  # another key is another call


@for_each("revision", REVISIONS)
async def test_declined_call_is_asked_about_again(revision: str) -> None:
    shop, said = Shop(), ["decline", True]
    async with Client(shop.front(APPROVED), revision=revision, elicit=lambda _: said.pop(0), timeout=WAIT) as client:
        assert "declined" in await call(client, "s_order", book="Dune")
        assert await call(client, "s_order", book="Dune") == "ordered Dune"
        assert (await call(client, "s_order", book="Dune")).endswith("ordered Dune")
    assert (shop.calls, said) == (["Dune"], [])


@for_each("upstream", ["2025-11-25", "2026-07-28"])
@for_each("revision", REVISIONS)
async def test_question_of_the_upstream_belongs_to_its_call(upstream: str, revision: str) -> None:
    shop = Shop()
    front = shop.front(revision=upstream)
    async with Client(front, revision=revision, elicit=lambda _: {"value": "red"}, timeout=WAIT) as client:
        assert await call(client, "s_wrap", book="Dune") == "Dune in red"
        assert (await call(client, "s_wrap", book="Dune")).endswith(f"{REPEATED}Dune in red")
    assert shop.calls == ["Dune"]


async def test_question_that_is_passed_on_is_asked_once(shop: Shop) -> None:
    async with (
        asyncio.timeout(WAIT),
        shop.server.running(),
        fleet(lambda: shop.front(revision="2026-07-28")) as workers,
    ):
        asked = await send(workers[0], "s_wrap")
        assert "is waiting for an answer" in text(await send(workers[1], "s_wrap"))
        assert text(await send(workers[1], "s_wrap", answer(asked))) == "Dune in red"
        assert text(await send(workers[0], "s_wrap", answer(asked))).endswith(f"{REPEATED}Dune in red")
    assert shop.calls == ["Dune"]


async def test_answer_of_an_earlier_round_is_not_sent_again(shop: Shop) -> None:
    @shop.server.tool
    async def dress(book: str, ctx: Context) -> str:
        """Ask twice."""
        shop.calls.append(book)
        return await ctx.elicit("Which paper?", str) + await ctx.elicit("Which ribbon?", str)

    async with (
        asyncio.timeout(WAIT),
        shop.server.running(),
        fleet(lambda: shop.front(revision="2026-07-28")) as workers,
    ):
        first = answer(await send(workers[0], "s_dress"))
        second = answer(await send(workers[1], "s_dress", first))
        assert "is waiting for an answer" in text(await send(workers[0], "s_dress", first))
        assert text(await send(workers[0], "s_dress", second)) == "redred"
    assert shop.calls == ["Dune"]


async def test_task_of_a_repeat_has_the_first_result(shop: Shop) -> None:
    async with Client(shop.front(), timeout=WAIT) as client:
        assert client.tasks.supported
        first = (await client.call("s_bind", {"book": "Dune"}, task=True)).text
        again = (await client.call("s_bind", {"book": "Dune"}, task=True)).text
    assert (first, again.endswith(f"{REPEATED}bound Dune")) == ("bound Dune", True)
    assert shop.calls == ["Dune"]


async def test_tools_that_search_finds_run_once(shop: Shop) -> None:
    front = Server("front", settings=Settings(tool_search=True))
    front.upstream("s", shop.server, start_timeout=WAIT, policy=WINDOW)
    async with Client(front, timeout=WAIT) as client:
        for name in ("call_tool", "s_order"):
            arguments = {"book": "Dune"} if name == "s_order" else {"name": "s_order", "arguments": {"book": "Dune"}}
            assert (await client.call(name, arguments)).text.endswith("ordered Dune")
    assert shop.calls == ["Dune"]


async def test_operation_of_an_api_runs_once() -> None:
    calls: list[str] = []
    api = FastAPI()

    @api.post("/orders/{isbn}", operation_id="order")
    def order(isbn: str) -> str:
        calls.append(isbn)
        return f"ordered {isbn}"

    front = Server("front")
    front.upstream("api", openapi=OpenApi(document=api), start_timeout=WAIT, policy=WINDOW)
    async with Client(front, timeout=WAIT) as client:
        for _ in range(2):
            assert "ordered 7" in await call(client, "api_order", isbn="7")
    assert calls == ["7"]


async def test_operation_that_failed_is_not_repeated() -> None:
    calls: list[str] = []
    api = FastAPI()

    @api.post("/orders/{isbn}", operation_id="order")
    def order(isbn: str) -> str:
        calls.append(isbn)
        raise RuntimeError("a bug")

    front = Server("front")
    front.upstream("api", openapi=OpenApi(document=api), start_timeout=WAIT, policy=WINDOW)
    async with Client(front, timeout=WAIT) as client:
        for _ in range(2):
            await call(client, "api_order", isbn="7")
    assert calls == ["7"]


def test_wrong_times_are_refused() -> None:
    for wrong in ("10 minutes", "0m", "", 10, "10M"):
        with pytest.raises(ValueError, match="idempotency can't be"):
            ToolPolicy(idempotency=wrong)  # type: ignore[arg-type]
