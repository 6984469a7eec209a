"""Replies of models and proxies that deviate from OpenAI's format, as people have reported them."""

import json
from typing import Any

import pytest

from agent_world import Answer, ScriptedModel, collect, delta, event, model, of, says
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
    "one index": [call(0, "x1"), call(0, "x2", arguments=MORE)],
    "one index, in pieces": [
        call(0, "x1", arguments='{"a": 2,'), call(0, ..., ..., ' "b": 3}'), call(0, "x2", arguments='{"a": 5,'),
        call(0, ..., ..., ' "b": 5}'),
    ],
    "one index, no ids": [call(0, ...), call(0, ..., arguments=MORE)],
    "one index, one id": [call(0, "x"), call(0, "x", arguments=MORE)],
    "no indexes": [call(..., "x1"), call(..., "x2", arguments=MORE)],
    "no indexes, no ids": [call(..., ...), call(..., ..., arguments=MORE)],
    "index null": [call(None, "x1"), call(None, "x2", arguments=MORE)],
    "two indexes, one id": [call(0, ""), call(1, "", arguments=MORE)],
    "interleaved": [
        call(0, "x1", arguments='{"a": 2,'), call(1, "x2", arguments='{"a": 5,'), call(0, ..., ..., ' "b": 3}'),
        call(1, ..., ..., ' "b": 5}'),
    ],
    "objects": [call(0, "x1", arguments={"a": 2, "b": 3}), call(0, "x2", arguments={"a": 5, "b": 5})],
}  # fmt: skip
ONE = {
    "name repeated": [call(arguments='{"a": 2,'), call(arguments=' "b": 3}')],
    "another id for each piece": [call(0, "x1", arguments='{"a": 2,'), call(0, "x2", ..., ' "b": 3}')],
    "repeated as a whole": [call(), call()],
    "no type, no index": [call(..., ...)],
    "without a finish reason": [call()],
    "index as text": [call("0", "x1", arguments='{"a": 2,'), call("0", ..., ..., ' "b": 3}')],
    "a number as id": [call(0, 7, arguments='{"a": 2,'), call(0, ..., ..., ' "b": 3}')],
    "an empty object first": [call(arguments="{}"), call(0, ..., ..., ADD)],
    "an empty object last": [call(), call(0, ..., ..., "{}")],
    "name after the id": [call(0, "x1", ..., ""), call(0, ..., "add", ADD)],
    "a single call instead of a list": [delta({"tool_calls": WANTED})],
    "without a function": [delta({"tool_calls": [{"index": 0, "id": "x", "name": "add", "arguments": ADD}]})],
    "parameters": [delta({"tool_calls": [{"function": {"name": " add\n", "parameters": {"a": 2, "b": 3}}}]})],
    "as before parallel calls": [
        delta({"function_call": {"name": "add", "arguments": '{"a": 2,'}, "tool_calls": None}),
        delta({"function_call": {"arguments": ' "b": 3}'}}),
    ],
    "a message, not a delta": [event([{"index": 0, "message": {"tool_calls": [WANTED]}}])],
}  # fmt: skip


@for_each("kind", list(TWO))
async def test_parallel_calls_are_not_mixed_up(kind: str) -> None:
    assert found_calls(await reply(*TWO[kind], END, DONE)) == [("add", json.loads(ADD)), ("add", json.loads(MORE))]


@for_each("kind", list(ONE))
async def test_chunks_of_a_call_are_joined(kind: str) -> None:
    end = [] if kind == "without a finish reason" else [END]
    assert found_calls(await reply(*ONE[kind], *end, DONE)) == [("add", json.loads(ADD))]


async def test_an_empty_object_inside_the_arguments_is_kept() -> None:
    pieces = [call(arguments='{"a": '), call(0, ..., ..., "{}"), call(0, ..., ..., "}"), END, DONE]
    assert found_calls(await reply(*pieces)) == [("add", {"a": {}})]


