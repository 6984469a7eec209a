"""The examples of the guides, called as the guides say."""

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from examples import (
    bookstore,
    calls,
    counter,
    exchange,
    gallery,
    guards,
    mounted,
    notes,
    parcels,
    reports,
    reviews,
    shelves,
    slow,
    sold_out,
    stock,
    summaries,
    weather,
)
from millstream import Server
from millstream.client import Question, ToolFailed
from millstream.testing import ServerError, TestClient, connect
from patience import WAIT

ERAS = for_each("revision", ["2025-11-25", "2026-07-28"])


async def names(client: TestClient) -> list[str]:
    return [tool.name for tool in await client.tools()]


async def test_notes_are_found_added_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "NOTES", dict(notes.NOTES))
    async with connect(notes.mcp) as client:
        found = await client.call("find", words="ADA")
        assert found.data == [{"number": 2, "text": "Call Ada about the milk"}]
        assert (await client.call("add", text="Sleep", urgent=True)).data == {"number": 3, "text": "! Sleep"}
        result = await client.call("stats")
        assert (result.text, result.data) == ("3 notes with 9 words", {"notes": 3, "words": 9})
        with pytest.raises(ToolFailed, match="'words' must be a string of length >= 2"):
            await client.call("find", words="m")
        assert (await client.call("clear")).text == "All notes are gone."
        assert (await client.call("count")).data == 0


async def test_tagged_tools_in_the_notes_example_can_be_switched_on_and_off() -> None:
    async with connect(notes.mcp) as client:
        assert "search_archive" not in await names(client)
        await client.call("use_beta_tools", on=True)
    async with connect(notes.mcp) as client:
        (tool,) = [each for each in await client.tools() if each.name == "search_archive"]
        assert tool.title == "Search the archive"
        assert len((await client.call("search_archive", year=2020)).data) == 2
        await client.call("use_beta_tools", on=False)


async def test_shelves_can_be_read_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "ORDERS", [])
    async with connect(shelves.mcp) as client:
        assert (await client.read("shop://opening-hours"))[0].text.startswith("Monday")
        assert (await client.read("book://9780141439600"))[0].text == '{"title":"Middlemarch","pages":880}'
        with pytest.raises(ServerError, match="There is no book '123'"):
            await client.read("book://123")
        assert "Ada" in (await client.read("shop://staff/rota"))[0].text
        async with asyncio.timeout(WAIT), client.watch("shop://orders") as changes:
            (link,) = (await client.call("order", isbn="9780141439600")).content
            async for _ in changes:
                break
        assert link.uri == "book://9780141439600"
        assert (await client.read("shop://orders"))[0].text == '["9780141439600"]'


@ERAS
async def test_guide_variables_are_completed(connect: Any, revision: str) -> None:
    async with connect(shelves.mcp, revision) as caller:
        reference = {"type": "ref/resource", "uri": "book://{isbn}"}
        argument = {"name": "isbn", "value": "97801"}
        completed = await caller.request("completion/complete", ref=reference, argument=argument)
        assert completed["completion"]["values"] == ["9780141439600"]
    async with connect(reviews.mcp, revision) as caller:
        reference = {"type": "ref/prompt", "name": "review"}
        for name, value in (("isbn", "97802"), ("tone", "d")):
            argument = {"name": name, "value": value}
            completed = await caller.request("completion/complete", ref=reference, argument=argument)
            assert completed["completion"]["values"] == [{"97802": "9780261103573", "d": "dry"}[value]]


async def test_prompts_look_up_titles() -> None:
    async with connect(reviews.mcp) as client:
        (message,) = (await client.prompt("review", isbn="9780141439600")).messages
        assert message.content.text == "Write a warm review of Middlemarch."
        choice = await client.prompt("choose")
        assert [each.role for each in choice.messages] == ["user", "assistant", "user"]
        with pytest.raises(ServerError, match="'tone' must be one of"):
            await client.prompt("review", isbn="1", tone="wild")


