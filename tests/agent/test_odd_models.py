"""Replies that differ from OpenAI's usual ones, and tools whose schemas models can't read."""

import json
from typing import Any

import pytest

from agent_world import Answer, ScriptedModel, collect, delta, model, of, says
from cases import for_each
from gateway.strangers import Json, stranger
from millstream import Server, ToolAnnotations
from millstream.agent import Agent, ModelError, ModelRequest, ModelResponse, ModelServerError, TextDelta, ToolEnd

ADD = '{"a": 2, "b": 3}'
MORE = '{"a": 5, "b": 5}'
WANTED = {"id": "x", "type": "function", "function": {"name": "add", "arguments": ADD}}
DONE = b"data: [DONE]\n\n"
END = delta({}, "tool_calls")


def call(index: Any = 0, id: Any = "x1", name: Any = "add", arguments: Any = ADD) -> bytes:
    """A chunk with a piece of a tool call; `...` leaves a member out."""
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not ...}
    piece = {"index": index, "id": id, "type": "function", "function": function}
    return delta({"tool_calls": [{key: value for key, value in piece.items() if value is not ...}]})


async def reply(*pieces: bytes, media: str = "text/event-stream", messages: Any = None) -> ModelResponse:
    """The reply that the agent gets of these bytes."""
    request = ModelRequest(messages=messages or [{"role": "user", "content": "Add."}])
    with ScriptedModel(Answer(pieces=[*pieces], media=media)) as api:
        client = model(api)
        try:
            (found,) = of(ModelResponse, [each async for each in client.stream(request)])
        finally:
            await client.close()
    assert isinstance(found, ModelResponse)
    return found


def found_calls(response: ModelResponse) -> list[tuple[str, Any]]:
    assert len({each.id for each in response.tool_calls}) == len(response.tool_calls)
    return [(each.name, json.loads(each.arguments)) for each in response.tool_calls]


TWO = {
    "no indexes": [call(..., "x1"), call(..., "x2", arguments=MORE)],
    "no indexes, no ids": [call(..., ...), call(..., ..., arguments=MORE)],
    "index null": [call(None, "x1"), call(None, "x2", arguments=MORE)],
    "two indexes, one id": [call(0, ""), call(1, "", arguments=MORE)],
    "interleaved": [
        call(0, "x1", arguments='{"a": 2,'), call(1, "x2", arguments='{"a": 5,'), call(0, ..., ..., ' "b": 3}'),
        call(1, ..., ..., ' "b": 5}'),
    ],
}  # fmt: skip
ONE = {
    "another id for each piece": [call(0, "x1", arguments='{"a": 2,'), call(0, "x2", ..., ' "b": 3}')],
    "no type, no index": [call(..., ...)],
    "name after the id": [call(0, "x1", ..., ""), call(0, ..., "add", ADD)],
}


@for_each("kind", list(TWO))
async def test_parallel_calls_are_not_mixed_up(kind: str) -> None:
    assert found_calls(await reply(*TWO[kind], END, DONE)) == [("add", json.loads(ADD)), ("add", json.loads(MORE))]


@for_each("kind", list(ONE))
async def test_chunks_of_a_call_are_joined(kind: str) -> None:
    assert found_calls(await reply(*ONE[kind], END, DONE)) == [("add", json.loads(ADD))]


@for_each("id", [7, ["x"], {"x": 1}])
async def test_calls_with_malformed_ids_are_errors_of_the_model(id: Any) -> None:
    with pytest.raises(ModelServerError, match="didn't respond like a chat API"):
        await reply(call(0, id), END, DONE)


async def test_an_empty_object_inside_the_arguments_is_kept() -> None:
    pieces = [call(arguments='{"a": '), call(0, ..., ..., "{}"), call(0, ..., ..., "}"), END, DONE]
    assert found_calls(await reply(*pieces)) == [("add", {"a": {}})]


