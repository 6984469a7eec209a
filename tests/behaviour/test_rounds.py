"""Several rounds of one call: what is remembered, what is sealed, and what happens to states that are not ours."""

import asyncio
import base64
import json
from typing import Any

import pytest

from behaviour.combinations import Combination, every
from behaviour.conftest import Connect
from behaviour.functions import JOURNAL
from behaviour.harness import Client, Json, Reply
from millstream import Context, Server, Settings
from millstream._transports.memory import MemoryPipe
from patience import WAIT
from wire import enveloped, routing, wired

POINT: Json = {"action": "accept", "content": {"x": 5, "y": 6}}
SIZE: Json = {"action": "accept", "content": {"width": 7, "height": 8}}


def by_message(method: str, params: Json) -> Json:
    """A client that answers by what it is asked for."""
    return SIZE if "width" in params["requestedSchema"]["properties"] else POINT


async def first_round(client: Client, tool: str, **arguments: Any) -> tuple[Json, Json]:
    """Questions and state of a call's first round."""
    params = {"name": tool, "arguments": arguments}
    result = (await client.request("tools/call", params, rounds=False)).result
    assert result["resultType"] == "input_required"
    assert "ttlMs" not in result
    return result["inputRequests"], result["requestState"]


async def resend(client: Client, tool: str, answers: Json, state: str | None, **arguments: Any) -> Reply:
    """The same call again, with answers."""
    params: Json = {"name": tool, "arguments": arguments, "inputResponses": answers}
    if state is not None:
        params["requestState"] = state
    return await client.request("tools/call", params, rounds=False)


@every("questions", "elicitation")
@pytest.mark.parametrize("tool", ["asks_twice", "asks_twice_in_thread"])
async def test_an_effect_between_two_questions_happens_once(
    connect: Connect, combination: Combination, tool: str
) -> None:
    """Our choice: `ctx.once` keeps its value across the rounds of a call; another call has its own."""
    client = await connect(combination, answer=by_message)
    key = f"once {combination} {tool}"
    assert (await client.call(tool, key=key)).text == "5 1 7"
    assert len(client.asked) == 2
    assert '["paid"]' in (await client.call("journal", key=key)).text.replace("\n", "").replace(" ", "")
    assert (await client.call(tool, key=key)).text == "5 2 7"


@every("requests of its own")
async def test_questions_of_a_round_are_named_by_their_keys(connect: Connect, combination: Combination) -> None:
    """Our choice: a question's key is its `key=`; unknown answers are ignored (MCP 2026-07-28, basic/patterns/mrtr)."""
    client = await connect(combination)
    questions, state = await first_round(client, "asks_twice", key=f"keys {combination}")
    assert list(questions) == ["first"]
    answers = {"first": POINT, "nobody asked": {"action": "accept"}}
    second = await resend(client, "asks_twice", answers, state, key=f"keys {combination}")
    assert list(second.result["inputRequests"]) == ["second"]


@every("requests of its own")
async def test_an_answer_that_is_missing_is_asked_for_again(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr: ask again rather than fail."""
    client = await connect(combination)
    questions, state = await first_round(client, "insists")
    again = await resend(client, "insists", {}, state)
    assert again.result["inputRequests"] == questions


@every("requests of its own")
async def test_answers_of_this_round_count_without_a_state(connect: Connect, combination: Combination) -> None:
    """Our choice: with or without `requestState`; those of earlier rounds come only from the state."""
    client = await connect(combination)
    questions, _ = await first_round(client, "insists")
    reply = await resend(client, "insists", dict.fromkeys(questions, POINT), None)
    assert reply.text == "Point(x=5, y=6)"


@every("requests of its own")
async def test_a_state_that_was_changed_is_refused(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr: reject on failure; -32602."""
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


@every("requests of its own")
async def test_a_state_of_another_call_is_refused(connect: Connect, combination: Combination) -> None:
    """Our choice: bound to method, name and arguments."""
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


@every("requests of its own", "our process")
async def test_a_state_that_expired_is_refused(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr: a short expiry inside the state."""
    client = await connect(combination)
    questions, state = await first_round(client, "insists")
    services = (await client.server.start()).services
    now = services.clock()
    services.clock = lambda: now + services.settings.state_ttl + 1
    reply = await resend(client, "insists", dict.fromkeys(questions, POINT), state)
    assert reply.error["code"] == -32602
    assert "xpired" in reply.error["message"]


@every("requests of its own")
async def test_a_question_that_changed_is_asked_again_with_the_later_ones(
    connect: Connect, combination: Combination
) -> None:
    """Our choice: its answer and the later ones are dropped."""
    client = await connect(combination, answer=by_message)
    reply = await client.call("changes_its_mind", key=f"mind {combination}")
    assert reply.text == "5 7"
    assert [params["message"] for _, params in client.asked] == ["Old?", "And?", "New?", "And?"]


@every("requests of its own")
async def test_a_call_that_never_stops_asking_is_given_up(connect: Connect, combination: Combination) -> None:
    """Our choice: `max_rounds`, with room for any sensible conversation."""
    client = await connect(combination, answer=lambda method, params: POINT)
    reply = await client.call("never_content", key=f"never {combination}")
    assert reply.error["code"] == -32602
    assert len(client.asked) == 64


@every("requests of its own", "our process")
async def test_the_state_hides_what_it_holds(connect: Connect, combination: Combination) -> None:
    """Our choice: sealed, not only signed."""
    client = await connect(combination)
    key = f"hidden {combination}"
    _, state = await first_round(client, "asks_twice", key=key)
    answers = {"first": {"action": "accept", "content": {"x": 123456}}}
    second = await resend(client, "asks_twice", answers, state, key=key)
    sealed = second.result["requestState"]
    for plain in (b"123456", b"first", b"paid"):
        assert plain not in base64.urlsafe_b64decode(sealed + "==")
    assert list(JOURNAL[key]) == ["paid"]


@every("requests of its own")
async def test_only_three_methods_may_be_answered_by_questions(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr: extra members of other requests are ignored."""
    client = await connect(combination)
    reply = await client.request("tools/list", {"inputResponses": {}, "requestState": "x"})
    assert reply.result["resultType"] == "complete"


@pytest.mark.parametrize("way", ["asgi", "lane"])
async def test_a_call_whose_state_is_too_large_to_travel_fails_with_an_incident(way: str) -> None:
    """A fixed defect: the error escaped from the dispatcher, and over a connection nobody was answered."""
    mcp = Server("large", settings=Settings(key="k" * 40))

    @mcp.tool
    async def keeps(ctx: Context) -> str:
        """Keep more than a state holds, then ask."""
        await ctx.once("pages", lambda: "x" * 1024 * 1024)
        return str(await ctx.elicit("Go on?", {"type": "object", "properties": {}}))

    message = enveloped("tools/call", {"name": "keeps", "arguments": {}}, elicitation={"form": {}})
    async with wired(mcp, way) as wire, asyncio.timeout(WAIT):
        reply = await wire.post(message, routing("tools/call", "keeps"))
        assert (reply.message["error"]["code"], "incident" in reply.message["error"]["message"]) == (-32603, True)
        pipe = MemoryPipe(wire.runtime.dispatcher)
        pipe.send(json.dumps(message).encode())
        assert json.loads(await pipe.receive())["error"]["code"] == -32603
        await pipe.close()
