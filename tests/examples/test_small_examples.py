import asyncio
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from command_line import run_in_process
from examples import bookshop, greet, hub, moderator
from millstream.testing import connect as connect_directly
from patience import WAIT
from processes import ROOT


async def test_server_with_options_starts_on_its_file_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_in_process("keys", "add", "ada").exit_code == 0
    module = runpy.run_path(str(ROOT / "examples" / "recipes" / "archive.py"))
    async with module["mcp"].running() as world:
        assert {"rest", "hub", "web"} <= set(world.definition.parts)


async def test_items_have_their_options_and_come_from_apis_and_other_servers() -> None:
    module = runpy.run_path(str(ROOT / "examples" / "recipes" / "items.py"))
    async with connect_directly(module["mcp"]) as client:
        (template,) = (await client.request("resources/templates/list"))["resourceTemplates"]
        assert (template["title"], template["mimeType"]) == ("Opening hours", "text/plain")
        (contents,) = await client.read("shop://soho/hours")
        assert contents.text == "soho: 9 to 17"
        (prompt,) = (await client.request("prompts/list"))["prompts"]
        assert prompt["title"] == "Review a book"
        assert (await client.call("orders_order_book", isbn="1", copies=2)).text == '{"result":"Ordered 2 of 1."}'
        assert (await client.call("branches_hours", branch="soho")).text == "soho: 9 to 17"
    async with connect_directly(module["stock"]) as client:
        assert [each["name"] for each in (await client.request("tools/list"))["tools"]] == ["count_copies"]


async def test_greet_offers_a_tool_a_resource_and_a_prompt(connect: Any, revision: str) -> None:
    async with connect(greet.mcp, revision) as client:
        assert await client.text("greet", name="Ann") == "Hello, Ann!"
        assert await client.text("greet") == "Hello, world!"
        read = await client.request("resources/read", uri="hello://about")
        assert read["contents"][0]["text"] == "A server that says hello."
        prompt = await client.request("prompts/get", name="introduce", arguments={"name": "Ann"})
        assert "Ann" in prompt["messages"][0]["content"]["text"]


async def test_order_asks_for_the_address_and_reports_progress(connect: Any, asking_revision: str) -> None:
    async with connect(bookshop.mcp, asking_revision) as client:
        result = await client.call("order", isbn="9780261103573", copies=2, meta={"progressToken": "t"})
        assert json.loads(result["content"][0]["text"]) == {"ordered": 2}
        (question,) = client.asked
        assert question[1]["message"] == "Where should we send it?"
        assert set(question[1]["requestedSchema"]["properties"]) == {"street", "city"}
        assert [each["params"]["progress"] for each in client.notifications] == [1, 2]


async def test_declined_orders_are_not_placed(connect: Any, asking_revision: str) -> None:
    async with connect(bookshop.mcp, asking_revision, answer=lambda method, params: {"action": "decline"}) as client:
        assert (await client.call("order", isbn="1"))["isError"] is True


async def test_bookshop_has_books_reviews_and_completion(connect: Any, revision: str) -> None:
    async with connect(bookshop.mcp, revision) as client:
        assert list(json.loads(await client.text("search", words="tolkien"))) == ["9780261103573"]
        read = await client.request("resources/read", uri="book://9780261103573")
        assert "Tolkien" in read["contents"][0]["text"]
        assert read["contents"][0]["uri"] == "book://9780261103573"
        prompt = await client.request("prompts/get", name="review", arguments={"isbn": "9780261103573", "tone": "dry"})
        assert prompt["messages"][0]["content"]["text"].startswith("Write a dry review")
        reference = {"type": "ref/prompt", "name": "review"}
        completed = await client.request(
            "completion/complete", ref=reference, argument={"name": "isbn", "value": "97802"}
        )
        assert completed["completion"]["values"] == ["9780261103573"]


@for_each(("tool", "result"), [("add_numbers", 15), ("multiply_numbers", 50)])
async def test_hub_example_calculates_and_streams(connect: Any, revision: str, tool: str, result: int) -> None:
    async with connect(hub.mcp, revision) as client:
        assert await client.text(tool, a=10, b=5) == str(result)
        streamed = await client.call(tool, a=10, b=5, stream=True, meta={"progressToken": 1})
        assert streamed["content"][0]["text"] == str(result)
        assert [each["params"]["progress"] for each in client.notifications] == [1, 2, 3]


@for_each(("tool", "a", "b"), [
    ("add_numbers", 10**400, 1), ("add_numbers", 10**400, 0.5), ("add_numbers", 1.7e308, 1.7e308),
    ("multiply_numbers", 10**200, 10**200), ("multiply_numbers", 1e300, 1e300),
])  # fmt: skip
async def test_hub_example_rejects_oversized_numbers(
    connect: Any, revision: str, tool: str, a: float, b: float
) -> None:
    async with connect(hub.mcp, revision) as client:
        refused = await client.call(tool, a=a, b=b)
        assert refused["isError"] is True
        assert "too large for a number" in refused["content"][0]["text"]


