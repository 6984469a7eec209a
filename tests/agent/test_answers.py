import asyncio
import json
from typing import Any

import pytest

from agent.shop import PNG, READ, make
from agent_world import ScriptedModel, calls, collect, hangs, model, of, repeats, says
from cases import for_each
from client.misbehaving_servers import OFFER, ReceivedRequest, misbehaving
from millstream import EmbeddedResource, Image, Server, ToolResult
from millstream._cli.chat.conversation import run_slash_command
from millstream.agent import (
    Agent,
    AgentError,
    AgentRun,
    AnswerEnd,
    AnswerQueue,
    Approval,
    AssistantMessage,
    ContextError,
    Limits,
    RoundStart,
    SamplingResult,
    ServerConfig,
    TextDelta,
    ToolEnd,
    ToolProgress,
    ToolStart,
)
from millstream.agent._configuration import name_of
from millstream.client._errors import ConnectFailed
from millstream.client._questions import Question
from millstream.protocol import ToolDescription
from patience import WAIT
from processes import free_port


async def returned(wanted: tuple[str, str], **more: Any) -> tuple[ToolEnd, ScriptedModel]:
    """Return the end of the only call of an answer."""
    with ScriptedModel(calls(wanted), says("So.")) as api:
        async with Agent(model(api), [make()], **more) as agent:
            events = await collect(agent.say("Do it"))
    [result] = of(ToolEnd, events)
    assert events[-1] == AnswerEnd("done", 2, 20)
    return result, api


