import sys
from contextlib import aclosing
from typing import Any

import pytest

from agent.shop import make
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
from millstream.agent import (
    Agent,
    AgentError,
    AssistantMessage,
    ConfigurationError,
    LanguageModel,
    Limits,
    ModelAuthError,
    ModelError,
    ModelRateLimited,
    ModelRefused,
    ModelRetry,
    ModelServerError,
    ModelUnreachable,
    ToolEnd,
)
from millstream.agent import _agent as turn_module
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
    events, api = await answered(BUSY, refuses(429, "Slow down.", retry_after_ms="1"), says("Here I am."))
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


async def test_late_errors_discard_the_answer() -> None:
    error = await failed(calls(("show", "{}")), refuses(400, "This model cannot see images."))
    assert isinstance(error, ModelRefused)


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
