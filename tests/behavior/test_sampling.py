"""Conversations for the client's model: rules of every revision, and conversations that some revisions don't support.

https://modelcontextprotocol.io/specification/2025-11-25/client/sampling#message-content-constraints
"""

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.functions import CONVERSATIONS
from behavior.harness import Json
from cases import for_each

SAMPLE: Json = {"role": "assistant", "content": {"type": "text", "text": "word"}, "model": "m"}
UNBALANCED = {
    "without results": "The conversation ends before the tool uses 'a', 'b' have tool results",
    "one result missing": "Message 2 of the conversation must contain results",
    "results in two messages": "Message 2 of the conversation must contain results",
    "something between": "Message 2 of the conversation must contain results",
    "a result twice": "but has results for ('b', 'b', 'a')",
    "results of nothing": "Message 1 of the conversation must contain results",
    "results and text": "Message 2 of the conversation mixes tool results with other content",
    "uses of the user": "Message 1 of the conversation contains a ToolUse, so its role must be 'assistant'",
    "results of the assistant": "Message 2 of the conversation contains a ToolResultBlock, so its role must be 'user'",
    "a link": "Message 1 of the conversation contains content of the type ResourceLink",
}


@in_combinations("questions")
@for_each("kind", UNBALANCED)
async def test_unbalanced_tool_results_raise_in_the_function(
    connect: Connect, combination: Combination, kind: str
) -> None:
    client = await connect(combination, answer=lambda method, params: SAMPLE)
    text = (await client.call("samples_conversation", kind=kind)).text
    assert text.startswith("refused: ")
    assert UNBALANCED[kind] in text
    assert client.questions == []


@in_combinations("questions")
async def test_tool_conversations_need_a_revision_that_supports_them(
    connect: Connect, combination: Combination
) -> None:
    """Regression: before 2025-11-25, messages can't contain tool uses."""
    client = await connect(combination, answer=lambda method, params: SAMPLE)
    reply = await client.call("samples_conversation", kind="balanced")
    if combination.revision < "2025-11-25":
        assert combination.revision in reply.failure
        assert client.questions == []
    else:
        assert reply.text == "word"
        ((_, params),) = client.questions
        contents = [each["content"] for each in params["messages"]]
        assert [[block["type"] for block in blocks] for blocks in contents[1:3]] == [
            ["tool_use"] * 2,
            ["tool_result"] * 2,
        ]
        assert [block["text"] for block in contents[::3]] == ["How is the weather?", "And tomorrow?"]


@in_combinations("questions", since="2025-11-25")
async def test_conversations_with_tools_need_the_client_capability(connect: Connect, combination: Combination) -> None:
    client = await connect(combination, capabilities={"sampling": {}}, answer=lambda method, params: SAMPLE)
    reply = await client.call("samples_conversation", kind="balanced")
    assert client.questions == []
    if combination.handshake:
        assert "sampling.tools" in reply.failure
    else:
        assert reply.error["data"] == {"requiredCapabilities": {"sampling": {"tools": {}}}}


@in_combinations("questions")
async def test_messages_with_several_blocks_are_split_for_older_revisions(
    connect: Connect, combination: Combination
) -> None:
    """Regression: before 2025-11-25 `content` is one block, and a list broke the schema."""
    client = await connect(combination, answer=lambda method, params: SAMPLE)
    assert (await client.call("samples_conversation", kind="blocks")).text == "word"
    ((_, params),) = client.questions
    sent = [(each["role"], each["content"]) for each in params["messages"]]
    if combination.revision < "2025-11-25":
        assert [(role, block["type"]) for role, block in sent] == [
            ("user", "text"), ("user", "image"), ("assistant", "text"), ("user", "text"),
        ]  # fmt: skip
    else:
        assert [len(blocks) for _, blocks in sent[:2]] == [2, 1]
        assert sent[2] == ("user", {"type": "text", "text": "three"})


@in_combinations("questions")
async def test_content_outside_of_messages_is_from_the_user(connect: Connect, combination: Combination) -> None:
    client = await connect(combination, answer=lambda method, params: SAMPLE)
    assert (await client.call("samples_conversation", kind="content")).text == "word"
    ((_, params),) = client.questions
    assert [(each["role"], each["content"]["type"]) for each in params["messages"]] == [
        ("user", "text"),
        ("user", "image"),
    ]


@in_combinations("questions")
async def test_audio_is_sent_if_the_revision_supports_it(connect: Connect, combination: Combination) -> None:
    """Regression: 2024-11-05 only has text and images."""
    client = await connect(combination, answer=lambda method, params: SAMPLE)
    reply = await client.call("samples_conversation", kind="audio")
    if combination.revision < "2025-03-26":
        assert "audio" in reply.failure
        assert client.questions == []
    else:
        assert reply.text == "word"


@in_combinations()
async def test_prompt_messages_have_one_block(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    told = (await client.request("prompts/get", {"name": "in_blocks"})).result["messages"]
    assert [(each["role"], each["content"]["text"]) for each in told] == [
        ("assistant", "one"), ("assistant", "two"), ("user", "three"),
    ]  # fmt: skip
    assert (await client.request("prompts/get", {"name": "uses_a_tool"})).error["code"] == -32603


def test_every_conversation_in_the_table_is_tested() -> None:
    assert set(CONVERSATIONS) == {*UNBALANCED, "balanced", "blocks", "content", "audio"}