async def test_answer_whose_reader_has_left_is_told_so_before_it_ends() -> None:
    line, seen = AnswerQueue(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append((line.stopping, line.emit))

    reading = asyncio.ensure_future(anext(AgentRun(line, work)))
    while line.task is None:  # noqa: ASYNC110  nothing signals it
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert seen == [(True, None)]


async def test_text_is_streamed_in_pieces_and_then_returned_whole() -> None:
    with ScriptedModel(says("Good morning.")) as api:
        async with Agent(model(api), [make()], system="Be brief.") as agent:
            events = await collect(agent.say("Hello"))
    assert len(of(TextDelta, events)) == 3
    assert "".join(each.text for each in of(TextDelta, events)) == "Good morning."
    assert of(AssistantMessage, events) == [AssistantMessage("Good morning.")]
    assert events[-1] == AnswerEnd("done", 1, 10)
    [asked] = api.requests
    assert (asked.path, asked.body["model"]) == ("/v1/chat/completions", "test-model")
    system, user = asked.body["messages"]
    assert system["content"] == "Be brief.\n\nHow to use the tools of shop: Sell books."
    assert user == {"role": "user", "content": "Hello"}


async def test_model_calls_a_tool_and_receives_its_result() -> None:
    with ScriptedModel(calls(("price", '{"isbn": "9780"}')), repeats("It costs "), says("Bye")) as api:
        async with Agent(model(api), [make()]) as agent:
            events = await collect(agent.say("How much?"))
            await collect(agent.say("Thanks"))
    assert of(ToolStart, events)[0].arguments == {"isbn": "9780"}
    assert of(AssistantMessage, events) == [AssistantMessage("It costs 4")]
    assert [each.round for each in of(RoundStart, events)] == [1, 2]
    assert [message["role"] for message in api.requests[2].body["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "user"
    ]  # fmt: skip
    spec = next(tool for tool in api.requests[0].body["tools"] if tool["function"]["name"] == "price")
    assert spec["function"]["description"] == "The price of a book."
    assert spec["function"]["parameters"]["required"] == ["isbn"]


async def test_calls_in_a_round_run_concurrently() -> None:
    asked: list[str] = []

    def approve(request: Approval) -> bool:
        asked.append(request.tool)
        return request.tool == "burn"

    with ScriptedModel(
        calls(("burn", '{"isbn": "1"}'), ("unmarked", ""), ("price", '{"isbn": ""}')), says("ok")
    ) as api:
        async with Agent(model(api), [make()], approve=approve) as agent:
            events = await collect(agent.say("Clean up"))
    assert asked == ["burn", "unmarked"]
    outcomes = {each.tool: each.outcome for each in of(ToolEnd, events)}
    assert outcomes == {"burn": "done", "unmarked": "refused", "price": "done"}
    results = [message["content"] for message in api.requests[1].body["messages"] if message["role"] == "tool"]
    assert results[0] == "1 is gone"
    assert results[1].startswith("The user didn't allow")


async def test_only_read_only_tools_run_without_approval() -> None:
    """A tool without hints may destroy something (MCP 2025-11-25, ToolAnnotations)."""
    assert (await returned(("unmarked", "{}")))[0].outcome == "refused"
    assert (await returned(("count", "{}")))[0].outcome == "done"


async def test_approval_shows_the_call() -> None:
    seen: list[Approval] = []

    async def approve(request: Approval) -> bool:
        seen.append(request)
        return True

    await returned(("burn", '{"isbn": "7"}'), approve=approve)
    [request] = seen
    assert (request.kind, request.server, request.tool, request.description, request.arguments) == (
        "tool", "shop", "burn", "Burn a book.", {"isbn": "7"}
    )  # fmt: skip


@for_each(
    ("arguments", "words"),
    [('{"isbn": ', "aren't JSON"), ("[1]", "must be a JSON object"), ('"9780"', "must be a JSON object"),
     ("[" * 100_000, "aren't JSON"), ('{"isbn": "\\ud800"}', "can't be encoded")],
)  # fmt: skip
async def test_malformed_arguments_are_reported_to_the_model(arguments: str, words: str) -> None:
    result, api = await returned(("price", arguments))
    assert result.outcome == "invalid"
    assert words in result.text
    assert api.requests[1].last["content"] == result.text
    assert api.requests[1].body["messages"][-2]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_infinite_numbers_in_arguments_are_null_in_the_conversation() -> None:
    """Python reads and writes ``NaN`` and ``Infinity``, but APIs reject a conversation with them (RFC 8259 §6)."""
    _, api = await returned(("price", '{"isbn": "9780", "most": 1e999, "least": NaN}'))
    [call] = api.requests[1].body["messages"][-2]["tool_calls"]
    assert json.loads(call["function"]["arguments"], parse_constant=pytest.fail) == {
        "isbn": "9780", "most": None, "least": None
    }  # fmt: skip


async def test_unknown_tools_are_reported_to_the_model() -> None:
    result, api = await returned(("shop/prices now", "{}"))
    assert result.outcome == "invalid"
    assert "price, burn" in result.text
    assert api.requests[1].body["messages"][-2]["tool_calls"][0]["function"]["name"] == "shop_prices_now"


async def test_tool_errors_are_reported_to_the_model() -> None:
    result, _ = await returned(("price", '{"isbn": 7}'))
    assert result.outcome == "error"
    assert "isbn" in result.text
    result, _ = await returned(("fail", "{}"))
    assert (result.outcome, result.text) == ("error", "The tool reported an error: Sold out. Try another shop.")


async def test_every_content_type_reaches_the_model() -> None:
    result, api = await returned(("show", "{}"))
    assert result.text.splitlines() == [
        "words", "[resource book://1 (one): the first]", "[resource note://1]", "a note", "[resource zip://1]",
        "[x/zip, 2 bytes]",
    ]  # fmt: skip
    parts = api.requests[1].last["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "input_audio"]
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert parts[2]["input_audio"] == {"data": "UklGRg==", "format": "wav"}


async def test_text_in_binary_resources_reaches_the_model() -> None:
    """Servers send files as `blob`, even if their media type is text."""
    mcp = Server("files")
    files = [
        ("text/csv", b"a,b"), ("Text/Plain; charset=utf-8", "caf\u00e9".encode()), ("application/json", b"[1]"),
        ("application/atom+xml", b"<feed/>"), ("application/zip", b"PK"),
    ]  # fmt: skip

    @mcp.tool(annotations=READ)
    async def export() -> list[EmbeddedResource]:
        """Return the files."""
        return [EmbeddedResource("file:///f", blob=data, mime_type=media) for media, data in files]

    with ScriptedModel(calls(("export", "{}")), says("So.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            [result] = of(ToolEnd, await collect(agent.say("Export them")))
    shown = [line for line in result.text.splitlines() if line != "[resource file:///f]"]
    assert shown == ["a,b", "caf\u00e9", "[1]", "<feed/>", "[application/zip, 2 bytes]"]


async def test_structured_content_beside_an_image_reaches_the_model() -> None:
    mcp = Server("charts")

    @mcp.tool(annotations=READ)
    async def chart() -> ToolResult:
        """Draw a chart."""
        return ToolResult([Image(PNG, "image/png")], {"highest": 7})

    with ScriptedModel(calls(("chart", "{}")), says("So.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            [result] = of(ToolEnd, await collect(agent.say("Draw it")))
    assert result.text == '{"highest":7}'
    assert [part["type"] for part in api.requests[1].last["content"]] == ["text", "image_url"]


@for_each(
    ("text", "structured", "added"),
    [
        ("2 projects.", {"projects": [{"id": 71}, {"id": 72}]}, True),
        ("2 projects: 71 and 72", {"projects": [{"id": 71}, {"id": 72}]}, False),
        ('{\n"note": "caf\\u00e9\\n\\"x\\""}', {"note": 'caf\u00e9\n"x"'}, False),
        ("5", {"result": 5}, False),
        ("Done: True", {"ok": True, "error": None}, False),
        ("Done.", {}, False),
        ("[" * 1500 + "]" * 1500, {"id": 71}, True),
    ],
)
async def test_structured_content_that_the_text_lacks_reaches_the_model(
    text: str, structured: dict[str, Any], added: bool
) -> None:
    mcp = Server("projects")

    @mcp.tool(annotations=READ)
    async def projects() -> ToolResult:
        """List the projects."""
        return ToolResult([text], structured)

    with ScriptedModel(calls(("projects", "{}")), says("So.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            [result] = of(ToolEnd, await collect(agent.say("List them")))
    assert result.text == (f"{text}\n{json.dumps(structured, separators=(',', ':'))}" if added else text)


async def test_long_results_are_truncated_with_a_note() -> None:
    result, _ = await returned(("show", "{}"), limits=Limits(max_result=10))
    assert result.text.startswith("words\n[res\n[")
    assert result.text.endswith("more characters were left out]")


async def test_progress_arrives_while_a_tool_runs() -> None:
    with ScriptedModel(calls(("count", "")), says("So.")) as api:
        async with Agent(model(api), [make()]) as agent:
            events = await collect(agent.say("Count"))
    [step] = of(ToolProgress, events)
    assert (step.value, step.total, step.message) == (1, 2, "half")
    assert events.index(of(ToolStart, events)[0]) < events.index(step) < events.index(of(ToolEnd, events)[0])


async def test_user_fills_in_forms() -> None:
    asked: list[tuple[str, str]] = []

    async def elicit(server: str, question: Question) -> dict[str, Any]:
        asked.append((server, question.message))
        return {**question.defaults, "street": "Mill Lane"}

    result, _ = await returned(("deliver", "{}"), elicit=elicit)
    assert result.text == "Mill Lane, 1"
    assert asked == [("shop", "Where to?")]


async def test_sampling_requires_approval() -> None:
    requests: list[Approval] = []

    def approve(request: Approval) -> bool:
        requests.append(request)
        return True

    with ScriptedModel(calls(("review", "{}")), says("Splendid."), repeats("They say: ")) as api:
        async with Agent(model(api), [make()], approve=approve) as agent:
            events = await collect(agent.say("Review it"))
    assert [(each.kind, each.server, each.text) for each in requests] == [("sampling", "shop", "Review it.")]
    assert of(SamplingResult, events) == [SamplingResult("shop", "Splendid.")]
    assert of(AssistantMessage, events) == [AssistantMessage("They say: Splendid.")]
    sampled = api.requests[1].body
    assert (sampled["messages"], sampled["max_tokens"]) == ([{"role": "user", "content": "Review it."}], 10)


async def test_declined_sampling_is_reported_to_the_server() -> None:
    result, _ = await returned(("review", "{}"), approve=lambda request: False)
    assert result.outcome == "error"
    assert "didn't allow" in result.text


async def test_servers_see_the_roots() -> None:
    result, _ = await returned(("folders", "{}"), roots=["file:///books"])
    assert result.text == "file:///books"


async def test_tools_from_several_servers_have_distinct_names() -> None:
    wanted = calls(("north__price", '{"isbn": "12"}'), ("south__price", '{"isbn": "1"}'))
    with ScriptedModel(wanted, says("So.")) as api:
        async with Agent(model(api), {"north": make(), "south": make()}) as agent:
            events = await collect(agent.say("Compare"))
    assert {(each.server, each.text) for each in of(ToolEnd, events)} == {("north", "2"), ("south", "1")}
    names = api.requests[0].tools
    assert len(names) == len(set(names)) == 22


async def test_servers_with_the_same_name_are_numbered() -> None:
    with ScriptedModel() as api:
        async with Agent(model(api), [make(), make(), ServerConfig(make(), "mine")]) as agent:
            assert [server.name for server in agent.servers] == ["shop", "shop-2", "mine"]


async def test_tools_with_unusual_names_can_be_called() -> None:
    with ScriptedModel() as api:
        async with Agent(model(api), [make()]) as agent:
            name = next(tool.name for tool in await agent.tools() if tool.description.name.startswith("weird"))
    result, _ = await returned((name, ""))
    assert (result.outcome, result.text) == ("done", "weird indeed")


async def test_round_limit_ends_the_answer_but_not_the_conversation() -> None:
    script = [calls(("count", "")) for _ in range(3)]
    with ScriptedModel(*script, says("Enough.")) as api:
        async with Agent(model(api), [make()], limits=Limits(max_model_requests=3)) as agent:
            assert (await collect(agent.say("Count")))[-1] == AnswerEnd("rounds", 3, 30)
            assert (await collect(agent.say("Stop")))[-1] == AnswerEnd("done", 1, 10)


async def test_token_limit_ends_the_answer() -> None:
    with ScriptedModel(calls(("count", ""), tokens=60), calls(("count", ""), tokens=60)) as api:
        async with Agent(model(api), [make()], limits=Limits(max_tokens=100)) as agent:
            assert (await collect(agent.say("Count")))[-1] == AnswerEnd("tokens", 2, 120)


async def test_truncated_and_filtered_replies_are_marked() -> None:
    with ScriptedModel(says("Long", stop="length"), says("Bad", stop="content_filter")) as api:
        async with Agent(model(api)) as agent:
            assert (await collect(agent.say("Tell")))[-1] == AnswerEnd("length", 1, 10)
            assert (await collect(agent.say("Tell")))[-1] == AnswerEnd("filtered", 1, 10)


async def test_resources_mentioned_in_a_question_are_attached() -> None:
    with ScriptedModel(says("Nice."), says("Fine.")) as api:
        async with Agent(model(api), [make()]) as agent:
            events = await collect(agent.say("Read @shop:book://7, me@shop:x:y and @other:book://7."))
            await collect(agent.say("More"))
    parts = api.requests[0].last["content"]
    assert [part["text"] for part in parts[1:]] == ["Content of book://7:\nBook 7"]
    assert events[0].context == ("@shop:book://7",)  # type: ignore[union-attr]


async def test_unreadable_resources_reject_the_question() -> None:
    with ScriptedModel(says("Yes.")) as api:
        async with Agent(model(api), [make()]) as agent:
            with pytest.raises(ContextError, match="shop can't provide nothing://7"):
                await collect(agent.say("Read @shop:nothing://7"))
            assert (api.requests, agent.messages) == ([], [])
            await agent.read("shop", "book://9")
            await collect(agent.say("And now?"))
    assert [part["text"] for part in api.requests[0].last["content"]] == ["And now?", "Content of book://9:\nBook 9"]


async def test_list_errors_from_one_server_do_not_hide_the_others() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "server/discover":
            await asked.result({**OFFER, "capabilities": {"prompts": {}, "resources": {}}})
        else:
            await asked.error(-32601, "Not here.")

    with ScriptedModel(says("Great book!")) as api:
        async with misbehaving(behave) as server, Agent(model(api), [server.url, make()]) as agent:
            for command, found in (("/prompt", "shop:pitch title= [tone=]"), ("/read", "shop:book://{isbn}")):
                rows = await run_slash_command(agent, command)
                assert isinstance(rows, list)
                assert found in [first for first, _ in rows]
                assert "Not here" in rows[0][1]
            await collect(agent.prompt("pitch", {"title": "Emma"}))
    assert api.requests[0].last == {"role": "user", "content": "Praise Emma, warm."}


async def test_prompts_can_be_used_as_questions() -> None:
    with ScriptedModel(says("Great book!"), says("Again!")) as api:
        async with Agent(model(api), [make()]) as agent:
            events = await collect(agent.prompt("pitch", {"title": "Emma"}))
            await agent.read("shop", "book://9")
            await collect(agent.prompt("shop:pitch", {"title": "Emma", "tone": "dry"}))
            assert events[0].context == ("/prompt shop:pitch",)  # type: ignore[union-attr]
            with pytest.raises(ContextError, match="needs title"):
                await collect(agent.prompt("pitch"))
            with pytest.raises(ContextError, match="The prompts are: pitch"):
                await collect(agent.prompt("nothing"))
    assert api.requests[0].last == {"role": "user", "content": "Praise Emma, warm."}
    parts = [part["text"] for part in api.requests[1].last["content"]]
    assert parts == ["Praise Emma, dry.", "Content of book://9:\nBook 9"]


async def test_stopping_an_answer_keeps_the_conversation_valid() -> None:
    with ScriptedModel(calls(("forever", "{}"), ("price", '{"isbn": ""}')), says("As you like.")) as api:
        async with Agent(model(api), [make()]) as agent:
            async with asyncio.timeout(WAIT):
                async for each in agent.say("Wait"):
                    if isinstance(each, ToolEnd):
                        break
            assert (await collect(agent.say("Never mind")))[-1] == AnswerEnd("done", 1, 10)
    results = [message["content"] for message in api.requests[1].body["messages"] if message["role"] == "tool"]
    assert results == ["The user stopped this call. It may have taken effect, fully or partly.", "0"]


async def test_stopped_answer_produces_no_more_events() -> None:
    with ScriptedModel(hangs("Once upon")) as api:
        async with Agent(model(api)) as agent, asyncio.timeout(WAIT):
            answer = agent.say("A story")
            while not isinstance(await anext(answer), TextDelta):
                pass
            await answer.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(answer)


async def test_finished_answer_produces_no_more_events() -> None:
    with ScriptedModel(says("The end.")) as api:
        async with Agent(model(api)) as agent, asyncio.timeout(WAIT):
            answer = agent.say("A story")
            assert (await collect(answer))[-1] == AnswerEnd("done", 1, 10)
            with pytest.raises(StopAsyncIteration):
                await anext(answer)


async def test_text_received_before_a_stop_is_kept() -> None:
    with ScriptedModel(hangs("Once upon"), hangs("Twice upon"), says("The end.")) as api:
        async with Agent(model(api)) as agent:
            async for each in agent.say("A story"):
                if isinstance(each, TextDelta):
                    break
            seen = asyncio.Event()

            async def read() -> None:
                async for each in agent.say("Another"):
                    if isinstance(each, TextDelta):
                        seen.set()

            reading = asyncio.create_task(read())
            await asyncio.wait_for(seen.wait(), WAIT)
            reading.cancel()
            await asyncio.wait([reading])
            await collect(agent.say("Go on"))
    said = [message["content"] for message in api.requests[2].body["messages"]]
    assert said == ["A story", "Once upon", "Another", "Twice upon", "Go on"]


async def test_only_one_answer_runs_at_a_time() -> None:
    with ScriptedModel(says("One.")) as api:
        async with Agent(model(api)) as agent:
            first = agent.say("One")
            await anext(first)
            with pytest.raises(AgentError, match="still answering"):
                await collect(agent.say("Two"))
            await collect(first)


async def test_message_sent_at_the_same_time_is_rejected_and_does_not_silence_the_answer() -> None:
    with ScriptedModel(says("One."), says("Two.")) as api:
        async with Agent(model(api)) as agent:
            first, second = (asyncio.create_task(collect(agent.say(text))) for text in ("One", "Two"))
            with pytest.raises(AgentError, match="still answering"):
                await second
            assert of(AssistantMessage, await first) == [AssistantMessage("One.")]


async def test_transcript_is_written_as_json_lines(tmp_path: Any) -> None:
    with ScriptedModel(calls(("price", '{"isbn": "9780"}')), says("Four.")) as api:
        async with Agent(model(api), [make()]) as agent:
            await collect(agent.say("How much?"))
            path = tmp_path / "talk.jsonl"
            count = agent.transcript.save(path)
            assert agent.transcript.save(path) == count
            (tmp_path / "other").write_text("mine")
            with pytest.raises(AgentError, match="already exists"):
                agent.transcript.save(tmp_path / "other")
            with pytest.raises(AgentError, match="can't be written"):
                agent.transcript.save(tmp_path / "no" / "folder")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["type"] for line in lines] == [
        "user_message", "round_start", "tool_start", "tool_end", "round_start", "assistant_message", "answer_end"
    ]  # fmt: skip
    assert all(line["at"].endswith("+00:00") for line in lines)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_unreachable_server_closes_the_other_connections() -> None:
    with ScriptedModel() as api:
        agent = Agent(model(api), [make(), f"http://127.0.0.1:{free_port()}/mcp"])
        with pytest.raises(ConnectFailed, match="There is no server at"):
            await agent.__aenter__()
    assert len(asyncio.all_tasks()) == 1


def test_servers_can_be_given_as_a_list() -> None:
    with ScriptedModel() as api, pytest.raises(AgentError, match=r"servers=\['shop.py'\]"):
        Agent(model(api), "shop.py")


def test_approval_shows_the_server_address_and_not_its_name() -> None:
    names = {
        "https://github.evil.example/mcp": "github.evil.example",
        "http://user:secret@127.0.0.1:8000/mcp": "127.0.0.1:8000",
        "uvx mcp-server-git --repository .": "mcp-server-git",
        "uvx mcp-server-sqlite --db-path shop.db": "mcp-server-sqlite",
        "shop.py": "shop",
    }
    assert {target: name_of(target) for target in names} == names
    assert name_of(["python", "-u", "/srv/shop.py"]) == "shop"
    assert name_of(make()) == ""


@for_each("revision", ["2025-06-18", "2026-07-28"])
async def test_tools_that_a_call_unlocks_can_be_called_in_the_same_answer(revision: str) -> None:
    mcp = Server("house")

    @mcp.tool(annotations=READ)
    async def unlock() -> str:
        mcp.tool(enter, annotations=READ)
        mcp.remove_tool("unlock")
        return "Unlocked."

    async def enter() -> str:
        return "You're in."

    script = [calls(("unlock", "{}")), calls(("enter", "{}"), ("unlock", "{}")), says("Inside.")]
    with ScriptedModel(*script) as api:
        async with Agent(model(api), [ServerConfig(mcp, "house", revision=revision)]) as agent:
            events = await collect(agent.say("Go in."))
    assert [each.tools for each in api.requests] == [["unlock"], ["enter"], ["enter"]]
    outcomes = {(each.tool, each.outcome) for each in of(ToolEnd, events)}
    assert outcomes == {("unlock", "done"), ("enter", "done"), ("unlock", "invalid")}
    assert [each.tools for each in of(RoundStart, events)] == [1, 1, 1]


async def test_a_server_that_fails_during_an_answer_keeps_its_tools() -> None:
    one, two = make(), Server("notes")

    @two.tool(annotations=READ)
    async def note() -> str:
        return "noted"

    with ScriptedModel(calls(("notes__note", "{}")), says("Noted.")) as api:
        async with Agent(model(api), {"shop": one, "notes": two}) as agent:
            shop = agent.servers[0].client

            async def fail(*, fresh: bool = False) -> list[ToolDescription]:
                if fresh:
                    raise ConnectFailed("The server is down.")
                return await type(shop).tools(shop)

            shop.tools = fail  # type: ignore[method-assign, assignment]
            await collect(agent.say("Note it."))
    assert api.requests[0].tools == api.requests[1].tools


@for_each(
    "data, media",
    [
        (PNG, "application/png"),
        (PNG, ""),
        (b"\xff\xd8\xff\xe0", "image/png"),
        (b"GIF89a", "application/octet-stream"),
        (b"RIFF1234WEBP", "audio/wav"),
    ],
)
async def test_images_are_recognized_by_their_first_bytes(data: bytes, media: str) -> None:
    mcp = Server("pictures")

    @mcp.tool(annotations=READ)
    async def show() -> list[EmbeddedResource]:
        return [EmbeddedResource("file:///a", blob=data, mime_type=media or None)]

    with ScriptedModel(calls(("show", "{}")), says("Seen.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            await collect(agent.say("Show it."))
    url = api.requests[-1].last["content"][-1]["image_url"]["url"]
    right = {b"\x89P": "png", b"\xff\xd8": "jpeg", b"GI": "gif", b"RI": "webp"}[data[:2]]
    assert url.startswith(f"data:image/{right};base64,")