async def test_models_read_only_tool_errors() -> None:
    async with connect(stock.mcp, elicit=lambda question: "decline") as client:
        for tool, text in (
            ("buy", "'emma' is sold out. Offer another title: momo."),
            ("price", "Internal error.+incident"),
            ("supplier", "No supplier is known for 'emma'"),
        ):
            with pytest.raises(ToolFailed, match=text):
                await client.call(tool, title="emma")
        assert "With best wishes" in (await client.call("gift", title="momo")).text


@ERAS
async def test_calls_identify_their_caller(revision: str) -> None:
    async with connect(calls.mcp, revision=revision) as client:
        caller = (await client.call("who_am_i")).data
        assert (caller["user"], caller["client"], caller["revision"]) == ("anyone", "test 1", revision)
        with pytest.raises(ToolFailed, match="Only administrators"):
            await client.call("delete_logs")
        assert re.fullmatch(r"[0-9a-f]{64}", (await client.call("checksum", text="a")).text)
        assert (await client.call("load_all")).content[0].text == '["a.csv","b.csv"]'
        loaded = [each["params"].get("message") for each in client.notifications]
        assert [each for each in loaded if each] == ["Loading a.csv", "Loading b.csv"]
        hours = (await client.call("hours_since", moment=0)).content[0].text
        assert float(hours) > 0


async def test_bookstore_keeps_books_and_carts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect(bookstore.mcp) as client:
        await client.call("deliver", title="Momo", copies=3)
        await client.call("deliver", title="Momo", copies=2)
        cart = (await client.call("create_cart")).text
    async with connect(bookstore.mcp) as client:
        assert (await client.call("in_stock", title="Momo")).data == 5
        assert (await client.call("in_stock", title="Emma")).data == 0
        await client.call("add_to_cart", cart=cart, title="Momo")
        assert (await client.call("add_to_cart", cart=cart, title="Emma")).data == ["Momo", "Emma"]
        with pytest.raises(ToolFailed, match="Call create_cart first"):
            await client.call("add_to_cart", cart="guessed", title="Momo")
        with pytest.raises(ToolFailed, match="has no session"):
            await client.call("remember", title="Momo")


async def test_session_state_keeps_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect(bookstore.mcp, revision="2025-11-25") as client:
        await client.call("remember", title="Momo")
        assert (await client.call("remember", title="Emma")).content[0].text == '["Momo","Emma"]'


async def test_user_state_keeps_books_in_every_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for titles, revision in (['["Momo"]', "2025-11-25"], ['["Momo","Momo"]', "2026-07-28"]):
        async with connect(bookstore.mcp, revision=revision) as client:
            assert (await client.call("mark_as_read", title="Momo")).content[0].text == titles


async def test_rates_are_refreshed_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def fetch() -> dict[str, float]:
        asked.set()
        return {"EUR": 2.0}

    monkeypatch.setattr(exchange, "fetch_rates", fetch)
    async with connect(exchange.mcp) as client:
        await asyncio.wait_for(asked.wait(), WAIT)
        assert (await client.read("bank://rates"))[0].text == '{"EUR":2.0}'


