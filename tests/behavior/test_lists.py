from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.harness import Client, Json

MEMBERS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}


async def list_all(client: Client, method: str) -> dict[str, Json]:
    """Return all items of a list, by name or URI."""
    pages = await client.pages(method, MEMBERS[method])
    return {each.get("uri") or each.get("uriTemplate") or each["name"]: each for page in pages for each in page}


@in_combinations()
async def test_pages_form_the_whole_list_in_order(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/utilities/pagination: cursors are opaque; every item is listed once, in the order of
    registration.
    """
    client = await connect(combination)
    pages = await client.pages("tools/list", "tools")
    assert [len(page) for page in pages[:-1]] == [10] * (len(pages) - 1)
    assert len(pages) > 3
    names = [tool["name"] for page in pages for tool in page]
    assert len(names) == len(set(names))
    assert names[:2] == ["add", "text"]
    assert names[-1] == "stock_refill"
    again = [tool["name"] for page in await client.pages("tools/list", "tools") for tool in page]
    assert again == names


@in_combinations()
async def test_unknown_cursors_are_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/utilities/pagination."""
    client = await connect(combination)
    for cursor in ("no cursor", "", "MTA"):
        for method in MEMBERS:
            error = (await client.request(method, {"cursor": cursor})).error
            assert error["code"] == -32602, (method, cursor)


@in_combinations()
async def test_tool_descriptions_match_the_revision(connect: Connect, combination: Combination) -> None:
    """MCP 2025-06-18, server/tools and 2025-11-25, changelog."""
    tools = await list_all(await connect(combination), "tools/list")
    revision = combination.revision
    decorated = tools["decorated"]
    assert ("annotations" in decorated) == (revision >= "2025-03-26")
    assert ("title" in decorated) == ("_meta" in decorated) == (revision >= "2025-06-18")
    assert ("icons" in decorated) == (revision >= "2025-11-25")
    assert ("outputSchema" in tools["point"]) == ("outputSchema" in tools["number"]) == (revision >= "2025-06-18")
    assert "outputSchema" not in tools["text"]
    if revision >= "2026-07-28":
        assert tools["number"]["outputSchema"]["type"] == "integer"
    elif revision >= "2025-06-18":
        assert tools["number"]["outputSchema"]["properties"]["result"]["type"] == "integer"
    assert tools["add"]["inputSchema"]["required"] == ["a"]
    assert tools["add"]["description"] == "Adds."
    assert tools["text"]["inputSchema"]["type"] == "object"
    assert all(tool["inputSchema"]["type"] == "object" for tool in tools.values())


@in_combinations()
async def test_resource_and_prompt_descriptions_match_the_revision(connect: Connect, combination: Combination) -> None:
    """MCP 2025-06-18, changelog and 2025-11-25, changelog."""
    client = await connect(combination)
    titles, icons = combination.revision >= "2025-06-18", combination.revision >= "2025-11-25"
    resources = await list_all(client, "resources/list")
    assert resources["note://one"]["mimeType"] == "text/plain"
    assert resources["note://one"]["size"] == 5
    assert ("title" in resources["note://one"]) == titles
    assert ("icons" in resources["note://one"]) == icons
    templates = await list_all(client, "resources/templates/list")
    assert {"book://{isbn}/{page}", "orders://{number}", "item://stock/{number}"} == set(templates)
    prompts = await list_all(client, "prompts/list")
    assert ("title" in prompts["greet"]) == titles
    assert [each["name"] for each in prompts["greet"]["arguments"]] == ["name", "tone"]
    assert [each.get("required", False) for each in prompts["greet"]["arguments"]] == [True, False]


@in_combinations()
async def test_lists_are_the_same_for_every_client(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, server/tools."""
    client = await connect(combination)
    before = await list_all(client, "tools/list")
    await client.call("text")
    await client.call("no such tool")
    assert await list_all(client, "tools/list") == before
