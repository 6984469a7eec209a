import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import uuid4

import pydantic

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.functions import JOURNAL
from behavior.harness import Client, Json, Reply
from cases import for_each
from millstream import Context, Server, Settings
from millstream._transports.usual import read_usual
from patience import WAIT
from wire import open_pipe, per_request, routing, run_wire

POINT: Json = {"action": "accept", "content": {"x": 5, "y": 6}}
SIZE: Json = {"action": "accept", "content": {"width": 7, "height": 8}}


def by_message(method: str, params: Json) -> Json:
    """Return a callback that answers questions by their message."""
    return SIZE if "width" in params["requestedSchema"]["properties"] else POINT


async def first_round(client: Client, tool: str, **arguments: Any) -> tuple[Json, Json]:
    """Return the questions and state of a call's first round."""
    params = {"name": tool, "arguments": arguments}
    result = (await client.request("tools/call", params, rounds=False)).result
    assert result["resultType"] == "input_required"
    assert "ttlMs" not in result
    return result["inputRequests"], result["requestState"]


async def resend(client: Client, tool: str, answers: Json, state: str | None, **arguments: Any) -> Reply:
    """Send the same call again, with answers."""
    params: Json = {"name": tool, "arguments": arguments, "inputResponses": answers}
    if state is not None:
        params["requestState"] = state
    return await client.request("tools/call", params, rounds=False)


@in_combinations("questions", "elicitation")
@for_each("tool", ["asks_twice", "asks_twice_in_thread"])
async def test_side_effects_between_questions_run_once(connect: Connect, combination: Combination, tool: str) -> None:
    client = await connect(combination, answer=by_message)
    key = f"once {combination} {tool}"
    assert (await client.call(tool, key=key)).text == "5 1 7"
    assert len(client.questions) == 2
    assert '["paid"]' in (await client.call("journal", key=key)).text.replace("\n", "").replace(" ", "")
    assert (await client.call(tool, key=key)).text == "5 2 7"


@in_combinations("requests of its own")
async def test_questions_in_a_round_keep_their_keys(connect: Connect, combination: Combination) -> None:
    """A question's key is its `key=`; unknown answers are ignored (MCP 2026-07-28, basic/patterns/mrtr)."""
    client = await connect(combination)
    questions, state = await first_round(client, "asks_twice", key=f"keys {combination}")
    assert list(questions) == ["first"]
    answers = {"first": POINT, "nobody asked": {"action": "accept"}}
    second = await resend(client, "asks_twice", answers, state, key=f"keys {combination}")
    assert list(second.result["inputRequests"]) == ["second"]


@in_combinations("requests of its own")
async def test_missing_answers_are_requested_again(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination)
    questions, state = await first_round(client, "insists")
    again = await resend(client, "insists", {}, state)
    assert again.result["inputRequests"] == questions


@in_combinations("requests of its own")
async def test_answers_are_accepted_without_a_state(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    questions, _ = await first_round(client, "insists")
    reply = await resend(client, "insists", dict.fromkeys(questions, POINT), None)
    assert reply.text == "Point(x=5, y=6)"


@in_combinations("requests of its own")
async def test_changed_state_is_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination)
    questions, state = await first_round(client, "insists")
    answers = dict.fromkeys(questions, POINT)
    middle = len(state) // 2
    changed = state[:middle] + ("A" if state[middle] != "A" else "B") + state[middle + 1 :]
    for forged in (changed, state[:-3], "nonsense", "é", state + "A"):
        reply = await resend(client, "insists", answers, forged)
        assert reply.error["code"] == -32602, forged
        assert "requestState" in reply.error["message"]
    assert (await resend(client, "insists", answers, state)).text == "Point(x=5, y=6)"


@in_combinations("requests of its own")
async def test_state_from_another_call_is_rejected(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    _, state = await first_round(client, "asks_twice", key="one")
    other_arguments = await resend(client, "asks_twice", {"first": POINT}, state, key="two")
    assert other_arguments.error["code"] == -32602
    other_tool = await resend(client, "insists", {}, state)
    assert other_tool.error["code"] == -32602
    params = {"name": "asking", "inputResponses": {}, "requestState": state}
    other_method = await client.request("prompts/get", params, rounds=False)
    assert other_method.error["code"] == -32602
    same = await resend(client, "asks_twice", {"first": POINT}, state, key="one")
    assert list(same.result["inputRequests"]) == ["second"]


@in_combinations("requests of its own", "our process")
async def test_expired_state_is_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination)
    questions, state = await first_round(client, "insists")
    services = (await client.server.start()).services
    now = services.clock()
    services.clock = lambda: now + services.settings.input_timeout + 1
    reply = await resend(client, "insists", dict.fromkeys(questions, POINT), state)
    assert reply.error["code"] == -32602
    assert "xpired" in reply.error["message"]