HELLO = delta({"content": "Hello"})
ANSWERS = {
    "unknown finish reason": [HELLO, delta({}, "eos"), DONE],
    "comments": [b": keep-alive\n\n", HELLO, b":\n\n: OPENROUTER PROCESSING\n\n", delta({}, "stop"), DONE],
    "CRLF": [each.replace(b"\n", b"\r\n") for each in (HELLO, delta({}, "stop"), DONE)],
    "split anywhere": [bytes([each]) for each in HELLO + delta({}, "stop") + DONE],
    "no space after data": [each.replace(b"data: ", b"data:") for each in (HELLO, delta({}, "stop"), DONE)],
    "events with names and ids": [b"event: message\nid: 1\n" + HELLO, b"id: 2\n" + delta({}, "stop"), DONE],
}


@for_each("kind", list(ANSWERS))
@pytest.mark.filterwarnings("error")
async def test_streams_in_other_spellings_are_decoded(kind: str) -> None:
    assert (await reply(*ANSWERS[kind])).text == "Hello"


async def test_unstreamed_replies_are_errors_of_the_model() -> None:
    with pytest.raises(ModelServerError, match="didn't respond like a chat API"):
        await reply(b'{"choices": [{"message": {"content": "Hello"}}]}', media="application/json")


@for_each("error", [{"message": "Model is loading"}, {"message": "Model is loading", "code": 503}, "Model is loading"])
async def test_errors_with_status_200_keep_their_reason(error: Any) -> None:
    with pytest.raises(ModelServerError, match="Model is loading") as caught:
        await reply(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    assert caught.value.temporary == (isinstance(error, dict) and "code" in error)


async def test_deeply_nested_errors_are_reported() -> None:
    with pytest.raises(ModelError):
        await reply(b"data: " + b'{"error":' * 900 + b"{}" + b"}" * 900 + b"\n\n")


async def test_truncated_replies_are_incomplete() -> None:
    for pieces in ([HELLO], [call()], [call(arguments='{"a": 2')]):
        with pytest.raises(ModelServerError, match="ended early") as caught:
            await reply(*pieces)
        assert caught.value.temporary


async def test_empty_answers_are_errors() -> None:
    with pytest.raises(ModelError, match="empty") as caught:
        await reply(delta({"content": "\n"}), delta({}, "stop"), DONE)
    assert caught.value.temporary


async def test_empty_answer_after_a_tool_result_is_accepted() -> None:
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [WANTED]},
        {"role": "tool", "tool_call_id": "x", "content": "5"},
    ]
    assert (await reply(delta({}, "stop"), DONE, messages=messages)).text == ""


async def test_messages_with_only_tool_calls_have_text_as_content() -> None:
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [WANTED]},
        {"role": "tool", "tool_call_id": "x", "content": "5"},
    ]
    with ScriptedModel(says("Five.")) as api:
        client = model(api)
        try:
            async for _ in client.stream(ModelRequest(messages=messages)):
                pass
        finally:
            await client.close()
    assert api.requests[0].body["messages"][1]["content"] == ""


