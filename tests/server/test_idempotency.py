"""The option `idempotency` of a tool, in one process."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec.structs import replace

from cases import for_each
from millstream import Context, Depends, Server, Settings, ToolError
from millstream.client import ToolFailed
from millstream.protocol import BY_DATE
from millstream.testing import connect
from patience import WAIT
from wire import ask_asgi, encode_headers

KEY = "millstream/idempotencyKey"
REPEATED = "It didn't run again.]\n"


def make_shop(done: list[Any], **options: Any) -> Server:
    """Return a server with a tool that runs once."""
    mcp = Server("shop", **options)

    @mcp.tool(idempotency="10m")
    async def pay(cents: int) -> int:
        """Pay."""
        done.append(cents)
        return cents

    return mcp


@for_each("revision", list(BY_DATE))
async def test_repeat_gets_the_first_result_in_each_revision(revision: str) -> None:
    done: list[Any] = []
    async with connect(make_shop(done), revision=revision) as client:
        first = await client.call("pay", cents=5)
        again = await client.call("pay", cents=5)
    assert (first.text, again.text.endswith(f"{REPEATED}5")) == ("5", True)
    assert again.structured_content == first.structured_content
    assert done == [5]


async def test_repeat_in_another_revision_has_the_form_of_that_revision() -> None:
    done: list[Any] = []
    mcp = make_shop(done)
    found = []
    async with mcp.running():
        for revision in ("2026-07-28", "2025-11-25"):
            async with connect(mcp, revision=revision) as client:
                result = await client.call("pay", cents=5)
                found.append((result.data, result.text.endswith("5")))
    assert found == [(5, True), ({"result": 5}, True)]
    assert done == [5]


async def test_result_outlives_a_restart(tmp_path: Path) -> None:
    done: list[Any] = []
    for _ in range(2):
        mcp = make_shop(done, store=f"sqlite:///{tmp_path / 'shop.db'}", settings=Settings(secret_key="k" * 40))
        async with connect(mcp) as client:
            text = (await client.call("pay", cents=5)).text
    assert text.endswith(f"{REPEATED}5")
    assert done == [5]


async def test_records_are_named_with_the_secret_that_workers_have_agreed_on() -> None:
    done: list[Any] = []
    mcp = make_shop(done)
    async with mcp.running() as runtime, connect(mcp) as client:
        services = runtime.services
        for secret in (b"own" * 16, b"agreed" * 8, b"agreed" * 8):
            services.use(replace(services.secrets, values=(secret,)))
            await client.call("pay", cents=5)
        assert len(await services.store.kv.keys("idempotency:")) == 2
    assert done == [5, 5]


@for_each("revision", list(BY_DATE))
async def test_clients_send_the_key_in_meta(revision: str) -> None:
    done: list[Any] = []
    mcp = make_shop(done)
    async with connect(mcp, revision=revision) as client:
        for key, ran in (("k1", [5]), ("k1", [5]), ("k2", [5, 5])):
            await client.call("pay", cents=5, meta={KEY: key}, progress=lambda *_: None)
            assert done == ran
        assert REPEATED in (await client.call_tool("pay", {"cents": 5}, meta={KEY: "k2"})).text
        wrong: Any = "k1"
        with pytest.raises(TypeError, match=r"Pass an argument of this name as call\('pay', \{'meta': …\}\)"):
            await client.call("pay", meta=wrong)


async def test_tool_announces_the_name_of_the_key() -> None:
    mcp = make_shop([])
    mcp.tool(name="plain")(lambda: 1)
    async with connect(mcp) as client:
        meta = {tool.name: tool.meta for tool in await client.list_tools()}
    assert meta == {"pay": {KEY: True}, "plain": {}}


@for_each(
    ("options", "removed"),
    [({"replay": True}, "replay"), ({"task": "allowed", "task_retry": True}, "task_retry")],
)
def test_tool_that_runs_once_cannot_run_again(options: dict[str, Any], removed: str) -> None:
    with pytest.raises(ValueError, match=f"a call never runs again. Remove {removed}=True."):
        Server("shop").tool(name="pay", idempotency=True, **options)(lambda: 1)


@for_each("value", ["10 minutes", "0m", "", 10, 1.5, "m"])
def test_wrong_times_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="idempotency must be True, False, or a time such as 30s, 10m, 2h, or 1d"):
        Server("shop").tool(name="pay", idempotency=value)(lambda: 1)


async def test_hints_do_not_let_it_run_again() -> None:
    started: list[str] = []
    mcp = Server("shop", settings=Settings(replay=True))

    for name, once in (("one", "10m"), ("two", False)):

        @mcp.tool(name=name, idempotency=once, annotations={"idempotentHint": True})
        async def ask(ctx: Context) -> str:
            """Ask."""
            started.append(ctx.revision)
            return await ctx.elicit("Name?", str)

    async with connect(mcp, replay="always", elicit=lambda _: {"value": "Ada"}) as client:
        await client.call("one")
        assert len(started) == 1
        await client.call("two")
        assert len(started) == 3


async def test_question_in_a_handshake_session_is_asked_once() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    mcp = Server("shop")

    @mcp.tool(idempotency="10m")
    async def buy(ctx: Context) -> str:
        """Ask."""
        return await ctx.elicit("Name?", str)

    async def reply(_: Any) -> Any:
        asked.set()
        await answer.wait()
        return {"value": "Ada"}

    async with asyncio.timeout(WAIT), connect(mcp, revision="2025-11-25", elicit=reply) as client:
        first = asyncio.create_task(client.call("buy"))
        await asked.wait()
        with pytest.raises(ToolFailed, match="is waiting for an answer"):
            await client.call("buy")
        answer.set()
        assert (await first).text == "Ada"
        assert (await client.call("buy")).text.endswith(f"{REPEATED}Ada")


async def test_canceled_call_runs_to_its_end() -> None:
    done: list[str] = []
    started, release = asyncio.Event(), asyncio.Event()
    mcp = Server("shop")

    @mcp.tool(idempotency="10m")
    async def pay() -> str:
        """Pay."""
        started.set()
        await release.wait()
        done.append("paid")
        return "paid"

    async with asyncio.timeout(WAIT), connect(mcp) as client:
        first = asyncio.create_task(client.call("pay"))
        await started.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = asyncio.create_task(client.call("pay"))
        release.set()
        assert (await again).text.endswith(f"{REPEATED}paid")
    assert done == ["paid"]


async def test_tasks_of_identical_calls_run_once() -> None:
    done: list[int] = []
    mcp = Server("shop")

    @mcp.tool(task="allowed", idempotency="10m")
    async def pay(cents: int) -> int:
        """Pay."""
        done.append(cents)
        return cents

    async with connect(mcp) as client:
        results = [(await client.call("pay", {"cents": 5}, task=True)).text for _ in range(2)]
        assert (results[0], results[1].endswith(f"{REPEATED}5")) == ("5", True)
        assert done == [5]
        for _ in range(2):
            await client.call("pay", {"cents": 5}, task=True, meta={KEY: "k1"})
    assert done == [5, 5]


async def test_failing_dependency_leaves_no_record() -> None:
    done: list[str] = []
    mcp = Server("shop")

    def refuse_first() -> None:
        done.append("tried")
        if len(done) == 1:
            raise ToolError("Closed.")

    @mcp.tool(idempotency="10m")
    async def pay(_: Annotated[None, Depends(refuse_first)]) -> str:
        """Pay."""
        done.append("paid")
        return "paid"

    async with connect(mcp) as client:
        with pytest.raises(ToolFailed, match=r"^Closed\.$"):
            await client.call("pay")
        assert (await client.call("pay")).text == "paid"
    assert done == ["tried", "tried", "paid"]


async def test_rest_has_a_header_for_the_key_and_one_for_repeats() -> None:
    done: list[Any] = []
    mcp = Server("shop", serve="rest")

    @mcp.tool(idempotency=True)
    async def pay(cents: int) -> int:
        """Pay."""
        done.append(cents)
        return cents

    async def send(cents: int, key: str) -> Any:
        fields = encode_headers({"content-type": "application/json", "idempotency-key": key, "host": "127.0.0.1"})
        return await ask_asgi(mcp, "POST", "/tools/pay", fields, json.dumps({"cents": cents}).encode())

    async with mcp.running():
        first, again, other = await send(5, "k1"), await send(5, "k1"), await send(6, "k1")
        assert (first.status, first.body) == (again.status, again.body) == (200, b"5")
        assert b"idempotent-replayed" not in dict(first.headers)
        assert dict(again.headers)[b"idempotent-replayed"] == b"true"
        assert (other.status, b"was used with other arguments" in other.body) == (409, True)
        assert (await send(6, "k2")).body == b"6"
        assert (await send(6, "x" * 256)).status == 409
        mcp.tool(name="plain")(lambda: 1)
        paths = json.loads((await ask_asgi(mcp, "GET", "/openapi.json", [(b"host", b"127.0.0.1")], b"")).body)["paths"]
        assert [each["name"] for each in paths["/tools/pay"]["post"]["parameters"]] == ["Idempotency-Key"]
        assert "parameters" not in paths["/tools/plain"]["post"]
    assert done == [5, 6]