@ERAS
async def test_users_are_asked_to_rate_and_pay_only_once(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PAID", [])
    address = {"street": "Hobbit Lane 1", "city": "Oxford"}

    def person(question: Question) -> Any:
        message = question.message
        if "What went wrong" in message:
            return "decline"
        return {"value": 1} if "stars" in message else {"name": "Ben"} if "Who" in message else address

    async with connect(
        parcels.mcp, revision=revision, elicit=person, sample=lambda request: "Hello", roots=["file:///home"]
    ) as client:
        assert (await client.call("order_parcel", item="Book")).text == "Book goes to Hobbit Lane 1, Oxford (standard)."
        assert (await client.call("rate_parcel")).text == "1 stars, without a reason."
        assert (await client.call("buy", item="Pen")).text == "Pen goes to Oxford: receipt 1."
        assert parcels.PAID == ["Pen"]
        assert (await client.call("connect_account")).text.startswith("Call list_parcels")
        assert (await client.call("write_card")).text == "Hello Ben, with 1 folders open"


@ERAS
async def test_models_summarize_and_classify(revision: str) -> None:
    async with connect(summaries.mcp, revision=revision, sample=lambda request: "Good") as client:
        assert (await client.call("summarize_reviews")).text == "Good"
        assert (await client.call("classify_review", review="Lovely")).text == "good"
    async with connect(summaries.mcp, revision=revision) as client:
        assert (await client.call("shorten", text="long")).text == "long…"


async def test_model_looks_up_reviews_with_a_tool(connect: Any) -> None:
    asked: list[dict[str, Any]] = []

    def model(method: str, params: dict[str, Any]) -> dict[str, Any]:
        asked.append(params)
        use = {"type": "tool_use", "id": "1", "name": "look_up", "input": {"word": "daughter"}}
        text = {"type": "text", "text": "Yes"}
        return {"role": "assistant", "model": "m", "content": use if len(asked) == 1 else text}

    capabilities = {"sampling": {"tools": {}}}
    async with connect(summaries.mcp, "2025-11-25", capabilities=capabilities, answer=model) as caller:
        assert await caller.text("answer", question="Do children like it?") == "Yes"
    assert "My daughter reads it" in str(asked[1]["messages"][-1])


async def test_slow_tools_report_progress() -> None:
    async with connect(slow.mcp) as client:
        assert (await client.call("pack", copies=1)).text == "1 copies are packed"
        assert (await client.call("send", copies=1)).text == "All copies are on their way"
        sent = [(each["params"]["progress"], each["params"]["message"]) for each in client.notifications]
        assert sent == [
            (1, "Copy 1 is packed"),
            (1, "Copy 1 is on its way"),
            (2, "All copies are on their way"),
        ]


async def test_counter_streams_progress_only_on_request() -> None:
    async with connect(counter.mcp) as client:
        for stream in (False, True):
            assert (await client.call("count", to=2, stream=stream)).data == 2
            assert len(client.notifications) == (2 if stream else 0)


async def test_reports_run_as_tasks() -> None:
    async with connect(reports.mcp, elicit=lambda question: {"approved": False}) as client:
        assert (await client.call("make_report", year=2026, task=True)).text == "The report of 2026 is ready."
        assert (await client.call("publish", year=2026, task=True)).text == "Not published."


async def test_gallery_sends_images_and_files(tmp_path: Path) -> None:
    async with connect(gallery.mcp) as client:
        (picture,) = (await client.call("swatch", red=1, green=2, blue=3)).content
        assert picture.mime_type == "image/png"
        assert (await client.call("size_of", image=picture.data)).text == "64 by 64 pixels"
        compared = (await client.call("compare")).content
        assert [type(each).__name__ for each in compared] == ["Text", "Image", "Text", "Image"]
        (file,) = (await client.call("price_list")).content
        assert file.resource.text.startswith("title,price")
        assert "catalog://2026/spring.txt" in (await client.read("catalog://"))[0].text


async def test_tool_writes_to_its_own_log_and_to_the_client(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sold_out, "STOCK", dict(sold_out.STOCK))
    caplog.set_level(logging.INFO, "bookshop")
    async with connect(sold_out.mcp, revision="2025-11-25") as client:
        assert (await client.call("remove_sold_out")).text == "Removed 9780141439600."
        assert client.notifications[0]["params"]["data"] == {"removed": ["9780141439600"]}
    assert "Removed sold-out books" in caplog.text


async def test_failures_are_translated() -> None:
    mcp = Server("shop", middleware=[guards.Translate()])

    @mcp.tool
    def look_up() -> str:
        """Look up the stock."""
        raise ConnectionResetError

    async with connect(mcp) as client:
        with pytest.raises(ToolFailed, match="The warehouse doesn't respond"):
            await client.call("look_up")


async def test_weather_failures_are_reported_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(weather, "urlopen", refuse)
    async with connect(weather.mcp) as client:
        with pytest.raises(ToolFailed, match="Try again in a minute"):
            await client.call("what_to_wear", city="Oslo")


async def test_mounted_tools_have_a_prefix() -> None:
    async with connect(mounted.mcp) as client:
        assert await names(client) == ["stock_find", "opening_hours"]
        assert (await client.call("stock_find", words="mo")).data == ["Momo"]
