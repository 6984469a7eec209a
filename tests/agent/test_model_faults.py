import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

import pytest

from agent.shop import PNG, READ, make
from agent_world import (
    KEY,
    Answer,
    ScriptedModel,
    Step,
    breaks_off,
    calls,
    collect,
    delta,
    event,
    model,
    of,
    refuses,
    says,
)
from cases import for_each
from millstream import Image, Server, Text
from millstream.agent import (
    Agent,
    AgentError,
    Approval,
    AssistantMessage,
    ConfigurationError,
    ContextWindowExceeded,
    LanguageModel,
    Limits,
    ModelAuthError,
    ModelError,
    ModelRateLimited,
    ModelRefused,
    ModelRetry,
    ModelServerError,
    ModelUnreachable,
    ResultsShortened,
    ToolEnd,
)
from millstream.agent import _agent as turn_module
from millstream.client import ConnectFailed
from millstream.protocol import ToolDescription
from processes import free_port

BUSY = refuses(429, "Slow down.", retry_after="0")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip pauses that the API doesn't request."""
    monkeypatch.setattr(turn_module, "_FIRST_WAIT", 0.0)


async def answered(*script: Step, **more: Any) -> tuple[list[Any], ScriptedModel]:
    with ScriptedModel(*script) as api:
        async with Agent(model(api), [make()], **more) as agent:
            return await collect(agent.say("Hello")), api


async def failed(*script: Step, key: str = KEY, **more: Any) -> ModelError:
    """Return the error of an answer, after checking that the conversation is unchanged."""
    with ScriptedModel(*script) as api:
        async with Agent(model(api, key=key), [make()], **more) as agent:
            with pytest.raises(ModelError) as caught:
                await collect(agent.say("Hello"))
            assert agent.messages == []
            return caught.value


async def test_requests_are_retried_after_a_rate_limit_and_the_wait_is_reported() -> None:
    events, api = await answered(BUSY, refuses(429, "Slow down.", retry_after_ms="1.4"), says("Here I am."))
    first, second = of(ModelRetry, events)
    assert (first.seconds, first.attempt, first.discard_text) == (0, 1, False)
    assert (second.seconds, second.attempt) == (0.001, 2)
    assert "429: Slow down" in first.reason
    assert of(AssistantMessage, events) == [AssistantMessage("Here I am.")]
    assert api.requests[0].body == api.requests[2].body


async def test_busy_apis_are_retried_without_retry_after() -> None:
    events, _ = await answered(refuses(503, "Overloaded"), refuses(500, "Oops"), says("Better."))
    assert [each.attempt for each in of(ModelRetry, events)] == [1, 2]


async def test_retry_delays_never_exceed_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "_FIRST_WAIT", 600.0)
    limits = Limits(longest_wait=20)
    for choose, seconds in ((min, 15), (max, 20)):
        with monkeypatch.context() as patch, ScriptedModel(refuses(503, "Overloaded")) as api:
            patch.setattr("random.uniform", lambda *bounds, choose=choose: choose(bounds))
            async with Agent(model(api), [make()], limits=limits) as agent, aclosing(agent.say("Hello")) as events:
                first = await anext(event async for event in events if isinstance(event, ModelRetry))
        assert first.seconds == seconds


async def test_rate_limit_after_the_last_attempt_raises_an_error() -> None:
    error = await failed(BUSY, BUSY, limits=Limits(max_attempts=2))
    assert isinstance(error, ModelRateLimited)


async def test_overlong_retry_delays_end_the_answer() -> None:
    error = await failed(refuses(429, "Come back later.", retry_after="3600"))
    assert isinstance(error, ModelRateLimited)
    assert "Come back later" in str(error)


async def test_exhausted_quota_is_not_retried() -> None:
    error = await failed(refuses(429, "You exceeded your quota.", code="insufficient_quota"))
    assert "no credit left" in str(error)


