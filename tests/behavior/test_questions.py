from typing import Any

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.harness import Json, Refuse
from cases import for_each

FORMS = {
    "point": ({"x": 5, "y": 6}, "Point(x=5, y=6)"),
    "size": ({"width": 7, "height": 8}, "Size(width=7, height=8)"),
    "person": ({"name": "Ada", "age": 36}, "Person(name='Ada', age=36)"),
    "schema": ({"x": 9}, "{'x': 9}"),
}
POINT: Json = {"action": "accept", "content": {"x": 5, "y": 6}}
SAMPLE: Json = {"role": "assistant", "content": {"type": "text", "text": "word"}, "model": "m", "stopReason": "endTurn"}
ROOTS: Json = {"roots": [{"uri": "file:///home", "name": "home"}]}
CAPABILITY = {
    "insists": ({"elicitation": {"form": {}}}, "elicitation"),
    "samples": ({"sampling": {}}, "sampling"),
    "lists_roots": ({"roots": {}}, "roots"),
}


def always(answer: Json) -> Any:
    """Return a callback that gives every question the same answer."""
    return lambda method, params: answer


@in_combinations("questions", "elicitation")
@for_each("kind", FORMS)
async def test_forms_return_a_value_of_the_requested_type(
    connect: Connect, combination: Combination, kind: str
) -> None:
    content, expected = FORMS[kind]
    client = await connect(combination, answer=always({"action": "accept", "content": content}))
    assert (await client.call("asks", kind=kind)).text == expected
    ((method, params),) = client.questions
    assert method == "elicitation/create"
    assert params["message"] == "Which one?"
    assert params["requestedSchema"]["type"] == "object"
    assert set(params["requestedSchema"]["properties"]) >= set(content) - {"y"}
    assert params.get("mode") == ("form" if combination.revision >= "2025-11-25" else None)


@in_combinations("questions", "elicitation")
async def test_def_tools_can_ask_questions(connect: Connect, combination: Combination) -> None:
    client = await connect(combination, answer=always(POINT))
    assert (await client.call("asks_in_thread")).text == "Point(x=5, y=6)"


@in_combinations("questions", "elicitation")
async def test_prompts_can_ask_questions(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination, answer=always(POINT))
    result = (await client.request("prompts/get", {"name": "asking"})).result
    assert result["messages"][0]["content"]["text"] == "About 5"


@in_combinations("questions", "elicitation")
async def test_declined_and_dismissed_questions_differ(connect: Connect, combination: Combination) -> None:
    declining = await connect(combination, answer=always({"action": "decline"}))
    assert (await declining.call("asks", kind="point")).text == "declined"
    assert "declined" in (await declining.call("insists")).failure
    dismissing = await connect(combination, answer=always({"action": "cancel"}))
    assert (await dismissing.call("asks", kind="point")).text == "dismissed"
    assert "dismissed" in (await dismissing.call("insists")).failure


@in_combinations("questions", "elicitation")
@for_each(
    "answer",
    [{"action": "accept", "content": {"x": "many"}}, {"action": "accept"}, {"action": "shrug"}, {}, {"action": 1}],
    ids=repr,
)
async def test_malformed_answers_do_not_reach_the_function(
    connect: Connect, combination: Combination, answer: Json
) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination, answer=always(answer))
    message = (await client.call("insists")).message
    if combination.handshake:
        assert "error" in message or message["result"]["isError"]
    else:
        assert message["error"]["code"] == -32602