HELLO = delta({"content": "Hello"})
ANSWERS = {
    "no finish reason": [HELLO, DONE],
    "last chunk without a delta": [HELLO, event([{"index": 0, "finish_reason": "stop"}]), DONE],
    "choice null": [HELLO, event([None]), DONE],
    "unknown finish reason": [HELLO, delta({}, "eos"), DONE],
    "comments": [b": keep-alive\n\n", HELLO, b":\n\n: OPENROUTER PROCESSING\n\n", delta({}, "stop"), DONE],
    "CRLF": [each.replace(b"\n", b"\r\n") for each in (HELLO, delta({}, "stop"), DONE)],
    "split anywhere": [bytes([each]) for each in HELLO + delta({}, "stop") + DONE],
    "no space after data": [each.replace(b"data: ", b"data:") for each in (HELLO, delta({}, "stop"), DONE)],
    "empty data": [b"data:\n\n", HELLO, b"data: \n\n", delta({}, "stop"), DONE],
    "byte order mark": [b"\xef\xbb\xbf" + HELLO, delta({}, "stop"), DONE],
    "no line after the last event": [HELLO, delta({}, "stop").rstrip()],
    "usage null": [HELLO, event([], usage={"prompt_tokens": None, "completion_tokens": 1}), delta({}, "stop"), DONE],
    "events with names and ids": [b"event: message\nid: 1\n" + HELLO, b"id: 2\n" + delta({}, "stop"), DONE],
    "events without an object": [b"data: null\n\n", HELLO, b'data: "ping"\n\ndata: []\n\n', delta({}, "stop"), DONE],
    "end in another spelling": [HELLO, delta({}, "stop"), b"data: [done]\n\n", b'data: "[DONE]"\n\n'],
    "members of another type": [
        event([{"index": 0, "delta": {"content": "Hello"}, "logprobs": []}], usage=[1], error={}),
        delta({}, "stop"),
        DONE,
    ],
    "text instead of a delta": [event([{"text": "Hel"}]), event([{"delta": "lo", "finish_reason": "stop"}]), DONE],
    "one part instead of a list": [delta({"content": {"type": "text", "text": "Hello"}}), delta({}, "stop"), DONE],
    "several parts": [
        delta({"content": [{"type": "text", "text": "Hel"}, {"type": "reference", "text": "1"}, {"text": "lo"}]}),
        delta({"content": []}, "stop"),
        DONE,
    ],
    "not a stream": [b'{"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}'],
    "not a stream, but lines": [HELLO.strip()[6:] + b"\n", delta({}, "stop").strip()[6:] + b"\n"],
    "not a stream, on lines": [
        b'\n{\n "choices": [\n  {"message": {"content": "Hello"}, "finish_reason": "stop"}\n]}\n'
    ],
}


@for_each("kind", list(ANSWERS))
@pytest.mark.filterwarnings("error")
async def test_complete_and_streamed_answers_are_decoded(kind: str) -> None:
    media = "application/json" if kind.startswith("not") else "text/event-stream"
    assert (await reply(*ANSWERS[kind], media=media)).text == "Hello"


async def test_unstreamed_replies_may_contain_calls() -> None:
    body = {"choices": [{"message": {"tool_calls": [WANTED]}, "finish_reason": "tool_calls"}]}
    found = await reply(json.dumps(body).encode(), media="application/json")
    assert found_calls(found) == [("add", json.loads(ADD))]


@for_each("error", [{"message": "Model is loading"}, {"message": "Model is loading", "code": 503}, "Model is loading"])
@for_each("media", ["application/json", "text/event-stream"])
async def test_errors_with_status_200_keep_their_reason(error: Any, media: str) -> None:
    body = json.dumps({"error": error}).encode()
    with pytest.raises(ModelServerError, match="Model is loading") as caught:
        await reply(body if media == "application/json" else b"data: " + body + b"\n\n", media=media)
    assert caught.value.temporary == (isinstance(error, dict) and "code" in error)


@for_each(
    "body",
    [
        {"detail": "Model is loading"},
        {"object": "error", "message": "Model is loading", "code": 503},
        {"error": {"error": {"message": "Model is loading"}}},
        {"errors": [{"msg": "Model is loading"}]},
        {"base_resp": {"status_code": 1004, "status_msg": "Model is loading"}, "choices": None},
    ],
)
async def test_errors_in_other_shapes_keep_their_reason(body: Any) -> None:
    with pytest.raises(ModelServerError, match="Model is loading"):
        await reply(json.dumps(body).encode(), media="application/json")


async def test_deeply_nested_errors_are_reported() -> None:
    with pytest.raises(ModelError):
        await reply(b'{"error":' * 900 + b"{}" + b"}" * 900, media="application/json")


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
    monkeypatch.setattr("millstream.agent._chat_stream.MAX_REPLY", 1024**2)
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
    pieces = [delta({"content": "<think>Adding needs a tool.</think>"}), call(), END, DONE]
    assert (await reply(*pieces)).details == {}


THOUGHTS = {
    "in one chunk": ["<think>Hm, a greeting.</think>Hello <b>you</b>"],
    "after a line break": ["\n", "<think>", "Hm", "</think>", "Hello <b>you</b>"],
    "tags in pieces": ["<th", "ink>Hm <", "/", "think", ">Hello <b>", "you</b>"],
    "character by character": list("<think>Is 1 < 2 </thin yes</think>Hello <b>you</b>"),
    "an empty thought": ["<think></think>Hello ", "<b>you</b>"],
}


@for_each("kind", [*THOUGHTS, "unstreamed"])
async def test_thoughts_in_tags_are_not_a_part_of_the_answer(kind: str) -> None:
    chunks = THOUGHTS.get(kind, THOUGHTS["in one chunk"])
    pieces = [*(delta({"content": each}) for each in chunks), delta({}, "stop"), DONE]
    if kind == "unstreamed":
        message = {"role": "assistant", "content": chunks[0]}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        pieces = [
            json.dumps({**whole, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        ]
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
        assert (await reply(*pieces[:-2], DONE)).text == text


async def test_text_before_calls_is_complete() -> None:
    pieces = [delta({"content": "<think>Add.</think>I'll use <"}), call(), END, DONE]
    found = await reply(*pieces)
    assert (found.text, [each.name for each in found.tool_calls]) == ("I'll use <", ["add"])


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
        {"anyOf": [TITLED, {"$ref": "#named"}], "$defs": {"A": {**NUMBERED, "$anchor": "named"}}},
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