async def test_arguments_that_were_encoded_twice_are_decoded() -> None:
    mcp = Server("calc")

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
    def add(a: int, b: int) -> int:
        return a + b

    first = Answer(pieces=[call(arguments=json.dumps(ADD)), END, DONE])
    with ScriptedModel(first, says("Five.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            (end,) = of(ToolEnd, await collect(agent.say("Add.")))
    assert end.text == "5"


async def test_blank_text_and_null_are_no_arguments() -> None:
    mcp = Server("clock")

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
    def now() -> str:
        return "noon"

    first = Answer(pieces=[call(0, "x", "now", " "), call(1, "y", "now", "null"), END, DONE])
    with ScriptedModel(first, says("Noon.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            ends = of(ToolEnd, await collect(agent.say("What time is it?")))
    assert [each.text for each in ends] == ["noon", "noon"]


async def test_endless_replies_are_cut_off_at_the_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.agent._reply_limit.MAX_REPLY", 1024**2)
    for piece in (delta({"content": "more and more "}) * 1_000, b"data: no end of line" * 1_000):
        with pytest.raises(ModelServerError, match="larger than 1 MiB") as caught:
            await reply(*[piece] * 60)
        assert not caught.value.temporary


async def test_models_cannot_call_thousands_of_tools_at_once() -> None:
    calls = [call(number, f"x{number}", arguments="{}") for number in range(300)]
    with ScriptedModel(Answer(pieces=[*calls, END, DONE])) as api:
        async with Agent(model(api)) as agent:
            with pytest.raises(ModelServerError, match="called 300 tools at once"):
                await collect(agent.say("Go."))
            assert agent.messages == []


THOUGHT = {"reasoning_content": "Adding needs a tool.\ud83d"}
SIGNED = {**WANTED, "index": 0, "extra_content": {"google": {"thought_signature": "c2lnbmVk"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@for_each("again", [False, True])
async def test_thoughts_and_signatures_are_sent_back_with_the_calls(again: bool) -> None:
    mcp = Server("sums")

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
    def add(a: int, b: int) -> int:
        return a + b

    first = Answer(pieces=[delta(THOUGHT), delta({"tool_calls": [SIGNED]}), call(1, "y", arguments=MORE), END, DONE])
    script = [first, says("5, 10.")]
    with ScriptedModel(*script, *(script if again else [])) as api:
        async with Agent(model(api), [mcp]) as agent:
            for _ in range(1 + again):
                await collect(agent.say("Add."))
            json.dumps(agent.messages)
    sent = [each for each in api.requests[-1].body["messages"] if "tool_calls" in each]
    assert len(sent) == 1 + again
    for each in sent:
        one, two = each["tool_calls"]
        assert one["extra_content"] == SIGNED["extra_content"]
        assert "extra_content" not in two
        assert [json.loads(made["function"]["arguments"]) for made in (one, two)] == [json.loads(ADD), json.loads(MORE)]
        assert each["reasoning_content"].startswith("Adding needs a tool.")
    assert [each["content"] for each in api.requests[1].body["messages"] if each["role"] == "tool"] == ["5", "10"]


async def test_thoughts_in_tags_are_not_sent_back() -> None:
    pieces = [delta({"content": each}) for each in ("<think>", "Adding needs a tool.", "</think>")]
    pieces += [call(), END, DONE]
    assert (await reply(*pieces)).details == {}


async def test_thoughts_in_tags_are_not_a_part_of_the_answer() -> None:
    pieces = [*(delta({"content": each}) for each in ("<think>", "Hm", "</think>", "Hello <b>", "you</b>")),
              delta({}, "stop"), DONE]  # fmt: skip
    with ScriptedModel(Answer(pieces=pieces)) as api:
        async with Agent(model(api)) as agent:
            events = await collect(agent.say("Hello"))
            assert agent.messages[-1]["content"] == "Hello <b>you</b>"
    assert "".join(each.text for each in of(TextDelta, events)) == "Hello <b>you</b>"


@for_each("text", ["Write <think> before </think>.", "<thin air>", "<think", "a </think> b", "<"])
async def test_text_about_tags_is_a_part_of_the_answer(text: str) -> None:
    for chunks in ([text], list(text)):
        pieces = [*(delta({"content": each}) for each in chunks), delta({}, "stop"), DONE]
        assert (await reply(*pieces)).text == text


TITLED: Json = {"type": "object", "properties": {"kind": {"const": "title"}, "title": {"type": "string"}}}
NUMBERED: Json = {"type": "object", "properties": {"kind": {"const": "isbn"}, "isbn": {"type": "string"}}}
EITHER: Json = {"kind": {"anyOf": [{"const": "title"}, {"const": "isbn"}]}}
COMBINED: list[tuple[Json, Json, list[str]]] = [
    (
        {"properties": {"a": {}, "b": {}}, "required": ["a"], "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"a": {}, "b": {}},
        ["a"],
    ),
    (
        {"oneOf": [{**TITLED, "required": ["kind", "title"]}, {**NUMBERED, "required": ["kind", "isbn"]}]},
        {**EITHER, "title": {"type": "string"}, "isbn": {"type": "string"}},
        [],
    ),
    (
        {"allOf": [{"$ref": "#/$defs/N"}, {"properties": {"copies": {"type": "integer"}}, "required": ["copies"]}],
         "$defs": {"N": {**NUMBERED, "required": ["isbn"], "anyOf": [TITLED, {"$ref": "#/$defs/N"}]}}},
        {"kind": {"anyOf": [{"const": "isbn"}, {"const": "title"}]}, "isbn": {"type": "string"},
         "copies": {"type": "integer"}, "title": {"type": "string"}},
        ["isbn", "copies"],
    ),
    (
        {"properties": {"kind": {"type": "string"}}, "oneOf": [TITLED, True]},
        {"kind": {"type": "string"}, "title": {"type": "string"}},
        [],
    ),
    ({"allOf": [{"$ref": "#/definitions/A"}], "definitions": {"A": TITLED}}, TITLED["properties"], []),
    ({"anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c%20d"}], "$defs": {"a/b": TITLED, "c d": TITLED}},
     TITLED["properties"], []),
    ({"oneOf": [{"$ref": "#/oneOf/1"}, NUMBERED]}, NUMBERED["properties"], []),
    ({"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [TITLED, {"$ref": "#/$defs/B"}]}, "B": NUMBERED}},
     {**EITHER, "title": {"type": "string"}, "isbn": {"type": "string"}}, []),
    ({"$ref": "#/$defs/A", "$defs": {"A": {**TITLED, "required": ["title"]}}}, TITLED["properties"], ["title"]),
]  # fmt: skip


@pytest.mark.server
@for_each("combined", COMBINED)
async def test_combinations_at_the_top_level_of_a_schema_are_flattened(
    combined: tuple[Json, Json, list[str]],
) -> None:
    schema, properties, required = combined
    parameters = await sent_parameters(schema)
    assert parameters["type"] == "object"
    assert parameters["properties"] == properties
    assert sorted(parameters["required"]) == sorted(required)
    assert not parameters.keys() & {"allOf", "anyOf", "oneOf", "$ref"}


@pytest.mark.server
async def test_references_into_flattened_combinations_lead_to_the_same_schema() -> None:
    parameters = await sent_parameters(
        {"oneOf": [TITLED, {"properties": {"name": {"$ref": "#/oneOf/0/properties/title"}}}]}
    )
    reference = parameters["properties"]["name"]["$ref"]
    assert "oneOf" not in parameters
    found: Any = parameters
    for name in reference.split("/")[1:]:
        found = found[int(name) if name.isdecimal() else name]
    assert found == {"type": "string"}


@pytest.mark.server
@for_each(
    "schema",
    [
        {"anyOf": [TITLED, {"patternProperties": {"^x-": {"type": "string"}}}]},
        {"allOf": [TITLED, {"additionalProperties": {"type": "integer"}}]},
    ],
)
async def test_schemas_stay_if_they_cannot_be_flattened_without_loss(schema: Json) -> None:
    tools = [{"name": "find", "inputSchema": {"type": "object", **schema}}]
    server = stranger({"tools": {}}, {"tools/list": {"result": {"tools": tools}}})
    with ScriptedModel(says("Hello.")) as api:
        async with Agent(model(api), [server]) as agent:
            (spec,) = (await agent.tools()).specs
    assert spec["function"]["parameters"] == {"type": "object", "properties": {}, **schema}


async def sent_parameters(schema: Json) -> Json:
    """Return the parameters that a model's API receives for a tool with this schema."""
    tools = [{"name": "find", "inputSchema": {"type": "object", **schema}}]
    server = stranger({"tools": {}}, {"tools/list": {"result": {"tools": tools}}})
    with ScriptedModel(says("Hello.")) as api:
        async with Agent(model(api), [server]) as agent:
            await collect(agent.say("Hello?"))
    (sent,) = api.requests[0].body["tools"]
    return sent["function"]["parameters"]