async def test_lost_connection_restarts_the_answer() -> None:
    events, _ = await answered(breaks_off("Once upon"), says("Once more."))
    [waiting] = of(ModelRetry, events)
    assert (waiting.discard_text, waiting.reason) == (True, "The connection to the model was lost.")
    assert of(AssistantMessage, events) == [AssistantMessage("Once more.")]


async def test_truncated_streams_are_retried() -> None:
    events, _ = await answered(Answer(pieces=[delta({"content": "Hal"})]), says("Whole."))
    assert of(ModelRetry, events)[0].reason == "The model's answer ended early."


async def test_stream_errors_are_reported() -> None:
    error = await failed(Answer(pieces=[b'data: {"error": {"message": "The model crashed"}}\n\n']))
    assert isinstance(error, ModelServerError)
    assert str(error) == "The model failed: The model crashed."


async def test_wrong_key_error_does_not_show_the_key() -> None:
    error = await failed(says("?"), key="sk-wrong")
    assert isinstance(error, ModelAuthError)
    assert "rejected the API key (401)" in str(error)
    assert "sk-wrong" not in str(error)


async def test_missing_key_is_not_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    with ScriptedModel(says("?")) as api:
        async with Agent(model(api, key="")) as agent:
            with pytest.raises(ModelAuthError, match="requires an API key"):
                await collect(agent.say("Hello"))
    assert api.requests[0].headers["authorization"] == "Bearer none"


@for_each(
    "answer",
    [
        Answer(pieces=[b"<html>Welcome</html>"], media="text/html"),
        Answer(pieces=[b'{"hello": 1}'], media="application/json"),
        Answer(pieces=[b"data: <html>\n\n"]),
        Answer(pieces=[b"data: " + b"[" * 100_000 + b"\n\n"]),
        Answer(pieces=[b"data: {}\n\n"]),
        Answer(pieces=[]),
    ],
    ids=["html", "json", "not json", "a bomb", "another object", "nothing"],
)
async def test_non_chat_apis_are_detected(answer: Answer) -> None:
    error = await failed(answer)
    assert isinstance(error, ModelServerError)
    assert "/v1" in str(error)


async def test_wrong_path_and_wrong_model_are_distinguished() -> None:
    error = await failed(refuses(404, "The model `test-model` does not exist."))
    assert isinstance(error, ModelRefused)
    assert "has no model 'test-model'" in str(error)
    error = await failed(Answer(404, [b"<html>" + b"x" * 10_000], media="text/html"))
    assert len(str(error)) < 500


async def test_rejected_requests_show_the_reason() -> None:
    error = await failed(refuses(400, "Maximum context length is 8192 tokens."))
    assert isinstance(error, ModelRefused)
    assert "Maximum context length is 8192 tokens" in str(error)


async def test_reasons_do_not_contain_the_api_key() -> None:
    error = await failed(refuses(400, f"The key {KEY} can't use this model."))
    assert "The key [redacted] can't use this model" in str(error)


async def test_unreachable_url_is_reported_immediately() -> None:
    async with Agent(LanguageModel("m", key=KEY, url=f"http://127.0.0.1:{free_port()}/v1")) as agent:
        with pytest.raises(ModelUnreachable, match="http://127"):
            await collect(agent.say("Hello"))


