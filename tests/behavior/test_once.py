import asyncio
import json
from typing import Any

import pytest

from bad_input.shop import make_shop
from cases import for_each
from millstream import Context, Server, ToolError
from millstream._server.calls.session_state import once_stored
from wire import Wire, per_request, routing, run_wire

FORM = {"type": "object", "properties": {"n": {"type": "integer"}}}
ANSWER = {"sure": {"action": "accept", "content": {"n": 1}}}


def make_charging_shop() -> tuple[Server, list[str], asyncio.Event]:
    """Return a shop that charges after a question."""
    mcp, charged, release = make_shop(), list[str](), asyncio.Event()

    @mcp.tool
    async def buy(ctx: Context, fails: bool = False) -> str:
        """Charge once."""
        await ctx.elicit("Sure?", FORM, key="sure")

        async def charge() -> int:
            charged.append("card")
            await release.wait()
            if fails and len(charged) == 1:
                raise ToolError("The bank is closed.")
            return len(charged)

        return str(await ctx.once("charge", charge, store=True))

    return mcp, charged, release


async def send(wire: Wire, **params: Any) -> Any:
    """Send one round."""
    message = per_request("tools/call", {"name": "buy", "arguments": {}, **params}, elicitation={"form": {}})
    return (await wire.post(message, routing("tools/call", "buy"))).message["result"]


@for_each("copies", [2, 5])
async def test_side_effect_runs_once_if_a_round_is_repeated(copies: int) -> None:
    mcp, charged, release = make_charging_shop()
    async with run_wire(mcp, "asgi") as wire:
        state = (await send(wire))["requestState"]
        rounds = [asyncio.create_task(send(wire, requestState=state, inputResponses=ANSWER)) for _ in range(copies)]
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == copies)
        await wire.until(lambda: len(charged) == 1)
        release.set()
        results = [json.dumps(each["content"]) for each in await asyncio.gather(*rounds)]
        assert (charged, set(results)) == (["card"], {'[{"type": "text", "text": "1"}]'})


async def test_side_effect_runs_once_per_client() -> None:
    mcp, charged, release = make_charging_shop()
    release.set()
    async with run_wire(mcp, "asgi") as wire:
        for count in (1, 2):
            state = (await send(wire))["requestState"]
            result = await send(wire, requestState=state, inputResponses=ANSWER)
            assert result["content"][0]["text"] == str(count)
    assert len(charged) == 2


async def test_copy_of_a_failed_round_gets_its_error() -> None:
    mcp, charged, release = make_charging_shop()
    release.set()
    async with run_wire(mcp, "asgi") as wire:
        given = {"arguments": {"fails": True}}
        state = (await send(wire, **given))["requestState"]
        for _ in range(2):
            failed = await send(wire, requestState=state, inputResponses=ANSWER, **given)
            assert (failed["isError"], failed["content"][0]["text"]) == (True, "The bank is closed.")
    assert len(charged) == 1


async def test_effects_can_fail_repeatedly_before_they_succeed() -> None:
    async with make_shop().running() as runtime:
        kv, failed = runtime.services.store.kv, 0
        compare_and_set = kv.compare_and_set

        async def others_are_first(name: str, expected: bytes | None, value: bytes, ttl: float) -> bool:
            nonlocal failed
            failed += 1
            return failed > 2_000 and await compare_and_set(name, expected, value, ttl)

        async def run() -> bytes:
            return b"1"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(kv), "compare_and_set", staticmethod(others_are_first))
            assert await once_stored(runtime.services, "charge", run) == b"1"