async def test_hub_example_describes_itself(connect: Any, revision: str) -> None:
    async with connect(hub.mcp, revision) as client:
        info = json.loads(await client.text("get_server_info"))
        assert (info["name"], info["revision"]) == ("hub", revision)
        assert hub.server_info(revision) is hub.server_info(revision)
        assert (await client.text("get_current_time", timezone="Asia/Kolkata")).endswith("+05:30")
        for unknown in ("Mars/Base", "Europe", "../etc/passwd", ""):
            refused = await client.call("get_current_time", timezone=unknown)
            assert refused["isError"] is True
            assert "IANA" in refused["content"][0]["text"]
        read = await client.request("resources/read", uri="time://Asia/Kolkata")
        assert read["contents"][0]["text"].endswith("+05:30")
        assert (await client.request("resources/read", uri="hub://about"))["contents"][0]["mimeType"] == "text/markdown"
        assert await client.text("greet", name="Ann") == "Hello, Ann!"


async def test_hub_example_reports_each_step(connect: Any, revision: str) -> None:
    async with connect(hub.mcp, revision) as client:
        await client.call("long_task", steps=4, seconds=0, meta={"progressToken": "t"})
        assert [each["params"]["progress"] for each in client.notifications] == [1, 2, 3, 4]


async def test_hub_example_orders_can_be_read(connect: Any, asking_revision: str) -> None:
    async with connect(hub.mcp, asking_revision) as client:
        order = json.loads(await client.text("order_parcel", item="tea"))
        assert order["status"] == "tea to Ann, Ann (standard)"
        read = await client.request("resources/read", uri=f"orders://{order['order']}")
        assert read["contents"][0]["text"] == order["status"]


async def test_hub_example_uses_sampling(connect: Any, revision: str) -> None:
    async with connect(hub.mcp, revision) as client:
        assert await client.text("summarize", text="Long ago …") == "Paris, hello"
        assert client.asked[0][1]["maxTokens"] == 200


async def test_hub_example_completes_languages(connect: Any, revision: str) -> None:
    async with connect(hub.mcp, revision) as client:
        prompt = await client.request("prompts/get", name="translate", arguments={"text": "hi", "language": "Dutch"})
        assert "Dutch" in prompt["messages"][0]["content"]["text"]
        reference = {"type": "ref/prompt", "name": "translate"}
        completed = await client.request(
            "completion/complete", ref=reference, argument={"name": "language", "value": "d"}
        )
        assert completed["completion"]["values"] == ["Dutch"]


@for_each("message", ["STOP THAT", {"name": "Ada", "text": "STOP THAT"}])
async def test_moderator_warns_about_messages_in_capitals(message: object) -> None:
    async with asyncio.timeout(WAIT), moderator.mcp.running():
        events = moderator.mcp.hub.listen("warnings")
        warning = asyncio.ensure_future(anext(events))
        while not warning.done():  # both listeners start with new events
            await moderator.mcp.hub.publish("room.lobby", {"name": "Ada", "text": "Hello"})
            await moderator.mcp.hub.publish("room.lobby", [1])
            await moderator.mcp.hub.publish("room.lobby", message)
            await asyncio.wait([warning], timeout=0.05)
        assert json.loads(warning.result().data or b"") == {"channel": "room.lobby", "text": "STOP THAT"}
        await events.aclose()


@for_each("answer", [True, False])
async def test_card_is_charged_if_the_person_agrees(connect: Any, asking_revision: str, *, answer: bool) -> None:
    def agree(method: str, params: Any) -> dict[str, Any]:
        return {"action": "accept", "content": {"value": answer}}

    shop = runpy.run_path(str(ROOT / "examples" / "recipes" / "charge.py"))["mcp"]
    async with connect(shop, asking_revision, answer=agree) as client:
        receipt = await client.text("pay", cents=900)
        assert receipt.endswith("for 900 cents") if answer else receipt == "Nothing was charged."


async def test_refund_that_is_repeated_has_the_first_receipt(connect: Any, asking_revision: str) -> None:
    shop = runpy.run_path(str(ROOT / "examples" / "recipes" / "charge.py"))["mcp"]
    async with connect(shop, asking_revision) as client:
        receipt, again = await client.text("refund", cents=900), await client.text("refund", cents=900)
        assert receipt.endswith("for 900 cents that you get back")
        assert again != receipt
        assert again.startswith("[An identical call ran at ")


def test_settings_of_a_program_and_of_its_operator_are_combined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_ALLOWED_HOSTS", "mcp.example.com,mcp.example.org")
    monkeypatch.setenv("MILLSTREAM_MAX_BODY", "5")
    module = runpy.run_path(str(ROOT / "examples" / "recipes" / "limited.py"))
    settings = module["mcp"].definition.settings
    assert settings.max_body == 1_000_000
    assert list(settings.allowed_hosts) == ["mcp.example.com", "mcp.example.org"]
