import base64

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.functions import WAV
from behavior.harness import Client, Json
from cases import for_each
from millstream import Server, Settings


async def read(client: Client, uri: str) -> Json:
    """Return the only content of a resource."""
    (content,) = (await client.request("resources/read", {"uri": uri})).result["contents"]
    return content


async def completed(client: Client, ref: Json, name: str, value: str, **known: str) -> list[str]:
    """Return the completions of an argument."""
    params: Json = {"ref": ref, "argument": {"name": name, "value": value}}
    if known:
        params["context"] = {"arguments": known}
    completion = (await client.request("completion/complete", params)).result["completion"]
    assert completion["total"] == len(completion["values"])
    assert completion["hasMore"] is False
    return completion["values"]


@in_combinations()
async def test_resources_return_text_or_bytes(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/resources."""
    client = await connect(combination)
    assert await read(client, "note://one") == {"uri": "note://one", "mimeType": "text/plain", "text": "hello"}
    blob = base64.b64encode(b"\x00\x01").decode()
    assert await read(client, "note://bytes") == {
        "uri": "note://bytes", "mimeType": "application/octet-stream", "blob": blob,
    }  # fmt: skip


@in_combinations()
async def test_template_variables_are_converted(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    assert (await read(client, "book://111/6"))["text"] == "111 page 7"
    assert (await read(client, "book://a%20b/0"))["text"] == "a b page 1"
    assert "7" in (await read(client, "orders://7"))["text"]
    reply = await client.request("resources/read", {"uri": "book://111/six"})
    assert reply.error["code"] == -32602
    assert reply.error["data"] == {"uri": "book://111/six"}


@in_combinations()
async def test_non_ascii_uris_can_be_read(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    client = await connect(combination)
    assert (await client.request("resources/read", {"uri": "note://é"})).error["data"] == {"uri": "note://é"}


@in_combinations()
async def test_prompts_receive_their_arguments(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/prompts."""
    client = await connect(combination)
    result = (await client.request("prompts/get", {"name": "greet", "arguments": {"name": "Ada"}})).result
    text = {"type": "text", "text": "Greet Ada in a warm way."}
    assert result["messages"] == [{"role": "user", "content": text}]


@in_combinations()
@for_each("arguments", [{}, {"name": "Ada", "tone": "loud"}], ids=repr)
async def test_invalid_prompt_arguments_are_a_protocol_error(
    connect: Connect, combination: Combination, arguments: Json
) -> None:
    """MCP 2025-11-25, server/prompts: -32602, on every revision: a prompt has no `isError`."""
    client = await connect(combination)
    reply = await client.request("prompts/get", {"name": "greet", "arguments": arguments})
    assert reply.error["code"] == -32602
    assert ("tone" if arguments else "name") in reply.error["message"]


@in_combinations()
async def test_prompt_messages_match_the_revision(connect: Connect, combination: Combination) -> None:
    """MCP 2025-06-18, changelog."""
    result = (await (await connect(combination)).request("prompts/get", {"name": "show"})).result
    first, sound, link = result["messages"]
    assert [each["role"] for each in result["messages"]] == ["user", "user", "assistant"]
    assert first["content"] == {"type": "text", "text": "Look:"}
    assert sound["content"]["type"] == ("audio" if combination.revision >= "2025-03-26" else "resource")
    assert base64.b64encode(WAV).decode() in str(sound)
    assert link["content"]["type"] == ("resource_link" if combination.revision >= "2025-06-18" else "text")


@in_combinations()
async def test_completion_uses_a_function_or_the_type(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/utilities/completion and 2025-06-18, changelog."""
    client = await connect(combination)
    greet = {"type": "ref/prompt", "name": "greet"}
    assert await completed(client, greet, "name", "A") == ["Ada", "Alan"]
    dry = ["Dr. Ada", "Dr. Alan"] if combination.revision >= "2025-06-18" else ["Ada", "Alan"]
    assert await completed(client, greet, "name", "A", tone="dry") == dry
    assert await completed(client, greet, "tone", "w") == ["warm", "wry"]
    book = {"type": "ref/resource", "uri": "book://{isbn}/{page}"}
    assert await completed(client, book, "isbn", "11") == ["111", "112"]
    assert await completed(client, book, "page", "1") == []


@in_combinations()
async def test_absent_members_of_a_completion_request_may_be_null(connect: Connect, combination: Combination) -> None:
    """Clients in languages without undefined values send them."""
    client = await connect(combination)
    params: Json = {"argument": {"name": "isbn", "value": "11"}, "context": {"arguments": None}}
    params["ref"] = {"type": "ref/resource", "uri": "book://{isbn}/{page}", "name": None}
    completion = (await client.request("completion/complete", params)).result["completion"]
    assert completion["values"] == ["111", "112"]


@in_combinations()
async def test_completion_for_unknown_references_is_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/utilities/completion."""
    client = await connect(combination)
    for ref, name in (
        ({"type": "ref/prompt", "name": "none"}, "name"),
        ({"type": "ref/prompt", "name": "greet"}, "none"),
        ({"type": "ref/resource", "uri": "none://{x}"}, "x"),
        ({"type": "ref/tool", "name": "add"}, "a"),
    ):
        params = {"ref": ref, "argument": {"name": name, "value": ""}}
        assert (await client.request("completion/complete", params)).error["code"] == -32602


@in_combinations()
async def test_mounted_servers_respond_under_their_prefix(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    assert (await client.call("stock_count", item="nails")).text == "7 nails"
    prompt = (await client.request("prompts/get", {"name": "stock_describe", "arguments": {"item": "a nail"}})).result
    assert prompt["messages"][0]["content"]["text"] == "Describe a nail."
    assert (await read(client, "shelf://stock/a"))["text"] == "top shelf"
    assert (await read(client, "item://stock/4"))["text"] == "item 4"
    ref = {"type": "ref/prompt", "name": "stock_describe"}
    assert await completed(client, ref, "item", "") == ["nails"]
    assert (await client.call("count", item="nails")).error["code"] == -32602


@in_combinations("session")
async def test_updates_from_mounted_servers_have_the_prefix(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    await client.watch("shelf://stock/a")
    await client.call("stock_refill")
    assert (await client.wait_for_notification("notifications/resources/updated"))["uri"] == "shelf://stock/a"


async def test_items_registered_after_mounting_are_offered(connect: Connect) -> None:
    outer, inner = Server("outer", settings=Settings()), Server("inner", settings=Settings())
    outer.mount(inner, prefix="in")

    @inner.prompt
    def late(word: str) -> str:
        return word

    @inner.complete("late", argument="word")
    def words(value: str, arguments: dict[str, str]) -> list[str]:
        return ["later"]

    client = await connect(Combination("2025-11-25", "memory"), server=outer)
    assert [prompt["name"] for page in await client.pages("prompts/list", "prompts") for prompt in page] == ["in_late"]
    assert await completed(client, {"type": "ref/prompt", "name": "in_late"}, "word", "") == ["later"]