async def test_images_that_a_model_refuses_are_left_out_of_the_next_request() -> None:
    with ScriptedModel(calls(("show", "{}")), refuses(400, "This model cannot see images."), says("A note.")) as api:
        async with Agent(model(api), [make()]) as agent:
            with pytest.raises(ModelRefused, match="in the conversation, with their results"):
                await collect(agent.say("Show all."))
            await collect(agent.say("Continue."))
    _, *sent = api.requests[-1].body["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "user", "assistant", "user"]
    assert "a note" in sent[2]["content"]
    assert "images and sounds were left out" in sent[3]["content"]


async def test_tool_calls_in_other_shapes_are_accepted() -> None:
    function = {"name": "price", "arguments": '{"isbn": "123"}'}
    pieces = [
        delta({"tool_calls": [{"id": "same", "type": "function", "function": function}]}),
        delta({"tool_calls": [{"id": "other", "function": function}]}),
        delta({"tool_calls": [{"index": 7, "id": "same", "function": function}]}),
        delta({}, "stop"),
        event([], usage=None),
    ]
    events, api = await answered(Answer(pieces=pieces), says("So."))
    assert [each.text for each in of(ToolEnd, events)] == ["3", "3", "3"]
    ids = [call["id"] for call in api.requests[1].body["messages"][2]["tool_calls"]]
    assert len(set(ids)) == 3


async def test_tokens_are_estimated_without_usage() -> None:
    pieces = [delta({"content": "x" * 4000}), delta({}, "stop")]
    events, _ = await answered(Answer(pieces=pieces))
    assert events[-1].tokens > 1000


async def test_model_refusals_become_text() -> None:
    events, _ = await answered(Answer(pieces=[delta({"refusal": "I can't."}), delta({}, "stop")]))
    assert of(AssistantMessage, events) == [AssistantMessage("I can't.")]


async def test_azure_requests_use_the_azure_url() -> None:
    with ScriptedModel(says("Hello from Azure.")) as api:
        azure = LanguageModel("my-deployment", key=KEY, url=api.url.removesuffix("/v1"), azure_version="2024-10-21")
        async with Agent(azure) as agent:
            assert of(AssistantMessage, await collect(agent.say("Hello"))) == [AssistantMessage("Hello from Azure.")]
    [asked] = api.requests
    assert asked.path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"
    assert asked.headers["api-key"] == KEY


def test_invalid_api_urls_are_rejected_at_construction() -> None:
    with pytest.raises(ConfigurationError, match="isn't the URL of an API"):
        LanguageModel("m", url="api.example.com/v1")
    with pytest.raises(ConfigurationError, match="Copy it again"):
        LanguageModel("m", key="sk-\n")
    with pytest.raises(ConfigurationError, match="requires the endpoint"):
        LanguageModel("m", azure_version="2024-10-21")


@for_each("module", ["pydantic_ai", "openai"])
def test_error_names_the_missing_agent_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        with pytest.raises(AgentError, match=r"pip install 'millstream\[agent\]'"):
            LanguageModel("m")


async def test_retry_after_may_be_a_date() -> None:
    """RFC 9110 §10.2.3."""
    events, _ = await answered(refuses(429, "Slow down.", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), says("Here."))
    assert [each.seconds for each in of(ModelRetry, events)] == [0]
    error = await failed(refuses(429, "Come back later.", retry_after="Wed, 21 Oct 2133 07:28:00 GMT"))
    assert isinstance(error, ModelRateLimited)


@for_each(("header", "seconds"), [("7", 7), ("0.5", 0), ("7.5", 0), ("soon", 0)])
async def test_retry_after_is_a_whole_number_of_seconds(header: str, seconds: float) -> None:
    """RFC 9110 §10.2.3. For other values, the agent chooses the pause."""
    with ScriptedModel(refuses(429, "Slow down.", retry_after=header)) as api:
        async with Agent(model(api), [make()]) as agent, aclosing(agent.say("Hello")) as events:
            first = await anext(event async for event in events if isinstance(event, ModelRetry))
    assert first.seconds == seconds


async def test_split_characters_do_not_end_the_conversation() -> None:
    half = "\ud83d"
    events, api = await answered(calls((f"price{half}", "{}")), says(f"So{half}."))
    assert of(ToolEnd, events)[0].outcome == "invalid"
    assert of(AssistantMessage, events)[0].text == "So\ufffd."
    assert len(api.requests) == 2


async def test_calls_before_an_error_stay_in_the_conversation() -> None:
    ordered = list[str]()
    mcp = Server("shop")

    @mcp.tool(annotations=READ)
    async def order(isbn: str) -> str:
        ordered.append(isbn)
        return f"Ordered {isbn}."

    with ScriptedModel(
        calls(("order", '{"isbn": "1"}'), ("order", '{"isbn": "2"}')),
        refuses(403, "Forbidden"),
        says("Both are ordered."),
    ) as api:
        async with Agent(model(api), [mcp]) as agent:
            with pytest.raises(ModelAuthError, match=r"rejected the API key.* in the conversation, with their results"):
                await collect(agent.say("Order 1 and 2."))
            assert ordered == ["1", "2"]
            await collect(agent.say("Continue."))
    sent = api.requests[-1].body["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert [each["content"] for each in sent if each["role"] == "tool"] == ["Ordered 1.", "Ordered 2."]


async def test_an_error_of_a_handler_leaves_the_conversation_valid() -> None:
    async def approve(request: Approval) -> bool:
        raise RuntimeError("The dialog was closed.")

    with ScriptedModel(calls(("unmarked", "{}")), says("Sorry.")) as api:
        async with Agent(model(api), [make()], approve=approve) as agent:
            with pytest.raises(RuntimeError, match=r"The dialog was closed\. The tool calls"):
                await collect(agent.say("Go."))
            await collect(agent.say("Hello?"))
    assert "may have taken effect" in api.requests[-1].body["messages"][3]["content"]


async def test_a_server_that_fails_before_the_first_request_leaves_the_conversation_unchanged() -> None:
    mcp = make()
    with ScriptedModel(says("Hello.")) as api:
        async with Agent(model(api), [mcp]) as agent:

            async def fail(*, fresh: bool = False) -> list[ToolDescription]:
                raise ConnectFailed("The server is down.")

            list_tools = agent.servers[0].client.tools
            agent.servers[0].client.tools = fail  # type: ignore[method-assign, assignment]
            with pytest.raises(ConnectFailed):
                await collect(agent.say("Hello"))
            assert agent.messages == []
            agent.servers[0].client.tools = list_tools  # type: ignore[method-assign]
            await collect(agent.say("Hello"))


TOO_LONG = {
    # What APIs respond, and the context window in it. From their references, source code, and public reports.
    "OpenAI": (
        400,
        (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 150011 tokens "
            "(149000 in the messages, 1011 in the functions). Please reduce the length of the messages or functions."
        ),
        128_000,
    ),
    "OpenAI, newer models": (
        400,
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        0,
    ),
    "OpenAI, tokens per minute": (
        429,
        (
            "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, Requested 41012. "
            "The input or output tokens must be reduced in order to run successfully."
        ),
        30_000,
    ),
    "vLLM": (
        400,
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5012 tokens (5012 in the "
            "messages, 0 in the completion). Please reduce the length of the messages or completion."
        ),
        4096,
    ),
    "llama.cpp": (
        400,
        "the request exceeds the available context size (4096 tokens), try increasing it",
        4096,
    ),
    "LM Studio": (
        400,
        (
            "Trying to keep the first 5012 tokens when context the overflows. However, the model is loaded with "
            "context length of only 4096 tokens, which is not enough. Try to load the model with a larger context "
            "length, or provide a shorter input"
        ),
        4096,
    ),
    "Ollama": (400, "input length exceeds the context length", 0),
    "Mistral": (
        400,
        "Prompt contains 40012 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        32_768,
    ),
    "xAI": (400, "This model's maximum prompt length is 131072 but the request contains 150012 tokens.", 131_072),
    "a proxy": (413, "Payload too large", 0),
}


@for_each("kind", TOO_LONG)
async def test_results_are_shortened_once_if_the_conversation_is_too_long(kind: str) -> None:
    status, reason, window = TOO_LONG[kind]
    mcp = Server("shop")

    @mcp.tool(annotations=READ)
    async def search(words: str) -> list[Text | Image]:
        return [Text(words * 5_000), Image(PNG, "image/png")]

    first, second = calls(("search", '{"words": "old "}')), calls(("search", '{"words": "new "}'))
    refusal = refuses(status, reason)
    with ScriptedModel(first, second, refusal, says("Found."), refusal, refusal, refusal) as api:
        async with Agent(model(api), [mcp]) as agent:
            events = await collect(agent.say("Search twice."))
            assert of(ResultsShortened, events) == [ResultsShortened(2, window)]  # a result, and its image
            old, new = (each["content"] for each in agent.messages if each["role"] == "tool")
            assert (old[:500], new) == ("old " * 125, "new " * 5_000)
            assert "left out" in old
            assert len([each for each in agent.messages if isinstance(each["content"], list)]) == 1
            assert of(ModelRetry, events) == []
            with pytest.raises(ContextWindowExceeded, match="too long for test-model") as caught:
                await collect(agent.say("And now?"))
            assert caught.value.window == window
            assert agent.messages[-1]["content"] == "Found."
            assert len(next(each for each in reversed(agent.messages) if each["role"] == "tool")["content"]) < 2_100
    assert len(api.requests) == 6  # the second question was asked again with a shorter last result


async def test_errors_in_a_stream_can_say_that_the_conversation_is_too_long() -> None:
    body = {"error": {"message": TOO_LONG["OpenAI"][1], "code": "context_length_exceeded"}}
    error = await failed(Answer(pieces=[b"data: " + json.dumps(body).encode() + b"\n\n"]))
    assert isinstance(error, ContextWindowExceeded)
    assert error.window == 128_000


async def test_later_results_fit_into_a_known_window() -> None:
    mcp = Server("shop")

    @mcp.tool(annotations=READ)
    async def search() -> str:
        return "word " * 5_000

    refusal = refuses(400, "This model's maximum context length is 4096 tokens.", "context_length_exceeded")
    with ScriptedModel(calls(("search", "{}")), refusal, calls(("search", "{}")), says("Found.")) as api:
        async with Agent(model(api), [mcp]) as agent:
            await collect(agent.say("Search."))
    results = [each["content"] for each in api.requests[-1].body["messages"] if each["role"] == "tool"]
    assert [len(each.partition("\n[")[0]) for each in results] == [2_000, 4_096]


@for_each(
    "status, reason",
    [
        (429, "This request would exceed the rate limit of 30,000 input tokens per minute."),
        (400, "max_tokens is too large: 20000. This model supports at most 16384 completion tokens."),
        (401, "Your key has no access to this context window."),
    ],
)
async def test_other_refusals_about_tokens_shorten_nothing(status: int, reason: str) -> None:
    error = await failed(refuses(status, reason), limits=Limits(max_attempts=1))
    assert not isinstance(error, ContextWindowExceeded)


DOCUMENTED = {
    "anthropic": (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long: 208310 tokens > 200000 maximum"},
        },
        200_000,
    ),
    "anthropic, with the reply": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease "
                "input length or `max_tokens` and try again",
            },
        },
        200_000,
    ),
    "anthropic, in bytes": (
        413,
        {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}},
        0,
    ),
    "google": (
        400,
        {
            "error": {
                "code": 400,
                "message": "The input token count (1200012) exceeds the maximum number of tokens allowed (1048576).",
                "status": "INVALID_ARGUMENT",
            }
        },
        1_048_576,
    ),
}


@for_each("kind", DOCUMENTED)
async def test_other_providers_report_conversations_that_are_too_long(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, body, window = DOCUMENTED[kind]
    provider = kind.partition(",")[0]

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        payload = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close"
        writer.write(f"{head}\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setenv({"anthropic": "ANTHROPIC_BASE_URL", "google": "GOOGLE_GEMINI_BASE_URL"}[provider], url)
    async with server, Agent(LanguageModel(f"{provider}:a-model", key="k")) as agent:
        with pytest.raises(ContextWindowExceeded) as caught:
            await collect(agent.say("Hello"))
        assert agent.messages == []
    assert caught.value.window == window