@in_combinations("requests of its own")
async def test_call_with_too_many_rounds_fails(connect: Connect, combination: Combination) -> None:
    client = await connect(combination, answer=lambda method, params: POINT)
    reply = await client.call("never_content", key=f"never {combination}")
    assert reply.error["code"] == -32602
    assert len(client.questions) == 64


@in_combinations("requests of its own", "our process")
async def test_state_is_encrypted(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    key = f"hidden {combination}"
    _, state = await first_round(client, "asks_twice", key=key)
    answers = {"first": {"action": "accept", "content": {"x": 123456}}}
    second = await resend(client, "asks_twice", answers, state, key=key)
    sealed = second.result["requestState"]
    for plain in (b"123456", b"first", b"paid"):
        assert plain not in base64.urlsafe_b64decode(sealed + "==")
    assert list(JOURNAL[key]) == ["paid"]


@in_combinations("requests of its own")
async def test_only_three_methods_can_return_input_required(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination)
    reply = await client.request("tools/list", {"inputResponses": {}, "requestState": "x"})
    assert reply.result["resultType"] == "complete"


@for_each("way", ["asgi", "lane"])
async def test_oversized_state_fails_the_call(way: str) -> None:
    mcp = Server("large", settings=Settings(secret_key="k" * 40))

    @mcp.tool(replay=True)
    async def keeps(ctx: Context) -> str:
        """Store more than a state can hold, then ask."""
        await ctx.once("pages", lambda: "x" * 1024 * 1024)
        return str(await ctx.elicit("Go on?", {"type": "object", "properties": {}}))

    message = per_request("tools/call", {"name": "keeps", "arguments": {}}, elicitation={"form": {}})
    async with run_wire(mcp, way) as wire, asyncio.timeout(WAIT):
        reply = await wire.post(message, routing("tools/call", "keeps"))
        assert (reply.message["error"]["code"], "incident" in reply.message["error"]["message"]) == (-32603, True)
        pipe = open_pipe(wire.runtime)
        pipe.send(json.dumps(message).encode())
        assert json.loads(await pipe.receive())["error"]["code"] == -32603
        await pipe.close()


class Book(pydantic.BaseModel):
    title: str


class Payment(pydantic.BaseModel):
    amount: int = pydantic.Field(exclude=True)


@dataclass
class Order:
    id: str = field(default_factory=lambda: uuid4().hex)


class Unwritten:
    """A type that a validator creates and that can't be serialized."""

    def __init__(self, text: str) -> None:
        self.text = text


ACCEPTED: Json = {"action": "accept", "content": {"value": "yes"}}
FORGED = "A" * 80


@for_each("way", ["asgi", "lane", "pipe"])
@for_each("method", ["tools/call", "prompts/get", "resources/read"])
async def test_forged_state_is_rejected_before_the_function_runs(way: str, method: str) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    mcp, ran = Server("shop", settings=Settings(secret_key="k" * 40)), list[str]()

    def buy() -> str:
        """Buy."""
        ran.append("bought")
        return "bought"

    mcp.tool(buy)
    mcp.prompt(buy)
    mcp.resource("shop://buy")(buy)
    name = "shop://buy" if method == "resources/read" else "buy"
    params: Json = {"uri" if method == "resources/read" else "name": name, "requestState": FORGED}
    message = per_request(method, params)
    async with run_wire(mcp, "lane" if way == "lane" else "asgi") as wire, asyncio.timeout(WAIT):
        if way == "pipe":
            pipe = open_pipe(wire.runtime)
            pipe.send(json.dumps(message).encode())
            error = json.loads(await pipe.receive())["error"]
            await pipe.close()
        else:
            error = (await wire.post(message, routing(method, name))).message["error"]
    assert (error["code"], "requestState" in error["message"], ran) == (-32602, True, [])


async def test_calls_without_state_take_the_fast_path() -> None:
    mcp = Server("shop", settings=Settings(secret_key="k" * 40))

    @mcp.tool
    async def asks(ctx: Context) -> str:
        """Ask."""
        return await ctx.elicit("Go on?", str)

    async with run_wire(mcp, "asgi") as wire:
        ring = wire.runtime.services.ring
        message = per_request("tools/call", {"name": "asks", "arguments": {}}, elicitation={})
        assert read_usual(json.dumps(message).encode()) is not None
        result = (await wire.post(message, routing("tools/call", "asks"))).message["result"]
        assert ring.open(b"request-state", result["requestState"], b"another call") is None
        message["params"] |= {"requestState": result["requestState"], "inputResponses": {}}
        assert read_usual(json.dumps(message).encode()) is None


async def ask_with(function: Callable[..., Any], arguments: Json) -> Any:
    """Return the text of a call that asks once, in two rounds."""
    mcp = Server("shop", settings=Settings(secret_key="k" * 40))
    mcp.tool(function, name="asks")
    params: Json = {"name": "asks", "arguments": arguments}
    async with run_wire(mcp, "asgi") as wire:
        first = (
            await wire.post(per_request("tools/call", params, elicitation={}), routing("tools/call", "asks"))
        ).message
        if "result" not in first or "requestState" not in first["result"]:
            return first
        answers = dict.fromkeys(first["result"]["inputRequests"], ACCEPTED)
        again = {**params, "requestState": first["result"]["requestState"], "inputResponses": answers}
        second = await wire.post(per_request("tools/call", again, elicitation={}), routing("tools/call", "asks"))
        return second.message["result"]["content"][0]["text"]


async def test_functions_can_change_their_arguments_between_questions() -> None:
    async def asks(items: list[int], ctx: Context) -> str:
        items.sort()
        answer = await ctx.elicit("Go on?", str)
        items.pop()
        return f"{items} {answer}"

    assert await ask_with(asks, {"items": [2, 1]}) == "[1] yes"


async def test_varying_default_arguments_do_not_block_a_call() -> None:

    async def asks(order: Order, tags: set[str], ctx: Context) -> str:
        return f"{order.id != ''} {sorted(tags)} {await ctx.elicit('Go on?', str)}"

    assert await ask_with(asks, {"order": {}, "tags": ["b", "a"]}) == "True ['a', 'b'] yes"


@for_each("way", ["asgi", "lane", "pipe"])
async def test_state_binds_the_approved_arguments(way: str) -> None:
    mcp, ran = Server("shop", settings=Settings(secret_key="k" * 40)), list[int]()

    @mcp.tool
    async def pay(payment: Payment, ctx: Context) -> str:
        """Pay."""
        await ctx.elicit("Pay?", str)
        ran.append(payment.amount)
        return "paid"

    async with run_wire(mcp, "lane" if way == "lane" else "asgi") as wire, asyncio.timeout(WAIT):
        pipe = open_pipe(wire.runtime)

        async def send(params: Json) -> Json:
            message = per_request("tools/call", params, elicitation={})
            if way == "pipe":
                pipe.send(json.dumps(message).encode())
                return cast("Json", json.loads(await pipe.receive()))
            return cast("Json", (await wire.post(message, routing("tools/call", "pay"))).message)

        asked = (await send({"name": "pay", "arguments": {"payment": {"amount": 1}}}))["result"]
        round_two: Json = {
            "name": "pay",
            "requestState": asked["requestState"],
            "inputResponses": dict.fromkeys(asked["inputRequests"], ACCEPTED),
        }
        other = await send({**round_two, "arguments": {"payment": {"amount": 1_000}}})
        assert "requestState" in other["error"]["message"]
        assert ran == []
        await send({**round_two, "arguments": {"payment": {"amount": 1}}})
        assert ran == [1]
        await pipe.close()


async def test_state_binds_large_arguments() -> None:
    async def asks(text: str, ctx: Context) -> str:
        return f"{len(text)} {await ctx.elicit('Go on?', str)}"

    for size in (20_000, 100_000):
        assert await ask_with(asks, {"text": "x" * size}) == f"{size} yes"


async def test_tools_with_model_and_path_arguments_can_ask() -> None:

    async def asks(book: Book, path: Path, ctx: Context) -> str:
        return f"{book.title} {path} {await ctx.elicit('Go on?', str)}"

    assert await ask_with(asks, {"book": {"title": "Emma"}, "path": "a/b"}) == "Emma a/b yes"


async def test_tools_with_unserializable_arguments_can_ask() -> None:

    async def asks(path: Annotated[str, pydantic.AfterValidator(Unwritten)], ctx: Context) -> str:
        return f"{type(path).__name__} {await ctx.elicit('Go on?', str)}"

    assert await ask_with(asks, {"path": "a"}) == "Unwritten yes"