@in_combinations("questions", "elicitation", "handshake")
async def test_client_errors_fail_the_call(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, client/elicitation."""

    def refuse(method: str, params: Json) -> Json:
        raise Refuse(-32603, "no window")

    client = await connect(combination, answer=refuse)
    assert "no window" in (await client.call("insists")).failure


@in_combinations("questions")
@for_each("tool", CAPABILITY)
async def test_clients_without_the_capability_are_not_asked(
    connect: Connect, combination: Combination, tool: str
) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    missing, name = CAPABILITY[tool]
    client = await connect(combination, capabilities={})
    reply = await client.call(tool)
    assert client.questions == []
    if combination.handshake:
        assert name in reply.failure
    else:
        assert reply.error["code"] == -32021
        assert reply.error["data"] == {"requiredCapabilities": missing}
        assert reply.status == (400 if combination.http else 0)


@in_combinations("questions", "elicitation")
async def test_empty_elicitation_capability_means_forms_only(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, client/elicitation: `{}` is form, never URL."""
    client = await connect(combination, capabilities={"elicitation": {}}, answer=always(POINT))
    assert (await client.call("insists")).text == "Point(x=5, y=6)"
    reply = await client.call("asks_url")
    if combination.handshake:
        assert "elicitation" in reply.failure
    else:
        assert reply.error["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}


@in_combinations("questions", "handshake", until="2025-03-26")
async def test_missing_elicitation_in_a_revision_is_explained(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, changelog."""
    client = await connect(combination)
    assert combination.revision in (await client.call("insists")).failure


@in_combinations("questions", "url elicitation")
async def test_url_elicitation_returns_when_the_user_agrees(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, client/elicitation."""
    client = await connect(combination, answer=always({"action": "accept"}))
    assert (await client.call("asks_url")).text == "agreed"
    ((method, params),) = client.questions
    assert method == "elicitation/create"
    assert (params["mode"], params["url"], params["message"]) == ("url", "https://example.com/pay", "Please pay")
    assert ("elicitationId" in params) == combination.handshake
    client.answer = always({"action": "decline"})
    assert "declined" in (await client.call("asks_url")).failure


@in_combinations("session", since="2025-11-25", until="2025-11-25", over=("json",))
async def test_url_is_sent_in_an_error_if_there_is_no_stream(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, client/elicitation."""
    error = (await (await connect(combination)).call("asks_url")).error
    assert error["code"] == -32042
    assert error["data"]["elicitations"][0]["url"] == "https://example.com/pay"


@in_combinations(over=("sessionless", "json"), until="2025-11-25")
@for_each("tool", ["insists", "samples", "lists_roots", "asks_all"])
async def test_sessionless_calls_that_ask_get_an_explanation(
    connect: Connect, combination: Combination, tool: str
) -> None:
    text = (await (await connect(combination)).call(tool)).failure
    assert combination.transport == "sessionless" or "initialize" not in text, "the client has a session"


@in_combinations("questions")
async def test_sampling_returns_the_response_from_the_clients_model(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, client/sampling."""
    client = await connect(combination, answer=always(SAMPLE))
    assert (await client.call("samples")).text == "m: word"
    ((method, params),) = client.questions
    assert method == "sampling/createMessage"
    assert params["messages"] == [{"role": "user", "content": {"type": "text", "text": "Say a word"}}]
    assert (params["maxTokens"], params["systemPrompt"], params["temperature"]) == (7, "Be brief", 0.5)


@in_combinations("questions")
async def test_sampling_with_tools_works_if_the_revision_supports_it(
    connect: Connect, combination: Combination
) -> None:
    """MCP 2025-11-25, changelog."""
    use = {"type": "tool_use", "id": "1", "name": "weather", "input": {}}
    client = await connect(combination, answer=always({**SAMPLE, "content": [use], "stopReason": "toolUse"}))
    reply = await client.call("samples_with_tools")
    if combination.revision >= "2025-11-25":
        assert reply.text == "'toolUse'"
        params = client.questions[0][1]
        assert [tool["name"] for tool in params["tools"]] == ["weather"]
        assert params["toolChoice"] == {"mode": "auto"}
    else:
        assert reply.failure
        assert client.questions == []


@in_combinations("questions", since="2025-11-25")
async def test_sampling_with_tools_requires_the_capability(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    client = await connect(combination, capabilities={"sampling": {}}, answer=always(SAMPLE))
    assert (await client.call("samples")).text == "m: word"
    reply = await client.call("samples_with_tools")
    if combination.handshake:
        assert "sampling.tools" in reply.failure
    else:
        assert reply.error["data"] == {"requiredCapabilities": {"sampling": {"tools": {}}}}


@in_combinations("questions")
async def test_roots_returns_the_clients_folders(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, client/roots."""
    client = await connect(combination, answer=always(ROOTS))
    assert "file:///home" in (await client.call("lists_roots")).text
    assert [method for method, _ in client.questions] == ["roots/list"]


@in_combinations("questions", "elicitation")
async def test_answers_are_read_as_other_clients_write_them(connect: Connect, combination: Combination) -> None:
    """They write null for absent members and empty lists, and `reject` as in drafts of 2025-06-18."""
    text = {"type": "text", "text": "word", "annotations": None}
    answers: Json = {
        "elicitation/create": {"action": "reject"},
        "sampling/createMessage": {**SAMPLE, "content": text, "stopReason": None},
        "roots/list": {"roots": None},
    }
    client = await connect(combination, answer=lambda method, params: answers[method])
    assert (await client.call("asks", kind="point")).text == "declined"
    assert (await client.call("samples")).text == "m: word"
    assert (await client.call("lists_roots")).text == "[]"


@in_combinations("questions", "elicitation")
async def test_several_questions_share_one_round(connect: Connect, combination: Combination) -> None:
    answers = {"elicitation/create": POINT, "sampling/createMessage": SAMPLE, "roots/list": ROOTS}
    client = await connect(combination, answer=lambda method, params: answers[method])
    reply = await client.call("asks_all")
    assert reply.text == "Point(x=5, y=6) word ['file:///home']"
    assert sorted(method for method, _ in client.questions) == sorted(answers)
    if not combination.handshake:
        assert reply.rounds == 1
